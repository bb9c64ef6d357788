"""The report of `blt_bpb`: what the trained models reach on the held-out book, and what it costs.

    report(Workplace(data, out), flops=2e14, save=True)

Prints tables, whether each part of the aim was met, the machine, and one JSON object last; draws
`cost`, `training` and `patches` as SVG. Models that are not trained to their end are named as
missing. With `save` all of it is kept in `benchmarks/results`, else the pictures go to the folder
of the runs.

Bits per byte of the token model are those of the tokens that its tokenizer makes of the text,
over the bytes of the text. Each byte is predicted once, in windows that overlap by half.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import bpb_models, bpb_plot
from benchmarks.bpb_measure import STRETCH, Reading, Trained, Training, read_training
from benchmarks.bpb_text import difference, scientific, text_of
from benchmarks.common import RESULTS, host_kind, machine, publish
from mlx_companion.blt import robustness
from mlx_companion.blt.noise import Noise
from mlx_companion.runtime.config import to_dict
from mlx_companion.runtime.files import atomic_write_text

NAME = "blt_bpb"
# The aim, against the token model and the flat one.
AIM_FLOPS_SHARE = 0.6
AIM_PATCH_BYTES = 4.5
AIM_TRAINING_FLOPS = 2e14
CLEARLY = 0.02  # bits per byte
# Errors, on a part of the book.
EXCERPT = 100_000
RATES: dict[Noise, tuple[float, ...]] = {
    "case": (0.1, 0.5),
    "drop": (0.05, 0.1),
    "swap": (0.05, 0.1),
}

_LN2 = math.log(2)
Result = dict[str, Any]


def report(place: bpb_models.Workplace, flops: float, save: bool) -> None:
    """Measure what is trained, print it, draw it.

    Args:
        place: where data and results lie.
        flops: of training, wanted for each model.
        save: whether results are kept in the repository.
    """
    result = collect(place, flops)
    pictures = draw(result, RESULTS / f"{NAME}-{host_kind()}" if save else place.out / NAME)
    publish(NAME, result, text_of(result, pictures), save)


def collect(place: bpb_models.Workplace, flops: float) -> Result:
    """All figures, JSON-ready. Arguments as of `report`."""
    book = place.held_out()
    sample = excerpt(book)
    names = [name for name in bpb_models.MODELS if Trained.finished(name, place)]
    trained = {name: Trained(name, place) for name in names}
    books = {name: model.read(book) for name, model in trained.items()}
    result: Result = {
        "benchmark": NAME,
        "data": place.data.name,
        "training_bytes": sum(map(len, place.training())),
        "held_out_bytes": len(book),
        "excerpt_bytes": len(sample),
        "flops": flops,
        "aim_flops_share": AIM_FLOPS_SHARE,
        "missing": {n: _progress(n, place) for n in bpb_models.MODELS if n not in trained},
        "settings": to_dict(bpb_models.SETTINGS),
    }
    result["models"] = {
        name: {
            **_measured(trained[name], books[name]),
            "training": _training(name, place, result["training_bytes"]),
            "robustness": _noisy(trained[name], sample),
        }
        for name in names
    }
    result["against_token"] = _against(result["models"], books, "token")
    result["against_flat"] = _against(result["models"], books, "flat")
    return result | {"aims": aims(result), "machine": machine()}


def excerpt(book: bytes) -> bytes:
    """About `EXCERPT` bytes of whole lines and characters from the middle of a book."""
    if len(book) <= EXCERPT:
        return book
    begin = book.find(b"\n", (len(book) - EXCERPT) // 2) + 1
    piece = book[begin : begin + EXCERPT]
    return piece[: piece.rfind(b"\n") + 1] or piece


def aims(result: Result) -> list[dict[str, Any]]:
    """Each part of the aim in words, what was measured, and whether it was met (None: unknown)."""
    blt = result["models"].get("blt-entropy")
    token = result["against_token"].get("blt-entropy")
    flat = result["against_flat"].get("blt-entropy")
    spent = [model["training"]["flops"] for model in result["models"].values()]
    return [
        _aim(
            "BLT-entropy at or under the token model's bits per byte",
            token and difference(token),
            token and token["bits_difference"] <= 0,
        ),
        _aim(
            f"with at most {AIM_FLOPS_SHARE:.0%} of its inference FLOPs per byte",
            token and f"{token['flops_share']:.1%}",
            token and token["flops_share"] <= AIM_FLOPS_SHARE,
        ),
        _aim(
            f"clearly ({CLEARLY} bits or more) under the flat byte model",
            flat and difference(flat),
            flat and flat["bits_difference"] <= -CLEARLY,
        ),
        _aim(
            f"patches of {AIM_PATCH_BYTES} bytes or more on average",
            blt and f"{blt['position_bytes']['mean']:.2f} bytes",
            blt and blt["position_bytes"]["mean"] >= AIM_PATCH_BYTES,
        ),
        _aim(
            f"{scientific(AIM_TRAINING_FLOPS)} training FLOPs or more for each of the four",
            f"{scientific(min(spent))} to {scientific(max(spent))}" if spent else None,
            None if result["missing"] else min(spent) >= AIM_TRAINING_FLOPS,
        ),
    ]


def _aim(aim: str, measured: str | None, met: bool | None) -> dict[str, Any]:
    return {"aim": aim, "measured": measured, "met": met}


def _measured(model: Trained, reading: Reading) -> Result:
    return {
        "bits_per_byte": reading.bits_per_byte,
        "nats": reading.nats,
        "inference_flops_per_byte": model.flops(reading.mean_length),
        "position_bytes": {
            "mean": reading.mean_length,
            "median": reading.percentile(0.5),
            "p95": reading.percentile(0.95),
            "histogram": {str(size): count for size, count in reading.lengths.items()},
        },
        "parameters": model.parameters,
        "seconds": reading.seconds,
        "shape": to_dict(model.model.config),
    }


def _training(name: str, place: bpb_models.Workplace, text_bytes: int) -> Result:
    own = read_training(place.out / name, _bytes_per_target(name, place), _spent(name, place))
    assert own is not None, "a model that is finished has left its metrics"
    before = read_training(place.out / "entropy") if name == "blt-entropy" else None
    return {
        **asdict(own),
        "epochs": own.bytes / text_bytes,
        "entropy_model": None if before is None else _without_curve(before),
    }


def _without_curve(training: Training) -> Result:
    return {key: value for key, value in asdict(training).items() if key != "curve"}


def _spent(name: str, place: bpb_models.Workplace) -> float:
    """FLOPs that went into a model before its own training."""
    before = read_training(place.out / "entropy") if name == "blt-entropy" else None
    return 0.0 if before is None else before.flops


def _bytes_per_target(name: str, place: bpb_models.Workplace) -> float:
    return bpb_models.token_text(place)[1] if name == "token" else 1.0


def _progress(name: str, place: bpb_models.Workplace) -> str:
    """How far a model is that is not finished."""
    found = read_training(place.out / name)
    if found is None:
        return "not begun"
    return f"step {found.steps}, {scientific(found.flops + _spent(name, place))} FLOPs"


def _noisy(model: Trained, sample: bytes) -> list[Result]:
    """A row for the excerpt as it is, and for each kind and rate of errors."""
    readings: list[Reading] = []

    def nats(text: bytes) -> float:
        readings.append(model.read(text))
        return readings[-1].nats

    rows = robustness(nats, sample, RATES)
    clean = rows[0].bits_per_byte
    return [
        {
            **row.to_dict(),
            "increase": row.bits_per_original_byte - clean,
            "mean_position_bytes": reading.mean_length,
        }
        for row, reading in zip(rows, readings, strict=True)
    ]


def _against(models: Mapping[str, Result], books: Mapping[str, Reading], base: str) -> Result:
    """Each other model beside one: difference in bits with its standard error, share of FLOPs."""
    if base not in models:
        return {}
    cost = models[base]["inference_flops_per_byte"]["total"]
    return {
        name: {
            "bits_difference": model["bits_per_byte"] - models[base]["bits_per_byte"],
            "standard_error": standard_error(books[name], books[base]),
            "flops_share": model["inference_flops_per_byte"]["total"] / cost,
        }
        for name, model in models.items()
        if name != base
    }


def standard_error(a: Reading, b: Reading) -> float | None:
    """Of the difference in bits per byte, from whole stretches of the text; None for one stretch.

    Stretches vary in difficulty for both models alike, so their differences are what counts.
    """
    whole = a.bytes // STRETCH
    if whole < 2:
        return None
    gaps = (np.array(a.stretches[:whole]) - np.array(b.stretches[:whole])) / _LN2 / STRETCH
    return float(gaps.std(ddof=1) / math.sqrt(whole))


def draw(result: Result, stem: Path) -> dict[str, Path]:
    """Write the pictures that there is something for; their titles and files."""
    blts = any(name.startswith("blt") for name in result["models"])
    wanted = {
        "cost": bool(result["models"]) and bpb_plot.cost,
        "training": bool(result["models"]) and bpb_plot.training,
        "patches": blts and bpb_plot.patches,
    }
    files = {}
    for title, picture in wanted.items():
        if picture:
            files[title] = stem.with_name(f"{stem.name}-{title}.svg")
            atomic_write_text(files[title], picture(result))
    return files
