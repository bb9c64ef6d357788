"""Policy optimization: the objective against a formula, rollouts, and rewards that go up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numeric import assert_same
from tiny import tiny_llama
from training_models import arrays, distance, same

from mlx_companion.errors import CheckpointError, ConfigError, TrainingError
from mlx_companion.lora import LoraConfig, attach, detach, set_multiplier
from mlx_companion.models.load import LanguageModel, load
from mlx_companion.text.prompt_records import PromptRow
from mlx_companion.training import TrainConfig, Trainer
from mlx_companion.training.gradients import GradientEngine
from mlx_companion.training.grpo import GroupScores, Grpo, GrpoLoss, advantages, k3
from mlx_companion.training.loss_metrics import LossMetricsLog
from mlx_companion.training.rng import get_random_state
from mlx_companion.training.rollouts import RolloutConfig, RolloutSource

RNG = np.random.default_rng(5)
SHAPE = (4, 6)
POLICY = -3 * RNG.random(SHAPE)
BEHAVIOUR = POLICY + 0.6 * (RNG.random(SHAPE) - 0.5)
REFERENCE = -3 * RNG.random(SHAPE)
GAINS = np.array([1.3, -0.6, 0.2, -1.1])
MASK = (np.arange(6)[None] < np.array([[6], [3], [1], [4]])).astype(np.float64)
BUDGET = 10


def formula(objective: Grpo) -> Any:
    """Token by token, in plain Python."""
    high = 1 + (objective.eps_low if objective.eps_high is None else objective.eps_high)

    def row_ratio(policy: np.ndarray, row: int, at: int) -> float:
        if objective.ratio == "token":
            return float(np.exp(policy[row, at] - BEHAVIOUR[row, at]))
        inside = MASK[row] > 0
        return float(np.exp((policy[row] - BEHAVIOUR[row])[inside].mean()))

    def token(policy: np.ndarray, row: int, at: int) -> float:
        ratio, gain = row_ratio(policy, row, at), GAINS[row]
        free = ratio if objective.ratio_cap is None else min(ratio, objective.ratio_cap)
        clipped = min(max(ratio, 1 - objective.eps_low), high)
        value = -min(free * gain, clipped * gain)
        difference = REFERENCE[row, at] - policy[row, at]
        return value + objective.kl_weight * (np.exp(difference) - difference - 1)

    def loss(policy: np.ndarray) -> float:
        rows = [[token(policy, row, at) for at in range(6) if MASK[row, at]] for row in range(4)]
        if objective.normalisation == "sequence":
            return sum(sum(row) / len(row) for row in rows) / 4
        total = sum(map(sum, rows))
        return total / (4 * BUDGET if objective.normalisation == "constant" else MASK.sum())

    return loss


@pytest.mark.parametrize(
    "objective",
    [
        Grpo(),
        Grpo(eps_low=0.1, eps_high=0.28, normalisation="token", kl_weight=0.2),
        Grpo(normalisation="constant", kl_weight=0.05),
        Grpo(ratio="sequence", eps_low=0.05),
        Grpo(ratio_cap=1.22, normalisation="token"),
    ],
)
def test_the_objective_follows_its_formula(objective: Grpo) -> None:
    given = [mx.array(v.astype(np.float32)) for v in (BEHAVIOUR, REFERENCE, MASK, GAINS)]

    def loss(policy: mx.array) -> mx.array:
        losses, _ = objective(GroupScores(policy, *given))
        total, count = objective.reduce(losses, given[2], BUDGET)
        return total / count

    assert_same(loss, formula(objective), POLICY)


def test_completions_that_drifted_away_are_left_out() -> None:
    scores = GroupScores(
        policy=mx.array([[-3.0, -3.0], [-3.0, -3.0], [-1.1, -1.0]]),
        behaviour=mx.full((3, 2), -1.0),
        reference=None,
        mask=mx.ones((3, 2)),
        advantages=mx.array([-1.0, 1.0, -1.0]),
    )
    losses, figures = Grpo(off_policy_limit=0.5)(scores)
    assert np.array(losses)[0].tolist() == [0.0, 0.0]
    assert (np.array(losses)[1:] != 0).all()
    total, count = figures["off_policy"]
    assert (total.item(), count.item()) == (1, 3)


def test_nothing_to_train_on_is_no_division_by_zero() -> None:
    mask = mx.zeros((2, 3))
    total, count = Grpo(normalisation="token").reduce(mx.ones((2, 3)), mask, 5)
    assert total.item() / count.item() == 0


@settings(deadline=None)
@given(hnp.arrays(np.float64, (3, 4), elements=st.floats(-5, 5, width=32)))
def test_advantages_rank_within_their_group(rewards: np.ndarray) -> None:
    for scaling in ("group", "batch", "none"):
        found = advantages(rewards, scaling)
        assert np.abs(found.mean(axis=1)).max() < 1e-4
        for row, gains in zip(rewards, found, strict=True):
            order = np.argsort(row, kind="stable")
            assert (np.diff(gains[order]) >= 0).all()
    spread = rewards - rewards.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(advantages(rewards, "none"), spread, atol=1e-6)
    deviation = np.sqrt((spread**2).sum(axis=1, keepdims=True) / 3)
    expected = spread / (deviation + 1e-4)
    np.testing.assert_allclose(advantages(rewards, "group"), expected, atol=1e-4)


def test_k3_estimates_a_divergence() -> None:
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.3, 0.3, 0.4])
    each = np.array(k3(mx.log(mx.array(p)), mx.log(mx.array(q))))
    assert (each >= 0).all()
    assert (p * each).sum() == pytest.approx((p * np.log(p / q)).sum(), abs=1e-6)


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return load(tiny_llama(tmp_path_factory.mktemp("grpo") / "model", vocab_size=300))


@pytest.fixture
def tuned(lm: LanguageModel) -> LanguageModel:
    detach(lm.model)
    attach(lm.model, LoraConfig(rank=8, alpha=32))
    return lm


SMALL = RolloutConfig(group_size=4, prompts_per_round=2, max_tokens=8)
PROMPTS = ["hello", "how are you", "tell me more"]


def vowels(prompt: Any, completion: str, row: Any) -> float:
    """Share of a completion's characters that are vowels."""
    return sum(char in "aeiou" for char in completion) / max(1, len(completion))


