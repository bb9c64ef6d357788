"""Which implementation runs, how a kernel is launched, and matrices plain and quantized."""

from __future__ import annotations

import mlx_companion  # noqa: F401  (loads a fast BLAS before MLX)

import mlx.core as mx  # isort: skip
import mlx.nn as nn  # isort: skip
import numpy as np  # isort: skip
import pytest  # isort: skip

from typing import Any  # isort: skip

from mlx_companion.errors import ConfigError, HardwareError  # isort: skip
from mlx_companion.kernels import dispatch, launch  # isort: skip
from mlx_companion.kernels.cuda_dialect import around  # isort: skip
from mlx_companion.kernels.dispatch import IMPLS, choose  # isort: skip
from mlx_companion.kernels.launch import Kernel, metal_by  # isort: skip
from mlx_companion.kernels.matrix import Matrix, of_layer  # isort: skip

DOUBLE = Kernel("double_it", ("x",), ("y",), "y[0] = x[0];", "METAL_FUNC int f();", True)


class Machine:
    """What MLX says of a machine."""

    def __init__(self, patch: pytest.MonkeyPatch, device: str, *backends: str) -> None:
        kind = mx.DeviceType.cpu if device == "cpu" else mx.DeviceType.gpu
        patch.setattr(mx, "default_device", lambda: type("Device", (), {"type": kind}))
        patch.setattr(mx.metal, "is_available", lambda: "metal" in backends)
        patch.setattr(mx.cuda, "is_available", lambda: "cuda" in backends)


@pytest.mark.parametrize(
    ("device", "backends", "chosen"),
    [
        ("cpu", (), "plain"),
        ("cpu", ("metal",), "plain"),
        ("cpu", ("cuda",), "plain"),
        ("gpu", ("metal",), "metal"),
        ("gpu", ("cuda",), "cuda"),
    ],
)
def test_auto_goes_by_the_default_device(
    monkeypatch: pytest.MonkeyPatch, device: str, backends: tuple[str, ...], chosen: str
) -> None:
    Machine(monkeypatch, device, *backends)
    assert choose("auto", "op") == chosen
    assert choose("auto", "op", kernels=()) == "plain"


def test_auto_leaves_out_kernels_that_do_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, "gpu", "cuda")
    assert choose("auto", "op", kernels=("metal",)) == "plain"
    assert choose("cuda", "op", kernels=("metal",)) == "cuda"


@pytest.mark.parametrize("impl", ["reference", "plain"])
def test_what_needs_no_accelerator_runs_anywhere(
    monkeypatch: pytest.MonkeyPatch, impl: str
) -> None:
    for machine in (("cpu",), ("gpu", "metal"), ("gpu", "cuda")):
        Machine(monkeypatch, *machine)
        assert choose(impl, "op") == impl


@pytest.mark.parametrize(
    ("impl", "backends"), [("metal", ()), ("metal", ("cuda",)), ("cuda", ()), ("cuda", ("metal",))]
)
def test_asking_for_what_is_missing_is_an_error(
    monkeypatch: pytest.MonkeyPatch, impl: str, backends: tuple[str, ...]
) -> None:
    Machine(monkeypatch, "gpu" if backends else "cpu", *backends)
    with pytest.raises(HardwareError, match=f"the {impl} backend was asked for"):
        choose(impl, "op")


def test_an_unknown_implementation_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"op has no implementation 'tpu'.*auto, reference"):
        choose("tpu", "op")
    assert set(IMPLS) == {"auto", "reference", "plain", "metal", "cuda"}


def test_a_stand_in_counts_as_metal(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, "cpu")
    with metal_by(lambda **kernel: lambda **call: []):
        assert launch.emulated()
        assert choose("metal", "op") == "metal"
        assert choose("auto", "op") == "plain"
        with pytest.raises(HardwareError):
            choose("cuda", "op")
    assert not launch.emulated()


def test_the_default_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dispatch.default_accelerator() is None or mx.default_device().type == mx.gpu
    Machine(monkeypatch, "gpu", "metal")
    assert dispatch.default_accelerator() == "metal"


