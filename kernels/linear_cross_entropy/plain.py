"""`linear_cross_entropy` in plain MLX: the (N, V) logits in tiles, each needed once.

Down the vocabulary, for every row at the same time, run three sums: the softmax's denominator, the
label's logit, and the sum of e^logit times the matrix's rows, which is the gradient in the hidden
state up to a factor. All are kept relative to the largest logit so far (README.md). A block of the
matrix is cast to float32, or dequantized, once for all rows: on Linux CPUs products of anything
else are 30 to 80 times slower.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_companion.kernels.linear_cross_entropy.heads import OutputLayer
from mlx_companion.kernels.linear_cross_entropy.logits import plain_losses, shifted
from mlx_companion.kernels.linear_cross_entropy.rows import after, losses_by_rows
from mlx_companion.kernels.linear_cross_entropy.sizes import tile
from mlx_companion.kernels.matrix import Matrix

# Up to so many rows a product with the packed matrix takes less time than unpacking it.
_FEW_ROWS = 4


class _Sums(NamedTuple):
    """What is known of n rows after some of the vocabulary.

    Attributes:
        largest: (n, 1) logit.
        total: (n, 1), the sum of e^(logit - largest).
        chosen: (n, 1), the label's logit; 0 as long as it has not come.
        pulled: (n, D), the sum of e^(logit - largest) times the matrix's row; None if not wanted.
    """

    largest: mx.array
    total: mx.array
    chosen: mx.array
    pulled: mx.array | None

    @property
    def arrays(self) -> list[mx.array]:
        return [part for part in self if part is not None]


class _Block(NamedTuple):
    """Rows of the matrix (C, D), and their bias (C,), in float32."""

    matrix: mx.array
    bias: mx.array | None

    def logits(self, hidden: mx.array) -> mx.array:
        """(n, D) -> (n, C)."""
        if self.bias is None:
            return hidden @ self.matrix.T
        return mx.addmm(self.bias, hidden, self.matrix.T)


def losses_in_plain(
    hidden: mx.array, labels: mx.array, layer: OutputLayer, chunk: int, gradient: bool
) -> mx.array:
    """Losses of rows: (N, D), (N,) int in [0, V) -> (N,) float32 nats.

    Args:
        layer: gets a gradient if it has trained arrays.
        chunk: rows of logits that may exist at a time.
        gradient: compute the gradient in `hidden` along with the losses.
    """
    matrix = layer.matrix
    few = matrix is not None and matrix.quantized and len(hidden) <= _FEW_ROWS
    kept = layer.trained and len(hidden) <= chunk
    if matrix is None or few or kept:
        return losses_by_rows(hidden, labels, layer, plain_losses, chunk, gradient)
    function = _again if layer.trained or not gradient else _along
    unpacks = matrix.quantized or matrix.weight.dtype != mx.float32
    sizes = tile(len(hidden), matrix.shape[0], chunk, unpacks)
    return function(layer, matrix, sizes)(hidden, labels, *layer.trained)


def _along(layer: OutputLayer, matrix: Matrix, sizes: tuple[int, int]) -> Any:
    """(hidden, labels) to losses; the backward pass only scales the rows of a gradient at hand."""
    kept: list[mx.array] = []

    @mx.custom_function
    def losses(hidden: mx.array, labels: mx.array) -> mx.array:
        sums = _down_the_vocabulary(hidden, labels, matrix, layer.bias, sizes, pull=True)
        means = [part.pulled / part.total for part in sums if part.pulled is not None]
        kept.append(mx.concatenate(means) - matrix.rows(labels).astype(mx.float32))
        return _losses(sums)

    @losses.vjp
    def losses_vjp(primals: Any, cotangent: mx.array, output: mx.array) -> Any:
        hidden, labels = primals
        slope = (cotangent[:, None] * kept[-1]).astype(hidden.dtype)
        return slope, mx.zeros_like(labels)

    return losses


def _again(layer: OutputLayer, matrix: Matrix, sizes: tuple[int, int]) -> Any:
    """(hidden, labels, *trained) to losses; the backward pass computes the logits again."""
    normalizers: list[list[mx.array]] = []

    def parts(trained: Sequence[mx.array]) -> tuple[Matrix, mx.array | None]:
        if not trained:
            return matrix, layer.bias
        return matrix._replace(weight=trained[0]), trained[1] if len(trained) > 1 else None

    @mx.custom_function
    def losses(hidden: mx.array, labels: mx.array, *trained: mx.array) -> mx.array:
        sums = _down_the_vocabulary(hidden, labels, *parts(trained), sizes, pull=False)
        normalizers.append([mx.log(part.total) + part.largest for part in sums])
        return _losses(sums)

    @losses.vjp
    def losses_vjp(primals: Any, cotangent: mx.array, output: mx.array) -> Any:
        hidden, labels, *trained = primals
        own, bias = parts(trained)
        slopes = _slopes(
            hidden, labels, own, bias, sizes, normalizers[-1], cotangent, bool(trained)
        )
        return (
            slopes[0].astype(hidden.dtype),
            mx.zeros_like(labels),
            *(slope.astype(a.dtype) for slope, a in zip(slopes[1:], trained, strict=False)),
        )

    return losses


def _losses(sums: Sequence[_Sums]) -> mx.array:
    # Two differences: the larger of `largest` and the logarithm would swallow the other.
    each = [mx.log(part.total) + (part.largest - part.chosen) for part in sums]
    return mx.concatenate(each)[:, 0]


def _down_the_vocabulary(
    hidden: mx.array,
    labels: mx.array,
    matrix: Matrix,
    bias: mx.array | None,
    sizes: tuple[int, int],
    pull: bool,
) -> list[_Sums]:
    height, width = sizes
    rows = _cut(hidden.astype(mx.float32), height)
    places = [_places(part, matrix.shape[0], width) for part in _cut(labels[:, None], height)]
    sums: list[_Sums | None] = [None] * len(rows)
    last: list[mx.array] = []
    for number, block in enumerate(_blocks(matrix, bias, width, last)):
        for i, (x, (column, inside)) in enumerate(zip(rows, places, strict=True)):
            logits = block.logits(after([x], last)[0])
            own = mx.take_along_axis(logits, column[number], axis=-1)
            sums[i] = step = _added(sums[i], logits, block.matrix, own, inside[number], pull)
            last[:] = step.arrays
    return [part for part in sums if part is not None]


def _places(labels: mx.array, vocabulary: int, width: int) -> tuple[mx.array, mx.array]:
    """For each block the label's column in it, or any column, and whether it is there.

    Labels (n, 1) -> (blocks, n, 1), int32 and bool.
    """
    starts = mx.arange(0, vocabulary, width)[:, None, None]
    columns = labels - starts
    ends = mx.minimum(width, vocabulary - starts)
    return mx.clip(columns, 0, ends - 1), (columns >= 0) & (columns < ends)


def _added(
    sums: _Sums | None,
    logits: mx.array,
    matrix: mx.array,
    own: mx.array,
    inside: mx.array,
    pull: bool,
) -> _Sums:
    """The sums with a tile more.

    Args:
        logits, matrix: (n, C) and (C, D).
        own, inside: (n, 1), the label's logit, where it is inside of the tile.
        pull: sum matrix rows too.
    """
    chosen = mx.where(inside, own, sums.chosen if sums else 0.0)
    largest = logits.max(axis=-1, keepdims=True)
    if sums is None:
        powers = shifted(logits, largest)
        total = powers.sum(axis=-1, keepdims=True)
        return _Sums(largest, total, chosen, powers @ matrix if pull else None)
    largest = mx.maximum(largest, sums.largest)
    powers = shifted(logits, largest)
    shrunk = mx.exp(sums.largest - largest)
    total = sums.total * shrunk + powers.sum(axis=-1, keepdims=True)
    pulled = None if sums.pulled is None else mx.addmm(sums.pulled * shrunk, powers, matrix)
    return _Sums(largest, total, chosen, pulled)


def _slopes(
    hidden: mx.array,
    labels: mx.array,
    matrix: Matrix,
    bias: mx.array | None,
    sizes: tuple[int, int],
    normalizers: Sequence[mx.array],
    cotangent: mx.array,
    trained: bool,
) -> list[mx.array]:
    """Gradients in hidden states and, of a trained layer, in matrix and bias, in float32."""
    height, width = sizes
    x = hidden.astype(mx.float32)
    rows, scale = _cut(x, height), cotangent[:, None]
    # (D + 1, n): the hidden states and a one, so that one product serves matrix and bias.
    scaled = _cut(mx.concatenate([x, mx.ones_like(scale)], axis=1) * scale, height)
    pulled: list[mx.array | None] = [None] * len(rows)
    pushed: list[mx.array] = []
    last: list[mx.array] = []
    for block in _blocks(matrix, bias, width, last):
        push: mx.array | None = None
        for i, normalizer in enumerate(normalizers):
            powers = shifted(block.logits(after([rows[i]], last)[0]), normalizer)
            pulled[i] = pull = _plus_product(pulled[i], powers, block.matrix)
            last[:] = [pull]
            if trained:
                push = _plus_product(push, powers.T, scaled[i])
                last.append(push)
        if push is not None:
            pushed.append(push)
    found = [part for part in pulled if part is not None]
    slope = scale * (mx.concatenate(found) - matrix.rows(labels).astype(mx.float32))
    if not trained:
        return [slope]
    sums = mx.concatenate(pushed).at[labels].subtract(mx.concatenate(scaled))
    return [slope, sums[:, :-1], sums[:, -1]]


def _plus_product(total: mx.array | None, left: mx.array, right: mx.array) -> mx.array:
    return left @ right if total is None else mx.addmm(total, left, right)


def _blocks(
    matrix: Matrix, bias: mx.array | None, width: int, last: Sequence[mx.array]
) -> Iterator[_Block]:
    """The matrix in blocks of rows, each made after what `last` holds by then."""
    for start in range(0, matrix.shape[0], width):
        parts = after([part[start : start + width] for part in matrix.arrays], last)
        own = None if bias is None else bias[start : start + width].astype(mx.float32)
        yield _Block(matrix.with_arrays(parts).dense().astype(mx.float32), own)


def _cut(values: mx.array, size: int) -> list[mx.array]:
    return [values[i : i + size] for i in range(0, len(values), size)]
