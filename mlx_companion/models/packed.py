"""Language models over packed rows: many documents in one row, each as if it were alone.

    layout = PackLayout((5, 3, 4))
    hidden = run_packed(model, tokens, layout)     # (12,) to (12, D)

Each document's positions start at 0 and it sees nothing of the others; the result is that of
running every document by itself, without padding.

It works through the cache argument of mlx-lm's models. Tokens go in as L rows of one token, so that
layers see the same numbers as ever and rotary embeddings, whatever their kind, take each token's
position from `cache.offset`, as they do for rows of a batch; attention is replaced inside the block
by one that knows the documents. A model that carries anything else from token to token (state
spaces, convolutions, attention of its own making) is refused: see `why_not_packed`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache

from mlx_companion.errors import ModelError
from mlx_companion.models.heads import backbone_module, split_head
from mlx_companion.models.pack_layout import PackLayout
from mlx_companion.models.packed_attention import PackedAttention
from mlx_companion.models.swapped import ATTENTION, Functions, functions_of, swapped

_PROBE = (5, 33, 3, 33)
_PROBE_VOCABULARY = 31
_TOLERANCE, _TOLERANCE_HALF = 1e-4, 0.05


class UnpackableError(ModelError):
    """A model that cannot run packed rows; the message says why."""


class PackedMask(str):
    """What layers are given as a mask: "causal", and how far a token sees."""

    window: int | None

    def __new__(cls, window: int | None = None) -> PackedMask:
        """With the window's size in tokens."""
        mask = super().__new__(cls, "causal")
        mask.window = window
        return mask


class PackedCache:
    """A layer's cache for a packed row: positions and documents; keeps nothing."""

    def __init__(self, layout: PackLayout) -> None:
        self.attention = PackedAttention(layout)
        self.offset = layout.positions

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Gives back what it got, (L, K, 1, D)."""
        return keys, values

    def make_mask(
        self, length: int, return_array: bool = False, window_size: int | None = None, **_: Any
    ) -> PackedMask:
        """A name for what no array is made of."""
        if return_array:
            raise UnpackableError("it computes with its attention mask")
        return PackedMask(window_size)

    def attend(
        self,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        scale: float,
        mask: Any = None,
        sinks: mx.array | None = None,
    ) -> mx.array:
        """Attention in place of `scaled_dot_product_attention`: (L, H, 1, D) to the same."""
        if not isinstance(mask, PackedMask):
            raise UnpackableError("it makes an attention mask of its own")
        q, k, v = (x.squeeze(2) for x in (queries, keys, values))
        return self.attention(q, k, v, scale, mask.window, sinks)[:, :, None]


@contextmanager
def packed_attention(model: nn.Module) -> Iterator[None]:
    """Let a model's attention know packed rows inside the block; others run as before."""
    with swapped({place: _dispatching(inner) for place, inner in _attention_of(model).items()}):
        yield


def run_packed(model: nn.Module, tokens: mx.array, layout: PackLayout) -> mx.array:
    """Hidden states of a packed row.

    Args:
        model: one that `why_not_packed` has nothing against.
        tokens: (L,) int, as the layout says.
        layout: its documents.

    Returns:
        (L, D), what `split_head(model).head` takes.
    """
    cache = PackedCache(layout)
    with packed_attention(model):
        hidden = backbone_module(model)(tokens[:, None], cache=[cache] * len(model.layers))
    return hidden.squeeze(1)


def why_not_packed(model: nn.Module) -> str | None:
    """What keeps a model from running packed rows; None if nothing does. Tried once per model."""
    known = getattr(model, "_companion_packed", None)
    if known is None:
        known = model._companion_packed = _tried(model)
    return known or None


def check_packable(model: nn.Module) -> None:
    """Refuse a model that cannot run packed rows.

    Raises:
        ModelError: says which model and why.
    """
    why = why_not_packed(model)
    if why is not None:
        raise UnpackableError(
            f"{_name(model)} cannot run packed rows: {why}; set packing to false (batches of rows "
            "of like length)"
        )


def _name(model: nn.Module) -> str:
    return f"the architecture '{getattr(model, 'model_type', type(model).__module__)}'"


def _attention_of(model: nn.Module) -> Functions:
    return {place: f for place, f in functions_of(model).items() if place.name == ATTENTION}


def _dispatching(inner: Callable[..., mx.array]) -> Callable[..., mx.array]:
    def scaled_dot_product_attention(
        queries: mx.array,
        keys: Any,
        values: Any,
        cache: Any,
        scale: float,
        mask: Any,
        sinks: mx.array | None = None,
    ) -> mx.array:
        if isinstance(cache, PackedCache):
            return cache.attend(queries, keys, values, scale, mask, sinks)
        return inner(queries, keys, values, cache, scale, mask, sinks)

    return scaled_dot_product_attention


def _tried(model: nn.Module) -> str:
    """What is in the way, or nothing."""
    kinds = {type(cache) for cache in make_prompt_cache(model)}
    others = sorted(kind.__name__ for kind in kinds - {KVCache, RotatingKVCache})
    if others:
        return f"its layers pass on more than keys and values ({', '.join(others)})"
    if not _attention_of(model):
        return "its attention is not mlx-lm's scaled_dot_product_attention"
    was_training = model.training
    model.eval()
    try:
        return "" if _agrees(model) else "its documents come out differently than alone"
    except UnpackableError as error:
        return str(error)
    except (AttributeError, TypeError, ValueError, IndexError) as error:
        # Another shape of model than assumed, or positions that may not be an array.
        return f"it does not take packed positions ({type(error).__name__}: {error})"
    finally:
        model.train(was_training)


def _agrees(model: nn.Module) -> bool:
    layout = PackLayout(_PROBE)
    tokens = mx.arange(layout.tokens) * 7 % _PROBE_VOCABULARY
    found = run_packed(model, tokens, layout).astype(mx.float32)
    backbone, _ = split_head(model)
    ends = [start + length for start, length in zip(layout.starts, _PROBE, strict=True)]
    alone = [
        backbone(tokens[None, int(start) : int(end)])[0]
        for start, end in zip(layout.starts, ends, strict=True)
    ]
    expected = mx.concatenate(alone).astype(mx.float32)
    if found.shape != expected.shape:
        return False
    difference, scale = mx.abs(found - expected).max(), mx.abs(expected).max()
    tolerance = _TOLERANCE if _full_precision(model) else _TOLERANCE_HALF
    return bool((difference <= tolerance * scale).item())


def _full_precision(model: nn.Module) -> bool:
    weights: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    return not any(w.dtype in (mx.bfloat16, mx.float16) for w in weights.values())
