"""Fine-tuning from files to an adapter: data, resuming, refusals, damage."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from tiny import tiny_llama

from mlx_companion.errors import (
    AdapterError,
    CheckpointError,
    ConfigError,
    DataError,
    Stopped,
    TrainingError,
)
from mlx_companion.lora import LoraConfig, adapter_parameters, is_attached, load_adapter
from mlx_companion.models.load import LanguageModel, load
from mlx_companion.runtime.config import load_config
from mlx_companion.runtime.stop import StopSwitch
from mlx_companion.text import Message, Sample
from mlx_companion.training import Callback, StepInfo, TrainConfig, TrainResult, finetune
from mlx_companion.training.data import hold_out, prepare_data

WORDS = ("the", "kettle", "garden", "train", "station", "river", "answer", "short", "morning")
LORA = LoraConfig(rank=4)
SETTINGS: dict[str, Any] = {"epochs": 2, "batch_tokens": 256, "lr": 1e-2, "save_every": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture
def lm(folder: Path) -> LanguageModel:
    return load(folder)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in chats(24)))
    return path


def chats(count: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [
        {"prompt": text(rng, rng.randint(1, 6)), "completion": text(rng, rng.randint(2, 9))}
        for _ in range(count)
    ]


def text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


def sample(words: str) -> Sample:
    return Sample(messages=(Message("user", "hello"), Message("assistant", words)))


def run(model: Any, data: Any, out: Path, **options: Any) -> TrainResult:
    train = TrainConfig(**(SETTINGS | options.pop("settings", {})))
    return finetune(model, data, out, lora=LORA, train=train, progress=False, **options)


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.at, self.switch, self.seen = step, StopSwitch(), 0

    def on_step(self, step: StepInfo) -> None:
        self.seen = step.step
        if step.step == self.at:
            self.switch.request("the test")


def test_from_a_file_to_an_adapter(folder: Path, data: Path, tmp_path: Path) -> None:
    result = run(folder, data, tmp_path / "run", valid=0.2)
    assert result.valid_before is not None
    assert result.valid_after is not None
    assert result.valid_after < result.valid_before
    assert result.valid_after == result.valid_best
    assert (result.data["rows"], result.data["valid_rows"]) == (19, 5)
    assert 0 < result.data["targets"] < result.data["tokens"]
    fresh = load(folder)
    config = load_adapter(result.adapter, fresh.model, fresh.base_sha256, result.adapter_sha256)
    assert config == LORA
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["train"]["lr"] == 1e-2
    assert about["environment"]["versions"]["mlx"]
    assert about["base_sha256"] == result.base_sha256 == fresh.base_sha256


def test_the_report_is_shown(
    lm: LanguageModel, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = TrainConfig(max_steps=1, **{**SETTINGS, "epochs": 1})
    for _ in range(2):
        finetune(lm, data, tmp_path / "run", lora=LORA, train=train)
    said = capsys.readouterr()
    assert said.out == ""
    assert "24 training rows of 24 samples" in said.err
    assert "finished already" in said.err


def test_a_stopped_run_goes_on_and_ends_the_same(
    lm: LanguageModel, data: Path, tmp_path: Path
) -> None:
    whole = run(lm, data, tmp_path / "whole", valid=0.2)
    stop = StopAt(3)
    with pytest.raises(Stopped):
        run(lm, data, tmp_path / "run", valid=0.2, callbacks=[stop], stop=stop.switch)
    assert not is_attached(lm.model)
    watch = StopAt(-1)
    again = run(lm, data, tmp_path / "run", valid=0.2, callbacks=[watch])
    assert watch.seen == again.steps > 3
    assert again.adapter_sha256 == whole.adapter_sha256
    assert again.valid_best == whole.valid_best
    losses = [
        [
            json.loads(line)["loss"]
            for line in (tmp_path / n / "metrics.jsonl").read_text().split("\n")[:-1]
        ]
        for n in ("whole", "run")
    ]
    assert losses[0] == losses[1]


def test_a_finished_run_returns_its_result(lm: LanguageModel, data: Path, tmp_path: Path) -> None:
    first = run(lm, data, tmp_path / "run")
    weights = {n: np.array(v) for n, v in adapter_parameters(lm.model).items()}
    watch = StopAt(-1)
    second = run(lm, data, tmp_path / "run", callbacks=[watch])
    assert watch.seen == 0
    assert (first.finished_before, second.finished_before) == (False, True)
    assert second.adapter_sha256 == first.adapter_sha256
    assert second.adapter == tmp_path / "run" / "adapter"
    now = adapter_parameters(lm.model)
    assert all(np.array_equal(np.array(now[name]), value) for name, value in weights.items())


def test_a_damaged_result_is_made_again(lm: LanguageModel, data: Path, tmp_path: Path) -> None:
    first = run(lm, data, tmp_path / "run")
    (first.adapter / "adapters.safetensors").write_bytes(b"")
    second = run(lm, data, tmp_path / "run")
    assert not second.finished_before
    assert second.adapter_sha256 == first.adapter_sha256
    (tmp_path / "run" / "result.json").write_text("{")
    assert run(lm, data, tmp_path / "run").adapter_sha256 == first.adapter_sha256


@pytest.mark.parametrize("interrupted", [False, True])
def test_other_settings_or_data_are_refused(
    interrupted: bool, lm: LanguageModel, data: Path, tmp_path: Path
) -> None:
    stop = StopAt(1)
    if interrupted:
        with pytest.raises(Stopped):
            run(lm, data, tmp_path / "run", callbacks=[stop], stop=stop.switch)
    else:
        run(lm, data, tmp_path / "run")
    for options in ({"settings": {"lr": 2e-2}}, {"valid": 0.5}):
        with pytest.raises(CheckpointError, match="another run"):
            run(lm, data, tmp_path / "run", **options)
    # When checkpoints are written is no matter of what is computed.
    run(lm, data, tmp_path / "run", settings={"save_every": 1})
    result = run(lm, data, tmp_path / "run", settings={"lr": 2e-2}, resume=False)
    assert not result.finished_before


def test_one_process_at_a_time(lm: LanguageModel, data: Path, tmp_path: Path) -> None:
    class Second(Callback):
        def on_step(self, step: StepInfo) -> None:
            with pytest.raises(TrainingError, match="another process"):
                run(lm, data, tmp_path / "run")

    run(lm, data, tmp_path / "run", callbacks=[Second()], settings={"max_steps": 1})


def test_targets_that_match_nothing(lm: LanguageModel, data: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no linear layer"):
        finetune(lm, data, tmp_path / "run", lora=LoraConfig(targets=("nope",)), progress=False)


def test_data_without_a_target_left(lm: LanguageModel, tmp_path: Path) -> None:
    long = [Sample(messages=(Message("user", "word " * 400), Message("assistant", "yes")))]
    with pytest.raises(DataError, match="no training row is left"):
        run(lm, long, tmp_path / "run", settings={"max_tokens": 64})


def test_truncated_and_dropped_samples_are_reported(lm: LanguageModel) -> None:
    samples = [
        sample("the kettle is warm"),
        sample("word " * 400),
        Sample(messages=(Message("user", "word " * 400), Message("assistant", "yes"))),
    ]
    prepared = prepare_data(samples, None, lm.tokenizer, TrainConfig(max_tokens=64))
    report = prepared.report
    assert (report.samples, report.rows, report.truncated, report.dropped) == (3, 2, 1, 1)
    assert "1 truncated, 1 dropped" in str(report)
    assert "targets lie beyond token 64" in str(report)


def test_the_data_hash_sees_tokens_and_masks(lm: LanguageModel) -> None:
    def digest(*words: str, valid: Any = None) -> str:
        samples = [sample(w) for w in words]
        return prepare_data(samples, valid, lm.tokenizer, TrainConfig()).sha256

    hashes = [
        digest("the kettle", "the wall"),
        digest("the kettle", "the river"),
        digest("the wall", "the kettle"),
        digest("the kettle", valid=[sample("the wall")]),
    ]
    assert len(set(hashes)) == 4
    assert digest("the kettle", "the wall") == hashes[0]


def test_held_out_samples_are_never_trained_on() -> None:
    samples = [sample(str(n % 7)) for n in range(21)]
    train, valid = hold_out(samples, 0.3, seed=0)
    assert len(train) + len(valid) == 21
    assert len(valid) == 9
    assert not {s.messages for s in train} & {s.messages for s in valid}
    assert hold_out(samples, 0.3, seed=0) == (train, valid)
    assert hold_out(samples, 0.3, seed=1) != (train, valid)
    with pytest.raises(DataError, match="cannot be split"):
        hold_out(samples[:1], 0.5, seed=0)
    with pytest.raises(DataError, match="less than 1"):
        hold_out(samples, 1.0, seed=0)


def test_settings_come_from_overrides() -> None:
    config = load_config(TrainConfig, None, {"lr": "1e-4", "betas": [0.8, 0.9], "patience": 3})
    assert (config.lr, config.betas, config.patience) == (1e-4, (0.8, 0.9), 3)
    with pytest.raises(ConfigError, match="did you mean 'epochs'"):
        load_config(TrainConfig, None, {"epoch": 1})


def test_half_precision_weights_train(folder: Path, data: Path, tmp_path: Path) -> None:
    result = run(folder, data, tmp_path / "run", settings={"dtype": "bfloat16", "max_steps": 2})
    assert result.skipped == 0
    fresh = load(folder, dtype=mx.bfloat16)
    load_adapter(result.adapter, fresh.model)
    assert all(v.dtype == mx.float32 for v in adapter_parameters(fresh.model).values())
