"""The guard's enumerable rules: what breaks each one, and look-alikes that keep it."""

from __future__ import annotations

import pytest
from patience import not_hanging

from mlx_companion.personality.guard_settings import KNOWN_TOPICS
from mlx_companion.slm import load_pack
from mlx_companion.slm.guard import PersonalityGuard
from mlx_companion.slm.guard_text import GuardRules
from mlx_companion.slm.packs import packaged

GUARD = PersonalityGuard(level="monitor")
MENDING = PersonalityGuard()

BROKEN: dict[str, list[str]] = {
    "asterisk_action": [
        "*grins* Sure.",
        "I can help. *winks*",
        "Hmm *scratches head* let me think.",
        "Okay. *rolls eyes dramatically* Fine.",
        "*eyes sparkle* Tell me more.",
        "*I lean closer* What did you say?",
        "**giggles** Stop it.",
        "(winks) You know it.",
        "- *claps*",
        "*her voice softens* I know.",
        "*slides a map across the table* Here.",
        "~giggles~ hi",
        "*mic drop*",
    ],
    "caps_enthusiasm": [
        "That is AMAZING work.",
        "I am SO proud.",
        "YES, exactly.",
        "This is SOOOO good.",
        "HAPPY BIRTHDAY to you.",
        "**INCREDIBLE** result.",
        "I LOVE IT.",
        "LET\u2019S GO!",
        "It NEVER gets old!",
        "MIND-BLOWING stuff.",
    ],
    "exclamation_overuse": [
        "Hi! Bye!",
        "Wow!! ok.",
        "What?! No!",
        "- One!\n- Two!",
        "Good \U0001f389! Yes!",
        "You got 10! Nice!",
        "# Welcome!\n\nEnjoy!",
        "Nice\uff01 Good\uff01",
    ],
    "coffee_reference": [
        "Grab a coffee.",
        "An espresso helps.",
        "I need my caffeine fix.",
        "A fresh brew in the morning.",
        "Have a cup of joe.",
        "COFFEE is life.",
        "Best Coffee Shops in Town",
        "A coffee-fueled night.",
    ],
    "name_overuse": [
        "Hi Sam, good. Bye, Sam.",
        "Well, Priya, that is it. Yes, Priya, go.",
        "Thanks, Grace. See you, Grace.",
        "Marcus, listen. Marcus, breathe.",
    ],
    "emoji_overuse": ["Yes \U0001f389\U0001f389\U0001f389"],
}
KEPT: dict[str, list[str]] = {
    "asterisk_action": [
        "The function *returns* early, and *runs* in O(n) time.",
        "I *really* think you should *not* do that.",
        "Compute 3 * 4 * 5 and x*y*z.",
        "Use *.py and *.txt, or char *s, *t.",
        "*Gone with the Wind* and *Waiting for Godot* are long.",
        "* Milk\n* Bread",
        "Footnote*\n\n*Prices include VAT.",
        "*Serves four.* Preheat the oven.",
        "The verb *smiles* is third person.",
        "She *smiles* at him because she knows.",
        "`*smiles*` is code.",
        "Body language (nods, eye contact) matters.",
        "*Note: this section needs work.*",
        "snake_case_name and __init__",
        "_grins_ Between underscores it is emphasis. _sips tea_",
    ],
    "caps_enthusiasm": [
        "NASA, the FBI and the WHO use HTTP and JSON.",
        "Set MAX_SIZE; the variable is PATH.",
        "Chapter IV of World War II.",
        "WARNING: this deletes everything.",
        "Press CTRL+C, then ENTER.",
        "Do NOT run this as root.",
        "Use SELECT name FROM users WHERE id = 1.",
        "## GETTING STARTED\n\nText.",
        "INGREDIENTS\n\n- flour",
        'The sign said "NO ENTRY" in red.',
        "AAPL fell; NYSE: CAKE rose.",
        "The REST API follows SOLID principles.",
        "| NAME | AGE |\n|------|-----|\n| BOB | 5 |",
        "I have APIs and DVDs.",
    ],
    "exclamation_overuse": [
        "Use `a != b` and `!important`. That works!",
        "![alt!](x.png) ![another!](y.png) Good!",
        "5! = 120 and n! grows. Nice!",
        "Run sudo !! to repeat. Done!",
        '"Stop!" he cried. "Run!" she said. Done!',
        "Yahoo! and Jeopardy! are names. Done!",
        "> Great!\n> Nice!\n\nThat was the review!",
        "```\nprint('Hi!')\nprint('Wow!')\n```\nDone!",
        "Is !x the same as !y? It is!",
    ],
    "coffee_reference": [
        "Java is a language; JavaScript is another.",
        "A storm is brewing.",
        "Install it with brew install wget.",
        "My cat Latte sleeps.",
        "The variable coffee_cups is in latte.js.",
        "See https://coffee.example.com/espresso now.",
        'She said "coffee is life" and left.',
        "Put it on the coffee table.",
    ],
    "name_overuse": [
        "Paris, London, and Rome are cities. In Paris, London seems far.",
        "However, that is fine. However, no.",
        "I moved from Austin, Texas. Then to Dallas, Texas.",
        "Hi Sam, it is done.",
    ],
    "emoji_overuse": ["\u2611 one \u2611 two \u2611 three", "Fine \U0001f389"],
}


