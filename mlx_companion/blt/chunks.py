"""Several bytes of one row at once: fewer and larger products than byte by byte.

    logits = extend(model, cache, ids)               # (1, L) -> (1, L, V)

Used where bytes are known beforehand: the next message of a conversation, and drafts that the whole
model has to check (`speculation`). The entropy model, the encoder and the decoder take all bytes in
one pass, and so does the latent transformer with all patches that they close; the cache is left as
if they had come one by one, so that any of them can be taken back.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from mlx_companion.blt.byte_lm import ByteLM
from mlx_companion.blt.cache import ByteModel, Cache, Patches
from mlx_companion.blt.drawing import writable
from mlx_companion.blt.model import BltModel
from mlx_companion.blt.parts import Parts, join_close
from mlx_companion.blt.stepping import (
    added,
    advance,
    checked_ids,
    entropies_of,
    last_states,
    patches_of,
    views_of,
)


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
    ids = checked_ids(model, cache, ids, (cache.rows, None))
    length = ids.shape[1]
    # Rows that close different numbers of patches would not fit into one latent step.
    if cache.rows > 1 or length == 1:
        return mx.stack([advance(model, cache, ids[:, at]) for at in range(length)], axis=1)
    pieces = []
    for at in range(0, length, cache.margin):
        some = ids[:, at : at + cache.margin]
        if isinstance(model, BltModel):
            pieces.append(_extend_patched(model, cache, some))
        else:
            pieces.append(_extend_flat(model, cache, some))
        # One after the other, so that the memory of one piece serves the next.
        mx.eval(pieces[-1])
    return pieces[0] if len(pieces) == 1 else mx.concatenate(pieces, axis=1)


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
    parts, patches = Parts.of(model), patches_of(cache)
    allowed = mx.array(writable(model.config.vocabulary))
    encoder, decoder = cache.stacks["encoder"], cache.stacks["decoder"]
    recent, positions, logits = cache.recent, cache.positions, cache.logits
    assert logits is not None
    ids, states = [], []
    for at in range(length):
        best = mx.where(allowed, logits, -mx.inf).argmax(axis=-1, keepdims=True)
        ids.append(best.astype(mx.int32))
        views = views_of(cache, ("encoder", "decoder"), 1, positions + at)
        h, encoder.layers = parts.encode(recent, ids[-1], encoder.layers, views["encoder"])
        states.append(h)
        recent = mx.concatenate([recent[:, 1:], ids[-1]], axis=1)
        # What the last byte predicts is for the whole model to say.
        if at < length - 1:
            logits, decoder.layers = parts.decode(
                h, patches.memory, decoder.layers, views["decoder"]
            )
    return mx.concatenate(ids, axis=1), mx.concatenate(states, axis=1)


def entropies_ahead(model: BltModel, cache: Cache, ids: mx.array) -> mx.array | None:
    """The entropies (1, L) of L new bytes (1, L); None where patches do not need them."""
    return entropies_of(Parts.of(model), cache, ids, views_of(cache, ("entropy",), ids.shape[1]))


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
    parts, patches = Parts.of(model), patches_of(cache)
    length = ids.shape[1]
    mx.async_eval([ids, h] if entropies is None else [ids, entropies, h])
    values = np.array(ids)
    nats = np.zeros(values.shape) if entropies is None else np.array(entropies)
    # The state behind each byte is kept: what `trim` may go back to.
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
    view = views_of(cache, ("decoder",), length)["decoder"]
    logits, decoder.layers = parts.decode_many(
        h, memory, mx.array(source[None].astype(np.int32)), decoder.layers, view
    )
    for at, now in enumerate(before[1:]):
        now.memory = [(k[:, source[at], None], v[:, source[at], None]) for k, v in memory]
        cache.remember()
        cache.patches = now
        added(cache, logits[:, at], ids[:, at : at + 1])
    cache.ids = values[:, -1].astype(np.int32)
    return logits


def _extend_flat(model: ByteLM, cache: Cache, ids: mx.array) -> mx.array:
    stack, length = cache.stacks["layers"], ids.shape[1]
    stack.reserve(cache.positions, length)
    view = stack.view(cache.positions, length)
    logits, stack.layers = Parts.of(model).flat(ids, stack.layers, view)
    for at in range(length):
        cache.remember()
        added(cache, logits[:, at], ids[:, at : at + 1])
    cache.ids = np.array(ids[:, -1])
    return logits


def _extend_patched(model: BltModel, cache: Cache, ids: mx.array) -> mx.array:
    parts, encoder = Parts.of(model), cache.stacks["encoder"]
    view = views_of(cache, ("encoder",), ids.shape[1])["encoder"]
    h, encoder.layers = parts.encode(cache.recent, ids, encoder.layers, view)
    entropies = entropies_ahead(model, cache, ids)
    return take_in(model, cache, ids, h, entropies)


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
    patches, stack = patches_of(cache), cache.stacks["latent"]
    closing = [at for at in range(1, len(along)) if along[at].closed[0] > along[at - 1].closed[0]]
    if not closing:
        return patches.memory
    parts_of = []
    for at in closing:
        lengths = along[at - 1].open + 1
        parts_of.append(last_states(along[at], lengths, parts.vectors))
    stack.reserve(patches.closed, len(closing))
    view = stack.view(patches.closed, len(closing))
    vectors = mx.concatenate([parts.pool(states, bias) for states, bias in parts_of], axis=1)
    new, stack.layers = parts.latents(vectors, stack.layers, view)
    cache.latent_rows += len(closing)
    return [join_close(old, one) for old, one in zip(patches.memory, new, strict=True)]
