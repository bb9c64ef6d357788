"""Hash n-gram embeddings as a kernel: Metal's and CUDA's.

A threadgroup takes a few positions. Its threads first compute their table rows, one thread per
position and table, into threadgroup memory; then they gather and sum, neighbouring threads
neighbouring columns. The gradient adds atomically, in no certain order.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import mlx.core as mx

from mlx_companion.kernels.dispatch import Chosen
from mlx_companion.kernels.hash_embed.reference import frozen
from mlx_companion.kernels.hash_embed.rows import Ngrams, unsigned
from mlx_companion.kernels.launch import Kernel
from mlx_companion.kernels.matrix import Matrix

_THREADS = 256
_POSITIONS = 8
# 8 bytes each, of the 32 KB of threadgroup memory that every GPU has.
_ROWS_HELD = 2048
_PLAIN_TYPES = (mx.float32, mx.float16, mx.bfloat16)

_ROWS = """
    threadgroup int64_t rows[POSITIONS * TABLES];
    const int64_t total = dims[0];
    const int64_t length = dims[1];
    const int64_t count = dims[2];
    const int width = int(dims[3]);
    const int64_t vocabulary = dims[4];
    const int64_t first = int64_t(threadgroup_position_in_grid.x) * POSITIONS;
    const int thread_id = int(thread_position_in_threadgroup.x);
    const int threads = int(threads_per_threadgroup.x);
    for (int j = thread_id; j < POSITIONS * TABLES; j += threads) {
        const int64_t place = first + j / TABLES;
        if (place >= total) {
            continue;
        }
        const int table = j % TABLES;
        const int size = sizes[table % SIZES];
        const uint64_t prime = primes[table / SIZES];
        // The position in its row of ids, and in all ids.
        const int64_t t = length - count + place % count;
        const int64_t at = place / count * length + t;
        uint64_t sum = 0;
        bool inside = true;
        for (int i = 0; i < size; ++i) {
            inside = inside && t >= i;
            if (DOCUMENTS && inside && i > 0) {
                inside = documents[at - i] == documents[at - i + 1];
            }
            sum = sum * prime + (inside ? uint64_t(int64_t(ids[at - i])) : uint64_t(0));
        }
        const int64_t within = int64_t(sum) % vocabulary;
        rows[j] = (within < 0 ? within + vocabulary : within) + table * vocabulary;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
"""

_GATHER = """
    for (int i = thread_id; i < POSITIONS * width; i += threads) {
        const int p = i / width;
        const int d = i % width;
        if (first + p >= total) {
            break;
        }
        float sum = 0;
        for (int g = 0; g < TABLES; ++g) {
            sum += float(weight[rows[p * TABLES + g] * width + d]);
        }
        out[(first + p) * width + d] = T(sum);
    }
"""

_GATHER_PACKED = """
    // A thread takes one word of each row: 32 / BITS values, low bits first.
    const int words = width * BITS / 32;
    const int groups = width / GROUP;
    for (int i = thread_id; i < POSITIONS * words; i += threads) {
        const int p = i / words;
        const int w = i % words;
        if (first + p >= total) {
            break;
        }
        const int group = w * (32 / BITS) / GROUP;
        float sums[32 / BITS];
        for (int k = 0; k < 32 / BITS; ++k) {
            sums[k] = 0;
        }
        for (int g = 0; g < TABLES; ++g) {
            const int64_t row = rows[p * TABLES + g];
            const uint32_t word = weight[row * words + w];
            const float scale = float(scales[row * groups + group]);
            const float bias = float(biases[row * groups + group]);
            for (int k = 0; k < 32 / BITS; ++k) {
                sums[k] += scale * float((word >> (BITS * k)) & ((1u << BITS) - 1u)) + bias;
            }
        }
        for (int k = 0; k < 32 / BITS; ++k) {
            out[(first + p) * width + w * (32 / BITS) + k] = T(sums[k]);
        }
    }
"""

_SCATTER = """
    for (int i = thread_id; i < POSITIONS * width; i += threads) {
        const int p = i / width;
        const int d = i % width;
        if (first + p >= total) {
            break;
        }
        const float value = float(cotangent[(first + p) * width + d]);
        for (int g = 0; g < TABLES; ++g) {
            atomic_fetch_add_explicit(
                &gradient[rows[p * TABLES + g] * width + d], value, memory_order_relaxed);
        }
    }
"""

_HASHED = ("ids", "documents", "sizes", "primes", "dims")
_FORWARD = Kernel("hash_embed", (*_HASHED, "weight"), ("out",), _ROWS + _GATHER)
_PACKED = Kernel(
    "hash_embed_packed",
    (*_HASHED, "weight", "scales", "biases"),
    ("out",),
    _ROWS + _GATHER_PACKED,
)
_BACKWARD = Kernel(
    "hash_embed_gradient",
    (*_HASHED, "cotangent"),
    ("gradient",),
    _ROWS + _SCATTER,
    atomic_outputs=True,
)


def unreadable(table: Matrix, ngrams: Ngrams) -> str | None:
    """What of a table the kernel cannot read; None where it can."""
    if ngrams.tables > _ROWS_HELD:
        return f"{ngrams.tables} tables at once"
    if not table.quantized:
        known = table.weight.dtype in _PLAIN_TYPES
        return None if known else f"a table of {table.weight.dtype}"
    if table.mode != "affine" or table.bits not in (2, 4, 8):
        return f'a table of {table.bits} bits in mode "{table.mode}"'
    return None


def hash_embed(
    ids: mx.array,
    table: Matrix,
    ngrams: Ngrams,
    documents: mx.array | None,
    *,
    impl: Chosen,
) -> mx.array:
    """See the package's `hash_embed`."""
    B, N = ids.shape
    shape = (B, ngrams.count(N), table.shape[1])
    if 0 in shape or not ngrams.tables:
        dtype = table.weight.dtype if table.scales is None else table.scales.dtype
        return mx.zeros(shape, dtype=dtype)
    apart = () if documents is None else (documents,)
    if table.scales is not None:
        inputs = [*_hashed(ids, apart, ngrams, shape), *frozen(table).arrays]
        form = [("BITS", table.bits), ("GROUP", table.group_size)]
        return _launch(_PACKED, inputs, ngrams, shape, table.scales.dtype, impl, form, bool(apart))
    result: Any = _plain_table(ngrams, impl)(table.weight, ids, *apart)
    return result


@lru_cache(maxsize=64)
def _plain_table(ngrams: Ngrams, impl: Chosen) -> Any:
    """The function (weight, ids[, documents]) -> (B, N, D) with its gradient."""

    @mx.custom_function
    def forward(weight: mx.array, ids: mx.array, *apart: mx.array) -> mx.array:
        shape = (ids.shape[0], ngrams.count(ids.shape[1]), weight.shape[1])
        inputs = [*_hashed(ids, apart, ngrams, shape), weight]
        return _launch(_FORWARD, inputs, ngrams, shape, weight.dtype, impl, [], bool(apart))

    @forward.vjp
    def backward(primals: Any, cotangent: mx.array, output: mx.array) -> Any:
        weight, ids, *apart = primals
        return (
            _gradient(weight, ids, tuple(apart), cotangent, ngrams, impl),
            *[mx.zeros_like(array) for array in (ids, *apart)],
        )

    return forward


def _gradient(
    weight: mx.array,
    ids: mx.array,
    apart: tuple[mx.array, ...],
    cotangent: mx.array,
    ngrams: Ngrams,
    impl: Chosen,
) -> mx.array:
    """(rows, D), summed in float32."""
    (gradient,) = _BACKWARD(
        [*_hashed(ids, apart, ngrams, cotangent.shape), cotangent],
        impl=impl,
        template=_template(ngrams, bool(apart)),
        **_grid(cotangent.shape, ngrams),
        shapes=[weight.shape],
        dtypes=[mx.float32],
        init_value=0,
    )
    return gradient.astype(weight.dtype)


def _launch(
    kernel: Kernel,
    inputs: list[mx.array],
    ngrams: Ngrams,
    shape: tuple[int, ...],
    dtype: mx.Dtype,
    impl: Chosen,
    form: list[tuple[str, Any]],
    documents: bool,
) -> mx.array:
    return kernel(
        inputs,
        impl=impl,
        template=[("T", dtype), *form, *_template(ngrams, documents)],
        **_grid(shape, ngrams),
        shapes=[shape],
        dtypes=[dtype],
    )[0]


def _hashed(
    ids: mx.array, apart: tuple[mx.array, ...], ngrams: Ngrams, shape: tuple[int, ...]
) -> list[mx.array]:
    """The inputs that the rows are computed from."""
    B, count, width = shape
    dims = (B * count, ids.shape[1], count, width, ngrams.vocabulary)
    return [
        ids,
        apart[0] if apart else ids,
        mx.array(ngrams.sizes, dtype=mx.int32),
        unsigned(*ngrams.primes),
        mx.array(dims, dtype=mx.int64),
    ]


def _template(ngrams: Ngrams, documents: bool) -> list[tuple[str, Any]]:
    return [
        ("TABLES", ngrams.tables),
        ("SIZES", len(ngrams.sizes)),
        ("POSITIONS", _positions(ngrams)),
        ("DOCUMENTS", documents),
    ]


def _positions(ngrams: Ngrams) -> int:
    """Positions of a threadgroup."""
    return max(min(_POSITIONS, _ROWS_HELD // ngrams.tables), 1)


def _grid(shape: tuple[int, ...], ngrams: Ngrams) -> dict[str, Any]:
    groups = -(-shape[0] * shape[1] // _positions(ngrams))
    return {"grid": (groups * _THREADS, 1, 1), "threadgroup": (_THREADS, 1, 1)}