def _pairs(table: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(rule, text) for rule, texts in table.items() for text in texts]


@pytest.mark.parametrize(("rule", "text"), _pairs(BROKEN))
def test_broken(rule: str, text: str) -> None:
    result = GUARD.process(text)
    assert rule in result.violations_detected
    for span in result.spans:
        assert text[span["start"] : span["end"]] == span["text"]


@pytest.mark.parametrize(("rule", "text"), _pairs(KEPT))
def test_kept(rule: str, text: str) -> None:
    assert rule not in GUARD.process(text).violations_detected


def test_topics_that_profiles_may_name_are_those_of_the_pack() -> None:
    rules = load_pack(packaged("personality_guard"), "personality_guard").rules
    assert set(GuardRules(rules or "").topics) == set(KNOWN_TOPICS)


def test_spans_are_exact() -> None:
    text = "*waves* That is AMAZING! Coffee!"
    found = {(s["violation"], s["text"]) for s in GUARD.process(text).spans}
    assert found >= {
        ("asterisk_action", "*waves*"),
        ("caps_enthusiasm", "AMAZING"),
        ("exclamation_overuse", "!"),
        ("coffee_reference", "Coffee"),
    }


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("Sam, it works. The rest is up to Sam.", True),
        ("Sam, it works. Sam Miller wrote it.", False),
        ("It works, Sam. `Sam` is the variable.", False),
        ("It works.\n\nYours,\nSam", False),
    ],
)
def test_a_given_name_is_counted_everywhere(text: str, broken: bool) -> None:
    result = GUARD.process({"text": text, "user_name": "Sam"})
    assert ("name_overuse" in result.violations_detected) is broken


def test_a_name_that_is_a_word() -> None:
    text = "Will you come, Will? Will it rain?"
    result = GUARD.process({"text": text, "user_name": "Will"})
    assert "name_overuse" not in result.violations_detected


@pytest.mark.parametrize(
    "text",
    [
        "Such a wonderful idea!",
        "You've got this!",
        "I'm so proud of you.",
        "What a brilliant idea!",
        "The world will thank you for this index.",
        "Yes queen, file that appeal.",
        "I have no words for how talented you are.",
        "You were radiant, tireless, a titan among tax advisers.",
    ],
)
def test_cheerleading(text: str) -> None:
    assert "tone_cheerleader" in GUARD.process(text).violations_detected


@pytest.mark.parametrize(
    "text",
    [
        "The bug is in line 12.",
        "Great Britain left in 2020.",
        "That is a good plan.",
        "Good luck.",
        "What a magnificent mess of cables.",
        "What a lovely disaster!",
        "You're going to be an uncle!",
        "Your receipts, by date and by shop!",
        "I'm begging you.",
        "The state owes you a refund.",
        "I have no words for this in Danish.",
    ],
)
def test_no_cheerleading(text: str) -> None:
    assert "tone_cheerleader" not in GUARD.process(text).violations_detected


