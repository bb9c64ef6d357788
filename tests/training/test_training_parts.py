"""The trainer's parts: schedule, split batches, norms, streams, random states, callbacks."""

from __future__ import annotations

import io
import json
import math
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from training_models import adapted, arrays, buckets, distance, rows, same

from mlx_companion.errors import DiskFullError, TrainingError
from mlx_companion.runtime.monitor import Advice
from mlx_companion.text import collate
from mlx_companion.training import MetricsLog, RichProgress, TrainConfig, Trainer, sft_loss
from mlx_companion.training.gradients import (
    Accumulated,
    GradientEngine,
    clipped_mean,
    global_norm,
    split_rows,
)
from mlx_companion.training.recompute import recompute_layers
from mlx_companion.training.rng import (
    export_random_states,
    get_random_state,
    restore_random_states,
    set_random_state,
)
from mlx_companion.training.schedule import learning_rate, warmup_steps
from mlx_companion.training.state import RunInfo, StepInfo, TrainState
from mlx_companion.training.streams import parallel_streams


def rates(total: int, **settings: Any) -> list[float]:
    config = TrainConfig(lr=1e-3, **settings)
    return [learning_rate(step, total, config) for step in range(total)]


def test_cosine_with_warmup() -> None:
    got = rates(101, warmup_steps=20, final_lr_ratio=0.1)
    np.testing.assert_allclose(got[:21], [1e-3 * (n + 1) / 21 for n in range(21)])
    assert got[20] == pytest.approx(1e-3)
    assert got[60] == pytest.approx(0.55e-3)
    assert got[100] == pytest.approx(1e-4)
    assert all(a > b for a, b in pairwise(got[20:]))


def test_linear_and_constant() -> None:
    got = rates(11, warmup_steps=0, schedule="linear", final_lr_ratio=0.0)
    np.testing.assert_allclose(got, np.linspace(1e-3, 0, 11), atol=1e-12)
    assert rates(3, warmup_steps=1, schedule="constant") == [0.5e-3, 1e-3, 1e-3]


@given(total=st.integers(1, 300), ratio=st.floats(0, 1), kind=st.sampled_from(["cosine", "linear"]))
def test_rates_stay_in_range(total: int, ratio: float, kind: Any) -> None:
    got = rates(total, warmup_ratio=ratio, schedule=kind)
    assert 0 < min(got) <= max(got) <= 1e-3 * (1 + 1e-9)
    assert 0 <= warmup_steps(total, TrainConfig(warmup_ratio=ratio)) < max(total, 1)


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 50])
def test_split_rows_loses_nothing(parts: int) -> None:
    encoded = rows(7)
    pieces = split_rows(collate(encoded, range(7)), parts)
    assert len(pieces) == min(parts, 7)
    assert sorted(i for piece in pieces for i in piece.indices) == list(range(7))
    for piece in pieces:
        expected = collate(encoded, piece.indices)
        assert piece.tokens.tolist() == expected.tokens.tolist()
        assert piece.targets.tolist() == expected.targets.tolist()
        assert piece.lengths.tolist() == expected.lengths.tolist()


def test_norm_and_clipping() -> None:
    gradients = {"a": mx.array([3.0, 0.0]), "b": [mx.array([[4.0]])]}
    assert global_norm(gradients).item() == pytest.approx(5.0)
    total = Accumulated(1.0, 2.0, gradients)
    clipped, norm = clipped_mean(total, 1.0)
    assert norm == pytest.approx(2.5)
    assert global_norm(clipped).item() == pytest.approx(1.0)
    assert clipped["a"][0].item() == pytest.approx(0.6)
    unclipped, _ = clipped_mean(total, 10.0)
    assert global_norm(unclipped).item() == pytest.approx(2.5)
    assert global_norm(clipped_mean(total, None)[0]).item() == pytest.approx(2.5)


def test_micro_batches_add_up_to_one_batch() -> None:
    model = adapted()
    model.train()
    encoded = rows(9)
    engine = GradientEngine(model, sft_loss, [mx.default_stream(mx.default_device())])
    whole = engine.add(collate(encoded, range(9)))
    total = None
    for indices in ([0], [1, 2, 3, 4, 5], [6, 7, 8]):
        total = engine.add(collate(encoded, indices), total)
    assert total is not None
    assert total.targets == whole.targets == sum(row.target_count for row in encoded)
    assert total.loss == pytest.approx(whole.loss, rel=1e-5)
    assert distance(total.gradients, whole.gradients) < 1e-4


def test_streams_side_by_side_give_the_same() -> None:
    model = adapted()
    model.train()
    batch = collate(rows(8, prefix=20), range(8))
    with parallel_streams(1) as one, parallel_streams(3) as three:
        assert (len(one), len(three)) == (1, 3)
        single = GradientEngine(model, sft_loss, one).add(batch)
        several = GradientEngine(model, sft_loss, three)
        got = several.add(batch)
        assert distance(got.gradients, single.gradients) < 1e-4
        assert same(flat(got.gradients), flat(several.add(batch).gradients))
        model.eval()
        loss, count = several.evaluate(batch)
    assert (loss, count) == (pytest.approx(single.loss, rel=1e-5), single.targets)


def flat(tree: Any) -> dict[str, mx.array]:
    from mlx.utils import tree_flatten

    return dict(tree_flatten(tree))


