"""The whole model: prefixes, batches, packed documents and padding do not change what it says."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_companion.blt.byte_lm import ByteLM
from mlx_companion.blt.config import BlockConfig, BltConfig, ByteLMConfig, HashConfig, PatchConfig
from mlx_companion.blt.model import BltModel
from mlx_companion.errors import ConfigError
from mlx_companion.text.byte_text import BOS, encode_bytes

TEXTS = [
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was ...",
    "Gestern im Café saß eine Eule; heute sitzt dort — niemand.",
    "明日の天気は晴れでしょう。",
    "x",
]


# About the median entropy of a model with fresh weights.
THRESHOLD = 5.095


def config(mode: str = "entropy", **changes: object) -> BltConfig:
    rule = PatchConfig(mode, threshold=THRESHOLD, rise_threshold=0.01, size=3)
    settings: dict = {
        "encoder": BlockConfig(16, 2, 2, 24, window=12),
        "latent": BlockConfig(24, 2, 2, 40),
        "decoder": BlockConfig(16, 2, 2, 24, window=12),
        "entropy": BlockConfig(12, 2, 2, 20, window=8),
        "hash": HashConfig(vocabulary=101),
        "patching": rule,
        "context": 128,
    }
    return BltConfig(**{**settings, **changes})


@pytest.fixture(scope="module")
def model() -> BltModel:
    mx.random.seed(3)
    made = BltModel(config())
    mx.eval(made.parameters())
    made.eval()
    return made


def with_mode(model: BltModel, mode: str) -> BltModel:
    other = BltModel(config(mode))
    other.update(model.parameters())
    return other


def ids_of(text: str) -> np.ndarray:
    return encode_bytes(text)


def alone(model: BltModel, text: str) -> np.ndarray:
    return np.array(model(mx.array(ids_of(text))[None]))[0]


def packed(texts: list[str]) -> tuple[mx.array, mx.array]:
    ids = np.concatenate([ids_of(text) for text in texts])
    documents = np.concatenate([np.full(len(ids_of(t)), i) for i, t in enumerate(texts)])
    return mx.array(ids)[None], mx.array(documents.astype(np.int32))[None]


def test_the_threshold_makes_patches_of_unequal_length(model: BltModel) -> None:
    patching = model.patching(mx.array(ids_of(TEXTS[0]))[None])
    share = float(patching.opens.astype(mx.float32).mean())
    assert 0.15 < share < 0.85


@pytest.mark.parametrize("mode", ["entropy", "monotonic", "combined", "space", "static", "byte"])
def test_a_prefix_has_the_same_logits(model: BltModel, mode: str) -> None:
    other = with_mode(model, mode)
    whole = alone(other, TEXTS[0])
    ids = mx.array(ids_of(TEXTS[0]))[None]
    for length in (1, 2, 3, 17, 40):
        found = np.array(other(ids[:, :length]))[0]
        np.testing.assert_allclose(found, whole[:length], atol=1e-5)


@pytest.mark.parametrize("mode", ["entropy", "space"])
def test_documents_in_one_row_do_not_see_each_other(model: BltModel, mode: str) -> None:
    other = with_mode(model, mode)
    ids, documents = packed(TEXTS)
    found = np.array(other(ids, documents=documents))[0]
    at = 0
    for text in TEXTS:
        expected = alone(other, text)
        np.testing.assert_allclose(found[at : at + len(expected)], expected, atol=2e-5)
        at += len(expected)


def test_without_documents_a_packed_row_would_leak(model: BltModel) -> None:
    ids, _ = packed(TEXTS)
    found = np.array(model(ids))[0, -len(ids_of(TEXTS[-1])) :]
    assert np.abs(found - alone(model, TEXTS[-1])).max() > 1e-2


@pytest.mark.parametrize("mode", ["entropy", "space", "monotonic"])
def test_a_padded_row_of_a_batch_equals_the_row_alone(model: BltModel, mode: str) -> None:
    other = with_mode(model, mode)
    rows = [ids_of(text) for text in TEXTS]
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), BOS, dtype=np.int32)
    for at, row in enumerate(rows):
        ids[at, : len(row)] = row
    lengths = mx.array([len(row) for row in rows])
    found = np.array(other(mx.array(ids), lengths=lengths))
    for at, text in enumerate(TEXTS):
        np.testing.assert_allclose(found[at, : len(rows[at])], alone(other, text), atol=1e-5)


def test_patches_from_outside_are_used(model: BltModel) -> None:
    ids = mx.array(ids_of(TEXTS[0]))[None]
    own = model(ids)
    assert mx.array_equal(own, model(ids, model.patching(ids)))
    other = with_mode(model, "byte").patching(ids)
    assert float(mx.abs(own - model(ids, other)).max()) > 1e-3


@pytest.mark.parametrize("text", ["", "\x00\x00\x00", "a"], ids=["empty", "nul", "one"])
def test_the_shortest_texts(model: BltModel, text: str) -> None:
    logits = alone(model, text)
    assert logits.shape == (len(text) + 1, 260)
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("threshold", [-1.0, 99.0], ids=["always", "never"])
def test_thresholds_that_fire_always_or_never(model: BltModel, threshold: float) -> None:
    rule = PatchConfig("entropy", threshold=threshold)
    other = BltModel(config(patching=rule))
    other.update(model.parameters())
    ids = mx.array(ids_of(TEXTS[0]))[None]
    assert other.patching(ids).count == (ids.shape[1] if threshold < 0 else 2)
    assert np.isfinite(alone(other, TEXTS[0])).all()


def test_entropy_patches_need_an_entropy_model() -> None:
    model = BltModel(config(entropy=None))
    with pytest.raises(ConfigError, match='use mode "space"'):
        model(mx.array([[BOS, 70]]))


def test_the_entropy_model_is_not_trained_with_the_rest() -> None:
    model = BltModel(config())
    names = [name for name, _ in tree_flatten(model.trainable_parameters())]
    assert names
    assert not [name for name in names if name.startswith("model.patcher.")]


def test_a_model_without_hash_tables() -> None:
    model = BltModel(config(hash=HashConfig((), 0, 1)))
    assert np.isfinite(alone(model, TEXTS[1])).all()


def test_memory_grows_linearly_with_length() -> None:
    model = BltModel(config("static"))
    mx.eval(model.parameters())
    peaks = []
    for length in (4096, 16384):
        ids = mx.array(np.random.default_rng(0).integers(4, 260, (1, length)).astype(np.int32))
        found = []
        # The least of several: work that is queued faster than it is done holds more at once.
        for _ in range(5):
            mx.reset_peak_memory()
            before = mx.get_active_memory()
            mx.eval(model(ids))
            found.append((mx.get_peak_memory() - before) / length)
        peaks.append(min(found))
    # With one dense byte mask the second would be four times the first.
    assert peaks[1] < 2 * peaks[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder": BlockConfig(32, 1, 2, 24)}, "they must be equal"),
        ({"cross_k": 0}, "cross_k is 0"),
        ({"context": 1}, "context is 1"),
    ],
)
def test_parts_that_do_not_fit(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**change)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((16, 1, 3, 8), "does not split into 3 heads"),
        ((6, 1, 2, 8), "heads of even width"),
        ((16, 0, 2, 8), "layers is 0"),
    ],
)
def test_blocks_that_cannot_be(values: tuple, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BlockConfig(*values)


def test_a_rule_that_is_not_known_or_lacks_its_threshold() -> None:
    with pytest.raises(ConfigError, match="expected one of entropy, monotonic"):
        PatchConfig("words")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="needs rise_threshold"):
        PatchConfig("combined")


def test_a_flat_model_keeps_documents_apart() -> None:
    mx.random.seed(1)
    model = ByteLM(ByteLMConfig(BlockConfig(16, 2, 2, 24, window=12), context=64))
    ids, documents = packed(TEXTS[:2])
    found = np.array(model(ids, documents))[0]
    first = len(ids_of(TEXTS[0]))
    np.testing.assert_allclose(found[:first], np.array(model(ids[:, :first]))[0], atol=1e-5)
    np.testing.assert_allclose(found[first:], np.array(model(ids[:, first:]))[0], atol=1e-5)


def test_entropies_of_a_flat_model_do_not_leak_between_rows() -> None:
    mx.random.seed(1)
    model = ByteLM(ByteLMConfig(BlockConfig(16, 2, 2, 24, window=12), context=64))
    a, b = (mx.array(ids_of(text)[:20])[None] for text in TEXTS[:2])
    both = np.array(model.entropies(mx.concatenate([a, b])))
    np.testing.assert_allclose(both[0], np.array(model.entropies(a))[0], atol=1e-5)
    np.testing.assert_allclose(both[1], np.array(model.entropies(b))[0], atol=1e-5)


def test_the_released_shape_is_the_default() -> None:
    released = BltConfig()
    assert (released.encoder.width, released.latent.layers, released.decoder.layers) == (
        1024,
        25,
        9,
    )
    assert released.patch_width == released.latent.width == 2048
    assert replace(released, cross_k=1).patch_width == 1024
    assert released.hash.rows == 6 * 500002
