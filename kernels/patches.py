"""Which bytes belong to which patch, as the patch ops need it.

Ids never fall along a row where they count, and ids outside [0, P) leave their byte out. So the
bytes of patch p lie in one run [start, stop), with nothing else in it but bytes left out.

    left_out(ids, P)          (B, N) bool
    highest_so_far(ids, P)    (B, N) int32, which never falls
    starts(highest, P)        (B, P + 1) int32, in plain MLX
    runs(ids, P, impl)        (B, P, 2) int32, start and stop, by a kernel
"""

from __future__ import annotations

import mlx.core as mx

from mlx_companion.errors import ConfigError
from mlx_companion.kernels.launch import Kernel

_RUNS = Kernel(
    "patch_runs",
    ("highest", "count"),
    ("runs",),
    """
    uint p = thread_position_in_grid.x;
    uint b = thread_position_in_grid.y;
    uint N = highest_shape[1];
    uint P = count[0];
    if (p >= P) return;
    for (int side = 0; side < 2; ++side) {
        // The first byte whose highest id so far is at least p, then at least p + 1.
        uint low = 0;
        uint high = N;
        while (low < high) {
            uint middle = (low + high) / 2;
            if (highest[b * N + middle] < int(p) + side) low = middle + 1;
            else high = middle;
        }
        runs[(b * P + p) * 2 + side] = int(low);
    }
    """,
)
_GROUP = 32


def check_ids(ids: mx.array, rows: int, length: int, op: str) -> mx.array:
    """The ids as int32.

    Raises:
        ConfigError: they are no integers, or not (B, N).
    """
    if not mx.issubdtype(ids.dtype, mx.integer):
        raise ConfigError(f"{op}: ids are {ids.dtype}; patch numbers are integers")
    if ids.shape != (rows, length):
        raise ConfigError(f"{op}: ids have shape {ids.shape}; expected {(rows, length)}, as bytes")
    return ids.astype(mx.int32)


def left_out(ids: mx.array, count: int) -> mx.array:
    """(B, N) bool: the byte belongs to none of the `count` patches."""
    return (ids < 0) | (ids >= count)


def highest_so_far(ids: mx.array, count: int) -> mx.array:
    """(B, N) int32, the id of the last byte up to here that counts; -1 before the first."""
    return mx.cummax(mx.where(left_out(ids, count), -1, ids), axis=1)


def starts(highest: mx.array, count: int) -> mx.array:
    """Where the run of each patch begins, and where the last one ends.

    Args:
        highest: (B, N) int32, see `highest_so_far`.
        count: P.

    Returns:
        (B, P + 1) int32: how many bytes of the row come before those of each patch.
    """
    B = highest.shape[0]
    place = (highest + 1 + (mx.arange(B) * (count + 1))[:, None]).reshape(-1)
    sizes = mx.zeros((B * (count + 1),), dtype=mx.int32).at[place].add(1)
    return mx.cumsum(sizes.reshape(B, count + 1), axis=1)


def runs(ids: mx.array, count: int, impl: str) -> mx.array:
    """Start and stop of the bytes of each patch: (B, N) int32 -> (B, P, 2) int32."""
    B = ids.shape[0]
    return _RUNS(
        [highest_so_far(ids, count), mx.array([count], dtype=mx.int32)],
        impl=impl,
        grid=(up_to(count, _GROUP), B, 1),
        threadgroup=(_GROUP, 1, 1),
        shapes=[(B, count, 2)],
        dtypes=[mx.int32],
    )[0]


def up_to(size: int, multiple: int) -> int:
    """The next multiple."""
    return -(-size // multiple) * multiple
