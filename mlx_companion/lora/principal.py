"""Where PiSSA starts: the largest singular values of a weight, as two low-rank factors.

Small matrices get an exact decomposition; larger ones a randomized one (a few products with the
matrix instead of one that takes minutes). Both start the model exactly where it was, because what
A and B start at is subtracted again (`Adapter.start_from`): a coarse decomposition only
makes the directions a little less than the best.

References: Meng et al. 2024, "PiSSA"; Halko, Martinsson & Tropp 2011, "Finding structure with
randomness", algorithm 4.4.
"""

from __future__ import annotations

import mlx.core as mx

_EXACT_BELOW = 256
_OVERSAMPLE = 16
_ITERATIONS = 4


def principal_factors(
    matrix: mx.array, rank: int, scale: float, key: mx.array
) -> tuple[mx.array, mx.array]:
    """A (n, r) and B (r, m) with scale * A B the best rank-r approximation of `matrix` (n, m).

    The singular values are shared evenly: both factors carry sqrt(S / scale). A matrix of a rank
    under r is padded with zeros.

    Args:
        matrix: float32.
        rank: r.
        scale: what the product will be multiplied by.
        key: PRNG key of the randomized decomposition.
    """
    left, values, right = _svd(matrix, min(rank, *matrix.shape), key)
    root = mx.sqrt(values / scale)
    a, b = left * root, root[:, None] * right
    missing = rank - values.size
    if missing:
        a, b = mx.pad(a, [(0, 0), (0, missing)]), mx.pad(b, [(0, missing), (0, 0)])
    mx.eval(a, b)
    return a, b


def _svd(matrix: mx.array, rank: int, key: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    # MLX factorizes on the CPU only.
    with mx.stream(mx.cpu):
        if min(matrix.shape) <= max(_EXACT_BELOW, 2 * (rank + _OVERSAMPLE)):
            left, values, right = mx.linalg.svd(matrix)
            return left[:, :rank], values[:rank], right[:rank]
        basis = _range(matrix, rank + _OVERSAMPLE, key)
        left, values, right = mx.linalg.svd(basis.T @ matrix)
        return basis @ left[:, :rank], values[:rank], right[:rank]


def _range(matrix: mx.array, width: int, key: mx.array) -> mx.array:
    """An orthonormal basis (n, width) of most of what the matrix maps to."""
    sample = mx.random.normal((matrix.shape[1], width), key=key)
    basis, _ = mx.linalg.qr(matrix @ sample)
    for _ in range(_ITERATIONS):
        other, _ = mx.linalg.qr(matrix.T @ basis)
        basis, _ = mx.linalg.qr(matrix @ other)
    return basis
