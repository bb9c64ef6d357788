"""Tiny byte models with patches of uneven length, and the slow way to what they write."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_companion.blt.byte_lm import ByteLM
from mlx_companion.blt.config import (
    BlockConfig,
    BltConfig,
    ByteLMConfig,
    HashConfig,
    PatchConfig,
    PatchMode,
)
from mlx_companion.blt.model import BltModel
from mlx_companion.blt.patchers import make_patching
from mlx_companion.text.byte_text import BOS, EOS, OFFSET, VOCABULARY, encode_bytes

WIDTH = 16
# Of the positions of a random text, the share whose entropy (or rise) is over the threshold.
CLOSING = 0.3


def patched(
    mode: PatchMode = "entropy",
    *,
    k: int = 2,
    latent: int = 32,
    window: int | None = 12,
    max_length: int | None = None,
    seed: int = 0,
    **changes: Any,
) -> BltModel:
    """A random byte latent transformer whose thresholds let three positions in ten close a patch.

    Args:
        mode: of patching.
        k: vectors per patch.
        latent: width of the latent transformer; patches are projected unless it is k * 16.
        window: of all local layers.
        max_length: of patches.
        seed: of the weights.
        changes: of the configuration.
    """
    mx.random.seed(seed)
    local = BlockConfig(WIDTH, 2, 2, 24, window=window)
    config = BltConfig(
        encoder=replace(local, layers=1),
        latent=BlockConfig(latent, 2, latent // 8, 40),
        decoder=local,
        entropy=replace(local, layers=1, rope_theta=10000.0),
        cross_k=k,
        hash=HashConfig(vocabulary=101),
        patching=PatchConfig(
            mode=mode,
            size=3,
            rise_threshold=0.0 if mode == "combined" else None,
            max_length=max_length,
        ),
    )
    model = BltModel(replace(config, **changes))
    # Random weights are as unsure of everything; larger ones have opinions.
    model.lm_head.weight = model.lm_head.weight * 2
    if model.config.patching.needs_entropies:
        head = model.model.patcher.lm_head
        head.weight = head.weight * 3
        _set_threshold(model)
    return model


def flat(window: int | None = 12, seed: int = 0) -> ByteLM:
    """A random flat byte model."""
    mx.random.seed(seed)
    model = ByteLM(ByteLMConfig(BlockConfig(WIDTH, 2, 2, 24, window=window)))
    model.model.lm_head.weight = model.model.lm_head.weight * 2
    return model


def texts(rows: int, length: int, seed: int = 0) -> np.ndarray:
    """Random ids (rows, length), BOS first."""
    ids = np.random.default_rng(seed).integers(OFFSET, VOCABULARY, (rows, length))
    ids[:, 0] = BOS
    # Word-like bytes and spaces, for the modes that look at them.
    ids[:, 1::2] = OFFSET + np.frombuffer(b"ab c,", np.uint8)[ids[:, 1::2] % 5]
    return ids.astype(np.int32)


def full_logits(model: Any, ids: np.ndarray) -> np.ndarray:
    """Logits of the whole forward: (B, N) -> (B, N, V)."""
    return np.array(model(mx.array(ids)))


def closes(model: BltModel, ids: np.ndarray) -> np.ndarray:
    """Where patches end: (B, N) -> (B, N) bool."""
    return np.array(model.patching(mx.array(ids)).closes)


def greedy(model: Any, prompt: str | bytes, count: int) -> bytes:
    """What a model writes, by one whole forward per byte."""
    ids = encode_bytes(prompt).tolist()
    start = len(ids)
    while len(ids) < start + count:
        logits = np.array(model(mx.array([ids]))[0, -1])
        logits[[0, 1, 3]] = -np.inf
        if logits.argmax() == EOS:
            break
        ids.append(int(logits.argmax()))
    return bytes(i - OFFSET for i in ids[start:])


def without_end(model: Any) -> Any:
    """The same model, which never ends a text by itself."""
    return _end_scaled(model, 0.0)


def with_likely_end(model: Any) -> Any:
    """The same model, which ends most texts after a few bytes."""
    return _end_scaled(model, 2.0)


def _end_scaled(model: Any, factor: float) -> Any:
    weight = np.array(model.lm_head.weight)
    weight[EOS] *= factor
    head = model.lm_head
    head.weight = mx.array(weight)
    return model


def _set_threshold(model: BltModel) -> None:
    ids = texts(4, 200, seed=9)
    nats = np.array(model.entropies(mx.array(ids)), dtype=np.float64)[:, 1:]
    rule = model.config.patching
    values = np.diff(nats, axis=1) if rule.mode == "monotonic" else nats
    share = CLOSING if rule.mode == "entropy" else 0.45
    # In the widest gap near that share: rounding must not decide.
    near = np.quantile(values, [1 - share - 0.05, 1 - share + 0.05])
    ordered = np.sort(values[(values >= near[0]) & (values <= near[1])])
    widest = int(np.diff(ordered).argmax())
    threshold = float(ordered[widest : widest + 2].mean())
    changed = replace(rule, threshold=threshold)
    model.config = replace(model.config, patching=changed)
    found = np.array(make_patching(ids, changed, model.entropies(mx.array(ids))).closes).mean()
    assert 0.1 < found < 0.6, found
