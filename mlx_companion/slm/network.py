"""A small network over dense features: one hidden layer, several trainings in one.

Where a linear head weighs each column alone, need for research lies in how they go together (an
office, and a year long past). Networks that start differently err differently, and the mean of
their logits is one wider network, so the ensemble costs one product::

    network = fit_network(rows, labels, row_weights=weights)     # rows (N, F)
    network.logits(rows)                                         # (N,)
    Network.from_arrays(network.to_arrays("net"), "net")

Sources: Srivastava et al., "Dropout", 2014; Loshchilov and Hutter, "Decoupled Weight Decay
Regularization", 2019 (AdamW); Hansen and Salamon, "Neural Network Ensembles", 1990.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from mlx_companion.errors import ConfigError, SLMError
from mlx_companion.runtime.seeds import derive_seed
from mlx_companion.runtime.stop import NEVER, StopSwitch
from mlx_companion.slm.linear import sigmoid

# Features are brought to mean 0 and deviation 1, and what is further out than this is cut.
_FURTHEST = 5.0
_SMALLEST_DEVIATION = 1e-3
_BETAS, _EPSILON = (0.9, 0.999), 1e-8


@dataclass(frozen=True)
class NetworkConfig:
    """How a network is trained.

    Args:
        members: trainings from different starts.
        hidden: width of each.
        epochs: passes over the rows.
        rate: learning rate of AdamW; it falls to 0.
        decay: of the weights.
        input_dropout, dropout: shares of features and of hidden units left out in a step.
        smoothing: labels are drawn by half of this towards each other.
        batch: rows of a step.
        seed: of starts, order and what is left out.

    Raises:
        ConfigError: a size below 1, or a share outside of [0, 1).
    """

    members: int = 2
    hidden: int = 256
    epochs: int = 30
    rate: float = 1e-3
    decay: float = 0.05
    input_dropout: float = 0.2
    dropout: float = 0.4
    smoothing: float = 0.05
    batch: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        sizes = (self.members, self.hidden, self.epochs, self.batch)
        shares = (self.input_dropout, self.dropout, self.smoothing)
        if min(sizes) < 1 or min(shares) < 0 or max(shares) >= 1:
            raise ConfigError(
                f"members, hidden, epochs and batch are {sizes}, expected 1 or more; dropouts and "
                f"smoothing are {shares}, expected 0 up to less than 1"
            )


@dataclass(frozen=True)
class Network:
    """`logits = relu(x @ into + shift) @ out + bias`, x the features brought to one scale.

    Attributes:
        mean, deviation: (F,) float32.
        into: (F, members x hidden) float32.
        shift, out: (members x hidden,) float32.
        bias: (1,) float32.
    """

    mean: np.ndarray
    deviation: np.ndarray
    into: np.ndarray
    shift: np.ndarray
    out: np.ndarray
    bias: np.ndarray

    def logits(self, rows: np.ndarray) -> np.ndarray:
        """Logits (N,) float32 of features (N, F).

        Raises:
            SLMError: another number of features.
        """
        if rows.shape[1] != len(self.mean):
            raise SLMError(f"the network reads {len(self.mean)} columns, not {rows.shape[1]}")
        hidden = np.maximum(_scaled(rows, self.mean, self.deviation) @ self.into + self.shift, 0)
        result: np.ndarray = hidden @ self.out + self.bias
        return result

    def to_arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """The network as arrays for a pack, its large one in half precision."""
        arrays = {f"{prefix}.{f.name}": getattr(self, f.name) for f in fields(self)}
        return arrays | {f"{prefix}.into": self.into.astype(np.float16)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], prefix: str) -> Network:
        """What `to_arrays` gave.

        Raises:
            SLMError: there is no such network among the arrays.
        """
        try:
            parts = [arrays[f"{prefix}.{f.name}"].astype(np.float32) for f in fields(cls)]
        except KeyError as error:
            raise SLMError(
                f"the pack has no network '{prefix}'; restore it, or train it"
            ) from error
        network = cls(*parts)
        width = (len(network.mean), len(network.shift))
        if network.into.shape != width or network.out.shape != network.shift.shape:
            raise SLMError(f"the arrays of the network '{prefix}' do not fit each other")
        return network


def fit_network(
    rows: np.ndarray,
    labels: np.ndarray,
    *,
    row_weights: np.ndarray | None = None,
    config: NetworkConfig | None = None,
    stop: StopSwitch = NEVER,
) -> Network:
    """Train a network; the same rows give the same one.

    Minimizes the weighted mean of the logistic losses with AdamW.

    Args:
        rows: features (N, F).
        labels: (N,) 0 or 1.
        row_weights: (N,) how much each row counts; all the same unless told.
        config: see `NetworkConfig`.
        stop: consulted in each epoch.

    Raises:
        Stopped: the switch was thrown.
    """
    config = config or NetworkConfig()
    weights = np.ones(len(rows)) if row_weights is None else np.asarray(row_weights)
    weights = (weights / weights.mean()).astype(np.float32)
    mean = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    deviation = rows.std(axis=0, dtype=np.float64).astype(np.float32) + _SMALLEST_DEVIATION
    scaled = _scaled(rows, mean, deviation)
    targets = labels * (1 - config.smoothing) + config.smoothing / 2
    made = []
    for member in range(config.members):
        seed = derive_seed(config.seed, "network", member)
        rng = np.random.default_rng(seed)
        made.append(_member(scaled, targets.astype(np.float32), weights, config, rng, stop))
    into, shift, out, bias = (np.concatenate(parts, axis=-1) for parts in zip(*made, strict=True))
    return Network(mean, deviation, into, shift, out / config.members, bias.mean(keepdims=True))


def _member(
    rows: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray,
    config: NetworkConfig,
    rng: np.random.Generator,
    stop: StopSwitch,
) -> list[np.ndarray]:
    width = rows.shape[1]
    wide = config.hidden
    starts = ((width, wide), width), ((wide,), width), ((wide,), wide)
    values = [
        rng.uniform(-1, 1, shape).astype(np.float32) / np.float32(np.sqrt(inputs))
        for shape, inputs in starts
    ]
    values.append(np.zeros(1, dtype=np.float32))
    moments = [(np.zeros_like(value), np.zeros_like(value)) for value in values]
    batches = max(1, len(rows) // config.batch)
    steps = batches * config.epochs
    for step in range(steps):
        if step % batches == 0:
            stop.check()
            order = rng.permutation(len(rows))
        at = order[step % batches * config.batch :][: config.batch]
        slopes = _slopes(values, rows[at], targets[at], weights[at], config, rng)
        rate = config.rate * (1 - step / steps)
        _adamw(values, slopes, moments, rate, config.decay, step + 1)
    return values


def _slopes(
    values: list[np.ndarray],
    x: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray,
    config: NetworkConfig,
    rng: np.random.Generator,
) -> list[np.ndarray]:
    """Gradients of the loss of one batch."""
    into, shift, out, bias = values
    x = x * _kept(rng, x.shape, config.input_dropout)
    raw = x @ into + shift
    kept = _kept(rng, raw.shape, config.dropout) * (raw > 0)
    hidden = raw * kept
    error = (sigmoid(hidden @ out + bias) - targets).astype(np.float32) * weights / len(x)
    back = error[:, None] * out * kept
    return [x.T @ back, back.sum(axis=0), error @ hidden, error.sum(keepdims=True)]


def _kept(rng: np.random.Generator, shape: tuple[int, ...], dropout: float) -> np.ndarray:
    # Bytes are drawn four times as fast as floats, and this is half of a step's time.
    lost = round(256 * dropout)
    mask: np.ndarray = rng.integers(0, 256, shape, dtype=np.uint8) >= lost
    return mask * np.float32(256 / (256 - lost))


def _adamw(
    values: list[np.ndarray],
    slopes: list[np.ndarray],
    moments: list[tuple[np.ndarray, np.ndarray]],
    rate: float,
    decay: float,
    step: int,
) -> None:
    """One step, in place."""
    first, second = _BETAS
    scale = rate * np.sqrt(1 - second**step) / (1 - first**step)
    for value, slope, (mean, square) in zip(values, slopes, moments, strict=True):
        mean += (1 - first) * (slope - mean)
        square += (1 - second) * (slope * slope - square)
        value -= rate * decay * value + scale * mean / (np.sqrt(square) + _EPSILON)


def _scaled(rows: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    result: np.ndarray = np.clip((rows - mean) / deviation, -_FURTHEST, _FURTHEST)
    return result.astype(np.float32)
