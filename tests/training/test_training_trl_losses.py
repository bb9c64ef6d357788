"""Preference, reinforcement and distillation losses against TRL's own, on stored numbers.

The numbers are made by `make_trl_fixtures.py`; values and gradients, float32 against float64.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_companion.training.distill import divergence
from mlx_companion.training.grpo import GroupScores, Grpo
from mlx_companion.training.preference_objectives import Dpo, Kto, Objective, Orpo, Scores, SimPo

STORED = np.load(Path(__file__).parent.parent / "fixtures" / "trl_losses.npz")
LENGTHS = np.array([3, 7, 1, 5, 4, 6, 2, 7])
BUDGET = 9
TOLERANCE = 2e-5


def case(name: str) -> dict[str, np.ndarray]:
    prefix = f"{name}/"
    return {key[len(prefix) :]: STORED[key] for key in STORED.files if key.startswith(prefix)}


def single(values: np.ndarray) -> mx.array:
    return mx.array(np.asarray(values, dtype=np.float32))


def assert_agrees(stored: dict[str, np.ndarray], loss: Any) -> None:
    value, gradient = mx.value_and_grad(loss)(single(stored["policy"]))
    assert value.item() == pytest.approx(float(stored["loss"]), rel=TOLERANCE, abs=TOLERANCE)
    scale = np.abs(stored["gradient"]).max()
    np.testing.assert_allclose(np.array(gradient), stored["gradient"], atol=TOLERANCE * scale)


@pytest.mark.parametrize(
    ("name", "objective"),
    [
        ("dpo_sigmoid", Dpo(beta=0.1)),
        ("dpo_hinge", Dpo(beta=0.9, form="hinge")),
        ("dpo_ipo", Dpo(beta=0.2, form="ipo")),
    ],
)
def test_dpo(name: str, objective: Objective) -> None:
    stored = case(name)
    lengths = single(LENGTHS).reshape(2, 4)
    reference = single(stored["reference"]).reshape(2, 4)

    def loss(policy: mx.array) -> mx.array:
        scores = Scores(policy.sum(axis=1).reshape(2, 4), reference, lengths)
        return objective(scores).losses.mean()

    assert_agrees(stored, loss)


@pytest.mark.parametrize(
    ("name", "objective"),
    [
        ("dpo_smoothed", Dpo(beta=0.4, label_smoothing=0.1)),
        ("simpo", SimPo(beta=2.5, gamma=0.8)),
        ("simpo_smoothed", SimPo(beta=2.5, gamma=0.8, label_smoothing=0.2)),
        ("orpo", Orpo(weight=0.25)),
    ],
)
def test_losses_of_one_number_per_reply(name: str, objective: Objective) -> None:
    def loss(policy: mx.array) -> mx.array:
        outcome = objective(Scores(policy, mx.zeros((2, 4)), mx.ones((2, 4))))
        return (outcome.losses - objective.sft_weight * policy[0]).mean()

    assert_agrees(case(name), loss)


@pytest.mark.parametrize("name", ["kto", "kto_negative_kl", "kto_all_unwanted"])
def test_kto(name: str) -> None:
    stored = case(name)
    objective = Kto(beta=0.3, desirable_weight=1.3, undesirable_weight=0.7)
    desirable, reference = single(stored["labels"]), single(stored["reference"])

    def loss(policy: mx.array) -> mx.array:
        both = mx.stack([policy.sum(axis=1), single(stored["mismatched"])])
        return objective(Scores(both, reference, mx.ones_like(both), desirable)).losses.mean()

    assert_agrees(stored, loss)


@pytest.mark.parametrize(
    ("name", "objective"),
    [
        ("grpo", Grpo()),
        ("grpo_kl", Grpo(kl_weight=0.1)),
        ("grpo_dapo", Grpo(kl_weight=0.04, eps_high=0.28, normalisation="token")),
        ("grpo_dr", Grpo(normalisation="constant")),
        ("grpo_sequence", Grpo(ratio="sequence", eps_high=0.1)),
        ("grpo_capped", Grpo(ratio_cap=1.25)),
        ("grpo_guarded", Grpo(off_policy_limit=0.05)),
    ],
)
def test_grpo(name: str, objective: Grpo) -> None:
    stored = case(name)
    names = ("behaviour", "reference", "mask", "advantages")
    behaviour, reference, mask, advantages = (single(stored[key]) for key in names)

    def loss(policy: mx.array) -> mx.array:
        each, _ = objective(GroupScores(policy, behaviour, reference, mask, advantages))
        total, count = objective.reduce(each, mask, BUDGET)
        return total / count

    assert_agrees(stored, loss)


@pytest.mark.parametrize(
    ("name", "kind", "mix", "temperature"),
    [
        ("gkd_forward", "forward", 0.5, 1.0),
        ("gkd_reverse", "reverse", 0.5, 1.0),
        ("gkd_jsd", "jsd", 0.3, 2.0),
    ],
)
def test_divergences(name: str, kind: Any, mix: float, temperature: float) -> None:
    stored = case(name)
    teacher = single(stored["teacher"]) / temperature

    def loss(student: mx.array) -> mx.array:
        return divergence(student / temperature, teacher, kind, mix).sum()

    assert_agrees(stored, loss)
