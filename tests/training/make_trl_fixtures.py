"""Stores what TRL's own losses give on random numbers, in tests/fixtures/trl_losses.npz.

Not a test, and not needed to run them: it wants PyTorch and TRL, which this project does not depend
on. In an environment of its own:

    pip install torch trl transformers
    python tests/training/make_trl_fixtures.py

Every case is TRL's trainer method itself, called on a stand-in for the trainer, with a stand-in for
the model that answers with stored log-probabilities; kept are inputs, loss and gradient, float64.
Last built with torch 2.13.0, trl 1.16.0, transformers 5.23.0.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from trl import DPOTrainer, GRPOTrainer, KTOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.gkd import GKDTrainer
from trl.experimental.orpo import ORPOTrainer

TARGET = Path(__file__).parent.parent / "fixtures" / "trl_losses.npz"
LENGTHS = [3, 7, 1, 5, 4, 6, 2, 7]
PAIRS, LONGEST = 4, 7


def trainer(**values: Any) -> Any:
    """A stand-in with those attributes."""
    fake = MagicMock()
    fake._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    fake._total_train_tokens = 0
    fake.aux_loss_enabled = False
    fake.accelerator.device = "cpu"
    for name in ("gather", "gather_for_metrics"):
        setattr(fake.accelerator, name, lambda value: value)
    fake.accelerator.reduce = lambda value, reduction: value
    for name, value in values.items():
        setattr(fake, name, value)
    return fake


def model_of(logprobs: torch.Tensor) -> Callable[..., Any]:
    """A stand-in that answers with those log-probabilities (B, T)."""
    blank = torch.zeros_like(logprobs)
    answer = SimpleNamespace(
        log_probs=logprobs, entropy=blank, mean_logits=blank, is_top1=blank.bool()
    )
    return lambda **_: answer


def masks(rows: int) -> torch.Tensor:
    """(rows, 1 + LONGEST): one prompt token, then completions of the stored lengths."""
    found = torch.zeros((rows, LONGEST + 1), dtype=torch.long)
    for row, length in enumerate(LENGTHS[:rows]):
        found[row, 1 : 1 + length] = 1
    return found


def inputs_of(mask: torch.Tensor) -> dict[str, torch.Tensor]:
    ones = torch.ones_like(mask)
    return {"input_ids": ones, "attention_mask": ones, "completion_mask": mask}


def draw(rng: torch.Generator, *shape: int, scale: float = 1.0) -> torch.Tensor:
    return -torch.rand(shape, generator=rng, dtype=torch.float64) * scale


def dpo(rng: torch.Generator, form: str, beta: float) -> dict[str, np.ndarray]:
    mask = masks(2 * PAIRS)
    policy = (draw(rng, 2 * PAIRS, LONGEST) * mask[:, 1:]).requires_grad_()
    reference = draw(rng, 2 * PAIRS, LONGEST) * mask[:, 1:]
    fake = trainer(
        beta=beta,
        loss_types=[form],
        loss_weights=[1.0],
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        use_weighting=False,
        _tp_size=1,
    )
    chosen, rejected = reference.sum(dim=1).chunk(2)
    inputs = inputs_of(mask) | {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    loss = DPOTrainer._compute_loss(fake, model_of(policy), inputs, False)
    return kept(loss, policy, reference=reference.sum(dim=1))


def kto(rng: torch.Generator, labels: list[bool], shift: float) -> dict[str, np.ndarray]:
    mask = masks(len(labels))
    shape = mask[:, 1:].shape
    policy = (draw(rng, *shape) * mask[:, 1:]).requires_grad_()
    reference = (draw(rng, *shape) * mask[:, 1:]).sum(dim=1)
    mismatched = draw(rng, len(labels), scale=5)
    reference_mismatched = mismatched + shift * draw(rng, len(labels))
    fake = trainer(
        beta=0.3,
        loss_type="kto",
        calculate_KL=True,
        precompute_ref_logps=True,
        desirable_weight=1.3,
        undesirable_weight=0.7,
        _tp_size=1,
        _compute_kl_logps=lambda *_: mismatched,
    )
    inputs = inputs_of(mask) | {
        "label": torch.tensor(labels),
        "ref_logps": reference,
        "ref_KL_logps": reference_mismatched,
    }
    loss = KTOTrainer._compute_loss(fake, model_of(policy), inputs, False)
    return kept(
        loss,
        policy,
        reference=torch.stack([reference, reference_mismatched]),
        mismatched=mismatched,
        labels=torch.tensor(labels),
    )


def orpo(rng: torch.Generator) -> dict[str, np.ndarray]:
    policy = draw(rng, 2, PAIRS, scale=4).requires_grad_()
    fake = trainer(beta=0.25)
    ratio = ORPOTrainer.odds_ratio_loss(fake, policy[0], policy[1])[0]
    return kept(-ratio.mean() - policy[0].mean(), policy)


def simpo(rng: torch.Generator, smoothing: float) -> dict[str, np.ndarray]:
    policy = draw(rng, 2, PAIRS, scale=4).requires_grad_()
    fake = trainer(
        beta=2.5, alpha=0.0, simpo_gamma=0.8, loss_type="simpo", label_smoothing=smoothing
    )
    return kept(CPOTrainer.cpo_loss(fake, policy[0], policy[1])[0].mean(), policy)


def cdpo(rng: torch.Generator) -> dict[str, np.ndarray]:
    """The smoothed sigmoid, which TRL keeps in its CPO trainer."""
    policy = draw(rng, 2, PAIRS, scale=8).requires_grad_()
    fake = trainer(beta=0.4, alpha=0.0, loss_type="sigmoid", label_smoothing=0.1)
    return kept(CPOTrainer.cpo_loss(fake, policy[0], policy[1])[0].mean(), policy)


def grpo(rng: torch.Generator, **settings: Any) -> dict[str, np.ndarray]:
    mask = masks(8)[:, 1:]
    policy = (draw(rng, 8, LONGEST)).requires_grad_()
    behaviour = policy.detach() + 0.8 * (draw(rng, 8, LONGEST) + 0.5)
    reference = draw(rng, 8, LONGEST)
    advantages = torch.tensor([1.2, -0.7, 0.4, -1.5, 0.0, 2.0, -0.2, 0.9], dtype=torch.float64)
    values = {
        "loss_type": "grpo",
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "beta": 0.0,
        "importance_sampling_level": "token",
        "off_policy_mask_threshold": None,
        "delta": None,
    } | settings
    fake = trainer(
        **values,
        top_entropy_quantile=1.0,
        use_vllm=False,
        _entropy_bonus_enabled=False,
        use_adaptive_entropy=False,
        max_completion_length=9,
        current_gradient_accumulation_steps=1,
        args=SimpleNamespace(
            delta=values["delta"], use_bias_correction_kl=False, steps_per_generation=1
        ),
        get_off_policy_mask=GRPOTrainer.get_off_policy_mask,
        _get_per_token_logps_and_entropies=lambda *_, **__: (policy, torch.zeros(8, LONGEST), None),
    )
    fake.accelerator.num_processes = 1
    ones = torch.ones((8, 1), dtype=torch.long)
    inputs = {
        "prompt_ids": ones,
        "prompt_mask": ones,
        "completion_ids": mask,
        "completion_mask": mask,
        "advantages": advantages,
        "old_per_token_logps": behaviour,
        "ref_per_token_logps": reference,
        "num_items_in_batch": mask.sum(),
    }
    loss = GRPOTrainer._compute_loss(fake, None, inputs)
    return kept(
        loss, policy, behaviour=behaviour, reference=reference, advantages=advantages, mask=mask
    )


def gkd(rng: torch.Generator, beta: float, temperature: float) -> dict[str, np.ndarray]:
    student = (5 * torch.randn((3, 11), generator=rng, dtype=torch.float64)).requires_grad_()
    teacher = 5 * torch.randn((3, 11), generator=rng, dtype=torch.float64)
    loss = GKDTrainer.generalized_jsd_loss(
        student[None], teacher[None], beta=beta, temperature=temperature, reduction="sum"
    )
    return kept(loss, student, teacher=teacher)


def kept(loss: torch.Tensor, policy: torch.Tensor, **more: torch.Tensor) -> dict[str, np.ndarray]:
    (gradient,) = torch.autograd.grad(loss, policy)
    arrays = {"loss": loss, "policy": policy, "gradient": gradient, **more}
    return {name: value.detach().numpy() for name, value in arrays.items()}


def main() -> None:
    rng = torch.Generator().manual_seed(0)
    unclipped = {"beta": 0.04, "loss_type": "dapo", "epsilon_high": 0.28}
    cases = {
        "dpo_sigmoid": dpo(rng, "sigmoid", 0.1),
        "dpo_hinge": dpo(rng, "hinge", 0.9),
        "dpo_ipo": dpo(rng, "ipo", 0.2),
        "dpo_smoothed": cdpo(rng),
        "kto": kto(rng, [True, False, True, True, False, False], 1.0),
        "kto_negative_kl": kto(rng, [True, False, True], -1.0),
        "kto_all_unwanted": kto(rng, [False, False, False], 0.5),
        "orpo": orpo(rng),
        "simpo": simpo(rng, 0.0),
        "simpo_smoothed": simpo(rng, 0.2),
        "grpo": grpo(rng),
        "grpo_kl": grpo(rng, beta=0.1),
        "grpo_dapo": grpo(rng, **unclipped),
        "grpo_dr": grpo(rng, loss_type="dr_grpo"),
        "grpo_sequence": grpo(rng, importance_sampling_level="sequence", epsilon_high=0.1),
        "grpo_capped": grpo(rng, delta=1.25),
        "grpo_guarded": grpo(rng, off_policy_mask_threshold=0.05),
        "gkd_forward": gkd(rng, 0.0, 1.0),
        "gkd_reverse": gkd(rng, 1.0, 1.0),
        "gkd_jsd": gkd(rng, 0.3, 2.0),
    }
    flat = {f"{case}/{name}": v for case, values in cases.items() for name, v in values.items()}
    np.savez_compressed(TARGET, **flat)
    print(f"{TARGET.name}: {len(cases)} cases, {TARGET.stat().st_size} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
