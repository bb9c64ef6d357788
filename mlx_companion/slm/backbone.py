"""Backbones: the loaded model that the small heads read, and its features of a text.

A head needs one vector per text. Here it comes from a pretrained model that is not trained
further: hidden states from half way up a language model, or a sentence embedding. Several
modules share one backbone, so each text is computed once, however many ask for it::

    backbone = shared_backbone()                      # the default model, loaded when first used
    rows = backbone.features(["who won last night"])  # (1, F) float32
    backbone.generate("Rewrite: ...", max_tokens=40)

The layers above the one that is read do not run. The work of one backbone is done on a thread of
its own, so any thread may ask, and an event loop's executor is never held by two at once.
"""

from __future__ import annotations

import copy
import threading
import weakref
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from mlx_companion.errors import SLMError
from mlx_companion.slm.worker import Worker

if TYPE_CHECKING:
    from mlx_companion.models.encoder import SentenceEncoder
    from mlx_companion.models.load import LanguageModel
    from mlx_companion.models.prompts import Prompt
    from mlx_companion.slm.bert_rows import BertRows

T = TypeVar("T")

# Measured on research need: half of the depth is as good as two thirds with known sources, better
# with unknown ones (docs/slm_research.md), and takes three quarters of the time.
DEPTH = 0.5
# Texts are cut to so many tokens, half from each end: a long message often asks at its end.
MAX_TOKENS = 128
# And before that to so many characters: a megabyte would be made into tokens for nothing.
_MAX_CHARS = 8_000
# Two forward passes at once share the threads of the matrix products and take each other's caches:
# 45 ms in the median and 134 in twenty, where one after the other takes 39 and 42.
_turn = threading.Lock()
# Rows x length of one forward pass.
_BATCH_TOKENS = 512


class BaseSLMAdapter(ABC):
    """A model behind the heads. Subclasses say how to load, read and generate.

    Args:
        name: what it is called in lists and traces.
        cache_size: so many texts' features are kept, the latest used ones.
    """

    def __init__(self, name: str, cache_size: int = 1024) -> None:
        self.name = name
        self._cache_size = max(cache_size, 1)
        self._cache: OrderedDict[str, Future[np.ndarray]] = OrderedDict()
        self._lock = threading.RLock()
        self._worker = Worker(f"slm-{name}")
        _adapters.add(self)

    @property
    @abstractmethod
    def loaded(self) -> bool:
        """Whether the model is in memory."""

    @property
    @abstractmethod
    def memory_bytes(self) -> int:
        """Size of its weights in memory, bytes; 0 when it is not loaded."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """Which model and which of its features: heads made for others do not fit. Loads it."""

    @abstractmethod
    def _load(self) -> None:
        """Read the model. Runs on the backbone's thread, as the next three do."""

    @abstractmethod
    def _unload(self) -> None:
        """Let go of it."""

    @abstractmethod
    def _features(self, texts: Sequence[str]) -> np.ndarray:
        """Features (N, F) float32 of texts, which are all different."""

    @abstractmethod
    def _generate(self, prompt: Prompt, max_tokens: int) -> str:
        """A reply."""

    def load(self) -> None:
        """Read the model now rather than at the first use.

        Raises:
            ModelError: it cannot be found, fetched or read.
        """
        self._run(self._ready)

    def unload(self) -> None:
        """Give its memory back; the next use loads it again."""
        self._run(self._unload)
        self.forget_texts()

    def features(self, texts: Sequence[str]) -> np.ndarray:
        """Features of texts; computed once for each text, whichever threads ask.

        Args:
            texts: any number.

        Returns:
            (N, F) float32; with no texts (0, 0).

        Raises:
            ModelError: the model cannot be loaded.
        """
        if isinstance(texts, str):
            raise TypeError("features takes a list of texts, and was given one text")
        rows = self._rows([cut_text(text) for text in texts])
        if not rows:
            return np.zeros((0, 0), dtype=np.float32)
        return np.stack([row.result() for row in rows])

    def prefetch(self, texts: Sequence[str]) -> None:
        """Begin with the features of texts, and do not wait: `features` will find them."""
        self._rows([cut_text(text) for text in texts])

    def forget_texts(self) -> None:
        """Forget the texts whose features are kept; the model stays."""
        with self._lock:
            self._cache.clear()

    def generate(self, prompt: Prompt, max_tokens: int = 128) -> str:
        """A reply of the model, greedy.

        Args:
            prompt: a text or chat messages.
            max_tokens: the most tokens to make.

        Raises:
            ModelError: the model cannot be loaded, or the prompt cannot be used.
            SLMError: this kind of model makes no text.
        """

        def work() -> str:
            self._ready()
            return self._generate(prompt, max_tokens)

        return self._run(work)

    def _rows(self, texts: Sequence[str]) -> list[Future[np.ndarray]]:
        with self._lock:
            missing = [text for text in dict.fromkeys(texts) if text not in self._cache]
            for text in missing:
                self._cache[text] = Future()
            asked = {text: self._cache[text] for text in missing}
            rows = [self._cache[text] for text in texts]
            for text in texts:
                self._cache.move_to_end(text)
            while len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)
        if asked:
            try:
                self._worker.submit(lambda: self._compute(asked))
            except BaseException as error:
                self._fail(asked, error)
                raise
        return rows

    def _compute(self, asked: dict[str, Future[np.ndarray]]) -> None:
        try:
            self._ready()
            with _turn:
                rows = self._features(list(asked))
            if len(rows) != len(asked):
                raise SLMError(
                    f"'{self.name}' gave {len(rows)} rows of features for {len(asked)} texts; "
                    "mend its _features"
                )
        except BaseException as error:
            self._fail(asked, error)
            return
        for future, row in zip(asked.values(), rows, strict=True):
            future.set_result(row)

    def _fail(self, asked: dict[str, Future[np.ndarray]], error: BaseException) -> None:
        with self._lock:
            for text, future in asked.items():
                # Forgotten, so that the next who asks tries again.
                if self._cache.get(text) is future:
                    del self._cache[text]
        for future in asked.values():
            future.set_exception(error)

    def _ready(self) -> None:
        if not self.loaded:
            self._load()

    def _run(self, work: Callable[[], T]) -> T:
        return self._worker.submit(work).result()


