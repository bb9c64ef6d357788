"""What a person states becomes an update; what is denied, quoted or supposed does not."""

from __future__ import annotations

import pytest
from patience import not_hanging

from mlx_companion.slm.tracker_updates import find_updates, undo


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("Call me Max.", "person.name", "Max"),
        ("you can call me Dr. Lee", "person.name", "Dr. Lee"),
        ("my name is sarah", "person.name", "Sarah"),
        ("call me Max btw", "person.name", "Max"),
        ("ok so call me Anna from now on", "person.name", "Anna"),
        ("My name is Maria Silva.", "person.name", "Maria Silva"),
        ("call me dr smith", "person.name", "Dr Smith"),
        ("I prefer short answers", "preference.reply_length", "short"),
        ("please keep your replies brief", "preference.reply_length", "short"),
        ("Could you give me more detail?", "preference.reply_length", "long"),
        ("don't use emojis", "preference.emoji", False),
        ("please stop using emojis!", "preference.emoji", False),
        ("I love emojis", "preference.emoji", True),
        ("use bullet points", "preference.lists", True),
        ("I am vegetarian", "person.diet", "vegetarian"),
        ("I don't eat pork", "person.diet", "no pork"),
        ("I'm severely allergic to peanuts", "person.allergy.peanuts", True),
        ("I live in New York now", "person.home", "New York"),
        ("I'm from Spain", "person.origin", "Spain"),
        ("I work as a night nurse", "person.work", "night nurse"),
        ("stop mentioning my ex", "preference.avoid.ex", "ex"),
        ("please don't ever talk about politics again", "preference.avoid.politics", "politics"),
        ("could you please be more formal?", "preference.tone", "more formal"),
        ("Can you answer in German?", "preference.language", "German"),
        ("My dog's name is Rex", "person.dog", "Rex"),
        ("my birthday is on 5 May", "person.birthday", "5 May"),
    ],
)
def test_statements_become_updates(text, key, value):
    (update,) = find_updates(text)
    assert (update.key, update.value) == (key, value)
    assert text[slice(*update.span)].strip() == update.evidence
    assert 0.5 < update.confidence < 1


@pytest.mark.parametrize(
    "text",
    [
        "don't call me Max", "My name isn't Sarah", "call me later", "call me tomorrow",
        "I'm not vegetarian", "I am no longer vegan", "if I were vegetarian I'd miss ham",
        'He said "I am vegan"', "My sister said call me Max", "she says I live in Oslo",
        "do I live in Oslo?", "I don't live in Oslo", "I used to live in Berlin",
        "imagine I live in Rome", "I wish I lived in Paris", "I don't prefer short answers",
        "write a story where I live in Rome", "> call me Max", "what if I am vegan?",
    ],
)  # fmt: skip
def test_denied_quoted_and_supposed_things_do_not(text):
    assert find_updates(text) == []


def test_the_last_statement_counts_and_knows_what_was_before():
    (update,) = find_updates("Call me Max. No wait. Call me Sam.", {"person.name": "Ann"}, "2026")
    assert (update.value, update.previous, update.event_time) == ("Sam", "Ann", "2026")
    back = undo(update)
    assert (back.key, back.value, back.previous) == ("person.name", "Ann", "Sam")


def test_what_is_known_already_is_no_update():
    assert find_updates("call me Max", {"person.name": "Max"}) == []


def test_a_hedge_lowers_the_confidence():
    sure, unsure = (
        find_updates("I prefer short answers")[0],
        find_updates("I think I prefer short answers")[0],
    )
    assert unsure.confidence < sure.confidence


def test_long_hostile_texts_are_read():
    with not_hanging():
        for piece in ("please ", "i'd like you to ", "'a ", "I live in A ", "call me "):
            assert len(find_updates(piece * 2000)) < 2000
