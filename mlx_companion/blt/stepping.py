"""Byte by byte through a model, with the same results as the full forward.

    cache = make_cache(model, rows=B)
    logits = prefill(model, cache, ids, lengths)     # prompts of unequal lengths, in one go
    logits = advance(model, cache, next_ids)         # (B,) -> (B, V), one byte per row
    logits = extend(model, cache, more_ids)          # (1, L) -> (1, L, V), several bytes at once

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
from mlx_companion.blt.drawing import writable
from mlx_companion.blt.fused import MASKED
from mlx_companion.blt.model import BltModel
from mlx_companion.blt.parts import Parts, join_close
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
    ids = _ids(model, cache, ids, (cache.rows,))
    if isinstance(model, BltModel):
        return _advance_patched(model, cache, ids)
    return _advance_flat(model, cache, ids)


def extend(model: ByteModel, cache: Cache, ids: Any) -> mx.array:
    """Add L bytes, `margin` at a time: fewer and larger products than byte by byte.

    Args:
        model: the one that the cache was made for.
        cache: of one row (of several rows it goes byte by byte); changed in place.
        ids: (B, L) int, L at least 1.

    Returns:
        (B, L, V), predictions of the bytes after each of them.

    Raises:
        GenerationError: ids of another shape, or outside the vocabulary.
    """
    ids = _ids(model, cache, ids, (cache.rows, None))
    length = ids.shape[1]
    if cache.rows > 1 or length == 1:
        return mx.stack([advance(model, cache, ids[:, at]) for at in range(length)], axis=1)
    pieces = []
    for at in range(0, length, cache.margin):
        some = ids[:, at : at + cache.margin]
        if isinstance(model, BltModel):
            pieces.append(_extend_patched(model, cache, some))
        else:
            pieces.append(_extend_flat(model, cache, some))
        mx.eval(pieces[-1])
    return pieces[0] if len(pieces) == 1 else mx.concatenate(pieces, axis=1)


# --- flat models ---------------------------------------------------------------------------------


def _advance_flat(model: ByteLM, cache: Cache, ids: mx.array) -> mx.array:
    stack = cache.stacks["layers"]
    stack.reserve(cache.positions)
    view = stack.view(cache.positions)
    logits, stack.layers = Parts.of(model).flat(ids[:, None], stack.layers, view)
    cache.ids = np.array(ids)
    cache.remember()
    _added(cache, logits[:, 0], ids[:, None])
    return logits[:, 0]


def _extend_flat(model: ByteLM, cache: Cache, ids: mx.array) -> mx.array:
    stack, length = cache.stacks["layers"], ids.shape[1]
    stack.reserve(cache.positions, length)
    view = stack.view(cache.positions, length)
    logits, stack.layers = Parts.of(model).flat(ids, stack.layers, view)
    for at in range(length):
        cache.remember()
        _added(cache, logits[:, at], ids[:, at : at + 1])
    cache.ids = np.array(ids[:, -1])
    return logits


# --- byte latent transformers --------------------------------------------------------------------


def _advance_patched(model: BltModel, cache: Cache, ids: mx.array) -> mx.array:
    parts, patches = Parts.of(model), _patches(cache)
    views = _views(cache, ("entropy", "encoder", "decoder"), 1)
    column = ids[:, None]
    entropies = _entropies(parts, cache, column, views)
    encoder = cache.stacks["encoder"]
    h, encoder.layers = parts.encode(cache.recent, column, encoder.layers, views["encoder"])
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
    _added(cache, logits, column)
    return logits


def _close(parts: Parts, cache: Cache, closes: np.ndarray) -> None:
    """One latent step in the rows whose open patch is closed."""
    patches, stack = _patches(cache), cache.stacks["latent"]
    rows = np.flatnonzero(closes)
    cache.latent_rows += len(rows)
    stack.reserve(patches.closed)
    chosen = _few_shapes(rows, cache.rows)
    own = slice(None) if chosen is None else chosen
    states, bias = _last_states(patches, patches.open[own], parts.vectors)
    view = stack.view(patches.closed[own])
    compact = None
    if chosen is not None:
        # Rows that are not computed get some other row's keys, in a slot that is still free.
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


def _last_states(patches: Patches, lengths: np.ndarray, queries: int) -> tuple[mx.array, mx.array]:
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


def _extend_patched(model: BltModel, cache: Cache, ids: mx.array) -> mx.array:
    parts, encoder = Parts.of(model), cache.stacks["encoder"]
    view = _views(cache, ("encoder",), ids.shape[1])["encoder"]
    h, encoder.layers = parts.encode(cache.recent, ids, encoder.layers, view)
    entropies = entropies_ahead(model, cache, ids)
    return take_in(model, cache, ids, h, entropies)


def draft(model: BltModel, cache: Cache, length: int) -> tuple[mx.array, mx.array]:
    """The most likely next bytes by the byte encoder and decoder alone, on the last closed patch.

    Args:
        model: the model.
        cache: of one row, not empty. What its bytes are stays as it is, so that `take_in` can add
            those bytes.
        length: L, at most the cache's margin.

    Returns:
        The bytes (1, L), the first of them what the whole model says, and the encoder's states of
        them (1, L, D); not computed yet.
    """
    parts, patches = Parts.of(model), _patches(cache)
    allowed = mx.array(writable(model.config.vocabulary))
    encoder, decoder = cache.stacks["encoder"], cache.stacks["decoder"]
    recent, positions, logits = cache.recent, cache.positions, cache.logits
    assert logits is not None
    ids, states = [], []
    for at in range(length):
        best = mx.where(allowed, logits, -mx.inf).argmax(axis=-1, keepdims=True)
        ids.append(best.astype(mx.int32))
        views = _views(cache, ("encoder", "decoder"), 1, positions + at)
        h, encoder.layers = parts.encode(recent, ids[-1], encoder.layers, views["encoder"])
        states.append(h)
        recent = mx.concatenate([recent[:, 1:], ids[-1]], axis=1)
        if at < length - 1:
            logits, decoder.layers = parts.decode(
                h, patches.memory, decoder.layers, views["decoder"]
            )
    return mx.concatenate(ids, axis=1), mx.concatenate(states, axis=1)


def entropies_ahead(model: BltModel, cache: Cache, ids: mx.array) -> mx.array | None:
    """The entropies (1, L) of L new bytes (1, L); None where patches do not need them."""
    return _entropies(Parts.of(model), cache, ids, _views(cache, ("entropy",), ids.shape[1]))


def take_in(
    model: BltModel, cache: Cache, ids: mx.array, h: mx.array, entropies: mx.array | None
) -> mx.array:
    """Several bytes of one row whose encoder states and entropies are known already.

    Args:
        model: the model.
        cache: of one row; its encoder and entropy model have seen the bytes.
        ids: (1, L).
        h: (1, L, D), states of the bytes.
        entropies: (1, L), or None.

    Returns:
        (1, L, V).
    """
    parts, patches = Parts.of(model), _patches(cache)
    length = ids.shape[1]
    mx.async_eval([ids, h] if entropies is None else [ids, entropies, h])
    values = np.array(ids)
    nats = np.zeros(values.shape) if entropies is None else np.array(entropies)
    before = [patches.copy()]
    for at in range(length):
        now = before[-1].copy()
        closes = bool(now.clock.step(values[:, at], nats[:, at])[0])
        now.states.append(h[:, at : at + 1])
        now.open = np.zeros_like(now.open) if closes else now.open + 1
        now.closed = now.closed + closes
        before.append(now)
    memory = _close_in_turn(parts, cache, before)
    source = np.array([now.closed[0] - patches.closed[0] for now in before[1:]])
    decoder = cache.stacks["decoder"]
    view = _views(cache, ("decoder",), length)["decoder"]
    logits, decoder.layers = parts.decode_many(
        h, memory, mx.array(source[None].astype(np.int32)), decoder.layers, view
    )
    for at, now in enumerate(before[1:]):
        now.memory = [(k[:, source[at], None], v[:, source[at], None]) for k, v in memory]
        cache.remember()
        cache.patches = now
        _added(cache, logits[:, at], ids[:, at : at + 1])
    cache.ids = values[:, -1].astype(np.int32)
    return logits


def _close_in_turn(parts: Parts, cache: Cache, along: list[Patches]) -> list[Any]:
    """Latent positions of all patches that are closed along the way, in one step.

    Args:
        parts: of the model.
        cache: as it was before.
        along: patches of one row before the first byte and after each.

    Returns:
        Per cross-attention of the decoder, keys and values (1, 1 + P, k, H, W): of the patch that
        was closed last before, and of the P new ones.
    """
    patches, stack = _patches(cache), cache.stacks["latent"]
    closing = [at for at in range(1, len(along)) if along[at].closed[0] > along[at - 1].closed[0]]
    if not closing:
        return patches.memory
    parts_of = []
    for at in closing:
        lengths = along[at - 1].open + 1
        parts_of.append(_last_states(along[at], lengths, parts.vectors))
    stack.reserve(patches.closed, len(closing))
    view = stack.view(patches.closed, len(closing))
    vectors = mx.concatenate([parts.pool(states, bias) for states, bias in parts_of], axis=1)
    new, stack.layers = parts.latents(vectors, stack.layers, view)
    cache.latent_rows += len(closing)
    return [join_close(old, one) for old, one in zip(patches.memory, new, strict=True)]


# --- both ----------------------------------------------------------------------------------------


def _entropies(
    parts: Parts, cache: Cache, ids: mx.array, views: dict[str, View]
) -> mx.array | None:
    stack = cache.stacks.get("entropy")
    if stack is None:
        return None
    entropies, stack.layers = parts.entropy(ids, stack.layers, views["entropy"])
    return entropies


def _views(
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
        same = (stack.slots, block.window, block.head_width, block.rope_theta)
        if same not in known:
            known[same] = stack.view(positions, count)
        views[name] = known[same]
    return views


def _added(cache: Cache, logits: mx.array, ids: mx.array) -> None:
    cache.positions = cache.positions + 1
    cache.recent = mx.concatenate([cache.recent[:, 1:], ids], axis=1)
    cache.logits = logits
    cache.forget()


def _patches(cache: Cache) -> Patches:
    assert cache.patches is not None
    return cache.patches


def _ids(model: ByteModel, cache: Cache, ids: Any, shape: tuple[int | None, ...]) -> mx.array:
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
