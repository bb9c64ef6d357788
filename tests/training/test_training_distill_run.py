"""Distillation from logits, end to end, between tiny models."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import mlx_companion as mc
from mlx_companion.errors import CheckpointError, ConfigError
from mlx_companion.lora import LoraConfig, detach
from mlx_companion.models import LanguageModel
from mlx_companion.models.tiny import tiny_model
from mlx_companion.text import Message, Sample
from mlx_companion.training import TrainConfig, TrainResult
from mlx_companion.training.distill_run import distill_logits

TRAIN = TrainConfig(epochs=4, lr=1e-2, batch_tokens=400, max_tokens=64)
SAMPLES = [
    Sample((Message("user", f"count to {n}"), Message("assistant", " ".join(map(str, range(n))))))
    for n in range(1, 13)
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[LanguageModel, LanguageModel]:
    folder = tmp_path_factory.mktemp("models")
    return (
        mc.load(tiny_model(folder / "student")),
        mc.load(tiny_model(folder / "teacher", seed=1)),
    )


def distil(models: tuple[LanguageModel, object], out: Path, **options: object) -> TrainResult:
    given: dict = {"lora": LoraConfig(rank=8), "train": TRAIN, "progress": False, "track": ()}
    return distill_logits(models[0], models[1], SAMPLES, out, valid=0.25, **(given | options))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
def test_the_student_comes_closer(
    models: tuple[LanguageModel, LanguageModel], tmp_path: Path, kind: str
) -> None:
    found = distil(models, tmp_path / "run", kind=kind)
    assert found.valid_best < 0.95 * found.valid_before


def kl(models: tuple[LanguageModel, LanguageModel], text: str) -> float:
    """KL(teacher || student) of a text's next tokens, from whole distributions in float64."""
    tokens = mx.array([models[0].tokenizer.encode(text)])
    student, teacher = (np.array(lm.model(tokens), dtype=np.float64)[0] for lm in models)
    student -= np.log(np.exp(student).sum(-1, keepdims=True))
    teacher -= np.log(np.exp(teacher).sum(-1, keepdims=True))
    return float((np.exp(teacher) * (teacher - student)).sum(-1).mean())


def test_whole_distributions_come_closer_too(
    models: tuple[LanguageModel, LanguageModel], tmp_path: Path
) -> None:
    detach(models[0].model)
    text = models[0].tokenizer.apply_chat_template(
        [{"role": "user", "content": "count to 5"}, {"role": "assistant", "content": "0 1 2 3 4"}],
        tokenize=False,
    )
    before = kl(models, text)
    distil(models, tmp_path / "run")
    assert kl(models, text) < before


def test_a_teacher_that_a_function_loads_reads_the_data_once(
    models: tuple[LanguageModel, LanguageModel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = []

    def load() -> LanguageModel:
        loaded.append(1)
        return models[1]

    first = distil((models[0], load), tmp_path / "run")
    monkeypatch.setattr("mlx_companion.training.teacher_cache._compute", None)
    again = distil((models[0], load), tmp_path / "run")
    assert again.finished_before
    assert again.adapter_sha256 == first.adapter_sha256
    assert len(loaded) == 2


def test_another_teacher_is_another_run(
    models: tuple[LanguageModel, LanguageModel], tmp_path: Path
) -> None:
    distil(models, tmp_path / "run")
    other = mc.load(tiny_model(tmp_path / "other", seed=2))
    with pytest.raises(CheckpointError, match="another run"):
        distil((models[0], other), tmp_path / "run")
    with pytest.raises(CheckpointError, match="another run"):
        distil(models, tmp_path / "run", temperature=2.0)


def test_two_vocabularies_are_refused(
    models: tuple[LanguageModel, LanguageModel], tmp_path: Path
) -> None:
    from tiny import tiny_llama

    other = mc.load(tiny_llama(tmp_path / "other"))
    with pytest.raises(ConfigError, match="different vocabularies"):
        distil((models[0], other), tmp_path / "run")
