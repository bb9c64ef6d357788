"""Scores with a class for what is out of scope, against counting by hand; replies to labels."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_companion.errors import ConfigError
from mlx_companion.training.scope_scores import match_label, scope_scores

RIGHT = ["a", "a", "b", "b", "oos", "oos", "oos", "oos"]
GIVEN = ["a", "b", "b", "oos", "oos", "oos", "a", None]


def test_by_hand() -> None:
    found = scope_scores(RIGHT, GIVEN)
    assert found.texts == 8
    assert found.accuracy == 4 / 8
    assert found.in_scope_accuracy == 2 / 4
    assert found.outside_recall == 2 / 4
    assert found.outside_precision == 2 / 3
    assert found.unmatched == 1
    assert found.confused == (
        ("a", "b", 1),
        ("b", "oos", 1),
        ("oos", "a", 1),
        ("oos", None, 1),
    )
    text = str(found)
    assert "50.00% of 8 texts" in text
    assert "66.67% of those called so" in text
    assert "1 x oos taken for nothing" in text


LABELS = st.sampled_from(["a", "b", "c", "oos"])


@given(st.lists(st.tuples(LABELS, st.one_of(LABELS, st.none())), min_size=1))
def test_shares_are_those_of_plain_counting(pairs: list[tuple[str, str | None]]) -> None:
    found = scope_scores([pair[0] for pair in pairs], [pair[1] for pair in pairs], most=99)
    inside = [right == given for right, given in pairs if right != "oos"]
    outside = [given == "oos" for right, given in pairs if right == "oos"]
    called = [right == "oos" for right, given in pairs if given == "oos"]
    for share, hits in (
        (found.in_scope_accuracy, inside),
        (found.outside_recall, outside),
        (found.outside_precision, called),
    ):
        assert share == (sum(hits) / len(hits) if hits else None)
    wrong = sum(count for _, _, count in found.confused)
    assert found.accuracy == pytest.approx(1 - wrong / len(pairs))


def test_the_most_frequent_errors_come_first() -> None:
    found = scope_scores(["x"] * 5 + ["y"], ["y"] * 2 + ["z"] * 3 + ["x"], most=2)
    assert found.confused == (("x", "z", 3), ("x", "y", 2))
    assert found.outside_recall is None
    assert found.outside_precision is None


def test_lists_of_unequal_length() -> None:
    with pytest.raises(ConfigError, match="2 right labels and 1 found"):
        scope_scores(["a", "b"], ["a"])
    with pytest.raises(ConfigError, match="0 right labels"):
        scope_scores([], [])


NAMES = ["card_declined", "declined", "set_timer", "pin_change", "pto_request", "oos"]


@pytest.mark.parametrize(
    ("reply", "label"),
    [
        ("set_timer", "set_timer"),
        (" Set timer.\n", "set_timer"),
        ("`pin_change`", "pin_change"),
        ("pin_chang", "pin_change"),
        ("The intent is: set_timer", "set_timer"),
        ("It is card declined!", "card_declined"),
        ("declined", "declined"),
        ("set_timer\npin_change", "set_timer"),
        ("set_timer or pin_change", None),
        ("a table", None),
        ("", None),
        ("\n\n", None),
        ("oos", "oos"),
        ("foos", None),
    ],
)
def test_a_reply_names_a_label(reply: str, label: str | None) -> None:
    assert match_label(reply, NAMES) == label
