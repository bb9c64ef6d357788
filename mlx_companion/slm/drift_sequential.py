"""A slow watch over single replies: bets against "nothing has changed", valid at any time.

Each reply has a strangeness (its distance from the baseline's centre). Its rank among all earlier
ones is a p value that is uniform while nothing changes, whatever the distribution. The watch bets
on small ranks; its wealth is a martingale then, and by Ville's inequality exceeds 1/a at any time
at all with probability a or less. Wealth above 1,000 is an alarm at level 0.001::

    watch = Watch(strangeness_of_baseline)
    watch.add(2.7); watch.wealth
    Watch.from_state(watch.state())

Wealth never falls below 1/2 of what it started with: half of it is kept out of the bets, so that
a long quiet time does not ruin the watch. Topic shifts weaken the assumption; the level is low
for that reason.

Source: Vovk, Nouretdinov and Gammerman, "Testing Exchangeability On-Line", 2003.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

_MOST = 512
# Powers that are bet with, in equal shares: a p value of p pays e * p^(e - 1).
_BETS = (0.2, 0.4, 0.6, 0.8)


class Watch:
    """Conformal test martingale with bounded memory.

    Args:
        baseline: strangeness of the baseline's replies.
    """

    def __init__(self, baseline: Iterable[float] = ()) -> None:
        self._order: deque[float] = deque(baseline, maxlen=_MOST)
        self._sorted = sorted(self._order)
        self._logs = [0.0] * len(_BETS)

    @property
    def wealth(self) -> float:
        """What a stake of 1 has become."""
        top = max(self._logs)
        mean = math.exp(min(top, 600.0)) * sum(math.exp(x - top) for x in self._logs) / len(_BETS)
        return 0.5 + 0.5 * mean

    def add(self, strangeness: float) -> float:
        """Take in one reply's strangeness; returns its conformal p value."""
        above = len(self._sorted) - bisect_right(self._sorted, strangeness)
        ties = bisect_right(self._sorted, strangeness) - bisect_left(self._sorted, strangeness)
        # Ties count half where a fair coin would decide: the watch stays repeatable.
        p_value = (above + 0.5 * (ties + 1)) / (len(self._sorted) + 1)
        for at, power in enumerate(_BETS):
            self._logs[at] += math.log(power) + (power - 1) * math.log(p_value)
        if len(self._order) == _MOST:
            del self._sorted[bisect_left(self._sorted, self._order[0])]
        self._order.append(strangeness)
        insort(self._sorted, strangeness)
        return p_value

    def state(self) -> dict[str, Any]:
        """JSON values from which `from_state` makes the same watch."""
        return {"seen": list(self._order), "logs": list(self._logs)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Watch:
        """What `state` gave."""
        watch = cls(float(x) for x in state["seen"])
        watch._logs = [float(x) for x in state["logs"]]
        return watch
