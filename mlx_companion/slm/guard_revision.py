"""A text under revision that remembers where each of its characters came from.

Edits are made in rounds, because one can make the next one necessary; what is reported are spans
of the original::

    revision = Revision("Hi!! *waves*")
    revision.apply([Edit(5, 12, "", "asterisk_action", "removed")])
    revision.changes[0]["span"]          # [5, 12]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlx_companion.slm.guard_edits import Edit


class Revision:
    """A text, its edits so far and the way back to the original.

    Attributes:
        original: the text as given.
        text: as it is now.
        changes: one entry per edit: violation, span [start, end) in the original, before, after
            and how.
    """

    def __init__(self, original: str) -> None:
        self.original = original
        self.text = original
        self.changes: list[dict[str, Any]] = []
        # Of each boundary between characters: where it lies in the original, seen as the start
        # and as the end of a span. They differ where something was taken out or put in.
        self._starts = list(range(len(original) + 1))
        self._ends = list(range(len(original) + 1))

    def apply(self, edits: Sequence[Edit]) -> int:
        """Make edits, those first in the list first; one that overlaps an earlier one is left.

        Returns:
            How many were made.
        """
        chosen = _disjoint([edit for edit in edits if self._alters(edit)])
        pieces, starts, ends = [], list[int](), list[int]()
        last = 0
        for edit in chosen:
            self._record(edit)
            pieces += [self.text[last : edit.start], edit.after]
            starts += self._starts[last : edit.start]
            ends += self._ends[last : edit.start]
            starts += [self._starts[edit.start]] * len(edit.after)
            if edit.after:
                ends += [self._ends[edit.start], *[self._ends[edit.end]] * (len(edit.after) - 1)]
            last = edit.end
        self._starts = starts + self._starts[last:]
        self._ends = ends + self._ends[last:]
        self.text = "".join([*pieces, self.text[last:]])
        return len(chosen)

    def replace_all(self, text: str, violation: str) -> None:
        """Put `text` in place of everything."""
        self.apply([Edit(0, len(self.text), text, violation, "replaced")])

    def origin(self, start: int, end: int) -> tuple[int, int]:
        """The span in the original that [start, end) of the text came from."""
        first = self._starts[start]
        return first, max(first, self._ends[end])

    def _alters(self, edit: Edit) -> bool:
        return self.text[edit.start : edit.end] != edit.after

    def _record(self, edit: Edit) -> None:
        start, end = self.origin(edit.start, edit.end)
        self.changes.append(
            {
                "violation": edit.violation,
                "span": [start, end],
                "before": self.text[edit.start : edit.end],
                "after": edit.after,
                "how": edit.how,
            }
        )


def _disjoint(edits: Sequence[Edit]) -> list[Edit]:
    taken = bytearray(max((edit.end for edit in edits), default=0) + 1)
    chosen = []
    for edit in edits:
        if taken.find(1, edit.start, max(edit.end, edit.start + 1)) < 0:
            taken[edit.start : max(edit.end, edit.start + 1)] = b"\x01" * max(
                edit.end - edit.start, 1
            )
            chosen.append(edit)
    return sorted(chosen, key=lambda edit: edit.start)
