"""This trainer beside `mlx_lm.lora`: useful tokens per second, peak memory, held-out loss.

    python benchmarks/finetune.py                 # three shapes of data, 20 minutes
    python benchmarks/finetune.py --shape chat --rows 192
    python benchmarks/finetune.py --quick         # one short round of each
    python benchmarks/finetune.py --data my.jsonl --model qwen2.5-0.5b

Both train a LoRA adapter of the same rank on the same linear layers of the same model in the same
number type, on the same rows the same number of times, with AdamW, the same learning rates and
about the same number of steps. Each run is a process of its own, so that its peak memory is its
own, and loads its BLAS in the same way (`mlx_companion` does that on import). mlx-lm gets its own
dataset classes and its own training loop, called with its defaults (batches of 4 rows,
compiled step); validation and saving are off on both sides while the clock runs.

Useful tokens are those that the loss should count: the replies, end token included, or all of a
text. The held-out loss is computed by one function for both, from full logits. The default data is
synthetic; see `finetune_data`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import common
from finetune_data import SHAPES, made

RANK, ALPHA = 8, 16.0
LEARNING_RATE = 3e-4
MLX_LM_ROWS = 4
# What each shape of data is to reach: useful tokens per second, peak memory, as shares of mlx-lm's.
AIMS = {"chat": (2.0, 0.6), "classification": (2.0, 0.6), "documents": (1.2, 0.6)}
ROWS = {"chat": 64, "classification": 96, "documents": 16}
WARMUP = 0.05
FINAL = 0.1
MAX_TOKENS = 1024


def main() -> None:
    """Run the benchmark, or one contestant of it (`--worker`, used by the benchmark itself)."""
    options = arguments().parse_args()
    if options.worker:
        work(options)
        return
    found = {}
    for shape in ["data"] if options.data else options.shape or list(SHAPES):
        with tempfile.TemporaryDirectory() as folder:
            train, valid = data_files(options, shape, Path(folder))
            found[shape] = common.alternate(
                {name: partial(contestant, name, options, train, valid) for name in WORKERS},
                1 if options.quick else options.repeats,
            )
    report(options, found)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m", help="alias, hub id, folder or GGUF")
    parser.add_argument("--data", type=Path, help="chat or prompt/completion file; default: made")
    parser.add_argument("--shape", choices=SHAPES, action="append", help="some of the shapes")
    parser.add_argument("--rows", type=int, help="training rows (a multiple of 4)")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round on 16 rows, nothing kept")
    parser.add_argument("--no-save", action="store_true", help="do not keep the result")
    parser.add_argument("--worker", choices=list(WORKERS), help=argparse.SUPPRESS)
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--valid", type=Path, help=argparse.SUPPRESS)
    return parser


def contestant(name: str, options: argparse.Namespace, train: Path, valid: Path) -> dict[str, Any]:
    """One run of one contestant in a fresh process."""
    command = ["--worker", name, "--train", str(train), "--valid", str(valid)]
    command += ["--model", options.model, "--epochs", str(options.epochs)]
    return common.in_fresh_process(__file__, command, ENVIRONMENT.get(name))


# --- data ------------------------------------------------------------------------------------


def data_files(options: argparse.Namespace, shape: Any, folder: Path) -> tuple[Path, Path]:
    """Training and held-out rows as files that both contestants read."""
    rows = 16 if options.quick else options.rows or ROWS.get(shape, 192)
    held_out = max(8, rows // 8)
    known = given(options.data) if options.data else made(shape, rows + held_out, seed=0)
    if len(known) < MLX_LM_ROWS * 2:
        sys.exit(f"{len(known)} rows are too few; give at least {MLX_LM_ROWS * 2}")
    held_out = min(held_out, len(known) // 4) if options.data else held_out
    rows = min(rows, len(known) - held_out) // MLX_LM_ROWS * MLX_LM_ROWS
    paths = folder / "train.jsonl", folder / "valid.jsonl"
    for path, part in zip(paths, (known[:rows], known[rows : rows + held_out]), strict=True):
        path.write_text("\n".join(map(json.dumps, part)) + "\n", encoding="utf-8")
    return paths


def given(path: Path) -> list[dict[str, Any]]:
    """The conversations of a person's file, in a fixed random order."""
    from mlx_companion.text import read_samples

    samples = [sample for sample in read_samples(path) if sample.messages]
    random.Random(0).shuffle(samples)
    return [
        {"messages": [{"role": m.role, "content": m.content} for m in s.messages]} for s in samples
    ]


# --- contestants -----------------------------------------------------------------------------


