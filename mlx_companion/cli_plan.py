"""`mlx-companion plan`: what a model takes on a machine; see `cli` for the conventions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_companion.cli_parts import AsJson, flag, given, make_console, option, print_json
from mlx_companion.errors import ConfigError

if TYPE_CHECKING:
    from mlx_companion.quant.plan import LoraPlan, Plan

_CONTEXTS = (2048, 8192, 32768, 131072)


def plan(
    model: Annotated[
        str | None, typer.Argument(help="Name, hub id, folder, config.json, GGUF file, blt:small.")
    ] = None,
    more: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="More for --lora.")
    ] = None,
    bits: Annotated[
        str | None, option("FORMAT", "2 to 8, 16, 32, mxfp4, mxfp8, nvfp4, 4.5bpw.")
    ] = None,
    group: Annotated[int | None, option("N", "Weights per scale: 32, 64 (default) or 128.")] = None,
    context: Annotated[int | None, option("N", "Positions in the cache (4096).")] = None,
    kv_bits: Annotated[int | None, option("N", "Bits of the cache.")] = None,
    machine: Annotated[str | None, option("NAME", "Such as m4-pro-48; this one otherwise.")] = None,
    lora: Annotated[
        list[str] | None,
        option("KEY=VALUE", "Train: rank, batch, length, layers, checkpoint, optimizer."),
    ] = None,
    at_least: Annotated[
        float | None, option("X", "Exit code 1 under X tokens per second, or if it does not fit.")
    ] = None,
    contexts: Annotated[bool, flag("--contexts", "What contexts of 2k to 128k cost.")] = False,
    largest: Annotated[
        bool, flag("--largest", "The largest known model that fits, with --lora to train.")
    ] = False,
    machines: Annotated[bool, flag("--machines", "List the machines that are known.")] = False,
    measure: Annotated[bool, flag("--measure", "Measure this machine, and show it.")] = False,
    picture: Annotated[Path | None, option("FILE", "Draw the memory as SVG.")] = None,
    as_json: AsJson = False,
) -> None:
    """Tell what a model takes before fetching it: memory, whether it fits, tokens per second.

    With --lora it is about training: `plan qwen2.5-3b --bits 4 --lora rank=16 batch=4`.
    """
    from mlx_companion.quant import plan_machines

    if machines or measure:
        _show_machines(measure, as_json)
        return
    place = plan_machines.machine(machine or plan_machines.THIS)
    options = given(bits=bits, group=group, kv_bits=kv_bits)
    run = _lora([*(lora or ()), *(more or ())]) if lora or more else None
    plans = _plans(model, place, context, run, contexts, largest, options)
    if picture is not None:
        from mlx_companion.quant.plan_picture import save_picture

        save_picture(plans, picture)
    if as_json:
        found = [own.to_json() for own in plans]
        print_json(found if contexts else found[0])
    else:
        for own in plans:
            _show(own, short=contexts)
    if at_least is not None and not all(_reaches(own, at_least) for own in plans):
        raise typer.Exit(1)


def _plans(
    model: str | None,
    place: Any,
    context: int | None,
    run: LoraPlan | None,
    contexts: bool,
    largest: bool,
    options: dict[str, Any],
) -> Sequence[Plan]:
    from mlx_companion.quant import plan as planner

    if largest:
        if model is not None:
            raise ConfigError(f"--largest looks for a model; leave '{model}' out")
        task: Any = "generate" if run is None else "lora"
        found = planner.largest_model(place, task, lora=run, **given(context=context), **options)
        if found is None:
            raise ConfigError(f"no known model fits {place.name}; try fewer bits or less context")
        return [found]
    if model is None:
        raise ConfigError("give a model: a name, a folder, a config.json; or --largest")
    if contexts:
        return planner.context_cost(model, place, _CONTEXTS, **options)
    return [planner.plan(model, place, context=context, lora=run, **options)]


def _lora(pairs: Sequence[str]) -> LoraPlan:
    from mlx_companion.quant.plan import LoraPlan
    from mlx_companion.runtime.config import load_config, parse_overrides

    texts = [part for pair in pairs for part in pair.split()]
    return load_config(LoraPlan, None, parse_overrides(texts))


def _reaches(own: Plan, least: float) -> bool:
    speed = own.training.speed if own.training else own.speed.generation if own.speed else 0.0
    return own.fits and speed >= least


def _show(own: Plan, *, short: bool) -> None:
    from mlx_companion.loop.console import pairs
    from mlx_companion.quant.plan_text import facts, one_line

    console = make_console()
    if short:
        console.print(one_line(own), soft_wrap=True)
        return
    console.print(pairs(facts(own)))
    for note in own.notes:
        console.print(note, style="dim", soft_wrap=True)


def _show_machines(measure: bool, as_json: bool) -> None:
    from mlx_companion.loop.console import plain_table
    from mlx_companion.quant import plan_machines

    if measure:
        found = [plan_machines.this_machine(measure=True)]
    else:
        found = [plan_machines.machine(name) for name in plan_machines.machine_names()]
    if as_json:
        print_json([vars(own) for own in found])
        return
    table = plain_table("machine", "memory", "usable", "GB/s", "published", "TFLOP/s", "us a layer")
    for own in found:
        table.add_row(
            own.name,
            f"{own.memory / 1e9:.1f} GB",
            f"{own.usable / 1e9:.1f} GB",
            f"{own.bandwidth / 1e9:.0f}",
            f"{own.nominal / 1e9:.0f}" if own.nominal else "",
            f"{own.flops32 / 1e12:.2f}",
            f"{own.layer_seconds * 1e6:.0f}",
        )
    make_console().print(table)
