"""Codes and grids of one matrix: MLX's packing, grids that lose nothing, error feedback."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_companion.models import DEFAULT_MODEL, load
from mlx_companion.quant.levels import Packing
from mlx_companion.quant.quantize_grid import (
    nearest,
    output_error,
    pack_codes,
    unpack_codes,
    with_feedback,
)
from mlx_companion.quant.quantize_layers import dense

BITS = (2, 3, 4, 5, 6, 8)


def matrix(rows: int = 24, columns: int = 128, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


def on_a_grid(bits: int, size: int, seed: int = 1) -> np.ndarray:
    """Weights as a GGUF file holds them: every group uses its lowest and highest code."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 2**bits, size=(16, 4, size))
    codes[..., 0], codes[..., 1] = 0, 2**bits - 1
    scales = rng.uniform(0.01, 0.05, size=(16, 4, 1)).astype(np.float16).astype(np.float32)
    low = rng.uniform(-0.4, -0.05, size=(16, 4, 1)).astype(np.float16).astype(np.float32)
    return (codes * scales + low).reshape(16, -1).astype(np.float32)


def moment(columns: int = 128, seed: int = 2) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(600, columns)) @ rng.normal(size=(columns, columns)) * 0.1
    return (x.T @ x / 600).astype(np.float32)


@pytest.mark.parametrize("bits", BITS)
def test_codes_are_packed_as_mlx_packs_them(bits: int) -> None:
    words = np.array(mx.quantize(mx.array(matrix()), group_size=32, bits=bits)[0])
    codes = unpack_codes(words, bits)
    assert codes.shape == (24, 128)
    assert (pack_codes(codes, bits) == words).all()


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(BITS), st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_packing_loses_nothing(bits: int, rows: int, words: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 2**bits, (rows, 32 * words)).astype(np.uint8)
    assert (unpack_codes(pack_codes(codes, bits), bits) == codes).all()


@pytest.mark.parametrize("bits", BITS)
def test_mlx_reads_what_is_packed(bits: int) -> None:
    grid = nearest(matrix(), Packing(bits, 64))
    parts = [p.astype(mx.float32) if i else p for i, p in enumerate(grid.pack())]
    read = mx.dequantize(*parts, group_size=64, bits=bits)
    assert np.allclose(np.array(read), grid.dense(), atol=1e-6)


@pytest.mark.parametrize("bits", [3, 4, 5])
def test_searching_never_loses_to_mlx(bits: int) -> None:
    weight = matrix()
    errors = [
        np.square(nearest(weight, Packing(bits, 32), search=search).dense() - weight).sum()
        for search in (False, True)
    ]
    assert errors[1] < errors[0]


def test_without_searching_it_is_mlx() -> None:
    weight = mx.array(matrix())
    parts = mx.quantize(weight, group_size=32, bits=4)
    theirs = mx.dequantize(*parts, group_size=32, bits=4)
    ours = nearest(np.array(weight), Packing(4, 32), search=False).dense()
    # Its scales are rounded to 16 bits, which moves a few weights by a step.
    assert np.abs(np.array(theirs) - ours).mean() < 2e-3


@pytest.mark.parametrize("bits", [3, 4])
def test_weights_on_a_grid_stay_as_they_are_and_mlx_moves_them(bits: int) -> None:
    """mx.quantize, and with it mlx-lm's convert, puts zero on the grid and so leaves this one."""
    weight = on_a_grid(bits, 32)
    parts = mx.quantize(mx.array(weight), group_size=32, bits=bits)
    theirs = np.array(mx.dequantize(*parts, group_size=32, bits=bits))
    assert np.square(theirs - weight).sum() > 1e-3 * np.square(weight).sum()
    assert np.abs(nearest(weight, Packing(bits, 32)).dense() - weight).max() < 1e-6
    assert np.abs(with_feedback(weight, Packing(bits, 32), moment()).dense() - weight).max() < 1e-6


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_feedback_lowers_the_error_of_outputs(bits: int) -> None:
    weight, own = matrix(), moment()
    packing = Packing(bits, 64)
    plain = output_error(weight, nearest(weight, packing), own)
    assert output_error(weight, with_feedback(weight, packing, own), own) < 0.7 * plain


def test_columns_that_matter_are_fitted_better() -> None:
    weight, importance = matrix(columns=64), np.ones(64, np.float32)
    importance[:8] = 1000
    errors = [
        np.square(nearest(weight, Packing(3, 32), own).dense() - weight)[:, :8].sum()
        for own in (None, importance)
    ]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("size", [0.0, 1.0], ids=["zero", "rank 1"])
def test_a_singular_moment_is_no_problem(size: float) -> None:
    own = np.full((128, 128), size, np.float32)
    grid = with_feedback(matrix(), Packing(4, 64), own)
    assert np.isfinite(grid.dense()).all()
    assert np.square(grid.dense() - matrix()).mean() < 0.1


@pytest.mark.parametrize("value", [0.0, 0.25, -3.0])
def test_constant_groups(value: float) -> None:
    weight = np.full((4, 64), value, np.float32)
    assert np.abs(nearest(weight, Packing(2, 32)).dense() - value).max() <= 1e-3 * abs(value)


@pytest.mark.real_model
def test_the_default_models_layers_are_on_a_grid(real_cache: Path) -> None:
    """Its file holds 4 bits in groups of 32; MLX's own grids of that size move the weights."""
    layers = load(DEFAULT_MODEL).model.layers
    for layer in (layers[0].mlp.down_proj, layers[29].self_attn.k_proj):
        weight = dense(layer)
        assert (nearest(weight, Packing(4, 32)).dense() == weight).all()
        moved = nearest(weight, Packing(4, 32), search=False).dense() - weight
        assert np.square(moved).sum() > 0.003 * np.square(weight).sum()
