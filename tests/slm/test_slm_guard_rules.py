"""The guard's enumerable rules: what breaks each one, and look-alikes that keep it."""

from __future__ import annotations

import pytest

from mlx_companion.slm.guard import PersonalityGuard

GUARD = PersonalityGuard(level="monitor")

BROKEN: dict[str, list[str]] = {
    "asterisk_action": [
        "*grins* Sure.",
        "I can help. *winks*",
        "Hmm *scratches head* let me think.",
        "_adjusts glasses_ As I was saying.",
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
    ["Great question!", "You've got this!", "I'm so proud of you.", "What a brilliant idea!"],
)
def test_cheerleading(text: str) -> None:
    assert "tone_cheerleader" in GUARD.process(text).violations_detected


@pytest.mark.parametrize(
    "text",
    ["The bug is in line 12.", "Great Britain left in 2020.", "That is a good plan.", "Good luck."],
)
def test_no_cheerleading(text: str) -> None:
    assert "tone_cheerleader" not in GUARD.process(text).violations_detected
