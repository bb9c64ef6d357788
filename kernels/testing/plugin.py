"""Pytest: run a test of a kernel under every schedule of the bench, and on a real GPU.

In a conftest.py:

    pytest_plugins = ["mlx_companion.kernels.testing.plugin"]

Then a test that asks for `on_metal` runs once per schedule, with `impl="metal"` on the bench; and,
under `pytest -m metal`, once more on the device itself. Its value is the schedule's name, or
"device". Where there is no C++ compiler such tests are skipped, and say so.
"""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import pytest

from mlx_companion.errors import HardwareError
from mlx_companion.kernels.testing import build
from mlx_companion.kernels.testing.schedules import SCHEDULES, emulated

DEVICE = "device"


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", "metal: runs on a GPU of Apple, and is skipped elsewhere")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give `on_metal` its schedules, and the device where it is there or asked for."""
    if "on_metal" not in metafunc.fixturenames:
        return
    values = [pytest.param(s, id=s.replace(":", "-")) for s in SCHEDULES]
    if mx.metal.is_available() or "metal" in metafunc.config.getoption("markexpr", ""):
        values.append(pytest.param(DEVICE, id=DEVICE, marks=pytest.mark.metal))
    metafunc.parametrize("on_metal", values, indirect=True)


@pytest.fixture
def on_metal(request: pytest.FixtureRequest, kernel_bench: None) -> Iterator[str]:
    """`impl="metal"` runs on the bench under one schedule, or on the device; yields which."""
    if request.param == DEVICE:
        if not mx.metal.is_available():
            pytest.skip("this test is for a GPU of Apple, and MLX has no Metal here")
        with mx.stream(mx.gpu):
            yield DEVICE
        return
    with emulated(request.param, unwritten="error"):
        yield request.param


@pytest.fixture(scope="session")
def kernel_bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A folder for compiled kernels that lasts for all tests; skips without a C++ compiler."""
    try:
        build.compiler()
    except HardwareError as error:
        pytest.skip(str(error))
    build.keep_in(tmp_path_factory.mktemp("kernel-bench"))
    yield
    build.keep_in(None)
