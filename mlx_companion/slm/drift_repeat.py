"""Does the companion repeat itself more than it used to?

Two signs, each against the baseline's own rate: how much of a reply's wording (runs of three
words) stands in another reply too, and how many replies open with the same words. A few stock
answers fall into one half of a history by chance, so what exceeds is also compared with what
random relabellings of the replies give. "Done." twice is no repetition, and copies within one
reply are a loop, which `drift_anomaly` finds::

    before, now = measure_repetition(baseline), measure_repetition(current)
    repetition_excess(before, now, len(current)), repetition_p(baseline, current)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mlx_companion.personality.words import words

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_RUN = 3
_OPENER = 4
_ALIKE = 0.5
_MOST_WORDS = 400
# Shorter replies are alike because there are few ways to say so little.
_FEWEST_WORDS = 5


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
    copied = [
        any(_copy(one, other) for j, other in enumerate(runs) if j != i)
        for i, one in enumerate(runs)
    ]
    openers = Counter(tuple(one[:_OPENER]) for one in tokens if len(one) > _OPENER)
    top = openers.most_common(1)
    stock = top[0] if top and top[0][1] > 1 else ((), 0)
    repeated = [reply for reply, copy in zip(replies, copied, strict=True) if copy]
    repeated += [
        reply
        for reply, one in zip(replies, tokens, strict=True)
        if tuple(one[:_OPENER]) == stock[0]
    ]
    return Repetition(
        sum(shares) / len(shares),
        sum(copied) / len(copied),
        stock[1] / len(replies),
        tuple(dict.fromkeys(repeated)),
    )


def repetition_excess(baseline: Repetition, current: Repetition, count: int) -> float:
    """How clearly the current replies repeat themselves more, 0 to 1.

    Args:
        baseline, current: what was measured of each.
        count: current replies; two copies among three are chance, among thirty not.
    """
    parts = _excess(
        np.array([baseline.copies, baseline.openers, baseline.overlap]),
        np.array([current.copies, current.openers, current.overlap]),
    )
    return min(1.0, count / 6) * min(1.0, float(parts))


def repetition_p(
    baseline: Sequence[str], current: Sequence[str], permutations: int = 199, seed: int = 0
) -> float:
    """How often replies relabelled by chance repeat themselves as much more, 0 to 1.

    Args:
        baseline, current: replies.
        permutations: random relabellings.
        seed: of the relabellings.
    """
    tokens = [words(reply)[:_MOST_WORDS] for reply in (*baseline, *current)]
    runs = [_runs(one) for one in tokens]
    total, n = len(tokens), len(baseline)
    ranks = np.random.default_rng(seed).random((permutations + 1, total)).argsort(axis=1)
    labels = ranks >= n
    labels[0] = np.arange(total) >= n
    copies = np.array([[_copy(a, b) for b in runs] for a in runs]) & ~np.eye(total, dtype=bool)
    openers = _incidence([[tuple(one[:_OPENER])] if len(one) > _OPENER else [] for one in tokens])
    stands = _incidence([sorted(one) for one in runs])
    sizes = np.array([max(len(one), 1) for one in runs])

    def shares(kept: np.ndarray) -> np.ndarray:
        count = kept.sum(axis=1)
        copied = ((kept.astype(np.int32) @ copies) > 0) & kept
        stock = np.asarray(kept.astype(np.int32) @ openers)
        top = stock.max(axis=1, initial=0)
        repeated = (np.asarray(kept.astype(np.int32) @ stands) > 1).astype(np.float64)
        overlap = np.asarray(repeated @ stands.T) / sizes * kept
        stocked = np.where(top > 1, top, 0)
        return np.stack([copied.sum(axis=1), stocked, overlap.sum(axis=1)]) / count

    found = _excess(shares(~labels), shares(labels))
    return float((found >= found[0] - 1e-9).mean())


def _excess(before: np.ndarray, now: np.ndarray) -> np.ndarray:
    """How much more copies, openers and overlap (3, ...) there are; the most of the three."""
    copies = (now[0] - before[0] - 0.15) / 0.45
    openers = (now[1] - 1.5 * before[1] - 0.25) / 0.4
    overlap = (now[2] - before[2] - 0.25) / 0.4
    return np.maximum(0.0, np.maximum(copies, np.maximum(openers, overlap)))


def _incidence(items: Sequence[Sequence[tuple[str, ...]]]) -> csr_matrix:
    """(N, K) of 1 where a reply has an item."""
    from scipy.sparse import csr_matrix

    known: dict[tuple[str, ...], int] = {}
    columns = [known.setdefault(item, len(known)) for one in items for item in one]
    ends = np.cumsum([0, *(len(one) for one in items)])
    data = np.ones(len(columns), dtype=np.int32)
    return csr_matrix((data, columns, ends), shape=(len(items), max(len(known), 1)))


def _runs(tokens: Sequence[str]) -> frozenset[tuple[str, ...]]:
    size = min(_RUN, max(len(tokens), 1))
    return frozenset(tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1))


def _copy(mine: frozenset[tuple[str, ...]], other: frozenset[tuple[str, ...]]) -> bool:
    """Whether half of the words of the shorter one are the other's."""
    if min(len(mine), len(other)) < _FEWEST_WORDS - _RUN + 1:
        return False
    return len(mine & other) >= _ALIKE * min(len(mine), len(other))
