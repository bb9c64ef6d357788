"""Shifts of tone: more formal or casual, warmer or colder than before.

A single short message says little, so each counts by its number of words, the last few turns are
compared with all before them, and a shift has to be of some size::

    tone_shift(["hey whats up", "lol ok", "I would like to file a complaint."], [0.1, 0.1, 0.9])
    # {"kind": "more_formal", "size": 0.8, "from": 0.1, "to": 0.9}

`ToneState` does the same over a running conversation, with a decaying mean.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Smallest shift that is told, by axis; both run from 0 to 1.
_LEAST = {"formality": 0.3, "warmth": 0.2}
_NAMES = {"formality": ("more_casual", "more_formal"), "warmth": ("colder", "warmer")}
_ENOUGH_WORDS = 8
_DECAY = 0.7
_WARM = re.compile(
    r"\b(?:thanks?|thank you|thx|ty|love|lovely|dear|glad|happy|great|wonderful|appreciate\w*|"
    r"sweet|kind|hugs?|xo+|miss(?: you)?|friend|please|welcome|enjoy\w*|haha\w*|lol|best|care|hope|"
    r"proud|cheers|awesome|nice|good)\b|<3|[:;]-?[)D]|[❤💕😊😍🥰🙏🤗😀😂💖]",
    re.IGNORECASE,
)
_COLD = re.compile(
    r"\b(?:whatever|fine|stop|hate|annoy\w*|useless|wrong|stupid|never mind|enough|don['’]?t care|"
    r"shut up|angry|mad|terrible|awful|worst|pointless|waste|disappoint\w*|unacceptable|complaint|"
    r"ridiculous|leave me|not (?:happy|interested)|forget it|idiot|bad|"
    r"sick of|tired of)\b|>:\(|:\(",
    re.IGNORECASE,
)


def warmth(text: str) -> float:
    """How warm a message sounds, 0 to 1; 0.5 without any sign."""
    warm, cold = len(_WARM.findall(text)), len(_COLD.findall(text))
    curt = 0.3 * (len(text.split()) <= 2 and text.rstrip().endswith("."))
    return 0.5 + 0.5 * math.tanh(0.6 * (warm - cold - curt))


def tone_shift(turns: Sequence[str], levels: Sequence[float]) -> dict[str, Any]:
    """The largest shift of the last turns against those before; empty without one.

    Args:
        turns: what one person said, oldest first.
        levels: formality of each.

    Returns:
        `kind` ("more_formal", "more_casual", "warmer", "colder"), `size`, `from`, `to`.
    """
    if len(turns) < 2:
        return {}
    last = 1 if len(turns) < 5 else 2
    weights = [_weight(len(text.split())) for text in turns]
    values = {"formality": list(levels), "warmth": [warmth(text) for text in turns]}
    shifts = [
        _shift(axis, _mean(v[:-last], weights[:-last]), _mean(v[-last:], weights[-last:]))
        for axis, v in values.items()
    ]
    return _largest(shifts)


@dataclass
class ToneState:
    """Running means of one conversation.

    Attributes:
        formality, warmth: decaying means so far.
        words: the weight behind them; 0 before the first message.
    """

    formality: float = 0.5
    warmth: float = 0.5
    words: float = 0.0

    def add(self, formality: float, warm: float, words: int) -> dict[str, Any]:
        """Take one message in; the shift that it is, empty without one."""
        weight = _weight(words)
        shifts = [
            _shift("formality", self.formality, formality),
            _shift("warmth", self.warmth, warm),
        ]
        told = _largest(shifts) if self.words >= 1.0 and weight >= 0.5 else {}
        kept = _DECAY * self.words
        self.formality = (kept * self.formality + weight * formality) / max(kept + weight, 1e-9)
        self.warmth = (kept * self.warmth + weight * warm) / max(kept + weight, 1e-9)
        self.words = kept + weight
        return told


def _weight(words: int) -> float:
    return min(words, _ENOUGH_WORDS) / _ENOUGH_WORDS


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    total = sum(weights)
    pairs = zip(values, weights, strict=True)
    return sum(v * w for v, w in pairs) / total if total else 0.5


def _shift(axis: str, before: float, after: float) -> tuple[float, dict[str, Any]]:
    size = abs(after - before)
    kind = _NAMES[axis][int(after > before)]
    told = {"kind": kind, "size": round(size, 4), "from": round(before, 4), "to": round(after, 4)}
    return size / _LEAST[axis], told


def _largest(shifts: Sequence[tuple[float, dict[str, Any]]]) -> dict[str, Any]:
    share, told = max(shifts, key=lambda item: item[0])
    return told if share >= 1 else {}
