"""A text under revision that remembers where each of its characters came from.

Edits are made in rounds, because one can make the next one necessary; what is reported are changes
of the original: disjoint spans of it, each with what stands there now::

    revision = Revision("Hi!! *waves*")
    revision.apply([Edit(5, 12, "", "asterisk_action", "removed")])
    revision.changes[0]["span"]          # [5, 12]

An edit of what an earlier one wrote, or across it, becomes one change with it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlx_companion.slm.guard_edits import Edit


@dataclass
class _Change:
    """A span of the original that is changed, and the rule that its widest edit is for."""

    start: int
    end: int
    violation: str
    how: str
    width: int


class Revision:
    """A text, its edits so far and the way back to the original.

    Attributes:
        original: the text as given.
        text: as it is now.
    """

    def __init__(self, original: str) -> None:
        self.original = original
        self.text = original
        # Of each boundary between characters: where it lies in the original, seen as the start
        # and as the end of a span. They differ where something was taken out or put in.
        self._starts = list(range(len(original) + 1))
        self._ends = list(range(len(original) + 1))
        # Of each character: whether it is one of the original.
        self._kept = bytearray(b"\x01" * len(original))
        self._changes: list[_Change] = []

    @property
    def changes(self) -> list[dict[str, Any]]:
        """One entry per change, in order: violation, span [start, end) in the original, before,
        after and how. The spans are disjoint and `before` is the original there."""
        entries = []
        written = self._written()
        for one, after in zip(self._changes, written, strict=True):
            before = self.original[one.start : one.end]
            if before != after:
                span = [one.start, one.end]
                entry = {"violation": one.violation, "span": span, "before": before}
                entries.append({**entry, "after": after, "how": one.how})
        return entries

    def apply(self, edits: Sequence[Edit]) -> int:
        """Make edits, those first in the list first; one that overlaps an earlier one is left.

        Returns:
            How many were made.
        """
        chosen = _disjoint([edit for edit in edits if self._alters(edit)])
        pieces, starts, ends = [], list[int](), list[int]()
        kept = bytearray()
        fresh = [self._change(edit) for edit in chosen]
        last = 0
        for edit in chosen:
            pieces += [self.text[last : edit.start], edit.after]
            starts += self._starts[last : edit.start]
            ends += self._ends[last : edit.start]
            kept += self._kept[last : edit.start] + bytes(len(edit.after))
            starts += [self._starts[edit.start]] * len(edit.after)
            if edit.after:
                ends += [self._ends[edit.start], *[self._ends[edit.end]] * (len(edit.after) - 1)]
            last = edit.end
        self._starts = starts + self._starts[last:]
        self._ends = ends + self._ends[last:]
        self._kept = kept + self._kept[last:]
        self.text = "".join([*pieces, self.text[last:]])
        self._unite(fresh)
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

    def _change(self, edit: Edit) -> _Change:
        start, end = self._reach(edit.start, edit.end)
        return _Change(start, end, edit.violation, edit.how, edit.end - edit.start)

    def _reach(self, start: int, end: int) -> tuple[int, int]:
        """The span of the original that an edit of [start, end) touches, all of what was written
        within it included."""
        first, last = self.origin(start, end)
        inside = [at for at in (start, end - 1) if start <= at < end and not self._kept[at]]
        for at in inside:
            spot = bisect_right(self._changes, self._starts[at], key=lambda one: one.start) - 1
            if spot >= 0 and self._changes[spot].end >= self._starts[at]:
                first = min(first, self._changes[spot].start)
                last = max(last, self._changes[spot].end)
        return first, last

    def _unite(self, fresh: list[_Change]) -> None:
        """Put changes in order and those that overlap into one."""
        united: list[_Change] = []
        for one in sorted([*self._changes, *fresh], key=lambda one: (one.start, one.end)):
            before = united[-1] if united else None
            if before is None or not _overlap(before, one):
                united.append(one)
                continue
            wider = one if one.width >= before.width else before
            united[-1] = _Change(
                before.start, max(before.end, one.end), wider.violation, wider.how, wider.width
            )
        self._changes = united

    def _written(self) -> list[str]:
        """What stands in place of each change now."""
        size, written = len(self.text), []
        begins = {one.start for one in self._changes if one.start < one.end}
        for one in self._changes:
            first = bisect_left(self._starts, one.start, hi=size)
            last = bisect_left(self._starts, one.end, lo=first, hi=size)
            # What was put in right behind it belongs to it, unless the next change begins there.
            while last < size and not self._kept[last] and self._starts[last] == one.end:
                if one.end in begins:
                    break
                last += 1
            written.append(self.text[first:last])
        return written


def _overlap(first: _Change, second: _Change) -> bool:
    """Tell whether two changes in order share a character or a beginning, or one has no width."""
    ends = second.start == second.end == first.end
    return second.start < first.end or second.start == first.start or ends


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
