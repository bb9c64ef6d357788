"""Encoded samples, in memory or on the disk, and how some of them are held out.

Both kinds give the same rows in the same order, and the same counts; what a run computes does not
depend on where its data lies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mlx_companion.errors import ConfigError, DataError
from mlx_companion.runtime.seeds import derive_seed
from mlx_companion.text.encode import Encoded, encode_samples
from mlx_companion.text.fingerprints import KEY_BYTES, content_key
from mlx_companion.text.readers import data_files
from mlx_companion.text.records import Sample, read_samples
from mlx_companion.text.row_sizes import RowSizes, row_sizes
from mlx_companion.text.streaming import LEFT_OUT, SPLIT, TRUNCATED, TokenStore, store_samples

Data = str | Path | Sequence[Sample]
# A token takes about 40 bytes in memory and 4 to 5 in a file: lists would take about 600 MB.
STREAM_BYTES = 64_000_000
_REASONS_SHOWN = 3
_Reason = tuple[str, str]


@dataclass(frozen=True)
class EncodedSet:
    """Rows made of samples, and what became of these.

    Attributes:
        keys: (S,) of the samples, see `content_key`.
        rows: N of them.
        truncated, split, dropped: how many samples.
        reasons: the first few reasons why some were dropped.
    """

    keys: np.ndarray
    rows: Sequence[Encoded]
    truncated: int
    split: int
    dropped: int
    reasons: tuple[str, ...]

    @property
    def target_count(self) -> int:
        """Targets of all rows."""
        return int(row_sizes(self.rows).targets.sum()) if len(self.rows) else 0

    def sizes(self, kind: str) -> RowSizes:
        """Of the rows.

        Raises:
            DataError: there are none; says of which kind and why.
        """
        if not len(self.rows):
            reasons = "; ".join(self.reasons) or "none was given"
            raise DataError(f"no {kind} row is left: {reasons}")
        return row_sizes(self.rows)


class SampleSet(Protocol):
    """Samples, not yet divided."""

    @property
    def keys(self) -> np.ndarray:
        """(S,), see `content_key`."""
        ...

    def encoded(self, of: np.ndarray | None = None) -> EncodedSet:
        """Those of a mask (S,) bool, or all, encoded."""
        ...


class InMemory:
    """Samples in memory.

    Args:
        samples: any number.
        tokenizer, max_tokens: as of `encode_samples`.
    """

    def __init__(self, samples: Sequence[Sample], tokenizer: Any, max_tokens: int) -> None:
        self._samples, self._tokenizer, self._max_tokens = samples, tokenizer, max_tokens
        self.keys = keys_of(samples)

    def encoded(self, of: np.ndarray | None = None) -> EncodedSet:
        """See `SampleSet`."""
        wanted = range(len(self._samples)) if of is None else np.nonzero(of)[0].tolist()
        kept = [self._samples[index] for index in wanted]
        rows, report = encode_samples(kept, self._tokenizer, self._max_tokens)
        return EncodedSet(
            self.keys if of is None else self.keys[of],
            rows,
            report.truncated,
            report.split,
            len(report.dropped),
            _reasons((drop.source, drop.reason) for drop in report.dropped),
        )


class OnDisk:
    """Samples encoded to the disk."""

    def __init__(self, store: TokenStore) -> None:
        self._store = store
        self.keys = store.samples["key"]

    def encoded(self, of: np.ndarray | None = None) -> EncodedSet:
        """See `SampleSet`."""
        states = self._store.samples["state"]
        states = states if of is None else states[of]
        counts = np.bincount(states, minlength=LEFT_OUT + 1)
        return EncodedSet(
            self.keys if of is None else self.keys[of],
            self._store.rows(of),
            int(counts[TRUNCATED]),
            int(counts[SPLIT]),
            int(counts[LEFT_OUT]),
            _reasons(self._store.dropped(of)),
        )


def sample_set(data: Data, tokenizer: Any, max_tokens: int, stream: bool | None) -> SampleSet:
    """Samples in memory, or streamed from the disk where that is wanted or needed.

    Args:
        data: a file, a folder or samples.
        tokenizer, max_tokens: as of `encode_samples`.
        stream: None for files of `STREAM_BYTES` and more.

    Raises:
        DataError: a file is malformed.
    """
    if not isinstance(data, str | Path):
        return InMemory(data, tokenizer, max_tokens)
    if stream is None:
        stream = sum(file.stat().st_size for file in data_files(Path(data))) >= STREAM_BYTES
    if stream:
        return OnDisk(store_samples(data, tokenizer, max_tokens))
    return InMemory(read_samples(data), tokenizer, max_tokens)


def check_stream(data: Data, stream: bool | None) -> None:
    """Refuse to stream what is in memory. Raises ConfigError."""
    if stream and not isinstance(data, str | Path):
        raise ConfigError(
            "stream is true and the data is a list of samples; give a file or a folder, or leave "
            "stream out"
        )


def keys_of(samples: Sequence[Sample]) -> np.ndarray:
    """(S,) `content_key` of each."""
    keys = b"".join(map(content_key, samples))
    return np.frombuffer(keys, dtype=f"V{KEY_BYTES}")


def held_out(keys: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Which samples to hold out: a share of the different ones, equal samples all on one side.

    Args:
        keys: (S,) of the samples.
        share: between 0 and 1; at least one is taken and one left.
        seed: decides which.

    Returns:
        (S,) bool.

    Raises:
        DataError: the share is out of range, or fewer than two different samples were given.
    """
    if not 0 < share < 1:
        raise DataError(f"the held-out share is {share}; expected more than 0 and less than 1")
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    if len(first) < 2:
        raise DataError(
            f"{len(first)} different samples cannot be split into training and held-out ones; "
            "give more samples, or no held-out share"
        )
    # In the order in which they first appear, whatever their hashes are.
    order = np.random.default_rng(derive_seed(seed, "hold-out")).permutation(len(first))
    count = min(len(first) - 1, math.ceil(share * len(first)))
    chosen = np.zeros(len(first), dtype=bool)
    chosen[np.argsort(first)[order[:count]]] = True
    return chosen[which]


def _reasons(dropped: Iterable[_Reason]) -> tuple[str, ...]:
    return tuple(f"{s}: {why}" if s else why for s, why in islice(dropped, _REASONS_SHOWN))
