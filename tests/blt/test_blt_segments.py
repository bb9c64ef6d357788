"""Pooling and patch attention against loops over patches: values and gradients."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_companion.blt.segments import attend_source, attend_within, pool_max


def ragged(rng: np.random.Generator, B: int, N: int) -> np.ndarray:
    """(B, N) patch numbers, from 0 up, patches of unequal length."""
    opens = rng.random((B, N)) < 0.4
    opens[:, 0] = True
    return (np.cumsum(opens, axis=1) - 1).astype(np.int32)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), N=st.sampled_from([1, 2, 17, 63]), spare=st.integers(0, 3))
def test_pooling_is_the_maximum_of_each_patch(seed: int, N: int, spare: int) -> None:
    rng = np.random.default_rng(seed)
    ids, h = ragged(rng, 3, N), rng.standard_normal((3, N, 5)).astype(np.float32)
    P = int(ids.max()) + 1 + spare
    found = np.array(pool_max(mx.array(h), mx.array(ids), P))
    for row in range(3):
        for patch in range(P):
            own = h[row][ids[row] == patch]
            np.testing.assert_array_equal(found[row, patch], own.max(0) if len(own) else 0)


def test_the_gradient_of_pooling_goes_to_the_first_maximum() -> None:
    h = mx.array([[[1.0, 5.0], [3.0, 5.0], [3.0, 2.0], [0.0, 0.0]]])
    ids = mx.array([[0, 0, 0, 1]])
    weight = mx.array([[[10.0, 20.0], [30.0, 40.0], [50.0, 60.0]]])
    slope = mx.grad(lambda x: (pool_max(x, ids, 3) * weight).sum())(h)
    expected = [[[0, 20], [10, 0], [0, 0], [30, 40]]]
    np.testing.assert_array_equal(np.array(slope), expected)


@pytest.mark.parametrize("N", [1, 63, 1000])
def test_attention_within_patches(N: int) -> None:
    rng = np.random.default_rng(N)
    B, J, H, W = 2, 3, 2, 4
    ids = ragged(rng, B, N)
    P = int(ids.max()) + 2
    q = rng.standard_normal((B, P, J, H, W)).astype(np.float32)
    k, v = rng.standard_normal((2, B, N, H, W)).astype(np.float32)
    found = np.array(attend_within(*map(mx.array, (q, k, v, ids))))
    for row in range(B):
        for patch in range(0, P, max(1, P // 20)):
            own = ids[row] == patch
            for j in range(J):
                for h in range(H):
                    expected = np.zeros(W)
                    if own.any():
                        scores = k[row, own, h] @ q[row, patch, j, h] / np.sqrt(W)
                        expected = softmax(scores) @ v[row, own, h]
                    np.testing.assert_allclose(found[row, patch, j, h], expected, atol=1e-5)


@pytest.mark.parametrize("N", [1, 63, 1000])
def test_attention_to_the_source_patch(N: int) -> None:
    rng = np.random.default_rng(N)
    B, J, H, W, P = 2, 3, 2, 4, 11
    source = np.sort(rng.integers(0, P, (B, N)), axis=1).astype(np.int32)
    q = rng.standard_normal((B, N, H, W)).astype(np.float32)
    k, v = rng.standard_normal((2, B, P, J, H, W)).astype(np.float32)
    found = np.array(attend_source(*map(mx.array, (q, k, v, source))))
    for row in range(B):
        for t in range(0, N, max(1, N // 20)):
            for h in range(H):
                own = source[row, t]
                scores = k[row, own, :, h] @ q[row, t, h] / np.sqrt(W)
                expected = softmax(scores) @ v[row, own, :, h]
                np.testing.assert_allclose(found[row, t, h], expected, atol=1e-5)


def test_scores_of_any_size_do_not_overflow() -> None:
    q = mx.full((1, 2, 1, 1, 2), 300.0)
    k = mx.array([[[[300.0, 300.0]], [[-300.0, 0.0]], [[200.0, 0.0]]]])
    v = mx.array([[[[1.0, 0.0]], [[0.0, 1.0]], [[5.0, 5.0]]]])
    out = attend_within(q, k, v, mx.array([[0, 0, 1]]))
    np.testing.assert_allclose(np.array(out)[0, :, 0, 0], [[1, 0], [5, 5]], atol=1e-6)


@pytest.mark.parametrize("which", ["within", "source"])
def test_gradients_against_finite_differences(which: str) -> None:
    rng = np.random.default_rng(3)
    B, N, J, H, W, P = 2, 9, 2, 1, 2, 4
    ids = np.minimum(ragged(rng, B, N), P - 1)
    byte, patch = (B, N, H, W), (B, P, J, H, W)
    shapes = [patch, byte, byte] if which == "within" else [byte, patch, patch]
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    weight = mx.array(rng.standard_normal(shapes[0]).astype(np.float32))
    function = attend_within if which == "within" else attend_source

    def loss(*given: mx.array) -> mx.array:
        return (function(*given, mx.array(ids)) * weight).sum()

    slopes = mx.grad(loss, argnums=(0, 1, 2))(*map(mx.array, arrays))
    step = 1e-2
    for place, (array, slope) in enumerate(zip(arrays, slopes, strict=True)):
        flat = np.array(slope).reshape(-1)
        for at in range(0, array.size, 3):
            sides = []
            for sign in (1, -1):
                moved = [a.copy() for a in arrays]
                moved[place].reshape(-1)[at] += sign * step
                sides.append(float(loss(*map(mx.array, moved))))
            assert flat[at] == pytest.approx((sides[0] - sides[1]) / (2 * step), abs=3e-3)
