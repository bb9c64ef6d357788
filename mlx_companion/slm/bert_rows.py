"""A BERT in NumPy: short texts in two thirds of MLX's time on Linux CPUs, weights left in place.

A query of a dozen tokens is mostly the fetching of weights from memory. MLX's Linux CPU backend
adds hundreds of small operations to that; NumPy does the same with fewer, on the very arrays of a
loaded encoder or on a file mapped into memory (`encoder_files`). Nothing is held twice: only
matrices that a pack's low-rank update changes are made anew::

    rows = bert_rows(encoder.model)                    # None where MLX's own way is to be used
    first, second = rows([[101, 7592, 102], [101, 102]])     # hidden states (3, D) and (2, D)
    lower = BertRows(mapped_weights(file), heads=12, epsilon=1e-12, layers=3)

Texts of any lengths share the matrix products, without padding; attention is among equally long
ones. Safe between threads.

Source: Devlin et al., "BERT", 2018; Hu et al., "LoRA", 2021 (the updates).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from mlx_companion.errors import SLMError

if TYPE_CHECKING:
    from mlx_companion.models.bert import Bert

# Path of a linear layer -> A (inputs, r) and B (r, outputs), added to its transposed weight.
Update = Mapping[str, tuple[np.ndarray, np.ndarray]]
# Tokens of one pass: more are no faster, and take memory.
_MOST_TOKENS = 768
_ATTENTION = ("attention.query", "attention.key", "attention.value")
_LINEAR = (*_ATTENTION, "attention.output", "intermediate", "output")


@dataclass(frozen=True)
class _Linear:
    """A linear layer: weight (inputs, outputs), which may be a view, and bias (outputs,)."""

    weight: np.ndarray
    bias: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        product: np.ndarray = x @ self.weight
        product += self.bias
        return product


@dataclass(frozen=True)
class _Layer:
    """One layer; `inputs` give queries, keys and values, from one matrix or from three."""

    inputs: tuple[_Linear, ...]
    output: _Linear
    norm: tuple[np.ndarray, np.ndarray]
    up: _Linear
    down: _Linear
    last_norm: tuple[np.ndarray, np.ndarray]


class BertRows:
    """Reads rows of tokens with the first layers of a BERT.

    Args:
        weights: by the names of `mlx_companion.models.bert.Bert`, floating point.
        heads: of attention.
        epsilon: of the layer norms.
        layers: so many run; all unless told.
        update: low-rank changes of linear layers, which are merged.

    Attributes:
        width: D of a hidden state.
        places: the most tokens of a row.
        own_bytes: of the matrices that were made by merging.

    Raises:
        SLMError: the weights are not those of such a BERT, or the update does not fit them.
    """

    def __init__(
        self,
        weights: Mapping[str, np.ndarray],
        heads: int,
        epsilon: float,
        *,
        layers: int | None = None,
        update: Update | None = None,
    ) -> None:
        self._heads, self._epsilon = heads, np.float32(epsilon)
        self.own_bytes = 0
        names = {name.split(".")[1] for name in weights if name.startswith("layers.")}
        count = len(names) if layers is None else layers
        try:
            self._words = weights["embeddings.word_embeddings.weight"]
            self._places = weights["embeddings.position_embeddings.weight"]
            self._kind = weights["embeddings.token_type_embeddings.weight"][0]
            self._norm_of_words = _norm_weights(weights, "embeddings.norm")
            self._layers = [self._layer(weights, f"layers.{at}", update) for at in range(count)]
        except (KeyError, ValueError, IndexError) as error:
            raise SLMError(f"these are not the weights of a BERT that fits ({error})") from error
        read = {f"layers.{at}.{name}" for at in range(count) for name in _LINEAR}
        if strange := sorted(set(update or {}) - read):
            raise SLMError(f"the update has a layer '{strange[0]}', which is not read here")
        self.width, self.places = self._words.shape[1], len(self._places)

    def __call__(self, rows: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Hidden states (L, D) after the last of the layers, for each row of L tokens."""
        found: list[np.ndarray] = [np.zeros(0)] * len(rows)
        for order, spans, states in self._batches(rows):
            last = deque(states, maxlen=1)[0]
            for at, span in zip(order, spans, strict=True):
                found[at] = last[span]
        return found

    def every_layer(self, rows: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """States (1 + layers, L, D) before and after each layer, for each row of L tokens."""
        found: list[np.ndarray] = [np.zeros(0)] * len(rows)
        for order, spans, states in self._batches(rows):
            stack = np.stack([state.copy() for state in states])
            for at, span in zip(order, spans, strict=True):
                found[at] = stack[:, span]
        return found

    def _batches(
        self, rows: Sequence[Sequence[int]]
    ) -> Iterator[tuple[list[int], list[slice], Iterator[np.ndarray]]]:
        """Rows that share a pass: which they are, where they lie, the states of each depth."""
        order = sorted(range(len(rows)), key=lambda at: len(rows[at]))
        first = 0
        while first < len(order):
            batch, tokens = [order[first]], len(rows[order[first]])
            for at in order[first + 1 :]:
                tokens += len(rows[at])
                if tokens > _MOST_TOKENS:
                    break
                batch.append(at)
            first += len(batch)
            ends = np.cumsum([0, *(len(rows[at]) for at in batch)])
            spans = [slice(int(a), int(b)) for a, b in pairwise(ends)]
            yield batch, spans, self._states([rows[at] for at in batch])

    def _states(self, rows: Sequence[Sequence[int]]) -> Iterator[np.ndarray]:
        """States (T, D) of the tokens of all rows, which are sorted by length, at each depth.

        What was given is changed by the next step.
        """
        places = np.concatenate([np.arange(len(row)) for row in rows])
        x = self._words[np.concatenate([np.asarray(row) for row in rows])].astype(np.float32)
        x += self._places[places]
        x += self._kind
        groups = list(_equally_long([len(row) for row in rows]))
        x = self._norm(x, self._norm_of_words)
        yield x
        for layer in self._layers:
            x = self._step(x, layer, groups)
            yield x

    def _step(
        self, x: np.ndarray, layer: _Layer, groups: list[tuple[slice, int, int]]
    ) -> np.ndarray:
        parts = [part for one in layer.inputs for part in _thirds(one(x), x.shape[1])]
        joined = np.empty_like(x)
        for span, rows, length in groups:
            joined[span] = self._mixed([part[span] for part in parts], rows, length)
        mixed = layer.output(joined)
        mixed += x
        x = self._norm(mixed, layer.norm)
        out = layer.down(_gelu(layer.up(x)))
        out += x
        return self._norm(out, layer.last_norm)

    def _mixed(self, parts: list[np.ndarray], rows: int, length: int) -> np.ndarray:
        """Attention among the tokens of each of `rows` rows: (rows x length, D)."""
        shape = (rows, length, self._heads, -1)
        q, k, v = (part.reshape(shape).transpose(0, 2, 1, 3) for part in parts)
        scores = q @ k.transpose(0, 1, 3, 2)
        scores *= np.float32(q.shape[-1] ** -0.5)
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        mixed: np.ndarray = (scores @ v).transpose(0, 2, 1, 3).reshape(rows * length, -1)
        return mixed

    def _norm(self, x: np.ndarray, weights: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """Layer norm of x (T, D), in its place."""
        width = np.float32(x.shape[1])
        x -= (np.einsum("td->t", x) / width)[:, None]
        squares = np.einsum("td,td->t", x, x) / width
        x *= (1 / np.sqrt(squares + self._epsilon))[:, None]
        x *= weights[0]
        x += weights[1]
        return x

    def _layer(self, weights: Mapping[str, np.ndarray], at: str, update: Update | None) -> _Layer:
        def linear(name: str) -> _Linear:
            plain = weights[f"{at}.{name}.weight"].T
            factors = (update or {}).get(f"{at}.{name}")
            if factors is not None:
                # Rows of outputs, which BLAS packs with less work than a transposed view.
                plain = np.ascontiguousarray(plain + factors[0] @ factors[1], dtype=np.float32)
                self.own_bytes += plain.nbytes
            return _Linear(plain, weights[f"{at}.{name}.bias"])

        inputs = [linear(name) for name in _ATTENTION]
        if all(f"{at}.{name}" in (update or {}) for name in _ATTENTION):
            inputs = [_side_by_side(inputs)]
        return _Layer(
            tuple(inputs),
            linear("attention.output"),
            _norm_weights(weights, f"{at}.attention_norm"),
            linear("intermediate"),
            linear("output"),
            _norm_weights(weights, f"{at}.output_norm"),
        )


def bert_rows(model: Bert, update: Update | None = None) -> BertRows | None:
    """The same reading as a loaded model's, on its own arrays.

    Args:
        model: the encoder; its arrays are viewed and not copied.
        update: see `BertRows`.

    Returns:
        None when the model is not float32 throughout, or the machine gains nothing.

    Raises:
        SLMError: the update does not fit the model.
    """
    import mlx.core as mx
    from mlx.utils import tree_flatten

    from mlx_companion.kernels.fast_math import wanted

    arrays: Any = dict(tree_flatten(model.parameters()))
    if not wanted() or any(array.dtype != mx.float32 for array in arrays.values()):
        return None
    mx.eval(list(arrays.values()))
    views = {name: np.array(array, copy=False) for name, array in arrays.items()}
    config = model.config
    return BertRows(views, config.num_attention_heads, config.layer_norm_eps, update=update)


def _norm_weights(weights: Mapping[str, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray]:
    return weights[f"{name}.weight"], weights[f"{name}.bias"]


def _side_by_side(layers: Sequence[_Linear]) -> _Linear:
    weight = np.ascontiguousarray(np.concatenate([one.weight for one in layers], axis=1))
    return _Linear(weight, np.concatenate([one.bias for one in layers]))


def _thirds(x: np.ndarray, width: int) -> list[np.ndarray]:
    """x itself, or the three parts of what one product gave."""
    return [x[:, first : first + width] for first in range(0, x.shape[1], width)]


def _equally_long(lengths: Sequence[int]) -> Iterator[tuple[slice, int, int]]:
    """Runs of equal lengths: where their tokens lie, how many rows, and of what length."""
    start = first = 0
    for at in range(1, len(lengths) + 1):
        if at == len(lengths) or lengths[at] != lengths[first]:
            end = start + (at - first) * lengths[first]
            yield slice(start, end), at - first, lengths[first]
            start, first = end, at


def _gelu(x: np.ndarray) -> np.ndarray:
    """GELU of x to float32 rounding, by the rational erf of `models.bert`."""
    from mlx_companion.models.bert import _ERF_LIMIT, _ERF_P, _ERF_Q

    y = x * np.float32(np.sqrt(0.5))
    limit = np.float32(_ERF_LIMIT)
    np.clip(y, -limit, limit, out=y)
    z = y * y
    y *= _polynomial(_ERF_P, z)
    y /= _polynomial(_ERF_Q, z)
    y += np.float32(1)
    y *= x
    y *= np.float32(0.5)
    return y


def _polynomial(coefficients: Sequence[float], z: np.ndarray) -> np.ndarray:
    total = z * np.float32(coefficients[0])
    total += np.float32(coefficients[1])
    for coefficient in coefficients[2:]:
        total *= z
        total += np.float32(coefficient)
    return total
