"""The one trainer: steps, evaluations, checkpoints; losses and callbacks as arguments.

    buckets = LengthBuckets(rows, batch_tokens=1024)
    trainer = Trainer(model, buckets, valid=held_out, checkpoints="run/checkpoints")
    summary = trainer.run()       # started again after a kill, it goes on from its checkpoint

It trains whatever is trainable in the model (the adapters, after `lora.attach`) and knows nothing
of adapters, files of data or tokenizers; `finetune` puts those around it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.optimizers import AdamW
from mlx.utils import tree_flatten

from mlx_companion.errors import Stopped, TrainingError
from mlx_companion.models.fast_cpu import fast_cpu
from mlx_companion.models.heads import split_head
from mlx_companion.runtime.memory import peak_memory_mb
from mlx_companion.runtime.monitor import Advice, ResourceMonitor
from mlx_companion.runtime.seeds import seed_everything
from mlx_companion.runtime.stop import NEVER, StopSwitch
from mlx_companion.text.batches import LengthBuckets
from mlx_companion.training import snapshot
from mlx_companion.training.buffers import buffers_for_training
from mlx_companion.training.callbacks import Callback
from mlx_companion.training.checkpoint import Arrays, Checkpoint, CheckpointFolder
from mlx_companion.training.config import TrainConfig
from mlx_companion.training.evaluate import mean_loss
from mlx_companion.training.gradients import Accumulated, GradientEngine, clipped_mean
from mlx_companion.training.losses import Loss, SftLoss
from mlx_companion.training.plan import Plan
from mlx_companion.training.recompute import recompute_layers
from mlx_companion.training.rng import export_random_states, restore_random_states
from mlx_companion.training.schedule import learning_rate
from mlx_companion.training.state import (
    RunInfo,
    SaveInfo,
    StepInfo,
    TrainState,
    TrainSummary,
    summarize,
)
from mlx_companion.training.streams import parallel_streams

# Where steps are compiled, numbers of targets are rounded up to a multiple of this.
_TARGETS_TO = 64


class Trainer:
    """Trains a model's trainable parameters.

    Args:
        model: an MLX module with something to train.
        train: the training rows.
        valid: held-out rows; without them there is no best, no early stop.
        loss: see `losses.Loss`; default: cross-entropy of the target tokens.
        config: settings.
        callbacks: what watches; called in order.
        monitor: consulted between steps; it may pause the run or make its pieces smaller.
        stop: kill switch; honoured between steps, after a checkpoint.
        checkpoints: their folder; None to keep nothing on the disk.
        run_hash: identifies the run (model, data, settings); a checkpoint of another is refused.

    Raises:
        TrainingError: nothing in the model is trainable.
    """

    def __init__(
        self,
        model: nn.Module,
        train: LengthBuckets,
        *,
        valid: LengthBuckets | None = None,
        loss: Loss | None = None,
        config: TrainConfig | None = None,
        callbacks: Iterable[Callback] = (),
        monitor: ResourceMonitor | None = None,
        stop: StopSwitch = NEVER,
        checkpoints: str | Path | None = None,
        run_hash: str = "",
    ) -> None:
        if not tree_flatten(model.trainable_parameters()):
            raise TrainingError("nothing in the model is trainable; attach an adapter first")
        self.model = model
        self.config = config or TrainConfig()
        self.plan = Plan(train, self.config)
        self.valid = valid
        self.loss = loss or default_loss(self.config)
        self.callbacks: Sequence[Callback] = tuple(callbacks)
        self.monitor = monitor
        self.stop = stop
        self.state = TrainState()
        self.folder = (
            CheckpointFolder(checkpoints, run_hash, self.config.keep_last) if checkpoints else None
        )
        self.optimizer = optimizer_for(self.config)
        self._compiled = self.config.compile and isinstance(self.loss, SftLoss)
        self._best: Arrays | None = None
        self._advice = Advice()
        self._step_seconds = 0.0
        self._start_targets = 0

    def run(self, resume: bool = True) -> TrainSummary:
        """Train to the end.

        Args:
            resume: go on from the newest checkpoint, if there is one; False removes them all.

        Returns:
            What was reached. The model holds the best weights (`keep_best`) or the last ones, and
            is in evaluation mode.

        Raises:
            Stopped: the kill switch was thrown; a checkpoint was written.
            TrainingError: loss or gradients were not finite too often in a row.
            CheckpointError: the checkpoints belong to another run.
            DiskFullError: no space for a checkpoint; the one before is intact.
        """
        with ExitStack() as stack:
            stack.callback(self._close)
            stack.enter_context(fast_cpu(self.model))
            stack.enter_context(buffers_for_training())
            stack.enter_context(recompute_layers(self.model, self.config.gradient_checkpointing))
            streams = stack.enter_context(parallel_streams())
            stack.callback(self.model.eval)
            split_head(self.model)
            self._begin(resume)
            self._notify("on_start", self._info(len(streams)))
            self._engine = GradientEngine(self.model, self.loss, streams, self._compiled)
            self._train()
            return self._finish()

    def _begin(self, resume: bool) -> None:
        seed_everything(self.config.seed)
        self.optimizer.init(self.model.trainable_parameters())
        if self.folder is None:
            return
        if not resume:
            self.folder.clear()
        found = self.folder.load_latest()
        if found is not None:
            self._restore(found)

    def _train(self) -> None:
        if self.state.step == 0 and self.state.valid_before is None:
            self._evaluate()
        while not self._over():
            for group in self.plan.steps(self.state.epoch, self.state.batch):
                self._safe_point()
                self._step(group)
                self._after_step()
                if self._over():
                    break

    def _over(self) -> bool:
        return self.state.step >= self.plan.total_steps or self.state.stopped_early

    def _safe_point(self) -> None:
        """Between steps everything is in a state that a checkpoint can hold."""
        try:
            self.stop.check()
            advice = self.monitor.consult(self.stop) if self.monitor else Advice()
        except Stopped:
            self._save()
            raise
        if advice != self._advice:
            self._advice = advice
            self._notify("on_advice", advice)

    def _step(self, group: Sequence[tuple[int, ...]]) -> None:
        start = time.perf_counter()
        self.model.train()
        pieces = math.ceil(1 / self._advice.scale)
        total: Accumulated | None = None
        slots = 0
        for indices in group:
            batch = self.plan.batch(indices)
            slots += batch.tokens.size
            total = self._engine.add(batch, total, pieces=pieces)
        assert total is not None
        lr = learning_rate(self.state.step, self.plan.total_steps, self.config)
        norm = self._apply(total, lr)
        tokens = sum(len(self.plan.buckets.encoded[i].tokens) for rows in group for i in rows)
        self._advance(total, len(group), tokens, slots, not math.isfinite(norm))
        seconds = time.perf_counter() - start
        self._step_seconds += seconds
        self.state.seconds += seconds
        info = StepInfo(
            step=self.state.step,
            total_steps=self.plan.total_steps,
            epoch=self.state.epoch,
            loss=total.loss / total.targets,
            lr=lr,
            norm=norm,
            targets=round(total.targets),
            tokens=tokens,
            slots=slots,
            seconds=seconds,
            skipped=not math.isfinite(norm),
            peak_mb=peak_memory_mb(),
        )
        self._notify("on_step", info)

    def _apply(self, total: Accumulated, lr: float) -> float:
        """Update the parameters; returns the norm, NaN when the step was skipped."""
        gradients, norm = clipped_mean(total, self.config.clip_norm)
        if not (math.isfinite(norm) and math.isfinite(total.loss)):
            return math.nan
        self.optimizer.learning_rate = lr
        self.optimizer.update(self.model, gradients)
        mx.eval(self.model.trainable_parameters(), self.optimizer.state)
        return norm

    def _advance(
        self, total: Accumulated, batches: int, tokens: int, slots: int, skipped: bool
    ) -> None:
        state = self.state
        state.step += 1
        state.batch += batches
        state.tokens += tokens
        state.slots += slots
        if not skipped:
            state.bad_in_row = 0
            state.targets += round(total.targets)
            state.epoch_loss += total.loss
            state.epoch_targets += round(total.targets)
            return
        state.skipped += 1
        state.bad_in_row += 1
        if state.bad_in_row >= self.config.max_bad_steps:
            raise TrainingError(
                f"loss or gradient was not finite in {state.bad_in_row} steps in a row (the last "
                f"is step {state.step}); lower lr (now {self.config.lr:g}), lengthen the warm-up, "
                "or look for broken rows in the data"
            )

    def _after_step(self) -> None:
        epoch_done = self.state.batch >= len(self.plan.buckets.epoch(self.state.epoch))
        every = self.config.eval_every
        if epoch_done:
            self._end_epoch()
        last = self.state.step >= self.plan.total_steps
        due = epoch_done if every is None else self.state.step % every == 0
        if due or last:
            self._evaluate()
        if self._over():
            return
        if self.state.step % self.config.save_every == 0:
            self._save()

    def _end_epoch(self) -> None:
        state = self.state
        if state.epoch_targets:
            state.train_loss = state.epoch_loss / state.epoch_targets
        state.epoch += 1
        state.batch = 0
        state.epoch_loss, state.epoch_targets = 0.0, 0

    def _evaluate(self) -> None:
        if self.valid is None:
            return
        start = time.perf_counter()
        loss = mean_loss(self.model, self._engine, self.valid)
        if self.state.observe(loss, self.config.min_delta):
            self._keep_best()
        patience = self.config.patience
        self.state.stopped_early = patience is not None and self.state.stale >= patience
        self.state.seconds += time.perf_counter() - start
        self._notify("on_eval", self.state.step, loss)

    def _keep_best(self) -> None:
        if not self.config.keep_best:
            return
        # Arrays never change in place, so holding on to them is a snapshot.
        self._best = snapshot.parameters(self.model)
        if self.folder is not None:
            self.folder.save_best(self._best, {"step": self.state.step})

    def _finish(self) -> TrainSummary:
        state = self.state
        if state.epoch_targets:
            state.train_loss = state.epoch_loss / state.epoch_targets
        if not state.finished:
            state.finished = True
            self._save()
        after = state.valid_last
        if self._best is not None and state.best_step != state.step:
            snapshot.set_parameters(self.model, self._best)
            after = state.valid_best
        trained = state.targets - self._start_targets
        speed = trained / self._step_seconds if self._step_seconds else 0.0
        summary = summarize(state, valid_after=after, speed=speed, peak_mb=peak_memory_mb())
        self._notify("on_end", summary)
        return summary

    def _save(self) -> None:
        if self.folder is None:
            return
        start = time.perf_counter()
        arrays = snapshot.take(self.model, self.optimizer)
        state = {"progress": self.state.to_json(), "random": export_random_states()}
        path = self.folder.save(self.state.step, arrays, state)
        self._notify("on_save", SaveInfo(self.state.step, path, time.perf_counter() - start))

    def _restore(self, found: Checkpoint) -> None:
        snapshot.put(found, self.model, self.optimizer)
        self.state = TrainState.from_json(found.state["progress"])
        self._start_targets = self.state.targets
        restore_random_states(found.state["random"])
        if self.config.keep_best and self.folder is not None and self.state.best_step is not None:
            self._best = self.folder.load_best()

    def _info(self, streams: int) -> RunInfo:
        return RunInfo(
            total_steps=self.plan.total_steps,
            step=self.state.step,
            rows=len(self.plan.buckets.encoded),
            targets=sum(row.target_count for row in self.plan.buckets.encoded),
            streams=streams,
            trainable=sum(value.size for value in snapshot.parameters(self.model).values()),
        )

    def _notify(self, event: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(*arguments)

    def _close(self) -> None:
        for callback in self.callbacks:
            callback.on_close()


def default_loss(config: TrainConfig) -> SftLoss:
    """Cross-entropy of the target tokens, as the settings want it."""
    # Keys and values that layers pass on outside of their arguments would lose their gradients.
    share = config.share_prefix and not config.gradient_checkpointing
    return SftLoss(share_prefix=share, pad_to=_TARGETS_TO if config.compile else 1)


def optimizer_for(config: TrainConfig) -> AdamW:
    """AdamW with bias correction."""
    return AdamW(
        config.lr,
        betas=list(config.betas),
        eps=config.eps,
        weight_decay=config.weight_decay,
        bias_correction=True,
    )
