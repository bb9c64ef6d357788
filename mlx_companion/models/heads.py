"""A language model cut in two before its output layer, so that logits are computed where needed.

Logits take most of the memory of a training step with a large vocabulary, and a loss over
replies needs them at the replies' positions only:

    backbone, head = split_head(model)
    hidden = backbone(tokens)          # (B, L, D)
    logits = head(hidden[positions])   # (n, V)
    losses = linear_cross_entropy(hidden[positions], output_head(model), labels)   # (n,)

mlx-lm's models are built as `model.model(tokens)` followed by `model.lm_head` or by the tied
embedding. Some scale or cap their logits after that, so the cut is checked once against the
whole model on a small input; where it does not hold, the backbone gives full logits and the head
passes them through. Layers are looked up at each call: attaching or removing LoRA layers, and
gradients through `nn.value_and_grad`, work as with the whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_companion.kernels.linear_cross_entropy import Head

_PROBE_TOKENS = 8
# The same operations on the same shapes: anything above rounding is another function.
_TOLERANCE = 1e-5

Cut = Literal["lm_head", "tied", "none"]


class SplitModel(NamedTuple):
    """The two pieces of a model: `head(backbone(tokens)) == model(tokens)`.

    Attributes:
        backbone: tokens (B, L) to hidden states (B, L, D), or to logits (B, L, V) when the model
            could not be cut.
        head: hidden states (..., D) to logits (..., V); the identity when it could not be cut.
    """

    backbone: Callable[[mx.array], mx.array]
    head: Callable[[mx.array], mx.array]


def split_head(model: nn.Module) -> SplitModel:
    """Cut a model before its output layer.

    The first call for a model runs it over 8 tokens and remembers the outcome on it; make it
    outside of functions that MLX traces (`mx.compile`, `mx.grad`).

    Args:
        model: an mlx-lm model, with or without adapters.
    """
    return _split(model, _cut(model))


def output_head(model: nn.Module) -> Head:
    """The output layer as `kernels.linear_cross_entropy` takes it.

    Args:
        model: as of `split_head`; what its backbone gives goes into this.

    Returns:
        A layer with the parameters that make the logits, or the identity for a model that could
        not be cut.
    """
    cut = _cut(model)
    if cut == "none":
        return identity
    layer: nn.Module = model.lm_head if cut == "lm_head" else model.model.embed_tokens
    plain = cut == "lm_head" or type(layer) in (nn.Embedding, nn.QuantizedEmbedding)
    return layer if plain else _Tied(layer)


def backbone_module(model: nn.Module) -> nn.Module:
    """What makes the hidden states that the head takes: a part of the model, or all of it."""
    return model if _cut(model) == "none" else model.model


def head_trains(head: Head) -> bool:
    """Whether a head that `output_head` gave has parameters that are trained."""
    return isinstance(head, nn.Module) and bool(tree_flatten(head.trainable_parameters()))


class _Tied(nn.Module):
    """An embedding, such as one with an adapter, called the other way round."""

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding

    def __call__(self, hidden: mx.array) -> mx.array:
        logits: mx.array = self.embedding.as_linear(hidden)
        return logits


def identity(logits: mx.array) -> mx.array:
    """The head of what gives logits already."""
    return logits


def _cut(model: nn.Module) -> Cut:
    cut: Cut | None = getattr(model, "_companion_cut", None)
    if cut is None:
        cut = model._companion_cut = _find_cut(model)
    return cut


def _split(model: nn.Module, cut: Cut) -> SplitModel:
    if cut == "lm_head":
        return SplitModel(lambda tokens: model.model(tokens), lambda h: model.lm_head(h))
    if cut == "tied":
        return SplitModel(
            lambda tokens: model.model(tokens), lambda h: model.model.embed_tokens.as_linear(h)
        )
    return SplitModel(lambda tokens: model(tokens), identity)


def _find_cut(model: nn.Module) -> Cut:
    tokens = mx.arange(_PROBE_TOKENS)[None]
    with _evaluating(model):
        expected = model(tokens).astype(mx.float32)
        for cut in _possible_cuts(model):
            if _agrees(_split(model, cut), tokens, expected):
                return cut
    return "none"


def _possible_cuts(model: nn.Module) -> Iterator[Cut]:
    if hasattr(model, "model"):
        if hasattr(model, "lm_head"):
            yield "lm_head"
        if hasattr(model.model, "embed_tokens"):
            yield "tied"


def _agrees(split: SplitModel, tokens: mx.array, expected: mx.array) -> bool:
    try:
        found = split.head(split.backbone(tokens)).astype(mx.float32)
    except (TypeError, ValueError, AttributeError):
        # Another shape of model than assumed, e.g. one whose backbone returns a tuple.
        return False
    if found.shape != expected.shape:
        return False
    difference, scale = mx.abs(found - expected).max(), mx.abs(expected).max()
    return bool((difference <= _TOLERANCE * scale).item())


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off, and afterwards back on exactly where it was on."""
    were_training = [module for _, module in model.named_modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in were_training:
            module._set_training_mode(True)
