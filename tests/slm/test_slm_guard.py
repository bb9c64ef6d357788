"""The guard as a whole: levels, rewriting, what must survive, what fails and what it costs."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import not_hanging

from mlx_companion.errors import ConfigError, DataError, SLMError
from mlx_companion.personality import GuardSettings, Profile, TopicSettings, scan
from mlx_companion.slm.guard import PersonalityGuard
from mlx_companion.slm.packs import load_pack, packaged

MODERATE = PersonalityGuard()
STRICT = PersonalityGuard(level="strict")

REWRITTEN = [
    ("Oh, *blushes*, stop it.", "Oh, stop it."),
    ("Let me check... *rummages through drawer* ...here it is.", "Let me check... here it is."),
    ("You met DOLLY PARTON at a fair?", "You met Dolly Parton at a fair?"),
    ("*smiles warmly* Hello there!! Fine.", "Hello there! Fine."),
    ("*sighs* well, okay.", "Well, okay."),
    ("Well, *sighs* I guess so. *shrugs*", "Well, I guess so."),
    ("*waves*\n\nHi.", "Hi."),
    ("- *nods*\n- Step one.", "- Step one."),
    ("That's true *nods*.", "That's true."),
    ("*chuckles*, well that is one way.", "Well that is one way."),
    ("*smiles*", "Noted."),
    ("That is AMAZING. SO good on MONDAY.", "That is amazing. So good on Monday."),
    ("NASA DID IT. YES!", "NASA did it. Yes!"),
    ("Good! Oh! how nice. What?!", "Good! Oh, how nice. What?"),
    ("Hi! Bonjour ! Ok (!)", "Hi! Bonjour. Ok"),
    ("An espresso? A latte! Coffee shops.", "A tea? A tea! Tea houses."),
    ("Have tea or coffee.", "Have tea."),
    ("An espresso is 30 ml, a latte about 240 ml.", "A tea is 30 ml, another tea about 240 ml."),
    ("Take a latte or a cappuccino.", "Take a tea."),
    (
        "| Drink | ml |\n|---|---|\n| Espresso | 30 |\n| Latte | 240 |",
        "| Drink | ml |\n|---|---|\n| Tea | 30 |\n| Another tea | 240 |",
    ),
    (
        "The barista at Blue Bottle Coffee on Mint Plaza.",
        "The tea maker at Blue Bottle Coffee on Mint Plaza.",
    ),
    ("*gasps* WAIT. You mean it?", "Wait. You mean it?"),
    ("*grins* WOW, that one.", "Wow, that one."),
    ("Proud.\U0001f389 \U0001f389 \U0001f389 \U0001f389", "Proud.\U0001f389 \U0001f389"),
    ("Hi Sam. You know, Sam, rest. I think so, Sam.", "Hi Sam. You know, rest. I think so."),
    ("Yes \U0001f389 a \U0001f389 b \U0001f389.", "Yes \U0001f389 a \U0001f389 b."),
]


@pytest.mark.parametrize(("text", "expected"), REWRITTEN)
def test_edits_leave_grammar_intact(text: str, expected: str) -> None:
    result = MODERATE.process(text)
    assert result.rewritten_response == expected
    for change in result.changes_made:
        assert set(change) == {"violation", "span", "before", "after", "how"}
        start, end = change["span"]
        assert 0 <= start <= end <= len(text)
    assert json.loads(json.dumps(result.to_dict()))["rewritten_response"] == expected


def test_a_first_edit_tells_its_place_in_the_original() -> None:
    text = "Well, that is AMAZING."
    (change,) = MODERATE.process(text).changes_made
    assert text[slice(*change["span"])] == change["before"] == "AMAZING"
    assert change["after"] == "amazing"


def test_levels() -> None:
    text = "*grins* What a brilliant question! The answer is 4."
    monitor = PersonalityGuard(level="monitor").process(text)
    assert monitor.rewritten_response == text
    assert not monitor.changes_made
    assert MODERATE.process(text).rewritten_response == text.removeprefix("*grins* ")
    assert STRICT.process(text).rewritten_response == "The answer is 4."
    names = ["asterisk_action", "tone_cheerleader"]
    assert monitor.violations_detected == names == STRICT.process(text).violations_detected


def test_a_clean_reply_comes_back_as_it_was() -> None:
    text = "The train leaves at nine, which is a rumour.\n\n```\nx = 'WOW!!'\n```\n"
    result = STRICT.process(text)
    assert (result.rewritten_response, result.violations_detected) == (text, [])


def _profile(**named: Any) -> Profile:
    return Profile(name="x", system_prompt="Be kind.", guard=GuardSettings(**named))


def test_topics_and_phrases_of_ones_own() -> None:
    topics = {
        "alcohol": TopicSettings(("wine", "beer"), "juice", ("wine cellar",)),
        "weather": TopicSettings(("rain",)),
    }
    guard = PersonalityGuard(profile=_profile(topics=topics, phrases={"circle back": "return"}))
    result = guard.process("Wines in the wine cellar. It may rain. We circle back.")
    assert result.violations_detected == [
        "alcohol_reference",
        "prohibited_phrase",
        "weather_reference",
    ]
    assert result.rewritten_response == "Juice in the wine cellar. We return."


def test_a_substitute_that_is_prohibited_is_no_way_out() -> None:
    with pytest.raises(ConfigError, match="green tea"):
        _profile(topics={"tea": TopicSettings(("tea",), "green tea")})


@pytest.mark.parametrize("said", ["COFFEE", "Nice!!", "That is AMAZING.", "*smiles* Yes."])
def test_what_is_said_instead_of_nothing_keeps_the_rules(said: str) -> None:
    with pytest.raises(ConfigError, match="empty_reply"):
        PersonalityGuard(profile=_profile(empty_reply=said))


def test_limits_can_be_switched_off() -> None:
    off = _profile(
        no_asterisk_actions=False,
        no_excited_capitals=False,
        max_exclamations=None,
        max_name_uses=None,
        max_emoji=None,
        no_cheerleading=False,
        topics={},
    )
    text = "*grins* WOW!!! Coffee, Sam? Yes, Sam! \U0001f389\U0001f389\U0001f389"
    result = PersonalityGuard(profile=off, level="strict").process(text)
    assert (result.violations_detected, result.rewritten_response) == ([], text)


def test_servile_filler_where_the_profile_asks() -> None:
    guard = PersonalityGuard(profile="concise_expert")
    text = "Certainly! The port is 80. Let me know if you need more."
    result = guard.process(text)
    assert "servile_filler" in result.violations_detected
    assert result.rewritten_response == "The port is 80."


def test_a_language_model_rewrites_only_the_sentence_at_fault() -> None:
    asked: list[str] = []

    def rewrite(instruction: str) -> str:
        asked.append(instruction)
        return "Three of 4 tests pass, Oslo included."

    guard = PersonalityGuard(level="strict", rewriter=rewrite)
    text = "Wow, what a brilliant result, 4 tests and Oslo! The port is 80."
    result = guard.process(text)
    assert result.rewritten_response == "Three of 4 tests pass, Oslo included. The port is 80."
    assert all("The port" not in one for one in asked)


@pytest.mark.parametrize(
    "answer",
    ["", "That is AMAZING!", "All pass.", "5 tests in Oslo.", "x" * 5000, None, RuntimeError()],
)
def test_a_bad_rewrite_falls_back_to_the_deterministic_edit(answer: Any) -> None:
    def rewrite(instruction: str) -> str:
        if isinstance(answer, Exception):
            raise answer
        return answer

    text = "Wow, what a brilliant result, 4 tests and Oslo! The port is 80."
    alone = STRICT.process(text).rewritten_response
    guard = PersonalityGuard(level="strict", rewriter=rewrite)
    assert guard.process(text).rewritten_response == alone
    assert "4 tests and Oslo" in alone


@pytest.mark.parametrize(
    "item", [None, 3, {"txt": "x"}, {"text": 3}, {"text": "x", "user_name": 3}]
)
def test_bad_input(item: Any) -> None:
    with pytest.raises(DataError):
        MODERATE.process_batch(["fine", item])


def test_a_damaged_pack(tmp_path: Path) -> None:
    source = packaged("personality_guard")
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "rules.yaml").write_text("actions: {}")
    with pytest.raises(SLMError, match=r"rules\.yaml"):
        PersonalityGuard(pack=tmp_path)


def test_the_pack_is_small_and_documented() -> None:
    folder = packaged("personality_guard")
    assert load_pack(folder, "personality_guard").metrics["tone_precision"] > 0.95
    assert sum(path.stat().st_size for path in folder.iterdir()) < 5_000_000
    assert "held out" in (folder / "README.md").read_text()


def test_fallback_is_rules_alone() -> None:
    result = MODERATE.fallback("*grins* That is AMAZING.")
    assert result.violations_detected == ["asterisk_action", "caps_enthusiasm"]
    assert result.rewritten_response == "That is amazing."


def test_threads_agree() -> None:
    texts = [f"*grins* {n} AMAZING things!! Coffee, Sam?" for n in range(40)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(MODERATE.process, texts)) == MODERATE.process_batch(texts)


_PIECES = st.sampled_from(
    ["*smiles* ", "*really* ", "_waves_ ", "AMAZING ", "SO ", "NASA ", "NOT ", "I ", "LOVE ", "it ",
     "IT ", "coffee ", "an espresso ", "tea or ", "brew a cup ", "Sam, ", ", Sam", "Hi Sam", "! ",
     "!! ", "?! ", ". ", ", ", "\n", "\n\n", "- ", "# ", "> ", "`x != 1!` ",
     "```\nWOW! coffee\n```\n",
     "https://x.org/COFFEE! ", "3.50 ", "42 ", '"STOP!" ', "(", ") ", "*", "_", "\U0001f389", "n! ",
     "Oslo ", "great ", "we ", "is ", "~", "**", "\u2019", "|", "    "]
)  # fmt: skip
_REPLIES = st.lists(_PIECES, max_size=30).map("".join)


@settings(max_examples=150, deadline=None)
@given(_REPLIES, st.sampled_from(["", "Sam"]))
def test_rewriting_settles_and_keeps_what_it_must(reply: str, name: str) -> None:
    first = MODERATE.process({"text": reply, "user_name": name})
    done = first.rewritten_response
    again = MODERATE.process({"text": done, "user_name": name})
    assert set(again.violations_detected) <= {"tone_cheerleader"}
    assert again.rewritten_response == done
    if not first.changes_made:
        assert done == reply


_WORDS = st.sampled_from(
    ["*smiles* ", "AMAZING ", "SO ", "coffee ", "latte! ", "good! ", "fine. ", "we ", "`x!=1` ",
     "https://x.org/a ", "3.50 ", "42! ", "Oslo ", "\n```\nWOW!! 7\n```\n", "1,000 ", "Marta "]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(_WORDS, max_size=25).map("".join), st.sampled_from([MODERATE, STRICT]))
def test_code_numbers_links_and_names_survive(reply: str, guard: PersonalityGuard) -> None:
    done = guard.process(reply).rewritten_response
    assert re.findall(r"\d+", done) == re.findall(r"\d+", reply)
    assert re.findall(r"Oslo|Marta", done) == re.findall(r"Oslo|Marta", reply)
    for kind in ("code", "link"):
        before, after = ([t[a:b] for a, b in scan(t).spans(kind)] for t in (reply, done))
        # What stood apart may touch afterwards, so pieces are compared in one row.
        assert "".join("".join(before).split()) == "".join("".join(after).split())


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=120))
def test_any_text_is_answered(reply: str) -> None:
    result = STRICT.process(reply)
    assert STRICT.process(result.rewritten_response).rewritten_response == result.rewritten_response


@pytest.mark.parametrize("unit", ["SO ", "!", "*a ", "*smiles* ", "Sam, you. ", "coffee ", "wow! "])
def test_long_hostile_text_is_read(unit: str) -> None:
    text = unit * (60_000 // len(unit))
    with not_hanging():
        result = MODERATE.process(text)
    assert result.original_response == text
