"""Levels as people write them, and spending a budget of bits."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_companion.errors import ConfigError
from mlx_companion.quant.levels import LEVELS, Packing, fitting, parse_level
from mlx_companion.quant.quantize_budget import Option, spend, useful


@st.composite
def problems(draw: st.DrawFn) -> tuple[dict[str, list[Option]], int]:
    options = {}
    for name in "abcd"[: draw(st.integers(1, 4))]:
        sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=4, unique=True))
        losses = draw(st.lists(st.floats(0, 10), min_size=len(sizes), max_size=len(sizes)))
        options[name] = [Option(None, s, round(x, 3)) for s, x in zip(sizes, losses, strict=True)]
    least = sum(min(o.bits for o in own) for own in options.values())
    return options, least + draw(st.integers(0, 80))


@settings(max_examples=150, deadline=None)
@given(problems())
def test_no_other_choice_is_better(problem: tuple[dict[str, list[Option]], int]) -> None:
    options, budget = problem
    chosen = spend(options, budget)
    assert list(chosen) == list(options)
    assert sum(o.bits for o in chosen.values()) <= budget
    possible = itertools.product(*options.values())
    best = min(sum(o.loss for o in c) for c in possible if sum(o.bits for o in c) <= budget)
    assert sum(o.loss for o in chosen.values()) == pytest.approx(best)


def test_large_budgets_are_used_well() -> None:
    """In units of a 20,000th, with 200 layers; what rounding leaves over is spent too."""
    own = [Option(Packing(b, 64), 1_000_003 * b, 2.0**-b) for b in (2, 3, 4, 5, 6, 8)]
    options = {f"layer {n}": [replace(o, loss=o.loss * (n + 1)) for o in own] for n in range(200)}
    budget = 200 * 4 * 1_000_003
    chosen = spend(options, budget)
    used = sum(o.bits for o in chosen.values())
    assert budget - 1_000_003 < used <= budget
    assert chosen["layer 199"].bits > chosen["layer 0"].bits


def test_a_layer_that_loses_nothing_is_left_at_that() -> None:
    free = [Option(Packing(4, 32), 5, 0.0), Option(Packing(3, 32), 4, 0.3), Option(None, 16, 0.0)]
    other = [Option(Packing(b, 32), b + 1, 1.0 / b) for b in (2, 3, 4, 5, 6, 8)]
    chosen = spend({"free": free, "other": other}, 14)
    assert (chosen["free"].bits, chosen["other"].bits) == (5, 9)


def test_options_that_are_beaten_are_left_out() -> None:
    kept = useful([Option(None, 5, 0.5), Option(None, 4, 0.4), Option(None, 6, 0.1)])
    assert [o.bits for o in kept] == [4, 6]


def test_too_small_a_budget_is_an_error() -> None:
    with pytest.raises(ConfigError, match="too small"):
        spend({"a": [Option(None, 10, 0.0)]}, 9)


def test_every_level_is_known() -> None:
    for name in LEVELS:
        level = parse_level(name)
        assert level.plain == (name == "f16")
    assert parse_level("q4").packing == Packing(4, 64)
    assert parse_level("Q4", 32).packing == Packing(4, 32)
    assert parse_level("nvfp4").packing == Packing(4, 16, "nvfp4")
    assert parse_level(" 4.5bpw ").budget == 4.5


@pytest.mark.parametrize(
    ("text", "size", "told"),
    [
        ("q7", None, "expected one of"),
        ("", None, "expected one of"),
        ("4.5", None, "4.5bpw"),
        ("1.5bpw", None, "more than 2"),
        ("99bpw", None, "at most 16"),
        ("q4", 48, "32, 64 or 128"),
        ("mxfp4", 64, "leave the group size out"),
    ],
)
def test_other_levels_are_errors(text: str, size: int | None, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_level(text, size)


def test_groups_become_smaller_where_a_width_needs_it() -> None:
    assert fitting(Packing(4, 128), 576) == Packing(4, 64)
    assert fitting(Packing(4, 64), 96) == Packing(4, 32)
    assert fitting(Packing(4, 64), 50) is None
    assert fitting(Packing(4, 32, "mxfp4"), 48) is None
    assert Packing(4, 64).bits_per_weight == 4.5
    assert Packing(4, 16, "nvfp4").bits_per_weight == 4.5
