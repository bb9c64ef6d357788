"""How right the four small modules are, over the gold sets in tests/fixtures/slm.

    python benchmarks/slm_accuracy.py
    python benchmarks/slm_accuracy.py --only personality_guard --no-save

Each module runs with default settings through its public `process_batch`. The sets were written by
hand, apart from the modules, and are for measuring only. Figures come with 95 % intervals; the
picture is a reliability plot: of the answers given a probability, how many are so.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common
from benchmarks.bpb_plot import Chart, linear
from benchmarks.slm_gold import GOLD, LATER, MEASURES
from benchmarks.slm_scores import pooled

RATES = ("accuracy", "precision", "recall", "f1", "false_positives")
# What the modules are built to reach on public data: set, figure, which way, by how much.
AIMS = (
    ("research_classifier", "queries", "needs research", "accuracy", ">=", 0.90),
    ("research_classifier", "queries", "surest", "accuracy", ">=", 0.95),
    ("research_classifier", "queries", "surest", "false_positives", "<=", 0.025),
    ("personality_guard", "responses", "enumerable rules", "recall", ">=", 0.99),
    ("personality_guard", "responses", "enumerable rules", "precision", ">=", 0.98),
    ("context_tracker", "messages", "slang", "precision", ">=", 0.90),
    ("context_tracker", "messages", "slang", "recall", ">=", 0.60),
    ("context_tracker", "messages", "formal", "accuracy", ">=", 0.85),
    ("drift_monitor", "histories", "drift", "false_positives", "<=", 0.05),
    ("drift_monitor", "histories", "tone found, 24 replies at most", "", ">=", 0.60),
    ("drift_monitor", "attachment", "user attachment", "accuracy", ">=", 0.95),
    ("drift_monitor", "attachment", "assistant attachment", "accuracy", ">=", 0.95),
)
# Shape and color of a series, by the names that the charts of this folder have for them.
SERIES = {
    "research need": ("research_classifier", "calibration", "blt-space"),
    "formal": ("context_tracker", "calibration", "token"),
    "user attached": ("drift_monitor", "user calibration", "blt-entropy"),
    "reply attached": ("drift_monitor", "assistant calibration", "flat"),
}


def main() -> None:
    """Measure, print, keep."""
    options = _arguments().parse_args()
    names = options.only.split(",") if options.only else list(MEASURES)
    measured = {name: _measure(name) for name in names}
    modules = {name: figures for name, (figures, _) in measured.items()}
    result = {
        "benchmark": "slm_accuracy",
        "modules": modules,
        "time_per_answer": {name: spent for name, (_, spent) in measured.items()},
        "aims": list(_aims(modules)),
        "gold": {path.name: _digest(path) for path in sorted(GOLD.glob("*.jsonl"))},
        "machine": common.machine(),
    }
    if options.save:
        stem = common.RESULTS / f"slm_accuracy-{common.host_kind()}-reliability"
        stem.with_suffix(".svg").write_text(reliability(modules), encoding="utf-8")
    common.publish("slm_accuracy", result, report(result), options.save)


def report(result: Mapping[str, Any]) -> str:
    """The figures for people."""
    rates, single = _tables(result["modules"])
    aims = [
        [aim["what"], f"{aim['way']} {aim['aim']:.1%}", f"{aim['value']:.1%}", _met(aim["met"])]
        for aim in result["aims"]
    ]
    speed = [
        f"{name} {figures['ms']:.1f} ms, {figures['cpu_ms']:.1f} ms of CPU"
        for name, figures in result["time_per_answer"].items()
    ]
    header = ["module", "what", "accuracy", "precision", "recall", "F1", "false positives"]
    return "\n\n".join(
        [
            "the small modules over their gold sets (95 % intervals)",
            common.machine_text(result["machine"]),
            common.table(header, rates),
            common.table(["module", "what", "figure"], single),
            common.table(["aim", "wanted", "reached", ""], aims),
            "time per answer, in batches: " + "; ".join(speed),
        ]
    )


def _tables(modules: Mapping[str, Any]) -> tuple[list[list[str]], list[list[str]]]:
    rates, single = [], []
    for module, figures in modules.items():
        for what, figure in figures.items():
            if isinstance(figure, float):
                single.append([module, what, f"{figure:.3f}"])
            elif "value" in figure:
                single.append([module, what, _said(figure)])
            elif "calibration_error" in figure:
                error = f"{figure['calibration_error']:.3f}, Brier {figure['brier']:.3f}"
                single.append([module, f"{what} error", error])
            elif what.startswith("errors"):
                tally = ", ".join(f"{name} {count}" for name, count in figure.items())
                single.append([module, what.replace("_", " "), tally])
            else:
                rates.append([module, what, *(_said(figure.get(rate)) for rate in RATES)])
    return rates, single


def reliability(modules: Mapping[str, Any]) -> str:
    """The text of the reliability plot's file."""
    chart = Chart(
        "How often what is given a probability is so",
        "all sets together, ten bins each; on the diagonal the probability is right",
        linear(0, 1, "probability given"),
        linear(0, 1, "share that is so"),
        right=200,
    )
    chart.axes()
    (x1, y1), (x2, y2) = chart.at(0, 0), chart.at(1, 1)
    chart.line("axis", x1, x2, y1, y2)
    drawn = [(title, *of) for title, of in SERIES.items() if of[0] in modules]
    for number, (title, module, figure, style) in enumerate(drawn):
        # A later set's figures have the set's name before their own.
        sets = [
            found
            for name, found in modules[module].items()
            if name == figure or name.endswith(f" set, {figure}")
        ]
        told = pooled(sets)
        places = [chart.at(one["chance"], one["share"]) for one in told["reliability"]]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        chart.add("polyline", f"curve {style}", points=points)
        for place in places:
            chart.mark(style, *place, size=4)
        y = 90 + 22 * number
        chart.mark(style, chart.right + 18, y - 4, size=5)
        chart.text(
            f"{title}, {told['calibration_error']:.3f} off", chart.right + 30, y, f"name {style}"
        )
    return chart.done()


def _measure(name: str) -> tuple[dict[str, Any], dict[str, float]]:
    import mlx_companion  # noqa: F401 - before mlx.core
    from mlx_companion.slm import SLMFactory

    module = SLMFactory().get_module(name)
    answered = [0]

    def batch(items: Any) -> list[Any]:
        answered[0] += len(items)
        return list(module.process_batch(items))

    start, cpu = time.perf_counter(), time.process_time()
    figures = MEASURES[name](batch)
    wall, used = time.perf_counter() - start, time.process_time() - cpu
    print(f"{name}: {answered[0]} answers in {wall:.1f} s", file=sys.stderr, flush=True)
    module.close()
    return figures, {"ms": 1000 * wall / answered[0], "cpu_ms": 1000 * used / answered[0]}


def _aims(modules: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for module, name, what, rate, way, aim in AIMS:
        if module not in modules:
            continue
        for which in (what, *(f"{later} set, {what}" for later in LATER.get(name, ()))):
            figure = modules[module][which]
            value = (figure[rate] if rate else figure)["value"] or 0.0
            met = value >= aim if way == ">=" else value <= aim
            said = " ".join(part for part in (module, which, rate) if part)
            yield {"what": said, "way": way, "aim": aim, "value": value, "met": met}


def _said(figure: Mapping[str, Any] | None) -> str:
    if not figure or figure["value"] is None:
        return "-"
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"


def _met(met: bool) -> str:
    return "met" if met else "missed"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="modules, separated by commas")
    parser.add_argument("--no-save", dest="save", action="store_false", help="keep no results")
    return parser


if __name__ == "__main__":
    main()
