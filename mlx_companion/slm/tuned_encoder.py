"""A sentence encoder tuned for one yes-or-no question, as a difference small enough for a pack.

A linear head over frozen embeddings reads what the encoder was made for: what a text is about.
Whether its answer moves is another question, and adapters of rank 16 on its upper layers teach it
that. The difference is stored; merged into a copy of the weights it costs no time::

    tuned = tune(load_encoder(), texts, labels)            # Tuned: logits(texts), to_arrays()
    adapter = TunedEncoder(shared_encoder(), pack.arrays)  # as the classifier reads it
    adapter.features(["who is the mayor of oslo"])         # (1, 1): the logit

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mlx_companion.errors import ConfigError, SLMError
from mlx_companion.runtime.logs import get_logger
from mlx_companion.runtime.stop import NEVER, StopSwitch
from mlx_companion.slm.backbone import MAX_TOKENS, EncoderAdapter, cut_in_the_middle
from mlx_companion.slm.bert_rows import bert_rows

if TYPE_CHECKING:
    import mlx.core as mx

    from mlx_companion.models.bert import Bert
    from mlx_companion.models.encoder import SentenceEncoder

PREFIX = "tuned"
_TARGETS = ("query", "key", "value", "output", "intermediate")
# Texts of one batch are so long on average; of longer ones there are fewer.
_USUAL_TOKENS = 14
_FEWEST_ROWS = 8
_WARM_UP, _LARGEST_GRADIENT = 0.06, 1.0
# Large steps can make the states of all texts the same, which no later step undoes. That has
# happened when texts differ by less than this share of what they differed by before.
_ALIKE = 0.05
_ATTEMPTS, _LOOKED_AT = 3, 32

_log = get_logger(__name__)


@dataclass(frozen=True)
class TuneConfig:
    """How an encoder is tuned.

    Args:
        rank: of the adapters.
        layers: so many of the upper layers have them.
        rate: largest learning rate.
        scale: of the adapters' part in a layer; the smaller, the slower they learn beside the head.
        epochs: passes over the rows (over the share of them that is drawn).
        batch: texts of a step.
        dropout: share of the pooled states left out in a step.
        smoothing: labels are drawn by half of this towards each other.
        seed: of the start, the order, and what is left out.

    Raises:
        ConfigError: a rank, batch or number of epochs below 1.
    """

    rank: int = 16
    layers: int = 4
    rate: float = 7e-4
    scale: float = 2.0
    epochs: int = 2
    batch: int = 32
    dropout: float = 0.1
    smoothing: float = 0.06
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.rank, self.epochs, self.batch) < 1:
            raise ConfigError(
                f"rank, epochs and batch are {self.rank}, {self.epochs} and {self.batch}; expected "
                "1 or more of each"
            )


@dataclass(frozen=True)
class Tuned:
    """A tuned encoder: `logit = [mean, first] @ weights + bias` over its hidden states.

    Attributes:
        encoder: with the difference in its weights.
        update: path of a linear layer -> A (inputs, r) and B (r, outputs); A B is added to its
            transposed weight.
        weights: (2 D,) float32.
        bias: float.
    """

    encoder: SentenceEncoder
    update: dict[str, tuple[np.ndarray, np.ndarray]]
    weights: np.ndarray
    bias: float

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """Logits (N,) float32 of texts."""
        import mlx.core as mx

        rows = _tokens(self.encoder, texts)
        found = np.zeros(len(rows), dtype=np.float32)
        for batch in _batches([len(row) for row in rows], 32):
            states = _pooled(self.encoder.model, *_padded([rows[i] for i in batch]))
            found[batch] = np.array(states @ mx.array(self.weights)) + np.float32(self.bias)
        return found

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The difference and the head as arrays for a pack, half precision and float32."""
        arrays = {f"{PREFIX}.head": np.append(self.weights, self.bias).astype(np.float32)}
        for path, factors in self.update.items():
            for name, factor in zip("ab", factors, strict=True):
                arrays[f"{PREFIX}.{path}.{name}"] = factor.astype(np.float16)
        return arrays

    @classmethod
    def from_arrays(cls, encoder: SentenceEncoder, arrays: Mapping[str, np.ndarray]) -> Tuned:
        """What `to_arrays` gave, on a copy of the encoder that it was made from.

        Raises:
            SLMError: there is no such difference among the arrays, or it does not fit the encoder.
        """
        update, head = _stored_for(encoder, arrays)
        try:
            model = _merged(encoder.model, update)
        except (KeyError, ValueError) as error:
            raise SLMError(f"the tuned encoder's arrays do not fit ({error})") from error
        return cls(replace(encoder, model=model), update, head[:-1], float(head[-1]))


