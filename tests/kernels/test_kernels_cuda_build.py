"""Every kernel compiles as CUDA: the code that MLX would make, by NVRTC, which needs no GPU.

What compiles is not yet right: results are compared where there is a GPU. But a body that calls
what the dialect lacks, or means double precision or a shared pointer by accident, fails here.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from cuda_source import BEFORE, INSTALL, compiled, entries, function, nvrtc, programs, shared_bytes
from kernel_launches import all_kernels, recorded

from mlx_companion.kernels import cuda_dialect
from mlx_companion.kernels.cuda_dialect import HEADER, around, violations
from mlx_companion.kernels.launch import Kernel

# What a threadgroup may share on every GPU of Apple that MLX runs on; NVIDIA's have more.
METAL_LIMIT = 32_768


def test_every_kernel_is_launched_by_the_calls_recorded_here() -> None:
    assert {launch.name for launch in recorded()} == set(all_kernels())


def test_names_tell_kernels_apart() -> None:
    sources: dict[str, set[str]] = {}
    for launch in recorded():
        sources.setdefault(launch.name, set()).add(launch.source)
    assert all(len(different) == 1 for different in sources.values())


@pytest.mark.parametrize("kernel", all_kernels().values(), ids=lambda kernel: kernel.name)
def test_bodies_keep_to_what_both_languages_read_alike(kernel: Kernel) -> None:
    assert violations(kernel.source) == []
    assert violations(kernel.header) == []


@pytest.mark.parametrize(
    "wrong",
    [
        "threadgroup float* p = tile;",
        "threadgroup  uint  * p",
        "threadgroup T& x = tile[0];",
        "x = 1.0;",
        "x = .5 * y;",
        "x = 2e-3;",
        "x = 1.;",
        "x = float4(0.0f);",
        "n = uint2(1, 2).x;",
        "v = simd_ballot(true);",
        "x = simd_shuffle_and_fill_up(x, y, 1);",
    ],
)
def test_what_cuda_reads_differently_is_found(wrong: str) -> None:
    (said,) = violations(f"int i = 3; {wrong}")
    assert said.split("'")[1] in " ".join(wrong.split())


@pytest.mark.parametrize(
    "right",
    [
        "threadgroup float tile[32 * N];",
        "x = 1.0f + 2.5e-3f + 1e3f + .5f;",
        "// threadgroup float* p; 1.0",
        "/* 1.5 float4(1) */ uint i = 0x7f80u + 10u + 3;",
        "uint x = threads_per_threadgroup.x; y = tile[2].z1; v1.x = 2;",
        "thread float* p = &own[0]; const device T* row;",
    ],
)
def test_what_both_read_alike_passes(right: str) -> None:
    assert violations(right) == []


def test_a_kernel_with_its_header_is_put_where_names_mean_metal() -> None:
    text = around("METAL_FUNC float f(const device float* x, thread int& i) { return x[i]; }")
    assert text.index("namespace mlx::core::cu {\nMETAL_FUNC") < text.index("#define device\n")
    assert "f(const  float* x,  int& i)" in text
    assert around() == HEADER


def test_generated_code_is_as_mlx_writes_it() -> None:
    launch = next(x for x in recorded() if x.name == "byte_entropy")
    text = function(launch, "name")
    assert "const float* logits,\nconst __grid_constant__ Shape logits_shape,\n" in text
    assert "float* entropy,\n" in text
    assert "bool* over) {\n  constexpr int ROWS = 32;\n" in text
    assert "constexpr bool RISE = false;" in text


@pytest.fixture(scope="module")
def compiler() -> None:
    if nvrtc() is None:
        pytest.skip(f"NVRTC and CUDA's headers are not installed; run: {INSTALL}")


@pytest.mark.parametrize("architecture", ["compute_80", "compute_90"])
def test_every_kernel_compiles(architecture: str, compiler: None) -> None:
    for source, launches in programs(recorded()):
        ptx, log = compiled(source, architecture)
        assert ptx is not None, log
        assert "warning" not in log, log
        codes = entries(ptx)
        assert len(codes) == len(launches)
        for launch, code in zip(launches, codes, strict=True):
            assert ".f64" not in code, f"{launch} computes in double precision"
            assert shared_bytes(code) <= METAL_LIMIT, f"{launch} shares {shared_bytes(code)} bytes"


EVERY_NAME = """
uint i = thread_position_in_grid.x + thread_position_in_threadgroup.y +
    threadgroup_position_in_grid.z + threads_per_threadgroup.x + threadgroups_per_grid.x +
    threads_per_grid.x + thread_index_in_threadgroup + thread_index_in_simdgroup +
    simdgroup_index_in_threadgroup + simdgroups_per_threadgroup + threads_per_simdgroup;
