"""A byte model from text files, in one call: read, build, calibrate, train, save.

    train_from_files("books/", "run/entropy", ByteRunConfig(kind="entropy"))
    train_from_files("books/", "run/blt", entropy_model="run/entropy/model")

A byte latent transformer takes its boundaries from an entropy model that was trained before, at
the threshold that gives patches of the wanted mean length on this very text; without one, from
spaces. Started again after a kill, the same call goes on from the last checkpoint. The result is
`out/model`, which `blt.load` reads.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from mlx_companion.blt.byte_lm import ByteLM
from mlx_companion.blt.calibrate import calibrate_threshold
from mlx_companion.blt.config import PatchConfig
from mlx_companion.blt.load import load
from mlx_companion.blt.model import BltModel
from mlx_companion.blt.presets import Preset, blt_preset, entropy_preset, flat_preset
from mlx_companion.blt.save import save
from mlx_companion.errors import ConfigError
from mlx_companion.runtime.monitor import ResourceLimits, ResourceMonitor
from mlx_companion.runtime.seeds import seed_everything
from mlx_companion.runtime.stop import NEVER, StopSwitch
from mlx_companion.text.documents import Files, FlatText, flatten, read_documents
from mlx_companion.training.byte_models import text_entropies, train_byte_model
from mlx_companion.training.callbacks import Callback, MetricsLog
from mlx_companion.training.config import TrainConfig
from mlx_companion.training.state import TrainSummary

Kind = Literal["blt", "entropy", "flat"]

MODEL = "model"
METRICS = "metrics.jsonl"
_ENTROPIES = "entropies"
# More does not change the threshold's third digit.
_CALIBRATION_BYTES = 500_000


def byte_settings() -> TrainConfig:
    """How byte models train unless told otherwise.

    Found with runs of 10^12 to 10^13 FLOPs: small steps of many bytes lose to many small steps, and
    hidden matrices under Muon learn faster than under AdamW.
    """
    return TrainConfig(
        epochs=1,
        batch_tokens=8192,
        optimizer="muon",
        lr=0.01,
        betas=(0.9, 0.99),
        weight_decay=0.0,
        schedule="trapezoid",
        warmup_steps=50,
        decay_ratio=0.4,
        final_lr_ratio=0.02,
        save_every=200,
        keep_best=False,
    )


@dataclass(frozen=True)
class ByteRunConfig:
    """Settings of a run.

    Args:
        kind: "blt", "entropy" (the flat model that places boundaries) or "flat" (a flat model to
            compare with).
        preset: the model's size; see `blt.presets`.
        target_patch_bytes: wanted mean bytes per patch, where an entropy model places them.
        max_patch_bytes: longer patches are split; None for no limit.
        train: how it is trained.
        limits: what the run may take from the machine.

    Raises:
        ConfigError: an unknown kind.
    """

    kind: Kind = "blt"
    preset: Preset = "small"
    target_patch_bytes: float = 4.5
    max_patch_bytes: int | None = None
    train: TrainConfig = field(default_factory=byte_settings)
    limits: ResourceLimits = field(default_factory=ResourceLimits)

    def __post_init__(self) -> None:
        if self.kind not in ("blt", "entropy", "flat"):
            raise ConfigError(f"kind is {self.kind!r}; expected blt, entropy or flat")


def train_from_files(
    texts: Files,
    out: str | Path,
    config: ByteRunConfig | None = None,
    *,
    valid: Files | None = None,
    entropy_model: str | Path | ByteLM | None = None,
    callbacks: Iterable[Callback] = (),
    stop: StopSwitch = NEVER,
    resume: bool = True,
) -> tuple[Path, TrainSummary]:
    """Train a byte model.

    Args:
        texts: `.txt` and `.txt.gz` files, or folders of them; each file is a document.
        out: the run's folder.
        config: settings.
        valid: held-out files.
        entropy_model: of kind "blt": a folder or hub id of a flat byte model, or the model.
        callbacks: more to watch the run with.
        stop: kill switch; the run ends after a checkpoint.
        resume: False starts over.

    Returns:
        The folder of the trained model, and how the run went.

    Raises:
        ConfigError: an entropy model that is none, or for a kind that has none.
        DataError: the texts cannot be read.
        ModelError: the entropy model cannot be loaded.
        TrainingError, CheckpointError, Stopped, DiskFullError: see `Trainer.run`.
    """
    config, out = config or ByteRunConfig(), Path(out)
    text = flatten(read_documents(texts))
    held_out = None if valid is None else flatten(read_documents(valid))
    placing = _entropy_model(entropy_model, config)
    entropies = None if placing is None else text_entropies(placing, text, out / _ENTROPIES)
    model = _new_model(config, placing, text, entropies)
    summary = train_byte_model(
        model,
        text,
        config.train,
        out,
        valid=held_out,
        entropies=entropies,
        callbacks=[MetricsLog(out / METRICS), *callbacks],
        monitor=ResourceMonitor(config.limits),
        stop=stop,
        resume=resume,
    )
    return save(model, out / MODEL), summary


def _entropy_model(given: str | Path | ByteLM | None, config: ByteRunConfig) -> ByteLM | None:
    if given is None:
        return None
    if config.kind != "blt":
        raise ConfigError(
            f'an entropy model was given, and a model of kind "{config.kind}" has none'
        )
    model = given if isinstance(given, ByteLM) else load(given)
    if not isinstance(model, ByteLM):
        raise ConfigError(
            f"{given} is no entropy model; train one with kind entropy, and give that"
        )
    return model


def _new_model(
    config: ByteRunConfig,
    placing: ByteLM | None,
    text: FlatText,
    entropies: np.ndarray | None,
) -> BltModel | ByteLM:
    """The model to be trained, the same for the same settings."""
    seed_everything(config.train.seed)
    if config.kind != "blt":
        chosen = entropy_preset if config.kind == "entropy" else flat_preset
        return ByteLM(chosen(config.preset))
    if placing is None or entropies is None:
        return BltModel(blt_preset(config.preset, PatchConfig(mode="space")))
    rule = PatchConfig(max_length=config.max_patch_bytes)
    threshold = calibrate_threshold(_sample(text, entropies), config.target_patch_bytes, rule)
    shape = blt_preset(config.preset, replace(rule, threshold=threshold))
    model = BltModel(replace(shape, entropy=placing.config.block))
    model.model.patcher = placing.model
    model.model.patcher.freeze()
    return model


def _sample(text: FlatText, entropies: np.ndarray) -> list[np.ndarray]:
    """Entropies of the beginnings of all documents, as much of each."""
    share = max(1, _CALIBRATION_BYTES // len(text.starts))
    ends = [*text.starts[1:].tolist(), len(text.ids)]
    return [
        np.asarray(entropies[start : min(end, start + share)])
        for start, end in zip(text.starts.tolist(), ends, strict=True)
    ]
