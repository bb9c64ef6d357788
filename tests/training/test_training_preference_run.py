"""Preference tuning from end to end on a tiny model: figures, resuming, held-out prompts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import mlx_companion as mc
from mlx_companion.errors import CheckpointError, ConfigError, DataError
from mlx_companion.lora import LoraConfig, detach, is_attached, load_adapter
from mlx_companion.models import LanguageModel
from mlx_companion.models.tiny import tiny_model
from mlx_companion.text import Message
from mlx_companion.text.preference_records import PreferencePair
from mlx_companion.training import Callback, StepInfo, TrainConfig
from mlx_companion.training.preference_data import PreferenceRows, encode_pairs
from mlx_companion.training.preference_objectives import OBJECTIVES
from mlx_companion.training.preference_run import (
    PreferenceResult,
    reply_logprobs,
    split_pairs,
    tune_preferences,
)

TRAIN = TrainConfig(epochs=3, lr=5e-3, batch_tokens=600, max_tokens=64)
LORA = LoraConfig(rank=4)


def pairs(count: int = 12) -> list[PreferencePair]:
    """The reply in lower case is the better one, whatever its length."""
    return [
        PreferencePair(
            (Message("user", f"say {number}"),),
            f"low {'er ' * (number % 3)}{number}",
            f"HIGH {'ER ' * (number % 2)}{number}",
        )
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return mc.load(tiny_model(tmp_path_factory.mktemp("model") / "tiny"))


def tune(
    lm: LanguageModel, out: Path, objective: str = "dpo", **options: object
) -> PreferenceResult:
    train, held_out = split_pairs(pairs(), 0.25, 0)
    given: dict = {"train": TRAIN, "lora": LORA, "progress": False, "track": ()} | options
    return tune_preferences(lm, train, out, objective=objective, valid=held_out, **given)


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_every_objective_learns_to_prefer(
    lm: LanguageModel, tmp_path: Path, objective: str
) -> None:
    found = tune(lm, tmp_path / "run", objective)
    assert found.before is not None
    assert found.after is not None
    assert found.before.reward_accuracy is None
    assert found.after.pairs == 3
    assert found.after.reward_accuracy == 1.0
    assert found.after.margin is not None
    assert found.after.margin > 0.5
    assert found.run.valid_best < found.run.valid_before
    assert is_attached(lm.model)
    log = [json.loads(line) for line in (tmp_path / "run" / "loss.jsonl").read_text().splitlines()]
    assert {"step", "eval"} == {line["event"] for line in log}


def test_figures_are_those_of_scoring_each_reply_alone(lm: LanguageModel, tmp_path: Path) -> None:
    found = tune(lm, tmp_path / "run")
    _, held_out = split_pairs(pairs(), 0.25, 0)
    rows = PreferenceRows(encode_pairs(held_out, lm.tokenizer, 64)[0])
    after = reply_logprobs(lm.model, rows)
    detach(lm.model)
    before = reply_logprobs(lm.model, rows)
    assert found.after is not None
    assert found.before is not None
    gained = after - before
    assert found.after.margin == pytest.approx(float((gained[0] - gained[1]).mean()), rel=1e-4)
    lengths = np.array([[p.first.target_count, p.second.target_count] for p in rows.pairs]).T
    mean = before / lengths
    assert found.before.likelier == float((mean[0] > mean[1]).mean())


def test_replies_in_a_batch_score_as_alone(lm: LanguageModel) -> None:
    detach(lm.model)
    encoded, _ = encode_pairs(pairs(5), lm.tokenizer, 64)
    together = reply_logprobs(lm.model, PreferenceRows(encoded))
    alone = [reply_logprobs(lm.model, PreferenceRows([one]))[:, 0] for one in encoded]
    assert np.allclose(together.T, alone, atol=1e-4)


def test_a_finished_run_trains_nothing(lm: LanguageModel, tmp_path: Path) -> None:
    first = tune(lm, tmp_path / "run")
    again = tune(lm, tmp_path / "run")
    assert again.run.finished_before
    assert again.run.adapter_sha256 == first.run.adapter_sha256
    assert again.after == first.after
    with pytest.raises(CheckpointError, match="another run"):
        tune(lm, tmp_path / "run", "orpo")


class Killed(BaseException):
    """Stands for a signal that nothing catches."""


class Killing(Callback):
    def on_step(self, step: StepInfo) -> None:
        if step.step == 3:
            raise Killed


def test_a_killed_run_ends_as_one_that_was_not(lm: LanguageModel, tmp_path: Path) -> None:
    train = TrainConfig(epochs=3, lr=5e-3, batch_tokens=300, max_tokens=64, save_every=1)
    whole = tune(lm, tmp_path / "whole", train=train)
    with pytest.raises(Killed):
        tune(lm, tmp_path / "killed", train=train, callbacks=[Killing()])
    assert not is_attached(lm.model)
    found = tune(lm, tmp_path / "killed", train=train)
    assert found.run.adapter_sha256 == whole.run.adapter_sha256
    assert found.after == whole.after


def test_the_adapter_loads_elsewhere(lm: LanguageModel, tmp_path: Path) -> None:
    result = tune(lm, tmp_path / "run").run
    (tmp_path / "run").rename(tmp_path / "moved")
    other = mc.load(lm.path)
    load_adapter(tmp_path / "moved" / "adapter", other.model, other.base_sha256)
    prompt = [{"role": "user", "content": "say 5"}]
    assert str(mc.generate(other, prompt, max_tokens=4)) == str(
        mc.generate(lm, prompt, max_tokens=4)
    )
    assert result.steps > 0


def test_all_pairs_of_a_prompt_are_held_out_together() -> None:
    doubled = [pair for pair in pairs(10) for _ in range(3)]
    train, held_out = split_pairs(doubled, 0.3, 1)
    assert (len(train), len(held_out)) == (21, 9)
    assert not {pair.prompt for pair in train} & {pair.prompt for pair in held_out}
    assert split_pairs(doubled, 0.3, 1) == (train, held_out)
    assert split_pairs(doubled, 0.3, 2) != (train, held_out)


def test_bad_input(lm: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="held-out share is 1"):
        split_pairs(pairs(), 1.0, 0)
    with pytest.raises(DataError, match="1 prompts cannot be split"):
        split_pairs(pairs(1), 0.5, 0)
    with pytest.raises(ConfigError, match="no preference objective is called 'dop'"):
        tune(lm, tmp_path / "run", "dop")
    with pytest.raises(DataError, match=r"no training pair is left.*no room for a reply"):
        tune(lm, tmp_path / "run", train=TrainConfig(max_tokens=4))
    assert not (tmp_path / "run").exists()
