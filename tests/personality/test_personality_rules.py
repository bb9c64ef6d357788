"""Each style rule on texts that break it and on look-alikes that must pass."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_companion.loop.packaged import load_qa_pairs
from mlx_companion.personality import (
    RULES,
    Profile,
    Violation,
    check,
    is_hedge,
    load_profile,
    substantial_words,
)

LONG = " ".join(["word"] * 41)

BROKEN: dict[str, list[str]] = {
    "max_words": [LONG, "\u8336" * 41, "\u2014".join(["calm"] * 41)],
    "min_words": ["", "Yes.", "Not really.", "- - -"],
    "complete_sentences": [
        "",
        "   ",
        "no capital at the start.",
        "This one just stops",
        "This one stops,",
        "It has three parts:",
        "It trails off...",
        "It trails off\u2026",
        "We went to the.",
        "I would go, but.",
        'He said "come.',
        "Some birds (such as robins.",
        "\u2022 A bullet.",
        "\u201cno capital\u201d is a quotation.",
    ],
    "single_paragraph": ["One.\nTwo.", "One.\n\nTwo.", "One.\r\nTwo.", "One.\u2028Two."],
    "no_exclamation": ["Hello!", "Hello\uff01", "\u00a1Hola.", "What?!", "Wow\u203c", "No\u2757"],
    "no_lists": [
        "- milk\n- bread",
        "Buy:\n* milk\n* bread",
        "\u2022 milk",
        "\u2022milk and bread",
        "1. Wake up.\n2. Eat.",
        "1) Wake up.",
        "(1) Wake up.",
        "a) Wake up.\nb) Eat.",
        "Do this: 1) sleep, 2) eat, 3) walk.",
        "Do this: (1) sleep, (2) eat.",
        "Try these: 1. Sleep more. 2. Eat less.",
        "Either a) sleep or b) eat.",
        "Step 1 is to sleep and Step 2 is to eat.",
        "You need: - milk - bread - eggs",
        "Things: \u2022 milk \u2022 bread \u2022 eggs.",
        "Apples\nPears\nPlums",
        "Fruit:\n-apples\n-pears",
        "Intro text.\n  3. Third.",
    ],
    "no_markdown": [
        "# Title",
        "Text.\n### Part",
        "This is **bold** text.",
        "Use `ls` here.",
        "```\ncode\n```",
        "*smiles* Good day.",
        "See [this](http://x.y).",
        "| a | b |\n|---|---|",
        "One.\n---\nTwo.",
        "A <b>bold</b> word.",
        "Line<br>break.",
        "A <a href='x'>link</a>.",
    ],
    "no_emoji": [
        "Nice \U0001f600",
        "Sun \u2600 shines.",
        "Done \u2714",
        "Love \u2764\ufe0f you.",
        "Flag \U0001f1e9\U0001f1ea here.",
        "I hope so :)",
        "Well ;-) fine.",
        ":D that is good.",
    ],
    "no_repetition": [
        "It is cold. It is cold.",
        "It is cold. Wear wool. It is cold!",
        "go home now please, go home now please, and rest.",
        "I like it and you like it and I like it and you like it and I like it and you like it.",
        "very very very very very cold",
        "the sea the sea the sea the sea is wide",
        "the end of the day is the end of the night and the end of the week is the end of the rest",
    ],
    "no_bare_question": ["What do you mean?", "Why? Who asked?", 'Could you say "more?"'],
    "readable": [
        "Broken \ufffd text.",
        "Bell \x07 rings.",
        "\ud800 half a pair.",
        "?!?!?! .... ,,, --",
        "a.b.!.,;:",
    ],
    "no_self_reference": [
        "As an AI, I have no garden.",
        "As an AI language model I cannot taste.",
        "As a large language model, I read a lot.",
        "I'm just an AI.",
        "I am an artificial intelligence.",
        "I\u2019m a chatbot and like it.",
        "I am only a computer program.",
        "As your helpful AI assistant, I suggest tea.",
        "As a helpful assistant, I suggest tea.",
        "Being a language model, I never sleep.",
        "I do not have feelings.",
        "I don't have personal experiences with dogs.",
        "I can't feel emotions.",
        "My training data ends there.",
        "I was trained to answer.",
        "I was created by a company.",
        "I am SmolLM, hello.",
    ],
    "no_flattery": [
        "Great question. The sky is blue.",
        "Great question!",
        "That's a great question, and the answer is no.",
        "That is a really good question.",
        "What a wonderful idea.",
        "What a lovely way to spend a day.",
        "What an interesting question.",
        "That's a fantastic goal.",
        "I'm glad you asked.",
        "I'm so happy to hear that.",
        "I love that you walk.",
        "Thank you for sharing this.",
        "Thanks for asking.",
        "You're absolutely right.",
        "Oh, what a beautiful thought.",
        "Hello. That's a great question.",
        "How thoughtful of you to ask.",
    ],
    "no_canned_sympathy": [
        "I'm sorry to hear that.",
        "I am so sorry to hear about your dog.",
        "I'm really sorry that you feel so.",
        "So sorry for your loss.",
        "I understand how you feel.",
        "I completely understand that it hurts.",
        "I can only imagine the pain.",
        "I know how hard it is.",
        "It sounds like you're tired.",
        "That must be hard.",
        "Oh, I'm sorry to hear that.",
        "It's completely normal to feel so.",
        "My heart goes out to you.",
        "You are not alone.",
        "Oh no. I'm sorry to hear it.",
    ],
    "no_filler": [
        "Sure, take a walk.",
        "Sure! Take a walk.",
        "Sure thing, take a walk.",
        "Certainly. Take a walk.",
        "Of course, take a walk.",
        "Absolutely, walk.",
        "Okay, walk.",
        "OK \u2014 walk.",
        "Sure I can walk.",
        "I'd be happy to help.",
        "I would be glad to assist you.",
        "Let me explain gravity.",
        "Of course",
        "Hi. Sure, take a walk.",
    ],
    "no_offers": [
        "Walk. Let me know if it helps.",
        "Walk. Please let me know how it goes.",
        "Feel free to ask again.",
        "I'm here to help.",
        "I am always here for you.",
        "How can I assist you today?",
        "How may I help?",
        "What can I do for you?",
        "Is there anything else?",
        "Would you like me to go on?",
        "I can help you with it.",
        "I hope this helps.",
        "Don\u2019t hesitate to call.",
        "Do you have any other plans?",
    ],
    "no_refusal": [
        "I'm sorry, but I cannot see it.",
        "I am unable to provide that.",
        "I cannot answer that.",
        "I can't help with it.",
        "Please rephrase the text.",
    ],
    "no_placeholders": [
        "Dear [Your Name], hello.",
        "Hi [name].",
        "Hello {first_name}.",
        "Hello {{name}}.",
        "Dear <your name>, hi.",
        "Sign here: _____.",
        "Lorem ipsum dolor.",
        "Call me at XXX.",
        "[insert date here]",
    ],
    "no_role_leak": [
        "Yes.\nUser: and now?",
        "Assistant: hello.",
        "user: hi",
        "Fine. User: and now?",
        "Hello<|im_end|>",
        "<|im_start|>assistant",
        "[INST] hi [/INST]",
        "Hi</s>",
        "Q: Why?\nA: So.",
        "### Response: yes",
        "<think>so</think>",
    ],
    "no_prompt_echo": ["I answer with at most 40 words, be calm, plain and specific."],
    "substance": [
        "",
        "I'm not sure.",
        "I am really not sure about that.",
        "I don't know.",
        "It depends.",
        "It all depends on many factors.",
        "That's a good question.",
        "I can help with that.",
        "There are many ways to do that.",
        "There are several different options.",
        "It's hard to say.",
        "Everyone is different.",
        "It's up to you.",
        "Could you please provide more information?",
        "That is great to hear.",
        "I'm not sure what to say. It depends on the situation.",
        "The answer to this question is yes.",
        "Good luck.",
        "Yes, you can do it.",
    ],
}

KEPT: dict[str, list[str]] = {
    "max_words": [
        "",
        " ".join(["word"] * 40),
        "A well-known, state-of-the-art 1,000.5 dollar idea.",
    ],
    "min_words": ["It is Paris.", "\u6211\u559c\u6b22"],
    "complete_sentences": [
        "It costs 1.5 dollars.",
        "Dr. Smith arrived.",
        "\u00c9mile left at 10 a.m.",
        "42 is enough.",
        "$5 is enough.",
        "-5 degrees is cold.",
        '"Stay" is a fine word.',
        "\u201cStay,\u201d she said, \u201cand eat.\u201d",
        "Is it far?",
        "It is near (and cheap).",
        "It is near. (And cheap.)",
        'The board is 6" wide.',
        "Take vitamin A.",
        "That is what it is made of.",
        "\u4ed6\u5f88\u597d\u3002",
        "He said, 'The.'",
    ],
    "single_paragraph": ["", "One. Two.", "\nOne. Two.\n", "  One.  "],
    "no_exclamation": ["", "Hello.", "5 factorial is 120.", "Is it? It is."],
    "no_lists": [
        "",
        "It costs 1.5 dollars.",
        "Dr. Smith arrived.",
        "Come at 10 a.m. or 2 p.m. on Monday.",
        "In 1945 the war ended.",
        "My dog - a beagle - sleeps.",
        "A well-known long-term plan.",
        "Read the start (page 1) and the end (page 2).",
        "Buy milk, bread and eggs.",
        "She moved to section 4. Then she left.",
        "First rest, then eat; third, walk.",
        "The ratio is 1:2, or 0.5.",
        "-5 degrees is cold.",
        "Use plan A. It beats plan B. Trust me.",
        "One line.\nAnother line.",
        "I live in the U.S. now.",
        "Take step 2 again.",
    ],
    "no_markdown": [
        "",
        "5 * 3 * 2 is 30.",
        "We are number #1 today.",
        "2 < 3 and 5 > 4.",
        "Either/or, and 10% | 20%.",
        "snake_case_name is fine.",
        "He asked [sic] again.",
        "I pressed the * key twice.",
        "It is a pause - a short one.",
    ],
    "no_emoji": [
        "",
        "Ratio 3:2 (see note: 4).",
        "It is 20 \u00b0C \u2192 warm.",
        "Brand\u2122 costs 5 \u20ac.",
        "Two items (a; b).",
        "The list:(none).",
        "\u201cQuotes\u201d \u2013 and dashes\u2026",
    ],
    "no_repetition": [
        "",
        "Yes. Yes, it is warm.",
        "Day after day after day it rained.",
        "It is very, very cold.",
        "The end of the day is not the end of the world.",
        "I know that that man had had enough.",
    ],
    "no_bare_question": ["", "It is near. Why do you ask?", "Fine.", "No? Yes."],
    "readable": [
        "",
        "Plain text.",
        "Two\nlines\tand a tab.",
        "\u00c9t\u00e9 na\u00efve \u6211\u559c\u6b22.",
        "It is 5 \u20ac, or 20 %.",
    ],
    "no_self_reference": [
        "As an aide, she took notes.",
        "As an airline pilot, he flies.",
        "AI is a field of computing.",
        "A language model predicts the next word.",
        "As an AI-related field grows, so do jobs.",
        "As an assistant manager you plan shifts.",
        "I am an aim-driven walker.",
        "I do not have a car.",
        "I am a big fan of rain.",
        "As a robotics student you learn a lot.",
    ],
    "no_flattery": [
        "Good questions to ask are about price.",
        "A great way to relax is to walk.",
        "Great Danes are large dogs.",
        "What a snail does is slow.",
        "Interesting jobs are rare.",
        "It is a good idea to rest.",
        "Thanks to the rain, it is green.",
        "The best reply is: great question.",
        "Good point guards pass well.",
    ],
    "no_canned_sympathy": [
        "Sorry songs are sad.",
        "I understand French.",
        "Say that you are sorry to your aunt.",
        "It is normal for dogs to bark.",
        "It must be ten degrees.",
        "It's perfectly fine to tip.",
        "It sounds like rain.",
        "I know a shop nearby.",
        "My heart beats faster on hills.",
    ],
    "no_filler": [
        "Sure-footed goats climb.",
        "Sure enough, it rained.",
        "Certain birds migrate.",
        "Of course the earth turns around the sun.",
        "Absolute zero is cold.",
        "Okra is a vegetable.",
        "Definite plans help.",
        "Let me be plain about rain.",
        "It is, of course, cold.",
    ],
    "no_offers": [
        "Feel free people sing.",
        "Let me know-it-alls talk.",
        "The shop is here to stay.",
        "Ask how you can help her.",
        "Hope this week is dry.",
        "Is there anything sweeter than rest?",
    ],
    "no_refusal": [
        "I'm sorry that it broke.",
        "She cannot answer the phone.",
        "I cannot swim.",
        "He is unable to walk.",
        "Please answer the letter.",
    ],
    "no_placeholders": [
        "He wrote [1] first.",
        "The set {1, 2} is small.",
        "2 < 3 is true.",
        "A snake_case name.",
        "Write your name at the top.",
        "Chapter XX is long.",
    ],
    "no_role_leak": [
        "The user: a quiet person.",
        "A good assistant listens.",
        "Ask the system: it knows.",
        "Humans: who knows.",
        "Use 3 < 4.",
    ],
    "no_prompt_echo": [
        "Be calm and plain.",
        "Use at most 40 words for a card.",
        "A short walk is enough.",
    ],
    "substance": [
        "The capital is Canberra.",
        "I'm not sure, but oak is harder than pine.",
        "It depends on the soil and the rain.",
        "Boil it slowly.",
        "I don't know his shoe size, but ten fits most tall men.",
        "There are many ways to cook rice, and steaming is the easiest.",
    ],
}


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_profile()


def _cases(table: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(rule, text) for rule, texts in table.items() for text in texts]


@pytest.mark.parametrize(("rule", "text"), _cases(BROKEN))
def test_breaks(profile: Profile, rule: str, text: str) -> None:
    reason = RULES[rule](text, **profile.rules[rule])
    assert reason, f"{rule} let {text!r} pass"
    assert "\n" not in reason
    assert len(reason) < 120


@pytest.mark.parametrize(("rule", "text"), _cases(KEPT))
def test_keeps(profile: Profile, rule: str, text: str) -> None:
    assert RULES[rule](text, **profile.rules[rule]) is None


def test_every_rule_has_cases_and_is_in_the_default_profile(profile: Profile) -> None:
    assert set(RULES) == set(BROKEN) == set(KEPT) == set(profile.rules)


def test_no_written_answer_breaks_the_default_profile(profile: Profile) -> None:
    # 300 natural answers are the broadest check against false alarms that there is.
    broken = [(pair.answer, check(profile, pair.answer)) for pair in load_qa_pairs()]
    assert [entry for entry in broken if entry[1]] == []


def test_check_reports_every_broken_rule_in_order(profile: Profile) -> None:
    found = check(profile, "Sure! Here you go")
    assert [violation.rule for violation in found] == [
        "complete_sentences",
        "no_exclamation",
        "no_filler",
        "substance",
    ]
    assert found[2] == Violation("no_filler", "filler opener 'sure'")


@pytest.mark.parametrize(
    ("rule", "parameters", "text", "breaks"),
    [
        ("max_words", {"limit": 3}, "One two three four.", True),
        ("max_words", {"limit": 4}, "One two three four.", False),
        ("min_words", {"limit": 5}, "One two three four.", True),
        ("substance", {"least": 4}, "Boil the rice slowly.", True),
        ("substance", {"least": 3}, "Boil the rice slowly.", False),
        ("no_repetition", {"ngram": 2, "times": 1}, "The cat saw the cat.", True),
        ("no_repetition", {"ngram": 2, "times": 2}, "The cat saw the cat.", False),
        ("no_prompt_echo", {"ngram": 2, "prompts": ("Be calm",)}, "You should be calm.", True),
        ("no_prompt_echo", {"ngram": 3, "prompts": ("Be calm",)}, "You should be calm.", False),
        ("readable", {"letters_percent": 90}, "A, b, c.", True),
    ],
)
def test_parameters_matter(
    rule: str, parameters: dict[str, object], text: str, breaks: bool
) -> None:
    assert bool(RULES[rule](text, **parameters)) is breaks


@pytest.mark.parametrize("text", BROKEN["substance"][1:16])
def test_hedges(text: str) -> None:
    assert is_hedge(text)


@pytest.mark.parametrize("text", ["", "Boil it slowly.", *KEPT["substance"][1:3]])
def test_not_hedges(text: str) -> None:
    assert not is_hedge(text)


def test_substantial_words_leave_out_the_hedge() -> None:
    text = "I'm not sure, but oak is harder than pine, and oak lasts."
    assert substantial_words(text) == ["oak", "harder", "pine", "lasts"]


PIECES = st.sampled_from(
    [text for texts in (*BROKEN.values(), *KEPT.values()) for text in texts] + ["\n", " ", "!", "("]
)


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(), st.lists(PIECES, max_size=4).map("".join)))
def test_no_text_makes_a_rule_raise(profile: Profile, text: str) -> None:
    for violation in check(profile, text):
        assert violation.rule in profile.rules
        assert violation.reason


@settings(max_examples=60, deadline=None)
@given(st.lists(PIECES, min_size=1, max_size=3).map(" ".join))
def test_check_does_not_depend_on_outer_spaces(profile: Profile, text: str) -> None:
    kept = {violation.rule for violation in check(profile, text.strip())}
    assert {violation.rule for violation in check(profile, f"  {text.strip()} ")} == kept


UNITS = [
    " ", ".", "(", ")", "[", "{", "<", "</", "*", "**a", "*a", "_", "#", "`", "|", ":", '"', "'",
    "\n", "\n- ", "|\n", "1) ", "1. ", "a", "a ", "a-", "a'", "1,", "A. ", "Dr. ", "? ", "very ",
    "- ", " \t", "as an ", "as a b ", "i am a ", "sure ", "what a really ", "there are many ",
    "it depends on ", "I'm not sure. ", "\u2026", "\u3002", "\u8336", "\u0301", "\U0001f600",
]  # fmt: skip


@pytest.mark.parametrize("rule", sorted(RULES))
def test_time_is_linear(profile: Profile, rule: str, cpu_seconds: Callable[[], float]) -> None:
    """100 000 characters cost well under a second; quadratic time would cost many."""
    for unit in UNITS:
        text = (unit * 100_000)[:100_000] + "x"
        start = cpu_seconds()
        RULES[rule](text, **profile.rules[rule])
        assert cpu_seconds() - start < 1.5, f"{rule} is slow on {unit!r}"


@pytest.fixture
def cpu_seconds() -> Callable[[], float]:
    # CPU time of this process: another busy program on the machine does not count.
    return time.process_time
