"""Preference losses: objectives against formulas, the loss against full logits, whole runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from numeric import assert_same, sigmoid
from training_models import adapted, arrays, distance, llama, rows, same

from mlx_companion.errors import ConfigError, DataError, TrainingError
from mlx_companion.lora import get_multiplier
from mlx_companion.text.preference_records import JudgedCompletion, PreferencePair
from mlx_companion.text.records import Message
from mlx_companion.training import TrainConfig, Trainer
from mlx_companion.training.gradients import GradientEngine
from mlx_companion.training.loss_metrics import LossMetricsLog
from mlx_companion.training.preference_data import (
    EncodedPair,
    PreferenceRows,
    encode_judged,
    encode_pairs,
    only_last_reply,
)
from mlx_companion.training.preference_loss import PreferenceLoss, reference_logprobs
from mlx_companion.training.preference_objectives import (
    OBJECTIVES,
    Dpo,
    Kto,
    Objective,
    Orpo,
    Scores,
    SimPo,
)

RNG = np.random.default_rng(3)
POLICY, REFERENCE = -6 * RNG.random((2, 5)), -6 * RNG.random((2, 5))
COUNTS = RNG.integers(1, 9, (2, 5)).astype(np.float64)
WANTED = np.array([1.0, 0.0, 0.0, 1.0, 0.0])


def softplus(x: np.ndarray) -> np.ndarray:
    return np.log1p(np.exp(x))


def dpo_formula(policy: np.ndarray) -> float:
    ratio = policy - REFERENCE
    margin = 0.3 * (ratio[0] - ratio[1])
    return float((0.8 * softplus(-margin) + 0.2 * softplus(margin)).sum())


def hinge_formula(policy: np.ndarray) -> float:
    ratio = policy - REFERENCE
    return float(np.maximum(0, 1 - 0.3 * (ratio[0] - ratio[1])).sum())


def ipo_formula(policy: np.ndarray) -> float:
    ratio = (policy - REFERENCE) / COUNTS
    return float(((ratio[0] - ratio[1] - 1 / 0.6) ** 2).sum())


def orpo_formula(policy: np.ndarray) -> float:
    p = np.exp(policy / COUNTS)
    odds = p / (1 - p)
    return float(-0.3 * np.log(sigmoid(np.log(odds[0] / odds[1]))).sum())


def simpo_formula(policy: np.ndarray) -> float:
    mean = policy / COUNTS
    return float(-np.log(sigmoid(2 * (mean[0] - mean[1]) - 0.5)).sum())


@pytest.mark.parametrize(
    ("objective", "formula"),
    [
        (Dpo(beta=0.3, label_smoothing=0.2), dpo_formula),
        (Dpo(beta=0.3, form="hinge"), hinge_formula),
        (Dpo(beta=0.3, form="ipo"), ipo_formula),
        (Orpo(weight=0.3), orpo_formula),
        (SimPo(beta=2.0, gamma=0.5), simpo_formula),
    ],
)
def test_objectives_follow_their_formulas(objective: Objective, formula: Any) -> None:
    reference, counts = mx.array(REFERENCE, mx.float32), mx.array(COUNTS, mx.float32)

    def loss(policy: mx.array) -> mx.array:
        return objective(Scores(policy, reference, counts)).losses.sum()

    assert_same(loss, formula, POLICY)


@pytest.mark.parametrize("shift", [2.0, -2.0])
def test_kto_follows_its_formula(shift: float) -> None:
    elsewhere = REFERENCE[1] + shift
    reference, counts = mx.array(REFERENCE, mx.float32), mx.array(COUNTS, mx.float32)

    def formula(policy: np.ndarray) -> float:
        divergence = max(0.0, float((elsewhere - REFERENCE[1]).mean()))
        ratio = policy - REFERENCE[0]
        good = 1.5 * (1 - sigmoid(0.2 * (ratio - divergence)))
        bad = 0.5 * (1 - sigmoid(0.2 * (divergence - ratio)))
        return float(np.where(WANTED > 0, good, bad).sum())

    def loss(policy: mx.array) -> mx.array:
        both = mx.stack([policy, mx.array(elsewhere, mx.float32)])
        scores = Scores(both, reference, counts, mx.array(WANTED, mx.float32))
        return Kto(0.2, 1.5, 0.5)(scores).losses.sum()

    assert_same(loss, formula, POLICY[0])


def test_certain_replies_have_finite_odds() -> None:
    def loss(policy: mx.array) -> mx.array:
        return Orpo()(Scores(policy, None, mx.ones((2, 1)))).losses.sum()

    for low in (-1e-9, -200.0):
        value, gradient = mx.value_and_grad(loss)(mx.array([[0.0], [low]]))
        assert np.isfinite(value.item())
        assert np.isfinite(np.array(gradient)).all()


def pairs(count: int = 8, judged: bool = False, prefix: int = 0) -> list[EncodedPair]:
    first, second = rows(count, 1, prefix=prefix), rows(count, 2, prefix=prefix)
    return [
        EncodedPair(a, b, bool(at % 3) if judged else None)
        for at, (a, b) in enumerate(zip(first, second, strict=True))
    ]


def source_for(objective: Objective, **options: Any) -> PreferenceRows:
    return PreferenceRows(pairs(judged=objective.judged, **options), batch_tokens=10_000)


def full_logprobs(model: nn.Module, batch: Any) -> mx.array:
    """Summed log-probabilities of each row from all logits."""
    logits = model(batch.tokens[:, :-1])
    each = -nn.losses.cross_entropy(logits, batch.tokens[:, 1:])
    return (each * batch.targets[:, 1:]).sum(axis=1)


def full_loss(objective: Objective) -> Any:
    """The same loss, the plain way, with a second model as reference."""
    reference_model = llama()

    def loss(model: nn.Module, batch: Any) -> tuple[mx.array, mx.array]:
        def both(model: nn.Module) -> mx.array:
            first = full_logprobs(model, batch.rows)
            if batch.mismatched is None:
                return first.reshape(2, -1)
            other = mx.stop_gradient(full_logprobs(model, batch.mismatched))
            return mx.stack([first, other])

        lengths = batch.rows.targets[:, 1:].sum(axis=1).astype(mx.float32)
        lengths = lengths.reshape(2, -1) if batch.mismatched is None else mx.stack([lengths] * 2)
        desirable = None if batch.desirable is None else mx.array(batch.desirable)
        scores = Scores(both(model), both(reference_model), lengths, desirable)
        losses = objective(scores).losses
        losses = losses - objective.sft_weight * scores.policy[0] / lengths[0]
        return losses.sum(), mx.array(len(losses))

    return loss


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("prefix", [0, 20])
def test_the_loss_agrees_with_full_logits(name: str, prefix: int) -> None:
    objective = OBJECTIVES[name]
    source = source_for(objective, prefix=prefix)
    batch = source.batch(tuple(range(8)))
    model = adapted()
    loss = PreferenceLoss(objective)
    loss.ready(model)
    model.train()
    (expected, number), slopes = nn.value_and_grad(model, full_loss(objective))(model, batch)
    (got, count), gradients = nn.value_and_grad(model, loss)(model, loss.prepare(batch))
    assert (count.item(), number.item()) == (8, 8)
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)
    assert distance(gradients, slopes) < 1e-4
    assert get_multiplier(model) == 1.0


def test_parts_of_a_batch_add_up() -> None:
    model = adapted()
    model.train()
    batch = source_for(OBJECTIVES["dpo"]).batch(tuple(range(8)))
    loss = PreferenceLoss("dpo")
    loss.ready(model)
    stream = [mx.default_stream(mx.default_device())]
    whole = GradientEngine(model, loss, stream).add(batch)
    parts = GradientEngine(model, loss, stream).add(batch, pieces=3)
    assert parts.targets == whole.targets == 8
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
    assert distance(parts.gradients, whole.gradients) < 1e-4


def test_judged_replies_stay_together() -> None:
    batch = source_for(OBJECTIVES["kto"]).batch((0, 1, 2))
    assert batch.split_rows(3) == [batch]


def test_the_reference_may_be_computed_before(tmp_path: Path) -> None:
    model = adapted()
    source = source_for(OBJECTIVES["dpo"])
    known = reference_logprobs(model, source, tmp_path / "reference", "model+data")
    again = reference_logprobs(llama(), source, tmp_path / "reference", "model+data")
    assert np.array_equal(known, again)
    np.testing.assert_allclose(known, reference_logprobs(llama(), source), rtol=1e-5)
    loss = PreferenceLoss("dpo")
    plain = loss(model, source.batch((1, 4, 2)))
    kept = loss(model, source.with_reference(known).batch((1, 4, 2)))
    assert kept[0].item() == pytest.approx(plain[0].item(), rel=1e-5)


def test_the_reference_has_no_dropout() -> None:
    model = adapted(dropout=0.5)
    model.train()
    source = source_for(OBJECTIVES["dpo"])
    figures = []
    for _ in range(2):
        loss = PreferenceLoss(Dpo(beta=1.0))
        loss(model, source.batch((0,)))
        figures.append(loss.metrics.take(True)["reward_chosen"])
    # Only the policy's dropout may differ; the reference is the base model to the bit.
    assert figures[0] != figures[1]
    model.eval()
    known = reference_logprobs(model, source)
    assert np.array_equal(known, reference_logprobs(model, source))


def test_without_adapters_a_reference_must_be_given() -> None:
    model = llama()
    with pytest.raises(TrainingError, match=r"no adapter to switch off.*before training"):
        PreferenceLoss("dpo")(model, source_for(OBJECTIVES["dpo"]).batch((0,)))
    tuned = adapted()
    tuned.model.norm.unfreeze()
    with pytest.raises(TrainingError, match=r"model\.norm\.weight is trained beside the adapters"):
        PreferenceLoss("dpo")(tuned, source_for(OBJECTIVES["dpo"]).batch((0,)))
    assert PreferenceLoss("simpo")(model, source_for(OBJECTIVES["simpo"]).batch((0,)))[1] == 1


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_run_tells_good_from_bad(name: str, tmp_path: Path) -> None:
    model = adapted(zero=True)
    loss = PreferenceLoss(name)
    source = PreferenceRows(pairs(judged=loss.objective.judged), batch_tokens=160)
    log = LossMetricsLog(loss.metrics, tmp_path / "log.jsonl")
    config = TrainConfig(epochs=6, lr=1e-2, schedule="constant")
    Trainer(model, source, valid=source, loss=loss, config=config, callbacks=[log]).run()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "step"]
    last = [line for line in lines if line["event"] == "eval"][-1]
    assert len(steps) == 6 * len(source.epoch(0))
    if loss.objective.judged:
        assert last["reward_desirable"] > last["reward_undesirable"] + 0.01
    else:
        assert last["accuracy"] > 0.85
        assert last["margin"] == pytest.approx(
            last["reward_chosen"] - last["reward_rejected"], abs=1e-4
        )
    assert lines[0]["event"] == "eval"
    assert lines[0]["loss"] > last["loss"]


def test_runs_repeat_to_the_bit() -> None:
    found = []
    for _ in range(2):
        model = adapted(zero=True, dropout=0.1)
        source = PreferenceRows(pairs(), batch_tokens=160, seed=4)
        config = TrainConfig(epochs=2, lr=1e-2, seed=4)
        Trainer(model, source, loss=PreferenceLoss("dpo"), config=config).run()
        found.append(arrays(model))
    assert same(*found)


def test_figures_nobody_takes_use_no_memory() -> None:
    model, loss = adapted(), PreferenceLoss("simpo")
    model.eval()
    batch = source_for(OBJECTIVES["simpo"]).batch((0,))
    for _ in range(150):
        mx.eval(loss(model, loss.prepare(batch)))
    assert len(loss.metrics._pending[False]) <= 66
    assert 0 <= loss.metrics.take(False)["accuracy"] <= 1
    assert loss.metrics.take(False) == {}


def test_plans_and_counts() -> None:
    source = PreferenceRows(pairs(9), batch_tokens=120, seed=1)
    plan = source.epoch(2)
    assert sorted(at for part in plan for at in part) == list(range(9))
    assert all(source.slots(part) <= 120 or len(part) == 1 for part in plan)
    assert source.rows == source.target_count == 9
    assert source.tokens((0, 3)) <= source.slots((0, 3))
    assert source.epoch(2) == plan != source.epoch(3)


class Tokenizer:
    """Characters; a turn is `role:content`, with an end where it is the assistant's."""

    all_special_ids = (1,)
    eos_token_id, eos_token_ids = 1, {1}
    has_chat_template = True
    chat_template = "yes"

    def apply_chat_template(self, messages: Any, **options: Any) -> Any:
        text = "".join(
            f"{m['role'][0]}:{m['content']}" + ("\x01" if m["role"] == "assistant" else "")
            for m in messages
        )
        return text + ("a:" if options.get("add_generation_prompt") else "")

    def encode(self, text: str, **_: Any) -> list[int]:
        return [ord(c) for c in text]

    def decode(self, tokens: list[int], **_: Any) -> str:
        return "".join(map(chr, tokens))


