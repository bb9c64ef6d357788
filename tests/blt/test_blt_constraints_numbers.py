"""Numbers within bounds, held against exact decimal arithmetic."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import blt_walks
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mlx_companion.blt.constraints import json_schema
from mlx_companion.errors import ConfigError

bounds = st.one_of(
    st.none(),
    st.integers(-(10**20), 10**20),
    st.integers(-30, 30),
    st.floats(-1e6, 1e6),
    st.sampled_from([0.1, 0.3, 1e-9, -2.5e-7, 1e17, 2.0**53, 123456.789]),
)
NAMES = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


def within(value: int | float | Decimal, schema: dict[str, Any]) -> bool:
    return (
        value >= schema.get("minimum", value)
        and value <= schema.get("maximum", value)
        and ("exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"])
        and ("exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"])
    )


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["integer", "number"]), st.tuples(*[bounds] * 4), st.integers(0, 2**32))
def test_what_is_written_lies_within_the_bounds(kind: str, limits: Any, seed: int) -> None:
    given_bounds = {k: v for k, v in zip(NAMES, limits, strict=True) if v is not None}
    schema = {"type": kind, **given_bounds}
    try:
        constraint = json_schema(schema)
    except ConfigError as error:
        assume("no finite text" not in str(error))
        raise
    chance = blt_walks.uniform(np.random.default_rng(seed))
    for choose in (chance, chance, blt_walks.lowest, blt_walks.highest):
        written = blt_walks.walk(constraint, choose, constraint.shortest + 30)
        value = json.loads(written)
        assert within(value, schema), (schema, written)
        assert isinstance(value, int) or (kind == "number" and np.isfinite(value))


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.none() | st.integers(-300, 300)] * 4), st.integers(-400, 400))
def test_every_integer_within_the_bounds_can_be_written(limits: Any, value: int) -> None:
    schema = {"type": "integer"}
    schema |= {k: v for k, v in zip(NAMES, limits, strict=True) if v is not None}
    everything = [v for v in range(-1000, 1001) if within(v, schema)]
    if not everything:
        with pytest.raises(ConfigError, match="no finite text"):
            json_schema(schema)
        return
    constraint = json_schema(schema)
    for near in range(value - 3, value + 4):
        assert constraint.accepts(str(near)) == within(near, schema)
    assert constraint.shortest == min(len(str(v)) for v in everything)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[st.none() | st.decimals(-20, 20, places=2)] * 2),
    st.decimals(-25, 25, places=3),
)
def test_every_short_decimal_within_the_bounds_can_be_written(limits: Any, value: Decimal) -> None:
    schema = {k: float(v) for k, v in zip(NAMES[:2], limits, strict=True) if v is not None}
    assume(len(schema) == 1 or (len(schema) == 2 and schema["minimum"] <= schema["maximum"]))
    constraint = json_schema({"type": "number", **schema})
    exact = {k: Decimal(repr(v)) for k, v in schema.items()}
    for text in (f"{value:.3f}", f"{value:.0f}", f"{value:.2f}"):
        if text.lstrip("-0.") or not text.startswith("-"):  # -0 is written as 0
            assert constraint.accepts(text) == within(Decimal(text), exact), text


@pytest.mark.parametrize("text", ["01", "-", "1.", ".5", "+1", "1e", "-0", "1e5", "0x1", "1_0", ""])
def test_what_is_no_integer_is_refused(text: str) -> None:
    assert not json_schema({"type": "integer"}).accepts(text)


@pytest.mark.parametrize("text", ["0", "-0", "1.50", "-1e5", "2E-07", "12.5e+9", "9" * 19])
def test_spellings_of_free_numbers(text: str) -> None:
    assert json_schema({"type": "number"}).accepts(text)


def test_numbers_have_a_last_digit() -> None:
    """`json.loads` refuses more than 4300 digits and makes large exponents infinite."""
    for kind in ("integer", "number"):
        constraint = json_schema({"type": kind})
        for choose in (blt_walks.highest, blt_walks.lowest):
            written = blt_walks.walk(constraint, choose, 9999)
            assert len(written) < 50
            assert np.isfinite(float(json.loads(written)))


def test_formats_refuse_what_is_no_date() -> None:
    date = json_schema({"type": "string", "format": "date"})
    for text in (
        "2023-02-29",
        "1900-02-29",
        "0000-01-01",
        "2024-13-01",
        "2024-04-31",
        "2024-00-10",
    ):
        assert not date.accepts(json.dumps(text)), text
    for text in ("2024-02-29", "2000-02-29", "0004-02-29", "0001-01-01", "9999-12-31"):
        assert date.accepts(json.dumps(text)), text
