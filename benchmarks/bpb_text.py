"""The report of `blt_bpb` for people: Markdown tables of what `bpb_report.collect` gives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.bpb_measure import STRETCH
from benchmarks.common import machine_text, table

Result = dict[str, Any]

_MET = {True: "met", False: "MISSED", None: "not known yet"}


def text_of(result: Result, pictures: Mapping[str, Path]) -> str:
    """The report for people, in Markdown."""
    parts = [
        f"# Bits per byte of four models trained with {scientific(result['flops'])} FLOPs each",
        machine_text(result["machine"]),
        f"Trained on {result['data']}, {result['training_bytes'] / 1e6:.1f} MB; measured on a "
        f"held-out book of {result['held_out_bytes'] / 1e6:.2f} MB that no model has seen.",
    ]
    parts += [f"**{name} is missing**: {why}." for name, why in result["missing"].items()]
    if result["models"]:
        parts += ["## The aim", _aims_text(result["aims"])]
        parts += ["## The held-out book", _held_out_table(result), *_notes(result)]
        parts += ["## FLOPs of inference, thousands per byte", _parts_table(result["models"])]
        parts += ["## Training", _training_table(result), _settings_text(result)]
        parts += ["## Typing errors", _errors_text(result), _errors_table(result["models"])]
    parts += [f"![{title}]({path.name})" for title, path in pictures.items()]
    return "\n\n".join(parts)


def _aims_text(rows: list[dict[str, Any]]) -> str:
    return "\n".join(
        f"- {row['aim']}: **{_MET[row['met']]}**"
        + (f" ({row['measured']})" if row["measured"] else "")
        for row in rows
    )


def difference(row: Mapping[str, Any]) -> str:
    """A difference in bits per byte with its standard error."""
    error = row["standard_error"]
    return f"{row['bits_difference']:+.4f} bits" + (f" ± {error:.4f}" if error else "")


def _held_out_table(result: Result) -> str:
    header = ["", "bits per byte", "against the token model", "inference kFLOPs per byte"]
    header += ["of the token model's", "bytes per position: mean", "median", "95 %"]
    rows = []
    for name, model in result["models"].items():
        beside, sizes = result["against_token"].get(name), model["position_bytes"]
        rows.append(
            [
                name,
                f"{model['bits_per_byte']:.4f}",
                difference(beside) if beside else "",
                f"{model['inference_flops_per_byte']['total'] / 1e3:.0f}",
                f"{beside['flops_share']:.1%}" if beside else "",
                f"{sizes['mean']:.2f}",
                str(sizes["median"]),
                str(sizes["p95"]),
            ]
        )
    return table(header, rows)


def _notes(result: Result) -> list[str]:
    """What has to be known to read the table."""
    notes = [
        "A position is a patch, a token or (flat) a byte. ± is one standard error, over "
        f"stretches of {STRETCH // 1000} kB of the book."
    ]
    for name, model in result["models"].items():
        spent = model["training"]["flops"]
        if abs(spent / result["flops"] - 1) > 0.02:
            notes.append(
                f"**{name} was trained with {scientific(spent)} FLOPs, not "
                f"{scientific(result['flops'])}**; remove its folder to train it again."
            )
    return notes


def _parts_table(models: Mapping[str, Result]) -> str:
    parts = ["entropy", "encoder", "latent", "decoder", "head", "total"]
    rows = [
        [name, *(f"{model['inference_flops_per_byte'][part] / 1e3:.0f}" for part in parts)]
        for name, model in models.items()
    ]
    return table(["", *parts], rows)


def _training_table(result: Result) -> str:
    header = ["", "FLOPs", "MB read", "epochs", "steps", "bytes per step", "peak learning rate"]
    header += ["seconds", "parameters, M", "of them hash tables", "peak MB"]
    rows = []
    for name, model in result["models"].items():
        run, sizes = model["training"], model["parameters"]
        rows.append(
            [
                name,
                scientific(run["flops"]),
                f"{run['bytes'] / 1e6:.1f}",
                f"{run['epochs']:.2f}",
                f"{run['steps']}",
                f"{run['bytes_per_step']:.0f}",
                f"{run['peak_lr']:g}",
                f"{run['seconds']:.0f}",
                f"{sizes['total'] / 1e6:.2f}",
                f"{sizes['hash_tables'] / 1e6:.2f}",
                f"{run['peak_mb']:.0f}",
            ]
        )
    return table(header, rows)


def _settings_text(result: Result) -> str:
    settings = result["settings"]
    said = (
        f"{settings['optimizer']}, {settings['schedule']} schedule: {settings['warmup_steps']} "
        f"steps of warm-up, the last {settings['decay_ratio']:.0%} falling to "
        f"{settings['final_lr_ratio']:.0%}; weight decay {settings['weight_decay']:g}, betas "
        f"{', '.join(f'{beta:g}' for beta in settings['betas'])}, seed {settings['seed']}."
    )
    blt = result["models"].get("blt-entropy")
    before = blt and blt["training"]["entropy_model"]
    if not before:
        return said
    return (
        f"{said} The FLOPs of blt-entropy hold {scientific(before['flops'])} of its entropy model, "
        f"which took {before['seconds']:.0f} s more; patches begin above "
        f"{blt['shape']['patching']['threshold']:.3f} nats."
    )


def _errors_text(result: Result) -> str:
    return (
        f"On {result['excerpt_bytes'] / 1e3:.0f} kB of the book: bits per byte of the text with "
        "errors / of the text as it was (in brackets: what the errors add to the latter)."
    )


def _errors_table(models: Mapping[str, Result]) -> str:
    first = next(iter(models.values()))["robustness"]
    rows = []
    for number, row in enumerate(first):
        label = "as it is" if row["noise"] == "none" else f"{row['noise']}, {row['rate']:.0%}"
        cells = [_errors_cell(model["robustness"][number]) for model in models.values()]
        rows.append([label, *cells])
    return table(["", *models], rows)


def _errors_cell(row: Mapping[str, Any]) -> str:
    if row["noise"] == "none":
        return f"{row['bits_per_byte']:.3f}"
    bits = f"{row['bits_per_byte']:.3f} / {row['bits_per_original_byte']:.3f}"
    return f"{bits} ({row['increase']:+.3f})"


def scientific(value: float) -> str:
    """200000000000000 is "2e14"."""
    mantissa, _, power = f"{value:.3e}".partition("e")
    return f"{float(mantissa):g}e{int(power)}"
