"""Distillation of scales and biases (mlx-lm's DWQ), made to work at any size and on a CPU.

    grids, divergence = distilled(subject, grids, windows, held_out, steps=..., seed=0)

mlx-lm's `dwq_quantize` runs the loop. What is mended around it:

- It multiplies packed matrices, whose gradients are ten times slower on a CPU than those of plain
  ones. Layers here compute their weights from codes, scales and biases, and multiply those.
- It trains absolute scales, whose sizes differ a hundredfold between layers, at one learning rate,
  and rounds them to bfloat16 (8 bits of precision) in each step. Here a scale is trained as a
  factor and a bias in units of the scale, in float32, and both become float16 at the end.
- It trains whatever else is not frozen (norms; the matrices of an adapter). Here nothing else is.
- It keeps the last step, were it worse than the first. Here the caller compares the two.
- It ends in an error where all layers have 8 bits, which it does not train.
- It prints, and its KL kernel has a race on Metal (see `kernels`); both are replaced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers
import numpy as np
from mlx_lm.quant import dwq

from mlx_companion.kernels.fast_math import softmax
from mlx_companion.quant.quantize_grid import Grid, with_scales
from mlx_companion.quant.quantize_layers import packable, place, twin
from mlx_companion.quant.quantize_mended import mended
from mlx_companion.quant.quantize_subjects import Subject
from mlx_companion.runtime.stop import NEVER, StopSwitch


class _GridLayer(nn.Module):
    """A layer on a grid of which scales and biases are trained; looks packed to mlx-lm."""

    mode = "affine"

    def __init__(self, grid: Grid, layer: nn.Module) -> None:
        super().__init__()
        rows, groups = grid.scales.shape
        # mlx-lm trains what has fewer than 8 bits.
        self.bits, self.group_size = min(grid.packing.bits, 7), grid.packing.group_size
        self._codes = mx.array(grid.codes).reshape(rows, groups, self.group_size)
        self._step, self._offset = mx.array(grid.scales), mx.array(grid.biases)
        self.scales, self.biases = mx.ones((rows, groups)), mx.zeros((rows, groups))
        if "bias" in layer:
            self.bias = layer.bias
        self.freeze()

    def grid_values(self) -> tuple[mx.array, mx.array]:
        """Scales and biases as they are now."""
        return self._step * self.scales, self._offset + self._step * self.biases

    def weight_rows(self, ids: mx.array | None = None) -> mx.array:
        """The weights (R, C), or some of their rows."""
        scales, biases = self.grid_values()
        codes = self._codes
        if ids is not None:
            codes, scales, biases = codes[ids], scales[ids], biases[ids]
        found = codes.astype(mx.float32) * scales[..., None] + biases[..., None]
        return found.reshape(*found.shape[:-2], -1)


class _GridLinear(_GridLayer):
    def __call__(self, x: mx.array) -> mx.array:
        y = x @ self.weight_rows().T
        return y + self.bias if "bias" in self else y


class _GridEmbedding(_GridLayer):
    def __call__(self, ids: mx.array) -> mx.array:
        return self.weight_rows(ids)

    def as_linear(self, x: mx.array) -> mx.array:
        """The output head of a model that ties it to its embedding."""
        return x @ self.weight_rows().T


def can_distil(layer: nn.Module) -> bool:
    """Whether a layer's scales can be trained."""
    return type(layer) in (nn.Linear, nn.Embedding)


def distilled(
    subject: Subject,
    grids: Mapping[str, Grid],
    base: nn.Module,
    windows: mx.array,
    *,
    learning_rate: float,
    rows: int = 2,
    seed: int = 0,
    dtype: mx.Dtype = mx.float16,
    switch: StopSwitch = NEVER,
) -> dict[str, Grid]:
    """Train scales and biases so that predictions come close to the model's own.

    Args:
        subject: the model; its predictions are the targets.
        grids: of its layers by path.
        base: the model with these grids' weights in place; it is not changed.
        windows: (N, L) int, each seen once.
        learning_rate: of Adam at the start, in relative units; falls to a tenth along a cosine.
        rows: windows in a step.
        seed: order of the windows.
        dtype: that the scales are rounded to in the end.
        switch: consulted at each step.

    Returns:
        The same codes on trained grids.
    """
    model, layers = twin(base), packable(base)
    model.freeze()
    trained = _with_grids(model, {p: g for p, g in grids.items() if can_distil(layers[p])}, layers)
    steps = max(len(windows) // rows, 1)
    rate = optimizers.cosine_decay(learning_rate, steps, learning_rate / 10)
    items = [(row, 0) for row in np.array(windows).tolist()]

    def targets(batch: mx.array, number: int, split: str) -> mx.array:
        del number, split
        switch.check()
        return mx.stop_gradient(subject.head(subject.model)(subject.hidden(subject.model, batch)))

    with mended(dwq, model, _MENDED):
        dwq.dwq_quantize(
            model,
            targets,
            optimizers.Adam(learning_rate=rate),
            items,
            items[:rows],
            batch_size=min(rows, len(items)),
            max_seq_length=windows.shape[1] + 1,
            seed=seed,
            dtype=mx.float32,
            temperature=1.0,
        )
    return dict(grids) | {
        path: _trained_grid(grids[path], layer, dtype) for path, layer in trained.items()
    }


def _with_grids(
    model: nn.Module, grids: Mapping[str, Grid], layers: Mapping[str, nn.Module]
) -> dict[str, _GridLayer]:
    trained: dict[str, _GridLayer] = {}
    for path, grid in grids.items():
        kind = _GridEmbedding if isinstance(layers[path], nn.Embedding) else _GridLinear
        trained[path] = kind(grid, layers[path])
        place(model, path, trained[path])
    return trained


def _trained_grid(grid: Grid, layer: _GridLayer, dtype: mx.Dtype) -> Grid:
    scales, biases = (np.array(values) for values in layer.grid_values())
    return with_scales(grid, scales, biases, dtype)


def _kl(logits_new: mx.array, logits_old: mx.array) -> mx.array:
    """KL(old || new) at each position; only `new` has a gradient."""
    result: Any = _divergence(logits_new, mx.stop_gradient(logits_old))
    return result


@mx.custom_function
def _divergence(new: mx.array, old: mx.array) -> mx.array:
    p, q = softmax(old), softmax(new)
    difference = mx.log(mx.maximum(p, 1e-30)) - mx.log(mx.maximum(q, 1e-30))
    return (p * difference).sum(axis=-1)


@_divergence.vjp
def _divergence_vjp(primals: Any, cotangent: mx.array, output: mx.array) -> Any:
    new, old = primals
    return cotangent[..., None] * (softmax(new) - softmax(old)), mx.zeros_like(old)


def _windows_in_order(
    dataset: Sequence[Any], batch_size: int, max_seq_length: int, seed: int = 0, **_: Any
) -> Any:
    """Every window once, in an order that the seed decides, without padding.

    mlx-lm's own pads each row to 32 tokens more than it has, and leaves out the last rows.
    """
    del max_seq_length
    order = np.random.default_rng(seed).permutation(len(dataset))
    for start in range(0, len(order), batch_size):
        rows = [dataset[int(i)][0] for i in order[start : start + batch_size]]
        # The loop drops the last token of each row.
        tokens = np.array([[*row, row[-1]] for row in rows], np.int32)
        yield mx.array(tokens), mx.array([[0, tokens.shape[1]]] * len(rows))


_MENDED: dict[str, Any] = {
    "kl_div_loss": _kl,
    "iterate_batches": _windows_in_order,
    "print_trainable_parameters": lambda model: None,
}
