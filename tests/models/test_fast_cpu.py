"""The CPU operations against MLX's own, values and gradients, at odd shapes."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models import llama
from mlx_lm.models.cache import make_prompt_cache

from mlx_companion.models import fast_cpu as fast
from mlx_companion.models.swapped import SWIGLU, Place, functions_of


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed)) * scale


def assert_close(got: mx.array, expected: mx.array, tolerance: float = 2e-5) -> None:
    scale = max(1.0, float(mx.abs(expected).max()))
    assert got.shape == expected.shape
    assert float(mx.abs(got - expected).max()) <= tolerance * scale


@pytest.mark.parametrize("shape", [(3, 7), (2, 5, 63)])
def test_swiglu_and_its_gradients(shape: tuple[int, ...]) -> None:
    gate, x, cotangent = (normal(*shape, seed=i, scale=3.0) for i in range(3))
    outputs, gradients = mx.vjp(fast.swiglu, (gate, x), (cotangent,))
    expected, expected_gradients = mx.vjp(lambda g, u: nn.silu(g) * u, (gate, x), (cotangent,))
    assert_close(outputs[0], expected[0])
    for got, wanted in zip(gradients, expected_gradients, strict=True):
        assert_close(got, wanted)


def masks(L: int, S: int) -> dict[str, object]:
    free = mx.arange(S - L, S)[:, None] >= mx.arange(S)[None]
    return {
        "none": None,
        "causal": "causal",
        "bool": free,
        "additive": mx.where(free, 0.0, -1e4),
        "rows": mx.stack([free, mx.ones_like(free)])[:, None],
    }


@pytest.mark.parametrize("kind", ["none", "causal", "bool", "additive", "rows"])
@pytest.mark.parametrize(("L", "S"), [(1, 1), (7, 7), (5, 12)])
def test_attention_and_its_gradients(kind: str, L: int, S: int) -> None:
    mask = masks(L, S)[kind]
    q = normal(2, 6, L, 8, seed=1)
    k, v = normal(2, 3, S, 8, seed=2), normal(2, 3, S, 8, seed=3)
    cotangent = normal(2, 6, L, 8, seed=4)

    def reference(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=0.3, mask=mask)

    outputs, gradients = mx.vjp(
        lambda q, k, v: fast.attention(q, k, v, 0.3, mask), (q, k, v), (cotangent,)
    )
    expected, expected_gradients = mx.vjp(reference, (q, k, v), (cotangent,))
    assert_close(outputs[0], expected[0])
    for got, wanted in zip(gradients, expected_gradients, strict=True):
        assert_close(got, wanted)


@pytest.fixture
def model() -> llama.Model:
    args = llama.ModelArgs(
        model_type="llama",
        hidden_size=32,
        num_hidden_layers=2,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        vocab_size=50,
    )
    return llama.Model(args)


def test_a_model_gives_the_same_and_is_put_back(model: llama.Model) -> None:
    before = llama.swiglu, llama.scaled_dot_product_attention
    tokens = mx.array([[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]])
    expected = model(tokens)
    with fast.fast_cpu(model, enabled=True) as active:
        assert active
        assert functions_of(model)[Place(llama, SWIGLU)] is fast.swiglu
        assert_close(model(tokens), expected)
        cache = make_prompt_cache(model)
        steps = [model(tokens[:, :3], cache=cache), model(tokens[:, 3:], cache=cache)]
        assert_close(mx.concatenate(steps, axis=1), expected)
    assert (llama.swiglu, llama.scaled_dot_product_attention) == before


def test_a_model_is_put_back_after_an_error(model: llama.Model) -> None:
    before = llama.scaled_dot_product_attention
    with pytest.raises(KeyError), fast.fast_cpu(model, enabled=True):
        raise KeyError
    assert llama.scaled_dot_product_attention is before


def test_half_precision_keeps_the_original_path(model: llama.Model) -> None:
    model.set_dtype(mx.bfloat16)
    tokens = mx.array([[1, 2, 3]])
    expected = model(tokens)
    with fast.fast_cpu(model, enabled=True):
        assert mx.array_equal(model(tokens), expected)


def test_disabled_changes_nothing(model: llama.Model) -> None:
    before = llama.swiglu
    with fast.fast_cpu(model, enabled=False) as active:
        assert not active
        assert llama.swiglu is before
