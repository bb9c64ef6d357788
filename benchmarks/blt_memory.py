"""Training memory of a byte latent transformer against the length of its rows.

    python benchmarks/blt_memory.py                                 # a few minutes
    python benchmarks/blt_memory.py --peer-python other/bin/python  # one that has torch
    python benchmarks/blt_memory.py --quick

Loss and gradients of one row of 1,024 to 8,192 bytes, as the trainer computes them, of the preset
"small". What counts is the peak above the loaded model, per byte of the row: it stays the same if
memory grows linearly. Every figure comes from a process of its own, after a short row that loads
and compiles what is needed.

    blt           one document
    blt-packed    the same row as a pack of documents that do not see each other
    no-tables     one document, without hash tables, whose gradients take the same memory at any
                  length and so would make long rows look better than they are
    transformers  the peer: the same weights and patches in PyTorch, where it is installed

`peak` is MLX's own count of bytes in arrays, the same up to the order in which its threads free
them; `resident` is what the system counts for the whole process, of both libraries, allocators
included. Nothing is reported when the losses of ours and the peer's differ.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.util
import json
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common

CONTESTANTS = ("blt", "blt-packed", "no-tables", "transformers")
LENGTHS = (1024, 2048, 4096, 8192)
SHORT, LONG = 1024, 4096
AIM = 1.2
# Between losses of the same model in two libraries, in nats per byte.
SAME_LOSS = 1e-3
WARM_UP = 64
# Documents of the packed rows, and the bytes of a word with the space behind it (at most 10).
DOCUMENT_BYTES = 700
WORD_LETTERS = (1, 2, 2, 3, 3, 4, 4, 5, 6, 9)


def main() -> None:
    """Run the benchmark, or one contestant of it (`--worker`, used by the benchmark itself)."""
    options = _arguments().parse_args()
    if options.worker:
        print(json.dumps(_work(options.worker, options.length, options.folder)))
        return
    lengths = LENGTHS[::2] if options.quick else LENGTHS
    with tempfile.TemporaryDirectory() as folder:
        names = list(CONTESTANTS)
        if _peer_missing(options.peer_python):
            print("no torch in the peer's Python; transformers is left out", file=sys.stderr)
            names.remove("transformers")
        else:
            _prepare_peer(Path(folder), lengths)
        runs = {
            f"{name} {length}": _run(name, length, Path(folder), options.peer_python)
            for name in names
            for length in lengths
        }
        rounds = common.alternate(runs, 1 if options.quick else options.repeats)
    _check_losses(rounds, names, lengths)
    _report(rounds, names, lengths, save=not (options.no_save or options.quick))


# --- one contestant ------------------------------------------------------------------------------


def _work(name: str, length: int, folder: Path) -> dict[str, Any]:
    """Peak memory of a step, in bytes above what there is before it."""
    step = _peer_step(folder) if name == "transformers" else _own_step(name)
    step(WARM_UP)
    _give_back()
    mx = sys.modules.get("mlx.core")
    if mx is not None:
        held = mx.get_active_memory()
        mx.reset_peak_memory()
    before = _resident("VmRSS")
    loss = step(length)
    found = {"loss": loss, "resident": _resident("VmHWM") - before}
    return found | ({"peak": mx.get_peak_memory() - held} if mx is not None else {})


def _own_step(name: str) -> Callable[[int], float]:
    """Loss (nats per byte) and gradients of a row, by its length."""
    import mlx.core as mx
    import mlx.nn as nn

    from mlx_companion.text.documents import flatten
    from mlx_companion.text.packing import PackedRows
    from mlx_companion.training.byte_models import states_of_batch
    from mlx_companion.training.packed_loss import PackedLoss

    model = _model(tables=name != "no-tables")
    gradient = nn.value_and_grad(model, PackedLoss(states_of_batch))

    def step(length: int) -> float:
        text = _text(length)
        size = DOCUMENT_BYTES if name == "blt-packed" else length
        documents = [text[at : at + size] for at in range(0, length, size)]
        rows = PackedRows(flatten(documents), context=length, shuffle=False)
        (loss, count), gradients = gradient(model, rows.batch((0,)))
        mx.eval(loss, gradients)
        return float(loss / count)

    return step


def _model(tables: bool = True) -> Any:
    """The small preset with patches at spaces, random weights."""
    from dataclasses import replace

    import mlx.core as mx

    from mlx_companion.blt import BltModel, HashConfig, PatchConfig, blt_preset
    from mlx_companion.runtime.seeds import seed_everything

    seed_everything(0)
    config = replace(blt_preset("small", PatchConfig("space")), context=max(LENGTHS))
    model = BltModel(config if tables else replace(config, hash=HashConfig(functions=0)))
    mx.eval(model.parameters())
    return model


def _text(length: int) -> bytes:
    """Words of random letters, the same beginning at every length; patches of 5 bytes."""
    rng = random.Random(0)
    words: list[str] = []
    while sum(map(len, words)) + len(words) < length:
        letters = rng.choice(WORD_LETTERS)
        words.append("".join(rng.choices("etaoinshrdlu", k=letters)))
    return " ".join(words).encode().ljust(length, b"e")[:length]


# --- the peer ------------------------------------------------------------------------------------


def _peer_missing(python: str) -> bool:
    if python == sys.executable:
        return importlib.util.find_spec("torch") is None
    return not Path(python).is_file()


def _prepare_peer(folder: Path, lengths: tuple[int, ...]) -> None:
    """The model in transformers' layout, and the rows with the patches that ours has."""
    import mlx.core as mx

    from mlx_companion.blt import PatchConfig, export_hf, make_patching
    from mlx_companion.text.byte_text import encode_bytes

    model = _model()
    model.config = _with_patching(model.config, PatchConfig("byte"))
    export_hf(model, folder / "hf")
    for length in (WARM_UP, *lengths):
        ids = encode_bytes(_text(length))[None]
        opens = np.array(make_patching(mx.array(ids[:, :-1]), PatchConfig("space")).opens)[0]
        patches = np.diff(np.flatnonzero(opens), append=length)
        np.savez(folder / f"{length}.npz", ids=ids, patches=patches)