PROMPT = (Message("user", "hi"), Message("assistant", "yes?"), Message("user", "go on"))


def test_only_the_last_reply_counts() -> None:
    (pair,), report = encode_pairs([PreferencePair(PROMPT, "good", "bad")], Tokenizer(), 100)
    for row, reply in ((pair.first, "good\x01"), (pair.second, "bad\x01")):
        scored = [chr(t) for t, wanted in zip(row.tokens, row.targets, strict=True) if wanted]
        assert "".join(scored) == reply
    assert (report.kept, report.truncated, report.targets) == (1, 0, 9)
    assert only_last_reply(pair.first) == pair.first


def test_what_is_cut_is_reported() -> None:
    whole = len("u:hia:yes?\x01u:go ona:good\x01")
    given = [
        PreferencePair(PROMPT, "good", "bad", "a:1"),
        PreferencePair(PROMPT, "good one", "good two", "a:2"),
        PreferencePair((Message("user", "x" * 50),), "good", "bad", "a:3"),
        PreferencePair(PROMPT, "longer by far", "bad", "a:4"),
    ]
    found, report = encode_pairs(given, Tokenizer(), whole)
    assert len(found) == report.kept == 2
    assert report.truncated == 1
    assert [drop.source for drop in report.dropped] == ["a:2", "a:3"]
    assert "same first" in report.dropped[0].reason
    assert "no room" in report.dropped[1].reason


