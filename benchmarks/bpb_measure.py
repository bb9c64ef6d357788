"""What `bpb_report` measures of a trained model: how it reads a text, and what its training took.

    model = Trained("token", place)
    model.read(book).bits_per_byte      # measured once, then kept beside the weights

Readings are kept in `measured.json` in the model's folder, under the hash of the text, for as long
as the weights are the same, each as soon as it is there: a report that was broken off goes on.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from benchmarks import bpb_models
from mlx_companion.blt import BltModel, inference_flops, load, nats_of_ids, patches
from mlx_companion.errors import DataError
from mlx_companion.runtime.files import atomic_write_json, sha256_file
from mlx_companion.text.byte_text import encode_bytes

# Bytes over which nats are summed up, so that two models can be compared stretch by stretch.
STRETCH = 20_000
# Positions that a model runs over at a time; a token model's logits are then 67 MB.
_POSITIONS = 4096
# Of a training curve.
_POINTS = 80
_LN2 = math.log(2)
_SPACE = "\u2581"  # as sentencepiece writes it


@dataclass(frozen=True)
class Reading:
    """How a model predicted a text.

    Attributes:
        nats: the sum over all of it.
        bytes: of the text.
        lengths: how many positions of the costly part there are of each length in bytes: patches,
            tokens, or (flat model) bytes.
        stretches: nats of each `STRETCH` bytes; a token belongs where it begins.
        seconds: that it took.
    """

    nats: float
    bytes: int
    lengths: dict[int, int]
    stretches: list[float]
    seconds: float

    @property
    def bits_per_byte(self) -> float:
        """Of the whole text."""
        return self.nats / _LN2 / self.bytes

    @property
    def mean_length(self) -> float:
        """Bytes per position."""
        return self.bytes / sum(self.lengths.values())

    def percentile(self, share: float) -> int:
        """The length that `share` of the positions do not exceed: 0.5 gives the median."""
        sizes = sorted(self.lengths)
        reached = np.cumsum([self.lengths[size] for size in sizes])
        return sizes[int(np.searchsorted(reached, share * reached[-1]))]


class Trained:
    """A model that is trained to its end.

    Args:
        name: of `bpb_models.MODELS`.
        place: where data and results lie.
    """

    def __init__(self, name: str, place: bpb_models.Workplace) -> None:
        self.name, self.place = name, place
        self.folder = place.out / name
        self.model = load(self.folder / "model")
        self._kept = self.folder / "measured.json"

    @staticmethod
    def finished(name: str, place: bpb_models.Workplace) -> bool:
        """Whether there is such a model."""
        return (place.out / name / "model").is_dir()

    def read(self, text: bytes) -> Reading:
        """How it predicts a text.

        Raises:
            DataError: tokens that do not spell the text.
        """
        key = hashlib.sha256(text).hexdigest()
        kept = self._readings()
        if key not in kept:
            reading = self._read(text)
            kept[key] = asdict(reading)
            atomic_write_json(self._kept, {"model": self.fingerprint, "readings": kept})
            print(
                f"{self.name}: {len(text):,} bytes at {reading.bits_per_byte:.4f} bits per byte, "
                f"{reading.seconds:.0f} s",
                file=sys.stderr,
                flush=True,
            )
        values = kept[key]
        lengths = {int(size): count for size, count in values["lengths"].items()}
        return Reading(**{**values, "lengths": lengths})

    def flops(self, bytes_per_position: float) -> dict[str, float]:
        """Operations of inference per byte, part by part and "total"."""
        cost = inference_flops(self.model.config, bytes_per_position)
        return {**asdict(cost), "total": cost.total}

    @cached_property
    def fingerprint(self) -> str:
        """Identifies weights, configuration and tokenizer."""
        files = sorted((self.folder / "model").iterdir())
        if self._pieces is not None:
            files.append(self.place.out / "tokenizer.model")
        hashes = [f"{file.name} {sha256_file(file)}" for file in files]
        return hashlib.sha256("\n".join([*hashes, str(STRETCH)]).encode()).hexdigest()

    @cached_property
    def parameters(self) -> dict[str, int]:
        """How many there are: in all, in hash tables, in the entropy model."""
        values: dict[str, mx.array] = dict(tree_flatten(self.model.parameters()))
        sizes = {name: value.size for name, value in values.items()}
        return {
            "total": sum(sizes.values()),
            "hash_tables": sum(n for name, n in sizes.items() if "hash_tok_embedding" in name),
            "entropy_model": sum(n for name, n in sizes.items() if ".patcher." in name),
        }

    def _readings(self) -> dict[str, Any]:
        try:
            kept = json.loads(self._kept.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return kept["readings"] if kept.get("model") == self.fingerprint else {}

    def _read(self, text: bytes) -> Reading:
        began = time.perf_counter()
        ids, sizes = self._ids(text)
        rows = max(1, _POSITIONS // self.model.config.context)
        nats = nats_of_ids(self.model, ids, batch_rows=rows).astype(np.float64)
        begins = np.cumsum(sizes) - sizes
        patching = isinstance(self.model, BltModel)
        lengths = patches(self.model, text).lengths if patching else sizes
        mx.clear_cache()
        values, counts = np.unique(lengths, return_counts=True)
        return Reading(
            nats=float(nats.sum()),
            bytes=len(text),
            lengths=dict(zip(values.tolist(), counts.tolist(), strict=True)),
            stretches=np.bincount(begins // STRETCH, weights=nats).tolist(),
            seconds=time.perf_counter() - began,
        )

    def _ids(self, text: bytes) -> tuple[np.ndarray, np.ndarray]:
        """What the model predicts one after the other, and how many bytes each of it is."""
        if self._pieces is None:
            ids = encode_bytes(text, bos=False)
            return ids, np.ones(len(ids), dtype=np.int64)
        ids = np.array(bpb_models.tokenizer(self.place)(text))
        spelled = [self._pieces[i] for i in ids.tolist()]
        if b"".join(spelled) != text:
            raise DataError("the tokens do not spell the text, so its bytes cannot be counted")
        return ids, np.array([len(piece) for piece in spelled])

    @cached_property
    def _pieces(self) -> list[bytes] | None:
        """The bytes of each token; None for a model of bytes."""
        if self.name != "token":
            return None
        return token_pieces(self.place.out / "tokenizer.model")


def token_pieces(path: Path) -> list[bytes]:
    """The bytes that each id of a sentencepiece model stands for."""
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return [_piece(model, i) for i in range(model.get_piece_size())]


def _piece(model: Any, i: int) -> bytes:
    if model.is_byte(i):
        return bytes([int(model.id_to_piece(i)[1:-1], 16)])
    if model.is_control(i) or model.is_unknown(i):
        return b""
    return model.id_to_piece(i).replace(_SPACE, " ").encode()


@dataclass(frozen=True)
class Training:
    """What a training took, and how it went.

    Attributes:
        steps, skipped: of the optimizer.
        flops: spent; of "blt-entropy" with those of its entropy model.
        bytes: read.
        seconds: in steps, the entropy model's not included.
        bytes_per_step: on average.
        peak_lr: the highest learning rate.
        peak_mb: most memory, MB.
        curve: (FLOPs so far, bits per byte of the training text), means over equal parts.
    """

    steps: int
    skipped: int
    flops: float
    bytes: float
    seconds: float
    bytes_per_step: float
    peak_lr: float
    peak_mb: float
    curve: list[tuple[float, float]]


def read_training(
    folder: Path, bytes_per_target: float = 1.0, spent: float = 0.0
) -> Training | None:
    """The record of a training, also of one that is going on; None where there is none.

    Args:
        folder: of the run.
        bytes_per_target: bytes of text for each id that was predicted.
        spent: FLOPs that count as spent before the first step.
    """
    steps = _steps(folder / "metrics.jsonl")
    if not steps:
        return None
    targets = np.array([step["targets"] for step in steps], dtype=np.float64)
    flops = np.array([step["flops"] for step in steps]) + spent
    losses = np.array([np.nan if step["loss"] is None else step["loss"] for step in steps])
    return Training(
        steps=len(steps),
        skipped=sum(step["skipped"] for step in steps),
        flops=float(flops[-1]),
        bytes=float(targets.sum()) * bytes_per_target,
        seconds=sum(step["seconds"] for step in steps),
        bytes_per_step=float(targets.mean()) * bytes_per_target,
        peak_lr=max(step["lr"] for step in steps),
        peak_mb=max(step["peak_mb"] for step in steps),
        curve=_curve(flops, losses / _LN2 / bytes_per_target, targets, spent),
    )


def _steps(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
        except ValueError:  # the last line of a run that is going on, or was killed
            continue
        if values["event"] == "step":
            found.append(values)
    return found


def _curve(
    flops: np.ndarray, bits: np.ndarray, weights: np.ndarray, spent: float
) -> list[tuple[float, float]]:
    """Means over parts of the training that cost the same."""
    good = np.isfinite(bits)
    flops, bits, weights = flops[good], bits[good], weights[good]
    if not len(flops):
        return []
    width = (flops[-1] - spent) / _POINTS
    part = np.minimum(((flops - spent) / width).astype(int), _POINTS - 1)
    total = np.bincount(part, weights, _POINTS)
    used = total > 0
    x = np.bincount(part, weights * flops, _POINTS)[used] / total[used]
    y = np.bincount(part, weights * bits, _POINTS)[used] / total[used]
    return [(float(f"{a:.6g}"), round(b, 5)) for a, b in zip(x.tolist(), y.tolist(), strict=True)]
