"""The adapter layer against its formula in numpy, over plain and quantized bases."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.tuner.lora import LoRALinear as MlxLmLoRALinear

from mlx_companion.errors import ConfigError
from mlx_companion.lora import LoraConfig, LoRALinear
from mlx_companion.lora.layers import linear_shape


def layer_over(base: nn.Module, rank: int = 4, scale: float = 2.0, dropout: float = 0.0) -> Any:
    """An adapter whose B is not zero."""
    layer = LoRALinear(base, rank=rank, scale=scale, dropout=dropout, key=mx.random.key(0))
    layer.lora_b = mx.random.normal(layer.lora_b.shape, key=mx.random.key(1))
    return layer.eval()


def random(*shape: int, seed: int = 2, dtype: mx.Dtype = mx.float32) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed)).astype(dtype)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.floats(0.01, 8), st.booleans())
def test_formula(in_dims: int, out_dims: int, rank: int, scale: float, bias: bool) -> None:
    base = nn.Linear(in_dims, out_dims, bias=bias)
    layer = layer_over(base, rank, scale)
    layer.multiplier = 0.75
    x = random(2, 3, in_dims)
    a, b, w = (np.array(m, dtype=np.float64) for m in (layer.lora_a, layer.lora_b, base.weight))
    expected = np.array(x) @ w.T + scale * 0.75 * np.array(x) @ a @ b
    expected += np.array(base.bias) if bias else 0
    assert (a.shape, b.shape) == ((in_dims, rank), (rank, out_dims))
    np.testing.assert_allclose(np.array(layer(x)), expected, rtol=1e-4, atol=1e-4 * (1 + scale))
    np.testing.assert_allclose(
        np.array(layer.delta()), scale * 0.75 * (a @ b).T, rtol=1e-4, atol=1e-5 * (1 + scale)
    )


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group_size", [32, 64])
def test_quantized_bases_of_every_width(bits: int, group_size: int) -> None:
    plain = nn.Linear(192, 64)
    base = nn.QuantizedLinear.from_linear(plain, group_size=group_size, bits=bits)
    assert linear_shape(base) == (64, 192)
    layer = layer_over(base)
    x = random(3, 192)
    weight = mx.dequantize(base.weight, base.scales, base.biases, group_size=group_size, bits=bits)
    expected = x @ weight.T + plain.bias + 2.0 * (x @ layer.lora_a @ layer.lora_b)
    np.testing.assert_allclose(np.array(layer(x)), np.array(expected), rtol=1e-4, atol=1e-4)


def test_a_new_adapter_changes_nothing_and_multiplier_zero_is_the_base() -> None:
    base = nn.Linear(16, 8)
    x = random(5, 16)
    fresh = LoRALinear(base, rank=4, scale=2.0, dropout=0.0, key=mx.random.key(0))
    assert mx.array_equal(fresh(x), base(x))
    layer = layer_over(base)
    assert not mx.allclose(layer(x), base(x))
    layer.multiplier = 0.0
    layer.lora_a = mx.full(layer.lora_a.shape, float("inf"))
    assert mx.array_equal(layer(x), base(x))


@pytest.mark.parametrize("quantized", [False, True])
def test_gradients_reach_the_adapter_and_the_input_through_any_base(quantized: bool) -> None:
    base: nn.Module = nn.Linear(64, 32, bias=False)
    if quantized:
        base = nn.QuantizedLinear.from_linear(base, group_size=32, bits=4)
    layer, x, pull = layer_over(base), random(3, 64), random(3, 32, seed=3)

    def loss(a: mx.array, b: mx.array, x: mx.array) -> mx.array:
        layer.lora_a, layer.lora_b = a, b
        return (layer(x) * pull).sum()

    a, b = layer.lora_a, layer.lora_b
    grad_a, grad_b, grad_x = mx.grad(loss, argnums=(0, 1, 2))(a, b, x)
    weight = base.weight
    if quantized:
        weight = mx.dequantize(weight, base.scales, base.biases, group_size=32, bits=4)
    # By hand: y = x W^T + 2 x A B, pulled back by `pull`.
    close = {"rtol": 1e-3, "atol": 1e-3}
    np.testing.assert_allclose(np.array(grad_a), np.array(2 * x.T @ pull @ b.T), **close)
    np.testing.assert_allclose(np.array(grad_b), np.array(2 * (x @ a).T @ pull), **close)
    np.testing.assert_allclose(
        np.array(grad_x), np.array(pull @ weight + 2 * pull @ b.T @ a.T), **close
    )


def matmul_dtypes(layer: nn.Module, x: mx.array) -> set[mx.Dtype]:
    """The number types in which a layer multiplies matrices."""
    seen: list[dict] = []
    mx.eval(layer.parameters())
    mx.export_function(seen.append, layer, x)
    products = [step for step in seen if step.get("name") in ("Matmul", "AddMM")]
    return {output[2] for step in products for output in step["outputs"]}


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_half_precision_stays_where_mlx_lm_promotes(dtype: mx.Dtype) -> None:
    base = nn.Linear(16, 8)
    base.set_dtype(dtype)
    x = random(2, 16, dtype=dtype)
    assert matmul_dtypes(MlxLmLoRALinear.from_base(base), x) == {dtype, mx.float32}
    ours = layer_over(base)
    assert ours.lora_a.dtype == ours.lora_b.dtype == mx.float32
    assert matmul_dtypes(ours, x) == {dtype}
    assert ours(x).dtype == dtype
    gradient = mx.grad(lambda a: (ours.update({"lora_a": a}), ours(x).sum())[1])(ours.lora_a)
    assert gradient.dtype == mx.float32


def test_dropout_acts_on_the_update_and_only_in_training() -> None:
    layer = layer_over(nn.Linear(64, 8), dropout=0.5)
    x = random(4, 64)
    calm = layer(x)
    assert mx.array_equal(layer(x), calm)
    layer.train()
    layer.lora_b = mx.zeros_like(layer.lora_b)
    assert mx.array_equal(layer(x), layer.base(x))
    layer.lora_b = mx.ones_like(layer.lora_b)
    assert not mx.allclose(layer(x), layer(x))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"rank": 0}, "rank"),
        ({"rank": 2.5}, "rank"),
        ({"rank": True}, "rank"),
        ({"alpha": 0}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"alpha": "16"}, "alpha"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": -0.1}, "dropout"),
        ({"targets": ()}, "targets"),
        ({"targets": "q_proj"}, "targets"),
        ({"targets": None}, "targets"),
        ({"targets": ["q_proj", ""]}, "targets"),
        ({"layers": 0}, "layers"),
        ({"layers": 1.5}, "layers"),
    ],
)
def test_config_is_checked(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LoraConfig(**given)


def test_config_scale_and_equality() -> None:
    assert LoraConfig(rank=4, alpha=6).scale == 1.5
    assert LoraConfig(targets=["a", "b"]) == LoraConfig(targets=("a", "b"))  # type: ignore[arg-type]
