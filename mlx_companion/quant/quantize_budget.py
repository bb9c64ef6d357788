"""Spending a budget of bits: one option per layer, the least loss in all.

    chosen = spend({"a": [Option(p4, 400, 0.1), Option(p3, 300, 0.4)], ...}, budget=10_000)

This is the knapsack problem with one item from each class. It is solved by dynamic programming
over the budget in whole units, then what rounding to units left over is spent by the best single
exchanges.

Source: Kellerer, Pferschy and Pisinger, "Knapsack Problems", 2004, chapter 11.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mlx_companion.errors import ConfigError
from mlx_companion.quant.levels import Packing

_UNITS = 20_000


@dataclass(frozen=True)
class Option:
    """One way to keep one layer.

    Attributes:
        packing: None for plain 16-bit numbers.
        bits: that the layer takes in all.
        loss: what it is expected to cost, nats per prediction.
    """

    packing: Packing | None
    bits: int
    loss: float


def spend(options: Mapping[str, Sequence[Option]], budget: int) -> dict[str, Option]:
    """Choose one option for each layer so that the bits fit and the losses' sum is smallest.

    Args:
        options: by layer, at least one each.
        budget: bits for all of them.

    Raises:
        ConfigError: not even the smallest options fit.
    """
    kept = {path: useful(own) for path, own in options.items()}
    least = sum(own[0].bits for own in kept.values())
    if least > budget:
        raise ConfigError(
            f"the budget of {budget:,} bits for the layers is too small: the smallest packings "
            f"take {least:,}; ask for more bits per weight"
        )
    chosen = _solve(kept, budget - least)
    return _spend_rest(kept, chosen, budget)


def useful(options: Sequence[Option]) -> list[Option]:
    """Options by size, without those that another one beats in both size and loss."""
    found: list[Option] = []
    for option in sorted(options, key=lambda o: (o.bits, o.loss)):
        if not found or option.loss < found[-1].loss:
            found.append(option)
    return found


def _solve(options: Mapping[str, Sequence[Option]], room: int) -> dict[str, Option]:
    """Dynamic programming over how much of the room is used; sizes are rounded up to units."""
    unit = max(room / _UNITS, 1.0)
    size = int(room / unit) + 1
    best = np.zeros(size)
    taken: list[np.ndarray] = []
    for own in options.values():
        sums = np.full((len(own), size), np.inf)
        for number, option in enumerate(own):
            cost = int(np.ceil((option.bits - own[0].bits) / unit))
            if cost < size:
                sums[number, cost:] = best[: size - cost] + option.loss
        taken.append(sums.argmin(axis=0))
        best = sums.min(axis=0)
    at, chosen = size - 1, {}
    for (path, own), numbers in zip(reversed(list(options.items())), reversed(taken), strict=True):
        option = own[int(numbers[at])]
        at -= int(np.ceil((option.bits - own[0].bits) / unit))
        chosen[path] = option
    return {path: chosen[path] for path in options}


def _spend_rest(
    options: Mapping[str, Sequence[Option]], chosen: dict[str, Option], budget: int
) -> dict[str, Option]:
    """Exchange single options while that lowers the loss and fits."""
    left = budget - sum(option.bits for option in chosen.values())
    while True:
        better = [
            (option.loss - chosen[path].loss, option.bits, path, option)
            for path, own in options.items()
            for option in own
            if option.loss < chosen[path].loss and option.bits - chosen[path].bits <= left
        ]
        if not better:
            return chosen
        _, _, path, option = min(better, key=lambda entry: entry[:3])
        left -= option.bits - chosen[path].bits
        chosen[path] = option