def learn(lm: LanguageModel, variant: str, path: Path, epochs: int = 16) -> list[float]:
    """Mean rewards of the rounds of a short run for vowels."""
    detach(lm.model)
    attach(lm.model, LoraConfig(rank=8, alpha=32))
    config = RolloutConfig(
        group_size=16, prompts_per_round=3, groups_per_batch=3, passes=2, max_tokens=12
    )
    source = RolloutSource(lm, PROMPTS, [vowels], config)
    loss = GrpoLoss(variant)
    settings = TrainConfig(epochs=epochs, lr=1e-2, schedule="constant")
    log = LossMetricsLog(loss.metrics, path)
    Trainer(lm.model, source, loss=loss, config=settings, callbacks=[log]).run()
    return [report.reward for report in source.reports]


@pytest.mark.parametrize("variant", ["grpo", "dapo", "dr_grpo"])
def test_rewards_go_up(tuned: LanguageModel, tmp_path: Path, variant: str) -> None:
    rewards = learn(tuned, variant, tmp_path / "log.jsonl")
    assert len(rewards) == 16
    assert np.mean(rewards[-3:]) > 1.6 * np.mean(rewards[:3])
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(lines) == 32
    # The first pass over a round is on policy, the second is not.
    assert lines[0]["ratio"] == pytest.approx(1, abs=1e-4)
    assert lines[1]["ratio"] != pytest.approx(1, abs=1e-4)


def test_runs_repeat_to_the_bit(tuned: LanguageModel, tmp_path: Path) -> None:
    first = learn(tuned, "dapo", tmp_path / "a", 3), arrays(tuned.model)
    second = learn(tuned, "dapo", tmp_path / "b", 3), arrays(tuned.model)
    assert first[0] == second[0]
    assert same(first[1], second[1])


def test_what_a_round_holds(tuned: LanguageModel) -> None:
    seen: list[tuple[Any, str, Any]] = []

    def reward(prompt: Any, completion: str, row: Any) -> float:
        seen.append((prompt, completion, row))
        return float(len(completion))

    prompts = [PromptRow("hello", {"prompt": "hello", "answer": 1}), PromptRow("bye")]
    config = replace(SMALL, mask_truncated=True, reference=True)
    before = get_random_state()
    source = RolloutSource(tuned, prompts, [reward, vowels], config, weights=[2.0, 0.5])
    plan = source.epoch(0)
    assert len(plan) == 2
    assert source.tokens(plan[0]) == 0
    batch = source.batch(plan[0])
    assert get_random_state() == before
    assert {row.get("answer") for prompt, _, row in seen if prompt == "hello"} == {1}
    assert len(seen) == 8
    assert source.tokens(plan[0]) <= source.slots(plan[0])
    assert batch.budget == 9
    counts = np.array(batch.rows.targets).sum(axis=1)
    assert [len(values) for values in batch.behaviour] == counts.tolist()
    # The adapter is still zero, so the reference is the policy.
    for own, other in zip(batch.behaviour, batch.reference or (), strict=True):
        np.testing.assert_allclose(own, other, atol=1e-6)
    ends = {tuned.tokenizer.eos_token_id}
    for row, length, kept in zip(
        np.array(batch.rows.tokens), np.array(batch.rows.lengths), batch.kept, strict=True
    ):
        assert (int(row[length - 1]) in ends) == bool(kept)
    (report,) = source.reports
    assert report.truncated == pytest.approx(1 - np.mean(kept_share(source, plan)))


