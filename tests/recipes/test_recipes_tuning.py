"""The recipes that tune on a person's files: fine-tuning, QLoRA, preferences. All in smoke mode."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.nn as nn
import pytest
import yaml

import mlx_companion as mc
from mlx_companion.lora import LoraConfig, load_adapter, read_adapter_config
from mlx_companion.runtime.monitor import ResourceLimits
from mlx_companion.training import MetricsLog, StepInfo, TrainConfig
from mlx_companion.training.settings import FinetuneConfig
from recipes import preferences, qlora_qwen, sft

RECIPES = [sft, qlora_qwen, preferences]


def run(recipe: Any, out: Path, *arguments: str) -> None:
    recipe.main(["--smoke", "--out", str(out), *arguments])


def report(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Path]:
    """Each recipe's run, made when first asked for."""
    folder = tmp_path_factory.mktemp("runs")

    class Runs(dict[Any, Path]):
        def __missing__(self, recipe: Any) -> Path:
            self[recipe] = folder / recipe.__name__
            run(recipe, self[recipe])
            return self[recipe]

    return Runs()


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_smoke_run_gives_an_adapter_that_loads(recipe: Any, runs: dict[Any, Path]) -> None:
    out = runs[recipe]
    lm = mc.load(out / "tiny")
    load_adapter(out / "adapter", lm.model, lm.base_sha256)
    steps = (out / "metrics.jsonl").read_text().count('"event": "step"')
    assert steps == 3
    assert str(mc.generate(lm, "Hello", max_tokens=3)) is not None


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_second_run_trains_nothing(
    recipe: Any, runs: dict[Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = runs[recipe]
    before = (out / "result.json").read_text()

    def refuse(*_: Any) -> None:
        raise AssertionError("a finished run takes no step")

    with monkeypatch.context() as patched:
        patched.setattr(MetricsLog, "on_step", refuse)
        if recipe is qlora_qwen:
            # Its rehearsal takes steps, but not where a run has begun.
            patched.setattr(qlora_qwen, "rehearse", refuse)
        run(recipe, out)
    assert (out / "result.json").read_text() == before


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_error_is_a_sentence(recipe: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: .*unknown key 'train\.lrr'; did you mean 'lr'"):
        run(recipe, tmp_path, "--set", "train.lrr=1")
    with pytest.raises(SystemExit, match=r"error: .*nothing\.jsonl"):
        run(recipe, tmp_path, "--data", str(tmp_path / "nothing.jsonl"))
    with pytest.raises(SystemExit, match="error: --data is missing"):
        recipe.main(["--out", str(tmp_path)])


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_stopped_run_says_how_to_go_on(recipe: Any, tmp_path: Path) -> None:
    (tmp_path / "STOP").touch()
    with pytest.raises(SystemExit, match="the same command goes on"):
        run(recipe, tmp_path)
    (tmp_path / "STOP").unlink()
    run(recipe, tmp_path)
    assert (tmp_path / "result.json").exists()


def test_settings_come_from_a_file_and_from_the_command_line(tmp_path: Path) -> None:
    settings = tmp_path / "mine.yaml"
    settings.write_text("lora: {rank: 2, alpha: 3, targets: [q_proj]}\ntrain: {lr: 1e-3}\n")
    run(sft, tmp_path / "run", "--config", str(settings), "--set", "lora.rank=6")
    config = read_adapter_config(tmp_path / "run" / "adapter").config
    assert config == LoraConfig(rank=6, alpha=3.0, targets=("q_proj",))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["train"]["lr"] == 1e-3


def test_replies_before_and_after_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "mine.jsonl"
    rows = [{"prompt": f"say {n}", "completion": f"{n} it is"} for n in range(20)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = ["--prompt", "say 5", "--prompt", "sing"]
    more = ["--set", "train.max_steps=30", "--set", "train.lr=0.02"]
    run(sft, tmp_path / "run", "--data", str(data), *chosen, *more)
    found = report(tmp_path / "run")
    assert [reply["prompt"] for reply in found["replies"]] == ["say 5", "sing"]
    assert found["replies"][0]["before"] != found["replies"][0]["after"]
    assert found["valid_best"] < found["valid_before"]
    told = capsys.readouterr().out
    assert f"after:  {found['replies'][0]['after']}" in told
    assert str(tmp_path / "run" / "adapter") in told


def test_held_out_data_may_be_a_file(tmp_path: Path) -> None:
    for name in ("train", "valid"):
        rows = [{"prompt": f"{name} {n}", "completion": "x" * 9} for n in range(4)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = ["--data", str(tmp_path / "train.jsonl"), "--valid", str(tmp_path / "valid.jsonl")]
    run(sft, tmp_path / "run", *files)
    asked = [reply["prompt"] for reply in report(tmp_path / "run")["replies"]]
    assert asked == [f"valid {n}" for n in range(4)]


def test_the_preset_is_what_it_says() -> None:
    settings = mc.load_config(FinetuneConfig, qlora_qwen.PRESET)
    train, limits = settings.train, settings.limits
    assert (train.dtype, train.gradient_checkpointing) == ("bfloat16", True)
    assert settings.lora.rank == 16
    assert len(settings.lora.targets) == 7
    assert limits == ResourceLimits("pause", 30, max_memory_mb=36_000)
    assert train.batch_tokens >= train.max_tokens
    # What is not set there has the default of the library, and is not repeated.
    told = yaml.safe_load(qlora_qwen.PRESET.read_text())
    repeated = {
        name for name, value in told["train"].items() if value == getattr(TrainConfig(), name)
    }
    assert repeated <= {"schedule", "clip_norm"}


def test_qlora_trains_over_packed_layers(
    runs: dict[Any, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = runs[qlora_qwen]
    lm = mc.load(out / "tiny", dequantize=False)
    assert isinstance(lm.model.layers[0].self_attn.q_proj, nn.QuantizedLinear)
    expected = json.loads((out / "rehearsal.json").read_text())
    assert expected["steps"] == 3
    # 4-bit numbers, not the words that hold them.
    assert expected["parameters"] > 8 * 64 * 64


def test_a_rehearsal_only_says_what_it_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mc, "finetune", None)
    run(qlora_qwen, tmp_path, "--rehearse")
    assert "peak memory" in capsys.readouterr().out
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("objective", ["orpo", "kto"])
def test_preferences_are_measured_before_and_after(objective: str, tmp_path: Path) -> None:
    run(preferences, tmp_path, "--objective", objective)
    found = report(tmp_path)
    assert found["objective"] == objective
    assert found["before"]["pairs"] == found["after"]["pairs"] > 0
    assert found["before"]["reward_accuracy"] is None
    assert 0 <= found["after"]["reward_accuracy"] <= 1


def test_a_stop_while_training_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = MetricsLog.on_step

    def stopping(log: MetricsLog, step: StepInfo) -> None:
        write(log, step)
        if step.step == 2:
            (tmp_path / "STOP").touch()

    with monkeypatch.context() as patched:
        patched.setattr(MetricsLog, "on_step", stopping)
        with pytest.raises(SystemExit, match="the same command goes on"):
            run(sft, tmp_path)
    (tmp_path / "STOP").unlink()
    run(sft, tmp_path)
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert [line["step"] for line in lines if line["event"] == "step"] == [1, 2, 3]
