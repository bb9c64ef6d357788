"""A short run of Muon on packed bytes to a number of FLOPs, for processes that the tests kill.

`resumable_packed.py FOLDER [LINES]` writes `done.npz` when it has finished.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import mlx_companion  # noqa: F401  (loads the BLAS before MLX)

import numpy as np  # isort: skip
from held_runs import HeldRun  # isort: skip
from packed_models import byte_model, count_flops, packed  # isort: skip
from training_models import arrays  # isort: skip

from mlx_companion.training import MetricsLog, TrainConfig, Trainer  # isort: skip
from mlx_companion.training.packed_loss import PackedLoss  # isort: skip


def main(folder: Path, lines: int | None = None) -> None:
    """Train, going on from the last checkpoint; stay when the log has so many lines."""
    log = folder / "metrics.jsonl"
    model = byte_model(dropout=0.2)
    config = TrainConfig(
        optimizer="muon",
        lr=1e-2,
        lr_ratios={"*embed*": 2.0},
        schedule="trapezoid",
        max_flops=2e7,
        save_every=3,
        accumulate=2,
        eval_every=7,
    )
    trainer = Trainer(
        model,
        packed(),
        valid=packed(shuffle=False),
        loss=PackedLoss(),
        config=config,
        callbacks=[MetricsLog(log), HeldRun(log, lines)],
        checkpoints=folder / "checkpoints",
        run_hash="resumable",
        flops=count_flops,
    )
    trainer.run()
    values = {name: np.array(value) for name, value in arrays(model).items()}
    np.savez(folder / "done.npz", **values)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
