"""What an encoder sees in a word where it stands: hidden states at its place, in NumPy.

Whether "fire" is praise or a fire shows in the lower layers of a sentence encoder better than in
the words beside it: compared with its state when it stands alone, a word in its slang sense has
moved further and elsewhere, and in the same direction for words that were never seen in
training::

    reader = find_reader()                       # None where the encoder is not on this disk
    reader.rows([("this song is fire", (13, 17), "fire")])     # (1, columns)

Only the lower layers run, on a window around the word, with the weights left in their file and
mapped into memory, so that there is nothing to load and nothing is held twice. Never downloads.

Source: Devlin et al., "BERT", 2018; the encoder is all-MiniLM-L6-v2 (Apache-2.0).
"""

from __future__ import annotations

import functools
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlx_companion.errors import CompanionError, SLMError
from mlx_companion.runtime.logs import get_logger

LAYERS = (3, 4, 5)
# Characters to each side of a word that are read.
_REACH = 200
_MOST_TOKENS = 160
_MOST_TERMS = 2048
# Tokens of one forward pass.
_BATCH_TOKENS = 768
_KINDS = {"F32": "<f4", "F16": "<f2"}

_log = get_logger(__name__)
Asked = tuple[str, tuple[int, int], str]


class TermReader:
    """Reads words in their sentences. Safe between threads.

    Args:
        folder: of the encoder: `model.safetensors`, `tokenizer.json`, `config.json`.

    Attributes:
        columns: features of a word.
        sha256: content hash of the encoder's weights.

    Raises:
        SLMError: it is no such encoder.
    """

    def __init__(self, folder: str | Path) -> None:
        from tokenizers import Tokenizer

        folder = Path(folder)
        try:
            config = json.loads((folder / "config.json").read_text("utf-8"))
            self._heads = int(config["num_attention_heads"])
            self._epsilon = np.float32(config["layer_norm_eps"])
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            self._weights = _mapped(folder / "model.safetensors")
            self._words = self._weights["embeddings.word_embeddings.weight"]
            self._layers = [self._layer(at) for at in range(LAYERS[-1])]
            places = self._weights["embeddings.position_embeddings.weight"]
            kind = self._weights["embeddings.token_type_embeddings.weight"][0]
            self._places = (places[:_MOST_TOKENS] + kind).astype(np.float32)
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise SLMError(f"no encoder that can be read in {folder} ({error})") from error
        except Exception as error:
            raise SLMError(f"the tokenizer in {folder} cannot be read ({error})") from error
        self.columns = (1 + len(LAYERS)) * self._words.shape[1] + 2 * LAYERS[-1]
        self.sha256 = encoder_sha256(folder)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length=len(self._places))
        self._terms: OrderedDict[str, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def rows(self, asked: Sequence[Asked]) -> np.ndarray:
        """Features of words where they stand.

        Args:
            asked: text, place [start, end) in it, and the word's dictionary form.

        Returns:
            (N, columns) float32: the state in the middle layer, its difference from the word
            alone in each of `LAYERS`, and per layer the likeness to it and the distance.
        """
        windows = [_window(text, span) for text, span, _ in asked]
        here = self._states(windows)
        rows = [_row(here[at], self._alone(term)) for at, (_, _, term) in enumerate(asked)]
        return np.stack(rows) if rows else np.zeros((0, self.columns), dtype=np.float32)

    def _alone(self, term: str) -> np.ndarray:
        """States of a term that stands by itself."""
        with self._lock:
            if term in self._terms:
                self._terms.move_to_end(term)
                return self._terms[term]
        states = self._states([(term, (0, len(term)))])[0]
        with self._lock:
            self._terms[term] = states
            if len(self._terms) > _MOST_TERMS:
                self._terms.popitem(last=False)
        return states

    def _states(self, windows: Sequence[tuple[str, tuple[int, int]]]) -> list[np.ndarray]:
        """States (1 + layers, D) of each place in its text, its tokens on average."""
        texts = list(dict.fromkeys(text for text, _ in windows))
        read = dict(zip(texts, self._tokenizer.encode_batch(texts), strict=True))
        hidden: dict[str, np.ndarray] = {}
        by_length: dict[int, list[str]] = {}
        for text in texts:
            by_length.setdefault(len(read[text].ids), []).append(text)
        for length, those in by_length.items():
            size = max(1, _BATCH_TOKENS // length)
            for first in range(0, len(those), size):
                batch = those[first : first + size]
                states = self._forward(np.array([read[text].ids for text in batch]))
                hidden.update(zip(batch, states, strict=True))
        found = []
        for text, (start, end) in windows:
            offsets = read[text].offsets
            at = [i for i, (a, b) in enumerate(offsets) if a < end and b > max(start, a)]
            found.append(hidden[text][:, at or [0]].mean(axis=1))
        return found

    def _forward(self, ids: np.ndarray) -> np.ndarray:
        """Tokens (B, L) to states (B, 1 + layers, L, D) before and after each layer."""
        x = self._words[ids].astype(np.float32) + self._places[: ids.shape[1]]
        x = self._norm(x, *self._part("embeddings.LayerNorm"))
        states = [x]
        for layer in self._layers:
            x = self._step(x, layer)
            states.append(x)
        return np.stack(states, axis=1)

    def _step(self, x: np.ndarray, layer: dict[str, tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        batch, length, width = x.shape
        shape = (batch, length, self._heads, width // self._heads)
        q, k, v = (
            (x @ layer[name][0].T + layer[name][1]).reshape(shape).transpose(0, 2, 1, 3)
            for name in ("query", "key", "value")
        )
        scores = q @ k.transpose(0, 1, 3, 2) / np.float32(np.sqrt(shape[3]))
        powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = (powers / powers.sum(axis=-1, keepdims=True)) @ v
        joined = mixed.transpose(0, 2, 1, 3).reshape(batch, length, width)
        x = self._norm(x + joined @ layer["mix"][0].T + layer["mix"][1], *layer["mix_norm"])
        inner = _gelu(x @ layer["up"][0].T + layer["up"][1])
        return self._norm(x + inner @ layer["down"][0].T + layer["down"][1], *layer["down_norm"])

    def _norm(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        x = x - x.mean(axis=-1, keepdims=True)
        deviation = np.sqrt((x * x).mean(axis=-1, keepdims=True) + self._epsilon)
        result: np.ndarray = x / deviation * weight + bias
        return result

    def _layer(self, at: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        names = {
            "query": "attention.self.query",
            "key": "attention.self.key",
            "value": "attention.self.value",
            "mix": "attention.output.dense",
            "mix_norm": "attention.output.LayerNorm",
            "up": "intermediate.dense",
            "down": "output.dense",
            "down_norm": "output.LayerNorm",
        }
        return {key: self._part(f"encoder.layer.{at}.{name}") for key, name in names.items()}

    def _part(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        return self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]


@functools.lru_cache(maxsize=4)
def _reader_at(folder: Path) -> TermReader | None:
    try:
        return TermReader(folder)
    except SLMError as error:
        _log.warning("the sense check goes without the encoder: %s", error)
        return None


def find_reader(sha256: str | None = None) -> TermReader | None:
    """The reader of the default encoder; one in a process.

    Args:
        sha256: of the encoder that the head was trained with; of another there is none.

    Returns:
        None when the encoder is not on this disk (it is not fetched for this) or cannot be read.
    """
    from mlx_companion.models import hub, wheel
    from mlx_companion.models.registry import DEFAULT_ENCODER, spec_for

    try:
        spec = spec_for(DEFAULT_ENCODER)
        folder = wheel.cached(spec) or hub.cached(spec)
        if folder is None or (sha256 is not None and encoder_sha256(folder) != sha256):
            return None
    except (CompanionError, OSError) as error:
        _log.warning("the sense check goes without the encoder: %s", error)
        return None
    return _reader_at(folder)


def encoder_sha256(folder: Path) -> str:
    """Content hash of an encoder's weights, hex."""
    from mlx_companion.models.folder import weight_files
    from mlx_companion.models.hashing import content_sha256

    return content_sha256(weight_files(folder))


def _mapped(path: Path) -> dict[str, np.ndarray]:
    """Tensors of a safetensors file, mapped and not read."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(size))
    data = np.memmap(path, dtype=np.uint8, mode="r", offset=8 + size)
    arrays = {}
    for name, told in header.items():
        if name != "__metadata__" and told["dtype"] in _KINDS:
            first, last = told["data_offsets"]
            array = data[first:last].view(np.ndarray).view(_KINDS[told["dtype"]])
            arrays[name.removeprefix("bert.")] = array.reshape(told["shape"])
    return arrays


def _window(text: str, span: tuple[int, int]) -> tuple[str, tuple[int, int]]:
    """What is read of a text, and the place in it."""
    start, end = span
    if len(text) <= 2 * _REACH:
        return text, span
    first = max(start - _REACH, 0)
    return text[first : end + _REACH], (start - first, end - first)


def _row(here: np.ndarray, alone: np.ndarray) -> np.ndarray:
    change = here - alone
    lengths = np.linalg.norm(here, axis=1) * np.linalg.norm(alone, axis=1)
    likeness = (here * alone).sum(axis=1) / np.maximum(lengths, 1e-6)
    middle = LAYERS[len(LAYERS) // 2]
    parts = [here[middle], *(change[at] for at in LAYERS), likeness[1:]]
    return np.concatenate([*parts, np.linalg.norm(change, axis=1)[1:]]).astype(np.float32)


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + _erf()(x * np.float32(np.sqrt(0.5))))


@functools.cache
def _erf() -> Callable[[np.ndarray], Any]:
    # Imported when it is needed: it takes longer than all else here.
    from scipy.special import erf

    function: Callable[[np.ndarray], Any] = erf
    return function