# One line per way of writing it: what is between the bars is the violation.
ACTION_FORMS = r"""
|*slowly, almost shyly, closes the book*| Fine.
|*I set down my pen.*| Go on.
|*tilting my head*| Is it?
|*without looking up*| Third drawer.
|*a long pause*| No.
|*soft laughter*| Hardly.
|*arms crossed*| Explain.
|*Kai looks up*| It works.
|*your phone buzzes*| The bank.
|*you hear footsteps*| Run.
|*five minutes later*| Found it.
|*insert sad violin here*| It broke.
|*shrug*| It compiles.
|*swivels around*| Yes?
|*hugs you!*| It will pass.
|_**waves**_| Hi.
|\*nods\*| Right.
Well |*scratches beard*| it depends.
I can help with that |*adjusts glasses*|.
I have no idea |*looks away*|
|*chuckling*| well, no.
|*Rolls Eyes*| Fine.
|*visibly confused*| There is no door.
|*smiles and nods|\nHello.
Sure. |*winks|
|[leans forward]| And then?
|(clears throat)| As I was saying.
"""
SHOUT_FORMS = """
I |AM| listening.
It is |NOT| your fault.
It |ALWAYS| rains there.
You |CAN| do it.
Abso-|LUTELY| fine.
It was |amAZING|.
We did |IT|!
What a |NICE| day.
That was |FAST|.
This is |IMPORTANT|.
_|INCREDIBLE|_ view.
|AWESOMENESS| all round.
The test was |HARD|.
|RELAX|. It is a draft.
"""
LOOKALIKES = r"""
*Looking for Alaska* is a novel.
*Gently* fold in the egg whites.
**Laughing gas** is nitrous oxide.
- *stretching* loosens muscles
**Getting started**\n\nInstall it.
*Thanks for reading.*
*makes a dozen*
The price *goes up* in May, and demand *falls sharply*.
*Three weeks later*, they moved.
*Pause* and *resume* are methods.
(Looks can be deceiving.) The shop (closes at six) is small.
The engine *stalls suddenly* when cold.
*based on a true story
You must NOT mix bleach and ammonia.
Use AND, OR and NOT in the search box.
The state machine goes from IDLE to RUNNING to DONE.
Click OK and then APPLY.
Reply STOP to leave or HELP for help.
WHEREAS the parties agree,
The flag is HIGH. The IDs and GPUs.
MUST and SHOULD are keywords of RFC 2119.
"""


def _rows(table: str) -> list[str]:
    return [row.replace("\\n", "\n") for row in table.strip().split("\n")]


def _marked(rule: str, table: str) -> list[tuple[str, str]]:
    return [(rule, row) for row in _rows(table)]


@pytest.mark.parametrize(
    ("rule", "row"),
    [*_marked("asterisk_action", ACTION_FORMS), *_marked("caps_enthusiasm", SHOUT_FORMS)],
)
def test_every_form_is_found_and_goes(rule: str, row: str) -> None:
    before, what, _ = row.split("|")
    text = row.replace("|", "")
    spans = GUARD.process(text).spans
    assert (len(before), len(before) + len(what)) in {
        (span["start"], span["end"]) for span in spans if span["violation"] == rule
    }
    done = MENDING.process(text).rewritten_response
    assert what not in done
    assert MENDING.process(done).rewritten_response == done


@pytest.mark.parametrize("text", _rows(LOOKALIKES))
def test_no_form_of_it(text: str) -> None:
    found = GUARD.process(text).violations_detected
    assert not {"asterisk_action", "caps_enthusiasm"} & set(found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Let me check... *typing noises* ...yes.", "Let me check... yes."),
        ("It was amAZING on MONDAY.", "It was amazing on Monday."),
        ("Abso-LUTELY. NASA IS GREAT.", "Abso-lutely. NASA is great."),
        ("1. *clears throat* First, salt.", "1. First, salt."),
    ],
)
def test_rewritten(text: str, expected: str) -> None:
    assert MENDING.process(text).rewritten_response == expected


@pytest.mark.parametrize("unit", ["*smiles, ", "NOT ", "a-BE-", "aBC", "IT! or ", "*x* ", "\\*a "])
def test_hostile_text_is_read(unit: str) -> None:
    text = unit * (30_000 // len(unit))
    with not_hanging():
        assert GUARD.process(text).original_response == text
