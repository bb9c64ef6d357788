"""Step 5, train: a fresh adapter on the base, over the round's mix.

Training always restarts from the base: an adapter trained on top of an adapter drifts
further from the base each round. An interrupted run goes on from its last checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlx_companion.errors import CheckpointError, LoopError
from mlx_companion.loop.context import RoundContext
from mlx_companion.loop.replay import training_samples
from mlx_companion.runtime.config import to_dict
from mlx_companion.text import Sample
from mlx_companion.training import Callback, StepInfo, TrainResult, finetune

__all__ = ["train"]

# Held-out rows only watch the training; whether the version is better is the gate's to say.
_VALID_SHARE = 0.05


class _Watch(Callback):
    """Passes steps on to the round's progress and to the store."""

    def __init__(self, ctx: RoundContext, run_id: str) -> None:
        self._ctx = ctx
        self._run_id = run_id

    def on_step(self, step: StepInfo) -> None:
        """After each step."""
        self._ctx.store.runs.log(self._run_id, step.step, {"train_loss": step.loss, "lr": step.lr})
        self._ctx.progress.advance("train", step.step, step.total_steps, f"loss {step.loss:.3f}")

    def on_eval(self, step: int, loss: float) -> None:
        """After each held-out loss."""
        self._ctx.store.runs.log(self._run_id, step, {"valid_loss": loss})


def train(ctx: RoundContext) -> dict[str, Any]:
    """Train the round's adapter; the payload names it.

    Raises:
        LoopError: nothing was learned, so there is nothing to test.
    """
    ctx.companion.use_base()
    samples = training_samples(ctx)
    run = ctx.store.runs.start(
        "improve",
        config={"lora": to_dict(ctx.config.lora), "train": to_dict(ctx.config.train)},
        seed=ctx.config.seed,
        id=f"round-{ctx.round.number}-{ctx.round.id[:8]}",
    )
    try:
        result = _finetune(ctx, samples, run.id, resume=True)
    except CheckpointError as error:
        # The profile was changed while the round lay interrupted: other rows, another run.
        ctx.progress.note(f"Training starts over: {error}.")
        result = _finetune(ctx, samples, run.id, resume=False)
    ctx.companion.use_base()
    if result.best_step == 0:
        raise LoopError(
            f"training never lowered the held-out loss ({result.valid_before:.2f}), so its result "
            "is the version it began with; give more examples or lower train.lr"
        )
    ctx.store.runs.finish(run.id, summary={"train_loss": result.train_loss})
    return {
        "adapter": str(Path(result.adapter).relative_to(ctx.store.folder)),
        "adapter_sha256": result.adapter_sha256,
        "run": run.id,
        "rows": len(samples),
        "steps": result.steps,
        "valid_before": result.valid_before,
        "valid_after": result.valid_best,
        "summary": f"{result.steps} steps over {len(samples)} rows, "
        f"held-out loss {result.valid_before:.2f} -> {result.valid_best:.2f}",
    }


def _finetune(ctx: RoundContext, samples: list[Sample], run: str, *, resume: bool) -> TrainResult:
    return finetune(
        ctx.companion.lm,
        samples,
        ctx.folder / "train",
        lora=ctx.config.lora,
        train=ctx.config.train,
        valid=_VALID_SHARE,
        resume=resume,
        stop=ctx.switch,
        monitor=ctx.monitor,
        callbacks=[_Watch(ctx, run)],
        progress=False,
    )