class TunedEncoder(EncoderAdapter):
    """An encoder with a pack's difference in its weights; its features are logits (N, 1).

    Args:
        base: the encoder as published; it stays in memory, and all that both share is there once.
        arrays: of the pack.
        cache_size: texts whose logits are kept.
    """

    def __init__(
        self, base: EncoderAdapter, arrays: Mapping[str, np.ndarray], cache_size: int = 1024
    ) -> None:
        super().__init__(name=f"{base.name} (tuned)", cache_size=cache_size)
        self._base, self._arrays = base, arrays
        self._tuned: Tuned | None = None
        self._head = np.zeros(0, dtype=np.float32)
        self._own_bytes = 0

    @property
    def memory_bytes(self) -> int:
        """Of the weights that it does not share with its base."""
        return self._own_bytes if self.loaded else 0

    def _load(self) -> None:
        encoder = published(self._base)
        update, self._head = _stored_for(encoder, self._arrays)
        self._own_bytes = sum(4 * len(a) * b.shape[1] for a, b in update.values())
        self._read = bert_rows(encoder.model, update)
        if self._read is None:
            self._tuned = Tuned.from_arrays(encoder, self._arrays)
        self._encoder = encoder

    def _unload(self) -> None:
        super()._unload()
        self._tuned = None

    def _features(self, texts: Sequence[str]) -> np.ndarray:
        if self._tuned is not None:
            return self._tuned.logits(texts)[:, None]
        assert self._encoder is not None
        assert self._read is not None
        states = self._read(_tokens(self._encoder, texts))
        return head_logits(states, self._head)[:, None]


def head_logits(states: Sequence[np.ndarray], head: np.ndarray) -> np.ndarray:
    """Logits (N,) of a stored head (2 D + 1,) over the hidden states (L, D) of each text."""
    pooled = np.stack([np.concatenate([one.mean(axis=0), one[0]]) for one in states])
    logits: np.ndarray = pooled @ head[:-1] + head[-1]
    return logits


def stored(
    arrays: Mapping[str, np.ndarray],
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], np.ndarray]:
    """The update and the head (2 D + 1,) of `Tuned.to_arrays`, float32.

    Raises:
        SLMError: they are not there.
    """
    head = arrays.get(f"{PREFIX}.head")
    paths = [n[len(PREFIX) + 1 : -2] for n in arrays if n.startswith(f"{PREFIX}.layers.")]
    if head is None or not paths:
        raise SLMError("the pack has no tuned encoder; restore it, or train it")
    try:
        update = {
            path: (
                arrays[f"{PREFIX}.{path}.a"].astype(np.float32),
                arrays[f"{PREFIX}.{path}.b"].astype(np.float32),
            )
            for path in dict.fromkeys(paths)
        }
    except KeyError as error:
        raise SLMError(f"the tuned encoder's arrays do not fit ({error})") from error
    return update, head


def _stored_for(
    encoder: SentenceEncoder, arrays: Mapping[str, np.ndarray]
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], np.ndarray]:
    update, head = stored(arrays)
    if head.shape != (2 * encoder.dimensions + 1,):
        raise SLMError("the pack has no tuned encoder of that size; restore it, or train it")
    return update, head


