"""The tokens that all rows of a batch start with, run once instead of once per row.

A companion's conversations begin with the same system prompt, so that a third or more of a
micro-batch can be the same tokens over and over. They see only each other, hence their keys and
values are the same in every row: they are computed once, for one row, and every other row attends
to them. Gradients flow through them as through everything else; without dropout the loss and its
gradients are those of the plain way (with dropout the rows share one mask there).

It works through the cache argument of mlx-lm's models: one kind of cache notes keys and values,
the other puts the noted ones in front of each row's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import KVCache, make_prompt_cache

_LEAST = 16
_PROBE = (3, 12)
_TOLERANCE = 1e-4


class Recorder:
    """A layer's cache for the shared tokens: notes their keys and values (1, K, P, D)."""

    offset = 0

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Note and give back what it got."""
        self.keys, self.values = keys, values
        return keys, values

    def make_mask(self, length: int, **_: Any) -> str | None:
        """Causal."""
        return None if length == 1 else "causal"


class Prefixed:
    """A layer's cache for the rows: puts the noted keys and values in front of each row's."""

    def __init__(self, recorder: Recorder) -> None:
        self.keys, self.values = recorder.keys, recorder.values
        self.offset = recorder.keys.shape[2]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """(B, K, L, D) to (B, K, P + L, D)."""
        return _behind(self.keys, keys), _behind(self.values, values)

    def make_mask(self, length: int, **_: Any) -> str | None:
        """Causal, aligned at the last key, so that each row sees all of the prefix."""
        return None if length == 1 else "causal"


def shared_length(tokens: np.ndarray, targets: np.ndarray, step: int = 1) -> int:
    """How many leading tokens can be run once for all rows; 0 when it is not worth it.

    Args:
        tokens: (B, L) int.
        targets: (B, L) bool; every row keeps the token before its first target.
        step: the length is cut to a multiple of this, so that few different shapes occur.
    """
    if len(tokens) < 2:
        return 0
    same = (tokens == tokens[:1]).all(axis=0)
    length = int(same.argmin()) if not same.all() else tokens.shape[1]
    first_target = int(targets.any(axis=0).argmax())
    length = min(length, first_target - 1) // step * step
    return length if length >= _LEAST else 0


def run_prefixed(model: nn.Module, tokens: mx.array, prefix: int) -> mx.array:
    """Hidden states behind a shared prefix.

    Args:
        model: one that `can_share` accepts.
        tokens: (B, L); the first `prefix` columns are the same in all rows.
        prefix: their number.

    Returns:
        (B, L - prefix, D).
    """
    recorders = [Recorder() for _ in model.layers]
    model.model(tokens[:1, :prefix], cache=recorders)
    return model.model(tokens[:, prefix:], cache=[Prefixed(r) for r in recorders])


def can_share(model: nn.Module, backbone: Callable[[mx.array], mx.array]) -> bool:
    """Whether `run_prefixed` gives what the whole rows give; tried once per model.

    Models with state-space layers, sliding windows or other caches than plain keys and values
    cannot.

    Args:
        model: the model.
        backbone: tokens to hidden states, from `split_head`.
    """
    known = getattr(model, "_companion_prefix", None)
    if known is None:
        known = model._companion_prefix = _try(model, backbone)
    return known


@contextmanager
def without_sharing(model: nn.Module) -> Iterator[None]:
    """Let `can_share` say no inside the block: every batch then runs the layers exactly once."""
    known = getattr(model, "_companion_prefix", None)
    model._companion_prefix = False
    try:
        yield
    finally:
        model._companion_prefix = known


def _try(model: nn.Module, backbone: Callable[[mx.array], mx.array]) -> bool:
    was_training = model.training
    model.eval()
    try:
        if not all(type(cache) is KVCache for cache in make_prompt_cache(model)):
            return False
        rows, length = _PROBE
        tokens = mx.arange(rows * length).reshape(rows, length)
        tokens[:, : length // 2] = mx.arange(length // 2)
        expected = backbone(tokens)[:, length // 2 :].astype(mx.float32)
        found = run_prefixed(model, tokens, length // 2).astype(mx.float32)
        if found.shape != expected.shape:
            return False
        difference, scale = mx.abs(found - expected).max(), mx.abs(expected).max()
        tolerance = _TOLERANCE if _full_precision(model) else 0.05
        return bool((difference <= tolerance * scale).item())
    except (AttributeError, TypeError, ValueError):
        # Another shape of model than assumed, e.g. without a `cache` argument.
        return False
    finally:
        model.train(was_training)


def _full_precision(model: nn.Module) -> bool:
    return model.layers[0].input_layernorm.weight.dtype == mx.float32


def _behind(shared: mx.array, own: mx.array) -> mx.array:
    copies = mx.broadcast_to(shared, (own.shape[0], *shared.shape[1:]))
    return mx.concatenate([copies, own], axis=2)
