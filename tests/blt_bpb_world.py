"""A tiny world for the benchmark of four models: texts, shapes, and a watch on trainings."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bpb_measure, bpb_models, bpb_report
from benchmarks.bpb_models import Workplace
from mlx_companion.blt import BlockConfig, BltConfig, ByteLMConfig, HashConfig, PatchConfig
from mlx_companion.training.callbacks import Callback
from mlx_companion.training.state import StepInfo

FLOPS, ENTROPY_FLOPS = 6e8, 4e8
CONTEXT, TOKEN_CONTEXT, VOCABULARY, STRETCH = 64, 16, 320, 300
TOKEN = BlockConfig(32, 2, 2, 64)
LOCAL = BlockConfig(16, 1, 2, 16, window=16)
LINE = "the sea café a whale of old ships and men “quoth” he white deep, very. some ahab"


class Steps(Callback):
    """Notes the steps; may break off behind one of them."""

    def __init__(self, last: int | None = None) -> None:
        self.seen: list[int] = []
        self.last = last

    def on_step(self, step: StepInfo) -> None:
        self.seen.append(step.step)
        if step.step == self.last:
            raise KeyboardInterrupt


def tiny_blt(_: str, rule: PatchConfig) -> BltConfig:
    entropy = LOCAL if rule.needs_entropies else None
    latent, table = BlockConfig(32, 1, 2, 32), HashConfig((3, 4), 1, 64)
    return BltConfig(LOCAL, latent, LOCAL, entropy, hash=table, patching=rule, context=CONTEXT)


def tiny_shapes(patch: pytest.MonkeyPatch) -> None:
    """Models that are trained in a second, measured on a few hundred bytes."""
    flat = ByteLMConfig(BlockConfig(16, 2, 2, 32, window=32), context=CONTEXT)
    changed: dict[str, Any] = {
        "CONTEXT": CONTEXT,
        "VOCABULARY": VOCABULARY,
        "TOKEN_CONTEXT": TOKEN_CONTEXT,
        "PATCH_BYTES": 4.0,
        "ENTROPY_FLOPS": ENTROPY_FLOPS,
        "TOKEN": TOKEN,
        "SETTINGS": replace(bpb_models.SETTINGS, warmup_steps=2, save_every=2),
        "flat_preset": lambda _: flat,
        "blt_preset": tiny_blt,
        "entropy_preset": lambda _: ByteLMConfig(LOCAL, context=CONTEXT),
    }
    for name, value in changed.items():
        patch.setattr(bpb_models, name, value)
    patch.setattr(bpb_report, "EXCERPT", 400)
    patch.setattr(bpb_report, "RATES", {"case": (0.5,), "drop": (0.1,)})
    for module in (bpb_measure, bpb_report):
        patch.setattr(module, "STRETCH", STRETCH)


def prose(seed: int, words: int) -> str:
    """Words and lines at random."""
    rng, known = random.Random(seed), LINE.split()
    return "".join(rng.choice(known) + ("\n" if i % 11 == 10 else " ") for i in range(words))


def texts(folder: Path) -> Path:
    """Two documents to train on and one to measure on."""
    for part, seed, words in (("train", 0, 700), ("train", 1, 500), ("valid", 2, 300)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / part / f"{seed}.txt").write_text(prose(seed, words), encoding="utf-8")
    return folder


def metrics(place: Workplace, name: str) -> list[dict[str, Any]]:
    """The lines of a training's record."""
    lines = (place.out / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def copy_of(place: Workplace, folder: Path, *names: str) -> Workplace:
    """The same data with some of the trained models."""
    for name in names:
        shutil.copytree(place.out / name, folder / name)
    for file in ("tokenizer.model", "tokens.npz"):
        shutil.copy(place.out / file, folder)
    return Workplace(place.data, folder)