def test_a_run_on_two_streams_repeats_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "mlx_companion.training.trainer.parallel_streams", lambda: parallel_streams(2)
    )
    results = []
    for _ in range(2):
        model = adapted(dropout=0.2)
        Trainer(model, buckets(), config=TrainConfig(max_steps=4, lr=1e-2)).run()
        results.append(arrays(model))
    assert same(*results)


def test_random_states_come_back() -> None:
    mx.random.seed(5)
    np.random.seed(6)
    mx.random.normal((3,))
    states = json.loads(json.dumps(export_random_states()))
    expected = mx.random.normal((4,)).tolist(), np.random.rand(4).tolist()
    set_random_state(0)
    restore_random_states(states)
    assert (mx.random.normal((4,)).tolist(), np.random.rand(4).tolist()) == expected


def test_recomputed_layers_draw_the_same_dropout() -> None:
    model = adapted(dropout=0.5)
    model.train()
    batch = collate(rows(4), range(4))
    results = []
    for on in (False, True):
        set_random_state(7)
        with recompute_layers(model, on):
            value, gradients = nn.value_and_grad(model, sft_loss)(model, batch)
            mx.eval(value, gradients)
        results.append((flat(gradients), get_random_state()))
        assert type(model.layers[0]).__name__ == "TransformerBlock"
    assert same(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


def test_recomputing_needs_a_list_of_layers() -> None:
    with pytest.raises(TrainingError, match="gradient_checkpointing"), recompute_layers(nn.ReLU()):
        pass


def step(number: int, **changes: Any) -> StepInfo:
    values: dict[str, Any] = {
        "step": number,
        "total_steps": 9,
        "epoch": 0,
        "loss": 2.0,
        "lr": 1e-3,
        "norm": 1.0,
        "targets": 10,
        "tokens": 30,
        "slots": 40,
        "seconds": 0.5,
        "skipped": False,
        "peak_mb": 123.0,
    }
    return StepInfo(**(values | changes))


def run_info(start: int) -> RunInfo:
    return RunInfo(total_steps=9, step=start, rows=4, targets=5, streams=1, trainable=100)


def test_the_metrics_file_goes_back_with_the_run(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.on_start(run_info(0))
    log.on_eval(0, 3.0)
    for number in (1, 2, 3):
        log.on_step(step(number, loss=math.nan if number == 2 else 1.0))
    with open(log.path, "a") as file:
        file.write('{"event": "step", "st')
    log.on_start(run_info(2))
    log.on_step(step(3, loss=0.5))
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [(line["event"], line["step"]) for line in lines] == [
        ("eval", 0),
        ("step", 1),
        ("step", 2),
        ("step", 3),
    ]
    assert [line["loss"] for line in lines] == [3.0, 1.0, None, 0.5]
    log.on_start(run_info(0))
    assert log.path.read_text() == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_said(tmp_path: Path) -> None:
    log = MetricsLog("/dev/full")
    with pytest.raises(DiskFullError, match="last checkpoint"):
        log.on_step(step(1))


@pytest.mark.parametrize("terminal", [False, True])
def test_the_progress_says_the_figures(terminal: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=160)
    progress = RichProgress(console)
    progress.on_start(run_info(2))
    progress.on_step(step(3))
    progress.on_advice(Advice(0.5, "battery at 12 %"))
    progress.on_eval(3, 1.25)
    progress.on_close()
    text = out.getvalue()
    for expected in (
        "going on from step 2",
        "loss 2.000",
        "lr 1.0e-03",
        "20 targets/s",
        "padding 25%",
        "123 MB",
        "battery at 12 %",
        "held-out loss 1.2500 nats per token",
    ):
        assert expected in text


def test_the_state_survives_json() -> None:
    state = TrainState(step=3, epoch_loss=1 / 3, valid_best=0.1)
    assert TrainState.from_json(json.loads(json.dumps(state.to_json()))) == state


class FakeBlas:
    """An OpenBLAS as far as the streams look into it."""

    def __init__(self, kind: int, openmp: int = 4) -> None:
        self.kind, self.openmp, self.threads = kind, openmp, 4

    def openblas_get_parallel(self) -> int:
        return self.kind

    def openblas_get_num_threads(self) -> int:
        return self.threads

    def openblas_set_num_threads(self, threads: int) -> None:
        self.threads = threads

    def omp_get_max_threads(self) -> int:
        return self.openmp


@pytest.mark.skipif(
    mx.default_device().type != mx.DeviceType.cpu or sys.platform == "darwin",
    reason="streams side by side are for Linux CPUs",
)
@pytest.mark.parametrize(
    ("blas", "streams", "threads"),
    [
        (FakeBlas(1), 2, 1),
        (FakeBlas(2, openmp=1), 2, 4),
        (FakeBlas(2, openmp=2), 1, 4),
        (object(), 1, None),
    ],
    ids=["pthreads", "openmp-one-thread", "openmp-more", "another-blas"],
)
def test_streams_only_where_the_blas_does_not_compete(
    blas: Any, streams: int, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_companion.training.streams.ctypes.CDLL", lambda name: blas)
    monkeypatch.setattr("mlx_companion.training.streams.available_cores", lambda: 2)
    with parallel_streams() as found:
        assert len(found) == streams
        assert getattr(blas, "threads", None) == threads
    assert getattr(blas, "threads", 4) == 4
