"""How well texts were labelled when some of them belong to no label at all, by whatever method.

    found = scope_scores(right, given, outside="oos")
    found.in_scope_accuracy, found.outside_recall, found.outside_precision

Intent data has a class for what the assistant is not for (out of scope). Mixed into one accuracy it
hides what matters: how often a known intent is recognised, how much of the rest is caught, and how
often a known intent is sent away. `match_label` turns a written reply into a label.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mlx_companion.errors import ConfigError

# How alike a reply and a label must be where they are not equal, 0-1.
_ALIKE = 0.9


@dataclass(frozen=True)
class ScopeScores:
    """How well texts were labelled.

    Attributes:
        texts: how many.
        accuracy: share of all that is right.
        in_scope_accuracy: share of the texts that have a label which is right; None without any.
        outside_recall: share of the texts outside that are found; None without any.
        outside_precision: share of what was called outside that is; None when nothing was.
        unmatched: replies that are no label (by generation); they count as wrong.
        confused: the most frequent errors, (right label, given label or None, count).
    """

    texts: int
    accuracy: float
    in_scope_accuracy: float | None
    outside_recall: float | None
    outside_precision: float | None
    unmatched: int
    confused: tuple[tuple[str, str | None, int], ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"accuracy               {self.accuracy:.2%} of {self.texts:,} texts",
            f"in scope               {_percent(self.in_scope_accuracy)} right",
            f"out of scope           {_percent(self.outside_recall)} found (recall), "
            f"{_percent(self.outside_precision)} of those called so (precision)",
        ]
        if self.unmatched:
            lines.append(f"no label               {self.unmatched:,} replies")
        lines += [
            f"  {count:4,} x {right} taken for {given or 'nothing'}"
            for right, given, count in self.confused
        ]
        return "\n".join(lines)


def scope_scores(
    right: Sequence[str], given: Sequence[str | None], *, outside: str = "oos", most: int = 10
) -> ScopeScores:
    """Compare labels.

    Args:
        right: the true labels.
        given: the labels found; None where there is none.
        outside: the label of texts out of scope.
        most: errors listed at most.

    Raises:
        ConfigError: no labels, or not as many of one as of the other.
    """
    if not right or len(right) != len(given):
        raise ConfigError(f"{len(right)} right labels and {len(given)} found; expected as many")
    pairs = list(zip(right, given, strict=True))
    inside = [found == label for label, found in pairs if label != outside]
    caught = [found == outside for label, found in pairs if label == outside]
    called = [label == outside for label, found in pairs if found == outside]
    errors = Counter(pair for pair in pairs if pair[0] != pair[1])
    order = sorted(errors.items(), key=lambda item: (-item[1], str(item[0])))
    return ScopeScores(
        texts=len(pairs),
        accuracy=sum(label == found for label, found in pairs) / len(pairs),
        in_scope_accuracy=_share(inside),
        outside_recall=_share(caught),
        outside_precision=_share(called),
        unmatched=sum(found is None for found in given),
        confused=tuple((label, found, count) for (label, found), count in order[:most]),
    )


def match_label(reply: str, labels: Sequence[str]) -> str | None:
    """The label that a reply names; None when it names none.

    The first line counts. Case, underscores, and marks around it do not; what is then no label may
    still be very like one (a letter wrong), or hold exactly one.

    Args:
        reply: what a model wrote.
        labels: what it may be.
    """
    plain = {_plain(label): label for label in labels}
    lines = reply.strip().splitlines()
    written = _plain(lines[0]) if lines else ""
    if written in plain:
        return plain[written]
    close = difflib.get_close_matches(written, plain, n=1, cutoff=_ALIKE)
    if close:
        return plain[close[0]]
    held = [name for name in plain if f" {name} " in f" {written} "]
    # "card declined" holds "declined" as well: of labels in one another the longest is meant.
    held = [name for name in held if not any(name in other != name for other in held)]
    return plain[held[0]] if len(held) == 1 else None


def _plain(text: str) -> str:
    return re.sub(r"[\W_]+", " ", text.casefold()).strip()


def _share(hits: Sequence[bool]) -> float | None:
    return sum(hits) / len(hits) if hits else None


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"
