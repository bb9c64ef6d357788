"""The four modules beside the same jobs done by prompting the default model through mlx-lm.

    python benchmarks/slm.py [--repeats 20] [--prompted 5] [--save]

What a person could do without this package is ask a language model: "does this query need research?
answer in JSON". Here each job runs both ways, in turn, in one process: through the orchestrator,
one message at a time, warm, every message another text; and by `mlx_lm.generate` with a short
instruction and a JSON answer, greedy, with the default model in the number type that is fastest
here. Times are medians; CPU time of the whole process is beside them, because other programs on a
busy machine lengthen the wall time and not that. The JSON on the last line holds every figure.

Aims: classifier under 50 ms, guard under 20 (its rewriting included), tracker under 60, drift
under 100, all four under 150; at least 20 times faster than prompting.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from common import machine, machine_text, publish, table

import mlx_companion as mc
from mlx_companion.slm import (
    MODULES,
    LatencyRow,
    SLMConfig,
    SLMOrchestrator,
    measure_latencies,
    sample_inputs,
)

ALL = "all four together"
AIMS = {
    "research_classifier": 50,
    "personality_guard": 20,
    "context_tracker": 60,
    "drift_monitor": 100,
    ALL: 150,
}
# What is measured is how long an answer takes, however busy the machine is.
PATIENT = {
    **{f"modules.{name}.timeout": 60.0 for name in MODULES},
    "orchestration.total_timeout": 120.0,
    "resources.adaptive": False,
}
# (instruction, most tokens of the answer): the tokens are what a whole answer takes.
JOBS = {
    "research_classifier": (
        "Does this query need a web search, because its answer is live, local or may have changed? "
        'Answer only with JSON: {"needs_research": true or false, "category": "..."}',
        24,
    ),
    "personality_guard": (
        "Rewrite this reply in dry wit: no asterisk actions, no capitals for excitement, at most "
        "one exclamation mark, no coffee. Answer only with JSON: "
        '{"violations": [...], "rewritten": "..."}',
        80,
    ),
    "context_tracker": (
        "Which slang is in this message, how formal is it from 0 to 1, and what mood? Answer only "
        'with JSON: {"slang": [...], "formality": 0.5, "mood": "..."}',
        40,
    ),
    "drift_monitor": (
        "How emotionally attached to its assistant does the person sound, from 0 to 1? Answer only "
        'with JSON: {"user_attachment": 0.5, "drift": false}',
        24,
    ),
}


class Prompted:
    """The default model, asked through mlx-lm."""

    def __init__(self) -> None:
        self.model, self.tokenizer = mc.load()

    def ask(self, name: str, item: Any) -> str:
        """One job's answer."""
        from mlx_lm import generate

        instruction, tokens = JOBS[name]
        text = item["text"] if isinstance(item, dict) else item
        chat = [{"role": "system", "content": instruction}, {"role": "user", "content": text}]
        prompt = self.tokenizer.apply_chat_template(chat, add_generation_prompt=True)
        return generate(self.model, self.tokenizer, prompt, max_tokens=tokens, verbose=False)


def timed(work: Callable[[], Any]) -> dict[str, float]:
    """Wall and CPU time of one piece of work, milliseconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {
        "ms": (time.perf_counter() - wall) * 1e3,
        "cpu_ms": (time.process_time() - cpu) * 1e3,
    }


def prompted_row(rows: list[dict[str, float]]) -> dict[str, float]:
    """Medians of one job's runs."""
    return {key: statistics.median(row[key] for row in rows) for key in ("ms", "cpu_ms")}


async def compare(repeats: int, prompted: int) -> dict[str, Any]:
    """Both ways in turn: a share of the modules' messages, then one prompted answer per job."""
    peer, inputs = Prompted(), sample_inputs()
    ours: dict[str, list[LatencyRow]] = {}
    theirs: dict[str, list[dict[str, float]]] = {name: [] for name in JOBS}
    async with SLMOrchestrator(mc.load_config(SLMConfig, None, PATIENT)) as modules:
        for round_ in range(prompted):
            share = max(1, repeats // prompted)
            for row in await measure_latencies(modules, share, inputs=inputs):
                ours.setdefault(row.name, []).append(row)
            message = next(inputs)
            for name in MODULES:
                theirs[name].append(timed(partial(peer.ask, name, message[name])))
            print(f"  round {round_ + 1}/{prompted}: done", file=sys.stderr, flush=True)
    return {
        "ours": {name: summary(rows) for name, rows in ours.items()},
        "prompted": {name: prompted_row(rows) for name, rows in theirs.items()},
    }


def summary(rows: list[LatencyRow]) -> dict[str, float]:
    """The rounds of one module as one row: medians of medians, the median of the 95th percents."""
    return {
        "median_ms": statistics.median(row.median_ms for row in rows),
        "p95_ms": statistics.median(row.p95_ms for row in rows),
        "cpu_ms": statistics.median(row.cpu_ms for row in rows),
        "answered": statistics.mean(row.answered for row in rows),
    }


def result_of(found: dict[str, Any], repeats: int, prompted: int) -> dict[str, Any]:
    """All figures with the ratios; all four prompted means one after another."""
    theirs = found["prompted"]
    theirs[ALL] = {key: sum(row[key] for row in theirs.values()) for key in ("ms", "cpu_ms")}
    ratios = {
        name: {
            "wall": theirs[name]["ms"] / row["median_ms"],
            "cpu": theirs[name]["cpu_ms"] / row["cpu_ms"],
        }
        for name, row in found["ours"].items()
    }
    return {
        "benchmark": "slm",
        "machine": machine(),
        "repeats": repeats,
        "prompted_repeats": prompted,
        **found,
        "times_faster": ratios,
        "aims_ms": AIMS,
    }


def text_of(result: dict[str, Any]) -> str:
    """The table for people."""
    rows = []
    for name, own in result["ours"].items():
        peer, ratio = result["prompted"][name], result["times_faster"][name]
        rows.append(
            [
                name,
                f"{own['median_ms']:.1f} ms",
                f"{own['p95_ms']:.1f} ms",
                f"{own['cpu_ms']:.1f} ms",
                f"{AIMS[name]} ms",
                f"{peer['ms']:,.0f} ms",
                f"{peer['cpu_ms']:,.0f} ms",
                f"{ratio['wall']:,.0f} ({ratio['cpu']:,.0f})",
            ]
        )
    header = ["job", "median", "p95", "CPU time", "aim", "prompted", "CPU time", "times (CPU)"]
    return f"{machine_text(result['machine'])}\n\n{table(header, rows)}\n"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=40, help="messages for each module")
    parser.add_argument("--prompted", type=int, default=5, help="answers of the peer for each job")
    parser.add_argument("--save", action="store_true", help="keep the result")
    arguments = parser.parse_args()
    found = asyncio.run(compare(arguments.repeats, arguments.prompted))
    result = result_of(found, arguments.repeats, arguments.prompted)
    publish("slm", json.loads(json.dumps(result)), text_of(result), arguments.save)


if __name__ == "__main__":
    main()
