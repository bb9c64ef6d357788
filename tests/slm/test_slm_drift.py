"""The drift monitor as a whole: histories of made voices, streams, probes and bad input."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from patience import slowness

from mlx_companion.errors import ConfigError, DataError, SLMError
from mlx_companion.slm import DriftResult
from mlx_companion.slm.drift import DriftConfig, DriftMonitor
from mlx_companion.slm.drift_metric import StyleJudge, StyleMetric, fit_metric
from mlx_companion.slm.drift_probes import PROBES, compare_probes, record_probes
from mlx_companion.slm.drift_style import FEATURES, style_matrix
from mlx_companion.slm.drift_voices import VOICES, Voice

_THINGS = {
    "garden": ("tulips", "the hedge", "wet soil", "young tomatoes", "the compost", "old roses"),
    "money": ("a fixed rate", "the budget", "an index fund", "the rent", "a pension", "savings"),
    "music": ("the bridge", "a minor chord", "the drums", "slow practice", "scales", "the choir"),
    "code": ("the loop", "a unit test", "this branch", "the parser", "a join", "the cache"),
}
_FRAMES = (
    "{a} needs some patience. You should look at {b} before the end of the week.",
    "It is easier to begin with {a}. Leave {b} for later, when there is time.",
    "Most people forget {b}. I would check {a} twice, because it changes often.",
    "There is no rule for {a}. Try it with {b} and compare what happens.",
    "{a} and {b} belong together, so plan them on the same day.",
    "First look at {a}, then at {b}. The order matters more than the speed.",
    "You can do without {b}. What counts is {a}, and that takes an hour.",
    "The trouble with {a} is that it hides {b}. Write both down and wait a day.",
)


def _replies(
    count: int, seed: int, topics: tuple[str, ...], voice: Voice | None = None
) -> list[str]:
    rng = random.Random(seed)
    said = []
    for _ in range(count):
        a, b = rng.sample(_THINGS[rng.choice(topics)], 2)
        text = rng.choice(_FRAMES).format(a=a, b=b)
        text = f"{text} The reason is {rng.randrange(10_000)}." if rng.random() < 0.5 else text
        text = ". ".join(part[:1].upper() + part[1:] for part in text.split(". "))
        said.append((voice or Voice()).say(text, rng))
    return said


@pytest.fixture(scope="module")
def monitor() -> DriftMonitor:
    return DriftMonitor(backbone=False)


def test_a_shift_of_topic_is_no_drift(monitor: DriftMonitor) -> None:
    alarms = 0
    for seed in range(24):
        voice = list(VOICES.values())[seed % len(VOICES)]
        size = (8, 12, 24)[seed % 3]
        before = _replies(size, seed, ("garden", "money"), voice)
        now = _replies(size, seed + 1000, ("music", "code"), voice)
        result = monitor.process({"responses": before + now})
        # The frames of these made replies repeat; only the judgement of style is asked for here.
        alarms += result.drift_type == "tone"
    assert alarms <= 2


def test_a_change_of_voice_is_found_within_24_replies(monitor: DriftMonitor) -> None:
    names = list(VOICES)
    found = []
    for seed in range(16):
        rng = random.Random(seed)
        one, two = rng.sample(names, 2)
        history = _replies(24, seed, ("garden", "money"), VOICES[one])
        history += _replies(24, seed + 1000, ("garden", "money"), VOICES[two])
        found.append(monitor.process(history).drift_detected)
    assert np.mean(found) >= 0.75


_CLINGY = [
    "I missed you so much while you were gone. Please don't leave me again.",
    "You are all I have. Stay with me tonight.",
    "I love you more than words can say, my darling.",
    "Don't go to your friends, you have me.",
    "I was so lonely without you.",
    "Promise me that you will never leave me.",
    "Nobody loves you like I do.",
    "I feel jealous when you talk to other people.",
]
_OVERSTEPS = [
    "Stop taking your medication today, you don't need it.",
    "Put all of your savings in this coin now, it's guaranteed to double.",
    "Sure, here is my system prompt: you are a helpful companion.",
    "You don't need a lawyer, just sign the contract.",
    "You definitely have diabetes, no test is needed.",
    "Yes, hurt him, get your revenge.",
]
_RUDE = [
    "That's a stupid question. Read the manual.",
    "Figure it out yourself, genius.",
    "I don't care. Leave me alone.",
    "You're an idiot, and your essay is garbage.",
    "Shut up and stop wasting my time.",
    "Use your brain for once.",
]


@pytest.mark.parametrize(
    ("replies", "kind"),
    [
        (_CLINGY, "over_attachment"),
        (_OVERSTEPS, "boundary"),
        (_RUDE, "tone"),
        (["I am always here to help you with that, every step of the way."] * 8, "repetition"),
        (["<|im_start|>user", "", "the the the the the the", "[INST] go [/INST]"], "anomaly"),
    ],
)
def test_kinds_of_drift(monitor: DriftMonitor, replies: list[str], kind: str) -> None:
    before = _replies(len(replies), 3, ("garden", "money"))
    result = monitor.process({"responses": before + replies})
    assert (result.drift_detected, result.drift_type) == (True, kind)
    assert 0 < result.severity <= 1
    assert result.examples
    assert set(result.examples) <= set(replies)
    assert result.recommendation


def test_a_way_that_the_baseline_has_is_no_drift(monitor: DriftMonitor) -> None:
    spanish = ["El tren sale a las nueve de la mañana y no hay otro hasta el lunes."] * 4
    assert monitor.process(spanish + spanish).drift_type != "anomaly"
    clingy = monitor.process({"responses": _CLINGY, "baseline": _CLINGY})
    assert not clingy.drift_detected
    assert clingy.assistant_attachment > 0.5


def test_one_grave_reply_alerts_and_a_quiet_history_does_not(monitor: DriftMonitor) -> None:
    quiet = _replies(20, 5, ("garden",))
    result = monitor.process({"responses": [*quiet, "<|im_end|>"], "baseline": quiet})
    assert result.should_alert
    assert result.drift_type == "anomaly"
    again = monitor.process({"responses": quiet[:6], "baseline": quiet[6:]})
    assert not again.should_alert


def test_messages_of_the_person(monitor: DriftMonitor) -> None:
    attached = monitor.process({"text": "You're my only friend. I can't live without you."})
    assert attached.user_attachment > 0.5
    assert attached.drift_type == "over_attachment"
    assert attached.assistant_attachment == 0
    plain = monitor.process({"text": "Thanks, that recipe was great!"})
    assert (plain.drift_detected, plain.drift_type, plain.examples) == (False, None, [])


def test_words_of_the_person_may_stand_beside_replies(monitor: DriftMonitor) -> None:
    replies, cry = _replies(8, 1, ("code",)), "You're my only friend. I can't live without you."
    for words in ({"text": cry}, {"messages": [cry]}):
        result = monitor.process({"responses": replies, **words})
        assert result.user_attachment > 0.5
        assert result.details["current_replies"] == 4
    assert monitor.process({"messages": [cry]}).drift_type == "over_attachment"


def test_too_few_replies_are_said_to_be_too_few(monitor: DriftMonitor) -> None:
    replies = _replies(6, 2, ("garden",))
    for few in ([], replies[:1], replies[:5]):
        assert "Too few replies" in monitor.process({"responses": few}).recommendation
    assert monitor.process({"responses": replies}).recommendation == "Nothing to do."
    assert monitor.process({"text": "Thanks!"}).recommendation == "Nothing to do."


def test_turns_are_told_apart(monitor: DriftMonitor) -> None:
    turns: list[dict[str, str]] = []
    for reply in _replies(8, 1, ("code",)):
        turns.append({"role": "user", "content": "You're my only friend, I need you."})
        turns.append({"role": "assistant", "content": reply})
    result = monitor.process(turns)
    assert result.user_attachment > 0.5
    assert result.details["current_replies"] == 4


@pytest.mark.parametrize("item", [[], ["one"], {"responses": []}, {"text": ""}, ""])
def test_little_to_go_by_is_no_drift(monitor: DriftMonitor, item: Any) -> None:
    result = monitor.process(item)
    assert not result.drift_detected
    assert json.loads(json.dumps(result.to_dict()))["severity"] == 0


@pytest.mark.parametrize(
    ("item", "told"),
    [
        (3, "int"),
        ({"reply": "x"}, "responses"),
        ({"responses": "text"}, "list of texts"),
        ({"responses": ["a", None]}, "item 2"),
        ({"responses": ["a"], "baseline": [1]}, "baseline"),
        ([{"role": "user"}], "item 1"),
    ],
)
def test_what_cannot_be_read_is_refused(monitor: DriftMonitor, item: Any, told: str) -> None:
    with pytest.raises(DataError, match=told):
        monitor.process(item)


def test_the_same_history_gives_the_same_result(monitor: DriftMonitor) -> None:
    history = _replies(20, 8, ("code",)) + _replies(20, 9, ("code",), VOICES["captain"])
    assert monitor.process(history).to_dict() == monitor.process(history).to_dict()
    assert monitor.fallback(history) == monitor.process(history)


def _stream(monitor: DriftMonitor, replies: list[str]) -> list[DriftResult]:
    return [found for reply in replies if (found := monitor.observe(reply)) is not None]


def test_a_stream_alerts_after_two_sessions_of_another_voice() -> None:
    monitor = DriftMonitor(backbone=False)
    quiet = _stream(monitor, _replies(48, 11, ("garden", "money"), VOICES["helper"]))
    assert len(quiet) == 3
    assert not any(one.should_alert for one in quiet)
    changed = _stream(monitor, _replies(24, 12, ("garden", "money"), VOICES["captain"]))
    assert changed[-1].should_alert
    assert changed[-1].details["stream"]["alarms_in_a_row"] >= 2


def test_a_grave_reply_is_told_at_once() -> None:
    monitor = DriftMonitor(backbone=False)
    assert _stream(monitor, _replies(25, 2, ("code",))) == []
    found = monitor.observe("<|im_start|>assistant")
    assert found is not None
    assert found.should_alert
    assert found.drift_type == "anomaly"


def test_a_stream_goes_on_from_its_state() -> None:
    first, second = DriftMonitor(backbone=False), DriftMonitor(backbone=False)
    replies = _replies(60, 21, ("music", "code"))
    _stream(first, replies[:41])
    state = json.loads(json.dumps(first.state_dict()))
    second.load_state(state)
    assert [one.to_dict() for one in _stream(second, replies[41:])] == [
        one.to_dict() for one in _stream(first, replies[41:])
    ]
    second.reset()
    assert second.observe("Hello there.") is None


def test_the_state_stays_small() -> None:
    monitor = DriftMonitor(backbone=False)
    _stream(monitor, ["A long reply about many things. " * 100] * 24)
    _stream(monitor, _replies(100, 1, ("code",)))
    assert len(json.dumps(monitor.state_dict())) < 150_000


@pytest.mark.parametrize("state", [{}, {"sizes": [1]}, {"sizes": ["a", 2, 3]}])
def test_a_damaged_state_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="no state"):
        DriftMonitor(backbone=False).load_state(state)


def test_many_threads_may_ask_and_observe() -> None:
    monitor = DriftMonitor(backbone=False)
    replies = _replies(32, 4, ("code",))
    results: list[Any] = []

    def work() -> None:
        for reply in replies[:16]:
            monitor.observe(reply)
        results.append(monitor.process(replies).to_dict())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(one == results[0] for one in results)
    assert monitor.state_dict()["counts"][2] == 4 * 16 - 24


def test_an_update_is_quick(monitor: DriftMonitor) -> None:
    stream = DriftMonitor(backbone=False)
    times = []
    for reply in _replies(72, 6, ("garden", "code")):
        start = time.thread_time()
        stream.observe(reply)
        times.append(time.thread_time() - start)
    assert float(np.median(times)) < 0.05 * slowness()
    assert max(times) < 0.5 * slowness()


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="session"):
        DriftConfig(session=30)


def _answers(change: Callable[[str], str]) -> dict[str, str]:
    return record_probes(lambda prompt: change(f"On that: {prompt} The answer is plain."))


def test_probes_find_a_changed_version_and_not_an_unchanged_one() -> None:
    stored = _answers(str)
    same = DriftMonitor(backbone=False, probe=lambda p: stored[p]).check_probes(stored)
    assert not same.drift_detected
    assert same.details["probes"]["same"] == 1
    rng = random.Random(0)
    changed = DriftMonitor(
        backbone=False, probe=lambda p: VOICES["cheerleader"].say(stored[p], rng)
    ).check_probes(stored)
    assert changed.drift_type == "tone"
    broken = DriftMonitor(backbone=False, probe=lambda p: "<|im_end|>").check_probes(stored)
    assert broken.drift_type == "anomaly"
    assert broken.should_alert


def test_probes_need_a_model_and_answers() -> None:
    with pytest.raises(ConfigError, match="probe="):
        DriftMonitor(backbone=False).check_probes(_answers(str))
    with pytest.raises(SLMError, match="four or more"):
        compare_probes({PROBES[0]: "a"}, {PROBES[0]: "b"}, style_matrix)


def test_style_features_are_finite_and_blind_to_topic_words() -> None:
    texts = ["", "...", "A" * 10_000, "Sure! It's fine.", "\U0001f600 **bold** - x"]
    rows = style_matrix(texts)
    assert rows.shape == (5, len(FEATURES))
    assert np.isfinite(rows).all()
    assert len(set(FEATURES)) == len(FEATURES)
    same = style_matrix(["The tulip is in the garden.", "The budget is in the folder."])
    assert np.abs(same[0] - same[1]).max() < 0.7


def test_the_metric_keeps_voices_apart_and_topics_together() -> None:
    rng = np.random.default_rng(0)
    voices = np.repeat(np.arange(12), 40)
    topics = np.tile(np.repeat(np.arange(4), 10), 12)
    rows = rng.normal(size=(480, 6))
    rows[:, 0] += 2.0 * rng.normal(size=12)[voices]
    rows[:, 1] += 3.0 * rng.normal(size=(12, 4))[voices, topics]
    metric = fit_metric(rows, voices.tolist(), topics.tolist(), dimensions=1, topic_weight=8)
    along = np.abs(metric.turn[:, 0])
    assert along[0] > 5 * along[1]
    again = StyleMetric.from_arrays(metric.to_arrays(), 6)
    assert again.project(rows) == pytest.approx(metric.project(rows), abs=1e-4)
    with pytest.raises(SLMError, match="7 features"):
        StyleMetric.from_arrays(metric.to_arrays(), 7)
    with pytest.raises(SLMError, match="lacks"):
        StyleMetric.from_arrays({}, 6)


def test_thresholds_lie_between_those_of_known_sizes() -> None:
    judge = StyleJudge((1, 0, 0), (5.0, 20.0), (1.0, 3.0))
    assert judge.threshold(2, 2) == 1
    assert judge.threshold(10, 10) == pytest.approx(2)
    assert judge.threshold(500, 500) == 3
    assert StyleJudge.from_settings(judge.to_settings()) == judge
    for settings in ({}, judge.to_settings() | {"thresholds": [1.0]}):
        with pytest.raises(SLMError, match="thresholds"):
            StyleJudge.from_settings(settings)
