"""Do two samples of replies come from one voice? Permutation tests in a space of style.

Two statistics are computed over the same random relabellings of the rows. The squared distance
between the means sees a voice that moved; the energy distance also sees one whose spread changed.
Under the hypothesis that the rows are exchangeable each p value is exact at any sample size: it is
the share of relabellings, the true labelling among them, that are at least as extreme::

    found = permutation_test(baseline, current, seed=0)
    found.p_mean, found.p_energy, found.effect

Replies about other things are not exchangeable even in one voice, so these p values alone are too
small when the topic moves. The monitor therefore judges `z_mean`, `z_energy` and `effect` against
what topic shifts of the same voice gave in training (`drift_metric`).

Sources: Székely and Rizzo, "Testing for Equal Distributions in High Dimension", 2004; Phipson and
Smyth, "Permutation P-values Should Never Be Zero", 2010; Holm, 1979.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlx_companion.errors import SLMError


@dataclass(frozen=True)
class TwoSample:
    """What a test of two samples found.

    Attributes:
        p_mean, p_energy: permutation p values of the two statistics.
        z_mean, z_energy: the statistics in deviations of their permutation distribution.
        effect: squared distance between the means, less what noise alone gives.
        energy: energy distance.
        p_columns: (F,) permutation p values of each column's difference, two-sided.
        effects: (F,) difference of the means of each column, current minus baseline.
    """

    p_mean: float
    p_energy: float
    z_mean: float
    z_energy: float
    effect: float
    energy: float
    p_columns: np.ndarray
    effects: np.ndarray


def permutation_test(
    first: np.ndarray,
    second: np.ndarray,
    *,
    columns: tuple[np.ndarray, np.ndarray] | None = None,
    permutations: int = 499,
    seed: int = 0,
) -> TwoSample:
    """Compare two samples of rows.

    Args:
        first: (N, K) baseline.
        second: (M, K) current.
        columns: (N, F) and (M, F) further measures of the same rows, tested one by one.
        permutations: random relabellings.
        seed: of the relabellings.

    Raises:
        SLMError: fewer than two rows in a sample, or rows of different widths.
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise SLMError(f"samples have shapes {first.shape} and {second.shape}; widths must agree")
    n, m = len(first), len(second)
    if min(n, m) < 2:
        raise SLMError(f"samples have {n} and {m} rows; a test needs two or more in each")
    rows = np.concatenate([first, second]).astype(np.float64)
    labels = _labels(n, m, permutations, seed)
    means = _mean_distance(rows, labels, n, m)
    energies = _energy(rows, labels, n, m)
    extra = first[:, :0], second[:, :0]
    p_columns, effects = _columns(np.concatenate(columns or extra), labels, n, m)
    return TwoSample(
        _p_value(means),
        _p_value(energies),
        _z(means),
        _z(energies),
        float(means[0] - means[1:].mean()),
        float(energies[0]),
        p_columns,
        effects,
    )


def energy_distance(first: np.ndarray, second: np.ndarray) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| over all pairs, with Euclidean distances."""
    rows = np.concatenate([first, second]).astype(np.float64)
    labels = np.zeros((1, len(rows)))
    labels[0, : len(first)] = 1
    return float(_energy(rows, labels, len(first), len(second))[0])


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's adjusted p values (F,): each may be compared with one level for all."""
    order = np.argsort(p_values)
    count = len(p_values)
    adjusted = np.minimum(np.maximum.accumulate(p_values[order] * (count - np.arange(count))), 1)
    result = np.empty(count)
    result[order] = adjusted
    return result


def _labels(n: int, m: int, permutations: int, seed: int) -> np.ndarray:
    """(1 + permutations, n + m) of 1 for the first sample; the first row is the true one."""
    rng = np.random.default_rng(seed)
    ranks = rng.random((permutations + 1, n + m)).argsort(axis=1)
    labels = (ranks < n).astype(np.float64)
    labels[0] = np.arange(n + m) < n
    return labels


def _mean_distance(rows: np.ndarray, labels: np.ndarray, n: int, m: int) -> np.ndarray:
    ours = labels @ rows
    difference = ours / n - (rows.sum(axis=0) - ours) / m
    return np.asarray((difference * difference).sum(axis=1))


def _energy(rows: np.ndarray, labels: np.ndarray, n: int, m: int) -> np.ndarray:
    squares = (rows * rows).sum(axis=1)
    distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * rows @ rows.T, 0))
    np.fill_diagonal(distances, 0)
    towards = labels @ distances
    first = (towards * labels).sum(axis=1)
    cross = towards.sum(axis=1) - first
    second = distances.sum() - first - 2 * cross
    return np.asarray(2 * cross / (n * m) - first / n**2 - second / m**2)


def _columns(
    values: np.ndarray, labels: np.ndarray, n: int, m: int
) -> tuple[np.ndarray, np.ndarray]:
    ours = labels @ values
    difference = (values.sum(axis=0) - ours) / m - ours / n
    size = np.abs(difference)
    # Rounding must not make equal values unequal.
    p_values = (size >= size[0] * (1 - 1e-9) - 1e-12).mean(axis=0)
    return p_values, difference[0]


def _p_value(statistics: np.ndarray) -> float:
    return float((statistics >= statistics[0] * (1 - 1e-9) - 1e-12).mean())


def _z(statistics: np.ndarray) -> float:
    others = statistics[1:]
    return float((statistics[0] - others.mean()) / max(float(others.std()), 1e-9))
