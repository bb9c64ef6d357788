"""Prompts into a cache with one full forward, exactly as if they had gone byte by byte.

Rows of unequal lengths lie side by side, padded on the right. The computation is that of the
model's own forward; what is new is that keys and values, the open patches and the decision about
the next byte are kept.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from mlx_companion.blt.attention import Sight
from mlx_companion.blt.byte_lm import FlatTransformer
from mlx_companion.blt.cache import ByteModel, Cache
from mlx_companion.blt.entropy import entropies_of_hidden
from mlx_companion.blt.model import BltModel, padded_patches
from mlx_companion.blt.patch_clock import PatchClock
from mlx_companion.blt.patchers import make_patching
from mlx_companion.blt.patching import Patching
from mlx_companion.blt.rolling import RollingKV, forward_texts
from mlx_companion.errors import GenerationError


def prefill(model: ByteModel, cache: Cache, ids: Any, lengths: Any = None) -> mx.array:
    """Fill an empty cache with prompts.

    Args:
        model: the one that the cache was made for.
        cache: empty; changed in place.
        ids: (B, N) int, BOS first, padded on the right with any id.
        lengths: (B,) int, at least 1 each; None for N.

    Returns:
        (B, V), predictions of the bytes after the prompts. Nothing before them can be trimmed.

    Raises:
        GenerationError: the cache is not empty, or shapes, ids or lengths do not fit.
    """
    values, counts = _checked(model, cache, ids, lengths)
    if isinstance(model, BltModel):
        logits = _prefill_patched(model, cache, values, counts)
    else:
        hidden = _flat(model.model, mx.array(values), cache.stacks["layers"], counts)
        logits = model.lm_head(_last(hidden, counts))
    cache.positions = counts
    cache.logits = logits
    cache.ids = values[np.arange(cache.rows), counts - 1]
    cache.recent = _recent(values, counts, cache.recent.shape[1])
    mx.eval(logits, cache.recent, [stack.layers for stack in cache.stacks.values()])
    if cache.patches is not None:
        mx.eval(cache.patches.states, cache.patches.memory)
    return logits


def _prefill_patched(
    model: BltModel, cache: Cache, values: np.ndarray, counts: np.ndarray
) -> mx.array:
    ids, rule = mx.array(values), model.config.patching
    entropies = None
    if rule.needs_entropies:
        patcher = model.model.patcher
        hidden = _flat(patcher, ids, cache.stacks["entropy"], counts)
        entropies = entropies_of_hidden(hidden, patcher.lm_head)
    patching = make_patching(ids, rule, entropies, None, counts)
    # Padding lies behind every real byte and is in a patch of its own, so none of them sees it.
    sight = Sight(ids.shape[1], model.config.encoder.window)
    h, kept = forward_texts(model.model.local_encoder.layers, model.embed(ids), sight)
    cache.stacks["encoder"].fill(kept, counts)
    source = np.array(patching.source)[np.arange(cache.rows), counts - 1]
    latents = _latents(model, cache, h, patching, source + 1)
    hidden = _decode(model, cache, h, latents, patching, counts, source)
    _open(cache, PatchClock.after(rule, values, entropies, counts), h, patching, counts)
    assert cache.patches is not None
    cache.patches.closed = (source + 1).astype(np.int64)
    return model.lm_head(hidden)


def _latents(
    model: BltModel, cache: Cache, h: mx.array, patching: Patching, closed: np.ndarray
) -> mx.array:
    latent = model.model.global_transformer
    count = padded_patches(patching.count)
    vectors = model.model.local_encoder.patches(h, patching.patch_ids, count)
    sight = Sight(count, model.config.latent.window)
    latents, kept = forward_texts(latent.layers, latent.embed(vectors), sight)
    # An open patch was computed from the bytes there are; it is left out, and comes when it closes.
    cache.stacks["latent"].fill(kept, closed)
    return latents


def _decode(
    model: BltModel,
    cache: Cache,
    h: mx.array,
    latents: mx.array,
    patching: Patching,
    counts: np.ndarray,
    source: np.ndarray,
) -> mx.array:
    """States that predict the bytes after the prompts: (B, D)."""
    decoder = model.model.local_decoder
    sight = Sight(h.shape[1], model.config.decoder.window)
    memory = decoder.memory(latents)
    reads, kept = patching.source, []
    for index, layer in enumerate(decoder.layers):
        if index < len(memory):
            h = h + decoder.cross_attn_layers[index].across(h, memory[index], reads)
        h, own = forward_texts([layer], h, sight)
        kept += own
    cache.stacks["decoder"].fill(kept, counts)
    rows, last = mx.arange(cache.rows), mx.array(source.astype(np.int32))
    assert cache.patches is not None
    cache.patches.memory = [(k[rows, last][:, None], v[rows, last][:, None]) for k, v in memory]
    return decoder.norm(_last(h, counts))


def _open(
    cache: Cache, clock: PatchClock, h: mx.array, patching: Patching, counts: np.ndarray
) -> None:
    """The open patch of each row: the encoder's states of its bytes."""
    patches = cache.patches
    assert patches is not None
    rows, place = np.arange(cache.rows), np.arange(h.shape[1])
    opens, closes = np.array(patching.opens), np.array(patching.closes)
    starts = np.where(opens & (place < counts[:, None]), place, 0).max(axis=1)
    patches.clock = clock
    patches.open = np.where(closes[rows, counts - 1], 0, counts - starts)
    longest = int(patches.open.max())
    patches.states = []
    if longest:
        index = np.clip(counts[:, None] - longest + np.arange(longest), 0, None)
        patches.states = [
            mx.take_along_axis(h, mx.array(index.astype(np.int32))[..., None], axis=1)
        ]


