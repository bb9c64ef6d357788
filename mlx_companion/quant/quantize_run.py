"""One quantization from level and texts to the best recipe: what is tried, and what is taken.

With one packing for all layers: rounding with error feedback, then scales trained on the model's
own predictions, if that helps. With a budget: how much each layer minds is measured first, the
bits are dealt out, and then the same. Each step is kept only where it lowers the divergence on
windows that it did not see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_companion.errors import ConfigError
from mlx_companion.quant.levels import GROUPS, Level, Packing
from mlx_companion.quant.quantize_budget import spend
from mlx_companion.quant.quantize_distil import distilled
from mlx_companion.quant.quantize_grid import Grid
from mlx_companion.quant.quantize_layers import (
    Seen,
    count_bits,
    dense,
    packable,
    plain_twin,
    twin,
)
from mlx_companion.quant.quantize_measure import Reference
from mlx_companion.quant.quantize_recipes import (
    awq,
    fitted,
    fitted_grid,
    gptq,
    rounded_by_mlx,
    uniform_plan,
    with_grids,
)
from mlx_companion.quant.quantize_sensitivity import (
    expected_options,
    input_moments,
    layer_gradients,
    layer_losses,
    moment_of,
)
from mlx_companion.quant.quantize_subjects import Subject
from mlx_companion.quant.quantize_texts import Texts
from mlx_companion.runtime.stop import StopSwitch

_BITS = (2, 3, 4, 5, 6, 8)
_PROBE_ROWS, _PROBE_LENGTH = 2, 128
_GOOD_ENOUGH = 1e-5


@dataclass(frozen=True)
class Run:
    """What was asked for; see `quantize`."""

    subject: Subject
    level: Level
    method: str
    texts: Texts
    group_size: int | None
    seed: int
    progress: Callable[[str, int, int], Any]
    switch: StopSwitch
    sensitivity: str = "measured"
    dtype: mx.Dtype = mx.float16
    distil_rate: float = 3e-5

    def steps(self, stage: str, total: int) -> Callable[[str], None]:
        """Something to call at each step of a stage."""
        done = 0

        def step(_: str = "") -> None:
            nonlocal done
            self.switch.check()
            done += 1
            self.progress(stage, done, total)

        return step


@dataclass
class Outcome:
    """A packed model, how it was made, what else was tried, and expected losses by layer."""

    model: nn.Module
    recipe: str
    tried: dict[str, float] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)


def run_recipes(run: Run) -> Outcome:
    """Pack the model as was asked for."""
    if run.level.plain:
        return Outcome(twin(run.subject.model), "f16")
    if run.level.budget is not None:
        return _budgeted(run)
    packing = run.level.packing
    assert packing is not None
    plan = uniform_plan(run.subject.model, packing)
    if run.method == "awq":
        return Outcome(awq(run.subject, packing, run.texts.calibration), "awq")
    if run.method == "gptq":
        return Outcome(gptq(run.subject, packing, run.texts.calibration), "gptq")
    if run.method == "rtn" or packing.mode != "affine":
        return Outcome(rounded_by_mlx(run.subject, plan), "rtn")
    seen = None
    if run.method == "auto":
        seen = input_moments(run.subject, run.texts.calibration, switch=run.switch)
    return _fitted(run, plan, seen)


def _budgeted(run: Run) -> Outcome:
    subject, seen = run.subject, None
    layers = packable(subject.model)
    feedback = run.method in ("auto", "gptq")
    seen = input_moments(subject, run.texts.calibration, switch=run.switch)
    probe = _probe(run)

    def probes() -> Any:
        for path, layer in layers.items():
            weight = dense(layer)
            if probe.fits(weight.shape[1]):
                moment = moment_of(seen, path, layer)
                yield path, fitted_grid(weight, probe, moment, feedback, run.dtype).dense()

    rows = run.texts.calibration[:_PROBE_ROWS, :_PROBE_LENGTH]
    if run.sensitivity == "gradient":
        losses = layer_gradients(subject, rows, probe, run.switch)
    else:
        step = run.steps("measuring layers", len(layers))
        losses = layer_losses(subject, rows, probes(), step)
    sizes = (run.group_size,) if run.group_size else GROUPS
    packings = [Packing(bits, size) for bits in _BITS for size in sizes]
    given = packable(subject.module)
    options = expected_options(layers, packings, probe, losses, seen, given)
    chosen = spend(options, _room(run))
    plan = {path: option.packing for path, option in chosen.items()}
    outcome = _fitted(run, plan, seen)
    outcome.losses = {path: option.loss for path, option in chosen.items()}
    return outcome


def _probe(run: Run) -> Packing:
    """A packing near to what the budget will come to."""
    bits = min(max(int((run.level.budget or 4) - 0.4), 2), 6)
    return Packing(bits, run.group_size or (64 if _all_fit(run.subject.model, 64) else 32))


def _all_fit(model: nn.Module, size: int) -> bool:
    return all(layer.weight.shape[-1] % size == 0 for layer in packable(model).values())


def _room(run: Run) -> int:
    """Bits for the layers that can be packed."""
    bits, numbers = count_bits(run.subject.model)
    packed = sum(layer.weight.size for layer in packable(run.subject.model).values())
    room = int((run.level.budget or 0) * numbers) - (bits - 16 * packed)
    if room <= 0:
        raise ConfigError(f"{run.level.name} is too little for what stays in 16 bits; ask for more")
    return room


def _fitted(run: Run, plan: Mapping[str, Packing | None], seen: Seen | None) -> Outcome:
    """Grids for a plan, and trained ones where that is better."""
    subject = run.subject
    check = Reference(subject, run.texts.choosing, switch=run.switch)
    feedback = run.method in ("auto", "gptq") and seen is not None
    name = "feedback" if feedback else "fit"
    step = run.steps("rounding", sum(packing is not None for packing in plan.values()))
    grids = fitted(subject, plan, seen, feedback=feedback, dtype=run.dtype, say=step)
    model = with_grids(subject, plan, grids, run.dtype)
    tried = {name: _divergence(check, model)}
    wants = run.method in ("auto", "dwq") and subject.predicts and len(run.texts.training)
    if wants and grids and (run.method == "dwq" or tried[name] > _GOOD_ENOUGH):
        trained = _trained(run, grids, model)
        other = with_grids(subject, plan, trained, run.dtype)
        tried[f"{name}+dwq"] = _divergence(check, other)
        if tried[f"{name}+dwq"] < tried[name]:
            return Outcome(other, f"{name}+dwq", tried)
    return Outcome(model, name, tried)


def _trained(run: Run, grids: Mapping[str, Grid], model: nn.Module) -> dict[str, Grid]:
    windows = run.texts.training
    run.progress("training scales", 0, 1)
    found = distilled(
        run.subject,
        grids,
        plain_twin(model, mx.float32),
        windows,
        learning_rate=run.distil_rate,
        seed=run.seed,
        dtype=run.dtype,
        switch=run.switch,
    )
    run.progress("training scales", 1, 1)
    return found


def _divergence(check: Reference, model: nn.Module) -> float:
    return check.compare(plain_twin(model, mx.float32)).divergence
