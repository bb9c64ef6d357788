"""Sentences with choices: how the training texts of the drift monitor's heads are written down.

A line such as `(you are|you're) my only (friend|companion)( now|).` stands for all of its choices,
and `{person}` for any entry of a slot. Hand-written lines with choices give variety of wording
without repeating the file; every variant keeps the number of its line, so that held-out folds are
cut by line and a head is never tested on a variant of what it has seen::

    lines = read_templates("user_attached")
    variants("(hi|hello) {person}", slots, count=3, seed=1)     # ["hello Anna", "hi my dad", ...]

Lines that begin with `#` are headings or remarks; a choice may not hold another choice.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from importlib import resources

from mlx_companion.errors import DataError

_CHOICE = re.compile(r"\(([^()]*)\)")
_SLOT = re.compile(r"\{(\w+)\}")
_FOLDER = "data/drift_training"
_TRIES = 6


def read_templates(name: str) -> list[str]:
    """Lines of a file of sentences that comes with the package, without remarks.

    Raises:
        DataError: there is no such file.
    """
    path = resources.files("mlx_companion.slm") / _FOLDER / f"{name}.txt"
    if not path.is_file():
        raise DataError(f"no sentences named '{name}' come with the package", path=str(path))
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def read_slots() -> dict[str, list[str]]:
    """What may stand in the place of `{name}`: name -> entries."""
    pairs = (line.split("=", 1) for line in read_templates("slots"))
    return {name.strip(): [one.strip() for one in rest.split("|")] for name, rest in pairs}


def variants(
    template: str, slots: Mapping[str, Sequence[str]], *, count: int, seed: int
) -> list[str]:
    """Different readings of a template, chosen by chance.

    Args:
        template: text with choices and slots.
        slots: entries of each slot.
        count: the most to give; a template with fewer readings gives fewer.
        seed: the same seed gives the same readings.

    Raises:
        DataError: a slot that is not known.
    """
    rng = random.Random(f"{seed} {template}")
    found: dict[str, None] = {}
    for _ in range(count * _TRIES):
        found.setdefault(_reading(template, slots, rng))
        if len(found) == count:
            break
    return list(found)


def _reading(template: str, slots: Mapping[str, Sequence[str]], rng: random.Random) -> str:
    text = _CHOICE.sub(lambda match: rng.choice(match[1].split("|")), template)

    def fill(match: re.Match[str]) -> str:
        if match[1] not in slots:
            raise DataError(f"no slot '{match[1]}' in the template {template!r}")
        return rng.choice(slots[match[1]])

    return re.sub(r"\s+([,.!?])", r"\1", " ".join(_SLOT.sub(fill, text).split()))
