"""Greedy self-speculation: the byte decoder drafts, the whole model checks many bytes at once.

Within a patch the decoder needs no latent step, and a little past its end the old patch is often
enough. So bytes are drafted with the byte encoder and decoder alone, on the last closed patch.
Then all of them go through the entropy model, the latent transformer (one position for each patch
they close) and the decoder in one pass, and as many are kept as greedy decoding would have written
too. The first byte of a draft is known beforehand, so that every round gains one at least.

The result is that of greedy decoding: a pass over several bytes adds in another order than one over
a single byte, so wherever a decision is closer than rounding (two bytes equally likely, an entropy
on the threshold) the byte is done again by itself.

Source: BLT-S, arXiv 2605.08044.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from mlx_companion.blt.cache import ByteModel, Cache
from mlx_companion.blt.chunks import draft, entropies_ahead, take_in
from mlx_companion.blt.drawing import writable
from mlx_companion.blt.model import BltModel
from mlx_companion.blt.replies import Drafts
from mlx_companion.blt.stepping import advance
from mlx_companion.errors import GenerationError

# Logits and entropies (nats) of one pass and of single steps differ by about 1e-6 of their size.
_CLOSE = 1e-3
_NEAR = 1e-4


@dataclass
class Speculation:
    """Settings and figures of self-speculation.

    Args:
        length: n, bytes drafted at a time.
    """

    length: int
    drafts: Drafts = field(default_factory=Drafts)


def speculate_bytes(model: ByteModel, cache: Cache, speculation: Speculation) -> Iterator[int]:
    """The ids that greedy decoding writes, without an end.

    Args:
        model: a byte latent transformer.
        cache: of one row, not empty. At each id it holds that id at least; what it holds beyond is
            what comes next, so that a text is ended with `cache.trim`.
        speculation: its figures are kept up to date.

    Raises:
        GenerationError: a flat model, or drafts longer than what the cache can take back.
    """
    if not isinstance(model, BltModel):
        raise GenerationError("a flat model has no latent transformer to save; leave out speculate")
    if speculation.length > cache.margin:
        raise GenerationError(
            f"speculate={speculation.length} is more than the {cache.margin} bytes that the cache "
            "can take back; make it with a larger margin"
        )
    while True:
        ids, states = draft(model, cache, speculation.length)
        entropies = entropies_ahead(model, cache, ids)
        doubtful = _doubtful(cache, entropies, speculation.length)
        logits = take_in(model, cache, ids, states, entropies)
        values = np.array(ids)[0]
        right = _keep(model, cache, values, np.array(logits[0]), doubtful)
        old = speculation.drafts
        speculation.drafts = Drafts(
            old.rounds + 1, old.drafted + len(values) - 1, old.accepted + right - 1
        )
        yield from values[:right].tolist()


def _keep(
    model: BltModel, cache: Cache, ids: np.ndarray, logits: np.ndarray, doubtful: np.ndarray
) -> int:
    """Take back all drafted bytes but the first ones that are right; returns how many those are.

    Args:
        model: the model.
        cache: holds all drafted bytes.
        ids: (L,), the first one known to be right.
        logits: (L, V), after each.
        doubtful: (L,) bool, whether the byte closes a patch is a matter of rounding.
    """
    best, lead = _best(logits)
    doubtful = doubtful | (lead <= _CLOSE)
    # Byte `right` is what greedy decoding writes; its own effects are checked here.
    right = 0
    while right < len(ids) and (right == 0 or best[right - 1] == ids[right]):
        if doubtful[right]:
            # As greedy decoding does it, so that rounding falls the same way.
            cache.trim(len(ids) - right)
            advance(model, cache, ids[right : right + 1])
            return right + 1
        right += 1
    cache.trim(len(ids) - right)
    return right


def _best(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The most likely ids (L,), and by how much their logits lead (L,)."""
    written = np.where(writable(logits.shape[1]), logits, -np.inf)
    second, first = np.sort(written, axis=1)[:, -2:].T
    return written.argmax(axis=1), first - second


def _doubtful(cache: Cache, entropies: mx.array | None, length: int) -> np.ndarray:
    """(L,) bool: an entropy or a rise lies within rounding of what it is compared with."""
    assert cache.patches is not None
    rule, before = cache.patches.clock.config, cache.patches.clock.entropy
    if entropies is None:
        return np.zeros(length, dtype=bool)
    nats = np.array(entropies)[0].astype(np.float64)
    rises = np.diff(nats, prepend=before)
    least = rule.threshold if rule.mode == "monotonic" else rule.rise_threshold
    # Each rule compares one of these, or both.
    near = np.zeros(length, dtype=bool)
    if rule.mode != "monotonic":
        near |= np.abs(nats - rule.threshold) <= _NEAR
    if rule.mode != "entropy" and least is not None:
        near |= np.abs(rises - least) <= _NEAR
    return near
