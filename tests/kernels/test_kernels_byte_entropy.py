"""byte_entropy against double precision: values, gradients, decisions; its body on the bench."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mlx_companion  # noqa: F401 - before mlx.core, for its BLAS
from mlx_companion.errors import ConfigError
from mlx_companion.kernels.byte_entropy import byte_entropy
from mlx_companion.kernels.byte_entropy.decision import Limits, decide, rounded

IMPLS = ("reference", "plain")
SHAPES = [
    (1, 260),
    (63, 260),
    (1000, 260),
    (5, 1),
    (7, 2),
    (4, 33),
    (2, 1000),
    (9, 1000),
    (3, 49152),
    (2, 11, 260),
    (260,),
]
# Nats.
TOLERANCE = 1e-5
# Times V: MLX's sums over a row, which the reference uses, round after every number.
OF_REFERENCE = 1.2e-7


def probabilities(logits: np.ndarray) -> np.ndarray:
    exact = logits.astype(np.float64)
    shifted = np.exp(exact - exact.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def exact_entropy(logits: np.ndarray) -> np.ndarray:
    p = probabilities(logits)
    return -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(axis=-1)


def exact_gradient(logits: np.ndarray, slope: np.ndarray) -> np.ndarray:
    p = probabilities(logits)
    log_p = np.log(np.where(p > 0, p, 1))
    return -p * (log_p + exact_entropy(logits)[..., None]) * slope[..., None]


def exact_over(entropy: np.ndarray, threshold: float | None, rise: float | None) -> np.ndarray:
    """As the byte models decide: float32 entropies compared in double precision."""
    values = np.asarray(entropy).astype(np.float64)
    over = np.ones(values.shape, dtype=bool)
    if threshold is not None:
        over &= values > threshold
    if rise is not None:
        before = np.roll(values, 1, axis=-1)
        over &= values - before > rise
        over[..., 0] = False
    return over


def drawn(shape: tuple[int, ...], scale: float = 4.0, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) * scale + rng.normal() * 20).astype(np.float32)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scale", [0.0, 1.0, 15.0, 300.0])
def test_values(impl: str, shape: tuple[int, ...], scale: float) -> None:
    logits = drawn(shape, scale)
    result = byte_entropy(mx.array(logits), impl=impl)
    assert result.over is None
    assert result.entropy.dtype == mx.float32
    assert result.entropy.shape == shape[:-1]
    ours = np.array(result.entropy)
    limit = max(TOLERANCE, OF_REFERENCE * shape[-1]) if impl == "reference" else TOLERANCE
    assert np.abs(ours - exact_entropy(logits)).max() < limit
    assert (ours >= 0).all()


@pytest.mark.parametrize("rows", [1, 100])
@pytest.mark.parametrize("impl", IMPLS)
def test_impossible_certain_even_and_huge(impl: str, rows: int) -> None:
    logits = np.full((5, 260), -np.inf, dtype=np.float32)
    logits[0, 65] = 3.0
    logits[1, 65:67] = -1e30
    logits[2] = 7.0
    logits[3] = 0.0
    logits[3, 9] = 3e38
    logits[4, 64:128] = -3e38
    ours = np.array(byte_entropy(mx.array(np.repeat(logits, rows, axis=0)), impl=impl).entropy)
    expected = np.repeat([0.0, math.log(2), math.log(260), 0.0, math.log(64)], rows)
    assert np.abs(ours - expected).max() < TOLERANCE


@pytest.mark.parametrize("rows", [1, 100])
@pytest.mark.parametrize("impl", IMPLS)
def test_what_is_no_distribution_has_no_entropy(impl: str, rows: int) -> None:
    logits = np.zeros((4, 260), dtype=np.float32)
    logits[0, 3] = np.nan
    logits[1, 3] = np.inf
    logits[2] = -np.inf
    result = byte_entropy(mx.array(np.repeat(logits, rows, axis=0)), threshold=-1.0, impl=impl)
    fails = np.repeat([True, True, True, False], rows)
    assert (np.isnan(np.array(result.entropy)) == fails).all()
    assert (np.array(result.over) == ~fails).all()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_half_precision_counts_as_what_it_holds(impl: str, dtype: mx.Dtype) -> None:
    logits = mx.array(drawn((3, 50, 260))).astype(dtype)
    held = np.array(logits.astype(mx.float32))
    assert np.abs(np.array(byte_entropy(logits, impl=impl).entropy) - exact_entropy(held)).max() < (
        TOLERANCE
    )
    slope = mx.array(drawn((3, 50), 1.0, 1))
    gradient = mx.grad(lambda x: (byte_entropy(x, impl=impl).entropy * slope).sum())(logits)
    assert gradient.dtype == dtype
    expected = exact_gradient(held, np.array(slope))
    limit = 2e-3 if dtype == mx.float16 else 1.6e-2
    assert np.abs(np.array(gradient.astype(mx.float32)) - expected).max() < (
        limit * np.abs(expected).max()
    )


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 700, 260)], ids=str)
def test_gradients(impl: str, shape: tuple[int, ...]) -> None:
    logits, slope = drawn(shape), drawn(shape[:-1], 1.0, 1)
    logits[..., 0] = logits[..., -1]

    def total(x: mx.array) -> mx.array:
        return (byte_entropy(x, threshold=1.0, impl=impl).entropy * mx.array(slope)).sum()

    value, gradient = mx.value_and_grad(total)(mx.array(logits))
    expected = exact_gradient(logits, slope)
    scale = max(1.0, np.abs(slope).max())
    limit = max(TOLERANCE, OF_REFERENCE * shape[-1]) if impl == "reference" else TOLERANCE
    assert np.abs(np.array(gradient) - expected).max() < limit * scale
    total_error = abs(value.item() - (exact_entropy(logits) * slope).sum())
    assert total_error < limit * scale * max(1, slope.size)


@pytest.mark.parametrize("rows", [2, 400])
def test_gradient_is_the_slope_of_the_values(rows: int) -> None:
    """Finite differences of the double-precision entropy, which knows nothing of the formula."""
    logits, direction = drawn((rows, 260)), drawn((rows, 260), 1.0, 2)
    step = 1e-5
    ahead, behind = (
        exact_entropy(logits.astype(np.float64) + sign * step * direction) for sign in (1, -1)
    )
    gradient = mx.grad(lambda x: byte_entropy(x, impl="plain").entropy.sum())(mx.array(logits))
    along = (np.array(gradient).astype(np.float64) * direction).sum(axis=-1)
    assert np.abs(along - (ahead - behind) / (2 * step)).max() < 1e-4


@pytest.mark.parametrize("rows", [2, 400])
@pytest.mark.parametrize("impl", IMPLS)
def test_gradient_ignores_what_is_impossible(impl: str, rows: int) -> None:
    logits = drawn((rows, 260))
    logits[:, 100:] = -np.inf
    gradient = np.array(
        mx.grad(lambda x: byte_entropy(x, impl=impl).entropy.sum())(mx.array(logits))
    )
    assert np.abs(gradient - exact_gradient(logits, np.ones(rows))).max() < TOLERANCE
    assert np.abs(gradient[:, 100:]).max() < 1e-20


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    ("threshold", "rise"), [(2.0, None), (None, 0.1), (1.5, 0.05), (None, -0.2), (math.inf, None)]
)
@pytest.mark.parametrize("shape", [(1, 260), (63, 260), (3, 50, 260), (2, 3, 20, 260)], ids=str)
def test_decisions(
    impl: str, threshold: float | None, rise: float | None, shape: tuple[int, ...]
) -> None:
    logits = mx.array(drawn(shape) * np.linspace(0.1, 1, shape[-2], dtype=np.float32)[:, None])
    result = byte_entropy(logits, threshold=threshold, rise=rise, impl=impl)
    assert result.over is not None
    assert result.over.dtype == mx.bool_
    expected = exact_over(np.array(result.entropy), threshold, rise)
    assert (np.array(result.over) == expected).all()


# Zero, or so large that double precision holds every difference.
NATS = st.just(0.0) | st.floats(2**-20, 6, width=32)


@settings(max_examples=300, deadline=None)
@given(values=st.lists(NATS, min_size=1, max_size=5), pick=st.data())
def test_decisions_are_those_of_double_precision(values: list[float], pick: st.DataObject) -> None:
    """Limits drawn from where float32 goes wrong: at, and just beside, values and differences."""
    entropy = np.array(values, dtype=np.float32)
    exact = entropy.astype(np.float64)
    differences = np.diff(exact, prepend=0.0)
    at = pick.draw(st.integers(0, len(values) - 1))
    towards = pick.draw(st.sampled_from([-np.inf, 0.0, np.inf]))
    threshold, rise = (
        float(x) if towards == 0.0 else float(np.nextafter(x, towards))
        for x in (exact[at], differences[at])
    )
    for limits in (Limits(threshold, None), Limits(None, rise), Limits(threshold, rise)):
        ours = np.array(decide(mx.array(entropy), limits))
        assert (ours == exact_over(entropy, *limits)).all()


@settings(max_examples=300, deadline=None)
@given(x=st.floats(-1e39, 1e39))
def test_limits_are_rounded_downwards(x: float) -> None:
    threshold, nearest, rest = rounded(Limits(x, x))
    assert threshold <= x
    with np.errstate(over="ignore"):
        assert float(np.nextafter(np.float32(threshold), np.float32(np.inf))) > x
    if math.isfinite(nearest):
        assert nearest + rest <= x
        assert abs(nearest + rest - x) <= 1e-13 * abs(x) + 1e-44


def test_a_single_prediction_has_no_row_before() -> None:
    for impl in IMPLS:
        over = byte_entropy(mx.zeros((260,)), rise=-100.0, impl=impl).over
        assert over is not None
        assert over.shape == ()
        assert not over.item()


@pytest.mark.parametrize("shape", [(0, 260), (2, 0, 260), (0,)])
def test_nothing_gives_nothing(shape: tuple[int, ...]) -> None:
    if shape[-1]:
        result = byte_entropy(mx.zeros(shape), threshold=1.0)
        assert result.entropy.shape == shape[:-1]
        assert result.over is not None
        assert result.over.dtype == mx.bool_
    else:
        with pytest.raises(ConfigError, match="V of at least 1"):
            byte_entropy(mx.zeros(shape))


def test_what_is_wrong_says_so() -> None:
    with pytest.raises(ConfigError, match="expected floats"):
        byte_entropy(mx.zeros((3, 260), dtype=mx.int32))
    with pytest.raises(ConfigError, match="expected floats"):
        byte_entropy(mx.array(1.0))
    with pytest.raises(ConfigError, match="rise is not a number"):
        byte_entropy(mx.zeros((3, 260)), rise=math.nan)
    with pytest.raises(ConfigError, match="no implementation 'fast'"):
        byte_entropy(mx.zeros((3, 260)), impl="fast")  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [3, 600])
def test_inside_of_compiled_functions(rows: int) -> None:
    logits = mx.array(drawn((rows, 260)))

    @mx.compile
    def step(x: mx.array) -> tuple[mx.array, mx.array]:
        return mx.value_and_grad(lambda y: byte_entropy(y).entropy.sum())(x)

    value, gradient = step(logits)
    assert abs(value.item() - exact_entropy(np.array(logits)).sum()) < TOLERANCE * rows
    expected = exact_gradient(np.array(logits), np.ones(rows))
    assert np.abs(np.array(gradient) - expected).max() < TOLERANCE


def test_memory_does_not_grow_with_the_text() -> None:
    peaks = []
    for rows in (8_192, 32_768):
        logits = mx.zeros((rows, 260))
        mx.eval(logits)
        found = []
        # The least of several: work that is queued faster than it is done holds more at once.
        for _ in range(5):
            before = mx.get_active_memory()
            mx.reset_peak_memory()
            mx.eval(byte_entropy(logits, threshold=1.0))
            found.append(mx.get_peak_memory() - before)
        peaks.append(min(found))
    # All intermediate arrays of the longer text would take 34 MB each.
    assert peaks[1] < 1.5 * peaks[0] < 20e6


@pytest.mark.parametrize("shape", [(1, 260), (63, 260), (2, 33, 260), (5, 1), (3, 2), (2, 1000)])
def test_the_body_gives_values_gradients_and_decisions(
    on_metal: object, shape: tuple[int, ...]
) -> None:
    logits = drawn(shape, 3.0)
    logits[..., 1:, -1] = -np.inf if shape[-1] > 1 else 0.0
    slope = drawn(shape[:-1], 1.0, 1)

    def run(x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        entropy, over = byte_entropy(x, threshold=0.5, rise=-0.5, impl="metal")
        return (entropy * mx.array(slope)).sum(), entropy, over

    (_, entropy, over), gradient = mx.value_and_grad(run)(mx.array(logits))
    assert np.abs(np.array(entropy) - exact_entropy(logits)).max() < TOLERANCE
    assert (np.array(over) == exact_over(np.array(entropy), 0.5, -0.5)).all()
    expected = exact_gradient(logits, slope)
    assert np.abs(np.array(gradient) - expected).max() < TOLERANCE * np.abs(slope).max()


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_the_body_in_half_precision(on_metal: object, dtype: mx.Dtype) -> None:
    logits = mx.array(drawn((37, 260))).astype(dtype)
    result = byte_entropy(logits, threshold=1.0, impl="metal")
    held = np.array(logits.astype(mx.float32))
    assert np.abs(np.array(result.entropy) - exact_entropy(held)).max() < TOLERANCE
    assert (np.array(result.over) == exact_over(np.array(result.entropy), 1.0, None)).all()


def test_the_body_on_what_is_no_distribution(on_metal: object) -> None:
    logits = np.zeros((4, 260), dtype=np.float32)
    logits[0, 3], logits[1, 3], logits[2] = np.nan, np.inf, -np.inf
    result = byte_entropy(mx.array(logits), threshold=-1.0, impl="metal")
    assert np.isnan(np.array(result.entropy)).tolist() == [True, True, True, False]
    assert np.array(result.over).tolist() == [False, False, False, True]
