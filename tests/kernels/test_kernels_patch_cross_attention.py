"""Attention between bytes and patches against loops and finite differences in double precision."""

from __future__ import annotations

import mlx_companion  # noqa: F401  (loads a fast BLAS before MLX)

import mlx.core as mx  # isort: skip
import numpy as np  # isort: skip
import pytest  # isort: skip
from hypothesis import given, settings  # isort: skip
from hypothesis import strategies as st  # isort: skip

from mlx_companion.errors import ConfigError, HardwareError  # isort: skip
from mlx_companion.kernels.patch_cross_attention import body, patch_cross_attention, plain  # isort: skip

from metal_signature import buffers  # isort: skip
from patch_rows import padded, ragged, with_gaps  # isort: skip

SIDES = ["encoder", "decoder"]
ON_CPU = ["reference", "plain"]
Arrays = list[np.ndarray]


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def oracle(q: np.ndarray, k: np.ndarray, v: np.ndarray, ids: np.ndarray, side: str) -> np.ndarray:
    """Both sides in double precision, one query at a time."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    out, group, width = np.zeros(q.shape), q.shape[-2] // k.shape[-2], q.shape[-1]
    for place in np.ndindex(*q.shape[:-1]):
        b, head = place[0], place[-1]
        if side == "encoder":
            own = ids[b] == place[1]
            keys, values = k[b, own, head // group], v[b, own, head // group]
        else:
            patch = ids[b, place[1]]
            if not 0 <= patch < k.shape[1]:
                continue
            keys, values = k[b, patch, :, head // group], v[b, patch, :, head // group]
        if len(keys):
            out[place] = softmax(keys @ q[place] / np.sqrt(width)) @ values
    return out


def random_arrays(
    rng: np.random.Generator, ids: np.ndarray, P: int, side: str, J=2, H=2, K=2, W=4
) -> Arrays:
    B, N = ids.shape
    if side == "encoder":
        shapes: list[tuple[int, ...]] = [(B, P, J, H, W), (B, N, K, W), (B, N, K, W)]
    else:
        shapes = [(B, N, H, W), (B, P, J, K, W), (B, P, J, K, W)]
    return [rng.standard_normal(shape) for shape in shapes]


def value_and_gradients(
    arrays: Arrays, ids: np.ndarray, side: str, weight: np.ndarray, impl: str, dtype=mx.float32
) -> tuple[np.ndarray, Arrays]:
    scale = mx.array(weight.astype(np.float32)).astype(dtype)

    def loss(q: mx.array, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
        out = patch_cross_attention(q, k, v, mx.array(ids), side=side, impl=impl)
        return (out * scale).astype(mx.float32).sum(), out

    given = [mx.array(x.astype(np.float32)).astype(dtype) for x in arrays]
    (_, out), grads = mx.value_and_grad(loss, argnums=(0, 1, 2))(*given)
    assert {out.dtype, *(g.dtype for g in grads)} == {dtype}
    return np.array(out.astype(mx.float32)), [np.array(g.astype(mx.float32)) for g in grads]


def check(
    arrays: Arrays, ids: np.ndarray, side: str, impl: str, dtype=mx.float32, tol=1e-5, directions=3
) -> None:
    """Values by loops, gradients along random directions by central differences."""
    rng = np.random.default_rng(11)
    rounded = [
        np.array(mx.array(x.astype(np.float32)).astype(dtype).astype(mx.float32)) for x in arrays
    ]
    weight = rng.standard_normal(arrays[0].shape)
    weight = np.array(mx.array(weight).astype(dtype).astype(mx.float32)).astype(np.float64)
    out, grads = value_and_gradients(rounded, ids, side, weight, impl, dtype)
    np.testing.assert_allclose(out, oracle(*rounded, ids, side), atol=tol, rtol=tol)
    step = 1e-5
    for place, grad in enumerate(grads):
        for _ in range(directions):
            along = rng.standard_normal(grad.shape)
            sides = []
            for sign in (1, -1):
                moved = [x.astype(np.float64) for x in rounded]
                moved[place] = moved[place] + sign * step * along
                sides.append((oracle(*moved, ids, side) * weight).sum())
            expected = (sides[0] - sides[1]) / (2 * step)
            room = tol * (1 + np.sqrt((grad.astype(np.float64) ** 2).sum()) * 3)
            assert (grad * along).sum() == pytest.approx(expected, abs=room)


@pytest.mark.parametrize("impl", ON_CPU)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("N", "J", "H", "K"), [(1, 1, 1, 1), (63, 2, 4, 2), (1000, 4, 2, 2)])
def test_values_and_gradients(N: int, J: int, H: int, K: int, side: str, impl: str) -> None:
    rng = np.random.default_rng(N)
    ids = ragged(rng, 2, N)
    P = int(ids.max()) + 3
    arrays = random_arrays(rng, ids, P, side, J, H, K)
    check(arrays, padded(rng, ids, P), side, impl, directions=1 if N > 100 else 3)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    ("N", "J", "H", "K", "W"), [(1, 1, 1, 1, 4), (63, 2, 4, 2, 40), (100, 4, 2, 2, 3)]
)
def test_the_bodies_give_values_and_gradients(
    on_metal: None, N: int, J: int, H: int, K: int, W: int, side: str
) -> None:
    rng = np.random.default_rng(N)
    ids = ragged(rng, 2, N)
    P = int(ids.max()) + 3
    arrays = random_arrays(rng, ids, P, side, J, H, K, W)
    check(arrays, padded(rng, ids, P), side, "metal")


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("N", "J", "H", "K"), [(1, 1, 1, 1), (63, 3, 4, 2), (200, 2, 2, 2)])
def test_large_sizes_go_one_vector_at_a_time(
    monkeypatch: pytest.MonkeyPatch, N: int, J: int, H: int, K: int, side: str
) -> None:
    monkeypatch.setattr(plain, "_FEW", 0)
    rng = np.random.default_rng(N)
    ids = ragged(rng, 2, N)
    P = int(ids.max()) + 3
    check(random_arrays(rng, ids, P, side, J, H, K), with_gaps(rng, ids, P), side, "plain")


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    N=st.sampled_from([1, 2, 17, 41]),
    spare=st.integers(0, 3),
    opening=st.sampled_from([0.0, 0.1, 0.4, 1.0]),
    side=st.sampled_from(SIDES),
)
def test_any_rows_agree_with_loops(
    seed: int, N: int, spare: int, opening: float, side: str
) -> None:
    rng = np.random.default_rng(seed)
    ids = ragged(rng, 2, N, opening)
    P = int(ids.max()) + 1 + spare
    arrays = random_arrays(rng, ids, P, side)
    for impl in ON_CPU:
        check(arrays, with_gaps(rng, ids, P), side, impl, directions=1)


@pytest.mark.parametrize("side", SIDES)
def test_every_partial_derivative(side: str) -> None:
    rng = np.random.default_rng(3)
    ids = np.minimum(ragged(rng, 2, 9), 3)
    arrays = random_arrays(rng, ids, 4, side, J=2, H=2, K=1, W=2)
    weight = rng.standard_normal(arrays[0].shape)
    for impl in ON_CPU:
        _, grads = value_and_gradients(arrays, ids, side, weight, impl)
        for place, grad in enumerate(grads):
            for at in range(grad.size):
                sides = []
                for sign in (1, -1):
                    moved = [x.astype(np.float32).astype(np.float64) for x in arrays]
                    moved[place].reshape(-1)[at] += sign * 1e-5
                    sides.append((oracle(*moved, ids, side) * weight).sum())
                expected = (sides[0] - sides[1]) / 2e-5
                assert grad.reshape(-1)[at] == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("side", SIDES)
def test_bytes_left_out_inside_of_patches_on_the_bench(on_metal: None, side: str) -> None:
    rng = np.random.default_rng(4)
    ids = with_gaps(rng, ragged(rng, 2, 30), 20)
    check(random_arrays(rng, ids, 20, side), ids, side, "metal")


@pytest.mark.parametrize("impl", ON_CPU)
@pytest.mark.parametrize("side", SIDES)
def test_a_patch_of_the_whole_row_and_a_row_of_nothing(side: str, impl: str) -> None:
    ids = np.stack([np.zeros(150, int), np.full(150, -1), np.full(150, 7)])
    check(random_arrays(np.random.default_rng(0), ids, 2, side), ids, side, impl)


def sharp(side: str, impl: str) -> np.ndarray:
    """Scores of tens of thousands, of both signs, and one score per patch; values and gradients."""
    single = mx.full((1, 2, 1, 1, 2), 300.0)
    many = mx.array([[[[300.0, 300.0]], [[-300.0, 0.0]], [[200.0, 0.0]], [[-200.0, 0.0]]]])
    values = mx.array([[[[1.0, 0.0]], [[0.0, 1.0]], [[5.0, 5.0]], [[3.0, 3.0]]]])
    if side == "encoder":
        ids, q, k, v = mx.array([[0, 0, 1, 1]]), single, many, values
    else:
        ids, q = mx.array([[0, 1]]), single[:, :, 0]
        k, v = (x.reshape(1, 2, 2, 1, 2) for x in (many, values))

    def loss(q: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
        out = patch_cross_attention(q, k, v, ids, side=side, impl=impl)
        return out.sum(), out

    (_, out), (dq, dv) = mx.value_and_grad(loss, argnums=(0, 1))(q, v)
    np.testing.assert_allclose(np.array(dq), 0.0, atol=1e-20)
    np.testing.assert_allclose(np.array(dv).reshape(4, 2)[:, 0], [1, 0, 1, 0], atol=1e-6)
    return np.array(out).reshape(2, 2)


@pytest.mark.parametrize("impl", ON_CPU)
@pytest.mark.parametrize("side", SIDES)
def test_scores_of_any_size_do_not_overflow(side: str, impl: str) -> None:
    np.testing.assert_allclose(sharp(side, impl), [[1, 0], [5, 5]], atol=1e-6)


@pytest.mark.parametrize("side", SIDES)
def test_scores_of_any_size_do_not_overflow_on_the_bench(on_metal: None, side: str) -> None:
    np.testing.assert_allclose(sharp(side, "metal"), [[1, 0], [5, 5]], atol=1e-6)


@pytest.mark.parametrize(("dtype", "tol"), [(mx.float16, 1e-2), (mx.bfloat16, 6e-2)])
@pytest.mark.parametrize("impl", ON_CPU)
@pytest.mark.parametrize("side", SIDES)
def test_half_types(side: str, impl: str, dtype: mx.Dtype, tol: float) -> None:
    rng = np.random.default_rng(1)
    ids = ragged(rng, 2, 40)
    check(random_arrays(rng, ids, 24, side), ids, side, impl, dtype, tol)


@pytest.mark.parametrize(("dtype", "tol"), [(mx.float16, 1e-2), (mx.bfloat16, 6e-2)])
@pytest.mark.parametrize("side", SIDES)
def test_half_types_on_the_bench(on_metal: None, side: str, dtype: mx.Dtype, tol: float) -> None:
    rng = np.random.default_rng(1)
    ids = ragged(rng, 2, 21)
    check(random_arrays(rng, ids, 12, side), ids, side, "metal", dtype, tol)


@pytest.mark.parametrize("impl", ON_CPU)
@pytest.mark.parametrize("side", SIDES)
def test_another_scale(side: str, impl: str) -> None:
    rng = np.random.default_rng(2)
    ids = ragged(rng, 1, 20)
    q, k, v = map(mx.array, random_arrays(rng, ids, 12, side))
    given = {"side": side, "impl": impl}
    found = patch_cross_attention(q, k, v, mx.array(ids), scale=0.25, **given)
    expected = patch_cross_attention(q * 0.5, k, v, mx.array(ids), **given)
    np.testing.assert_allclose(np.array(found), np.array(expected), atol=1e-6)


@pytest.mark.parametrize("side", SIDES)
def test_it_can_be_compiled(side: str) -> None:
    rng = np.random.default_rng(2)
    ids = ragged(rng, 2, 63)
    arrays = [mx.array(x.astype(np.float32)) for x in random_arrays(rng, ids, 64, side)]

    def loss(q: mx.array, k: mx.array, v: mx.array, ids: mx.array) -> mx.array:
        return (patch_cross_attention(q, k, v, ids, side=side) ** 2).sum()

    slopes = mx.grad(loss, argnums=(0, 1, 2))
    expected, found = (f(*arrays, mx.array(ids)) for f in (slopes, mx.compile(slopes)))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.array(one), np.array(other), atol=1e-5)


@pytest.mark.parametrize("impl", ON_CPU)
def test_nothing_to_attend_to(impl: str) -> None:
    q, kv = mx.ones((2, 3, 2, 1, 4)), mx.zeros((2, 0, 1, 4))
    out = patch_cross_attention(q, kv, kv, mx.zeros((2, 0), dtype=mx.int32), impl=impl)
    assert out.shape == q.shape
    assert not out.any()


def test_bad_input_is_one_clear_error() -> None:
    q, kv = mx.zeros((2, 3, 2, 4, 8)), mx.zeros((2, 5, 2, 8))
    ids = mx.zeros((2, 5), dtype=mx.int32)
    with pytest.raises(ConfigError, match="side is 'left'"):
        patch_cross_attention(q, kv, kv, ids, side="left")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="the decoder side takes"):
        patch_cross_attention(q, kv, kv, ids, side="decoder")
    with pytest.raises(ConfigError, match="heads must divide"):
        patch_cross_attention(q, mx.zeros((2, 5, 3, 8)), mx.zeros((2, 5, 3, 8)), ids)
    with pytest.raises(ConfigError, match="one type"):
        patch_cross_attention(q, kv, kv.astype(mx.float16), ids)
    with pytest.raises(ConfigError, match="ids have shape"):
        patch_cross_attention(q, kv, kv, ids[:1])


@pytest.mark.skipif(mx.metal.is_available(), reason="this machine has Metal")
def test_metal_is_refused_where_it_is_not() -> None:
    q, kv = mx.zeros((1, 1, 1, 1, 2)), mx.zeros((1, 1, 1, 2))
    with pytest.raises(HardwareError, match="metal"):
        patch_cross_attention(q, kv, kv, mx.zeros((1, 1), dtype=mx.int32), impl="metal")


PATCH, BYTES, ROWS, RUNS = (2, 9, 2, 4, 8), (2, 40, 2, 8), (2, 40), (2, 9, 2)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("backward", [False, True])
def test_mlx_gives_the_bodies_the_signatures_that_they_name(side: str, backward: bool) -> None:
    q = mx.zeros(PATCH if side == "encoder" else (2, 40, 4, 8), dtype=mx.bfloat16)
    kv = mx.zeros(BYTES if side == "encoder" else (2, 9, 2, 2, 8), dtype=mx.bfloat16)
    ids, runs = mx.zeros(ROWS, dtype=mx.int32), mx.zeros(RUNS, dtype=mx.int32)
    scale, level = mx.zeros((1,)), mx.zeros(q.shape[:-1])
    kernel = getattr(body, f"_{side.upper()}{'_BACKWARD' if backward else ''}")
    given = {"q": q, "k": kv, "v": kv, "ids": ids, "runs": runs, "scale": scale}
    given |= {"dout": q, "out": q, "level": level}
    sides = (q, kv) if side == "encoder" else (kv, q)
    results = {"out": q, "level": level, "dq": q, "dk": kv, "dv": kv}
    shapes = [results[name].shape for name in kernel.outputs]
    types = [results[name].dtype for name in kernel.outputs]

    def launch(*inputs: mx.array) -> list[mx.array]:
        return body._launch(kernel, "metal", [*inputs], sides, shapes, types)

    found = buffers(launch, *[given[name] for name in kernel.inputs])
    assert [name for name in found if not name.endswith("_shape")] == [
        *kernel.inputs,
        *kernel.outputs,
    ]
    for name, kind in found.items():
        whole = name in ("ids", "runs") or name.endswith("_shape")
        floats = "float" if name in ("scale", "level") else "bfloat16_t"
        assert kind == {"ids": "int32_t", "runs": "int32_t"}.get(name, "int" if whole else floats)
