"""Heads: losses against formulas, and classifiers that learn, are saved and predict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from numeric import assert_same, log_softmax
from tiny import tiny_llama
from training_models import distance

from mlx_companion.errors import AdapterError, ConfigError, DataError, WeightsError
from mlx_companion.lora import LoraConfig, adapter_parameters, attach, detach, is_attached
from mlx_companion.models.classifier import (
    Classifier,
    ClassifierConfig,
    hidden_states,
    load_classifier,
    make_classifier,
    pool,
    read_classifier,
)
from mlx_companion.models.load import LanguageModel, load
from mlx_companion.training import TrainConfig, Trainer
from mlx_companion.training.classifier_files import load_tuned, save_tuned
from mlx_companion.training.classifier_loss import (
    ClassifierLoss,
    ContrastiveLoss,
    LabelledRows,
    TextPairRows,
    info_nce,
    label_cross_entropy,
    labelled_rows,
    unit,
)
from mlx_companion.training.gradients import GradientEngine

RNG = np.random.default_rng(2)
LOGITS = 3 * RNG.standard_normal((4, 5))
LABELS = np.array([3, 0, 3, 4])
WEIGHTS = np.array([1.0, 0.5, 2.0, 0.0, 3.0])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_label_cross_entropy_follows_its_formula(smoothing: float) -> None:
    def formula(logits: np.ndarray) -> float:
        each, total = log_softmax(logits), 0.0
        for row, label in zip(each, LABELS, strict=True):
            total -= (1 - smoothing) * WEIGHTS[label] * row[label]
            total -= smoothing / 5 * (WEIGHTS * row).sum()
        return total

    weights = mx.array(WEIGHTS.astype(np.float32))
    assert_same(
        lambda x: label_cross_entropy(x, mx.array(LABELS), weights, smoothing).sum(),
        formula,
        LOGITS,
    )


@pytest.mark.parametrize("groups", [[0, 1, 2, 3], [0, 1, 0, 1]])
def test_info_nce_follows_its_formula(groups: list[int]) -> None:
    first, second = RNG.standard_normal((2, 4, 6))
    positives = np.array(groups)[:, None] == np.array(groups)[None]

    def formula(first: np.ndarray) -> float:
        a = first / np.linalg.norm(first, axis=1, keepdims=True)
        b = second / np.linalg.norm(second, axis=1, keepdims=True)
        total = 0.0
        for i in range(4):
            scores = np.array([a[i] @ b[k] / 0.3 for k in range(4)])
            each = scores - np.log(np.exp(scores).sum())
            total -= each[positives[i]].mean()
        return total

    def loss(first: mx.array) -> mx.array:
        b = unit(mx.array(second.astype(np.float32)))
        return info_nce(unit(first), b, mx.array(positives), 0.3)[0].sum()

    assert_same(loss, formula, first, tolerance=5e-5)


def test_vectors_of_nothing_have_a_gradient() -> None:
    slope = mx.grad(lambda v: unit(v).sum())(mx.zeros((2, 3)))
    assert np.isfinite(np.array(slope)).all()


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return load(tiny_llama(tmp_path_factory.mktemp("classifier") / "model", num_hidden_layers=3))


@pytest.fixture(autouse=True)
def bare(lm: LanguageModel) -> None:
    detach(lm.model)
    lm.model.freeze()


TEXTS = {
    "garden": ["peas in rows", "the garden is quiet", "carrots and beans", "rain on the garden"],
    "number": ["12 and 30", "half of 42", "the sum is 21", "1 2 3 4"],
    "travel": ["the train leaves", "meet you at the station", "how far is Porto", "to Porto"],
}  # fmt: skip
SAMPLES = [(text, label) for label, texts in TEXTS.items() for text in texts]


def rows_for(classifier: Classifier, **options: Any) -> LabelledRows:
    return labelled_rows(classifier, *zip(*SAMPLES, strict=True), **options)


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("layer", [None, 1, 3])
def test_pooled_states_do_not_see_padding(
    lm: LanguageModel, pooling: Any, layer: int | None
) -> None:
    rows = [[5, 6, 7, 8], [9, 10]]
    tokens = mx.array([rows[0], [*rows[1], 0, 0]])
    found = pool(hidden_states(lm.model, tokens, layer), mx.array([4, 2]), pooling)
    for at, row in enumerate(rows):
        hidden = np.array(hidden_states(lm.model, mx.array([row]), layer))[0]
        expected = hidden[-1] if pooling == "last" else hidden.mean(axis=0)
        np.testing.assert_allclose(np.array(found)[at], expected, atol=1e-5)


def test_layers_above_the_chosen_one_do_not_run(lm: LanguageModel) -> None:
    tokens = mx.array([[5, 6, 7]])
    inner = lm.model.model
    hidden = inner.embed_tokens(tokens)
    for layer in inner.layers[:2]:
        hidden = layer(hidden, "causal")
    expected = np.array(inner.norm(hidden))
    np.testing.assert_allclose(np.array(hidden_states(lm.model, tokens, 2)), expected, atol=1e-5)
    assert len(inner.layers) == 3


@pytest.mark.parametrize("adapters", [False, True])
def test_a_classifier_learns_and_is_kept(lm: LanguageModel, tmp_path: Path, adapters: bool) -> None:
    if adapters:
        attach(lm.model, LoraConfig(rank=4))
    classifier = make_classifier(lm, list(TEXTS), pooling="mean", template="Say: {text}!")
    loss = ClassifierLoss(label_smoothing=0.02)
    lr = 5e-3 if adapters else 3e-2
    settings = TrainConfig(epochs=25, lr=lr, schedule="constant")
    Trainer(classifier, rows_for(classifier, batch_tokens=64), loss=loss, config=settings).run()
    assert loss.metrics.take(True)["accuracy"] > 0.5
    texts = [text for text, _ in SAMPLES]
    found = classifier.predict(texts, batch_tokens=40)
    hits = [p.label == label for p, (_, label) in zip(found, SAMPLES, strict=True)]
    assert np.mean(hits) > 0.9
    for prediction in found:
        assert prediction.probabilities.sum() == pytest.approx(1, abs=1e-5)
        assert prediction.probability == prediction.probabilities.max()
    sha = classifier.save(tmp_path / "kept", {"note": 1})
    again = load_classifier(tmp_path / "kept", lm)
    about = read_classifier(tmp_path / "kept")
    assert (about["weights_sha256"], about["extra"]) == (sha, {"note": 1})
    assert again.config == classifier.config
    for one, other in zip(found, again.predict(texts), strict=True):
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-5)
    if adapters:
        assert all(name.startswith("model.") for name in adapter_parameters(classifier))


def test_predictions_do_not_depend_on_their_batch(lm: LanguageModel) -> None:
    classifier = make_classifier(lm, ["a", "b"])
    classifier.head.weight = mx.random.normal(classifier.head.weight.shape, key=mx.random.key(0))
    texts = ["one", "a much longer text than the others are", "", "two words"]
    together = classifier.predict(texts)
    for text, expected in zip(texts, together, strict=True):
        (alone,) = classifier.predict([text])
        np.testing.assert_allclose(alone.probabilities, expected.probabilities, atol=1e-5)
    assert classifier.predict([]) == []


def test_odds_follow_bayes_rule(lm: LanguageModel) -> None:
    plain = make_classifier(lm, ["a", "b", "c"])
    plain.head.weight = mx.random.normal(plain.head.weight.shape, key=mx.random.key(5))
    likelier = make_classifier(lm, ["a", "b", "c"], odds={"b": 7.0})
    likelier.head.weight = plain.head.weight
    before = np.array([p.probabilities for p in plain.predict(list(TEXTS))])
    after = likelier.predict(list(TEXTS))
    weighed = before * [1, 7, 1]
    expected = weighed / weighed.sum(axis=1, keepdims=True)
    np.testing.assert_allclose([p.probabilities for p in after], expected, atol=1e-5)
    assert [p.label for p in after] == ["abc"[row.argmax()] for row in expected]
    for odds in ({"d": 2.0}, {"a": 0.0}):
        with pytest.raises(ConfigError, match="odds"):
            make_classifier(lm, ["a", "b"], odds=odds)


def test_the_template_survives_the_cut(lm: LanguageModel) -> None:
    classifier = make_classifier(lm, ["a", "b"], template="Say: {text} end", max_tokens=5)
    decode = lm.tokenizer.decode
    short = decode(classifier.encode("hi"))
    assert short == "Say: hi end"
    long = decode(classifier.encode("the garden is quiet this morning " * 9))
    assert long.startswith("Say: the")
    assert long.endswith(" end")
    assert len(classifier.encode("x " * 99)) < 20


def test_weights_of_labels_are_normalised_as_pytorch_does(lm: LanguageModel) -> None:
    classifier = make_classifier(lm, list(TEXTS))
    classifier.head.weight = mx.random.normal(classifier.head.weight.shape, key=mx.random.key(0))
    classifier.eval()
    loss = ClassifierLoss({"garden": 3.0, "travel": 0.5})
    loss.ready(classifier)
    batch = rows_for(classifier).batch((0, 5, 9))
    total, count = loss(classifier, batch)
    logits = np.array(classifier(batch.rows.tokens, batch.rows.lengths)).astype(np.float64)
    each = -log_softmax(logits)[np.arange(3), [0, 1, 2]]
    assert count.item() == 4.5
    assert total.item() == pytest.approx((each * [3.0, 1.0, 0.5]).sum(), rel=1e-5)


def test_parts_of_a_batch_add_up(lm: LanguageModel) -> None:
    attach(lm.model, LoraConfig(rank=4))
    classifier = make_classifier(lm, list(TEXTS))
    classifier.head.weight = mx.random.normal(classifier.head.weight.shape, key=mx.random.key(0))
    classifier.train()
    batch = rows_for(classifier, batch_tokens=10_000).batch(tuple(range(12)))
    streams = [mx.default_stream(mx.default_device())]
    engine = GradientEngine(classifier, ClassifierLoss(), streams)
    whole, parts = engine.add(batch), engine.add(batch, pieces=3)
    assert (parts.targets, parts.loss) == pytest.approx((whole.targets, whole.loss), rel=1e-5)
    assert distance(parts.gradients, whole.gradients) < 1e-4


def test_recomputed_layers_change_nothing(lm: LanguageModel) -> None:
    found = []
    for recompute in (False, True):
        detach(lm.model)
        attach(lm.model, LoraConfig(rank=4))
        classifier = make_classifier(lm, list(TEXTS))
        settings = TrainConfig(epochs=2, lr=1e-2, gradient_checkpointing=recompute)
        source = rows_for(classifier, batch_tokens=64)
        Trainer(classifier, source, loss=ClassifierLoss(), config=settings).run()
        found.append(np.array(classifier.head.weight))
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)


def test_texts_that_belong_together_come_near(lm: LanguageModel) -> None:
    attach(lm.model, LoraConfig(rank=4))
    encode = lm.tokenizer.encode
    first = [encode(text) for text, _ in SAMPLES]
    second = [encode(TEXTS[label][(at + 1) % 4]) for at, (_, label) in enumerate(SAMPLES)]
    groups = [list(TEXTS).index(label) for _, label in SAMPLES]
    source = TextPairRows(first, second, groups, batch_tokens=10_000)
    loss = ContrastiveLoss(0.2)
    settings = TrainConfig(epochs=15, lr=1e-2, schedule="constant")
    summary = Trainer(lm.model, source, valid=source, loss=loss, config=settings).run()
    assert summary.valid_before is not None
    assert summary.valid_after is not None
    assert summary.valid_after < summary.valid_before - 0.3
    assert loss.metrics.take(False)["accuracy"] > 0.5


def test_a_symmetric_loss_looks_both_ways(lm: LanguageModel) -> None:
    rows = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
    there = TextPairRows(rows, rows[::-1]).batch((0, 1, 2))
    back = TextPairRows(rows[::-1], rows).batch((0, 1, 2))
    lm.model.eval()
    one, both = ContrastiveLoss(0.1, symmetric=False), ContrastiveLoss(0.1)
    expected = (one(lm.model, there)[0] + one(lm.model, back)[0]) / 2
    assert both(lm.model, there)[0].item() == pytest.approx(expected.item(), rel=1e-5)


def test_bad_input_is_refused(lm: LanguageModel) -> None:
    for wrong in (
        {"labels": ("a",)},
        {"labels": ("a", "a")},
        {"labels": ("a", "b"), "pooling": "max"},
        {"labels": ("a", "b"), "layer": 0},
        {"labels": ("a", "b"), "template": "none"},
        {"labels": ("a", "b"), "dropout": 1.0},
    ):
        with pytest.raises(ConfigError):
            ClassifierConfig(**wrong)
    with pytest.raises(ConfigError, match="layer is 9; the model has 3"):
        make_classifier(lm, ["a", "b"], layer=9)
    classifier = make_classifier(lm, ["a", "b"])
    with pytest.raises(DataError, match="'c' is none of the classifier's 2 labels"):
        labelled_rows(classifier, ["x"], ["c"])
    with pytest.raises(ConfigError, match="name 'c', which is no label"):
        ClassifierLoss({"c": 2.0}).ready(classifier)
    with pytest.raises(DataError, match="2 texts and 1 labels"):
        LabelledRows([[1], [2]], [0])
    with pytest.raises(TypeError, match="list of texts"):
        classifier.predict("one text")
    with pytest.raises(ConfigError, match="temperature"):
        ContrastiveLoss(0.0)


@pytest.mark.parametrize("damage", ["missing", "cut", "base", "format", "labels", "shape"])
def test_damaged_folders_are_refused(lm: LanguageModel, tmp_path: Path, damage: str) -> None:
    make_classifier(lm, ["a", "b"]).save(tmp_path / "kept")
    head, config = tmp_path / "kept/head.safetensors", tmp_path / "kept/classifier.json"
    about = json.loads(config.read_text())
    if damage == "missing":
        config.unlink()
    elif damage == "cut":
        head.write_bytes(head.read_bytes()[:-1])
    else:
        changes = {
            "base": {"base_sha256": "0" * 64},
            "format": {"format_version": 99},
            "labels": {"classifier": {"labels": ["a"]}},
            "shape": {"classifier": about["classifier"] | {"labels": ["a", "b", "c"]}},
        }
        config.write_text(json.dumps(about | changes[damage]))
    with pytest.raises(WeightsError):
        load_classifier(tmp_path / "kept", lm)


def test_head_and_adapter_are_kept_together(lm: LanguageModel, tmp_path: Path) -> None:
    attach(lm.model, LoraConfig(rank=4))
    classifier = make_classifier(lm, list(TEXTS))
    settings = TrainConfig(epochs=2, lr=1e-2)
    source = rows_for(classifier, batch_tokens=64)
    Trainer(classifier, source, loss=ClassifierLoss(), config=settings).run()
    texts = [text for text, _ in SAMPLES]
    expected = np.array([p.probabilities for p in classifier.predict(texts)])
    save_tuned(tmp_path / "tuned", classifier)
    detach(lm.model)
    for given in (lm, None):
        again = load_tuned(tmp_path / "tuned", given)
        found = np.array([p.probabilities for p in again.predict(texts)])
        np.testing.assert_allclose(found, expected, atol=1e-5)
    weights = tmp_path / "tuned/adapter/adapters.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(AdapterError, match="corrupt"):
        load_tuned(tmp_path / "tuned", lm)
    # A head without an adapter runs on the bare model.
    detach(lm.model)
    save_tuned(tmp_path / "head", make_classifier(lm, ["a", "b"]))
    attach(lm.model, LoraConfig(rank=4))
    load_tuned(tmp_path / "head", lm)
    assert not is_attached(lm.model)


def test_only_the_head_and_adapters_train(lm: LanguageModel) -> None:
    classifier = make_classifier(lm, ["a", "b"])
    names = {name for name, _ in nn.utils.tree_flatten(classifier.trainable_parameters())}
    assert names == {"head.weight", "head.bias"}