def kept_share(source: RolloutSource, plan: list[tuple[int, ...]]) -> list[float]:
    return [float(k) for indices in plan for k in source.batch(indices).kept]


def test_log_probabilities_are_those_of_the_sampled_distribution(tuned: LanguageModel) -> None:
    config = replace(SMALL, temperature=0.7)
    source = RolloutSource(tuned, ["hello", "bye"], [vowels], config)
    batch = source.batch(source.epoch(0)[0])
    logits = tuned.model(batch.rows.tokens[:, :-1]) / 0.7
    each = -nn.losses.cross_entropy(logits, batch.rows.tokens[:, 1:])
    for row, wanted, own in zip(
        np.array(each), np.array(batch.rows.targets)[:, 1:], batch.behaviour, strict=True
    ):
        np.testing.assert_allclose(own, row[wanted], atol=1e-4)
    loss = GrpoLoss(Grpo(normalisation="token"))
    tuned.model.eval()
    total, _ = loss(tuned.model, batch)
    assert loss.metrics.take(False)["ratio"] == pytest.approx(1, abs=1e-4)
    expected = -(batch.advantages * np.array(batch.rows.targets).sum(axis=1)).sum()
    assert total.item() == pytest.approx(expected, abs=1e-3)


def test_cut_off_completions_do_not_train(tuned: LanguageModel) -> None:
    source = RolloutSource(tuned, ["hello", "bye"], [vowels], SMALL)
    batch = source.batch(source.epoch(0)[0])
    none = replace(batch, kept=np.zeros(4, dtype=np.float32))
    tuned.model.train()
    for name in ("grpo", "dapo", "dr_grpo"):
        (total, count), gradients = nn.value_and_grad(tuned.model, GrpoLoss(name))(
            tuned.model, GrpoLoss(name).prepare(none)
        )
        assert total.item() == 0
        assert count.item() > 0
        assert all(float(mx.abs(g).max()) == 0 for g in flat(gradients))


def flat(gradients: Any) -> list[mx.array]:
    from mlx.utils import tree_flatten

    return [value for _, value in tree_flatten(gradients)]


@pytest.mark.parametrize("name", ["grpo", "dapo", "dr_grpo", "gspo"])
def test_parts_of_a_batch_add_up(tuned: LanguageModel, name: str) -> None:
    config = replace(SMALL, groups_per_batch=2)
    source = RolloutSource(tuned, ["hello", "bye"], [vowels], config)
    batch = source.batch(source.epoch(0)[0])
    loss = GrpoLoss(name)
    loss.ready(tuned.model)
    tuned.model.train()
    streams = [mx.default_stream(mx.default_device())]
    whole = GradientEngine(tuned.model, loss, streams).add(batch)
    parts = GradientEngine(tuned.model, loss, streams).add(batch, pieces=3)
    assert parts.targets == pytest.approx(whole.targets)
    assert parts.loss == pytest.approx(whole.loss, abs=1e-5)
    assert distance(parts.gradients, whole.gradients) < 1e-4


def test_an_interrupted_run_goes_on_with_its_rollouts(tuned: LanguageModel, tmp_path: Path) -> None:
    settings = TrainConfig(epochs=3, lr=1e-2, schedule="constant", save_every=1)
    config = replace(SMALL, passes=2, reference=True, reference_every=2)
    loss = Grpo(kl_weight=0.1)

    def run(folder: Path, most: int | None) -> dict[str, mx.array]:
        detach(tuned.model)
        attach(tuned.model, LoraConfig(rank=4))
        source = RolloutSource(tuned, PROMPTS, [vowels], config, folder=folder / "rollouts")
        trainer = Trainer(
            tuned.model,
            source,
            loss=GrpoLoss(loss),
            config=settings,
            checkpoints=folder / "checkpoints",
        )
        if most is not None:
            trainer.plan.total_steps = most
        trainer.run()
        return arrays(tuned.model)

    whole = run(tmp_path / "whole", None)
    run(tmp_path / "cut", 7)
    assert (tmp_path / "cut/rollouts/reference-0001.safetensors").exists()
    state = sorted((tmp_path / "cut/checkpoints").iterdir())
    assert state
    # The trainer noted that the shorter run was finished; its last checkpoint goes on all the same.
    assert same(run(tmp_path / "cut", None), whole)


