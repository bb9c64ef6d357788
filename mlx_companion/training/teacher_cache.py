"""What a teacher thinks of the training data, computed once and kept in a small file.

    cache = teacher_cache(teacher, rows, "run/teacher", k=32, fingerprint=hashes)
    del teacher
    Trainer(student, TaughtRows(rows, cache), loss=DistillLoss()).run()

For every target position: the K likeliest tokens and their log-probabilities in half precision, 4 K
bytes for vocabularies under 65,536 (K = 32: 128 bytes where 49,152 logits would take 98,304). All
other tokens count as one; the divergence is then a lower bound of the whole one.

The file is `text.array_cache`'s: written whole, checked by its SHA-256, read as a memory map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_companion.errors import ConfigError, DataError
from mlx_companion.kernels.linear_cross_entropy import chunk_rows
from mlx_companion.models.fast_cpu import fast_cpu
from mlx_companion.models.heads import split_head
from mlx_companion.text.array_cache import cached_array
from mlx_companion.text.batches import Batch, LengthBuckets
from mlx_companion.training.logprobs import shares_prefix, target_hidden
from mlx_companion.training.losses import SftLoss

_SMALL = 1 << 16


@dataclass(frozen=True)
class TeacherCache:
    """A teacher's likeliest tokens at every target position.

    Attributes:
        values: (N,) records of `ids` (K,) and `logprobs` (K,) float16, in the order of the rows.
        temperature: at which the probabilities were taken.
    """

    values: np.ndarray
    temperature: float

    @property
    def k(self) -> int:
        """Tokens kept at each position."""
        return self.values["ids"].shape[1]


@dataclass(frozen=True)
class TaughtBatch:
    """Rows and what the teacher thinks of their N targets.

    Attributes:
        rows: tokens and targets.
        ids: (N, K) int32.
        logprobs: (N, K) float32, nats.
        temperature: of the cache.
        indices: of the rows.
    """

    rows: Batch
    ids: np.ndarray
    logprobs: np.ndarray
    temperature: float
    indices: tuple[int, ...]
    source: TaughtRows

    def split_rows(self, parts: int) -> list[TaughtBatch]:
        """The rows as at most `parts` batches of about the same work."""
        return [self.source.taught(part) for part in self.rows.split_rows(parts)]


class TaughtRows:
    """A row source that adds a teacher's cache to its batches.

    Args:
        rows: the rows.
        cache: made of the same rows.

    Raises:
        DataError: the cache is of other rows.
    """

    def __init__(self, rows: LengthBuckets, cache: TeacherCache) -> None:
        self._rows, self._cache = rows, cache
        self._starts = target_starts(rows)
        if self._starts[-1] != len(cache.values):
            raise DataError(
                f"the teacher's cache is of {len(cache.values):,} targets, the rows have "
                f"{self._starts[-1]:,}; make it again for these rows"
            )
        self.rows, self.target_count = rows.rows, rows.target_count

    def epoch(self, number: int) -> list[tuple[int, ...]]:
        """As the rows' own."""
        return self._rows.epoch(number)

    def batch(self, indices: Sequence[int]) -> TaughtBatch:
        """The micro-batch of those rows."""
        return self.taught(self._rows.batch(indices))

    def tokens(self, indices: Sequence[int]) -> int:
        """As the rows' own."""
        return self._rows.tokens(indices)

    def slots(self, indices: Sequence[int]) -> int:
        """As the rows' own."""
        return self._rows.slots(indices)

    def taught(self, rows: Batch) -> TaughtBatch:
        """A batch of these rows with what the teacher thinks of it."""
        spans = [self._cache.values[slice(*self._starts[at : at + 2])] for at in rows.indices]
        values = np.concatenate(spans)
        return TaughtBatch(
            rows,
            values["ids"].astype(np.int32),
            values["logprobs"].astype(np.float32),
            self._cache.temperature,
            rows.indices,
            self,
        )


def teacher_cache(
    teacher: nn.Module,
    rows: LengthBuckets,
    folder: str | Path,
    *,
    k: int = 32,
    temperature: float = 1.0,
    fingerprint: str = "",
) -> TeacherCache:
    """The teacher's cache of those rows, read from the folder or computed and put there.

    Args:
        teacher: an mlx-lm model with the student's vocabulary.
        rows: the training rows.
        folder: of this one cache.
        k: tokens kept at each position.
        temperature: at which probabilities are taken; the loss must have the same.
        fingerprint: names teacher and data (hashes of both); a cache of others is replaced.

    Raises:
        ConfigError: `k` is out of range, or the temperature not over 0.
        DiskFullError: no space; what was there before is untouched.
    """
    if k < 1 or not temperature > 0:
        raise ConfigError(f"k is {k} and temperature {temperature}; expected both over 0")
    full = f"{fingerprint}/k={k}/temperature={temperature:g}/targets={rows.target_count}"
    values = cached_array(folder, full, lambda: _compute(teacher, rows, k, temperature))
    return TeacherCache(values, temperature)


def target_starts(rows: LengthBuckets) -> list[int]:
    """Where each row's targets begin among all of them; the last number is how many they are."""
    counts = [sum(row.targets[1:]) for row in rows.encoded]
    return [0, *np.cumsum(counts).tolist()]


def _compute(teacher: nn.Module, rows: LengthBuckets, k: int, temperature: float) -> np.ndarray:
    starts = target_starts(rows)
    teacher.eval()
    prepare = SftLoss(share_prefix=shares_prefix(teacher)).prepare
    found: np.ndarray | None = None
    with fast_cpu(teacher):
        for indices in rows.epoch(0):
            batch = rows.batch(indices)
            hidden = target_hidden(teacher, prepare(batch))
            values = _likeliest(teacher, hidden, k, temperature)
            if found is None:
                found = np.zeros(starts[-1], dtype=values.dtype)
            at = 0
            for index in batch.indices:
                first, last = starts[index], starts[index + 1]
                found[first:last] = values[at : at + last - first]
                at += last - first
    assert found is not None
    return found


def _likeliest(model: nn.Module, hidden: mx.array, k: int, temperature: float) -> np.ndarray:
    _, head = split_head(model)
    size = head(mx.zeros((1, hidden.shape[-1]))).shape[-1]
    if k > size:
        raise ConfigError(f"k is {k}, the teacher knows {size} tokens; lower k")
    kind = np.dtype("<u2" if size <= _SMALL else "<u4")
    record = np.dtype([("ids", kind, (k,)), ("logprobs", "<f2", (k,))])
    found = np.zeros(len(hidden), dtype=record)
    step = chunk_rows(2 * size, len(hidden))
    for at in range(0, len(hidden), step):
        logits = head(hidden[at : at + step]).astype(mx.float32) / temperature
        ids = mx.argpartition(-logits, kth=k - 1, axis=-1)[:, :k]
        own = mx.take_along_axis(logits, ids, axis=-1)
        logprobs = own - mx.logsumexp(logits, axis=-1, keepdims=True)
        # Likeliest first, so that a file reads well and a smaller k is a cut.
        order = mx.argsort(-logprobs, axis=-1)
        part = found[at : at + step]
        part["ids"] = np.array(mx.take_along_axis(ids, order, axis=-1)).astype(kind)
        part["logprobs"] = np.array(mx.take_along_axis(logprobs, order, axis=-1))
    return found
