"""What the drift monitor remembers between replies: a baseline, a window, a slow watch.

Memory is bounded: the baseline's texts, the latest `window` replies, and the watch's 512 numbers.
The state is JSON. Scores of heads are in it as they were measured; other heads than those that
measured them compute them anew from the texts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mlx_companion.errors import DataError
from mlx_companion.slm.drift_evidence import Measured
from mlx_companion.slm.drift_metric import StyleMetric
from mlx_companion.slm.drift_sequential import Watch

_MOST_CHARS = 2000
# Attachment fades from one message to the next by this factor.
_FADING = 0.9


@dataclass(frozen=True)
class Observation:
    """One exchange, measured and not yet taken in.

    Attributes:
        reply: what was answered.
        felt: attachment in the person's message, 0 to 1.
    """

    reply: Measured
    felt: float


class DriftStream:
    """A stream of replies.

    Args:
        baseline: replies taken as the baseline.
        window: the latest replies kept.
        session: replies of a session.
    """

    def __init__(self, baseline: int, window: int, session: int) -> None:
        self.sizes = (baseline, window, session)
        self.baseline: list[Measured] = []
        self.recent: deque[Measured] = deque(maxlen=window)
        self.watch = Watch()
        self.alarms = 0
        self.sessions = 0
        self.replies = 0
        self.felt = 0.0
        self.clings = 0.0
        self._center: np.ndarray | None = None

    @property
    def ready(self) -> bool:
        """Whether there is a baseline and a reply to compare with it."""
        return len(self.baseline) == self.sizes[0] and bool(self.recent)

    @property
    def window(self) -> list[Measured]:
        """The replies that the latest session is judged by."""
        return list(self.recent)

    def add(self, reply: Measured, metric: StyleMetric, felt: float) -> bool:
        """Take in a reply; True when a session ends with it."""
        self.felt = max(felt, _FADING * self.felt)
        if len(self.baseline) < self.sizes[0]:
            self.baseline.append(reply)
            return False
        self.replies += 1
        self.clings = max(reply.scores.get("assistant", 0.0), _FADING * self.clings)
        self.recent.append(reply)
        self.watch.add(self._strangeness(reply, metric))
        return self.replies % self.sizes[2] == 0

    def end_session(self, alarm: bool) -> None:
        """Count a session; alarms in a row are counted, and one quiet session ends the row."""
        self.sessions += 1
        self.alarms = self.alarms + 1 if alarm or self.watch.wealth > 1000 else 0

    def summary(self) -> dict[str, Any]:
        """Counts, as JSON values."""
        return {
            "sessions": self.sessions,
            "alarms_in_a_row": self.alarms,
            "replies": self.replies,
            "wealth": min(self.watch.wealth, 1e12),
        }

    def state(self, heads: str = "") -> dict[str, Any]:
        """JSON values from which `from_state` makes the same stream.

        Args:
            heads: which ones measured the scores.
        """
        return {
            "sizes": list(self.sizes),
            "baseline": [shortened(one.text) for one in self.baseline],
            "recent": [shortened(one.text) for one in self.recent],
            "watch": self.watch.state(),
            "counts": [self.alarms, self.sessions, self.replies],
            "feelings": [self.felt, self.clings],
            "scores": {
                "heads": heads,
                "baseline": [dict(one.scores) for one in self.baseline],
                "recent": [dict(one.scores) for one in self.recent],
            },
        }

    @classmethod
    def from_state(
        cls,
        state: Mapping[str, Any],
        measure: Callable[[Sequence[str]], list[Measured]],
        heads: str = "",
    ) -> DriftStream:
        """What `state` gave.

        Args:
            state: JSON values.
            measure: of texts.
            heads: which ones measure here; scores of the same ones are taken as they are.

        Raises:
            DataError: it is no such state.
        """
        try:
            stream = cls(*(int(x) for x in state["sizes"]))
            for name, kept in (("baseline", stream.baseline), ("recent", stream.recent)):
                measured = measure([str(x) for x in state[name]])
                kept.extend(_scored(measured, state.get("scores") or {}, name, heads))
            stream.watch = Watch.from_state(state["watch"])
            stream.alarms, stream.sessions, stream.replies = (int(x) for x in state["counts"])
            stream.felt, stream.clings = (float(x) for x in state["feelings"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"this is no state of a drift monitor ({error})") from error
        return stream

    def _strangeness(self, reply: Measured, metric: StyleMetric) -> float:
        if self._center is None:
            places = metric.project(np.stack([one.style for one in self.baseline]))
            self._center = places.mean(axis=0)
            if not self.watch.state()["seen"]:
                self.watch = Watch(_left_out(places))
        place = metric.project(reply.style[None])[0]
        return float(np.linalg.norm(place - self._center))


def shortened(text: str) -> str:
    """A reply as a state holds it."""
    return text[:_MOST_CHARS]


def _scored(
    measured: list[Measured], scores: Mapping[str, Any], name: str, heads: str
) -> Iterable[Measured]:
    if scores.get("heads") != heads:
        return measured
    return [
        replace(one, scores={str(head): float(value) for head, value in given.items()})
        for one, given in zip(measured, scores[name], strict=True)
    ]


def _left_out(places: np.ndarray) -> list[float]:
    """Distance of each row from the mean of the others, which a new row is compared with."""
    count = len(places)
    means = (places.sum(axis=0) - places) / (count - 1)
    return [float(x) for x in np.linalg.norm(places - means, axis=1)]
