"""Sentence embeddings against transformers and sentence-transformers (stored answers)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from encoder_texts import TEXTS
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from scipy.special import erf
from tiny import CORPUS, tiny_bert

from mlx_companion.errors import ModelNotFoundError, WeightsError
from mlx_companion.models.bert import gelu
from mlx_companion.models.encoder import _batches, load_encoder

FIXTURES = Path(__file__).parent.parent / "fixtures"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def encoder(folder):
    return load_encoder(folder)


@pytest.fixture
def own_folder(folder, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(folder, tmp_path / "bert")


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_hidden_states_equal_those_of_transformers(tmp_path):
    stored = np.load(FIXTURES / "tiny_bert.npz")
    model = load_encoder(tiny_bert(tmp_path, vocab_size=200)).model
    hidden = np.array(model(mx.array(stored["tokens"]), mx.array(stored["mask"])))
    # What stands at padded places is nobody's business.
    np.testing.assert_allclose(
        hidden[stored["mask"]], stored["hidden"][stored["mask"]], rtol=2e-4, atol=2e-5
    )


@pytest.mark.real_model
def test_minilm_equals_sentence_transformers(real_cache):
    expected = np.load(FIXTURES / "minilm_vectors.npz")["vectors"]
    encoder = load_encoder("minilm-l6")
    vectors = encoder.encode(TEXTS)
    assert vectors.shape == (len(TEXTS), 384)
    assert (vectors * expected).sum(axis=1).min() > 0.9999
    np.testing.assert_allclose(vectors, expected, atol=2e-5)


def test_rows_are_unit_float32_in_the_order_given(encoder):
    texts = [*CORPUS, "", "x" * 500, "a"]
    vectors = encoder.encode(texts, batch_size=4)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)
    for text, vector in zip(texts, vectors, strict=True):
        np.testing.assert_allclose(encoder.encode([text])[0], vector, atol=2e-6)


def test_64_short_texts_are_one_forward_pass(encoder, monkeypatch):
    calls = []
    forward = type(encoder)._forward
    monkeypatch.setattr(
        type(encoder), "_forward", lambda self, rows: calls.append(rows) or forward(self, rows)
    )
    encoder.encode([CORPUS[i % 5][: 10 + i] for i in range(64)])
    assert [len(rows) for rows in calls] == [64]


def test_no_texts_give_no_rows(encoder):
    assert encoder.encode([]).shape == (0, encoder.dimensions)


def test_one_text_is_refused(encoder):
    with pytest.raises(TypeError, match="list of texts"):
        encoder.encode("one text")


def test_texts_are_cut_at_the_model_s_limit(tmp_path):
    encoder = load_encoder(tiny_bert(tmp_path, max_seq_length=8))
    words = "the garden is quiet and the kettle is warm".split()  # noqa: SIM905
    whole, cut = encoder.encode([" ".join(words), " ".join(words[:6])])
    tokens = encoder.tokenizer.encode(" ".join(words)).tokens
    assert len(tokens) == 8
    assert tokens[-1] == "[SEP]"
    # The first six words make exactly six tokens here, so nothing else is left of the text.
    assert encoder.tokenizer.encode(" ".join(words[:6])).tokens == tokens
    np.testing.assert_allclose(whole, cut, atol=1e-6)


def test_cls_pooling_takes_the_first_state(tmp_path):
    encoder = load_encoder(tiny_bert(tmp_path, pooling="cls"))
    ids = encoder.tokenizer.encode(CORPUS[0]).ids
    hidden = np.array(encoder.model(mx.array([ids]), mx.ones((1, len(ids)), dtype=mx.bool_)))
    expected = hidden[0, 0] / np.linalg.norm(hidden[0, 0])
    np.testing.assert_allclose(encoder.encode([CORPUS[0]])[0], expected, atol=1e-6)


@given(st.lists(st.integers(1, 300), max_size=200), st.integers(1, 64))
def test_batches_hold_every_row_once_with_bounded_padding(lengths, size):
    batches = list(_batches(lengths, size))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        its = [lengths[i] for i in batch]
        assert len(its) <= size
        assert max(its) <= 2 * min(its) + 16


def test_gelu_is_exact_to_float32():
    x = np.linspace(-12, 12, 100_001).astype(np.float32)
    wide = x.astype(np.float64)
    expected = 0.5 * wide * (1 + erf(wide / np.sqrt(2)))
    np.testing.assert_allclose(np.array(gelu(mx.array(x))), expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mpnet"}, "model_type 'mpnet'"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
        ({"num_hidden_layers": 3}, "not those of a BERT"),
    ],
)
def test_what_is_no_bert_is_refused(own_folder, changes, message):
    edit_json(own_folder / "config.json", **changes)
    with pytest.raises(WeightsError, match=message):
        load_encoder(own_folder)


def test_other_poolings_are_refused(own_folder):
    edit_json(own_folder / "1_Pooling" / "config.json", pooling_mode_max_tokens=True)
    with pytest.raises(WeightsError, match=r"\['max', 'mean'\]"):
        load_encoder(own_folder)


def test_weights_with_the_prefix_and_pooler_of_a_full_bert_are_read(own_folder, encoder):
    file = own_folder / "model.safetensors"
    weights = {f"bert.{name}": value for name, value in load_file(file).items()}
    weights["bert.pooler.dense.weight"] = np.zeros((32, 32), dtype=np.float32)
    weights["bert.embeddings.position_ids"] = np.arange(64)[None]
    save_file(weights, file)
    np.testing.assert_array_equal(
        load_encoder(own_folder).encode(CORPUS[:2]), encoder.encode(CORPUS[:2])
    )


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        load_encoder(tmp_path / "nowhere")


def test_a_missing_tokenizer_is_named(own_folder):
    (own_folder / "tokenizer.json").unlink()
    with pytest.raises(WeightsError, match="tokenizer in"):
        load_encoder(own_folder)
