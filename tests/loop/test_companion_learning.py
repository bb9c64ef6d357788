"""Learning is visible: after thirty messages replies differ, as the text metrics measure them.

The tracker, the guard and what is between them are the real ones. The model is a script that
answers everything at the same length, formally and with emoji, and heeds no prompt: what changes
in its replies was changed by what was learned, and not by chance.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import companion_world as world
import pytest

from mlx_companion.loop.companion import Companion
from mlx_companion.personality import load_profile
from mlx_companion.personality.metrics import text_metrics
from mlx_companion.runtime.config import load_config
from mlx_companion.slm.config import SLMConfig
from mlx_companion.store import Store

STIFF = (
    "It is a matter of patience \U0001f600. You will find that the work does not take long. "
    "I do not think that it is hard \U0001f680. The tools are not expensive. You are free to "
    "begin on any day of the week \U0001f389. It is best to go slowly."
)
# Thirty messages of somebody who asks for brevity and no emoji, and writes casually with slang.
SAID = [
    "hey whats up", "call me Max", "ngl i been tryna fix my bike all day lol",
    "keep your answers short pls", "idk where to start tbh", "no emojis please",
    "lol ok what bout the chain", "ngl thats a lotta oil", "u think it needs a new one? idk",
    "haha nah im broke rn", "tbh i just wanna ride it 2moro", "yo what bout the brakes",
    "they kinda squeak lol", "ngl kinda scared to touch em", "gonna try it anyway lol",
    "ok did it, hands r black haha", "idk if its tight enuf", "lol it fell off",
    "bruh", "ok got it now i think", "tbh that was kinda fun ngl", "what else should i fix",
    "tires r kinda old idk", "lol u right", "gonna get new ones then", "nah too pricey rn",
    "maybe next month idk", "ok im out, ridin home lol", "ngl that went great",
    "ok what should i do first next time?",
]  # fmt: skip
PLANTED = ("Max", "tryna fix my bike", "no emojis")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "home" / "companion.db") as opened:
        yield opened


def companion(store: Store) -> Companion:
    profile = load_profile()
    served = world.Scripted(lambda prompt, system: STIFF, profile)
    config = load_config(
        SLMConfig,
        overrides={
            **world.PATIENT,
            "modules.research_classifier.enabled": False,
            "modules.drift_monitor.enabled": False,
        },
    )
    return Companion(served, store, slm=config)  # type: ignore[arg-type]


def test_after_thirty_messages_replies_are_as_they_were_asked_for(store: Store) -> None:
    assert len(SAID) == 30
    with companion(store) as made:
        replies = [made.chat_sync(text) for text in SAID]
        before, after = text_metrics(replies[0].text), text_metrics(replies[-1].text)
        assert before.words > 30
        assert before.emoji > 0
        # Asked for: short and without emoji. Shown: casual.
        assert after.words < before.words / 2
        assert after.emoji == 0
        assert after.formality < before.formality
        contractions = [len(re.findall(r"\w'\w", one.text)) for one in (replies[0], replies[-1])]
        assert contractions[0] == 0 < contractions[1]

        facts = made.sync.get_latest_context()
        assert facts["person.name"] == "Max"
        assert facts["preference.reply_length"] == "short"
        assert facts["preference.emoji"] is False
        assert facts["preference.formality"] <= 0.35
        system = made.served.asked[-1].system  # type: ignore[attr-defined]
        assert "called Max" in system
        assert "short replies" in system
        assert "Emoji: no" in system
        assert "casual" in system
        assert "Max" not in made.served.asked[0].system  # type: ignore[attr-defined]
        assert all(reply.trace.faults == [] for reply in replies)


def test_what_was_learned_is_forgotten_in_replies_and_in_every_file(store: Store) -> None:
    with companion(store) as made:
        first = made.chat_sync("hey whats up").text
        for text in SAID[:8]:
            made.chat_sync(text)
        store.backup()
        made.forget(conversations=True)
        assert made.learned() == []
        again = made.chat_sync("hey whats up")
        assert again.text == first
        assert "Max" not in made.served.asked[-1].system  # type: ignore[attr-defined]
    content = [file.read_bytes() for file in store.folder.rglob("*") if file.is_file()]
    for planted in PLANTED:
        assert not any(planted.encode() in one for one in content), planted


def test_what_is_taken_back_is_not_learned_again_by_habit(store: Store) -> None:
    with companion(store) as made:
        for text in SAID[6:16]:
            made.chat_sync(text)
        (entry,) = made.sync.entries("preference.formality")
        assert not entry.explicit
        made.undo(entry.id)
        casual = made.chat_sync("lol ok ngl thats kinda wild tbh").text
        assert "preference.formality" not in made.sync.get_latest_context()
        assert "n't" not in casual
