"""The folder of a run: names of its files, its identity, and who may write to it.

run.json         settings, versions, machine, hashes of model and data
metrics.jsonl    one line per step and evaluation
checkpoints/     see `checkpoint`; what an interrupted run goes on from
adapter/         the result
result.json      written last: the run is finished
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from mlx_companion.errors import TrainingError
from mlx_companion.lora import LoraConfig
from mlx_companion.runtime.config import to_dict
from mlx_companion.training.config import TrainConfig

ADAPTER = "adapter"
CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
RESULT = "result.json"
RUN = "run.json"

# Settings that say when to write, or who holds what; not what to compute.
_NOT_IDENTITY = {"save_every", "keep_last", "sharding", "stream"}


def run_hash(base_sha256: str, data_sha256: str, lora: LoraConfig, train: TrainConfig) -> str:
    """SHA-256 over model, data and settings: equal ones make the same adapter."""
    settings = {k: v for k, v in to_dict(train).items() if k not in _NOT_IDENTITY}
    parts = [base_sha256, data_sha256, to_dict(lora), settings]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Keep a second process from training into the same folder.

    Raises:
        TrainingError: another one does.
    """
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise TrainingError(
            f"another process is training into {out}; wait for it or choose another folder"
        ) from error
