"""Bytes per second of this package's byte latent transformer beside transformers'.

    python benchmarks/blt_generate.py                 # ten minutes or more: the other one is slow
    python benchmarks/blt_generate.py --quick         # a short text, nothing kept
    pip install torch transformers                    # the other one; without it only ours is run

Both write greedily behind the same prompt, with the same random weights (made here, written by
`export_hf`), in float32, one text at a time; the bytes they write are compared. transformers runs
the only way it can, with `use_cache=False`: one whole forward per byte. Each run is a process of
its own, and both take turns. What is compiled or loaded once is done before the clock starts.

Of ours the cost per byte is told at three lengths too: it may grow by the latent transformer's keys
and values only. That is measured on random bytes (their patches are as long everywhere), over 128
bytes around each length, the passes alternating.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROMPT = (
    "It was a bright cold day, and the clocks of the harbour were striking one after the other."
)
# Byte encoder, byte decoder, latent transformer and entropy model; a small model of usual shape.
LOCAL = {"width": 256, "heads": 4, "ffn": 704, "window": 512}
LATENT = {"width": 512, "layers": 8, "heads": 8, "ffn": 1408}
LAYERS = {"encoder": 1, "decoder": 4, "entropy": 2}
HASH_ROWS = 5003
BYTES_PER_PATCH = 4.5
LENGTHS = (256, 1024, 2048)
AROUND = 128


def main() -> None:
    """Run the benchmark, or one contestant of it (`--worker`, used by the benchmark itself)."""
    options = arguments().parse_args()
    if options.worker:
        WORKERS[options.worker](options)
        return
    import common

    if options.quick:
        options.bytes, options.repeats = 128, 1
    with tempfile.TemporaryDirectory() as folder:
        facts = run(folder, options, "make")
        names = ["mlx-companion", *(["transformers"] if facts["torch"] else [])]
        rounds = common.alternate(
            {name: lambda name=name: run(folder, options, name) for name in names}, options.repeats
        )
        growth = run(folder, options, "growth")
    report(options, facts, rounds, growth)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bytes", type=int, default=1024, help="bytes to write (default 1,024)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round of 128 bytes, not kept")
    parser.add_argument("--no-save", action="store_true", help="do not keep the result")
    parser.add_argument("--worker", choices=list(WORKERS), help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    return parser


def run(folder: str, options: argparse.Namespace, worker: str) -> dict[str, Any]:
    """One worker in a fresh process."""
    import common

    command = ["--worker", worker, "--model", folder, "--bytes", str(options.bytes)]
    return common.in_fresh_process(__file__, command)


# --- workers ---------------------------------------------------------------------------------


def make(options: argparse.Namespace) -> None:
    """Write the model in both layouts, with a threshold that gives the wanted patches."""
    from dataclasses import replace
    from importlib.util import find_spec

    import mlx.core as mx
    import numpy as np

    from mlx_companion.blt.cache import make_cache
    from mlx_companion.blt.config import BlockConfig, BltConfig, HashConfig, PatchConfig
    from mlx_companion.blt.generation import generate
    from mlx_companion.blt.model import BltModel
    from mlx_companion.blt.save import export_hf, save
    from mlx_companion.text.byte_text import encode_bytes

    mx.random.seed(0)
    local = {name: BlockConfig(layers=layers, **LOCAL) for name, layers in LAYERS.items()}
    config = BltConfig(
        **local,
        latent=BlockConfig(**LATENT),
        hash=HashConfig(vocabulary=HASH_ROWS),
        patching=PatchConfig(mode="static", size=round(BYTES_PER_PATCH)),
    )
    model = BltModel(config)
    # Random weights would write specials now and then, and only transformers may: here nobody does.
    head = np.array(model.lm_head.weight)
    head[:4] = 0
    model.lm_head.weight = mx.array(head)
    threshold = 0.0
    for _ in range(3):
        # The text depends on the patches and these on the text, so it takes a few rounds.
        text = encode_bytes(PROMPT.encode() + generate(model, PROMPT, max_bytes=256).data)
        nats = np.array(model.entropies(mx.array(text[None])))[0]
        threshold = between(nats, 1 - 1 / BYTES_PER_PATCH)
        rule = PatchConfig(mode="entropy", threshold=threshold)
        model.config = replace(config, patching=rule)
    cache = make_cache(model)
    count = len(generate(model, PROMPT, max_bytes=options.bytes, cache=cache).data)
    patches = int(cache.patches.closed[0])
    save(model, options.model / "ours")
    export_hf(model, options.model / "theirs")
    parameters = sum(value.size for _, value in flat_parameters(model))
    result = {
        "torch": find_spec("torch") is not None and find_spec("transformers") is not None,
        "parameters": parameters,
        "bytes_per_patch": (count + len(PROMPT) + 1) / patches,
        "threshold": threshold,
    }
    if not result["torch"]:
        print("torch is missing (pip install torch transformers): only ours runs", file=sys.stderr)
    print(json.dumps(result))


def between(values: Any, share: float) -> float:
    """A threshold that about this share of the values lies under, in the widest gap near it."""
    import numpy as np

    low, high = np.quantile(values, [share - 0.03, share + 0.03])
    near = np.sort(values[(values >= low) & (values <= high)])
    at = int(np.diff(near).argmax())
    return float(near[at : at + 2].mean())


def flat_parameters(model: Any) -> Any:
    """Pairs of name and array."""
    from mlx.utils import tree_flatten

    return tree_flatten(model.parameters())


def ours(options: argparse.Namespace) -> None:
    """Write with this package."""
    from mlx_companion.blt.generation import generate
    from mlx_companion.blt.load import load

    model = load(options.model / "ours")
    # Every number of kept positions is compiled once, at first use.
    generate(model, PROMPT, max_bytes=options.bytes)
    start = time.perf_counter(), time.process_time()
    reply = generate(model, PROMPT, max_bytes=options.bytes)
    finish(start, len(reply.data), reply.data)


def theirs(options: argparse.Namespace) -> None:
    """Write with transformers."""
    import torch
    from transformers import BltForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = BltForCausalLM.from_pretrained(options.model / "theirs").eval()
    ids = torch.tensor([[1, *(byte + 4 for byte in PROMPT.encode())]])
    settings = {
        "attention_mask": torch.ones_like(ids),
        "use_cache": False,
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    with torch.inference_mode():
        model.generate(ids, max_new_tokens=2, **settings)
        start = time.perf_counter(), time.process_time()
        made = model.generate(ids, max_new_tokens=options.bytes, **settings)
    new = made[0, ids.shape[1] :].tolist()
    finish(start, len(new), bytes(max(value - 4, 0) for value in new))


def growth(options: argparse.Namespace) -> None:
    """Seconds per byte around several lengths of one text."""
    from dataclasses import replace

    import mlx.core as mx
    import numpy as np

    from mlx_companion.blt.cache import make_cache
    from mlx_companion.blt.load import load
    from mlx_companion.blt.prefill import prefill
    from mlx_companion.blt.stepping import advance
    from mlx_companion.text.byte_text import encode_bytes

    model = load(options.model / "ours")
    text = np.random.default_rng(0).integers(0, 256, max(LENGTHS) + AROUND).astype(np.uint8)
    ids = encode_bytes(text.tobytes())[None]
    nats = np.array(model.entropies(mx.array(ids)))[0]
    rule = replace(model.config.patching, threshold=between(nats, 1 - 1 / BYTES_PER_PATCH))
    model.config = replace(model.config, patching=rule)
    seconds: dict[int, list[float]] = {length: [] for length in LENGTHS}
    closed = {}
    for number in range(6):
        for length in LENGTHS if number % 2 else LENGTHS[::-1]:
            cache = make_cache(model)
            mx.eval(prefill(model, cache, ids[:, : length - AROUND // 2]))
            before, start = cache.latent_rows, time.perf_counter()
            for at in range(length - AROUND // 2, length + AROUND // 2):
                mx.eval(advance(model, cache, ids[:, at]))
            # The first round compiles.
            if number:
                seconds[length].append((time.perf_counter() - start) / AROUND)
            closed[length] = (cache.latent_rows - before) / AROUND
    figures = {
        str(length): {
            "ms_per_byte": 1000 * statistics.median(values),
            "all_ms_per_byte": [1000 * value for value in values],
            "patches_per_byte": closed[length],
        }
        for length, values in seconds.items()
    }
    print(json.dumps(figures))


def finish(start: tuple[float, float], count: int, data: bytes) -> None:
    """Print the figures of one run as JSON."""
    wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
    figures = {
        "bytes": count,
        "seconds": wall,
        "cpu_seconds": cpu,
        "bytes_per_second": count / wall,
        "written": data.hex(),
    }
    print(json.dumps(figures))


WORKERS = {"make": make, "mlx-companion": ours, "transformers": theirs, "growth": growth}


# --- report ----------------------------------------------------------------------------------


def report(
    options: argparse.Namespace,
    facts: dict[str, Any],
    rounds: dict[str, list[dict[str, Any]]],
    growth: dict[str, Any],
) -> None:
    """Print and keep medians and ratios."""
    import common

    machine = common.machine()
    agreed = same_bytes(rounds)
    lines = [
        f"Byte latent transformer of {facts['parameters'] / 1e6:.1f} million parameters "
        f"(local width {LOCAL['width']}, latent {LATENT['layers']} x {LATENT['width']}), "
        f"{facts['bytes_per_patch']:.1f} bytes per patch",
        f"{options.bytes} bytes behind a prompt of {len(PROMPT)}, greedy, float32, one text",
        common.machine_text(machine),
        "",
        common.table(
            ["", "bytes/s", "ms per byte", "CPU s", "runs"],
            [line(*pair) for pair in rounds.items()],
        ),
        "",
        *compared(rounds, agreed),
        "",
        common.table(
            ["at length", "ms per byte", "patches per byte"],
            [
                [length, f"{row['ms_per_byte']:.2f}", f"{row['patches_per_byte']:.2f}"]
                for length, row in growth.items()
            ],
        ),
        "",
        f"cost per byte at {LENGTHS[-1]} / at {LENGTHS[0]}: {grown(growth):.2f}",
    ]
    result = {
        "benchmark": "blt_generate",
        "model": {"local": LOCAL, "layers": LAYERS, "latent": LATENT, **facts},
        "bytes": options.bytes,
        "speed_ratios": speed(rounds),
        "speed_ratio": statistics.median(speed(rounds)) if speed(rounds) else None,
        "same_bytes": agreed,
        "cost_ratio": grown(growth),
        "growth": growth,
        "runs": {
            name: [{k: v for k, v in run.items() if k != "written"} for run in runs]
            for name, runs in rounds.items()
        },
        "machine": machine,
    }
    save = not (options.quick or options.no_save) and "transformers" in rounds
    common.publish("blt_generate", result, "\n".join(lines), save)


def line(name: str, runs: list[dict[str, Any]]) -> list[str]:
    """A contestant's line of the table."""
    per_byte = [1000 * run["seconds"] / run["bytes"] for run in runs]
    return [
        name,
        f"{statistics.median(run['bytes_per_second'] for run in runs):.2f}",
        f"{statistics.median(per_byte):.2f}",
        f"{statistics.median(run['cpu_seconds'] for run in runs):.1f}",
        str(len(runs)),
    ]


