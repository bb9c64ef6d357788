"""Texts as bags of hashed character and word n-grams: the features of the small linear heads.

Character n-grams see spelling, endings, punctuation and case; word n-grams see phrases. Both are
hashed into a fixed number of columns, so there is no vocabulary to ship, and the hash is written
out here, so that the columns mean the same in every process and on every machine::

    features = NGrams(NGramConfig(char=(2, 5), words=(1, 2)))
    rows = features.transform(["who won the game last night"])    # scipy CSR, (1, columns)

Each kind forms a block of length 1 (L2); a text without any gives a row of zeros. One short text
takes a fraction of a millisecond.

Source: Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", 2009.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mlx_companion.errors import ConfigError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?|[^\w\s]")
# Odd constants of the SplitMix64 finalizer; arithmetic is modulo 2^64.
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_STEP = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class NGramConfig:
    """Which n-grams, and into how many columns.

    Args:
        char: shortest and longest character n-gram; (0, 0) for none.
        words: shortest and longest word n-gram; (0, 0) for none.
        char_columns: columns of the character n-grams.
        word_columns: columns of the word n-grams.
        casefold: take capitals and small letters as the same.
        max_chars: texts are cut to so many characters, half from each end.

    Raises:
        ConfigError: an empty range, or no columns for a kind that is wanted.
    """

    char: tuple[int, int] = (2, 5)
    words: tuple[int, int] = (1, 2)
    char_columns: int = 1 << 15
    word_columns: int = 1 << 14
    casefold: bool = True
    max_chars: int = 2000

    def __post_init__(self) -> None:
        for name, columns in (("char", self.char_columns), ("words", self.word_columns)):
            low, high = getattr(self, name)
            # JSON gives lists.
            object.__setattr__(self, name, (low, high))
            if (low, high) != (0, 0) and not 1 <= low <= high:
                raise ConfigError(f"{name} is ({low}, {high}); expected 1 <= first <= second")
            if high and columns < 1:
                raise ConfigError(f"{name} n-grams have {columns} columns; expected 1 or more")
        if self.max_chars < 2:
            raise ConfigError(f"max_chars is {self.max_chars}; expected 2 or more")


class NGrams:
    """Makes sparse rows of texts; holds no state besides its configuration.

    Args:
        config: see `NGramConfig`.
    """

    def __init__(self, config: NGramConfig | None = None) -> None:
        self.config = config or NGramConfig()

    @property
    def columns(self) -> int:
        """Width of a row: character columns first, then word columns."""
        config = self.config
        return config.char_columns * bool(config.char[1]) + config.word_columns * bool(
            config.words[1]
        )

    def transform(self, texts: Sequence[str]) -> csr_matrix:
        """Rows of texts.

        Args:
            texts: any number.

        Returns:
            CSR matrix (N, columns), float32, column indices sorted within a row.
        """
        from scipy.sparse import csr_matrix

        if isinstance(texts, str):
            raise TypeError("transform takes a list of texts, and was given one text")
        rows = [self.row(text) for text in texts]
        ends = np.cumsum([0, *(len(columns) for columns, _ in rows)])
        indices = np.concatenate([np.zeros(0, np.int32), *(columns for columns, _ in rows)])
        data = np.concatenate([np.zeros(0, np.float32), *(values for _, values in rows)])
        return csr_matrix((data, indices, ends), shape=(len(rows), self.columns))

    def row(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Columns (K,) int32, ascending, and values (K,) float32 of one text."""
        blocks = list(self._blocks(self._prepared(text)))
        if not blocks:
            return np.zeros(0, np.int32), np.zeros(0, np.float32)
        columns, values = zip(*blocks, strict=True)
        # Each block has length 1: together the row has it too.
        values_of_row = np.concatenate(values) * np.float32(1 / np.sqrt(len(blocks)))
        return np.concatenate(columns).astype(np.int32), values_of_row.astype(np.float32)

    def _prepared(self, text: str) -> str:
        limit = self.config.max_chars
        if len(text) > limit:
            text = f"{text[: limit // 2]} {text[-(limit // 2) :]}"
        text = " ".join(text.split())
        return text.casefold() if self.config.casefold else text

    def _blocks(self, text: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        config, first = self.config, 0
        if config.char[1]:
            if text:
                hashes = _hash_characters(f" {text} ", config.char)
                if len(hashes):
                    yield _counted(hashes, config.char_columns, first)
            first = config.char_columns
        if config.words[1]:
            hashes = _hash_words(_WORD.findall(text), config.words)
            if len(hashes):
                yield _counted(hashes, config.word_columns, first)


def _hash_characters(text: str, lengths: tuple[int, int]) -> np.ndarray:
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    return _hash_runs(codes.astype(np.uint64) + np.uint64(1), lengths)


def _hash_words(words: Sequence[str], lengths: tuple[int, int]) -> np.ndarray:
    codes = [zlib.crc32(word.encode("utf-8", "surrogatepass")) + 1 for word in words]
    return _hash_runs(np.array(codes, dtype=np.uint64), lengths)


def _hash_runs(codes: np.ndarray, lengths: tuple[int, int]) -> np.ndarray:
    """Hashes of all runs of `codes` whose length lies in a range."""
    found = []
    running = np.zeros(len(codes), dtype=np.uint64)
    for length in range(1, min(lengths[1], len(codes)) + 1):
        running = _mixed(running[: len(codes) - length + 1] + codes[length - 1 :] * _STEP)
        if length >= lengths[0]:
            found.append(running)
    return np.concatenate(found) if found else np.zeros(0, dtype=np.uint64)


def _mixed(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer: every bit of the result depends on every bit given."""
    values = (values ^ (values >> np.uint64(30))) * _MIX[0]
    values = (values ^ (values >> np.uint64(27))) * _MIX[1]
    return values ^ (values >> np.uint64(31))


def _counted(hashes: np.ndarray, columns: int, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns in order and 1 + log(count) of each, scaled to length 1."""
    found, counts = np.unique(hashes % np.uint64(columns), return_counts=True)
    values = 1 + np.log(counts)
    return found.astype(np.int64) + first, values / np.sqrt(values @ values)