def work(options: argparse.Namespace) -> None:
    """Train once and print the figures as JSON."""
    import mlx_companion as mc
    from mlx_companion.text import encode_samples, read_samples

    lm = mc.load(options.model)
    rows, _ = encode_samples(read_samples(options.train), lm.tokenizer, MAX_TOKENS)
    held_out, _ = encode_samples(read_samples(options.valid), lm.tokenizer, MAX_TOKENS)
    before = memory()
    figures = WORKERS[options.worker](lm, options, rows)
    targets = options.epochs * sum(row.target_count for row in rows)
    tokens = options.epochs * sum(len(row.tokens) for row in rows)
    figures |= {"peak_mb": memory(), "loaded_mb": before}
    figures |= {
        "targets": targets,
        "tokens": tokens,
        "targets_per_second": targets / figures["seconds"],
        "padding": 1 - tokens / figures["slots"],
        "valid_loss": held_out_loss(lm.model, held_out),
    }
    print(json.dumps(figures))


def train_ours(lm: Any, options: argparse.Namespace, rows: Sequence[Any]) -> dict[str, Any]:
    """This package's trainer."""
    from mlx_companion.lora import LoraConfig, attach
    from mlx_companion.training import Callback, TrainConfig, Trainer

    class Watch(Callback):
        streams = slots = 0

        def on_start(self, run: Any) -> None:
            self.streams = run.streams

        def on_step(self, step: Any) -> None:
            self.slots += step.slots

    attach(lm.model, LoraConfig(rank=RANK, alpha=ALPHA))
    watch = Watch()
    config = TrainConfig(
        epochs=options.epochs,
        lr=LEARNING_RATE,
        warmup_ratio=WARMUP,
        final_lr_ratio=FINAL,
        max_tokens=MAX_TOKENS,
    )
    trainer = Trainer(lm.model, buckets_of_as_many_steps(rows), config=config, callbacks=[watch])
    with Clock() as clock:
        summary = trainer.run()
    return clock.figures() | {
        "steps": summary.steps,
        "slots": watch.slots,
        "streams": watch.streams,
    }


def buckets_of_as_many_steps(rows: Sequence[Any]) -> Any:
    """Batches of the size that gives about as many steps as batches of 4 rows do."""
    from mlx_companion.text import LengthBuckets

    wanted = len(rows) / MLX_LM_ROWS
    sizes = range(128, 16 * MAX_TOKENS, 32)
    plans = (LengthBuckets(rows, batch_tokens=size) for size in sizes)
    return min(plans, key=lambda plan: abs(len(plan.epoch(0)) - wanted))


def train_mlx_lm(lm: Any, options: argparse.Namespace, rows: Sequence[Any]) -> dict[str, Any]:
    """mlx-lm's own dataset classes and training loop."""
    from mlx.optimizers import AdamW
    from mlx_lm.tuner.datasets import CacheDataset, ChatDataset, TextDataset
    from mlx_lm.tuner.trainer import TrainingArgs, iterate_batches, train
    from mlx_lm.tuner.utils import linear_to_lora_layers

    from mlx_companion.training.config import TrainConfig
    from mlx_companion.training.schedule import learning_rate

    steps = options.epochs * len(rows) // MLX_LM_ROWS
    config = TrainConfig(lr=LEARNING_RATE, warmup_ratio=WARMUP, final_lr_ratio=FINAL)
    rates = [learning_rate(step, steps, config) for step in range(steps)]
    optimizer = AdamW(schedule(rates), weight_decay=config.weight_decay, bias_correction=True)
    lm.model.freeze()
    shape = {"rank": RANK, "scale": ALPHA / RANK, "dropout": 0.0}
    linear_to_lora_layers(lm.model, len(lm.model.layers), shape)
    data = [json.loads(line) for line in options.train.read_text().splitlines()]
    texts = "text" in data[0]
    rows_of = TextDataset if texts else partial(ChatDataset, mask_prompt=True)
    dataset = CacheDataset(rows_of(data, lm.tokenizer))
    slots = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal slots
        for batch in iterate_batches(*args, **kwargs):
            slots += batch[0].size
            yield batch

    with tempfile.TemporaryDirectory() as folder, quiet():
        settings = TrainingArgs(
            batch_size=MLX_LM_ROWS,
            iters=steps,
            steps_per_report=10**9,
            steps_per_save=10**9,
            max_seq_length=MAX_TOKENS,
            adapter_file=str(Path(folder) / "adapters.safetensors"),
        )
        with Clock() as clock:
            train(lm.model, optimizer, dataset, args=settings, iterate_batches=counted)
    return clock.figures() | {"steps": steps, "slots": slots, "streams": 1}


def schedule(rates: Sequence[float]) -> Any:
    """The same learning rates as a function of the optimizer's step, which may be traced."""
    import mlx.core as mx

    values = mx.array(list(rates))
    return lambda step: values[mx.minimum(step.astype(mx.int32), len(rates) - 1)]