class Recorder:
    """In the place of MLX's makers of kernels: keeps what it is given."""

    def __init__(self) -> None:
        self.made: list[dict[str, Any]] = []
        self.called: list[dict[str, Any]] = []

    def __call__(self, **kernel: Any) -> Any:
        self.made.append(kernel)

        def run(**call: Any) -> list[mx.array]:
            self.called.append(call)
            return [mx.zeros(s, d) for s, d in zip(*outputs(call), strict=True)]

        return run


def outputs(call: dict[str, Any]) -> tuple[Any, Any]:
    return call["output_shapes"], call["output_dtypes"]


def run(kernel: Kernel, x: mx.array, impl: str, **more: Any) -> list[mx.array]:
    return kernel(
        [x],
        impl=impl,
        grid=(32, 1, 1),
        threadgroup=(32, 1, 1),
        shapes=[(3,)],
        dtypes=[mx.float32],
        **more,
    )


def test_a_launch_passes_everything_on() -> None:
    recorder = Recorder()
    with metal_by(recorder):
        (y,) = run(DOUBLE, mx.ones((3,)), "metal", template=[("T", mx.float32)], init_value=0)
        run(DOUBLE, mx.ones((3,)), "metal")
    assert y.shape == (3,)
    assert recorder.made == [
        {
            "name": "double_it",
            "input_names": ("x",),
            "output_names": ("y",),
            "source": "y[0] = x[0];",
            "header": "METAL_FUNC int f();",
            "atomic_outputs": True,
        }
    ]
    first, second = recorder.called
    assert first["template"] == [("T", mx.float32)]
    assert first["init_value"] == 0
    assert (first["grid"], first["threadgroup"]) == ((32, 1, 1), (32, 1, 1))
    assert "init_value" not in second


def test_stand_ins_do_not_outlive_their_block() -> None:
    outer, inner = Recorder(), Recorder()
    with metal_by(outer):
        with pytest.raises(ZeroDivisionError), metal_by(inner):
            run(DOUBLE, mx.ones((3,)), "metal")
            raise ZeroDivisionError
        run(DOUBLE, mx.ones((3,)), "metal")
    assert (len(outer.called), len(inner.called)) == (1, 1)
    assert not launch.emulated()


def test_cuda_gets_the_dialect_and_a_name_for_each_source_and_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """MLX's CUDA backend finds compiled kernels by name and template alone."""
    recorder = Recorder()
    monkeypatch.setattr(mx.fast, "cuda_kernel", recorder)
    launch._made.cache_clear()
    other = Kernel("double_it", ("x",), ("y",), "y[0] = x[1];", DOUBLE.header)
    try:
        run(DOUBLE, mx.ones((3,)), "cuda")
        run(DOUBLE, mx.ones((5,)), "cuda")
        run(DOUBLE, mx.ones((3,), mx.float16), "cuda")
        run(other, mx.ones((3,)), "cuda")
    finally:
        launch._made.cache_clear()
    names = [made["name"] for made in recorder.made]
    assert len(set(names)) == len(names) == 3
    assert all(name.isidentifier() and name.startswith("double_it_") for name in names)
    assert {made["header"] for made in recorder.made} == {around(DOUBLE.header)}
    assert "atomic_outputs" not in recorder.made[0]


def test_inputs_without_dimensions_are_refused() -> None:
    with metal_by(Recorder()), pytest.raises(ConfigError, match=r"'x' has no dimensions.*\(1,\)"):
        run(DOUBLE, mx.array(1.0), "metal")


# ---- matrices ------------------------------------------------------------------------------------

ROWS, COLUMNS = 24, 128
FORMS = [None, (2, 32), (3, 32), (4, 64), (5, 64), (6, 64), (8, 128)]


def unpacked(packed: mx.array, bits: int) -> np.ndarray:
    """Whole numbers (rows, columns) out of rows of bits, the lowest first."""
    words = np.array(packed).view(np.uint8)
    stream = np.unpackbits(words, axis=-1, bitorder="little")
    digits = stream.reshape(len(words), -1, bits).astype(np.int64)
    return digits @ (1 << np.arange(bits))


