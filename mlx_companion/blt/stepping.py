"""Byte by byte through a model, with the same results as the full forward.

    cache = make_cache(model, rows=B)
    logits = prefill(model, cache, ids, lengths)     # prompts of unequal lengths, in one go
    logits = advance(model, cache, next_ids)         # (B,) -> (B, V), one byte per row

Several bytes of one row at once are added by `chunks.extend`.

A byte t goes through four steps: (1) the entropy model decides whether t + 1 opens a patch; (2) the
byte encoder gives its state; (3) where t closes a patch, the patch is pooled, and the latent
transformer makes ONE step, in the rows concerned; (4) the byte decoder reads the last closed patch
and predicts t + 1. Flat models have one step. The host waits for the device once per byte, for the
entropies; ids may come straight from a sampler, not computed yet.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from mlx_companion.blt.byte_lm import ByteLM
from mlx_companion.blt.cache import ByteModel, Cache, Patches
from mlx_companion.blt.fused import MASKED
from mlx_companion.blt.model import BltModel
from mlx_companion.blt.parts import Parts
from mlx_companion.blt.rolling import View
from mlx_companion.errors import GenerationError

# Up to so many closing rows are computed as they are; more are filled up to multiples of it, so
# that few shapes have to be compiled.
_ROWS_EXACT = 8


def advance(model: ByteModel, cache: Cache, ids: Any) -> mx.array:
    """Add one byte to every row.

    Args:
        model: the one that the cache was made for.
        cache: changed in place; `cache.ids` are the bytes on the host afterwards.
        ids: (B,) int, computed or not.

    Returns:
        (B, V), predictions of the bytes after them; not computed yet.

    Raises:
        GenerationError: not one id per row, or (where ids are computed) one outside the vocabulary.
    """
    ids = checked_ids(model, cache, ids, (cache.rows,))
    if isinstance(model, BltModel):
        return _advance_patched(model, cache, ids)
    return _advance_flat(model, cache, ids)


def _advance_flat(model: ByteLM, cache: Cache, ids: mx.array) -> mx.array:
    stack = cache.stacks["layers"]
    stack.reserve(cache.positions)
    view = stack.view(cache.positions)
    logits, stack.layers = Parts.of(model).flat(ids[:, None], stack.layers, view)
    cache.ids = np.array(ids)
    cache.remember()
    added(cache, logits[:, 0], ids[:, None])
    return logits[:, 0]


def _advance_patched(model: BltModel, cache: Cache, ids: mx.array) -> mx.array:
    parts, patches = Parts.of(model), patches_of(cache)
    views = views_of(cache, ("entropy", "encoder", "decoder"), 1)
    column = ids[:, None]
    entropies = entropies_of(parts, cache, column, views)
    encoder = cache.stacks["encoder"]
    h, encoder.layers = parts.encode(cache.recent, column, encoder.layers, views["encoder"])
    # The device goes on with the encoder while the host waits for the entropies.
    mx.async_eval([ids, h] if entropies is None else [ids, entropies, h])
    cache.remember()
    cache.ids = np.array(ids)
    closes = patches.clock.step(cache.ids, None if entropies is None else np.array(entropies)[:, 0])
    patches.states.append(h)
    patches.open = patches.open + 1
    if closes.any():
        _close(parts, cache, closes)
    decoder = cache.stacks["decoder"]
    logits, decoder.layers = parts.decode(h, patches.memory, decoder.layers, views["decoder"])
    added(cache, logits, column)
    return logits


def _close(parts: Parts, cache: Cache, closes: np.ndarray) -> None:
    """One latent step in the rows whose open patch is closed."""
    patches, stack = patches_of(cache), cache.stacks["latent"]
    # Whether rows close decides what is computed, so it has to be known on the host.
    rows = np.flatnonzero(closes)
    cache.latent_rows += len(rows)
    stack.reserve(patches.closed)
    chosen = _few_shapes(rows, cache.rows)
    # Where all rows are computed, those that close nothing write a slot that is still free.
    own = slice(None) if chosen is None else chosen
    states, bias = last_states(patches, patches.open[own], parts.vectors)
    view = stack.view(patches.closed[own])
    compact = None
    if chosen is not None:
        # Rows that are not computed get another row's keys, in such a slot too.
        back = np.zeros(cache.rows, dtype=np.int32)
        back[chosen] = np.arange(len(chosen))
        slots = (patches.closed % stack.slots).astype(np.int32)[:, None]
        compact = mx.array(chosen.astype(np.int32)), mx.array(back), mx.array(slots)
        states = states[compact[0]]
    keep = None if len(rows) == cache.rows else mx.array(~closes)
    patches.memory, stack.layers = parts.close(
        states, bias, stack.layers, view, compact, keep, patches.memory
    )
    patches.closed = patches.closed + closes
    patches.open = np.where(closes, 0, patches.open)


def _few_shapes(rows: np.ndarray, total: int) -> np.ndarray | None:
    """The rows to compute, the first one repeated for a round number of them; None for all."""
    count = len(rows)
    if count > _ROWS_EXACT:
        count = -(-count // _ROWS_EXACT) * _ROWS_EXACT
    if count >= total:
        return None
    return np.concatenate([rows, np.repeat(rows[:1], count - len(rows))])


def last_states(patches: Patches, lengths: np.ndarray, queries: int) -> tuple[mx.array, mx.array]:
    """The encoder's states of the last bytes of all rows, and which of them count.

    Args:
        patches: of all rows.
        lengths: (R,), bytes of the open patches of the rows that are asked for.
        queries: k.

    Returns:
        (B, m, D), and (R, 1, k, m), 0 or `MASKED`.
    """
    longest = int(lengths.max())
    size = 1 << (longest - 1).bit_length()
    held, first = 0, len(patches.states)
    while held < longest:
        first -= 1
        held += patches.states[first].shape[1]
    blocks = patches.states[first:]
    states = blocks[0] if len(blocks) == 1 else mx.concatenate(blocks, axis=1)
    if held != size:
        # Few lengths, so that few shapes have to be compiled.
        front = [(0, 0), (max(size - held, 0), 0), (0, 0)]
        states = mx.pad(states[:, max(held - size, 0) :], front)
    counts = np.arange(size) >= size - lengths[:, None]
    bias = np.where(counts, np.float32(0), np.float32(MASKED))[:, None, None]
    return states, mx.array(np.repeat(bias, queries, axis=2))


def entropies_of(
    parts: Parts, cache: Cache, ids: mx.array, views: dict[str, View]
) -> mx.array | None:
    """Entropies (B, L) of the bytes behind new ones (B, L); None where patches need none."""
    stack = cache.stacks.get("entropy")
    if stack is None:
        return None
    entropies, stack.layers = parts.entropy(ids, stack.layers, views["entropy"])
    return entropies


def views_of(
    cache: Cache, names: tuple[str, ...], count: int, positions: np.ndarray | None = None
) -> dict[str, View]:
    """Views of the next `count` bytes; stacks that see the same share one."""
    positions = cache.positions if positions is None else positions
    views: dict[str, View] = {}
    known: dict[Any, View] = {}
    for name in names:
        stack = cache.stacks.get(name)
        if stack is None:
            continue
        stack.reserve(positions, count)
        block = stack.block
        # A view costs a few dozen microseconds, most of them for its bias.
        same = (stack.slots, block.window, block.head_width, block.rope_theta)
        if same not in known:
            known[same] = stack.view(positions, count)
        views[name] = known[same]
    return views


def added(cache: Cache, logits: mx.array, ids: mx.array) -> None:
    """Take note of one new byte per row: logits (B, V) behind it, ids (B, 1)."""
    cache.positions = cache.positions + 1
    cache.recent = mx.concatenate([cache.recent[:, 1:], ids], axis=1)
    cache.logits = logits
    cache.forget()


def patches_of(cache: Cache) -> Patches:
    """The patches of a cache that has some."""
    assert cache.patches is not None
    return cache.patches


def checked_ids(
    model: ByteModel, cache: Cache, ids: Any, shape: tuple[int | None, ...]
) -> mx.array:
    """Ids of the wanted shape (None for any size) as int32.

    Raises:
        GenerationError: another shape, or an id outside the vocabulary.
    """
    # Looking at ids that are not computed yet would wait for them.
    known = not isinstance(ids, mx.array)
    values = mx.array(np.asarray(ids, dtype=np.int32)) if known else ids.astype(mx.int32)
    fits = len(values.shape) == len(shape) and all(
        expected in (None, size) for size, expected in zip(values.shape, shape, strict=True)
    )
    if not fits or 0 in values.shape:
        raise GenerationError(
            f"ids have shape {tuple(values.shape)}; the cache has {cache.rows} rows and expects "
            f"{'one id' if len(shape) == 1 else 'as many ids, at least one,'} for each"
        )
    vocabulary = model.config.vocabulary
    if known and not ((np.asarray(ids) >= 0) & (np.asarray(ids) < vocabulary)).all():
        raise GenerationError(f"an id is outside the vocabulary of {vocabulary}: give 0 and up")
    return values
