"""What the encoder sees in a word: against the encoder itself, long texts, damage, threads."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from tiny import tiny_bert

from mlx_companion.errors import DownloadError, SLMError
from mlx_companion.models import load_encoder
from mlx_companion.slm import slang_reader
from mlx_companion.slm.packs import load_pack, packaged
from mlx_companion.slm.slang import SlangDetector
from mlx_companion.slm.slang_reader import LAYERS, TermReader, find_reader
from mlx_companion.slm.tracker import ContextTracker

TEXT = "the cat sat on the mat and the dog ran"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("bert"), num_hidden_layers=6)


@pytest.fixture(scope="module")
def reader(folder: Path) -> TermReader:
    return TermReader(folder)


def by_the_encoder(folder: Path, text: str, start: int, end: int) -> list[np.ndarray]:
    encoder = load_encoder(folder)
    read = encoder.tokenizer.encode(text)
    at = [i for i, (a, b) in enumerate(read.offsets) if b > a and a < end and b > start]
    x, mask = encoder.model.embeddings(mx.array([read.ids])), mx.ones((1, 1, 1, 1)) > 0
    states = [x]
    for layer in encoder.model.layers:
        x = layer(x, mask)
        states.append(x)
    return [np.array(state)[0, at].mean(axis=0) for state in states]


def test_states_are_the_encoders(folder: Path, reader: TermReader) -> None:
    here = by_the_encoder(folder, TEXT, 4, 7)
    alone = by_the_encoder(folder, "cat", 0, 3)
    (row,) = reader.rows([(TEXT, (4, 7), "cat")])
    assert row.shape == (reader.columns,)
    width = len(here[0])
    parts = np.split(row[: (1 + len(LAYERS)) * width], 1 + len(LAYERS))
    np.testing.assert_allclose(parts[0], here[LAYERS[1]], atol=1e-4)
    for part, layer in zip(parts[1:], LAYERS, strict=True):
        np.testing.assert_allclose(part, here[layer] - alone[layer], atol=1e-4)
    cosine = here[1] @ alone[1] / np.linalg.norm(here[1]) / np.linalg.norm(alone[1])
    assert row[(1 + len(LAYERS)) * width] == pytest.approx(cosine, abs=1e-4)


def test_rows_do_not_depend_on_their_company(reader: TermReader) -> None:
    asked = [(TEXT, (4, 7), "cat"), (TEXT, (32, 35), "dog"), ("a dog", (2, 5), "dog")]
    together = reader.rows(asked)
    apart = np.concatenate([reader.rows([one]) for one in asked])
    np.testing.assert_allclose(together, apart, atol=1e-5)
    assert reader.rows([]).shape == (0, reader.columns)


def test_of_a_long_text_the_words_around_are_read(reader: TermReader) -> None:
    filler = "the mat " * 400
    (here,) = reader.rows([(f"{filler}{TEXT} {filler}", (len(filler) + 4, len(filler) + 7), "cat")])
    assert np.isfinite(here).all()


def test_threads_get_what_one_gets(reader: TermReader) -> None:
    asked = [(TEXT, (4, 7), "cat"), (TEXT, (32, 35), "dog")]
    expected = reader.rows(asked)
    found: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: found.append(reader.rows(asked))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for rows in found:
        np.testing.assert_array_equal(rows, expected)


def test_what_is_no_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SLMError, match="no encoder"):
        TermReader(tmp_path)
    folder = tiny_bert(tmp_path / "few")
    with pytest.raises(SLMError, match="no encoder"):
        TermReader(folder)
    whole = tiny_bert(tmp_path / "cut", num_hidden_layers=6)
    (whole / "model.safetensors").write_bytes((whole / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(SLMError, match="no encoder"):
        TermReader(whole)
    broken = tiny_bert(tmp_path / "words", num_hidden_layers=6)
    (broken / "tokenizer.json").write_text(json.dumps({"model": 3}))
    with pytest.raises(SLMError, match="tokenizer"):
        TermReader(broken)


def test_nothing_is_fetched_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a download was begun")

    monkeypatch.setattr("mlx_companion.models.wheel.fetch", forbidden)
    monkeypatch.setattr("mlx_companion.models.hub.download", forbidden)
    assert find_reader() is None


def test_another_encoder_than_the_heads_is_not_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_companion.models.wheel.cached", lambda spec: folder)
    found = find_reader()
    assert found is not None
    assert find_reader(found.sha256) is found
    assert find_reader("0" * 64) is None
    slang_reader._reader_at.cache_clear()


@pytest.mark.real_model
def test_the_packs_head_fits_the_default_encoder(real_cache: Path) -> None:
    load_encoder()
    detector = SlangDetector.from_pack(load_pack(packaged("context_tracker"), "context_tracker"))
    assert detector.reader is not None
    texts = ["this song is fire", "the house is on fire", "why you so salty", "the sea is salty"]
    found = [[one["term"] for one in detector.detect(text)] for text in texts]
    assert found == [["fire"], [], ["salty"], []]


def test_without_the_encoder_the_words_beside_decide() -> None:
    pack = load_pack(packaged("context_tracker"), "context_tracker")
    for detector in (
        SlangDetector.from_pack(pack),
        SlangDetector.from_pack(pack, use_encoder=False),
    ):
        assert detector.reader is None
        assert [one["term"] for one in detector.detect("this song is fire")] == ["fire"]
        assert detector.detect("the house is on fire") == []


def test_the_encoder_is_fetched_when_asked_and_its_lack_is_no_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    def offline(name: str) -> Path:
        asked.append(name)
        raise DownloadError("no network")

    monkeypatch.setattr("mlx_companion.models.fetch.fetch", offline)
    tracker = ContextTracker()
    tracker.process("this song is fire ngl")
    ContextTracker(use_encoder=False).prepare()
    assert asked == []
    tracker.prepare()
    assert len(asked) == 1
    assert "no network" in caplog.text
    assert [one["term"] for one in tracker.process("ngl i am tired").slang_detected] == ["ngl"]
