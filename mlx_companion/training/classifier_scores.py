"""How well a classifier does on labelled texts.

found = score(classifier, read_labelled("val.jsonl"))
found.accuracy, found.recall["oos"], found.confused[0]
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from mlx_companion.models.classifier import Classifier
from mlx_companion.runtime.stop import NEVER, StopSwitch
from mlx_companion.text.labelled_records import Labelled


@dataclass(frozen=True)
class Scores:
    """How well a classifier does on labelled texts.

    Attributes:
        texts: how many.
        accuracy: share that is right.
        recall: by label, the share of its texts that is found.
        precision: by label, the share of what is called so that is so; absent where none is.
        macro_f1: mean over labels of their F1.
        log_loss: mean of -log p of the right label, nats.
        confused: the most frequent errors, (right label, given label, count).
    """

    texts: int
    accuracy: float
    recall: dict[str, float]
    precision: dict[str, float]
    macro_f1: float
    log_loss: float
    confused: list[tuple[str, str, int]]

    def without(self, label: str) -> float:
        """Accuracy over the texts of every other label, from recalls of equal weight."""
        others = [share for name, share in self.recall.items() if name != label]
        return float(np.mean(others)) if others else 0.0


def score(classifier: Classifier, data: Labelled, stop: StopSwitch = NEVER) -> Scores:
    """How well a classifier does on labelled texts; labels that it does not know are wrong."""
    found = classifier.predict(data.texts, switch=stop)
    numbers = {label: at for at, label in enumerate(classifier.config.labels)}
    given = [prediction.label for prediction in found]
    own = [
        float(prediction.probabilities[numbers[label]]) if label in numbers else 0.0
        for prediction, label in zip(found, data.labels, strict=True)
    ]
    pairs = Counter(zip(data.labels, given, strict=True))
    right = {label: pairs[label, label] for label in dict.fromkeys([*data.labels, *given])}
    actual, called = Counter(data.labels), Counter(given)
    recall = {label: right[label] / count for label, count in sorted(actual.items())}
    precision = {label: right[label] / count for label, count in sorted(called.items())}
    f1 = [2 * right[label] / (actual[label] + called[label]) for label in right]
    errors = [(a, b, n) for (a, b), n in pairs.most_common() if a != b]
    return Scores(
        texts=len(given),
        accuracy=sum(right.values()) / len(given),
        recall=recall,
        precision=precision,
        macro_f1=float(np.mean(f1)),
        log_loss=float(-np.log(np.maximum(own, 1e-12)).mean()),
        confused=errors[:10],
    )