def test_the_reference_moves_on(tuned: LanguageModel) -> None:
    config = replace(SMALL, reference=True, reference_every=1)
    source = RolloutSource(tuned, ["hello", "bye"], [vowels], config)
    first = source.batch(source.epoch(0)[0])
    for layer in [m for _, m in tuned.model.named_modules() if "lora_b" in m]:
        layer.lora_b = mx.ones_like(layer.lora_b) * 0.05
    second = source.batch(source.epoch(1)[0])
    assert first.reference is not None
    assert second.reference is not None
    for batch in (first, second):
        for own, other in zip(batch.behaviour, batch.reference or (), strict=True):
            np.testing.assert_allclose(own, other, atol=1e-6)
    fixed = RolloutSource(tuned, ["hello", "bye"], [vowels], replace(config, reference_every=None))
    batch = fixed.batch(fixed.epoch(1)[0])
    assert batch.reference is not None
    assert np.abs(batch.reference[0] - batch.behaviour[0]).max() > 1e-3
    set_multiplier(tuned.model, 1.0)


def test_rounds_of_another_run_are_refused(tuned: LanguageModel, tmp_path: Path) -> None:
    source = RolloutSource(tuned, PROMPTS, [vowels], SMALL, folder=tmp_path)
    batch = source.batch(source.epoch(0)[0])
    again = RolloutSource(tuned, PROMPTS, [vowels], SMALL, folder=tmp_path)
    kept = again.batch(again.epoch(0)[0])
    assert again.reports[0].seconds == 0
    assert [v.tolist() for v in kept.behaviour] == [v.tolist() for v in batch.behaviour]
    other = RolloutSource(tuned, PROMPTS, [vowels], replace(SMALL, seed=1), folder=tmp_path)
    with pytest.raises(CheckpointError, match="another run"):
        other.batch(other.epoch(0)[0])
    path = tmp_path / "round-000000.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    mended = RolloutSource(tuned, PROMPTS, [vowels], SMALL, folder=tmp_path)
    assert mended.batch(mended.epoch(0)[0]).behaviour[0].tolist() == batch.behaviour[0].tolist()


def test_every_prompt_is_asked_once_an_epoch(tuned: LanguageModel) -> None:
    source = RolloutSource(tuned, PROMPTS, [vowels], replace(SMALL, passes=2))
    rows = [index for indices in source.epoch(1) for index in indices]
    assert len(rows) == source.rows == 3 * 4 * 2
    assert len(set(rows)) == 3 * 4
    assert set(rows).isdisjoint(at for part in source.epoch(0) for at in part)
    asked = [source._prompts_of(number) for number in (2, 3)]
    assert sorted(asked[0] + asked[1]) == [0, 1, 2]


def nan(prompt: Any, completion: str, row: Any) -> float:
    return float("nan")


def test_bad_input_is_refused(tuned: LanguageModel) -> None:
    with pytest.raises(ConfigError, match="called 'ppo'; use grpo"):
        GrpoLoss("ppo")
    for wrong in ({"eps_low": 0.0}, {"ratio_cap": 1.1}, {"kl_weight": -1}, {"ratio": "x"}):
        with pytest.raises(ConfigError):
            Grpo(**wrong)
    for wrong in ({"group_size": 1}, {"temperature": 0}, {"scaling": "x"}, {"passes": 0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            RolloutConfig(**wrong)
    with pytest.raises(ConfigError, match="0 prompts"):
        RolloutSource(tuned, [], [vowels])
    with pytest.raises(ConfigError, match="2 weights"):
        RolloutSource(tuned, PROMPTS, [vowels], weights=[1, 2])
    source = RolloutSource(tuned, PROMPTS, [nan], SMALL)
    with pytest.raises(TrainingError, match="'nan' gave nan for the prompt"):
        source.batch(source.epoch(0)[0])
    plain = RolloutSource(tuned, PROMPTS, [vowels], SMALL)
    with pytest.raises(ConfigError, match="set reference=True"):
        GrpoLoss(Grpo(kl_weight=0.1))(tuned.model, plain.batch(plain.epoch(0)[0]))
    detach(tuned.model)
    with pytest.raises(TrainingError, match="no adapter"):
        RolloutSource(tuned, PROMPTS, [vowels], replace(SMALL, reference=True))
