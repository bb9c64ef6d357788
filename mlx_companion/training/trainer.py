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
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_companion.errors import ConfigError, Stopped, TrainingError
from mlx_companion.models.fast_cpu import fast_cpu
from mlx_companion.models.heads import split_head
from mlx_companion.runtime.memory import peak_memory_mb
from mlx_companion.runtime.monitor import Advice, ResourceMonitor
from mlx_companion.runtime.stop import NEVER, StopSwitch
from mlx_companion.text.sources import RowSource
from mlx_companion.training import snapshot
from mlx_companion.training.buffers import buffers_for_training
from mlx_companion.training.callbacks import Callback
from mlx_companion.training.checkpoint import Arrays, CheckpointFolder
from mlx_companion.training.config import TrainConfig
from mlx_companion.training.distributed import Ranks, join
from mlx_companion.training.evaluate import mean_loss
from mlx_companion.training.gradients import Accumulated, GradientEngine, clipped_mean
from mlx_companion.training.losses import Loss, SftLoss
from mlx_companion.training.optimizers import optimizer_for, use_streams
from mlx_companion.training.plan import Plan
from mlx_companion.training.recompute import recompute_layers
from mlx_companion.training.saves import Saves
from mlx_companion.training.schedule import learning_rate, learning_rate_at
from mlx_companion.training.sharding import (
    fully_sharded,
    is_sharded,
    sharded_norm,
    trainable_count,
)
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
        train: the training rows: `LengthBuckets`, `PackedRows` or another source.
        valid: held-out rows; without them there is no best, no early stop.
        loss: see `losses.Loss`; default: cross-entropy of the target tokens.
        config: settings.
        callbacks: what watches; called in order.
        monitor: consulted between steps; it may pause the run or make its pieces smaller.
        stop: kill switch; honoured between steps, after a checkpoint.
        checkpoints: their folder; None to keep nothing on the disk.
        run_hash: identifies the run (model, data, settings); a checkpoint of another is refused.
        flops: floating-point operations of training on a micro-batch, as the source gave it;
            counted into the metrics, and needed for `max_flops`.
        ranks: the processes that train together; by default those that `mlx.launch` started.
            Callbacks run on each of them.
        restore: put the frozen parts of a sharded model together again at the end, on every rank.

    Raises:
        TrainingError: nothing in the model is trainable.
        ConfigError: `max_flops` is set and nothing counts them.
    """

    def __init__(
        self,
        model: nn.Module,
        train: RowSource,
        *,
        valid: RowSource | None = None,
        loss: Loss | None = None,
        config: TrainConfig | None = None,
        callbacks: Iterable[Callback] = (),
        monitor: ResourceMonitor | None = None,
        stop: StopSwitch = NEVER,
        checkpoints: str | Path | None = None,
        run_hash: str = "",
        flops: Callable[[Any], float] | None = None,
        ranks: Ranks | None = None,
        restore: bool = True,
    ) -> None:
        if not tree_flatten(model.trainable_parameters()):
            raise TrainingError("nothing in the model is trainable; attach an adapter first")
        self.model = model
        self.config = config or TrainConfig()
        if self.config.max_flops is not None and flops is None:
            raise ConfigError("max_flops is set, and nothing counts them; give the trainer `flops`")
        self.flops = flops
        self.ranks, self.restore = ranks or join(), restore
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
        self.saves = Saves(self.folder, self.ranks)
        self.optimizer = optimizer_for(self.config, model)
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
            TrainingError: loss or gradients were not finite too often in a row, or another rank is
                gone.
            CheckpointError: the checkpoints belong to another run.
            DiskFullError: no space for a checkpoint; the one before is intact.
        """
        with ExitStack() as stack:
            stack.callback(self._close)
            stack.enter_context(self.ranks.guarded(lambda: self.saves.advice(self.state.step)))
            stack.enter_context(fast_cpu(self.model))
            stack.enter_context(buffers_for_training())
            sharded = self.config.sharding == "full" and not self.ranks.alone
            self.saves.start(self.model, self.config.seed)
            stack.enter_context(fully_sharded(self.model, self.ranks, sharded, self.restore))
            stack.enter_context(recompute_layers(self.model, self.config.gradient_checkpointing))
            # Two streams would gather in an order that no other rank can know.
            made = parallel_streams(1) if sharded else parallel_streams()
            streams = stack.enter_context(made)
            use_streams(self.optimizer, streams)
            stack.callback(self.model.eval)
            getattr(self.loss, "ready", split_head)(self.model)
            self._begin(resume)
            self._notify("on_start", self._info(len(streams)))
            self._engine = GradientEngine(self.model, self.loss, streams, self._compiled)
            self._train()
            return self._finish()

    def _begin(self, resume: bool) -> None:
        self.optimizer.init(self.model.trainable_parameters())
        found = self.saves.load(resume)
        if found is None:
            return
        self.state = self.saves.restore(found, self.model, self.optimizer, self.config.seed)
        self._start_targets = self.state.targets
        if self.config.keep_best and self.state.best_step is not None:
            self._best = self.saves.load_best(self.model)

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
        return self._done() or self.state.stopped_early

    def _done(self) -> bool:
        """Every step was taken, or every operation spent."""
        total, most = self.plan.total_steps, self.config.max_flops
        enough = most is not None and self.state.flops >= most
        return enough or (total is not None and self.state.step >= total)

    def _safe_point(self) -> None:
        """Between steps everything is in a state that a checkpoint can hold."""
        try:
            with self.ranks.stopping_together():
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
        total = self._accumulate(group, pieces)
        lr = self._learning_rate()
        norm = self._apply(total, lr)
        tokens = sum(map(self.plan.source.tokens, group))
        slots = sum(map(self.plan.source.slots, group))
        self._advance(total, len(group), tokens, slots, not math.isfinite(norm))
        seconds = time.perf_counter() - start
        self._step_seconds += seconds
        self.state.seconds += seconds
        info = StepInfo(
            step=self.state.step,
            total_steps=self._total_steps(),
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
            flops=self.state.flops,
        )
        self._notify("on_step", info)

    def _accumulate(self, group: Sequence[tuple[int, ...]], pieces: int) -> Accumulated:
        """The sums of a step over all ranks."""
        total: Accumulated | None = None
        for part in self.ranks.deal(map(self._batch, group), len(group), pieces):
            # Cut already where the ranks have to keep step.
            cut = pieces if part.weight is None else 1
            total = self._engine.add(part.batch, total, pieces=cut, weight=part.weight)
        return self.ranks.reduce(total, self.model.trainable_parameters(), is_sharded)

    def _batch(self, indices: tuple[int, ...]) -> Any:
        batch = self.plan.batch(indices)
        self.state.flops += self.flops(batch) if self.flops else 0.0
        return batch

    def _learning_rate(self) -> float:
        """Of the step whose operations are counted already."""
        if self.config.max_flops is None:
            return learning_rate(self.state.step, self._total_steps(), self.config)
        done = self.state.flops / self.config.max_flops
        if self.plan.total_steps is not None:
            done = max(done, (self.state.step + 1) / self.plan.total_steps)
        return learning_rate_at(done, self.state.step, self.config)

    def _total_steps(self) -> int:
        """Steps of the whole run, estimated from the past ones where FLOPs end it."""
        total, most = self.plan.total_steps, self.config.max_flops
        if most is None or self.flops is None:
            assert total is not None
            return total
        state = self.state
        each = state.flops / state.step if state.step else self._first_flops()
        wanted = max(state.step, math.ceil(most / each))
        return wanted if total is None else min(wanted, total)

    def _first_flops(self) -> float:
        assert self.flops is not None
        group = next(self.plan.steps(0, 0))
        return sum(self.flops(self.plan.batch(indices)) for indices in group)

    def _apply(self, total: Accumulated, lr: float) -> float:
        """Update the parameters; returns the norm, NaN when the step was skipped."""
        gradients, norm = clipped_mean(
            total, self.config.clip_norm, partial(sharded_norm, ranks=self.ranks)
        )
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
        # A finished run whose end was put off goes on.
        state.finished = False
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
        epoch_done = self.state.batch >= len(self.plan.batches(self.state.epoch))
        every = self.config.eval_every
        if epoch_done:
            self._end_epoch()
        due = epoch_done if every is None else self.state.step % every == 0
        if due or self._done():
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
        loss = mean_loss(self.model, self._engine, self.valid, self.ranks)
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
        self.saves.save_best(self._best, self.state.step)

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
        path = self.saves.save(self.model, self.optimizer, self.state)
        self._notify("on_save", SaveInfo(self.state.step, path, time.perf_counter() - start))

    def _info(self, streams: int) -> RunInfo:
        return RunInfo(
            total_steps=self._total_steps(),
            step=self.state.step,
            rows=self.plan.source.rows,
            targets=self.plan.source.target_count,
            streams=streams,
            trainable=trainable_count(self.model, self.ranks),
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
