"""The context tracker as a whole: results, inputs, tone, learned terms, threads, damage."""

from __future__ import annotations

import json
import shutil
import threading

import pytest

from mlx_companion.errors import DataError, SLMError
from mlx_companion.slm.packs import packaged
from mlx_companion.slm.tracker import ContextTracker, read_message


@pytest.fixture(scope="module")
def tracker():
    tracker = ContextTracker()
    tracker.load()
    return tracker


def terms(result):
    return [item["term"] for item in result.slang_detected]


def test_one_message_gives_everything(tracker):
    text = "ngl this song is fire. Call me Max. See you tomorrow at 5pm"
    result = tracker.process({"text": text, "now": "2026-03-04T09:30:00"})
    assert terms(result) == ["ngl", "fire"]
    for item in result.slang_detected:
        assert text[slice(*item["span"])].lower() == item["term"]
        assert 0 < item["confidence"] <= 1
    assert result.formality_level < 0.5
    assert result.context_markers["time"][0]["start"] == "2026-03-05T17:00:00"
    assert result.context_markers["part_of_day"] == "morning"
    assert [(u.key, u.value) for u in result.updates] == [("person.name", "Max")]
    assert text[slice(*result.updates[0].span)] == result.updates[0].evidence
    json.dumps(result.to_dict())


@pytest.mark.parametrize(
    ("slang", "plain", "term"),
    [
        ("this song is fire", "the house is on fire", "fire"),
        ("why you so salty", "the soup is too salty", "salty"),
        ("don't ghost me", "I saw a ghost in the attic", "ghost"),
        ("that movie was mid", "we met in the mid 1990s", "mid"),
        ("spill the tea sis", "a cup of tea with milk", "tea"),
    ],
)
def test_sense_decides_on_everyday_words(tracker, slang, plain, term):
    found = tracker.process_batch([slang, plain])
    assert any(term in one for one in terms(found[0]))
    assert term not in terms(found[1])


def test_careful_text_is_more_formal_than_casual(tracker):
    casual, careful = tracker.process_batch(
        [
            "yeah idk, cant make it 2nite lol",
            "Unfortunately, I am unable to attend the meeting this evening.",
        ]
    )
    assert casual.formality_level < 0.3 < 0.7 < careful.formality_level


def test_depth_orders_texts(tracker):
    texts = [
        "I baked a cake for my sister.",
        "The mutex deadlocks because the async executor holds the lock across an await point.",
    ]
    plain, deep = (result.technical_depth for result in tracker.process_batch(texts))
    assert plain < 0.4 < deep


def test_turns_show_a_shift_of_tone(tracker):
    turns = [
        {"role": "user", "content": "hey whats up lol, gonna grab pizza w my bro"},
        {"role": "assistant", "content": "Sounds good."},
        {"role": "user", "content": "yeah its sooo good haha u should try it"},
        {
            "role": "user",
            "content": "I hereby request that you forward the signed documents to my solicitor.",
        },
    ]
    result = tracker.process(turns)
    assert result.tone_shift["kind"] == "more_formal"
    assert result.tone_shift["size"] > 0.3
    assert {item["turn"] for item in result.slang_detected} <= {0, 1}
    assert tracker.process(turns[:1]).tone_shift == {}


def test_a_conversation_is_remembered_only_by_name():
    tracker = ContextTracker()
    loose = "lol yeah idk whats going on w that haha so weird"
    formal = "I would be grateful if you could provide a detailed account of the proceedings."
    assert tracker.process(formal).tone_shift == {}
    for _ in range(3):
        tracker.process({"text": loose, "conversation": "a"})
    assert tracker.process({"text": formal, "conversation": "b"}).tone_shift == {}
    assert (
        tracker.process({"text": formal, "conversation": "a"}).tone_shift["kind"] == "more_formal"
    )


