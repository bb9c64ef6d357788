"""From files or samples to batches, held-out rows and a report of what became of the data."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlx_companion.errors import DataError
from mlx_companion.runtime.seeds import derive_seed
from mlx_companion.text import (
    Encoded,
    EncodeReport,
    LengthBuckets,
    Sample,
    encode_samples,
    read_samples,
)
from mlx_companion.training.config import TrainConfig

Data = str | Path | Sequence[Sample]
_REASONS_SHOWN = 3


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
        return "\n".join(lines)


@dataclass(frozen=True)
class TrainingData:
    """Batches, report, and a hash over every token and mask."""

    train: LengthBuckets
    valid: LengthBuckets | None
    report: DataReport
    sha256: str


def prepare_data(
    data: Data,
    valid: Data | float | None,
    tokenizer: Any,
    config: TrainConfig,
    pad_to: int = 1,
) -> TrainingData:
    """Read, split, encode and batch.

    Args:
        data: a file, a folder or samples.
        valid: the same, or the share of `data` to hold out, or None.
        tokenizer: of the model.
        config: `max_tokens`, `batch_tokens`, `max_rows`, `seed` are read.
        pad_to: row lengths are rounded up to a multiple of this.

    Raises:
        DataError: a file is malformed, or nothing is left to train on or to hold out.
    """
    samples = _samples(data)
    held_out: Sequence[Sample] = []
    if isinstance(valid, int | float):
        samples, held_out = hold_out(samples, float(valid), config.seed)
    elif valid is not None:
        held_out = _samples(valid)
    rows, report = encode_samples(samples, tokenizer, config.max_tokens)
    valid_rows, valid_report = encode_samples(held_out, tokenizer, config.max_tokens)
    _check_left("training", rows, report)
    if held_out:
        _check_left("held-out", valid_rows, valid_report)
    options: dict[str, Any] = {
        "batch_tokens": config.batch_tokens,
        "max_rows": config.max_rows,
        "pad_to": pad_to,
        "seed": config.seed,
    }
    train = LengthBuckets(rows, **options)
    return TrainingData(
        train,
        LengthBuckets(valid_rows, **options) if valid_rows else None,
        _report(samples, held_out, train, report, valid_report),
        _hash(rows, valid_rows),
    )


def hold_out(
    samples: Sequence[Sample], share: float, seed: int
) -> tuple[list[Sample], list[Sample]]:
    """Split off a share of the samples, at least one; equal samples stay on one side.

    Args:
        samples: all of them.
        share: over 0, under 1.
        seed: decides which.

    Returns:
        (to train on, held out), each in the order given.

    Raises:
        DataError: the share is out of range, or fewer than two different samples were given.
    """
    if not 0 < share < 1:
        raise DataError(f"the held-out share is {share}; expected more than 0 and less than 1")
    contents = list(dict.fromkeys(_content(sample) for sample in samples))
    if len(contents) < 2:
        raise DataError(
            f"{len(contents)} different samples cannot be split into training and held-out ones; "
            "give more samples, or no held-out share"
        )
    order = np.random.default_rng(derive_seed(seed, "hold-out")).permutation(len(contents))
    count = min(len(contents) - 1, math.ceil(share * len(contents)))
    chosen = {contents[at] for at in order[:count].tolist()}
    train = [sample for sample in samples if _content(sample) not in chosen]
    return train, [sample for sample in samples if _content(sample) in chosen]


def _samples(data: Data) -> Sequence[Sample]:
    return read_samples(data) if isinstance(data, str | Path) else data


def _content(sample: Sample) -> tuple[Any, ...]:
    return sample.messages, sample.text


def _check_left(kind: str, rows: Sequence[Encoded], report: EncodeReport) -> None:
    if not rows:
        reasons = "; ".join(_reasons(report)) or "none was given"
        raise DataError(f"no {kind} row is left: {reasons}")


def _reasons(report: EncodeReport) -> tuple[str, ...]:
    shown = report.dropped[:_REASONS_SHOWN]
    return tuple(f"{drop.source}: {drop.reason}" if drop.source else drop.reason for drop in shown)


def _report(
    samples: Sequence[Sample],
    held_out: Sequence[Sample],
    train: LengthBuckets,
    report: EncodeReport,
    valid: EncodeReport,
) -> DataReport:
    lengths = sorted(len(row.tokens) for row in train.encoded)
    different = {_content(sample) for sample in samples}
    return DataReport(
        samples=len(samples),
        duplicates=len(samples) - len(different),
        leaked=sum(_content(sample) in different for sample in held_out),
        rows=report.kept,
        tokens=report.tokens,
        targets=report.targets,
        shortest=lengths[0],
        median=lengths[len(lengths) // 2],
        longest=lengths[-1],
        truncated=report.truncated,
        split=report.split,
        dropped=len(report.dropped),
        reasons=_reasons(report),
        padding=train.padding_share(train.epoch(0)),
        valid_rows=valid.kept,
        valid_targets=valid.targets,
        valid_dropped=len(valid.dropped),
    )


def _hash(*sets: Sequence[Encoded]) -> str:
    digest = hashlib.sha256()
    for rows in sets:
        digest.update(len(rows).to_bytes(8, "little"))
        for row in rows:
            digest.update(len(row.tokens).to_bytes(8, "little"))
            digest.update(np.array(row.tokens, dtype="<i4").tobytes())
            digest.update(np.array(row.targets, dtype=bool).tobytes())
    return digest.hexdigest()
