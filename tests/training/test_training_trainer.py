"""The trainer: what a step computes, when it evaluates, keeps, skips, stops."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.optimizers import AdamW
from mlx.utils import tree_map
from training_models import adapted, arrays, buckets, distance, llama, same

from mlx_companion.errors import CheckpointError, ConfigError, Stopped, TrainingError
from mlx_companion.runtime.monitor import Battery, ResourceLimits, ResourceMonitor
from mlx_companion.runtime.stop import StopSwitch
from mlx_companion.text import Encoded, LengthBuckets
from mlx_companion.training import (
    Callback,
    RunInfo,
    SaveInfo,
    StepInfo,
    TrainConfig,
    Trainer,
)
from mlx_companion.training.schedule import learning_rate


class Record(Callback):
    """Keeps what it is told; can throw the kill switch after some step."""

    def __init__(self, stop: StopSwitch | None = None, at: int = 0) -> None:
        self.runs: list[RunInfo] = []
        self.steps: list[StepInfo] = []
        self.evals: list[tuple[int, float]] = []
        self.saves: list[SaveInfo] = []
        self.closed = 0
        self.stop, self.at = stop, at

    def on_start(self, run: RunInfo) -> None:
        self.runs.append(run)

    def on_step(self, step: StepInfo) -> None:
        self.steps.append(step)
        if self.stop is not None and step.step == self.at:
            self.stop.request("the test says so")

    def on_eval(self, step: int, loss: float) -> None:
        self.evals.append((step, loss))

    def on_save(self, save: SaveInfo) -> None:
        self.saves.append(save)

    def on_close(self) -> None:
        self.closed += 1


def reference_loss(model: nn.Module, tokens: mx.array, targets: mx.array) -> mx.array:
    """Sum over targets, from all logits."""
    losses = nn.losses.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:])
    return (losses * targets[:, 1:]).sum()


def test_a_run_is_adamw_on_the_mean_over_all_targets_of_a_step() -> None:
    config = TrainConfig(epochs=2, accumulate=3, lr=1e-2, clip_norm=0.05, weight_decay=0.1)
    data = buckets(14)
    record = Record()
    ours = adapted()
    Trainer(ours, data, config=config, callbacks=[record]).run()

    model = adapted()
    total = record.runs[0].total_steps
    optimizer = AdamW(1.0, weight_decay=0.1, bias_correction=True)
    losses, norms = [], []
    for epoch in range(2):
        batches = list(data.batches(epoch))
        for at in range(0, len(batches), 3):
            group = batches[at : at + 3]
            count = sum(int(batch.targets.sum()) for batch in group)

            def mean(model: nn.Module, group: list = group, count: int = count) -> mx.array:
                return sum(reference_loss(model, b.tokens, b.targets) for b in group) / count

            loss, gradients = nn.value_and_grad(model, mean)(model)
            norm = math.sqrt(sum(float((g**2).sum()) for g in flat(gradients)))
            losses.append(float(loss))
            norms.append(norm)
            factor = min(1.0, 0.05 / norm)
            gradients = tree_map(lambda g, f=factor: g * f, gradients)
            optimizer.learning_rate = learning_rate(len(losses) - 1, total, config)
            optimizer.update(model, gradients)
    assert len(losses) == total == len(record.steps)
    # The last step of an epoch holds fewer micro-batches, or this test shows less.
    assert len(list(data.batches(0))) % 3 != 0
    np.testing.assert_allclose([s.loss for s in record.steps], losses, rtol=1e-4)
    np.testing.assert_allclose([s.norm for s in record.steps], norms, rtol=1e-3)
    assert max(norms) > 0.05
    assert distance(arrays(ours), arrays(model)) < 1e-3


def flat(tree: Any) -> list[mx.array]:
    from mlx.utils import tree_flatten

    return [value for _, value in tree_flatten(tree)]


def test_training_lowers_the_loss_and_every_row_is_seen() -> None:
    record = Record()
    data = buckets(10)
    config = TrainConfig(epochs=30, lr=5e-2)
    summary = Trainer(adapted(zero=True), data, config=config, callbacks=[record]).run()
    assert summary.train_loss is not None
    assert summary.train_loss < 0.85 * record.steps[0].loss
    assert summary.targets == 30 * sum(row.target_count for row in data.encoded)
    assert summary.tokens == 30 * sum(len(row.tokens) for row in data.encoded)
    assert summary.epochs == 30
    last = [s for s in record.steps if s.epoch == 29]
    mean = sum(s.loss * s.targets for s in last) / sum(s.targets for s in last)
    assert summary.train_loss == pytest.approx(mean)
    assert 0 < summary.padding < 0.5


def test_nothing_to_train_is_refused() -> None:
    model = llama()
    model.freeze()
    with pytest.raises(TrainingError, match="attach an adapter first"):
        Trainer(model, buckets())


def test_max_steps_and_the_number_of_steps() -> None:
    record = Record()
    config = TrainConfig(epochs=5, max_steps=3)
    summary = Trainer(adapted(), buckets(), config=config, callbacks=[record]).run()
    assert summary.steps == 3 == len(record.steps) == record.runs[0].total_steps
    assert record.closed == 1


def test_held_out_loss_before_after_and_best() -> None:
    record = Record()
    config = TrainConfig(epochs=3, lr=1e-2)
    data, valid = buckets(), buckets(seed=1)
    model = adapted(zero=True)
    summary = Trainer(model, data, valid=valid, config=config, callbacks=[record]).run()
    assert [step for step, _ in record.evals] == [0, *(steps_after(data, n) for n in (1, 2, 3))]

    def held_out(model: nn.Module) -> float:
        loss = sum(float(reference_loss(model, b.tokens, b.targets)) for b in valid.batches(0))
        return loss / sum(row.target_count for row in valid.encoded)

    assert summary.valid_before == pytest.approx(held_out(adapted(zero=True)), rel=1e-4)
    assert summary.valid_after == pytest.approx(held_out(model), rel=1e-4)
    assert summary.valid_best == min(loss for _, loss in record.evals)
    assert not model.training


def steps_after(data: Any, epochs: int) -> int:
    return sum(len(data.epoch(n)) for n in range(epochs))


class Scripted:
    """A loss that is the real one in training and a given number in evaluation."""

    def __init__(self, values: list[float]) -> None:
        self.values = iter(values)
        self.current = 0.0

    def __call__(self, model: nn.Module, batch: Any) -> tuple[mx.array, mx.array]:
        count = batch.targets.sum().astype(mx.float32)
        if model.training:
            return reference_loss(model, batch.tokens, batch.targets), count
        return mx.array(next(self.values)) * count, count


def scripted(values: list[float], **settings: Any) -> tuple[Any, Record, nn.Module]:
    record, model = Record(), adapted()
    config = TrainConfig(eval_every=1, epochs=1, **settings)
    # One held-out row, which is never split over streams, so that one value is one evaluation.
    trainer = Trainer(
        model,
        buckets(24),
        valid=buckets(1),
        loss=Scripted(values),
        config=config,
        callbacks=[record],
    )
    return trainer.run(), record, model


def test_the_best_weights_come_back() -> None:
    values = [3.0, 2.0, 2.5, 2.6, 2.7]
    summary, _, model = scripted(values, max_steps=4)
    assert (summary.valid_best, summary.best_step, summary.valid_after) == (2.0, 1, 2.0)
    after_one = scripted(values, max_steps=1, warmup_steps=0, schedule="constant")
    first = scripted(values, max_steps=4, warmup_steps=0, schedule="constant")[2]
    assert same(arrays(first), arrays(after_one[2]))
    last, _, kept = scripted(values, max_steps=4, keep_best=False)
    assert last.valid_after == pytest.approx(2.7)
    assert not same(arrays(kept), arrays(model))


def test_patience_stops_early() -> None:
    summary, record, _ = scripted([3.0, 2.0, 1.95, 1.94, 1.0], patience=2, min_delta=0.1)
    assert summary.stopped_early
    assert summary.steps == 3
    assert [loss for _, loss in record.evals] == pytest.approx([3.0, 2.0, 1.95, 1.94])


class Broken:
    """A loss that is not finite in some steps."""

    def __init__(self, bad: set[int]) -> None:
        self.bad, self.calls = bad, 0

    def __call__(self, model: nn.Module, batch: Any) -> tuple[mx.array, mx.array]:
        self.calls += 1
        loss = reference_loss(model, batch.tokens, batch.targets)
        factor = mx.nan if self.calls in self.bad else 1.0
        return loss * factor, batch.targets.sum()


def broken(bad: set[int], **settings: Any) -> tuple[Any, Record, nn.Module]:
    record, model = Record(), adapted()
    config = TrainConfig(max_steps=5, epochs=9, **settings)
    # One row a batch: one call of the loss is one step.
    data = buckets(9, batch_tokens=8)
    trainer = Trainer(model, data, loss=Broken(bad), config=config, callbacks=[record])
    return trainer.run(), record, model


def test_steps_that_are_not_finite_are_skipped_and_counted() -> None:
    summary, record, model = broken({2, 4})
    assert summary.skipped == 2
    assert [s.skipped for s in record.steps] == [False, True, False, True, False]
    assert all(bool(mx.isfinite(value).all()) for value in arrays(model).values())
    assert summary.targets == sum(s.targets for s in record.steps if not s.skipped)


def test_too_many_of_them_in_a_row_end_the_run() -> None:
    with pytest.raises(TrainingError, match=r"3 steps in a row.*lower lr"):
        broken({2, 3, 4}, max_bad_steps=3)


def test_the_kill_switch_saves_and_the_next_run_goes_on(tmp_path: Path) -> None:
    config = TrainConfig(epochs=2, lr=1e-2, save_every=100)
    whole = adapted(dropout=0.2)
    steps = Record()
    Trainer(whole, buckets(), config=config, callbacks=[steps]).run()

    stop = StopSwitch()
    first, second = Record(stop, at=3), Record()
    model = adapted(dropout=0.2)
    with pytest.raises(Stopped, match="the test says so"):
        Trainer(
            model,
            buckets(),
            config=config,
            callbacks=[first],
            stop=stop,
            checkpoints=tmp_path,
        ).run()
    assert first.closed == 1
    assert [save.step for save in first.saves] == [3]
    model = adapted(dropout=0.2)
    mx.random.seed(999)
    Trainer(model, buckets(), config=config, callbacks=[second], checkpoints=tmp_path).run()
    assert second.runs[0].step == 3
    assert [s.loss for s in first.steps + second.steps] == [s.loss for s in steps.steps]
    assert same(arrays(model), arrays(whole))


def test_a_finished_run_trains_no_more(tmp_path: Path) -> None:
    config = TrainConfig(epochs=1)
    summary = Trainer(adapted(), buckets(), config=config, checkpoints=tmp_path).run()
    record, model = Record(), adapted()
    trainer = Trainer(model, buckets(), config=config, callbacks=[record], checkpoints=tmp_path)
    again = trainer.run()
    assert record.steps == []
    assert (again.steps, again.train_loss) == (summary.steps, summary.train_loss)


def test_another_run_is_refused_unless_started_over(tmp_path: Path) -> None:
    config = TrainConfig(max_steps=2)
    options: dict[str, Any] = {"config": config, "checkpoints": tmp_path}
    Trainer(adapted(), buckets(), run_hash="a", **options).run()
    with pytest.raises(CheckpointError, match=r"belongs to another run.*resume=False"):
        Trainer(adapted(), buckets(), run_hash="b", **options).run()
    assert Trainer(adapted(), buckets(), run_hash="b", **options).run(resume=False).steps == 2


def test_smaller_pieces_give_the_same_result() -> None:
    class Low:
        def battery(self) -> Battery:
            return Battery(10.0, False)

        def heat(self) -> None:
            return None

        def memory_mb(self) -> float:
            return 1.0

        def cpu_seconds(self) -> float:
            return 0.0

        def now(self) -> float:
            return 0.0

        def sleep(self, seconds: float) -> None:
            raise AssertionError

    class Advised(Record):
        def on_advice(self, advice: Any) -> None:
            self.advice = advice

    config = TrainConfig(epochs=1, lr=1e-2)
    plain, reduced = adapted(), adapted()
    Trainer(plain, buckets(), config=config).run()
    record = Advised()
    monitor = ResourceMonitor(ResourceLimits(on_battery="reduce"), probe=Low())
    trainer = Trainer(reduced, buckets(), config=config, monitor=monitor, callbacks=[record])
    trainer.run()
    assert record.advice.scale == 0.5
    assert distance(arrays(reduced), arrays(plain)) < 1e-3


def test_memory_stays_flat_with_uneven_lengths() -> None:
    class Memory(Callback):
        def __init__(self) -> None:
            self.peaks: list[int] = []
            self.active: list[int] = []

        def on_step(self, step: StepInfo) -> None:
            self.peaks.append(mx.get_peak_memory())
            self.active.append(mx.get_active_memory())
            mx.reset_peak_memory()

    config = TrainConfig(epochs=6)
    memory = Memory()
    data = buckets(40, longest=60, batch_tokens=200)
    Trainer(adapted(), data, config=config, callbacks=[memory]).run()
    third = len(memory.peaks) // 3
    assert max(memory.peaks[2 * third :]) < 1.1 * max(memory.peaks[:third])
    assert max(memory.active[2 * third :]) < 1.05 * max(memory.active[:third])


def test_gradient_checkpointing_lowers_the_peak() -> None:
    row = Encoded([i % 60 for i in range(200)], [False] * 180 + [True] * 20)

    def peak(on: bool) -> float:
        model = adapted(num_hidden_layers=12, hidden_size=64, intermediate_size=192)
        source = LengthBuckets([row] * 4, batch_tokens=800)
        config = TrainConfig(max_steps=1, gradient_checkpointing=on, share_prefix=False)
        trainer = Trainer(model, source, config=config)
        mx.clear_cache()
        held = mx.get_active_memory()
        mx.reset_peak_memory()
        trainer.run()
        return mx.get_peak_memory() - held

    assert peak(True) < 0.7 * peak(False)


def test_gradient_checkpointing_changes_no_bit() -> None:
    results = []
    for on in (False, True):
        model = adapted(dropout=0.3)
        config = TrainConfig(max_steps=4, gradient_checkpointing=on, share_prefix=False)
        Trainer(model, buckets(), config=config).run()
        results.append(arrays(model))
        assert type(model.layers[0]).__name__ == "TransformerBlock"
    assert same(*results)


def test_compiled_steps_give_the_same_result() -> None:
    results = []
    for on in (False, True):
        model = adapted(num_hidden_layers=1)
        config = TrainConfig(max_steps=1, lr=1e-2, compile=on)
        Trainer(model, buckets(4, prefix=20), config=config).run()
        results.append(arrays(model))
    assert distance(*results) < 1e-3


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"lr": 0.0},
        {"betas": (0.9,)},
        {"betas": (0.9, 1.0)},
        {"clip_norm": 0.0},
        {"schedule": "step"},
        {"max_tokens": 1},
        {"warmup_ratio": 1.5},
        {"patience": 0},
        {"keep_last": 0},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        TrainConfig(**wrong)
