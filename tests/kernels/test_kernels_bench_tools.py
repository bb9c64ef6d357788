"""The bench's tools: translation, compiling and its cache, schedules, the pytest plugin."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import mlx_companion
from mlx_companion.errors import (
    CompanionError,
    ConfigError,
    HardwareError,
    KernelBuildError,
    KernelError,
    KernelRaceError,
)
from mlx_companion.kernels import testing
from mlx_companion.kernels.launch import Kernel
from mlx_companion.kernels.testing import build
from mlx_companion.kernels.testing.source import translate, without_comments

_SCALE = Kernel(
    name="scale",
    inputs=("a",),
    outputs=("x",),
    source="uint i = thread_position_in_grid.x; x[i] = a[i] * K;",
)


def scaled(a: mx.array, k: int = 3) -> mx.array:
    """a * k by a kernel."""
    (x,) = _SCALE(
        [a], impl="metal", template=[("K", k)], grid=(a.size, 1, 1), threadgroup=(64, 1, 1),
        shapes=[a.shape], dtypes=[a.dtype],
    )  # fmt: skip
    return x


@pytest.fixture
def fresh_cache(tmp_path: Path, kernel_bench: None) -> Iterator[Path]:
    """An empty folder for compiled kernels."""
    before = build._folder
    build.keep_in(tmp_path / "bench")
    yield tmp_path / "bench"
    build.keep_in(before)


@pytest.mark.parametrize(("source", "expected"), [
    ("threadgroup float* p = q;", "threadgroup float* p = q;"),
    ("T f(threadgroup T* p) { return p[0]; }", "T f(threadgroup T* p) { return p[0]; }"),
    ("x = 0.5 + 1e-3 + 2.f + 1 + 0x1F + 3u;", "x = 0.5f + 1e-3f + 2.f + 1 + 0x1F + 3u;"),
    ("x = 1.5h;", "x = half(1.5f);"),
    ("#include <metal_stdlib>\nint a;", "\nint a;"),
    ("#define HALF_OF(v) ((v) * 0.5)\n", "#define HALF_OF(v) ((v) * 0.5f)\n"),
    ("// 0.5 threadgroup float x[3];\n", "// 0.5 threadgroup float x[3];\n"),
    ("a.x1 = b[1].y;", "a.x1 = b[1].y;"),
])  # fmt: skip
def test_translation(source: str, expected: str) -> None:
    assert translate(source, small_floats=False).replace(".f", "f") == expected.replace(".f", "f")


def test_threadgroup_declarations_keep_their_lines() -> None:
    text = translate(
        "threadgroup\n  vec<float, 4> a[2][N + 1],\n  b;\nint c;", small_floats=False, first_id=7
    )
    assert text.index("int c;") == len(text) - 6
    assert text.count("\n") == 3
    assert "typedef vec < float , 4 > mb_type_7 [ 2 ] [ N + 1 ];" in text
    assert 'mb_type_8& b = mb_shared<mb_type_8>("b", 8);' in text


def test_nested_conditions_with_small_floats(kernel_bench: None) -> None:
    source = """
        uint i = thread_position_in_grid.x;
        float y = i == 0 ? a[i] : i == 1 ? 0.25f : (i == 2 ? 7 : a[i]);
        x[i] = f(i > 1 ? a[0] : 1.0f, a[1]) + y;
    """
    kernel = testing.metal_kernel(
        "nested", ["a"], ["x"], source, header="inline float f(float p, float q) { return p - q; }"
    )
    a = mx.array([0.5, 1.5, 2.5, 3.5]).astype(mx.bfloat16)
    (x,) = kernel(
        inputs=[a], grid=(4, 1, 1), threadgroup=(4, 1, 1), output_shapes=[(4,)],
        output_dtypes=[mx.float32],
    )  # fmt: skip
    assert x.tolist() == [1 - 1.5 + 0.5, 1 - 1.5 + 0.25, 0.5 - 1.5 + 7, 0.5 - 1.5 + 3.5]


def test_comments_go() -> None:
    assert without_comments('a /* b */ + "//c" // d\n') == 'a   + "//c"  \n'


def test_an_op_runs_where_metal_would(on_metal: str) -> None:
    assert scaled(mx.arange(100.0)).tolist() == (np.arange(100.0) * 3).tolist()


def test_gradients_pass_through_a_custom_function(on_metal: str) -> None:
    @mx.custom_function
    def triple(a: mx.array) -> mx.array:
        return scaled(a)

    @triple.vjp
    def _(primals: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
        return scaled(cotangent)

    gradient = mx.grad(lambda a: triple(a).sum())(mx.arange(5.0))
    assert gradient.tolist() == [3.0] * 5


def test_compile_and_vmap_have_no_values_for_the_bench(kernel_bench: None) -> None:
    with testing.emulated():
        for wrapped in (mx.compile(scaled), mx.vmap(scaled)):
            with pytest.raises(KernelError, match=r"mx.compile and mx.vmap have none"):
                mx.eval(wrapped(mx.ones((4, 4))))


def test_all_schedules_are_compared(kernel_bench: None) -> None:
    x = testing.check(lambda: scaled(mx.arange(70.0)))
    assert x.tolist() == (np.arange(70.0) * 3).tolist()
    last = testing.metal_kernel(
        "last", ["a"], ["x"], "x[0] = thread_position_in_grid.x + a[0];", races="allow"
    )
    call = {
        "inputs": [mx.zeros((1,))], "grid": (64, 1, 1), "threadgroup": (64, 1, 1),
        "output_shapes": [(1,)], "output_dtypes": [mx.float32],
    }  # fmt: skip
    with pytest.raises(KernelRaceError, match=r"output 0 depends .* 63.0 under forward and 0.0"):
        testing.run_all_schedules(last, **call)
    assert testing.run_all_schedules(last, ["random:5", "random:5"], **call)


def test_a_compiled_kernel_is_found_again(fresh_cache: Path) -> None:
    with testing.emulated():
        scaled(mx.ones((8,)))
        made = {p: p.stat().st_mtime_ns for p in fresh_cache.iterdir()}
        scaled(mx.zeros((8,)))
    assert {p: p.stat().st_mtime_ns for p in fresh_cache.iterdir()} == made
    assert sorted(p.suffix for p in made) == [".o", ".so"]


def test_threads_of_python_launch_at_once(fresh_cache: Path) -> None:
    errors: list[Exception] = []

    def work(number: int) -> None:
        try:
            for _ in range(5):
                a = mx.arange(256.0) + number
                with testing.emulated("lockstep"):
                    got = scaled(a, k=number % 2 + 2)
                assert mx.array_equal(got, a * (number % 2 + 2))
        except Exception as error:
            errors.append(error)

    workers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not errors


def test_a_missing_compiler_is_a_clear_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(HardwareError, match=r"needs a C\+\+ compiler and found none"):
        build.compiler()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(HardwareError, match="no-such-compiler"):
        build.compiler()


def test_a_compiler_without_the_checks_is_a_clear_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fresh_cache: Path
) -> None:
    tool = tmp_path / "old-compiler"
    tool.write_text(
        "#!/bin/sh\n[ $1 = --version ] && exit 0\n"
        "echo \"error: unrecognized argument to '-fsanitize='\" >&2; exit 1\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("CXX", str(tool))
    with testing.emulated(), pytest.raises(KernelBuildError, match="not the checks that the bench"):
        scaled(mx.ones((8,)))


@pytest.mark.parametrize("name", ["no_such_module_at_all", "mlx.core", "no.such"])
def test_modules_without_source_are_a_clear_error(name: str) -> None:
    with pytest.raises(ConfigError, match=f"no module '{name}' with source"):
        testing.on_bench(name)


def test_errors_are_of_this_package() -> None:
    assert issubclass(KernelRaceError, CompanionError)


_CONFTEST = 'pytest_plugins = ["mlx_companion.kernels.testing.plugin"]\n'
_TEST = """
import mlx.core as mx
from mlx_companion.kernels.launch import Kernel
K = Kernel("k", ("a",), ("x",), "x[thread_position_in_grid.x] = a[thread_position_in_grid.x];")
def test_copy(on_metal):
    (x,) = K([mx.ones((4,))], impl="metal", grid=(4, 1, 1), threadgroup=(4, 1, 1), shapes=[(4,)],
             dtypes=[mx.float32])
    assert x.tolist() == [1.0] * 4
"""


def _pytest(folder: Path, *arguments: str, **environment: str) -> str:
    (folder / "conftest.py").write_text(_CONFTEST)
    (folder / "test_it.py").write_text(_TEST)
    root = Path(mlx_companion.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rs", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(root), **environment},
    )  # fmt: skip
    return done.stdout + done.stderr


def test_the_plugin_in_a_folder_of_its_own(kernel_bench: None, tmp_path: Path) -> None:
    assert "4 passed" in _pytest(tmp_path, "-k", "not device")


@pytest.mark.skipif(mx.metal.is_available(), reason="here the device is used")
def test_the_plugin_without_metal_skips_and_says_so(tmp_path: Path) -> None:
    output = _pytest(tmp_path, "-m", "metal")
    assert "1 skipped" in output
    assert "MLX has no Metal here" in output


def test_the_plugin_without_a_compiler_skips_and_says_so(tmp_path: Path) -> None:
    output = _pytest(tmp_path, "-k", "not device", CXX="no-such-compiler")
    assert "4 skipped" in output
    assert "needs a C++ compiler" in output