threadgroup float tile[64];
threadgroup atomic_uint counts[2];
tile[i % 64] = static_cast<float>(x[i]);
if (i < 2) counts[i] = 0;
threadgroup_barrier(mem_flags::mem_threadgroup | mem_flags::mem_device);
simdgroup_barrier(mem_flags::mem_none);
const device T* row = x + i;
thread float own[2] = {tile[0], static_cast<float>(row[1])};
float f = max(own[0], 0.0f) + min(own[1], own[0]) + clamp(own[0], -1.0f, 1.0f) + abs(own[1]);
f += metal::exp(f) + exp(f) + fast::exp(f) + precise::exp(f) + metal::fast::log(f) + log(f);
f += sqrt(f) + rsqrt(f) + fma(f, f, f) + floor(f) + pow(f, 2.0f) + fast::max(f, 1.0f) + INFINITY;
f += isnan(f) + isinf(f) + precise::isfinite(f) + select(f, 1.0f, i > 3) + fast::divide(f, 3.0f);
T h = max(T(f), x[0]) + exp(x[1]) + abs(x[0]) + T(1.0f) + clamp(x[0], T(0.0f), T(1.0f));
int n = max(int(i), 3) + abs(-2) + popcount(i) + clz(i) + ctz(i) + as_type<int>(f);
uint u = min(i, 3u) + mulhi(i, 7u) + as_type<uint>(n) + numeric_limits<uint>::max();
f += simd_sum(f) + simd_max(f) + simd_min(f) + simd_product(f) + simd_shuffle(f, 3u);
f += simd_broadcast(f, ushort(1)) + simd_shuffle_xor(f, 16) + simd_shuffle_up(f, 1u);
f += simd_shuffle_down(f, 1) + simd_prefix_inclusive_sum(f) + simd_prefix_exclusive_sum(f);
f += simd_prefix_inclusive_product(f) + simd_broadcast_first(f) + simd_any(n > 3) + simd_all(true);
h = h + simd_sum(h) + simd_max(h) + simd_shuffle_xor(h, 1);
n += simd_sum(n) + simd_or(n) + simd_and(n) + simd_xor(n) + simd_sum(uchar(n));
u += simd_sum(u) + simd_max(ushort(u)) + simd_prefix_exclusive_sum(u);
atomic_fetch_add_explicit(&counts[0], 1u, memory_order_relaxed);
u += atomic_load_explicit(&counts[0], memory_order_relaxed);
atomic_fetch_add_explicit(&out[i], f + static_cast<float>(h) + n + u, memory_order_relaxed);
atomic_store_explicit(&whole[0], 1, memory_order_relaxed);
atomic_fetch_max_explicit(&whole[1], n, memory_order_relaxed);
device atomic<float>* same = (device atomic<float>*)(out);
float seen = atomic_load_explicit(same, memory_order_relaxed);
atomic_compare_exchange_weak_explicit(
    same, &seen, seen + 1.0f, memory_order_relaxed, memory_order_relaxed);
"""


@pytest.mark.parametrize("T", ["float", "__half", "__nv_bfloat16"])
def test_the_whole_dialect_compiles(T: str, compiler: None) -> None:
    source = (
        f"{BEFORE}{around('METAL_FUNC float own(float x);')}"
        "namespace mlx::core::cu {\n"
        f"__global__ void k(const {T}* x, float* out, int* whole) {{\nusing T = {T};\n"
        f"{EVERY_NAME}\n}}\n}}"
    )
    ptx, log = compiled(source, "sm_80")
    assert ptx is not None, log
    (code,) = entries(ptx)
    # A float's atomic addition is one instruction, not a loop; sums go through shuffles.
    for instruction in ("global.add.f32", "shfl.sync.bfly", "bar.sync", "bar.warp.sync"):
        assert instruction in code
    assert ".f64" not in code


def test_the_dialect_ships_with_the_package() -> None:
    assert Path(cuda_dialect.__file__).with_suffix(".h").is_file()
