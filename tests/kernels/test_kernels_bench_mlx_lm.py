"""Kernels of mlx-lm, unmodified and from the installed package, against numpy in float64."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from types import ModuleType, SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn

import mlx_companion  # noqa: F401
from mlx_companion.errors import KernelBoundsError, KernelRaceError
from mlx_companion.kernels import testing

pytestmark = pytest.mark.usefixtures("kernel_bench")
# Relative rounding of one result; the kernels compute in float and round once or twice.
ULP = {mx.float32: 2.0**-23, mx.float16: 2.0**-10, mx.bfloat16: 2.0**-7}
DTYPES = list(ULP)

RNG = np.random.default_rng(11)


def draw(*shape: int, scale: float = 1.0, dtype: mx.Dtype = mx.float32) -> mx.array:
    return mx.array((RNG.normal(size=shape) * scale).astype(np.float32)).astype(dtype)


def wide(x: mx.array) -> np.ndarray:
    return np.array(x.astype(mx.float32)).astype(np.float64)


def close(got: mx.array, expected: np.ndarray, dtype: mx.Dtype = mx.float32) -> None:
    scale = np.abs(expected).max()
    assert np.abs(wide(got) - expected).max() <= 16 * ULP[dtype] * scale + 1e-6


def rms_norm(x: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


Case = Callable[[ModuleType, mx.Dtype], None]


def qk_norm(m: ModuleType, dtype: mx.Dtype) -> None:
    n, hq, hk, d = 5, 4, 2, 48
    x = draw(1, n, 2 * (hq + hk) * d, dtype=dtype)
    q, k = m.qk_norm(x, n_heads=hq, n_kv_heads=hk, head_dim=d, eps=1e-5, query_scale=0.3)
    heads = rms_norm(wide(x)[..., : (hq + hk) * d].reshape(1, n, hq + hk, d), 1e-5)
    close(q, heads[..., :hq, :] * 0.3, dtype)
    close(k, heads[..., hq:, :], dtype)


def sigmoid_gate(m: ModuleType, dtype: mx.Dtype) -> None:
    """Takes arrays with strides as they are."""
    b, h, n, d = 2, 3, 5, 40
    x = draw(b, n, h, d, dtype=dtype).transpose(0, 2, 1, 3)
    g = draw(b, n, 2 * h * d, dtype=dtype)[..., ::2]
    expected = rms_norm(wide(x), 1e-5).transpose(0, 2, 1, 3).reshape(b, n, h * d)
    close(m.rms_norm_sigmoid_gate(x, g, eps=1e-5), expected * sigmoid(wide(g)), dtype)


def norm_add_norm(m: ModuleType, dtype: mx.Dtype) -> None:
    for d in (320, 1000):
        branch, stream, alpha, beta = draw(3, d, dtype=dtype), draw(3, d), draw(d), draw(d)
        norm = nn.RMSNorm(d)
        total, normed = m.norm_add_norm(
            branch, stream, alpha=alpha, beta=beta, post_weight=None, post_eps=1e-5, next_norm=norm
        )
        expected = wide(alpha) * wide(stream) + wide(beta) * rms_norm(wide(branch), 1e-5)
        close(total, expected, dtype)
        close(normed, rms_norm(expected, norm.eps), dtype)


def routing(m: ModuleType, dtype: mx.Dtype) -> None:
    logits, bias = draw(7, 40), draw(40, scale=0.1)
    chosen, weights = m.expert_routing(
        logits, bias, top_k=4, multiplier=1.5, score_eps=1e-6, route_scale=2.0
    )
    scores = sigmoid(wide(logits) * 1.5)
    expected = np.argsort(-(scores + wide(bias)), axis=-1)[:, :4]
    picked = np.take_along_axis(scores, expected, -1)
    np.testing.assert_array_equal(np.array(chosen), expected)
    close(weights, picked / (picked.sum(-1, keepdims=True) + 1e-6) * 2)


def combine(m: ModuleType, dtype: mx.Dtype) -> None:
    experts, weights, norm = draw(2, 3, 520, dtype=dtype), draw(2, 3, dtype=dtype), draw(520)
    got = m.post_expert_norm_combine(experts, weights, norm_weight=norm, eps=1e-5)
    expected = rms_norm(wide(experts) * wide(norm), 1e-5) * wide(weights)[..., None]
    close(got, expected.sum(-2), dtype)


def state_space(m: ModuleType, dtype: mx.Dtype) -> None:
    n, h, d, g, s = 2, 4, 12, 2, 64
    x, skip = draw(n, 1, h, d, dtype=dtype), draw(h, dtype=dtype)
    b, c = draw(n, 1, g, s, dtype=dtype), draw(n, 1, g, s, dtype=dtype)
    step, bias, a = draw(n, 1, h), draw(h), draw(h)
    before = draw(n, h, d, s)
    y, after = m.ssm_update_kernel(x, a, b, c, skip, step, bias, before, (0.001, 100.0))
    dt = np.clip(np.log1p(np.exp(wide(step)[:, 0] + wide(bias))), 0.001, 100.0)
    decay = np.exp(-np.exp(wide(a)) * dt)[..., None, None]
    wide_b, wide_c = (np.repeat(wide(z)[:, 0], h // g, axis=1)[:, :, None] for z in (b, c))
    inner = wide(x)[:, 0]
    state = decay * wide(before) + (inner * dt[..., None])[..., None] * wide_b
    close(after, state)
    close(y[:, 0], (state * wide_c).sum(-1) + inner * wide(skip)[:, None], dtype)


def delta_rule(m: ModuleType, dtype: mx.Dtype, mask: mx.array | None = None) -> None:
    """Both the general kernel and, for keys of 128, the packed one."""
    b, t, hk, hv, dv = 2, 3, 2, 4, 8
    for dk in (64, 128):
        q, k = (draw(b, t, hk, dk, scale=0.1, dtype=dtype) for _ in range(2))
        v, g = draw(b, t, hv, dv, dtype=dtype), mx.sigmoid(draw(b, t, hv))
        beta, state = mx.sigmoid(draw(b, t, hv)).astype(dtype), draw(b, hv, dv, dk)
        y, after = m.gated_delta_kernel(q, k, v, g, beta, state, mask)
        s = wide(state)
        wide_q, wide_k = (np.repeat(wide(z), hv // hk, axis=2) for z in (q, k))
        expected = np.zeros((b, t, hv, dv))
        for row, i in np.ndindex(b, t):
            if mask is not None and not mask[row, i].item():
                continue
            key, query = wide_k[row, i], wide_q[row, i]
            s[row] *= wide(g)[row, i][:, None, None]
            delta = wide(v)[row, i] - (s[row] * key[:, None]).sum(-1)
            s[row] += key[:, None] * (delta * wide(beta)[row, i][:, None])[..., None]
            expected[row, i] = (s[row] * query[:, None]).sum(-1)
        close(after, s)
        close(y, expected, dtype)


def wkv7(m: ModuleType, dtype: mx.Dtype) -> None:
    b, t, h, d = 2, 3, 2, 64
    r, w, k, v, a, c = (draw(b, t, h, d, scale=0.2, dtype=dtype) for _ in range(6))
    state = draw(b, h, d, d)
    y, after = m.wkv7_kernel(r, w, k, v, a, c, state)
    s, expected = wide(state), np.zeros((b, t, h, d))
    for i in range(t):
        rt, wt, kt, vt, at, ct = (wide(z)[:, i] for z in (r, w, k, v, a, c))
        sa = (s @ at[..., None]) * ct[:, :, None]
        s = s * wt[:, :, None] + vt[..., None] * kt[:, :, None] + sa
        expected[:, i] = (s * rt[:, :, None]).sum(-1)
    close(after, s, dtype)
    close(y, expected, dtype)


def bitlinear(m: ModuleType, dtype: mx.Dtype, wide_in: int = 36, out: int = 12) -> None:
    weights = RNG.integers(-1, 2, size=((out + 3) // 4 * 4, wide_in))
    layer = m.BitLinear(wide_in, out, bias=False)
    layer.weight_scale = mx.array([1.5]).astype(dtype)
    parts = (weights + 1).reshape(4, -1, wide_in)
    layer.weight = mx.array(sum(parts[j] << (2 * j) for j in range(4)).astype(np.uint8))
    x = draw(3, wide_in, dtype=dtype)
    close(layer(x), wide(x) @ weights[:out].T * 1.5, dtype)


def qk_norm_rope(m: ModuleType, dtype: mx.Dtype) -> None:
    n, hq, hk, d = 5, 4, 2, 48
    x = draw(1, n, 2 * (hq + hk) * d, dtype=dtype)
    q, k = m.qk_norm_rope(
        x, n_heads=hq, n_kv_heads=hk, head_dim=d, eps=1e-5, query_scale=0.3, rope_base=1e4, offset=3
    )
    heads = rms_norm(wide(x)[..., : (hq + hk) * d].reshape(1, n, hq + hk, d), 1e-5)
    heads[..., :hq, :] *= 0.3
    angle = np.arange(3, 3 + n)[:, None] * 1e4 ** (-np.arange(0, d, 2) / d)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    even, odd = heads[..., ::2], heads[..., 1::2]
    turned = np.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(heads.shape)
    close(q, turned[..., :hq, :], dtype)
    close(k, turned[..., hq:, :], dtype)


def sinkhorn(m: ModuleType, dtype: mx.Dtype) -> None:
    start = mx.sigmoid(draw(2, 3, 4, 4))
    expected = wide(start)
    expected /= expected.sum(-2, keepdims=True) + 1e-6
    for _ in range(4):
        expected /= expected.sum(-1, keepdims=True) + 1e-6
        expected /= expected.sum(-2, keepdims=True) + 1e-6
    close(m._sinkhorn(start, iters=5, eps=mx.array([1e-6])), expected)


def residual_mix(m: ModuleType, dtype: mx.Dtype) -> None:
    blocks, partial, w = draw(2, 1, 3, 700, dtype=dtype), draw(1, 3, 700, dtype=dtype), draw(700)
    given = SimpleNamespace(raw=blocks, inv_rms=mx.ones((2, 1, 3)))
    rows = np.concatenate([wide(blocks), rms_norm(wide(partial), 1e-5)[None]])
    logits = rows @ wide(w)
    p = np.exp(logits - logits.max(0))
    values = np.concatenate([wide(blocks), wide(partial)[None]])
    expected = ((p / p.sum(0))[..., None] * values).sum(0)
    close(m._attn_res_mix(given, partial, w, 1e-5), expected, dtype)


CASES: dict[str, tuple[str, Case]] = {
    "qk_norm": ("mlx_lm.kernels.qk_norm", qk_norm),
    "rms_norm_sigmoid_gate": ("mlx_lm.kernels.rms_norm_sigmoid_gate", sigmoid_gate),
    "norm_add_norm": ("mlx_lm.kernels.norm_add_norm", norm_add_norm),
    "expert_routing": ("mlx_lm.kernels.expert_routing", routing),
    "post_expert_norm_combine": ("mlx_lm.kernels.post_expert_norm_combine", combine),
    "ssm": ("mlx_lm.models.ssm", state_space),
    "gated_delta": ("mlx_lm.models.gated_delta", delta_rule),
    "wkv7": ("mlx_lm.models.rwkv7", wkv7),
    "qk_norm_rope": ("mlx_lm.kernels.qk_norm_rope", qk_norm_rope),
    "sinkhorn": ("mlx_lm.models.deepseek_v41", sinkhorn),
    "attnres_mix": ("mlx_lm.models.kimi_k3", residual_mix),
    "bitlinear": ("mlx_lm.models.bitlinear_layers", bitlinear),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_public_kernels_run_unmodified(name: str, dtype: mx.Dtype) -> None:
    module, case = CASES[name]
    for schedule in ("forward", "lockstep"):
        case(testing.on_bench(module, schedule=schedule, unwritten="error"), dtype)


known_release = pytest.mark.skipif(
    version("mlx-lm") != "0.32.2", reason="what was found, was found in mlx-lm 0.32.2"
)


@known_release
def test_a_masked_step_is_written_by_all_lanes_at_once() -> None:
    """A race, though a harmless one: all write 0. The values are right."""
    mask = mx.array([[True, True, False], [False, True, True]])
    module = "mlx_lm.models.gated_delta"
    with pytest.raises(KernelRaceError, match=r"gated_delta_step_mask: y\["):
        delta_rule(testing.on_bench(module), mx.float32, mask)
    delta_rule(testing.on_bench(module, races="allow"), mx.float32, mask)


@known_release
@pytest.mark.parametrize("sizes", [{"wide_in": 30}, {"out": 10}])
def test_bitlinear_reads_past_its_inputs_at_sizes_not_of_four(sizes: dict[str, Any]) -> None:
    with pytest.raises(KernelBoundsError, match=r"bitlinear_matmul: (x|packed_weights)\[\d+\]"):
        bitlinear(testing.on_bench("mlx_lm.models.bitlinear_layers"), mx.float32, **sizes)
