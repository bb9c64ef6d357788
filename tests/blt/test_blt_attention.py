"""Attention in blocks against attention with a full mask in NumPy: values and gradients."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_companion.blt import attention, fused
from mlx_companion.blt.attention import Sight
from mlx_companion.kernels import fast_math


def mask(length: int, window: int | None, documents: np.ndarray | None) -> np.ndarray:
    """(B or 1, L, L) bool, from the definition."""
    t, s = np.arange(length)[:, None], np.arange(length)[None]
    seen = (s <= t) & (True if window is None else t - s < window)
    if documents is None:
        return seen[None]
    return seen[None] & (documents[:, :, None] == documents[:, None, :])


def reference(q: np.ndarray, k: np.ndarray, v: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Attention with a full mask in float64; key heads repeated for the queries that share them."""
    shared = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, shared, axis=1), np.repeat(v, shared, axis=1)
    scores = q.astype(np.float64) @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    scores = np.where(seen[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True) @ v


def inputs(seed: int, B: int, H: int, K: int, L: int, W: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    shapes = [(B, H, L, W), (B, K, L, W), (B, K, L, W), (B, H, L, W)]
    return tuple(rng.standard_normal(shape).astype(np.float32) for shape in shapes)


def documents_of(rng: np.random.Generator, B: int, L: int) -> np.ndarray:
    return np.cumsum(rng.random((B, L)) < 0.05, axis=1).astype(np.int32)


@settings(max_examples=30, deadline=None)
@given(
    length=st.integers(1, 330),
    window=st.one_of(st.none(), st.integers(1, 100)),
    several=st.booleans(),
    shared=st.sampled_from([1, 2]),
    seed=st.integers(0, 10**6),
)
def test_blocks_equal_a_full_mask(
    length: int, window: int | None, several: bool, shared: int, seed: int
) -> None:
    q, k, v, _ = inputs(seed, 2, 2, 2 // shared, length, 4)
    documents = documents_of(np.random.default_rng(seed), 2, length) if several else None
    sight = Sight(length, window, None if documents is None else mx.array(documents))
    found = sight.attend(mx.array(q), mx.array(k), mx.array(v))
    expected = reference(q, k, v, mask(length, window, documents))
    np.testing.assert_allclose(np.array(found), expected, atol=2e-5)


@pytest.mark.parametrize("length", [1, 63, 200])
@pytest.mark.parametrize("window", [None, 16, 40])
@pytest.mark.parametrize("several", [False, True], ids=["one", "documents"])
@pytest.mark.parametrize("fast", [False, True], ids=["mlx", "fast"])
def test_gradients_equal_those_of_a_full_mask(
    length: int, window: int | None, several: bool, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast_math, "wanted", lambda: fast)
    monkeypatch.setattr(attention, "wanted", lambda: fast)
    arrays = inputs(length, 2, 2, 1, length, 4)
    documents = documents_of(np.random.default_rng(5), 2, length) if several else None
    seen = mx.array(mask(length, window, documents))[:, None]
    q, k, v, weight = map(mx.array, arrays)

    def plain(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        scores = mx.where(seen, q @ mx.repeat(k, 2, axis=1).swapaxes(-1, -2) / 2, -mx.inf)
        return (mx.softmax(scores, axis=-1) @ mx.repeat(v, 2, axis=1) * weight).sum()

    def ours(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        sight = Sight(length, window, None if documents is None else mx.array(documents))
        return (sight.attend(q, k, v) * weight).sum()

    expected = mx.grad(plain, argnums=(0, 1, 2))(q, k, v)
    found = mx.grad(ours, argnums=(0, 1, 2))(q, k, v)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.array(one), np.array(other), atol=3e-5)


def test_keeping_the_weights_changes_nothing() -> None:
    q, k, v, weight = map(mx.array, inputs(1, 3, 4, 2, 20, 8))
    bias = mx.where(mx.array(mask(20, 7, None))[0], 0.0, fused.MASKED)

    def loss(keep: bool):
        return mx.value_and_grad(
            lambda q, k, v: (fused.attend(q, k, v, bias, keep=keep) * weight).sum(),
            argnums=(0, 1, 2),
        )(q, k, v)

    for one, other in zip(loss(True)[1], loss(False)[1], strict=True):
        assert mx.array_equal(one, other)


@pytest.mark.parametrize("fast", [False, True], ids=["mlx", "fast"])
def test_elementwise_functions_and_their_gradients(
    fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast_math, "wanted", lambda: fast)
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-9, 9, (2, 50, 13))
    silu, slope = x / (1 + np.exp(-x)), 1 / (1 + np.exp(-x))
    got, (dx, dy) = mx.value_and_grad(lambda a, b: fused.swiglu(a, b).sum(), argnums=(0, 1))(
        mx.array(x, dtype=mx.float32), mx.array(y, dtype=mx.float32)
    )
    assert float(got) == pytest.approx((silu * y).sum(), rel=1e-4)
    np.testing.assert_allclose(np.array(dx), y * slope * (1 + x * (1 - slope)), atol=1e-4)
    np.testing.assert_allclose(np.array(dy), silu, atol=1e-4)
    single = mx.array(x, dtype=mx.float32)
    np.testing.assert_allclose(np.array(fast_math.exp(single)), np.exp(x), rtol=1e-5)
    np.testing.assert_allclose(
        np.array(mx.grad(lambda a: fast_math.exp(a).sum())(single)), np.exp(x), rtol=1e-5
    )
    weights = np.exp(x - x.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(np.array(fast_math.softmax(single)), weights, atol=1e-6)
    slopes = mx.grad(lambda a: (fast_math.softmax(a) * mx.array(y, dtype=mx.float32)).sum())(single)
    expected = weights * (y - (weights * y).sum(-1, keepdims=True))
    np.testing.assert_allclose(np.array(slopes), expected, atol=1e-5)
