"""What the dialect's functions compute: its header compiled as C++, behind a stand-in for CUDA.

The stand-in runs the 32 threads of a warp as threads that meet at every exchange. That is not
CUDA; it checks the dialect's own arithmetic: which lane gets what, in which order prefixes go, what
NaN and rounding do. That the same text compiles as CUDA is tested in `test_kernels_cuda_build`.
"""

from __future__ import annotations

import json
import math
import subprocess
from itertools import accumulate
from operator import mul
from pathlib import Path

import pytest

from mlx_companion.errors import HardwareError
from mlx_companion.kernels.cuda_dialect import FUNCTIONS
from mlx_companion.kernels.testing import build

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """What each function gave, by its name or call."""
    try:
        compiler = build.compiler()
    except HardwareError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("dialect")
    header = FUNCTIONS.replace("#include <cuda/std/limits>", "")
    (folder / "dialect.h").write_text(header, encoding="utf-8")
    program, text = folder / "dialect", HERE / "cuda_dialect_main.cpp"
    options = ["-std=c++20", "-O0", "-w", "-pthread", f"-I{folder}", f"-I{HERE}"]
    subprocess.run([compiler, *options, "-o", program, text], check=True)
    said = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return {name: [float(x) for x in values] for name, values in json.loads(said).items()}


F = [i * 0.5 - 3 for i in range(32)]
GROWING = [1 + i / 16 for i in range(32)]
LANES: dict[str, list[float]] = {
    "thread_index_in_threadgroup": list(range(32)),
    "thread_index_in_simdgroup": list(range(32)),
    "simdgroup_index_in_threadgroup": [0] * 32,
    "thread_position_in_grid.x": [16 + i % 8 for i in range(32)],
    "thread_position_in_grid.y": [2 + i // 8 % 2 for i in range(32)],
    "thread_position_in_grid.z": [i // 16 for i in range(32)],
    "simd_sum(f)": [sum(F)] * 32,
    "simd_max(f)": [max(F)] * 32,
    "simd_min(f)": [min(F)] * 32,
    "simd_product(i < 3 ? 2 : 1)": [8] * 32,
    # A type of 8 bits adds up in 8 bits.
    "simd_sum(uchar(i))": [sum(range(32)) % 256] * 32,
    "simd_or(1u << i)": [2**32 - 1] * 32,
    "simd_and(i | 8u)": [8] * 32,
    "simd_xor(i)": [0] * 32,
    "simd_prefix_inclusive_sum(f)": list(accumulate(F)),
    "simd_prefix_exclusive_sum(int(i))": [i * (i - 1) / 2 for i in range(32)],
    "simd_prefix_inclusive_product(1.0f + i / 16.0f)": list(accumulate(GROWING, mul)),
    "simd_prefix_exclusive_product(1.0f + i / 16.0f)": [1, *accumulate(GROWING[:-1], mul)],
    "simd_shuffle(int(i) * 3, ushort(31 - i))": [3 * (31 - i) for i in range(32)],
    "simd_shuffle_xor(f, 5)": [F[i ^ 5] for i in range(32)],
    "simd_broadcast(f, 7)": [F[7]] * 32,
    "simd_broadcast_first(f)": [F[0]] * 32,
    "simd_any(i == 17)": [1] * 32,
    "simd_any(i == 99)": [0] * 32,
    "simd_all(i < 32)": [1] * 32,
    "simd_all(i < 31)": [0] * 32,
    "float(simd_max(__half(f)))": [max(F)] * 32,
    "float(simd_sum(__nv_bfloat16(1.0f)))": [32] * 32,
}
NAN, INF = math.nan, math.inf
VALUES: dict[str, list[float]] = {
    "atomics": [sum(F), sum(range(32)), 31, 33],
    "max": [2, 3, 1.5, 1.5, 2],
    "min": [-3, 2, 1.5, -INF, 1],
    "abs": [2, 2.5, 3, 2, 0.5],
    "clamp": [3, 0, 1],
    "tests": [1, 0, 1, 0, 0, 1, 1, 1, 0],
    "exp": [math.e, 0, 1, math.log(2), 8, 3, 2.71875, 0.69140625],
    "roots": [2**0.5, 0.5, 2**0.5, 7, -2, -1, 2, 3, -1, 1.5, -2, 1],
    "bits": [8, 31, 32, 3, 32, 3, -1, 2, 1, 1.5, 0.25],
    "as_type": [0x3F800000, math.pi, -(2.0**31), 0x3F80],
    "limits": [3.4028234663852886e38, -(2.0**31)],
}


@pytest.mark.parametrize("name", LANES)
def test_each_lane_gets_what_metal_gives_it(computed: dict[str, list[float]], name: str) -> None:
    assert computed[name] == pytest.approx(LANES[name], rel=1e-5)


def test_shuffles_past_the_ends_are_left_open_but_the_rest_is_not(
    computed: dict[str, list[float]],
) -> None:
    assert computed["simd_shuffle_up(f, 3)"][3:] == F[:-3]
    assert computed["simd_shuffle_down(short(i), 30)"][:2] == [30, 31]


@pytest.mark.parametrize("name", VALUES)
def test_values_are_metals(computed: dict[str, list[float]], name: str) -> None:
    assert computed[name] == pytest.approx(VALUES[name], rel=3e-7)


def test_nothing_computed_is_left_unchecked(computed: dict[str, list[float]]) -> None:
    open_ends = {"simd_shuffle_up(f, 3)", "simd_shuffle_down(short(i), 30)"}
    assert set(computed) == {*LANES, *VALUES, *open_ends}