_adapters: weakref.WeakSet[BaseSLMAdapter] = weakref.WeakSet()


def forget_texts() -> None:
    """Forget the texts that the backbones of this process keep with their features."""
    for adapter in list(_adapters):
        adapter.forget_texts()


class LanguageModelAdapter(BaseSLMAdapter):
    """A language model: hidden states of its middle, the last token's and the mean, side by side.

    Args:
        source: what `mc.load` takes, or a loaded model; the default model unless told.
        depth: how far up the hidden states are read, as a share of the layers.
        name: by default the source's.
        cache_size: texts whose features are kept.
    """

    def __init__(
        self,
        source: str | LanguageModel | None = None,
        *,
        depth: float = DEPTH,
        name: str | None = None,
        cache_size: int = 1024,
    ) -> None:
        from mlx_companion.models.registry import DEFAULT_MODEL

        source = source or DEFAULT_MODEL
        super().__init__(name or str(getattr(source, "source", source)), cache_size)
        if not 0 < depth <= 1:
            raise SLMError(f"depth is {depth}; expected a share of the layers, above 0 up to 1")
        self._source, self._depth = source, depth
        self._lm: LanguageModel | None = None
        self._hidden: Callable[[np.ndarray], np.ndarray] | None = None

    @property
    def loaded(self) -> bool:
        """See the base class."""
        return self._lm is not None

    @property
    def memory_bytes(self) -> int:
        """See the base class."""
        from mlx.utils import tree_flatten

        lm = self._lm
        arrays: Any = tree_flatten(lm.model.parameters()) if lm is not None else []
        return sum(array.nbytes for _, array in arrays)

    @property
    def language_model(self) -> LanguageModel:
        """The model, loaded when it was not."""
        self.load()
        assert self._lm is not None
        return self._lm

    @property
    def layer(self) -> int:
        """Hidden states are read after so many layers. Loads the model."""
        return _layer(self.language_model, self._depth)

    @property
    def identity(self) -> str:
        """See the base class."""
        return f"{self.language_model.base_sha256}:{self.layer}:last+mean"

    def _load(self) -> None:
        from mlx_companion.models.load import load

        lm: Any = load(self._source) if isinstance(self._source, str) else self._source
        self._hidden = _hidden_states(lm, _layer(lm, self._depth))
        self._lm = lm

    def _unload(self) -> None:
        self._lm = self._hidden = None

    def _features(self, texts: Sequence[str]) -> np.ndarray:
        assert self._lm is not None
        assert self._hidden is not None
        encode = self._lm.tokenizer.encode
        rows = [cut_in_the_middle(list(encode(text)) or [0], MAX_TOKENS) for text in texts]
        found: dict[int, np.ndarray] = {}
        for batch in _equally_long([len(row) for row in rows]):
            hidden = self._hidden(np.array([rows[i] for i in batch], dtype=np.int32))
            for i, states in zip(batch, hidden, strict=True):
                found[i] = np.concatenate([states[-1], states.mean(axis=0)])
        return np.stack([found[i] for i in range(len(rows))]).astype(np.float32)

    def _generate(self, prompt: Prompt, max_tokens: int) -> str:
        from mlx_companion.models.generation import generate

        assert self._lm is not None
        return generate(self._lm, prompt, max_tokens=max_tokens).text


