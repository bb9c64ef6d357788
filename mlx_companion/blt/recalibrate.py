"""A model's threshold fitted to a person's text, and the model written with it.

found = recalibrate("path/to/model", Path("letters.txt"), 4.5, save_to="mine")
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_companion.blt.calibrate import calibrate_threshold, patch_statistics
from mlx_companion.blt.config import PatchConfig
from mlx_companion.blt.evaluate import TextOrPath, read_text
from mlx_companion.blt.load import find_model, load, open_model
from mlx_companion.blt.model import BltModel
from mlx_companion.blt.patchers import make_patching
from mlx_companion.blt.save import save
from mlx_companion.blt.text_patches import windowed_entropies
from mlx_companion.errors import ConfigError
from mlx_companion.text.byte_text import encode_bytes


@dataclass(frozen=True)
class Recalibration:
    """Thresholds (nats) before and after, and the bytes per patch that they give.

    Attributes:
        mode: the rule.
        bytes: of text that was looked at.
        threshold, mean_patch_bytes: found.
        before_threshold, before_mean_patch_bytes: of the model as it was.
    """

    mode: str
    bytes: int
    threshold: float
    mean_patch_bytes: float
    before_threshold: float
    before_mean_patch_bytes: float


def recalibrate(
    source: str | Path | None,
    text: TextOrPath,
    target_patch_bytes: float,
    *,
    most: int = 500_000,
    save_to: str | Path | None = None,
) -> Recalibration:
    """Find the threshold for a wanted patch length.

    Args:
        source: what `load` takes.
        text: of the kind that the model will read; see `evaluate`.
        target_patch_bytes: wanted mean bytes per patch.
        most: bytes to look at, as much of the beginning of each document.
        save_to: folder for the model with the threshold; packed weights stay packed.

    Raises:
        ConfigError: the model has no entropy model, its rule no threshold, or this text cannot
            give such patches.
        DataError: the text is empty or cannot be read.
        ModelError: the model cannot be loaded.
    """
    documents = read_text(text)
    model = load(source)
    if not isinstance(model, BltModel):
        raise ConfigError("a flat byte model has no patches to calibrate; give one with patches")
    rule = model.config.patching
    if not rule.needs_entropies:
        raise ConfigError(f'patching mode "{rule.mode}" has no threshold to calibrate')
    share = max(1, most // len(documents))
    pieces = [windowed_entropies(model, encode_bytes(data[:share])) for data in documents]
    found = calibrate_threshold(pieces, target_patch_bytes, rule)
    changed = replace(rule, threshold=found)
    if save_to is not None:
        _write(find_model(source), changed, save_to)
    return Recalibration(
        mode=rule.mode,
        bytes=sum(map(len, pieces)) - len(pieces),
        threshold=found,
        mean_patch_bytes=_mean(pieces, changed),
        before_threshold=rule.threshold,
        before_mean_patch_bytes=_mean(pieces, rule),
    )


def _mean(pieces: list[np.ndarray], rule: PatchConfig) -> float:
    """Mean bytes per patch over all pieces, as `calibrate_threshold` counts it."""
    values = np.concatenate(pieces)[None]
    documents = np.repeat(np.arange(len(pieces)), list(map(len, pieces)))[None]
    ids = mx.zeros(values.shape, dtype=mx.int32)
    return patch_statistics(make_patching(ids, rule, values, documents)).mean


def _write(folder: Path, rule: PatchConfig, target: str | Path) -> None:
    # Opened again, as the loaded one may be unpacked.
    model = open_model(folder)
    model.config = replace(model.config, patching=rule)  # type: ignore[arg-type]
    save(model, target)
