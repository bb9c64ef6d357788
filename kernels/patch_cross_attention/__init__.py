"""Attention between bytes and the patches they belong to, without dense masks.

    out = patch_cross_attention(q, k, v, patch_ids, side="encoder")   # patches read their own bytes
    out = patch_cross_attention(q, k, v, source, side="decoder")      # a byte reads one patch

    encoder   out[p, j] = sum over bytes t of patch p of softmax_t(q[p, j] . k[t] * scale) v[t]
    decoder   out[t] = sum over j of softmax_j(q[t] . k[p, j] * scale) v[p, j],  p = ids[t]

for each head. Memory grows linearly with length whatever the patches are.

Reference: Pagnoni et al. 2024, arXiv 2412.09871, section 3.2.2 (encoder) and 3.3.1 (decoder).
"""

from __future__ import annotations

from typing import Literal

import mlx.core as mx

from mlx_companion.errors import ConfigError
from mlx_companion.kernels.dispatch import Impl, choose
from mlx_companion.kernels.patch_cross_attention import body, plain, reference
from mlx_companion.kernels.patches import check_ids

__all__ = ["patch_cross_attention"]

Side = Literal["encoder", "decoder"]


def patch_cross_attention(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    ids: mx.array,
    *,
    side: Side = "encoder",
    scale: float | None = None,
    impl: Impl = "auto",
) -> mx.array:
    """Attend within or across patches.

    Args:
        q: queries. Encoder: (B, P, J, H, W), J per patch. Decoder: (B, N, H, W), one per byte.
        k, v: keys and values of K heads, K dividing H; each serves H / K heads in a row. Encoder:
            (B, N, K, W). Decoder: (B, P, J, K, W).
        ids: (B, N) int, the patch of each byte: its own (encoder) or the one it reads (decoder).
            Never falling along a row where bytes count; bytes whose id is outside [0, P) are left
            out.
        side: which of the two.
        scale: of the scores; default 1 / sqrt(W).
        impl: see `dispatch`.

    Returns:
        As q, of its type; 0 for patches without bytes (encoder) and bytes left out (decoder).

    Raises:
        ConfigError: shapes or the side are wrong.
        HardwareError: the machine cannot run what was asked for.
    """
    chosen = choose(impl, "patch_cross_attention")
    _check(q, k, v, side)
    B, N = q.shape[0], (k if side == "encoder" else q).shape[1]
    own = check_ids(ids, B, N, "patch_cross_attention")
    factor = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if q.size == 0 or k.size == 0:
        return mx.zeros_like(q)
    if chosen == "reference":
        return reference.attend(q, k, v, own, side, factor)
    if chosen == "plain":
        return plain.attend(q, k, v, own, side, factor)
    return body.attend(q, k, v, own, side, factor, chosen)


def _check(q: mx.array, k: mx.array, v: mx.array, side: str) -> None:
    if side not in ("encoder", "decoder"):
        raise ConfigError(
            f'patch_cross_attention: side is {side!r}; expected "encoder" (patches read their '
            'bytes) or "decoder" (bytes read a patch)'
        )
    axes = (5, 4) if side == "encoder" else (4, 5)
    if (q.ndim, k.ndim) != axes or k.shape != v.shape:
        raise ConfigError(
            f"patch_cross_attention: q {q.shape}, k {k.shape} and v {v.shape}; the {side} side "
            "takes bytes (B, N, H, W) and patches (B, P, J, H, W), and k and v of one shape"
        )
    if q.shape[0] != k.shape[0] or q.shape[-1] != k.shape[-1] or q.shape[-2] % max(k.shape[-2], 1):
        raise ConfigError(
            f"patch_cross_attention: q {q.shape} and k {k.shape} need equal batches and head "
            "widths, and k's heads must divide q's"
        )
    if not q.dtype == k.dtype == v.dtype:
        raise ConfigError(
            f"patch_cross_attention: q, k and v are {q.dtype}, {k.dtype} and {v.dtype}; "
            "convert them to one type"
        )
