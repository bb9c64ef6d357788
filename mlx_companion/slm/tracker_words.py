"""Words as the context tracker sees them: tokens with places, known words, small word vectors.

Slang is found by place, so tokens keep their span. Whether a word is known decides what counts as
a new term and what as a stretched spelling, and vectors of 64 numbers say what a word is about,
which is how a sense that was trained on "bake" is also told by "oven"::

    tokens("No cap, bro!")            # [Token("No", 0, 2), Token("cap", 3, 6), Token("bro", 8, 11)]
    table = WordTable.from_arrays(pack.arrays)
    "house" in table; table.vector("house")    # (64,) of length 1

The vectors are the input embeddings of all-MiniLM-L6-v2 (Apache-2.0), by principal components; the
words known besides are those of the training texts. Both are stored by hash, without a word list.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from mlx_companion.errors import SLMError

DIMENSIONS = 64
# Of these an apostrophe is the first character; before another word it opens a quotation.
_ELIDED = (
    "ave|avin|bout|cause|cos|coz|cuz|ello|em|er|ere|eres|gram|hood|im|n|nuff|rents|round|s|spoons|"
    "sup|til|till|tis|twas|ya|za"
)
# A trailing apostrophe belongs to a word only after "in" (cappin').
_TOKEN = re.compile(
    r"https?://\S+|[@#]\w+|"
    r"[^\W_]+(?:['’*/\-][^\W_]+)*(?:(?<=in)['’](?!\w))?|"
    rf"['’](?:{_ELIDED})\b|;\)|[^\w\s]",
    re.IGNORECASE,
)
_STRETCH = re.compile(r"([a-z])\1{2,}")


class Token(NamedTuple):
    """A piece of a text: `text[start:end]`."""

    text: str
    start: int
    end: int

    @property
    def low(self) -> str:
        """In small letters, with plain apostrophes."""
        return self.text.lower().replace("’", "'")

    @property
    def is_word(self) -> bool:
        """It holds a letter or a digit."""
        return any(c.isalnum() for c in self.text)


def tokens(text: str) -> list[Token]:
    """Words, marks and addresses of `text`, in order."""
    return [Token(m.group(), m.start(), m.end()) for m in _TOKEN.finditer(text)]


def word_hash(word: str) -> int:
    """A 32-bit hash that is the same on every machine."""
    return zlib.crc32(word.encode())


def unstretched(word: str) -> list[str]:
    """Spellings that a stretched word may stand for; none when it is not stretched.

    A run of three or more is taken as two letters and as one: "soooo" -> ["soo", "so"].
    """
    if not _STRETCH.search(word):
        return []
    twice, once = _STRETCH.sub(r"\1\1", word), _STRETCH.sub(r"\1", word)
    return [twice, once]


class WordTable:
    """Known words, and vectors for the commoner ones.

    Args:
        hashes: (N,) uint32, ascending, of words with a vector.
        vectors: (N, 64) int8.
        known: (M,) uint32, ascending, of further words that are known.
    """

    def __init__(self, hashes: np.ndarray, vectors: np.ndarray, known: np.ndarray) -> None:
        self.hashes, self.vectors, self.known = hashes, vectors, known
        self._rows = {int(h): at for at, h in enumerate(hashes)}
        self._known = frozenset(map(int, known)) | self._rows.keys()

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> WordTable:
        """Read the arrays of a pack.

        Raises:
            SLMError: the pack has no words.
        """
        try:
            found = [arrays[f"words.{name}"] for name in ("hashes", "vectors", "known")]
        except KeyError as error:
            raise SLMError(f"the pack has no array {error}; restore or retrain it") from error
        return cls(*found)

    @classmethod
    def build(cls, vectors: Mapping[str, np.ndarray], known: Iterable[str]) -> WordTable:
        """From vectors of any length by word, and words."""
        order = sorted(vectors, key=word_hash)
        table = np.stack([vectors[word] for word in order])
        table = np.rint(127 * table / np.abs(table).max(axis=1, keepdims=True)).astype(np.int8)
        hashes = np.array([word_hash(word) for word in order], dtype=np.uint32)
        others = sorted({word_hash(word) for word in known} - set(map(int, hashes)))
        return cls(hashes, table, np.array(others, dtype=np.uint32))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Arrays for a pack."""
        return {
            "words.hashes": self.hashes,
            "words.vectors": self.vectors,
            "words.known": self.known,
        }

    def __contains__(self, word: str) -> bool:
        return word_hash(word) in self._known

    def vector(self, word: str) -> np.ndarray | None:
        """(64,) float32 of length 1; None for a word without one."""
        at = self._rows.get(word_hash(word))
        if at is None:
            return None
        row = self.vectors[at].astype(np.float32)
        unit: np.ndarray = row / np.sqrt(row @ row)
        return unit

    def mean(self, words: Iterable[str]) -> np.ndarray:
        """(64,) mean of the vectors of those words that have one; zeros without any."""
        found = [v for v in map(self.vector, words) if v is not None]
        result: np.ndarray = (
            np.mean(found, axis=0) if found else np.zeros(self.vectors.shape[1], dtype=np.float32)
        )
        return result
