"""A rehearsal says what the run then takes, writes nothing and leaves the model as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from tiny import tiny_llama
from typer.testing import CliRunner

from mlx_companion.cli import app
from mlx_companion.errors import AdapterError, DataError
from mlx_companion.lora import LoraConfig, detach, is_attached
from mlx_companion.models.load import LanguageModel, load
from mlx_companion.text import Message, Sample
from mlx_companion.training import TrainConfig, finetune, rehearse
from mlx_companion.training.data import prepare_data
from mlx_companion.training.run_book import RunBook

SAMPLES = [
    Sample((Message("user", f"say {i}"), Message("assistant", "the river " * (1 + i % 7))))
    for i in range(30)
]


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return load(tiny_llama(tmp_path_factory.mktemp("model")))


@pytest.mark.parametrize("options", [{}, {"max_steps": 7}, {"accumulate": 3}])
def test_steps_slots_and_parameters_are_those_of_the_run(
    options: dict[str, Any], lm: LanguageModel, tmp_path: Path
) -> None:
    train = TrainConfig(epochs=2, batch_tokens=128, **options)
    lora = LoraConfig(rank=2)
    detach(lm.model)
    before = dict(tree_flatten(lm.model.parameters()))
    found = rehearse(lm, SAMPLES, lora=lora, train=train)
    after = dict(tree_flatten(lm.model.parameters()))
    assert after.keys() == before.keys()
    assert all(mx.array_equal(after[name], before[name]).item() for name in before)
    assert not is_attached(lm.model)
    assert RunBook().all() == []
    assert not list(tmp_path.iterdir())
    result = finetune(lm, SAMPLES, tmp_path / "run", lora=lora, train=train, progress=False)
    assert found.steps == result.steps
    assert found.slots == pytest.approx(result.tokens / (1 - result.padding))
    assert found.trainable == sum(
        value.size for name, value in tree_flatten(lm.model.trainable_parameters())
    )
    assert found.parameters == sum(value.size for value in before.values())
    assert found.seconds > 0
    assert found.peak_mb > 0
    if not options:
        assert found.targets_per_second == pytest.approx(
            2 * found.targets / found.seconds, rel=0.02
        )


def test_text_and_json_say_the_same(lm: LanguageModel) -> None:
    found = rehearse(lm, SAMPLES, lora=LoraConfig(rank=2), train=TrainConfig(batch_tokens=128))
    text = str(found)
    assert f"{found.steps} steps" in text
    assert "peak memory" in text
    assert found.to_json()["data"]["rows"] == 30


def test_what_finetune_refuses_is_refused(lm: LanguageModel) -> None:
    with pytest.raises(AdapterError):
        rehearse(lm, SAMPLES, lora=LoraConfig(targets=("nothing",)))
    with pytest.raises(DataError):
        rehearse(lm, [])
    assert not is_attached(lm.model)


def test_the_command_writes_nothing(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "model")
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "a", "completion": "b c"}\n' * 5)
    result = CliRunner().invoke(
        app,
        ["finetune", "--data", str(data), "--model", str(model), "--dry-run", "--out",
         str(tmp_path / "out")],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "4 given more than once" in result.stdout
    assert "peak memory" in result.stdout
    assert not (tmp_path / "out").exists()


def test_duplicates_and_leaks_are_told(lm: LanguageModel) -> None:
    report = prepare_data([*SAMPLES, *SAMPLES[:4]], SAMPLES[:3], lm.tokenizer, TrainConfig()).report
    assert (report.duplicates, report.leaked) == (4, 3)
    assert "3 held out and trained on as well" in str(report)
    clean = prepare_data(SAMPLES, 0.2, lm.tokenizer, TrainConfig()).report
    assert (clean.duplicates, clean.leaked) == (0, 0)
    assert "given more than once" not in str(clean)
