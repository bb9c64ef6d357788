"""Schedules against MLX's own, against formulas in NumPy, and for what holds of all of them."""

from __future__ import annotations

from pathlib import Path

import mlx_companion  # noqa: F401  (loads a fast BLAS before MLX)

import mlx.optimizers as optim  # isort: skip
import numpy as np  # isort: skip
import pytest  # isort: skip
from hypothesis import given  # isort: skip
from hypothesis import strategies as st  # isort: skip

from mlx_companion.errors import ConfigError  # isort: skip
from mlx_companion.runtime.config import load_config, to_dict  # isort: skip
from mlx_companion.training.config import Phase, TrainConfig  # isort: skip
from mlx_companion.training.schedule import curve, learning_rate_at  # isort: skip

PHASES = (Phase(1.0), Phase(2.0, 1.0, 0.1, "cosine"), Phase(1.0, 0.1, 0.1, "constant"))
KINDS = (
    "constant",
    "linear",
    "cosine",
    "trapezoid",
    "onecycle",
    "polynomial",
    "cyclic",
    "chained",
)


def of(kind: str, **settings: object) -> TrainConfig:
    phases = PHASES if kind == "chained" else ()
    return TrainConfig(**{"lr": 1e-2, "schedule": kind, "phases": phases, **settings})


def flat(kind: str, **settings: object) -> TrainConfig:
    """Without a warm-up, falling to 0."""
    return of(kind, **{"warmup_steps": 0, "final_lr_ratio": 0.0, **settings})


def test_cosine_and_linear_are_those_of_mlx() -> None:
    cosine = optim.cosine_decay(1e-2, 40, 1e-3)
    got = curve(41, flat("cosine", final_lr_ratio=0.1))
    np.testing.assert_allclose(got, [float(cosine(i)) for i in range(41)], rtol=1e-5)
    linear = optim.linear_schedule(1e-2, 0.0, 40)
    np.testing.assert_allclose(
        curve(41, flat("linear")), [float(linear(i)) for i in range(41)], atol=1e-8
    )


def test_chained_phases_are_mlx_schedules_joined() -> None:
    phases = (Phase(20, 1.0, 1.0, "constant"), Phase(60, 1.0, 0.2), Phase(20, 0.2, 0.05, "cosine"))
    joined = optim.join_schedules(
        [
            lambda step: 1e-2,
            optim.linear_schedule(1e-2, 2e-3, 60),
            optim.cosine_decay(2e-3, 20, 5e-4),
        ],
        [20, 80],
    )
    got = curve(101, flat("chained", phases=phases))
    np.testing.assert_allclose(got, [float(joined(i)) for i in range(101)], rtol=1e-5)


def test_polynomial_exponential_cyclic_and_restarts_by_formula() -> None:
    t = np.linspace(0, 1, 101)
    np.testing.assert_allclose(curve(101, flat("polynomial", power=3)), 1e-2 * (1 - t) ** 3)
    exponential = flat("chained", phases=(Phase(1, 1.0, 0.01, "exponential"),))
    np.testing.assert_allclose(curve(101, exponential), 1e-2 * 0.01**t, rtol=1e-12)
    triangles = np.interp(t, [0, 0.25, 0.5, 0.75, 1], [1, 0, 1, 0, 1])
    np.testing.assert_allclose(curve(101, flat("cyclic", cycles=2)), 1e-2 * triangles, atol=1e-12)
    restarts = curve(101, flat("cosine", cycles=4))
    assert [i for i in range(1, 101) if restarts[i] > restarts[i - 1]] == [25, 50, 75]
    assert restarts[25] == pytest.approx(1e-2)
    assert restarts[-1] == pytest.approx(0, abs=1e-12)


def test_one_cycle_rises_and_falls_by_half_cosines() -> None:
    """The curve of Smith & Topin as PyTorch draws it: two half cosines that meet at the peak."""
    config = of("onecycle", warmup_steps=29, initial_lr_ratio=0.04, final_lr_ratio=1e-4)
    got = np.array(curve(100, config))
    peak = int(got.argmax())
    assert peak == 29
    assert got[peak] == pytest.approx(1e-2)
    up = np.arange(1, 31) / 30
    np.testing.assert_allclose(
        got[:30], 1e-2 * (0.04 + 0.96 * (1 - np.cos(np.pi * up)) / 2), rtol=1e-9
    )
    down = np.arange(71) / 70
    np.testing.assert_allclose(
        got[29:], 1e-2 * (1e-4 + (1 - 1e-4) * (1 + np.cos(np.pi * down)) / 2), rtol=1e-9
    )


@given(
    kind=st.sampled_from(KINDS),
    total=st.integers(1, 300),
    warmup=st.floats(0, 1),
    final=st.floats(0, 1),
    initial=st.floats(0, 1),
    cycles=st.integers(1, 5),
)
def test_a_learning_rate_is_never_negative_nor_over_the_peak(
    kind: str, total: int, warmup: float, final: float, initial: float, cycles: int
) -> None:
    config = of(
        kind,
        warmup_ratio=warmup,
        final_lr_ratio=final,
        initial_lr_ratio=initial,
        cycles=cycles,
    )
    rates = np.array(curve(total, config))
    assert rates.shape == (total,)
    assert (rates >= 0).all()
    assert (rates <= 1e-2 * (1 + 1e-12)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_flops_end_follows_the_same_curve(kind: str) -> None:
    config = of(kind, warmup_ratio=0.1, cycles=2)
    steps = np.array(curve(2000, config))
    progress = np.arange(2000) / 1999
    by_flops = np.array([learning_rate_at(p, i, config) for i, p in enumerate(progress)])
    # The two count warm-ups by a step apart; where the curve jumps that shows in a few steps.
    assert (np.abs(steps - by_flops) > 2e-4).mean() < 0.005


def test_phases_come_from_a_file_and_go_back(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(
        "schedule: chained\n"
        "phases:\n"
        "- {share: 1}\n"
        "- {share: 3, start: 1, end: 0.1, shape: cosine}\n"
    )
    config = load_config(TrainConfig, path)
    assert config.phases == (Phase(1.0), Phase(3.0, 1.0, 0.1, "cosine"))
    assert load_config(TrainConfig, overrides=to_dict(config)) == config


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"schedule": "chained"}, "phases"),
        ({"phases": PHASES}, "phases"),
        ({"power": 0.0}, "power"),
        ({"cycles": 0}, "cycles"),
        ({"initial_lr_ratio": 1.5}, "initial_lr_ratio"),
        ({"schedule": "step"}, "schedule"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        TrainConfig(**settings)


@pytest.mark.parametrize(
    "phase",
    [{"share": 0}, {"share": 1, "start": -1}, {"share": 1, "end": 0, "shape": "exponential"}],
)
def test_phases_that_cannot_be_are_refused(phase: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="phase"):
        Phase(**phase)