def compared(rounds: dict[str, list[dict[str, Any]]], agreed: int | None) -> list[str]:
    """The lines about both."""
    if agreed is None:
        return ["transformers was not run: pip install torch transformers"]
    ratios = speed(rounds)
    listed = ", ".join(f"{ratio:.1f}" for ratio in ratios)
    return [
        f"mlx-companion / transformers, bytes per second: {statistics.median(ratios):.1f} "
        f"({listed})",
        f"the first {agreed} bytes that both wrote are the same",
    ]


def speed(rounds: dict[str, list[dict[str, Any]]]) -> list[float]:
    """Ours over theirs, round by round; empty without theirs."""
    import common

    if "transformers" not in rounds:
        return []
    return common.ratios(rounds["mlx-companion"], rounds["transformers"], "bytes_per_second")


def same_bytes(rounds: dict[str, list[dict[str, Any]]]) -> int | None:
    """How many bytes agree from the first on, in the first round; None without theirs."""
    if "transformers" not in rounds:
        return None
    a, b = (bytes.fromhex(rounds[name][0]["written"]) for name in ("mlx-companion", "transformers"))
    return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(a))


def grown(growth: dict[str, Any]) -> float:
    """Cost per byte at the largest length over that at the smallest."""
    return growth[str(LENGTHS[-1])]["ms_per_byte"] / growth[str(LENGTHS[0])]["ms_per_byte"]


if __name__ == "__main__":
    main()