def test_mismatched_replies_belong_to_other_prompts() -> None:
    asked = [(Message("user", f"q{at % 3}"),) for at in range(7)]
    given = [JudgedCompletion(p, f"reply {p[0].content}", True) for p in asked]
    found, _ = encode_judged(given, Tokenizer(), 100, seed=5)
    for item, pair in zip(given, found, strict=True):
        text = Tokenizer().decode(pair.second.tokens)
        assert text.startswith(f"u:{item.prompt[0].content}a:reply q")
        assert not text.endswith(f"{item.completion}\x01")
    with pytest.raises(DataError, match="two different prompts"):
        encode_judged(given[:1], Tokenizer(), 100)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ConfigError, match="called 'dop'; use dpo"):
        PreferenceLoss("dop")
    with pytest.raises(ConfigError, match="Kto takes judged replies, but the rows are pairs"):
        PreferenceLoss("kto")(adapted(), source_for(OBJECTIVES["dpo"]).batch((0,)))
    with pytest.raises(ConfigError, match="Dpo takes pairs, but the rows are judged replies"):
        PreferenceLoss("dpo")(adapted(), source_for(OBJECTIVES["kto"]).batch((0,)))
    for wrong in ({"beta": 0.0}, {"label_smoothing": 0.5}, {"form": "x"}):
        with pytest.raises(ConfigError):
            Dpo(**wrong)
    with pytest.raises(ConfigError, match="goes with form 'sigmoid'"):
        Dpo(form="ipo", label_smoothing=0.1)
    with pytest.raises(DataError, match="mixed"):
        PreferenceRows([*pairs(2), *pairs(2, judged=True)])
    with pytest.raises(DataError, match="3 pairs need"):
        PreferenceRows(pairs(3), reference=np.zeros((2, 4), dtype=np.float32))