class EncoderAdapter(BaseSLMAdapter):
    """A sentence encoder: its unit vectors are the features.

    Args:
        source: what `mc.load_encoder` takes, or a loaded encoder; the default one unless told.
        name: by default the source's.
        cache_size: texts whose features are kept.
    """

    def __init__(
        self,
        source: str | SentenceEncoder | None = None,
        *,
        name: str | None = None,
        cache_size: int = 1024,
    ) -> None:
        from mlx_companion.models.registry import DEFAULT_ENCODER

        source = source or DEFAULT_ENCODER
        super().__init__(name or (source if isinstance(source, str) else "encoder"), cache_size)
        self._source = source
        self._encoder: SentenceEncoder | None = None
        self._read: BertRows | None = None

    @property
    def loaded(self) -> bool:
        """See the base class."""
        return self._encoder is not None

    @property
    def memory_bytes(self) -> int:
        """See the base class."""
        from mlx.utils import tree_flatten

        encoder = self._encoder
        arrays: Any = tree_flatten(encoder.model.parameters()) if encoder is not None else []
        return sum(array.nbytes for _, array in arrays)

    @property
    def identity(self) -> str:
        """See the base class."""
        self.load()
        assert self._encoder is not None
        return f"{self._encoder.sha256}:sentence"

    def _load(self) -> None:
        from mlx_companion.models.encoder import load_encoder
        from mlx_companion.slm.bert_rows import bert_rows

        source: Any = self._source
        encoder = load_encoder(source) if isinstance(source, str) else source
        self._read, self._encoder = bert_rows(encoder.model), encoder

    def _unload(self) -> None:
        self._encoder = self._read = None

    def _features(self, texts: Sequence[str]) -> np.ndarray:
        assert self._encoder is not None
        if self._read is None:
            return self._encoder.encode(texts)
        states = self._read([one.ids for one in self._encoder.tokenizer.encode_batch(list(texts))])
        first = self._encoder.pooling == "cls"
        pooled = np.stack([one[0] if first else one.mean(axis=0) for one in states])
        lengths = np.linalg.norm(pooled, axis=1, keepdims=True)
        unit: np.ndarray = pooled / np.maximum(lengths, 1e-12)
        return unit

    def _generate(self, prompt: Prompt, max_tokens: int) -> str:
        raise SLMError(f"'{self.name}' is a sentence encoder and makes no text")


_shared: dict[str, LanguageModelAdapter] = {}
_encoders: dict[str, EncoderAdapter] = {}
_shared_lock = threading.Lock()


def shared_backbone(source: str | None = None) -> LanguageModelAdapter:
    """The one backbone of a name in this process; loaded when it is first used.

    Args:
        source: alias, hub id or path; the default model unless told.
    """
    from mlx_companion.models.registry import DEFAULT_MODEL

    key = source or DEFAULT_MODEL
    with _shared_lock:
        if key not in _shared:
            _shared[key] = LanguageModelAdapter(key)
        return _shared[key]


def shared_encoder(source: str | None = None) -> EncoderAdapter:
    """The one sentence encoder of a name in this process; loaded when it is first used.

    Args:
        source: alias, hub id or folder; the default encoder unless told.
    """
    from mlx_companion.models.registry import DEFAULT_ENCODER

    key = source or DEFAULT_ENCODER
    with _shared_lock:
        if key not in _encoders:
            _encoders[key] = EncoderAdapter(key)
        return _encoders[key]


def cut_text(text: str) -> str:
    """A text as models take it: both ends of a long one, no halves of surrogate pairs."""
    if len(text) > _MAX_CHARS:
        half = _MAX_CHARS // 2
        text = f"{text[:half]} {text[-half:]}"
    return text.encode("utf-8", "replace").decode("utf-8")


def cut_in_the_middle(tokens: list[int], most: int) -> list[int]:
    """The first and last tokens of a long row; a short one as it is."""
    if len(tokens) <= most:
        return tokens
    return tokens[: most // 2] + tokens[len(tokens) - (most - most // 2) :]


def _layer(lm: LanguageModel, depth: float) -> int:
    return max(1, round(len(lm.model.layers) * depth))


def _hidden_states(lm: LanguageModel, layer: int) -> Callable[[np.ndarray], np.ndarray]:
    """Tokens (B, L) to normalized hidden states (B, L, D) after `layer` layers, float32."""
    import mlx.core as mx

    from mlx_companion.models.fast_cpu import fast_cpu
    from mlx_companion.slm.llama_rows import llama_rows

    if (quick := llama_rows(lm, layer)) is not None:
        return quick
    if not hasattr(getattr(lm.model, "model", None), "layers"):
        raise SLMError(f"'{lm.source}' has no stack of layers that can be read; use another model")
    # A copy that has fewer layers and shares their weights: the model itself may be generating.
    below = copy.copy(lm.model.model)
    below.layers = lm.model.model.layers[:layer]

    def hidden(tokens: np.ndarray) -> np.ndarray:
        with fast_cpu(below):
            states = below(mx.array(tokens)).astype(mx.float32)
            mx.eval(states)
        return np.array(states)

    return hidden


def _equally_long(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of rows of the same length, so that nothing is padded."""
    groups: dict[int, list[int]] = {}
    for at, length in enumerate(lengths):
        groups.setdefault(length, []).append(at)
    for length, group in groups.items():
        size = max(1, _BATCH_TOKENS // length)
        for first in range(0, len(group), size):
            yield group[first : first + size]
