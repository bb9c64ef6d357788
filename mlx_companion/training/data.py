"""From files or samples to batches, held-out rows and a report of what became of the data.

Data is read into memory, or streamed from the disk where it is large; batches are rows of like
length, or packed rows. `docs/data.md` says which, when.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import mlx.nn as nn
import numpy as np

from mlx_companion.errors import ConfigError
from mlx_companion.models.packed import why_not_packed
from mlx_companion.runtime.logs import get_logger
from mlx_companion.text import Encoded, LengthBuckets, Sample
from mlx_companion.text.packed_samples import PackedSamples
from mlx_companion.text.streaming import StoredRows
from mlx_companion.training.config import TrainConfig
from mlx_companion.training.data_sets import (
    Data,
    EncodedSet,
    check_stream,
    held_out,
    keys_of,
    sample_set,
)
from mlx_companion.training.losses import Loss, SftLoss

__all__ = [
    "Data",
    "DataReport",
    "Rows",
    "TrainingData",
    "check_packing",
    "hold_out",
    "prepare_data",
]

Rows = LengthBuckets | PackedSamples
_log = get_logger(__name__)


@dataclass(frozen=True)
class DataReport:
    """What is trained on.

    Attributes:
        samples: training samples given.
        duplicates: of these, how many equal an earlier one.
        leaked: held-out samples that equal a training one.
        rows: training rows made of them.
        tokens, targets: tokens of one epoch, and those of them that are trained on.
        shortest, median, longest: row lengths in tokens.
        truncated, split: conversations that lost their tail; texts cut into several rows.
        dropped: samples left out.
        reasons: the first few reasons why.
        padding: share of token slots that are padding, 0-1.
        valid_rows, valid_targets: held-out rows and target tokens.
        valid_dropped: held-out samples left out.
        note: what else a person should know.
    """

    samples: int
    duplicates: int
    leaked: int
    rows: int
    tokens: int
    targets: int
    shortest: int
    median: int
    longest: int
    truncated: int
    split: int
    dropped: int
    reasons: tuple[str, ...]
    padding: float
    valid_rows: int
    valid_targets: int
    valid_dropped: int
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"reasons": list(self.reasons)}

    def __str__(self) -> str:
        lines = [
            f"{self.rows} training rows of {self.samples} samples: {self.tokens} tokens, "
            f"{self.targets} ({self.targets / self.tokens:.0%}) trained on; row lengths "
            f"{self.shortest} to {self.longest}, median {self.median}; padding {self.padding:.1%}"
        ]
        changed = [
            (self.truncated, "truncated"),
            (self.split, "split"),
            (self.dropped, "dropped"),
            (self.duplicates, "given more than once"),
            (self.leaked, "held out and trained on as well"),
        ]
        if any(count for count, _ in changed):
            lines.append(", ".join(f"{count} {what}" for count, what in changed if count))
        lines += [f"  dropped {reason}" for reason in self.reasons]
        if self.valid_rows:
            left_out = f", {self.valid_dropped} dropped" if self.valid_dropped else ""
            lines.append(f"{self.valid_rows} held-out rows, {self.valid_targets} targets{left_out}")
        return "\n".join([*lines, self.note] if self.note else lines)


@dataclass(frozen=True)
class TrainingData:
    """Batches, report, and a hash over every token and mask."""

    train: Rows
    valid: Rows | None
    report: DataReport
    sha256: str


def prepare_data(
    data: Data,
    valid: Data | float | None,
    tokenizer: Any,
    config: TrainConfig,
    pad_to: int = 1,
    model: nn.Module | None = None,
) -> TrainingData:
    """Read, split, encode and batch.

    Args:
        data: a file, a folder or samples.
        valid: the same, or the share of `data` to hold out, or None.
        tokenizer: of the model.
        config: `max_tokens`, `batch_tokens`, `max_rows`, `packing`, `stream`, `seed` are read.
        pad_to: row lengths are rounded up to a multiple of this; packed rows are not.
        model: what will be trained; if it cannot run packed rows, they are not packed.

    Raises:
        DataError: a file is malformed, or nothing is left to train on or to hold out.
        ConfigError: samples in memory are to be streamed.
        DiskFullError: no space for streamed data; started again it goes on where it stopped.
    """
    check_stream(data, config.stream)
    config, note = _packing(config, model)
    whole = sample_set(data, tokenizer, config.max_tokens, config.stream)
    other: EncodedSet | None = None
    if isinstance(valid, int | float):
        apart = held_out(whole.keys, float(valid), config.seed)
        train, other = whole.encoded(~apart), whole.encoded(apart)
    else:
        train = whole.encoded()
        if valid is not None:
            other = sample_set(valid, tokenizer, config.max_tokens, config.stream).encoded()
    train.sizes("training")
    if other is not None and len(other.keys):
        other.sizes("held-out")
    rows = _batched(train, config, pad_to)
    found = other if other is not None and len(other.rows) else None
    return TrainingData(
        rows,
        None if found is None else _batched(found, config, pad_to),
        replace(_report(train, other, rows), note=note),
        _hash(train.rows, found.rows if found else ()),
    )


def check_packing(config: TrainConfig, loss: Loss | None) -> None:
    """Refuse packed rows for a loss that takes other ones.

    Raises:
        ConfigError: says which loss, and what to do.
    """
    if config.packing and not isinstance(loss or SftLoss(), SftLoss):
        raise ConfigError(
            f"packing is true and the loss is {type(loss).__name__}, which takes batches of rows; "
            "set packing to false, or use the cross-entropy of the replies (SftLoss)"
        )


def hold_out(
    samples: Sequence[Sample], share: float, seed: int
) -> tuple[list[Sample], list[Sample]]:
    """Split off a share of the samples; equal samples all go to the same side.

    Args:
        samples: training samples.
        share: between 0 and 1; at least one sample is held out and one is left.
        seed: decides which.

    Returns:
        (training, held out), each in the order given.

    Raises:
        DataError: the share is out of range, or fewer than two different samples were given.
    """
    apart = held_out(keys_of(samples), share, seed).tolist()
    pairs = list(zip(samples, apart, strict=True))
    return [s for s, out in pairs if not out], [s for s, out in pairs if out]


def _packing(config: TrainConfig, model: nn.Module | None) -> tuple[TrainConfig, str]:
    """The settings as the model can be trained, and what to say of it."""
    why = why_not_packed(model) if config.packing and model is not None else None
    if why is None:
        return config, ""
    _log.warning("rows are not packed", extra={"why": why})
    return replace(config, packing=False), f"batches of like length, as packing is refused: {why}"


def _batched(encoded: EncodedSet, config: TrainConfig, pad_to: int) -> Rows:
    if config.packing:
        return PackedSamples(
            encoded.rows,
            row_tokens=config.batch_tokens,
            max_samples=config.max_rows,
            seed=config.seed,
        )
    return LengthBuckets(
        encoded.rows,
        batch_tokens=config.batch_tokens,
        max_rows=config.max_rows,
        pad_to=pad_to,
        seed=config.seed,
    )


def _report(train: EncodedSet, valid: EncodedSet | None, rows: Rows) -> DataReport:
    lengths = np.sort(rows.lengths)
    different = np.unique(train.keys)
    return DataReport(
        samples=len(train.keys),
        duplicates=len(train.keys) - len(different),
        leaked=0 if valid is None else int(np.isin(valid.keys, different).sum()),
        rows=rows.rows,
        tokens=int(lengths.sum()),
        targets=rows.target_count,
        shortest=int(lengths[0]),
        median=int(lengths[len(lengths) // 2]),
        longest=int(lengths[-1]),
        truncated=train.truncated,
        split=train.split,
        dropped=train.dropped,
        reasons=train.reasons,
        padding=rows.padding_share(rows.epoch(0)),
        valid_rows=0 if valid is None else len(valid.rows),
        valid_targets=0 if valid is None else int(valid.target_count),
        valid_dropped=0 if valid is None else valid.dropped,
    )


def _hash(*sets: Sequence[Encoded]) -> str:
    digest = hashlib.sha256()
    for rows in sets:
        digest.update(len(rows).to_bytes(8, "little"))
        for tokens, targets in _arrays(rows):
            digest.update(len(tokens).to_bytes(8, "little"))
            digest.update(tokens.astype("<i4").tobytes())
            digest.update(targets.astype(bool).tobytes())
    return digest.hexdigest()


def _arrays(rows: Sequence[Encoded]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    if isinstance(rows, StoredRows):
        yield from map(rows.arrays, range(len(rows)))
        return
    for row in rows:
        yield np.array(row.tokens), np.array(row.targets)