def published(adapter: EncoderAdapter) -> SentenceEncoder:
    """The encoder behind an adapter, loaded when it was not.

    Raises:
        ModelError: it cannot be loaded.
    """
    adapter.load()
    encoder = adapter._encoder
    assert encoder is not None
    return encoder


def tune(
    encoder: SentenceEncoder,
    texts: Sequence[str],
    labels: np.ndarray,
    *,
    row_weights: np.ndarray | None = None,
    drawn: np.ndarray | None = None,
    config: TuneConfig | None = None,
    stop: StopSwitch = NEVER,
) -> Tuned:
    """Tune a copy of an encoder; the same rows give the same one.

    Args:
        encoder: as published; it stays as it is.
        texts: N of them.
        labels: (N,) 0 or 1.
        row_weights: (N,) how much each row counts when it is drawn.
        drawn: (N,) how likely a row is part of an epoch; all are unless told.
        config: see `TuneConfig`.
        stop: consulted before each step.

    Raises:
        SLMError: all states became alike, at half and a quarter of the rate too.
        Stopped: the switch was thrown.
    """
    config = config or TuneConfig()
    counts = np.ones(len(texts)) if row_weights is None else np.asarray(row_weights)
    for attempt in range(_ATTEMPTS):
        slower = replace(config, rate=config.rate / 2**attempt)
        made = _tuned(encoder, texts, labels, counts, drawn, slower, stop)
        if not _all_alike(encoder.model, made.encoder.model, _tokens(encoder, texts[:_LOOKED_AT])):
            return made
        _log.warning("at a rate of %g all states became alike", slower.rate)
    raise SLMError(
        f"the encoder's states became alike at rates from {config.rate:g} down to "
        f"{slower.rate:g}; set a smaller rate or scale"
    )


def _tuned(
    encoder: SentenceEncoder,
    texts: Sequence[str],
    labels: np.ndarray,
    counts: np.ndarray,
    drawn: np.ndarray | None,
    config: TuneConfig,
    stop: StopSwitch,
) -> Tuned:
    import mlx.core as mx
    import mlx.nn as nn
    from mlx.optimizers import AdamW, clip_grad_norm

    from mlx_companion.lora import LoraConfig, attach

    rng = np.random.default_rng(config.seed)
    net = _network(_copy(encoder.model))
    rank, layers = config.rank, config.layers
    alpha = config.scale * rank
    lora = LoraConfig(rank=rank, alpha=alpha, layers=layers, targets=_TARGETS)
    attach(net.bert, lora, seed=config.seed)
    plan = _plan(_tokens(encoder, texts), drawn, config, rng)
    counts = counts / (np.mean([counts[batch].mean() for batch, _ in plan]) if plan else 1.0)
    targets = np.asarray(labels) * (1 - config.smoothing) + config.smoothing / 2
    gradient = nn.value_and_grad(net, _loss)
    optimizer = AdamW(config.rate, weight_decay=0.01)
    for step, (batch, tokens) in enumerate(plan):
        stop.check()
        kept = rng.random((len(batch), 2 * encoder.dimensions)) >= config.dropout
        rows = [kept / (1 - config.dropout), targets[batch], counts[batch]]
        arrays = [mx.array(row.astype(np.float32)) for row in rows]
        _, slopes = gradient(net, *_padded(tokens), *arrays)
        clipped, _ = clip_grad_norm(slopes, _LARGEST_GRADIENT)
        gone = (step + 1) / len(plan)
        optimizer.learning_rate = config.rate * min(1.0, gone / _WARM_UP) * (1 - gone)
        optimizer.update(net, clipped)
        mx.eval(net.parameters(), optimizer.state)
    return _finished(encoder, net)


def _all_alike(before: Bert, after: Bert, rows: list[list[int]]) -> bool:
    if len(rows) < 2:
        return False
    tokens, mask = _padded(rows)
    spread, left = (
        float(np.array(_pooled(model, tokens, mask)).std(axis=0).mean())
        for model in (before, after)
    )
    # Said so that states that are no numbers count as well.
    return not left >= _ALIKE * spread


