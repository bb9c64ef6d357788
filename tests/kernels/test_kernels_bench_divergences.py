"""The divergence kernels of mlx-lm: a known race, found; and with a barrier, right.

Kullback-Leibler and Jensen-Shannon, forward and backward, share maxima and then sums in one
threadgroup array, with no barrier between the reads of the one and the writes of the other. The
source is read from the installed package.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from test_kernels_bench_mlx_lm import draw, wide

import mlx_companion  # noqa: F401
from mlx_companion.errors import KernelRaceError
from mlx_companion.kernels import testing

pytestmark = pytest.mark.usefixtures("kernel_bench")
V = 5000
# Between the reads of the shared maxima and the writes of the shared sums.
BEFORE = "max_p = simd_max(max_p);\n\n        // Share the sum_exp"
FENCE = "threadgroup_barrier(mem_flags::mem_threadgroup);"


def mended(name: str, source: str) -> str:
    assert source.count(BEFORE) == 1
    return source.replace(BEFORE, BEFORE.replace("\n\n", f"\n{FENCE}\n", 1))


def has_the_race() -> bool:
    """Whether the installed mlx-lm still lacks the barrier."""
    sources: list[str] = []
    testing.on_bench("mlx_lm.tuner.losses", edit=lambda _, s: sources.append(s) or s)
    return all(BEFORE in s for s in sources)


def log_softmax(x: np.ndarray) -> np.ndarray:
    return (
        x
        - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - x.max(-1, keepdims=True)
    )


def losses(name: str, q: mx.array, p: mx.array) -> tuple[np.ndarray, np.ndarray]:
    """The loss per row and its gradient in q, by the definitions."""
    log_q, log_p = log_softmax(wide(q)), log_softmax(wide(p))
    if name == "kl_div_loss":
        return (np.exp(log_p) * (log_p - log_q)).sum(-1), np.exp(log_q) - np.exp(log_p)
    log_m = np.log((np.exp(log_p) + np.exp(log_q)) / 2)
    kl_p = (np.exp(log_p) * (log_p - log_m)).sum(-1)
    kl_q = (np.exp(log_q) * (log_q - log_m)).sum(-1)
    gradient = 0.5 * np.exp(log_q) * (log_q - log_m - kl_q[:, None])
    return 0.5 * (kl_p + kl_q), gradient


@pytest.mark.parametrize("schedule", testing.SCHEDULES)
@pytest.mark.parametrize("name", ["kl_div_loss", "js_div_loss"])
def test_the_race_in_the_divergences_is_found(name: str, schedule: str) -> None:
    if not has_the_race():
        pytest.skip("this mlx-lm has the barrier")
    loss = getattr(testing.on_bench("mlx_lm.tuner.losses", schedule=schedule), name)
    with pytest.raises(KernelRaceError, match=rf"{name[:2]}_forward: shared\[\d+\]: thread") as e:
        loss(draw(2, V), draw(2, V))
    # Both sides of it: the read of a maximum and the write of a sum.
    assert str(e.value).count("(line") == 2


@pytest.mark.parametrize("schedule", testing.SCHEDULES)
@pytest.mark.parametrize("name", ["kl_div_loss", "js_div_loss"])
def test_the_mended_divergences_are_right(name: str, schedule: str) -> None:
    edit = mended if has_the_race() else None
    loss = getattr(testing.on_bench("mlx_lm.tuner.losses", schedule=schedule, edit=edit), name)
    q, p = draw(2, V, scale=3), draw(2, V, scale=3)
    got, gradient = mx.value_and_grad(lambda q: loss(q, p).sum())(q)
    expected, expected_gradient = losses(name, q, p)
    np.testing.assert_allclose(got.item(), expected.sum(), rtol=1e-5)
    np.testing.assert_allclose(wide(gradient), expected_gradient, atol=1e-6)


def test_a_mem_none_barrier_before_shared_data_is_found_on_request() -> None:
    """kl_forward passes its last sums over a barrier that fences no memory."""
    made = testing.on_bench("mlx_lm.tuner.losses", edit=mended if has_the_race() else None,
                            strict_fences=True)  # fmt: skip
    with pytest.raises(KernelRaceError, match="kl_forward: shared"):
        made.kl_div_loss(draw(1, V), draw(1, V))
