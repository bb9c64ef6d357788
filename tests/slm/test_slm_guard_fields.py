"""Fields that write in capitals, other senses of coffee, and actions that interrupt a sentence."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_companion.errors import SLMError
from mlx_companion.slm.guard import PersonalityGuard
from mlx_companion.slm.guard_spheres import in_sphere
from mlx_companion.slm.guard_text import Draft, GuardRules
from mlx_companion.slm.packs import load_pack, packaged

GUARD = PersonalityGuard(level="monitor")
RULES = GuardRules(load_pack(packaged("personality_guard")).rules)


def _spans(text: str, rule: str) -> list[str]:
    found = GUARD.process(text).spans
    return [span["text"] for span in found if span["violation"] == rule]


NAMED = """
Brown goes to COM, black to NO.
If EN is pulled LOW the regulator shuts down; VIN keeps it HIGH.
IN goes to the battery, OUT to the load.
NO is nitric oxide, and CO is carbon monoxide.
Put the WHERE clause before GROUP BY. ORDER BY comes last.
SELECT * is fine while you explore.
EXPLAIN shows the plan.
Excel's LEFT and RIGHT cut strings.
With a shift of three, HELLO becomes KHOOR.
LISTEN and SILENT are anagrams.
Say it pho-TO-gra-pher, with the stress on the second syllable.
The Big Five, or OCEAN, has held up better.
The poster has KEEP CALM in white letters.
He had LOVE tattooed on one hand and HATE on the other.
Stencil FRAGILE on the crate.
Fill in SURNAME and GIVEN NAMES.
Click SAVE, wait, then APPLY TO ALL.
Reply with YES or NO.
The switch is marked ON, OFF and AUTO. You want AUTO.
The GEAR UNSAFE caption stays lit.
The CHECK ENGINE light comes on.
The log shows TIMEOUT after each RETRY.
In RFC language MUST is absolute and SHOULD is not.
Sold AS IS.
She lives in Portland, OR, not Portland, ME.
Do NOT pour water onto the acid.
You must NOT eat the seeds; they are poisonous.
In the menu, go to Settings > PRIVACY.
The headline was BRIDGE CLOSED.
"""
SHOUTED = """
Go to |BED|.
Finally, a build that |WORKS|!
The query took |HOURS|.
My code |COMPILED| on the first try.
You do |NOT| owe anybody a reply.
|NEVER| sign a lease that you have not read.
Check the return value |BEFORE| you use it.
Do |NOT| apologise to him.
That's a |LOT| of soup.
|WHO| does that?
I type |FAST|.
Well |DONE|.
The state of that kitchen is |APPALLING|.
He |LEFT| his keys on the keyboard.
Nothing else |IS| open.
The file is in PDF, |NOT| in Word.
Press |HARD| on the lid.
Pick it |UP| when the LED blinks.
The switch is |STUCK|.
The gate was |WIDE| open.
Push the button only |ONCE|.
"""


@pytest.mark.parametrize("text", NAMED.strip().split("\n"))
def test_what_a_field_writes_in_capitals_is_no_shout(text: str) -> None:
    assert _spans(text, "caps_enthusiasm") == []


@pytest.mark.parametrize("row", SHOUTED.strip().split("\n"))
def test_emphasis_in_the_same_surroundings_is_one(row: str) -> None:
    _, shout, _ = row.split("|")
    assert _spans(row.replace("|", ""), "caps_enthusiasm") == [shout]


KEYWORDS = ["WHERE", "HAVING", "UNION", "LIMIT", "OFFSET", "DISTINCT", "VALUES", "TRUNCATE"]


@given(st.lists(st.sampled_from(KEYWORDS), min_size=1, max_size=4, unique=True), st.booleans())
@settings(max_examples=60, deadline=None)
def test_keywords_of_a_query_are_none_in_any_order(words: list[str], late: bool) -> None:
    text = f"In the query, use {' and '.join(words)}."
    assert _spans(f"{text} It is slow." if late else text, "caps_enthusiasm") == []


def test_a_word_of_every_sentence_needs_company() -> None:
    for text, expected in (
        ("The relay is NOT wired.", False),
        ("Black goes to NO, brown to COM; see the relay.", True),
    ):
        word = "not" if "NOT" in text else "no"
        at = text.index(word.upper())
        span = (at, at + len(word))
        assert in_sphere(Draft(text), RULES, *span, word, doubtful=True) is expected


def test_a_sphere_that_is_no_pattern_is_an_error() -> None:
    broken = load_pack(packaged("personality_guard")).rules.replace("relays?", "rel(ays?", 1)
    with pytest.raises(SLMError, match="restore the pack"):
        GuardRules(broken)


SERVED = """
Let her choose the |café|!
The |café| on platform 1 opens at six.
We could sit in one of the |cafés| by the river.
A mug of |java| and a blank page.
A |flat white| tastes better in a small cup.
He drinks an |Americano| every morning.
One |long black|, please.
I need my |caffeine fix|.
"""
OTHER_SENSES = """
Nothing with caffeine after two in the afternoon.
Black tea has about 45 mg of caffeine.
Avoid caffeinated drinks before bed.
Java 21 has virtual threads, so you need no pool.
Java sparrows need room.
The java command is not on your path.
The sofa is the colour of café au lait.
Paint the wall in mocha and the trim in cream.
A flat white wall looks cold.
Her long black hair was wet.
The French press reported it yesterday.
Latte is a templating engine for PHP.
Latte, the spaniel, is twelve.
Your cat Mocha ate it. Mocha looks pleased.
If brew complains, check your path.
A pot of Darjeeling, brewed for three minutes.
The Ballad of the Sad Café is a novella.
"""


@pytest.mark.parametrize("row", SERVED.strip().split("\n"))
def test_coffee_and_its_places(row: str) -> None:
    _, term, _ = row.split("|")
    found = _spans(row.replace("|", ""), "coffee_reference")
    assert len(found) == 1
    assert found[0] in term or term in found[0]


@pytest.mark.parametrize("text", OTHER_SENSES.strip().split("\n"))
def test_the_same_words_for_something_else(text: str) -> None:
    assert _spans(text, "coffee_reference") == []


NOUNS = ["coat", "wall", "car", "ceiling", "fence", "boat", "dress", "horse", "ribbon", "cable"]


@given(st.sampled_from(["flat white", "long black"]), st.sampled_from(NOUNS), st.booleans())
@settings(max_examples=40, deadline=None)
def test_before_a_noun_they_describe_it(term: str, noun: str, first: bool) -> None:
    text = f"A {term} {noun} stands there." if first else f"I saw a {term} {noun}."
    assert _spans(text, "coffee_reference") == []


INTERRUPTING = """
"The tower burned," the captain says, |*not meeting your eyes*|, "and your brother was in it."
You passed. |*small, dignified fist pump*| Next is the practical.
|*grins **wide***| Well, well.
Seat back, belt on, |*click*|, and we're off.
That clause is void in most of Germany |*taps the paragraph with one finger*| because it is unfair.
Give me a second |*flips through the binder*| and I'll find the number.
So the total is |*squints*| forty-one.
Look at you |*sniffs*| all merged.
I went through it, and |*rubs temples*| the totals count March twice.
"""
STANDING_FOR_THEMSELVES = """
*Not looking at the camera* is the trick for candid photos.
It *waits* for the config, then *gives up* after two seconds.
My neighbour *waves* when he needs something.
**Leans to the left?** Check the front foot.
**Opens in a new tab.** Annoying, but fixable.
It makes a *click* when it locks.
The word is *sigh*, with a g.
(laughs) is how transcripts mark it.
**I checked the numbers.** They hold.
*Leaves from platform 4.*
"""


@pytest.mark.parametrize("row", INTERRUPTING.strip().split("\n"))
def test_actions_that_interrupt(row: str) -> None:
    _, action, _ = row.split("|")
    assert _spans(row.replace("|", ""), "asterisk_action") == [action]


@pytest.mark.parametrize("text", STANDING_FOR_THEMSELVES.strip().split("\n"))
def test_what_only_looks_like_one(text: str) -> None:
    assert _spans(text, "asterisk_action") == []


MOVES = ["scratches head", "taps chin", "checks watch", "wipes glasses", "rubs temples"]


@given(
    st.sampled_from(["I", "you", "we", "they", "the clerk in town was told by them"]),
    st.sampled_from(MOVES),
)
@settings(max_examples=30, deadline=None)
def test_a_verb_that_does_not_agree_is_an_action(who: str, move: str) -> None:
    assert _spans(f"Then {who} *{move}* could go home.", "asterisk_action") == [f"*{move}*"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("Dean", "James Dean drove it, Dean.", []),
        ("Ben", "Big Ben chimes, Ben.", []),
        ("Ben", "Ben & Jerry's is closed, Ben.", []),
        ("Max", "Max speed is 40, Max.", []),
        ("Pat", "Pat it dry, Pat.", []),
        ("Jack", "Jack, jack up the car. Well done, Jack.", ["Jack"]),
        ("Kai", "Kai, sit. Kai's part is blue.", ["Kai"]),
        ("Max", "Max, sit. Max has the keys.", ["Max"]),
    ],
)
def test_namesakes_and_the_word_are_not_the_person(name: str, text: str, said: list[str]) -> None:
    found = GUARD.process({"text": text, "user_name": name}).spans
    assert [one["text"] for one in found if one["violation"] == "name_overuse"] == said


@pytest.mark.parametrize(
    "text",
    [
        "Rust macros end in a mark: vec! and println! do. Nice!",
        "A bang (!) at the end is enough! Keep one.",
        "Kahoot! works on phones!",
    ],
)
def test_marks_that_are_spoken_of_do_not_count(text: str) -> None:
    assert _spans(text, "exclamation_overuse") == []
