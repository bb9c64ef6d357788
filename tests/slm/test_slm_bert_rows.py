"""A BERT read in NumPy: against MLX's, of any lengths, merged updates, one copy of the weights."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from tiny import tiny_bert

from mlx_companion.errors import SLMError
from mlx_companion.models import load_encoder
from mlx_companion.models.encoder import SentenceEncoder
from mlx_companion.slm import bert_rows as module
from mlx_companion.slm.backbone import EncoderAdapter, shared_encoder
from mlx_companion.slm.bert_rows import BertRows, Update, bert_rows
from mlx_companion.slm.encoder_files import mapped_weights
from mlx_companion.slm.packs import load_pack, packaged
from mlx_companion.slm.tuned_encoder import Tuned, TunedEncoder, published

TARGETS = ("attention.query", "attention.key", "attention.value", "attention.output", "output")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("bert"), num_hidden_layers=3)


@pytest.fixture(scope="module")
def encoder(folder: Path) -> SentenceEncoder:
    return load_encoder(folder)


@pytest.fixture(scope="module")
def reader(encoder: SentenceEncoder) -> BertRows:
    return needed(bert_rows(encoder.model))


def needed(rows: BertRows | None) -> BertRows:
    if rows is None:
        pytest.skip("this machine reads BERTs with MLX")
    return rows


def some_rows(count: int = 7, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 300, rng.integers(1, 40)).tolist() for _ in range(count)]


def by_mlx(encoder: SentenceEncoder, row: list[int]) -> np.ndarray:
    tokens = mx.array([row])
    return np.array(encoder.model(tokens, mx.ones(tokens.shape, dtype=mx.bool_)))[0]


def test_states_are_those_of_mlx_whatever_is_read_beside(
    encoder: SentenceEncoder, reader: BertRows
) -> None:
    rows = some_rows()
    rows += [rows[0], rows[2][::-1]]
    for row, states in zip(rows, reader(rows), strict=True):
        np.testing.assert_allclose(states, by_mlx(encoder, row), atol=1e-5)
    assert reader([]) == []


def test_passes_are_of_a_bounded_size(reader: BertRows, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = some_rows(12)
    together = reader(rows)
    monkeypatch.setattr(module, "_MOST_TOKENS", 30)
    for one, other in zip(together, reader(rows), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_every_layer_ends_with_the_last_and_fewer_layers_stop_there(
    folder: Path, reader: BertRows
) -> None:
    weights = mapped_weights(folder / "model.safetensors")
    lower = BertRows(weights, 4, 1e-12, layers=2)
    rows = some_rows(3)
    for row, states, below in zip(rows, reader.every_layer(rows), lower(rows), strict=True):
        assert states.shape == (4, len(row), 32)
        np.testing.assert_allclose(states[-1], reader([row])[0], atol=1e-5)
        np.testing.assert_allclose(states[2], below, atol=1e-5)


def an_update(layers: tuple[int, ...], targets: tuple[str, ...], seed: int = 1) -> Update:
    rng = np.random.default_rng(seed)
    found = {}
    for at in layers:
        for name in targets:
            inputs = 64 if name == "output" else 32
            a, b = rng.normal(size=(inputs, 2)), rng.normal(size=(2, 32))
            found[f"layers.{at}.{name}"] = (a.astype(np.float32), b.astype(np.float32) / 9)
    return found


@pytest.mark.parametrize("targets", [TARGETS, ("attention.key", "output")])
def test_an_update_is_merged_and_the_model_stays(
    folder: Path, reader: BertRows, targets: tuple[str, ...]
) -> None:
    update = an_update((1, 2), targets)
    changed, plain = load_encoder(folder), load_encoder(folder)
    layers = dict(changed.model.named_modules())
    for path, (a, b) in update.items():
        layers[path].weight = layers[path].weight + mx.array((a @ b).T)
    merged = needed(bert_rows(plain.model, update))
    rows = some_rows(4)
    for row, states, before in zip(rows, merged(rows), reader(rows), strict=True):
        np.testing.assert_allclose(states, by_mlx(changed, row), atol=1e-5)
        np.testing.assert_allclose(before, by_mlx(plain, row), atol=1e-5)
    sizes = {name: 64 * 32 if name == "output" else 32 * 32 for name in targets}
    assert merged.own_bytes == 2 * 4 * sum(sizes.values())
    assert reader.own_bytes == 0


def test_weights_are_viewed_and_not_copied(encoder: SentenceEncoder) -> None:
    rows = needed(bert_rows(encoder.model))
    words = np.array(encoder.model.embeddings.word_embeddings.weight, copy=False)
    assert np.shares_memory(rows._words, words)
    inner = np.array(encoder.model.layers[1].intermediate.weight, copy=False)
    assert np.shares_memory(rows._layers[1].up.weight, inner)


def test_half_precision_files_are_read_and_models_left_to_mlx(tmp_path: Path) -> None:
    folder = tiny_bert(tmp_path / "half")
    arrays: Any = mx.load(str(folder / "model.safetensors"))
    halves = {name: array.astype(mx.float16) for name, array in arrays.items()}
    mx.save_safetensors(str(tmp_path / "half.safetensors"), halves)
    weights = mapped_weights(tmp_path / "half.safetensors")
    whole = mapped_weights(folder / "model.safetensors")
    (one,), (other,) = (BertRows(w, 4, 1e-12)([[3, 4, 5]]) for w in (weights, whole))
    np.testing.assert_allclose(one, other, atol=0.02)
    encoder = load_encoder(folder)
    encoder.model.set_dtype(mx.float16)
    assert bert_rows(encoder.model) is None


def test_what_does_not_fit_is_refused(encoder: SentenceEncoder, folder: Path) -> None:
    weights = mapped_weights(folder / "model.safetensors")
    with pytest.raises(SLMError, match="not the weights of a BERT"):
        BertRows(weights, 4, 1e-12, layers=4)
    for update in (an_update((3,), TARGETS), {"layers.1.nothing": (np.ones(1), np.ones(1))}):
        with pytest.raises(SLMError, match="which is not read here"):
            BertRows(weights, 4, 1e-12, update=update)
    wrong = {"layers.1.output": (np.ones((5, 1)), np.ones((1, 32)))}
    with pytest.raises(SLMError, match="fits"):
        BertRows(weights, 4, 1e-12, update=wrong)


def test_threads_read_at_once(reader: BertRows) -> None:
    rows = some_rows()
    expected = reader(rows)
    found: list[list[np.ndarray]] = []
    threads = [threading.Thread(target=lambda: found.append(reader(rows))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for states in found:
        for one, other in zip(states, expected, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_features_are_the_encoders_own(tmp_path: Path, pooling: str) -> None:
    folder = tiny_bert(tmp_path / "bert", pooling=pooling)
    texts = ["warm", "the cat sat on the mat", "", "a " * 400]
    expected = load_encoder(folder).encode(texts)
    np.testing.assert_allclose(EncoderAdapter(str(folder)).features(texts), expected, atol=1e-5)


@pytest.mark.real_model
def test_the_default_encoder_and_the_tuned_one_answer_as_in_mlx(real_cache: Path) -> None:
    encoder = published(shared_encoder())
    texts = ["who is the mayor of oslo", "thanks, that was it", "write me a poem about rain " * 9]
    features = shared_encoder().features(texts)
    np.testing.assert_allclose(features, encoder.encode(texts), atol=1e-5)
    arrays = load_pack(packaged("research_classifier"), "research_classifier").arrays
    found = TunedEncoder(shared_encoder(), arrays).features(texts)[:, 0]
    expected = Tuned.from_arrays(encoder, arrays).logits(texts)
    np.testing.assert_allclose(found, expected, atol=1e-4)
