"""Every method in a run: gradients through checkpointing, a stop and a resume, streams, compile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from lora_models import TOKENS, adapted, llama
from mlx.utils import tree_flatten

from mlx_companion.lora import LoraConfig, adapter_parameters, attach, lora_plus
from mlx_companion.text import Encoded, LengthBuckets
from mlx_companion.training.callbacks import Callback, StepInfo
from mlx_companion.training.config import TrainConfig
from mlx_companion.training.recompute import recompute_layers
from mlx_companion.training.trainer import Trainer

TARGETS = ("q_proj", "down_proj", "embed_tokens", "lm_head")
METHODS: list[dict[str, Any]] = [
    {"scaling": "rslora"},
    {"dora": True},
    {"init": "pissa"},
    {"dora": True, "init": "pissa", "rank_pattern": {"down_proj": 2}, "dropout": 0.2},
]


def config(**options: Any) -> LoraConfig:
    return LoraConfig(rank=4, targets=TARGETS, **options)


def next_token_loss(model: nn.Module) -> mx.array:
    logits = model(TOKENS[:, :-1])
    return nn.losses.cross_entropy(logits, TOKENS[:, 1:]).mean()


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("options", METHODS[:3])
@pytest.mark.parametrize("tied", [False, True])
def test_layers_computed_again_give_the_same_gradients(
    bits: int | None, options: dict[str, Any], tied: bool
) -> None:
    model = adapted(llama(bits=bits, tied=tied), config(**options)).train()
    for layer in (m for _, m in model.named_modules() if getattr(m, "dora", False)):
        layer.lora_m = 1 + mx.abs(layer.lora_m)
    value, gradients = nn.value_and_grad(model, next_token_loss)(model)
    mx.eval(value, gradients)
    with recompute_layers(model):
        again, repeated = nn.value_and_grad(model, next_token_loss)(model)
        mx.eval(again, repeated)
    assert again.item() == pytest.approx(value.item(), rel=1e-6)
    found = dict(tree_flatten(repeated))
    assert set(found) == set(adapter_parameters(model))
    for name, gradient in tree_flatten(gradients):
        assert mx.abs(gradient).max().item() > 0, name
        np.testing.assert_allclose(
            np.array(found[name]), np.array(gradient), rtol=1e-4, atol=1e-6, err_msg=name
        )


class StopAt(Callback):
    def __init__(self, trainer_stop: Any, step: int) -> None:
        self.switch, self.step = trainer_stop, step

    def on_step(self, step: StepInfo) -> None:
        if step.step == self.step:
            self.switch.request("the test")


def run(folder: Path, options: dict[str, Any], stop_at: int | None = None, **train: Any) -> Any:
    """A run of 6 steps on random rows; with `stop_at`, it stops there and goes on afresh."""
    from mlx_companion.runtime.stop import Stopped, StopSwitch

    rng = np.random.default_rng(0)
    rows = [
        Encoded(rng.integers(0, 64, n).tolist(), [False] * (n // 2) + [True] * (n - n // 2))
        for n in rng.integers(6, 16, 18).tolist()
    ]
    settings = {"max_steps": 6, "lr": 5e-3, "save_every": 2, "eval_every": 2, "batch_tokens": 64}
    settings |= {"lr_ratios": lora_plus(4)} | train
    for at in [stop_at, None] if stop_at else [None]:
        model = llama()
        attach(model, config(**options))
        switch = StopSwitch()
        trainer = Trainer(
            model,
            LengthBuckets(rows, batch_tokens=64, seed=0),
            valid=LengthBuckets(rows[:4], batch_tokens=64, seed=0),
            config=TrainConfig(**settings),
            callbacks=[StopAt(switch, at)] if at else [],
            stop=switch,
            checkpoints=folder,
            run_hash="ab" * 32,
        )
        if at:
            with pytest.raises(Stopped):
                trainer.run()
        else:
            summary = trainer.run()
    return model, summary


@pytest.mark.parametrize("options", METHODS)
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path, options: dict[str, Any]) -> None:
    whole, summary = run(tmp_path / "whole", options)
    again, resumed = run(tmp_path / "again", options, stop_at=3)
    assert resumed.valid_best == summary.valid_best < summary.valid_before
    left, right = adapter_parameters(whole), adapter_parameters(again)
    assert {n: np.array(w).tobytes() for n, w in left.items()} == {
        n: np.array(w).tobytes() for n, w in right.items()
    }


@pytest.mark.parametrize("options", METHODS[1:3])
def test_a_checkpointed_run_is_the_same_run(tmp_path: Path, options: dict[str, Any]) -> None:
    _, summary = run(tmp_path / "a", options)
    _, other = run(tmp_path / "b", options, gradient_checkpointing=True)
    assert other.valid_best == pytest.approx(summary.valid_best, rel=1e-4)
