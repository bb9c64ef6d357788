"""How much each layer minds being packed: KL divergence on text, layer by layer.

One layer at a time is replaced by its packed twin and the model's predictions are compared with
what they were. The model is run from that layer's block on only; what goes into the block is kept.
One packing is measured; the loss of the others is taken to grow with the squared error of the
layer's outputs, as it does near a minimum. A packing without error (a layer that came from a file
with the same grid) is found to cost nothing.

mlx-lm's `estimate_sensitivities` (here `layer_gradients`) takes the gradient of the KL at a packed
model times what packing changed: one backward pass in place of a forward pass per layer, for the
memory of training, and a forecast in place of a measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.quant import dynamic_quant

from mlx_companion.models.fast_cpu import fast_cpu
from mlx_companion.quant.levels import Packing
from mlx_companion.quant.quantize_budget import Option
from mlx_companion.quant.quantize_grid import Array, Grid, nearest
from mlx_companion.quant.quantize_layers import (
    Seen,
    blocks_of,
    dense,
    dense_layer,
    packable,
    packing_of,
    place,
    twin,
    watched,
)
from mlx_companion.quant.quantize_measure import Reference, recorded, starting_at
from mlx_companion.quant.quantize_mended import mended
from mlx_companion.quant.quantize_subjects import Subject
from mlx_companion.runtime.stop import NEVER, StopSwitch

# Of inputs of a tied embedding: besides making logits it is looked up, where all columns count.
_LOOKUP = 0.1
_HEAD_EVERY = 4
_ROWS_SAMPLED = 256

Maker = Callable[[str, Packing], Grid]


def input_moments(
    subject: Subject, windows: mx.array, *, rows: int = 2, switch: StopSwitch = NEVER
) -> Seen:
    """Second moments of what goes into each layer on some text.

    Args:
        subject: the model.
        windows: (N, L) int.
        rows: windows in one forward pass.
        switch: consulted between passes.
    """
    model = twin(subject.model)
    with watched(model) as seen, fast_cpu(model):
        for start in range(0, len(windows), rows):
            switch.check()
            hidden = subject.hidden(model, windows[start : start + rows])
            if subject.predicts:
                hidden = subject.head(model)(hidden[:, ::_HEAD_EVERY])
            mx.eval(hidden)
            seen.settle()
    return seen


def moment_of(seen: Seen | None, path: str, layer: nn.Module) -> Array | None:
    """The moment to round a layer with; None where nothing is known of its inputs."""
    found = None if seen is None else seen.moment(path)
    if found is not None and isinstance(layer, nn.Embedding):
        found = found + _LOOKUP * np.diag(found).mean() * np.eye(len(found), dtype=np.float32)
    return found


def layer_losses(
    subject: Subject,
    windows: mx.array,
    probes: Iterable[tuple[str, Array]],
    progress: Callable[[str], Any] = lambda path: None,
) -> dict[str, float]:
    """KL divergence (nats per prediction) with one layer changed at a time.

    Args:
        subject: the model.
        windows: (N, L) int; all in one forward pass, so a few hundred tokens.
        probes: paths of layers and the weights to try there.
        progress: called with each path.
    """
    model = twin(subject.model)
    reference = Reference(subject, windows, rows=len(windows), keep_logits=True)
    layers, blocks = packable(model), blocks_of(model)
    record: list[Any] = []
    if blocks:
        with fast_cpu(model):
            record = recorded(model, lambda: subject.hidden(model, windows))
    starts = _block_numbers(model, blocks) if len(record) == len(blocks) else {}
    losses = {}
    for path, weight in probes:
        progress(path)
        place(model, path, dense_layer(layers[path], weight))
        number = starts.get(path, 0)
        with starting_at(model, record, number) if number else nullcontext():
            losses[path] = reference.compare(model).divergence
        place(model, path, layers[path])
    return losses


def layer_gradients(
    subject: Subject, windows: mx.array, probe: Packing, switch: StopSwitch = NEVER
) -> dict[str, float]:
    """Expected KL divergence (nats) of packing each layer, by mlx-lm's `estimate_sensitivities`.

    It gives the gradient's product with the change from 8 bits to the probe, per million weights.
    Near a minimum the gradient grows along the way, so that half of the product is the loss; below
    zero means that the layer makes up for others, and counts as nothing.

    Args:
        subject: a model with logits.
        windows: (N, L) int.
        probe: affine; its groups have to divide the widths of all layers, which mlx-lm takes for
            granted.
        switch: consulted before.
    """
    switch.check()
    model = twin(subject.model)
    with mended(dynamic_quant, model):
        found = dynamic_quant.estimate_sensitivities(
            model, windows, probe.bits, probe.group_size, 8, probe.group_size, batch_size=1
        )
    sizes = {path: layer.weight.size / 1e6 for path, layer in packable(model).items()}
    return {path: max(value * sizes[path] / 2, 0.0) for path, value in found if path in sizes}


def _block_numbers(model: nn.Module, blocks: Sequence[nn.Module]) -> dict[str, int]:
    """In which block each module is."""
    owners = {id(part): n for n, block in enumerate(blocks) for part in block.modules()}
    named = dict(model.named_modules()).items()
    return {path: owners[id(part)] for path, part in named if id(part) in owners}


def rounding_errors(
    weight: Array, packings: Sequence[Packing], importance: Array | None
) -> dict[Packing, float]:
    """Squared errors, weighted by column, of a matrix in several packings.

    Args:
        weight: (R, C); of large ones a sample of the rows.
        packings: affine, their groups dividing C.
        importance: (C,) what an error in each column costs.
    """
    sample = weight[:: max(1, len(weight) // _ROWS_SAMPLED)]
    factor = len(weight) / len(sample)
    errors = {}
    for packing in packings:
        difference = sample - nearest(sample, packing, importance).dense()
        difference *= difference
        cost = difference.sum(axis=0) * (1 if importance is None else importance)
        errors[packing] = float(cost.sum()) * factor
    return errors


def expected_options(
    layers: Mapping[str, nn.Module],
    packings: Sequence[Packing],
    probe: Packing,
    losses: Mapping[str, float],
    seen: Seen | None,
    given: Mapping[str, nn.Module] | None = None,
) -> dict[str, list[Option]]:
    """What each packing of each layer would cost.

    Args:
        layers: by path, unpacked.
        packings: to choose from; those that a layer's width does not allow are left out.
        probe: the packing that `losses` were measured with.
        losses: KL divergence by path.
        seen: inputs, for the weights of errors.
        given: the layers as they were given; a packing that one has already costs nothing.
    """
    options = {}
    for path, layer in layers.items():
        weight, moment = dense(layer), moment_of(seen, path, layer)
        importance = None if moment is None else np.diag(moment).copy()
        columns, size = weight.shape[1], weight.size
        usable = [p for p in packings if p.fits(columns)]
        tried = probe if probe.fits(columns) else None
        errors = rounding_errors(weight, list({*usable, *([tried] if tried else [])}), importance)
        now = packing_of(given[path]) if given else None
        unit = losses.get(path, 0.0) / errors[tried] if tried and errors[tried] > 0 else 0.0
        options[path] = [
            Option(p, round(size * p.bits_per_weight), 0.0 if p == now else unit * errors[p])
            for p in sorted(usable)
        ]
        options[path].append(Option(None, 16 * size, 0.0))
    return options