def _flat(model: FlatTransformer, ids: mx.array, stack: RollingKV, counts: np.ndarray) -> mx.array:
    """States before the output head: (B, N) -> (B, N, D)."""
    sight = Sight(ids.shape[1], model.block.window)
    x, kept = forward_texts(model.layers, model.embed_tokens(ids), sight)
    stack.fill(kept, counts)
    return model.norm(x)


def _last(x: mx.array, counts: np.ndarray) -> mx.array:
    """(B, N, D) -> (B, D), each row's last position."""
    return x[mx.arange(len(counts)), mx.array((counts - 1).astype(np.int32))]


def _recent(values: np.ndarray, counts: np.ndarray, width: int) -> mx.array:
    """The last ids of each row (B, W), zeros in front."""
    place = counts[:, None] - width + np.arange(width)
    found = np.take_along_axis(values, np.clip(place, 0, None), axis=1)
    return mx.array(np.where(place >= 0, found, 0).astype(np.int32))


def _checked(
    model: ByteModel, cache: Cache, ids: Any, lengths: Any
) -> tuple[np.ndarray, np.ndarray]:
    if not cache.empty:
        raise GenerationError("the cache holds a text already; add to it with advance or extend")
    values = np.asarray(ids).astype(np.int32)
    if values.ndim != 2 or len(values) != cache.rows or values.shape[1] < 1:
        raise GenerationError(
            f"prompt ids have shape {values.shape}; expected ({cache.rows}, N), BOS first"
        )
    counts = np.full(cache.rows, values.shape[1]) if lengths is None else np.asarray(lengths)
    if counts.shape != (cache.rows,) or (counts < 1).any() or (counts > values.shape[1]).any():
        raise GenerationError(
            f"lengths are {counts.tolist()}; expected {cache.rows} from 1 to {values.shape[1]}"
        )
    counts = counts.astype(np.int64)
    real = np.arange(values.shape[1]) < counts[:, None]
    # Padding may be any number, -1 too, but a model can only look up ids.
    outside = (values < 0) | (values >= model.config.vocabulary)
    if (outside & real).any():
        raise GenerationError(f"an id is outside the vocabulary of {model.config.vocabulary}")
    return np.where(outside, 0, values), counts
