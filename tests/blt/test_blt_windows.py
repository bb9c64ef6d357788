"""Windows predict each byte of a text once, with enough bytes in front."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_companion.blt.windows import window_batches, window_count
from mlx_companion.errors import ConfigError


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 40), st.data())
def test_every_byte_is_predicted_once_and_sees_enough(
    total: int, context: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, context))
    rows = data.draw(st.integers(1, 5))
    ids = np.arange(total) + 1000
    found, windows = [], 0
    for batch in window_batches(total, context=context, stride=stride, batch_rows=rows):
        windows += len(batch.starts)
        assert 1 <= len(batch.starts) <= rows
        inputs = batch.inputs(ids, bos=1)
        assert inputs.shape == batch.places.shape == batch.counted.shape
        for row, start in enumerate(batch.starts):
            expected = [1, *ids[start : start + batch.length - 1]]
            assert inputs[row].tolist() == expected
            for place in batch.places[row][batch.counted[row]]:
                assert place < context or place - start >= context - stride
        found += batch.places[batch.counted].tolist()
    assert found == list(range(total))
    assert windows == window_count(total, context, stride)


def test_rows_and_strides_have_defaults() -> None:
    first = next(window_batches(100_000, context=1000))
    assert first.starts.tolist() == [0, 500, 1000, 1500, 2000, 2500, 3000, 3500]
    assert next(window_batches(5, context=1)).starts.tolist() == [0, 1, 2, 3, 4]
    assert list(window_batches(0, context=8)) == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"context": 0}, "context is 0"),
        ({"context": 8, "stride": 0}, "stride is 0; expected 1 to the context, 8"),
        ({"context": 8, "stride": 9}, "stride is 9"),
        ({"context": 8, "batch_rows": 0}, "batch_rows is 0"),
    ],
    ids=str,
)
def test_settings_out_of_range(settings: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        list(window_batches(10, **settings))