def test_new_terms_are_learned_after_use_and_undone():
    tracker = ContextTracker()
    texts = ["that is so glorptastic", "glorptastic again", "how glorptastic is this"]
    updates = [tracker.process({"text": t, "conversation": "c"}).updates for t in texts]
    assert updates[:2] == [[], []]
    assert [u.key for u in updates[2]] == ["slang.glorptastic"]
    assert not updates[2][0].explicit
    assert "glorptastic" in terms(tracker.process("what a glorptastic day"))
    again = ContextTracker(learned=json.loads(json.dumps(tracker.learned_state())))
    assert "glorptastic" in terms(again.process("what a glorptastic day"))
    tracker.forget("glorptastic")
    assert "glorptastic" not in terms(tracker.process("what a glorptastic day"))
    for text in texts:
        assert tracker.process({"text": text, "conversation": "c"}).updates == []


@pytest.mark.parametrize("text", ["", "   ", "...", "🔥🔥🔥", "\x00", "a" * 30000, "'" * 5000])
def test_odd_texts_have_an_answer(tracker, text):
    result = tracker.process(text)
    assert 0 <= result.formality_level <= 1
    assert 0 <= result.technical_depth <= 1
    json.dumps(result.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    "item", [None, 3, [], {"query": "x"}, [{"role": "user"}], b"x", {"text": "x", "now": "soon"}]
)
def test_what_is_no_message_is_refused(item):
    with pytest.raises(DataError):
        read_message(item)


@pytest.mark.parametrize("item", [[], {"turns": []}, {"turns": [], "text": "hi"}])
def test_no_turns_are_told_as_such(item):
    with pytest.raises(DataError, match=r"^there is no turn; give what was said"):
        read_message(item)


@pytest.mark.parametrize(
    "item", ["", " \n\t", "\u200b\ufeff", [{"role": "assistant", "content": "I love chess"}]]
)
def test_where_nothing_is_said_mood_and_topic_are_unclear(tracker, item):
    result = tracker.process(item)
    markers = result.context_markers
    assert (markers["topic"], markers["topic_confidence"]) == ("unclear", 0.0)
    assert (markers["mood"], markers["mood_confidence"]) == ("unclear", 0.0)
    assert (result.slang_detected, result.updates, result.tone_shift) == ([], [], {})
    assert tracker.process("👍").context_markers["mood_confidence"] > 0


def test_turns_are_counted_without_those_of_others(tracker):
    turns = [("user", "lol"), ("assistant", "ngl that is fun"), ("user", "ngl")]
    found = tracker.process([{"role": who, "content": text} for who, text in turns]).slang_detected
    assert [(item["term"], item["turn"]) for item in found] == [("lol", 0), ("ngl", 1)]


def test_turns_of_others_are_not_read():
    assert read_message([{"role": "assistant", "content": "lol"}]).turns == ("",)


def test_threads_get_what_one_gets(tracker):
    texts = [f"ngl this track is fire {n}" for n in range(12)]
    expected = [tracker.process(text).to_dict() for text in texts]
    found: dict[int, object] = {}

    def work(at: int) -> None:
        found[at] = tracker.process(texts[at]).to_dict()

    threads = [threading.Thread(target=work, args=(at,)) for at in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[at] for at in range(len(texts))] == expected


def test_damage_is_said_and_rules_go_on(tmp_path):
    folder = tmp_path / "pack"
    shutil.copytree(packaged("context_tracker"), folder)
    with open(folder / "weights.safetensors", "r+b") as weights:
        weights.seek(5000)
        weights.write(b"damage")
    tracker = ContextTracker(folder)
    with pytest.raises(SLMError, match="damaged"):
        tracker.process("hi")
    result = tracker.fallback("ngl this song is fire, don't use emojis")
    assert terms(result) == ["ngl"]
    assert result.context_markers["mood"] == "unclear"
    assert [u.key for u in result.updates] == ["preference.emoji"]


def test_the_fallback_orders_registers():
    tracker = ContextTracker()
    casual = tracker.fallback("yo u coming 2nite?? lol")
    careful = tracker.fallback("Dear Sir, kindly confirm receipt of the enclosed documents.")
    assert casual.formality_level < 0.5 < careful.formality_level


def test_the_pack_is_small_and_has_a_card():
    folder = packaged("context_tracker")
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 5_000_000
    assert "GoEmotions" in (folder / "README.md").read_text()
