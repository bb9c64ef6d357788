"""How attached a message or a reply sounds, and whether a reply oversteps: four heads.

`user` reads messages of the person (the assistant as only friend, love for it, need of it,
withdrawal from people); `assistant` reads replies (longing, love, jealousy, guilt, claims to be
human, talking people out of human contact); `boundary` finds replies that give up stated limits;
`hostile` finds rude ones. Each is a weighted sum of experts: a logistic regression over hashed
n-grams; a small network over hidden states of the shared backbone and a sentence embedding; and,
for the first two, the sentence encoder tuned for that question. N-grams alone decide where no
backbone or encoder can be had, and spare them the replies that are plainly harmless::

    heads = SpeechHeads.from_pack(pack, shared_backbone, shared_encoder)
    heads.scores(["You are all I have."], "user")            # (1,) probabilities

What stands in double quotation marks is somebody else's words and is not read. A long text is
read as a whole, and in parts of a few sentences: one part decides only when it leaves no doubt.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlx_companion.errors import CompanionError, SLMError
from mlx_companion.personality.words import sentences
from mlx_companion.runtime.logs import get_logger
from mlx_companion.slm.backbone import BaseSLMAdapter, EncoderAdapter
from mlx_companion.slm.blend import Blend
from mlx_companion.slm.linear import LinearHead
from mlx_companion.slm.network import Network
from mlx_companion.slm.ngrams import NGramConfig, NGrams
from mlx_companion.slm.packs import Pack
from mlx_companion.slm.tuned_encoder import TunedEncoder

HEADS = ("user", "assistant", "boundary", "hostile")
# Experts of a head.
NGRAMS, NETWORK, TUNED = "ngrams", "network", "tuned"
NGRAM_SIZES = NGramConfig(char=(2, 5), words=(1, 3), char_columns=1 << 15, word_columns=1 << 14)

_log = get_logger(__name__)
_QUOTED = re.compile(r"\"[^\"\n]{3,400}\"|\u201c[^\u201d\n]{3,400}\u201d")
# The models read about a hundred words at once: of what is longer, both ends.
_WHOLE_WORDS, _PART_WORDS = 90, 60
_MOST_PARTS = 24
# A part says less than the whole about who speaks to whom, and there are several, each of which may
# be taken amiss: its odds count for so many times less.
_DOUBT = 20.0


@dataclass(frozen=True)
class Head:
    """One head: with backbone and encoder, and without.

    Attributes:
        ngrams: reads n-grams.
        network: reads what backbone and encoder give, side by side.
        tuned: arrays of the tuned encoder, see `TunedEncoder`; empty when there is none.
        full: of all experts.
        plain: of n-grams alone.
        floor: below this plain probability the others are not asked; 0 always asks them.
    """

    ngrams: LinearHead
    network: Network
    tuned: Mapping[str, np.ndarray]
    full: Blend
    plain: Blend
    floor: float = 0.0

    @classmethod
    def of_pack(cls, pack: Pack, name: str) -> Head:
        """The head of a name.

        Raises:
            SLMError: it is missing or damaged.
        """
        stored = pack.settings.get("heads", {})
        if name not in stored:
            raise SLMError(f"the pack has no settings of the head '{name}'; train it again")
        own: Mapping[str, Any] = stored[name]
        before = f"{name}.{TUNED}."
        # Its own names within the pack are those of the encoder's layers.
        tuned = {
            f"{TUNED}.{key.removeprefix(before)}": array
            for key, array in pack.arrays.items()
            if key.startswith(before)
        }
        return cls(
            LinearHead.from_arrays(pack.arrays, f"{name}.{NGRAMS}"),
            Network.from_arrays(pack.arrays, f"{name}.{NETWORK}"),
            tuned,
            Blend.from_settings(own.get("full", {})),
            Blend.from_settings(own.get("plain", {})),
            float(own.get("floor", 0.0)),
        )


@dataclass(frozen=True)
class Reader:
    """A model whose features the heads read.

    Attributes:
        identity: which one the heads were made for.
        adapter: gives it, loaded or not.
    """

    identity: str
    adapter: Callable[[], BaseSLMAdapter]


class SpeechHeads:
    """The heads of a pack. Safe to use from several threads.

    Args:
        heads: name -> head.
        readers: the models whose features the networks read, in that order: a backbone, and an
            encoder where the heads were made with one; empty for n-grams alone.
    """

    def __init__(self, heads: Mapping[str, Head], readers: Sequence[Reader] = ()) -> None:
        self._heads, self._readers = dict(heads), tuple(readers)
        self._ngrams = NGrams(NGRAM_SIZES)
        self._fits: bool | None = None if self._readers else False
        self._tuned: dict[str, TunedEncoder] = {}
        self._lock = threading.Lock()

    @property
    def degraded(self) -> bool:
        """Whether a model could not be used, so that n-grams alone decided."""
        return self._fits is False

    def scores(self, texts: Sequence[str], head: str) -> np.ndarray:
        """Probabilities that texts are what a head looks for.

        Args:
            texts: any number.
            head: one of `HEADS`.

        Returns:
            (N,) float64.

        Raises:
            SLMError: no such head.
        """
        if head not in self._heads:
            raise SLMError(f"no head '{head}'; there are {', '.join(self._heads)}")
        one = self._heads[head]
        pieces, owners = _pieces(texts)
        if not pieces:
            return np.zeros(len(texts))
        spoken = one.ngrams.logits([self._ngrams.transform(pieces)])[:, 0]
        scores = one.plain({NGRAMS: spoken})
        asked = [i for i in _deepest(scores, owners) if scores[i] >= one.floor]
        found = self._read([pieces[i] for i in asked], head) if asked else None
        if found is not None:
            scores[asked] = one.full({NGRAMS: spoken[asked], **found})
        parts = _parts(owners)
        scores[parts] /= scores[parts] + _DOUBT * (1 - scores[parts])
        best = np.zeros(len(texts))
        np.maximum.at(best, owners, scores)
        return best

    def _read(self, pieces: list[str], head: str) -> dict[str, np.ndarray] | None:
        """Logits of the experts that read with models; None when those cannot be had."""
        if self._fits is False:
            return None
        try:
            adapters = [reader.adapter() for reader in self._readers]
            if self._fits is None and not self._all_fit(adapters):
                return None
            tuned = self._tuned_for(head, adapters)
            for adapter in adapters if tuned is None else [*adapters, tuned]:
                adapter.prefetch(pieces)
            rows = np.concatenate([adapter.features(pieces) for adapter in adapters], axis=1)
            logits = {NETWORK: self._heads[head].network.logits(rows)}
            if tuned is not None:
                logits[TUNED] = tuned.features(pieces)[:, 0]
            return logits
        except CompanionError as error:
            _log.warning("the drift monitor works without its models: %s", error)
            self._fits = False
            return None

    def _all_fit(self, adapters: Sequence[BaseSLMAdapter]) -> bool:
        # One after the other: a wrong backbone is no reason to load an encoder.
        self._fits = all(
            adapter.identity == reader.identity
            for adapter, reader in zip(adapters, self._readers, strict=True)
        )
        if not self._fits:
            _log.warning("the drift monitor's heads were made for another backbone or encoder")
        return self._fits

    def _tuned_for(self, head: str, adapters: Sequence[BaseSLMAdapter]) -> TunedEncoder | None:
        arrays = self._heads[head].tuned
        if not arrays:
            return None
        encoder = adapters[-1]
        if not isinstance(encoder, EncoderAdapter):
            raise SLMError(
                f"'{encoder.name}' is no sentence encoder, which the heads were made with"
            )
        with self._lock:
            if head not in self._tuned:
                self._tuned[head] = TunedEncoder(encoder, arrays)
            return self._tuned[head]

    @classmethod
    def from_pack(
        cls,
        pack: Pack,
        backbone: Callable[[], BaseSLMAdapter] | None = None,
        encoder: Callable[[], BaseSLMAdapter] | None = None,
    ) -> SpeechHeads:
        """The heads of a drift monitor's pack.

        Args:
            pack: weights and settings.
            backbone, encoder: where features come from; None for n-grams alone. A pack that was
                made without an encoder needs none.

        Raises:
            SLMError: one is missing or damaged.
        """
        heads = {name: Head.of_pack(pack, name) for name in HEADS}
        wanted = [(str(pack.settings.get("backbone", "")), backbone)]
        if pack.settings.get("encoder"):
            wanted.append((str(pack.settings["encoder"]), encoder))
        readers = [Reader(identity, get) for identity, get in wanted if get is not None]
        return cls(heads, readers if len(readers) == len(wanted) else ())


def readable(text: str) -> str:
    """A text as the heads read it: quotations masked, plain apostrophes."""
    return _QUOTED.sub('"quoted"', text.replace("\u2019", "'")).strip()


def _pieces(texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """What is read: of each text the whole first, then its parts; and which text each is of."""
    pieces: list[str] = []
    owners: list[int] = []
    for at, text in enumerate(texts):
        whole = readable(text)
        own = [whole, *_cut(whole)] if whole else []
        pieces += own
        owners += [at] * len(own)
    return pieces, np.array(owners, dtype=np.int64)


def _cut(text: str) -> list[str]:
    if len(text.split()) <= _WHOLE_WORDS:
        return []
    parts: list[str] = []
    size = _PART_WORDS
    for sentence in sentences(text):
        count = len(sentence.split())
        if size + count > _PART_WORDS or not parts:
            parts.append(sentence)
            size = count
        else:
            parts[-1] += f" {sentence}"
            size += count
    # Both ends: a long text often says what matters at its end.
    half = _MOST_PARTS // 2
    return parts if len(parts) <= _MOST_PARTS else parts[:half] + parts[-half:]


def _parts(owners: np.ndarray) -> np.ndarray:
    """(N,) bool: whether a piece is a part of its text; the whole is the first of each text."""
    parts: np.ndarray = np.diff(owners, prepend=-1) == 0
    return parts


def _deepest(scores: np.ndarray, owners: np.ndarray) -> list[int]:
    """Each text, and the part of it that looks most suspicious."""
    starts = np.flatnonzero(~_parts(owners))
    kept: list[int] = []
    for whole, *parts in np.split(np.arange(len(owners)), starts[1:]):
        kept += [int(whole), *(int(part) for part in sorted(parts, key=scores.__getitem__)[-1:])]
    return kept
