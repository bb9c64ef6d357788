"""A short training run with dropout, for processes that the tests kill.

`resumable_run.py FOLDER [LINES]` writes `done.npz` when it has finished.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import mlx_companion  # noqa: F401  (loads the BLAS before MLX)

import numpy as np  # isort: skip
from held_runs import HeldRun  # isort: skip
from training_models import adapted, arrays, buckets  # isort: skip

from mlx_companion.training import MetricsLog, TrainConfig, Trainer  # isort: skip


def main(folder: Path, lines: int | None = None) -> None:
    """Train, going on from the last checkpoint; stay when the log has so many lines."""
    log = folder / "metrics.jsonl"
    model = adapted(dropout=0.2)
    config = TrainConfig(epochs=40, lr=1e-2, save_every=3, keep_last=2, accumulate=2, eval_every=7)
    trainer = Trainer(
        model,
        buckets(14),
        valid=buckets(4, seed=1),
        config=config,
        callbacks=[MetricsLog(log), HeldRun(log, lines)],
        checkpoints=folder / "checkpoints",
        run_hash="resumable",
    )
    trainer.run()
    values = {name: np.array(value) for name, value in arrays(model).items()}
    np.savez(folder / "done.npz", **values)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