def _finished(encoder: SentenceEncoder, net: Any) -> Tuned:
    update = {
        path: (np.array(layer.lora_a), layer.scale * np.array(layer.lora_b))
        for path, layer in net.bert.named_modules()
        if "lora_a" in layer
    }
    update = dict(sorted(update.items()))
    model = _merged(encoder.model, update)
    return Tuned(
        replace(encoder, model=model), update, np.array(net.weights), float(net.bias.item())
    )


def _network(bert: Bert) -> Any:
    import mlx.core as mx
    import mlx.nn as nn

    net = nn.Module()
    net.bert = bert
    net.weights = mx.zeros((2 * bert.config.hidden_size,))
    net.bias = mx.zeros((1,))
    return net


def _loss(
    net: Any, tokens: mx.array, mask: mx.array, kept: mx.array, targets: mx.array, counts: mx.array
) -> mx.array:
    import mlx.core as mx

    logits = (_pooled(net.bert, tokens, mask) * kept) @ net.weights + net.bias
    return (counts * (mx.logaddexp(0.0, logits) - targets * logits)).mean()


def _pooled(model: Bert, tokens: mx.array, mask: mx.array) -> mx.array:
    """Mean of the hidden states, and the first: (B, 2 D)."""
    import mlx.core as mx

    hidden = model(tokens, mask)
    seen = mask[..., None].astype(hidden.dtype)
    return mx.concatenate([(hidden * seen).sum(axis=1) / seen.sum(axis=1), hidden[:, 0]], axis=-1)


def _copy(model: Bert) -> Bert:
    """Module objects of its own over the same arrays."""
    from mlx.utils import tree_flatten

    from mlx_companion.models.bert import Bert

    other = Bert(model.config)
    arrays: Any = tree_flatten(model.parameters())
    other.load_weights(arrays)
    other.eval()
    return other


def _merged(model: Bert, update: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Bert:
    import mlx.core as mx

    other = _copy(model)
    layers = dict(other.named_modules())
    for path, (a, b) in update.items():
        layer: Any = layers[path]
        layer.weight = layer.weight + mx.array((a @ b).T)
    mx.eval(other.parameters())
    return other


def _plan(
    rows: list[list[int]],
    drawn: np.ndarray | None,
    config: TuneConfig,
    rng: np.random.Generator,
) -> list[tuple[np.ndarray, list[list[int]]]]:
    """Batches of all epochs: indices and tokens, texts of like length together."""
    plan = []
    for _ in range(config.epochs):
        chance = 1.0 if drawn is None else drawn
        taken = np.flatnonzero(rng.random(len(rows)) < chance)
        taken = taken[rng.permutation(len(taken))]
        lengths = [len(rows[i]) for i in taken]
        batches = [taken[batch] for batch in _batches(lengths, config.batch)]
        plan += [batches[i] for i in rng.permutation(len(batches))]
    return [(batch, [rows[i] for i in batch]) for batch in plan]


def _batches(lengths: Sequence[int], size: int) -> Iterator[np.ndarray]:
    order = np.argsort(lengths, kind="stable")
    first = 0
    while first < len(order):
        fitting = size * _USUAL_TOKENS // max(lengths[order[first]], 1)
        end = first + min(size, max(_FEWEST_ROWS, fitting))
        yield order[first:end]
        first = end


def _tokens(encoder: SentenceEncoder, texts: Sequence[str]) -> list[list[int]]:
    found = encoder.tokenizer.encode_batch(list(texts))
    return [cut_in_the_middle(list(one.ids), MAX_TOKENS) for one in found]


def _padded(rows: list[list[int]]) -> tuple[mx.array, mx.array]:
    import mlx.core as mx

    longest = max(map(len, rows))
    tokens = np.array([[*row, *[0] * (longest - len(row))] for row in rows], dtype=np.int32)
    mask = np.arange(longest) < np.array([len(row) for row in rows])[:, None]
    return mx.array(tokens), mx.array(mask)
