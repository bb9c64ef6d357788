"""What the guard says that it changed: disjoint spans of the reply as it was given."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_companion.slm.guard import PersonalityGuard
from mlx_companion.slm.guard_edits import Edit
from mlx_companion.slm.guard_revision import Revision

MODERATE = PersonalityGuard(use_encoder=False)
STRICT = PersonalityGuard(level="strict", use_encoder=False)

_PIECES = st.sampled_from(
    ["*smiles* ", "*gasps* ", "*really* ", "AMAZING ", "WAIT. ", "SO ", "LOVE ", "coffee ",
     "an espresso ", "a latte, ", "or ", "Sam, ", ", Sam", "Hi Sam", "! ", "!! ", "?! ", ". ", ", ",
     "\n", "\n\n", "- ", "> ", "`x != 1!` ", "3.50 ", '"STOP!" ', "(", ") ", "*", "\U0001f389",
     "\U0001f389 ", "Oslo ", "great ", "we ", "is ", "|", "What a brilliant, amazing idea! ",
     "You've got this! ", "Fine. "]
)  # fmt: skip
_REPLIES = st.lists(_PIECES, max_size=30).map("".join)


def _told(text: str, changes: list[dict[str, Any]], result: str) -> None:
    """Every change is told of the original, and they are all that was changed."""
    said, last = "", 0
    for change in changes:
        start, end = change["span"]
        assert last <= start <= end <= len(text)
        assert change["before"] == text[start:end] != change["after"]
        said += text[last:start] + change["after"]
        last = end
    assert said + text[last:] == result


@settings(max_examples=200, deadline=None)
@given(_REPLIES, st.sampled_from(["", "Sam"]), st.sampled_from([MODERATE, STRICT]))
def test_changes_tell_of_the_original(reply: str, name: str, guard: PersonalityGuard) -> None:
    result = guard.process({"text": reply, "user_name": name})
    _told(reply, result.changes_made, result.rewritten_response)


@settings(max_examples=200, deadline=None)
@given(
    st.text("abc ", max_size=20),
    st.lists(
        st.lists(st.tuples(st.integers(0, 20), st.integers(0, 4), st.text("XY", max_size=3))),
        max_size=5,
    ),
)
def test_any_rounds_of_edits(text: str, rounds: list[list[tuple[int, int, str]]]) -> None:
    revision = Revision(text)
    for one in rounds:
        size = len(revision.text)
        edits = [
            Edit(min(start, size), min(start + width, size), after, "x", "replaced")
            for start, width, after in one
        ]
        revision.apply(edits)
    _told(text, revision.changes, revision.text)


@pytest.mark.parametrize("text", ["hi Max, Max, Max", "Max, you. Max, he. Yes, Max, Max."])
def test_names_in_a_row(text: str) -> None:
    result = MODERATE.process({"text": text, "user_name": "Max"})
    _told(text, result.changes_made, result.rewritten_response)
    assert result.rewritten_response.count("Max") == 1