def _with_patching(config: Any, rule: Any) -> Any:
    # transformers knows no patches at spaces; it is told where they are.
    from dataclasses import replace

    return replace(config, patching=rule)


def _peer_step(folder: Path) -> Callable[[int], float]:
    """The same with transformers' model."""
    import torch
    from transformers import BltForCausalLM

    model = BltForCausalLM.from_pretrained(folder / "hf", dtype=torch.float32)
    model.train()

    def step(length: int) -> float:
        stored = np.load(folder / f"{length}.npz")
        ids, patches = torch.tensor(stored["ids"]).long(), torch.tensor(stored["patches"])[None]
        logits = model(input_ids=ids[:, :-1], patch_lengths=patches, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[0], ids[0, 1:])
        loss.backward()
        model.zero_grad(set_to_none=True)
        return float(loss)

    return step


def _run(name: str, length: int, folder: Path, peer: str) -> Callable[[], dict[str, Any]]:
    arguments = ["--worker", name, "--length", str(length), "--folder", str(folder)]
    python = peer if name == "transformers" else sys.executable
    return lambda: common.in_fresh_process(__file__, arguments, python=python)


def _resident(field: str) -> int:
    """A size of this process that the system keeps, in bytes; Linux and macOS."""
    status = Path("/proc/self/status")
    if not status.exists():
        from mlx_companion.runtime.memory import memory_mb, peak_memory_mb

        return round((memory_mb() if field == "VmRSS" else peak_memory_mb()) * 1e6)
    line = next(line for line in status.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def _give_back() -> None:
    """Return the warm-up's memory to the system."""
    gc.collect()
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).malloc_trim(0)


# --- report --------------------------------------------------------------------------------------


def _check_losses(
    rounds: dict[str, list[dict[str, Any]]], names: list[str], lengths: tuple[int, ...]
) -> None:
    """End here unless the peer computed what we did."""
    for length in lengths if "transformers" in names else ():
        ours, theirs = (rounds[f"{name} {length}"][0]["loss"] for name in ("blt", "transformers"))
        if abs(ours - theirs) > SAME_LOSS:
            sys.exit(
                f"at {length} bytes our loss is {ours}, the peer's {theirs}; not the same model"
            )


def _report(
    rounds: dict[str, list[dict[str, Any]]], names: list[str], lengths: tuple[int, ...], save: bool
) -> None:
    figures = {
        name: {
            kind: {str(n): common.median(rounds[f"{name} {n}"], kind) for n in lengths}
            for kind in ("peak", "resident")
            if kind in rounds[f"{name} {lengths[0]}"][0]
        }
        for name in names
    }
    grown = {
        name: {
            kind: (values[str(LONG)] / LONG) / (values[str(SHORT)] / SHORT)
            for kind, values in kinds.items()
        }
        for name, kinds in figures.items()
    }
    facts = common.machine()
    result = {
        "benchmark": "blt_memory",
        "machine": facts,
        "aim": AIM,
        "growth": grown,
        "bytes": figures,
        "rounds": rounds,
    }
    last, before = lengths[-1], lengths[-2]
    more = f"each more byte, {before:,} to {last:,}"
    header = ["", "memory", *(f"{n:,}" for n in lengths), f"{LONG:,} / {SHORT:,}", more]
    rows = [
        [
            name,
            kind,
            *(f"{values[str(n)] / n / 1e3:.1f}" for n in lengths),
            f"{grown[name][kind]:.2f}",
            f"{(values[str(last)] - values[str(before)]) / (last - before) / 1e3:.1f}",
        ]
        for name, kinds in figures.items()
        for kind, values in kinds.items()
    ]
    worst = max(ratios["peak"] for ratios in grown.values() if "peak" in ratios)
    text = "\n".join(
        [
            common.machine_text(facts),
            "",
            "Peak memory of loss and gradients of one row above the loaded model, in kB per byte:",
            "",
            common.table(header, rows),
            "",
            f"At {LONG:,} bytes at most {worst:.2f} times the memory per byte at {SHORT:,} "
            f"(aim: {AIM} or less): {'reached' if worst <= AIM else 'MISSED'}.",
        ]
    )
    common.publish("blt_memory", result, text, save)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="two lengths, once, nothing kept")
    parser.add_argument("--no-save", action="store_true", help="do not keep the result")
    parser.add_argument(
        "--peer-python", default=sys.executable, help="Python that has torch and transformers"
    )
    parser.add_argument("--worker", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--length", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
