"""Distillation: divergences against a formula, the loss against full logits, the cache on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from numeric import assert_same, log_softmax
from training_models import VOCABULARY, adapted, distance, llama, rows

from mlx_companion.errors import ConfigError, DataError, TrainingError
from mlx_companion.text import Batch, LengthBuckets, collate
from mlx_companion.training import TrainConfig, Trainer
from mlx_companion.training import logprobs as logprobs_module
from mlx_companion.training.distill import DistillLoss, divergence, vocabulary_of, with_rest
from mlx_companion.training.gradients import GradientEngine
from mlx_companion.training.losses import sft_loss
from mlx_companion.training.teacher_cache import TaughtRows, teacher_cache

RNG = np.random.default_rng(8)
STUDENT, TEACHER = 4 * RNG.standard_normal((3, 9)), 4 * RNG.standard_normal((3, 9))
KINDS = ("forward", "reverse", "jsd")


def formula(student: np.ndarray, teacher: np.ndarray, kind: str, mix: float) -> np.ndarray:
    s, t = log_softmax(student), log_softmax(teacher)
    p, q = np.exp(s), np.exp(t)
    if kind == "forward":
        return (q * (t - s)).sum(axis=-1)
    if kind == "reverse":
        return (p * (s - t)).sum(axis=-1)
    m = np.log((1 - mix) * p + mix * q)
    return mix * (q * (t - m)).sum(axis=-1) + (1 - mix) * (p * (s - m)).sum(axis=-1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mix", [0.1, 0.5])
def test_divergences_follow_their_formulas(kind: Any, mix: float) -> None:
    teacher = mx.array(TEACHER.astype(np.float32))
    assert_same(
        lambda student: divergence(student, teacher, kind, mix).sum(),
        lambda student: float(formula(student, TEACHER, kind, mix).sum()),
        STUDENT,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_equal_distributions_are_not_apart(kind: Any) -> None:
    logits = mx.array(STUDENT.astype(np.float32))
    assert np.abs(np.array(divergence(logits, logits + 3.0, kind, 0.5))).max() < 1e-5


def test_logits_far_apart_stay_finite() -> None:
    logits = mx.array([[500.0, -500.0, 0.0]])
    for kind in KINDS:
        value, slope = mx.value_and_grad(
            lambda s, kind=kind: divergence(s, -logits, kind, 0.5).sum()
        )(logits)
        assert np.isfinite(value.item())
        assert np.isfinite(np.array(slope)).all()


def test_the_rest_counts_as_one_token() -> None:
    each = log_softmax(STUDENT)
    found = np.array(with_rest(mx.array(each[:, :4].astype(np.float32))))
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, atol=1e-5)
    everything = np.array(with_rest(mx.array(each.astype(np.float32))))
    assert np.isfinite(everything).all()


def full_loss(teacher: nn.Module, loss: DistillLoss) -> Any:
    """The same from all logits of both models."""

    def compute(model: nn.Module, batch: Batch) -> tuple[mx.array, mx.array]:
        logits, labels = model(batch.tokens[:, :-1]), batch.tokens[:, 1:]
        taught = mx.stop_gradient(teacher(batch.tokens[:, :-1]))
        t = loss.temperature
        apart = divergence(logits / t, taught / t, loss.kind, loss.mix) * t * t
        each = apart + loss.ce_weight * nn.losses.cross_entropy(logits, labels)
        mask = batch.targets[:, 1:]
        return (each * mask).sum(), mask.sum()

    return compute


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("own_base", [False, True])
@pytest.mark.parametrize("prefix", [0, 24])
def test_the_loss_agrees_with_full_logits(
    kind: Any, own_base: bool, prefix: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs_module, "chunk_rows", lambda vocabulary, rows, elements: 7)
    model = adapted()
    teacher = llama() if own_base else llama(seed=5, hidden_size=48)
    loss = DistillLoss(None if own_base else teacher, kind, temperature=1.7, mix=0.3, ce_weight=0.4)
    loss.ready(model)
    model.train()
    batch = collate(rows(5, prefix=prefix), range(5))
    (expected, number), slopes = nn.value_and_grad(model, full_loss(teacher, loss))(model, batch)
    (got, count), gradients = nn.value_and_grad(model, loss)(model, loss.prepare(batch))
    assert count.item() == number.item()
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)
    assert distance(gradients, slopes) < 1e-4


def test_a_head_that_trains_gets_its_gradient() -> None:
    model, teacher = llama(), llama(seed=5)
    model.train()
    loss = DistillLoss(teacher)
    batch = collate(rows(4), range(4))
    _, slopes = nn.value_and_grad(model, full_loss(teacher, loss))(model, batch)
    _, gradients = nn.value_and_grad(model, loss)(model, batch)
    assert distance(gradients, slopes) < 1e-4
    assert float(mx.abs(gradients["lm_head"]["weight"]).max()) > 0


def test_memory_is_a_fraction_of_full_logits() -> None:
    model, teacher = adapted(vocab_size=20_000), llama(seed=5, vocab_size=20_000)
    model.train()
    loss = DistillLoss(teacher)
    loss.ready(model)
    batch = collate(rows(24, longest=60), range(24))

    def peak(function: Any, given: Any) -> int:
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(nn.value_and_grad(model, function)(model, given))
        return mx.get_peak_memory() - before

    assert peak(loss, loss.prepare(batch)) < 0.3 * peak(full_loss(teacher, loss), batch)


def test_a_student_learns_from_its_teacher() -> None:
    model, teacher = adapted(zero=True), adapted(seed=0)
    source = LengthBuckets(rows(12), batch_tokens=200)
    config = TrainConfig(epochs=12, lr=2e-2, schedule="constant")
    summary = Trainer(
        model, source, valid=source, loss=DistillLoss(teacher, "forward"), config=config
    ).run()
    assert summary.valid_before is not None
    assert summary.valid_after is not None
    assert summary.valid_after < 0.4 * summary.valid_before
    assert summary.valid_after > 0


def test_a_cache_of_everything_is_the_teacher(tmp_path: Path) -> None:
    model, teacher = adapted(), llama(seed=5)
    source = LengthBuckets(rows(9), batch_tokens=120)
    cache = teacher_cache(teacher, source, tmp_path / "t", k=VOCABULARY, temperature=1.5)
    taught = TaughtRows(source, cache)
    for kind in KINDS:
        cached = DistillLoss(kind=kind, temperature=1.5)
        plain = DistillLoss(teacher, kind=kind, temperature=1.5)
        for indices in source.epoch(0):
            got = cached(model, taught.batch(indices))
            expected = plain(model, source.batch(indices))
            # Half precision keeps a log-probability of -6 to 0.002.
            assert got[0].item() == pytest.approx(expected[0].item(), rel=0.02)
            assert got[1].item() == expected[1].item()


def test_a_cache_of_a_few_tokens_is_a_lower_bound(tmp_path: Path) -> None:
    model, teacher = adapted(), llama(seed=5)
    source = LengthBuckets(rows(6), batch_tokens=10_000)
    batch = source.batch(tuple(range(6)))
    whole = DistillLoss(teacher)(model, batch)[0].item()
    found = []
    for k in (1, 4, 16, 48):
        cache = teacher_cache(teacher, source, tmp_path / str(k), k=k)
        taught = TaughtRows(source, cache).batch(tuple(range(6)))
        found.append(DistillLoss()(model, taught)[0].item())
    assert found == sorted(found)
    assert found[-1] < whole * 1.002
    assert found[-1] > 0.85 * whole


def test_a_cache_holds_the_likeliest_tokens(tmp_path: Path) -> None:
    teacher = llama(seed=5)
    source = LengthBuckets(rows(7), batch_tokens=60)
    cache = teacher_cache(teacher, source, tmp_path / "t", k=5, temperature=2.0, fingerprint="a")
    at = 0
    for row in source.encoded:
        logits = np.array(teacher(mx.array([row.tokens[:-1]])))[0] / 2.0
        each = log_softmax(logits.astype(np.float64))[np.array(row.targets[1:])]
        for line in each:
            best = np.argsort(-line)[:5]
            assert set(cache.values["ids"][at].tolist()) == set(best.tolist())
            np.testing.assert_allclose(cache.values["logprobs"][at], line[best], atol=0.01)
            at += 1
    assert at == len(cache.values)
    assert cache.values.dtype.itemsize == 5 * 4
    size = (tmp_path / "t" / "values.npy").stat().st_size
    assert size < 20 * at + 300
    again = teacher_cache(llama(), source, tmp_path / "t", k=5, temperature=2.0, fingerprint="a")
    assert np.array_equal(again.values, cache.values)


def test_parts_of_a_taught_batch_add_up(tmp_path: Path) -> None:
    model, teacher = adapted(), llama(seed=5)
    model.train()
    source = LengthBuckets(rows(8), batch_tokens=10_000)
    taught = TaughtRows(source, teacher_cache(teacher, source, tmp_path / "t", k=8))
    loss = DistillLoss(kind="jsd")
    loss.ready(model)
    streams = [mx.default_stream(mx.default_device())]
    batch = taught.batch(tuple(range(8)))
    whole = GradientEngine(model, loss, streams).add(batch)
    parts = GradientEngine(model, loss, streams).add(batch, pieces=3)
    assert (parts.targets, parts.loss) == pytest.approx((whole.targets, whole.loss), rel=1e-5)
    assert distance(parts.gradients, whole.gradients) < 1e-4
    assert (taught.rows, taught.target_count) == (source.rows, source.target_count)


def test_hard_targets_alone_are_fine_tuning() -> None:
    model = adapted(zero=True)
    batch = collate(rows(4), range(4))
    # Without a change the student is its own teacher, and only the cross-entropy is left.
    got = DistillLoss(ce_weight=1.0)(model, batch)[0].item()
    assert got == pytest.approx(sft_loss(model, batch)[0].item(), rel=1e-5)


def test_bad_input_is_refused(tmp_path: Path) -> None:
    for wrong in ({"kind": "x"}, {"temperature": 0.0}, {"mix": 1.0}, {"ce_weight": -1}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            DistillLoss(**wrong)
    assert vocabulary_of(llama()) == VOCABULARY
    with pytest.raises(ConfigError, match="the student knows 61 tokens and the teacher 70"):
        DistillLoss(llama(vocab_size=70)).ready(adapted())
    with pytest.raises(TrainingError, match="no adapter"):
        DistillLoss()(llama(), collate(rows(2), range(2)))
    source = LengthBuckets(rows(4))
    with pytest.raises(ConfigError, match="k is 100, the teacher knows 61"):
        teacher_cache(llama(), source, tmp_path / "t", k=100)
    cache = teacher_cache(llama(), source, tmp_path / "t", k=2)
    with pytest.raises(ConfigError, match="made at temperature 1, the loss has 2"):
        DistillLoss(temperature=2.0).prepare(TaughtRows(source, cache).batch((0,)))
    with pytest.raises(DataError, match="make it again for these rows"):
        TaughtRows(LengthBuckets(rows(5)), cache)
