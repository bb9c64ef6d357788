"""Several experts' logits as one probability: a weighted sum, fitted where none of them had looked.

Experts that were trained on the same rows are each too sure of them. Their logits of rows that
they had not seen say how much each is worth beside the others, and how sure the sum may be::

    blend = fit_blend({"ngrams": a, "network": b}, labels)      # held-out logits, (N,) each
    blend({"ngrams": ..., "network": ...})                      # probabilities (N,)
    Blend.from_settings(blend.to_settings())

Source: Wolpert, "Stacked Generalization", 1992.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mlx_companion.errors import SLMError
from mlx_companion.slm.linear import fit_logistic, sigmoid

_PENALTY = 1e-6
_SMALLEST_SPREAD = 1e-6


@dataclass(frozen=True)
class Blend:
    """`sigmoid(sum of weight * logit + offset)`.

    Attributes:
        weights: of each expert's logits, by its name.
        offset: float.
    """

    weights: Mapping[str, float]
    offset: float

    def __call__(self, logits: Mapping[str, np.ndarray]) -> np.ndarray:
        """Probabilities (N,) of logits (N,); those of experts without a weight are not read.

        Raises:
            SLMError: an expert's logits are missing.
        """
        missing = [name for name in self.weights if name not in logits]
        if missing:
            raise SLMError(f"no logits of {', '.join(missing)}; expected {', '.join(self.weights)}")
        total = sum(weight * logits[name] for name, weight in self.weights.items())
        return sigmoid(np.asarray(total) + self.offset)

    def lowered(self, by: float) -> Blend:
        """The same with log odds lower by so much."""
        return replace(self, offset=self.offset - by)

    def to_settings(self) -> dict[str, Any]:
        """As JSON."""
        return {"weights": dict(self.weights), "offset": self.offset}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Blend:
        """What `to_settings` gave.

        Raises:
            SLMError: it is something else.
        """
        try:
            weights = {str(name): float(one) for name, one in settings["weights"].items()}
            return cls(weights, float(settings["offset"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SLMError(
                f"the pack's settings hold no weights of experts ({error}); restore it, or train it"
            ) from error


def fit_blend(
    logits: Mapping[str, np.ndarray], labels: np.ndarray, row_weights: np.ndarray | None = None
) -> Blend:
    """Fit the weights by logistic regression.

    Args:
        logits: (N,) of each expert, of rows that it had not seen.
        labels: (N,) 0 or 1, both of them.
        row_weights: (N,) how much each row counts; all the same unless told.
    """
    stacked = np.stack(list(logits.values()), axis=1)
    spread = np.maximum(stacked.std(axis=0), _SMALLEST_SPREAD)
    fitted = fit_logistic(
        [stacked / spread], labels, row_weights=row_weights, penalties=_PENALTY, classes=2
    )
    weights = fitted.weights[0][:, 0] / spread
    named = {name: float(weight) for name, weight in zip(logits, weights, strict=True)}
    return Blend(named, float(fitted.bias[0]))
