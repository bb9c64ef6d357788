"""A tuned encoder: what it learns, what it leaves alone, storage, the adapter, faults."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlx.utils import tree_flatten
from tiny import tiny_bert

from mlx_companion.errors import ConfigError, SLMError, Stopped
from mlx_companion.models.encoder import SentenceEncoder, load_encoder
from mlx_companion.runtime.stop import StopSwitch
from mlx_companion.slm import tuned_encoder
from mlx_companion.slm.backbone import EncoderAdapter
from mlx_companion.slm.tuned_encoder import TuneConfig, Tuned, TunedEncoder, tune

CONFIG = TuneConfig(rank=4, layers=2, rate=2e-3, epochs=20, batch=8)
WORDS = ["the", "mayor", "red", "tree", "of", "blue", "who", "is"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def encoder(folder: Path) -> SentenceEncoder:
    return load_encoder(folder)


def _rows(count: int = 120, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Rows with "now" in them are the ones."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    texts = [
        " ".join(rng.permutation([*rng.choice(WORDS, 4), "now" if label else "then"]))
        for label in labels
    ]
    return texts, labels


@pytest.fixture(scope="module")
def tuned(encoder: SentenceEncoder) -> Tuned:
    return tune(encoder, *_rows(), config=CONFIG)


def _weights(encoder: SentenceEncoder) -> dict[str, np.ndarray]:
    return {name: np.array(array) for name, array in tree_flatten(encoder.model.parameters())}


def test_it_learns_and_the_published_encoder_stays(folder: Path, tuned: Tuned) -> None:
    encoder = load_encoder(folder)
    before = _weights(encoder)
    texts, labels = _rows(80, seed=1)
    again = tune(encoder, *_rows(), config=CONFIG)
    np.testing.assert_array_equal(again.logits(texts), tuned.logits(texts))
    assert ((tuned.logits(texts) > 0) == labels).mean() > 0.9
    after = _weights(encoder)
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)


def test_only_the_upper_layers_differ_and_by_the_update(
    encoder: SentenceEncoder, tuned: Tuned
) -> None:
    top = tune(encoder, *_rows(), config=TuneConfig(rank=4, layers=1, epochs=1))
    assert {path.split(".")[1] for path in top.update} == {"1"}
    old, new = _weights(encoder), _weights(tuned.encoder)
    changed = {name for name, value in old.items() if not np.array_equal(new[name], value)}
    assert changed == {f"{path}.weight" for path in tuned.update}
    for path, (a, b) in tuned.update.items():
        assert a.shape[1] == 4
        np.testing.assert_allclose(
            new[f"{path}.weight"] - old[f"{path}.weight"], (a @ b).T, atol=1e-6
        )


def test_logits_are_the_head_over_mean_and_first_state(tuned: Tuned) -> None:
    import mlx.core as mx

    texts, _ = _rows(5)
    for text, logit in zip(texts, tuned.logits(texts), strict=True):
        ids = tuned.encoder.tokenizer.encode(text).ids
        hidden = tuned.encoder.model(mx.array([ids]), mx.ones((1, len(ids)), dtype=mx.bool_))
        states = np.array(hidden)[0]
        expected = np.r_[states.mean(axis=0), states[0]] @ tuned.weights + tuned.bias
        # Alone here, padded there.
        assert logit == pytest.approx(expected, abs=1e-3)


def test_storage_changes_little_and_faults_are_told(
    encoder: SentenceEncoder, tuned: Tuned, tmp_path: Path
) -> None:
    texts, _ = _rows(40)
    arrays = tuned.to_arrays()
    back = Tuned.from_arrays(encoder, arrays)
    np.testing.assert_allclose(back.logits(texts), tuned.logits(texts), atol=0.05)
    with pytest.raises(SLMError, match="no tuned encoder"):
        Tuned.from_arrays(encoder, {})
    wider = load_encoder(tiny_bert(tmp_path / "wide", hidden_size=48))
    with pytest.raises(SLMError, match="of that size"):
        Tuned.from_arrays(wider, arrays)
    lacking = {name: a for name, a in arrays.items() if not name.endswith("0.output.b")}
    with pytest.raises(SLMError, match="do not fit"):
        Tuned.from_arrays(encoder, lacking)


def test_the_adapter_reads_the_tuned_copy_and_leaves_its_base(folder: Path, tuned: Tuned) -> None:
    base = EncoderAdapter(str(folder))
    texts, _ = _rows(20)
    before = base.features(texts)
    adapter = TunedEncoder(base, tuned.to_arrays())
    assert adapter.memory_bytes == 0
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda text: adapter.features([text])[0, 0], texts))
    np.testing.assert_allclose(found, tuned.logits(texts), atol=0.05)
    assert adapter.identity == base.identity
    # Attention of 4 x 32 x 32 and a feed-forward part of 2 x 32 x 64, in both layers.
    assert adapter.memory_bytes == 2 * 4 * (4 * 32 * 32 + 2 * 32 * 64)
    adapter.unload()
    assert not adapter.loaded
    assert adapter.features(texts[:1]).shape == (1, 1)
    np.testing.assert_array_equal(base.features(texts), before)
    base.unload()
    np.testing.assert_allclose(base.features(texts), before, atol=1e-6)


def test_rows_that_are_not_drawn_teach_nothing(encoder: SentenceEncoder) -> None:
    texts, labels = _rows()
    drawn = np.r_[np.ones(120), np.zeros(120)]
    found = tune(encoder, texts * 2, np.r_[labels, 1 - labels], drawn=drawn, config=CONFIG)
    assert ((found.logits(texts) > 0) == labels).mean() > 0.9


def test_long_texts_are_answered_by_both_ends(tuned: Tuned) -> None:
    assert np.isfinite(tuned.logits(["", "a " * 5000, "🙂"])).all()


def test_bad_settings_and_a_stop(encoder: SentenceEncoder) -> None:
    with pytest.raises(ConfigError, match="1 or more"):
        TuneConfig(rank=0)
    stop = StopSwitch()
    stop.request("test")
    with pytest.raises(Stopped):
        tune(encoder, *_rows(20), stop=stop)


def test_states_that_became_alike_are_learned_again_more_slowly(
    encoder: SentenceEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, labels = _rows()
    short = replace(CONFIG, epochs=2)
    once, rates = tuned_encoder._tuned, []

    def too_fast_at_first(*given: Any) -> Tuned:
        *rest, config, stop = given
        rates.append(config.rate)
        return once(*rest, config if len(rates) > 1 else replace(config, rate=1000.0), stop)

    monkeypatch.setattr(tuned_encoder, "_tuned", too_fast_at_first)
    found = tune(encoder, texts, labels, config=short)
    assert rates == [short.rate, short.rate / 2]
    assert np.isfinite(found.logits(texts)).all()


def test_a_rate_that_always_makes_states_alike_is_refused(encoder: SentenceEncoder) -> None:
    with pytest.raises(SLMError, match=r"alike at rates from 1000 down to 250; set a smaller"):
        tune(encoder, *_rows(), config=replace(CONFIG, epochs=2, rate=1000.0))