def drawn(form: tuple[int, int] | None) -> tuple[Matrix, np.ndarray]:
    """A matrix, and in double precision what it stands for."""
    weight = mx.random.normal((ROWS, COLUMNS), key=mx.random.key(0))
    if form is None:
        return Matrix(weight), np.array(weight).astype(np.float64)
    bits, group = form
    packed, scales, biases = mx.quantize(weight, group_size=group, bits=bits)
    scale, bias = (
        np.repeat(np.array(x).astype(np.float64), group, axis=1) for x in (scales, biases)
    )
    return Matrix(packed, scales, biases, group, bits), unpacked(packed, bits) * scale + bias


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_matrix_is_what_it_stands_for(form: tuple[int, int] | None) -> None:
    matrix, exact = drawn(form)
    x = np.random.default_rng(1).normal(size=(2, 3, COLUMNS))
    y = np.random.default_rng(2).normal(size=(2, 3, ROWS))
    ids = np.array([[0, 23, 5], [5, 5, 1]])

    def close(ours: mx.array, theirs: np.ndarray) -> bool:
        return ours.shape == theirs.shape and bool(np.abs(np.array(ours) - theirs).max() < 2e-4)

    assert matrix.shape == (ROWS, COLUMNS)
    assert matrix.quantized == (form is not None)
    assert close(matrix.apply(mx.array(x, dtype=mx.float32)), x @ exact.T)
    assert close(matrix.apply_transposed(mx.array(y, dtype=mx.float32)), y @ exact)
    assert close(matrix.rows(mx.array(ids)), exact[ids])
    assert close(matrix.dense(), exact)


@pytest.mark.parametrize("mode", ["mxfp4", "mxfp8", "nvfp4"])
def test_modes_without_biases(mode: str) -> None:
    layer = nn.Linear(COLUMNS, ROWS, bias=False).to_quantized(mode=mode)
    matrix = of_layer(layer)
    assert matrix.biases is None
    assert len(matrix.arrays) == 2
    assert matrix.shape == (ROWS, COLUMNS)
    x = mx.random.normal((3, COLUMNS), key=mx.random.key(1))
    dense, rows = (
        np.array(y.astype(mx.float32)).astype(np.float64)
        for y in (matrix.dense(), matrix.rows(mx.array([2, 0])))
    )
    assert np.abs(np.array(matrix.apply(x)) - np.array(x) @ dense.T).max() < 1e-4
    assert (rows == dense[[2, 0]]).all()
    assert np.abs(np.array(matrix.apply(x)) - np.array(layer(x))).max() < 1e-6


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_same_form_around_other_arrays(form: tuple[int, int] | None) -> None:
    matrix, exact = drawn(form)
    doubled = [x if x.dtype == mx.uint32 else 2 * x for x in matrix.arrays]
    other = matrix.with_arrays(doubled)
    assert other[3:] == matrix[3:]
    assert np.abs(np.array(other.dense()) - 2 * exact).max() < 1e-5
    assert len(matrix.arrays) == (1 if form is None else 3)


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("kind", [nn.Linear, nn.Embedding])
def test_layers_give_their_matrix(kind: Any, quantized: bool) -> None:
    layer = nn.Linear(COLUMNS, ROWS) if kind is nn.Linear else nn.Embedding(ROWS, COLUMNS)
    if quantized:
        layer = layer.to_quantized(group_size=32, bits=8)
    matrix = of_layer(layer)
    assert matrix.quantized == quantized
    x = mx.random.normal((3, COLUMNS), key=mx.random.key(1))
    expected = layer(x) - layer.bias if kind is nn.Linear else layer.as_linear(x)
    assert np.abs(np.array(matrix.apply(x) - expected)).max() < 1e-5


@pytest.mark.parametrize("layer", [nn.RMSNorm(4), nn.Conv1d(2, 2, 1), nn.Module()])
def test_other_layers_have_no_one_matrix(layer: nn.Module) -> None:
    with pytest.raises(ConfigError, match=f"{type(layer).__name__} is neither a linear"):
        of_layer(layer)
