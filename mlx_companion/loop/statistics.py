"""The statistics on which a deployment stands: paired tests, margins, alpha spending, power.

Deploying whenever the new score is higher is a coin toss: with no true change it deploys
about 46 % of the time at 100 items. So: an exact paired test for "better", a bootstrap
clustered by topic for "not worse than a margin", an error budget that shrinks each time
the same gate set is used, and the effect that the set can detect, stated beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

__all__ = [
    "alpha_for_use",
    "clustered_lower_bound",
    "detectable_effect",
    "mcnemar_greater",
]


def mcnemar_greater(before: Sequence[bool], after: Sequence[bool]) -> float:
    """Exact one-sided McNemar test that `after` is good more often than `before`.

    Args:
        before, after: whether each paired item (N) was good.

    Returns:
        The p-value: under "no change", each discordant pair falls either way with
        probability 1/2, so the gains are binomial. 1.0 when nothing changed.

    Reference: McNemar (1947), exact form.
    """
    if len(before) != len(after):
        raise ValueError(f"paired test needs equal lengths, got {len(before)} and {len(after)}")
    pairs = list(zip(before, after, strict=True))
    gains = sum(new and not old for old, new in pairs)
    losses = sum(old and not new for old, new in pairs)
    if gains + losses == 0:
        return 1.0
    return float(stats.binomtest(gains, gains + losses, 0.5, alternative="greater").pvalue)


def clustered_lower_bound(
    differences: npt.ArrayLike,
    clusters: Sequence[str],
    *,
    alpha: float = 0.05,
    resamples: int = 2000,
    seed: int = 0,
) -> float:
    """One-sided lower confidence bound of the mean difference, resampling whole clusters.

    Items of one topic stand or fall together, so topics are drawn, not items.

    Args:
        differences: after minus before for each item (N).
        clusters: the topic of each item (N).
        alpha: the chance that the true mean lies below the bound.

    Returns:
        The `alpha` quantile of the resampled means.
    """
    values = np.asarray(differences, dtype=np.float64)
    # One topic says nothing of how topics differ; then items are drawn after all.
    names = np.asarray(clusters if len(set(clusters)) > 1 else range(len(values)))
    groups = [values[names == name] for name in dict.fromkeys(names.tolist())]
    sums = np.array([group.sum() for group in groups])
    sizes = np.array([len(group) for group in groups])
    picks = np.random.default_rng(seed).integers(0, len(groups), (resamples, len(groups)))
    means = sums[picks].sum(axis=1) / sizes[picks].sum(axis=1)
    return float(np.quantile(means, alpha))


def alpha_for_use(total: float, use: int) -> float:
    """The error budget of the `use`-th (1, 2, ...) decision on one gate set.

    The budgets total x 6 / (pi^2 use^2) of all uses sum to `total`, so however many rounds
    are judged on one set, the chance of any false deployment stays below `total`.
    """
    if use < 1:
        raise ValueError(f"uses are counted from 1, got {use}")
    return total * 6.0 / (math.pi**2 * use**2)


def detectable_effect(
    items: int, *, discordant: float = 0.4, alpha: float = 0.05, power: float = 0.8
) -> float:
    """The smallest gain in the share of good replies that the gate finds with `power`.

    Args:
        items: number of paired items.
        discordant: expected share of pairs that change in either direction.
        alpha: one-sided error of the test.
        power: the chance to find the effect.

    Returns:
        A share in (0, 1]; 1.0 when even the largest possible effect would be missed.

    Reference: exact power of McNemar's test, summed over the number of discordant pairs.
    """
    changed = np.arange(items + 1)
    # The fewest gains among so many changed pairs that the test calls significant.
    least = stats.binom.isf(alpha, changed, 0.5) + 1

    def surplus(effect: float) -> float:
        share = max(discordant, effect)
        found = stats.binom.sf(least - 1, changed, (share + effect) / (2 * share))
        return float(found @ stats.binom.pmf(changed, items, share)) - power

    if surplus(1.0) < 0:
        return 1.0
    return float(optimize.brentq(surplus, 0.0, 1.0))
