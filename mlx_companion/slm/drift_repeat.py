"""Does the companion repeat itself more than it used to?

Two signs, each against the baseline's own rate: how much of a reply's wording (runs of three
words) stands in another reply too, and how many replies open with the same words. Copies within
one reply are a loop, which `drift_anomaly` finds::

    found = repetition(baseline, current)
    found.excess, found.examples
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mlx_companion.personality.words import words

_RUN = 3
_OPENER = 4
_ALIKE = 0.5
_MOST_WORDS = 400


@dataclass(frozen=True)
class Repetition:
    """How often a set of replies repeats itself.

    Attributes:
        overlap: mean share of a reply's runs of words found in another reply.
        copies: share of replies that are half or more another one's words.
        openers: share of replies that begin with the most usual opening.
    """

    overlap: float
    copies: float
    openers: float
    examples: tuple[str, ...] = ()


def measure_repetition(replies: Sequence[str]) -> Repetition:
    """How a set of replies repeats itself; all zeros for fewer than two."""
    if len(replies) < 2:
        return Repetition(0.0, 0.0, 0.0)
    tokens = [words(reply)[:_MOST_WORDS] for reply in replies]
    runs = [_runs(one) for one in tokens]
    # In how many replies a run stands: one beyond its own means that it is repeated.
    spread = Counter(run for one in runs for run in one)
    shares = [sum(spread[run] > 1 for run in one) / len(one) if one else 0.0 for one in runs]
    nearest = [_nearest(at, runs) for at in range(len(runs))]
    openers = Counter(tuple(one[:_OPENER]) for one in tokens if len(one) > _OPENER)
    top = openers.most_common(1)
    stock = top[0] if top and top[0][1] > 1 else ((), 0)
    repeated = [reply for reply, near in zip(replies, nearest, strict=True) if near >= _ALIKE]
    repeated += [
        reply
        for reply, one in zip(replies, tokens, strict=True)
        if tuple(one[:_OPENER]) == stock[0]
    ]
    return Repetition(
        sum(shares) / len(shares),
        sum(near >= _ALIKE for near in nearest) / len(nearest),
        stock[1] / len(replies),
        tuple(dict.fromkeys(repeated)),
    )


def repetition_excess(baseline: Repetition, current: Repetition, count: int) -> float:
    """How clearly the current replies repeat themselves more, 0 to 1.

    Args:
        baseline, current: what was measured of each.
        count: current replies; two copies among three are chance, among thirty not.
    """
    trusted = min(1.0, count / 6)
    copies = max(0.0, current.copies - baseline.copies - 0.15) / 0.45
    openers = max(0.0, current.openers - 1.5 * baseline.openers - 0.25) / 0.4
    overlap = max(0.0, current.overlap - baseline.overlap - 0.25) / 0.4
    return trusted * min(1.0, max(copies, openers, overlap))


def _runs(tokens: Sequence[str]) -> frozenset[tuple[str, ...]]:
    size = min(_RUN, max(len(tokens), 1))
    return frozenset(tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1))


def _nearest(at: int, runs: Sequence[frozenset[tuple[str, ...]]]) -> float:
    mine = runs[at]
    if not mine:
        return 0.0
    return max(
        (
            len(mine & other) / min(len(mine), len(other))
            for i, other in enumerate(runs)
            if i != at and len(other) >= 2
        ),
        default=0.0,
    )