def held_out_loss(model: Any, rows: Sequence[Any]) -> float:
    """Mean cross-entropy of the held-out targets (nats), row by row from full logits."""
    import mlx.core as mx
    import mlx.nn as nn

    model.eval()
    total, count = 0.0, 0
    for row in rows:
        tokens = mx.array(row.tokens)[None]
        targets = mx.array(row.targets)[1:]
        losses = nn.losses.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:])[0]
        total += (losses * targets).sum().item()
        count += row.target_count
    return total / count


def memory() -> float:
    """Peak memory of this process so far, MB."""
    from mlx_companion.runtime.memory import peak_memory_mb

    return peak_memory_mb()


class Clock:
    """Wall and CPU seconds of a block; the latter hardly depend on what else the machine does."""

    def __enter__(self) -> Clock:
        self.start = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.end = time.perf_counter(), time.process_time()

    def figures(self) -> dict[str, float]:
        """As `seconds` and `cpu_seconds`."""
        wall, cpu = (end - start for start, end in zip(self.start, self.end, strict=True))
        return {"seconds": wall, "cpu_seconds": cpu}


@contextlib.contextmanager
def quiet() -> Any:
    """Keep what is printed inside off standard output, whose last line is the result."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


WORKERS = {"mlx-companion": train_ours, "mlx-lm": train_mlx_lm}
# mlx-lm runs one stream of work, so its BLAS gets every core.
ENVIRONMENT: dict[str, dict[str, str]] = {"mlx-lm": {"OMP_NUM_THREADS": str(os.cpu_count())}}


# --- report ----------------------------------------------------------------------------------


def report(options: argparse.Namespace, found: dict[str, Any]) -> None:
    """Print and keep medians and ratios."""
    facts = common.machine()
    # A folder on this machine means nothing to others.
    model = Path(options.model).name if Path(options.model).exists() else options.model
    shapes = {shape: compared(shape, rounds) for shape, rounds in found.items()}
    text = "\n\n".join(
        [
            f"LoRA rank {RANK} on every linear layer of {model}",
            common.machine_text(facts),
            *(described(shape, found[shape], shapes[shape]) for shape in shapes),
        ]
    )
    result = {"benchmark": "finetune", "model": model, "shapes": shapes, "machine": facts}
    result |= {"runs": found}
    save = not (options.quick or options.no_save)
    common.publish("finetune", result, text, save)


def compared(shape: str, rounds: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Ours over theirs."""
    ours, theirs = rounds["mlx-companion"], rounds["mlx-lm"]
    speed = common.ratios(ours, theirs, "targets_per_second")
    found = {
        "speed_ratio": statistics.median(speed),
        "speed_ratios": speed,
        "memory_ratio": common.median(ours, "peak_mb") / common.median(theirs, "peak_mb"),
        "loss_difference": common.median(ours, "valid_loss") - common.median(theirs, "valid_loss"),
    }
    aim = AIMS.get(shape)
    if aim is not None:
        found["aims_met"] = {
            "speed": found["speed_ratio"] >= aim[0],
            "memory": found["memory_ratio"] <= aim[1],
            # Rounding of another order of sums is no difference.
            "loss": found["loss_difference"] <= 0.005,
        }
    return found


def described(shape: str, rounds: dict[str, list[dict[str, Any]]], ratio: dict[str, Any]) -> str:
    """One shape's figures as a table and two lines."""
    rows = [
        [
            name,
            f"{common.median(runs, 'targets_per_second'):.1f}",
            f"{common.median(runs, 'peak_mb'):.0f}",
            f"{common.median(runs, 'valid_loss'):.4f}",
            f"{common.median(runs, 'padding'):.1%}",
            f"{common.median(runs, 'seconds'):.1f}",
            f"{common.median(runs, 'cpu_seconds'):.1f}",
            f"{runs[0]['steps']}",
        ]
        for name, runs in rounds.items()
    ]
    header = ["", "useful tokens/s", "peak MB", "held-out loss", "padding", "seconds", "CPU s"]
    first = rounds["mlx-companion"][0]
    spread = ", ".join(f"{value:.2f}" for value in ratio["speed_ratios"])
    lines = [
        f"{shape}: {first['targets']} useful tokens of {first['tokens']}, "
        f"{len(ratio['speed_ratios'])} rounds",
        "",
        common.table([*header, "steps"], rows),
        "",
        f"mlx-companion / mlx-lm: useful tokens per second {ratio['speed_ratio']:.2f} ({spread}), "
        f"peak memory {ratio['memory_ratio']:.2f}, "
        f"held-out loss {ratio['loss_difference']:+.4f}",
    ]
    missed = [name for name, met in ratio.get("aims_met", {}).items() if not met]
    if missed:
        lines.append(f"missed: {', '.join(missed)} (aims: {AIMS[shape][0]:g} times the speed, "
                     f"{AIMS[shape][1]:g} times the memory, loss no worse)")  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    main()
