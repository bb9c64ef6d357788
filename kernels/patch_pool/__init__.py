"""Pooling of byte states by patch: the maximum, the mean or the sum over patches of any lengths.

    pooled = patch_pool(h, patch_ids, P)                    # (B, N, D) -> (B, P, D)
    pooled = patch_pool(h, patch_ids, P, mode="mean")

    out[b, p, d] = max / mean / sum of h[b, t, d] over all t with patch_ids[b, t] = p

Nothing of size patches by bytes is made, so memory grows linearly with length.

Reference: Pagnoni et al. 2024, arXiv 2412.09871, section 3.2 (patch queries are pooled bytes).
"""

from __future__ import annotations

from typing import Literal, get_args

import mlx.core as mx

from mlx_companion.errors import ConfigError
from mlx_companion.kernels.dispatch import Impl, choose
from mlx_companion.kernels.patch_pool import body, plain, reference
from mlx_companion.kernels.patches import check_ids

__all__ = ["patch_pool"]

Mode = Literal["max", "mean", "sum"]


def patch_pool(
    h: mx.array, patch_ids: mx.array, count: int, mode: Mode = "max", *, impl: Impl = "auto"
) -> mx.array:
    """Pool the bytes of each patch.

    Args:
        h: (B, N, D), states of bytes; float32, float16 or bfloat16.
        patch_ids: (B, N) int, never falling along a row where bytes count; bytes whose id is
            outside [0, P), padding for one, are left out.
        count: P, patches per row.
        mode: "max", "mean" or "sum".
        impl: see `dispatch`.

    Returns:
        (B, P, D), of h's type; patches without bytes give 0. The gradient of a maximum goes to
        the first byte that has it.

    Raises:
        ConfigError: shapes or the mode are wrong.
        HardwareError: the machine cannot run what was asked for.
    """
    chosen = choose(impl, "patch_pool")
    if mode not in get_args(Mode):
        raise ConfigError(
            f"patch_pool: mode is {mode!r}; expected one of {', '.join(get_args(Mode))}"
        )
    if h.ndim != 3:
        raise ConfigError(f"patch_pool: h has shape {h.shape}; expected (B, N, D)")
    if count < 0:
        raise ConfigError(f"patch_pool: count is {count}; expected the number of patches per row")
    ids = check_ids(patch_ids, h.shape[0], h.shape[1], "patch_pool")
    if h.size == 0 or count == 0:
        return mx.zeros((h.shape[0], count, h.shape[2]), dtype=h.dtype)
    if chosen == "reference":
        return reference.pool(h, ids, count, mode)
    if chosen == "plain":
        return plain.pool(h, ids, count, mode)
    return body.pool(h, ids, count, mode, chosen)
