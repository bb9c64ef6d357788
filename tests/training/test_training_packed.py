"""The trainer on packed rows: the loss, budgets of FLOPs, and runs that go on where they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from packed_models import byte_model, count_flops, packed
from training_models import arrays, buckets, distance, same

from mlx_companion.errors import ConfigError, Stopped
from mlx_companion.training import Callback, MetricsLog, StepInfo, TrainConfig, Trainer
from mlx_companion.training.gradients import GradientEngine
from mlx_companion.training.packed_loss import PackedLoss
from mlx_companion.training.plan import Plan
from mlx_companion.training.schedule import decay
from mlx_companion.training.state import RunInfo, TrainState


class Record(Callback):
    def __init__(self) -> None:
        self.steps: list[StepInfo] = []
        self.runs: list[RunInfo] = []
        self.evals: list[float] = []

    def on_start(self, run: RunInfo) -> None:
        self.runs.append(run)

    def on_step(self, step: StepInfo) -> None:
        self.steps.append(step)

    def on_eval(self, step: int, loss: float) -> None:
        self.evals.append(loss)


class StopAfter:
    """A switch that is thrown at the n-th look."""

    def __init__(self, looks: int) -> None:
        self.left = looks

    def check(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Stopped("enough")


def reference(model: nn.Module, batch: Any) -> mx.array:
    losses = nn.losses.cross_entropy(model(batch.ids, batch.documents), batch.targets)
    return (losses * batch.mask).sum()


def test_gradients_of_packed_rows_on_two_streams() -> None:
    rows = packed(batch_rows=12)
    batch = rows.batch(rows.epoch(0)[0])
    assert batch.documents is not None
    model = byte_model()
    streams = [mx.default_stream(mx.default_device()), mx.new_stream(mx.default_device())]
    found = GradientEngine(model, PackedLoss(), streams).add(batch)
    loss, slopes = nn.value_and_grad(model, reference)(model, batch)
    assert found.loss == pytest.approx(float(loss), rel=1e-5)
    assert found.targets == float(batch.mask.sum())
    assert distance(found.gradients, slopes) < 1e-5


def test_a_run_learns_and_reports_what_it_saw() -> None:
    record, rows, held_out = Record(), packed(), packed(shuffle=False)
    config = TrainConfig(epochs=40, lr=2e-2)
    trainer = Trainer(
        byte_model(), rows, valid=held_out, loss=PackedLoss(), config=config, callbacks=[record]
    )
    summary = trainer.run()
    assert summary.valid_before is not None
    assert summary.valid_best is not None
    assert summary.valid_best < 0.6 * summary.valid_before
    assert summary.steps == 40 * len(rows.epoch(0))
    assert summary.tokens == 40 * rows.rows * 24
    assert summary.padding == 0
    assert (record.runs[0].rows, record.runs[0].targets) == (rows.rows, rows.target_count)
    first = [s.targets for s in record.steps if s.epoch == 0]
    assert sum(first) == rows.target_count
    assert summary.flops == 0
    # The held-out loss counts every byte of the text once.
    model = byte_model()
    batches = [held_out.batch(indices) for indices in held_out.epoch(0)]
    total = sum(float(reference(model, batch)) for batch in batches)
    count = sum(int(batch.mask.sum()) for batch in batches)
    assert count == held_out.text.bytes
    assert record.evals[0] == pytest.approx(total / count, rel=1e-5)


def test_a_budget_of_flops(tmp_path: Path) -> None:
    record = Record()
    log = MetricsLog(tmp_path / "metrics.jsonl")
    options: dict[str, Any] = {"max_flops": 3e6, "epochs": 1, "warmup_ratio": 0.2}
    config = TrainConfig(schedule="linear", final_lr_ratio=0.0, lr=1e-2, **options)
    trainer = Trainer(
        byte_model(),
        packed(),
        loss=PackedLoss(),
        config=config,
        callbacks=[record, log],
        flops=count_flops,
    )
    summary = trainer.run()
    # The budget is met with the step that passes it, and epochs do not end the run.
    assert record.steps[-2].flops < 3e6 <= summary.flops == record.steps[-1].flops
    assert summary.flops == 1000 * sum(step.slots for step in record.steps)
    assert record.steps[-1].epoch > 1
    for step in record.steps:
        done = step.flops / 3e6
        falling = decay((done - 0.2) / 0.8, config)
        assert step.lr == pytest.approx(1e-2 * (done / 0.2 if done < 0.2 else falling), abs=1e-12)
    assert record.steps[-1].lr == 0
    assert record.runs[0].total_steps == summary.steps
    assert record.steps[-1].total_steps == summary.steps
    logged = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [line["flops"] for line in logged if line["event"] == "step"] == [
        step.flops for step in record.steps
    ]


def test_steps_bound_a_budget_too() -> None:
    record = Record()
    config = TrainConfig(max_flops=1e12, max_steps=3, schedule="linear", warmup_ratio=0.0)
    trainer = Trainer(
        byte_model(),
        packed(),
        loss=PackedLoss(),
        config=config,
        callbacks=[record],
        flops=count_flops,
    )
    assert trainer.run().steps == 3
    assert record.runs[0].total_steps == 3
    assert record.steps[-1].lr == pytest.approx(0.1 * config.lr)


def test_a_budget_needs_a_count() -> None:
    with pytest.raises(ConfigError, match="give the trainer `flops`"):
        Trainer(byte_model(), packed(), config=TrainConfig(max_flops=1e6))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_stopped_run_goes_on_bit_for_bit(optimizer: Any, tmp_path: Path) -> None:
    def trainer(record: Record, stop: Any = None, folder: Path | None = None) -> Trainer:
        config = TrainConfig(
            optimizer=optimizer,
            lr=1e-2,
            lr_ratios={"*embed*": 0.5},
            schedule="trapezoid",
            max_flops=3e6,
            save_every=100,
        )
        options = {"stop": stop} if stop else {}
        return Trainer(
            byte_model(dropout=0.3),
            packed(),
            valid=packed(shuffle=False),
            loss=PackedLoss(),
            config=config,
            callbacks=[record],
            checkpoints=folder,
            flops=count_flops,
            **options,
        )

    whole, first, second = Record(), Record(), Record()
    expected = trainer(whole)
    expected.run()
    with pytest.raises(Stopped):
        trainer(first, StopAfter(11), tmp_path).run()
    resumed = trainer(second, None, tmp_path)
    resumed.run()
    assert second.runs[0].step == len(first.steps) == 11
    assert same(arrays(resumed.model), arrays(expected.model))
    figures = [
        [(s.step, s.loss, s.lr, s.norm, s.flops, s.total_steps, s.targets) for s in steps]
        for steps in (first.steps + second.steps, whole.steps)
    ]
    assert figures[0] == figures[1]


def test_a_finished_run_is_extended(tmp_path: Path) -> None:
    def run(record: Record, budget: float) -> Trainer:
        config = TrainConfig(schedule="trapezoid", max_flops=budget, lr=1e-2)
        trainer = Trainer(
            byte_model(),
            packed(),
            loss=PackedLoss(),
            config=config,
            callbacks=[record],
            checkpoints=tmp_path,
            flops=count_flops,
        )
        trainer.run()
        return trainer

    first, second, third = Record(), Record(), Record()
    run(first, 1e6)
    extended = run(second, 2e6)
    assert second.runs[0].step == len(first.steps)
    assert second.steps[0].lr == pytest.approx(1e-2)
    # What was added is kept: there is nothing left to do.
    assert same(arrays(run(third, 2e6).model), arrays(extended.model))
    assert third.steps == []


def test_progress_of_a_checkpoint_without_flops_is_read() -> None:
    values = TrainState(step=3).to_json()
    del values["flops"]
    assert TrainState.from_json(values) == TrainState(step=3)


def test_a_plan_stops_counting_where_steps_end() -> None:
    class Counted:
        asked = 0

        def epoch(self, number: int) -> list[tuple[int, ...]]:
            self.asked += 1
            return [(0,), (1,), (2,)]

    source: Any = Counted()
    plan = Plan(source, TrainConfig(epochs=10**9, max_steps=5, accumulate=2))
    assert plan.total_steps == 5
    assert source.asked == 3
    assert plan.batches(2) is plan.batches(2)


def test_buckets_are_a_source_too() -> None:
    data = buckets(10)
    assert data.rows == 10
    assert data.target_count == sum(row.target_count for row in data.encoded)
    for indices in data.epoch(0):
        batch = data.batch(indices)
        assert data.slots(indices) == batch.tokens.size
        assert data.tokens(indices) == int(batch.lengths.sum())


def test_parameters_of_the_model_are_all_trained() -> None:
    model = byte_model()
    before = dict(tree_flatten(model.parameters()))
    config = TrainConfig(max_steps=2, optimizer="muon")
    Trainer(model, packed(), loss=PackedLoss(), config=config).run()
    after = dict(tree_flatten(model.parameters()))
    assert all(float(mx.abs(after[name] - before[name]).max()) > 0 for name in before)
