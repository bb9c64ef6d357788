"""Training data in memory and streamed from the disk: the same batches, report and hash."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from architectures import build
from tiny import tiny_llama

import mlx_companion  # noqa: F401
from mlx_companion.errors import ConfigError, DataError
from mlx_companion.lora import LoraConfig
from mlx_companion.models.load import LanguageModel, load
from mlx_companion.text import LengthBuckets, Message, Sample
from mlx_companion.text.packed_samples import PackedSamples
from mlx_companion.text.streaming import StoredRows
from mlx_companion.training import TrainConfig, data_sets, finetune
from mlx_companion.training.data import prepare_data
from mlx_companion.training.distill import DistillLoss
from mlx_companion.training.rehearsal import rehearse

WORDS = ("kettle", "garden", "river", "letter", "window", "market")


def sentence(rng: np.random.Generator, longest: int) -> str:
    return " ".join(WORDS[i] for i in rng.integers(0, len(WORDS), rng.integers(1, longest)))


def write(path: Path, count: int, seed: int = 0) -> Path:
    """Chats and texts; every ninth sample is there twice, some are too long."""
    rng = np.random.default_rng(seed)
    lines: list[str] = []
    for number in range(count):
        if number % 9 == 8:
            lines.append(lines[-4])
        elif number % 4:
            pair = {"prompt": sentence(rng, 40), "completion": sentence(rng, 20)}
            lines.append(json.dumps(pair))
        else:
            lines.append(json.dumps({"text": sentence(rng, 40)}))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return load(tiny_llama(tmp_path_factory.mktemp("model")))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "data.jsonl", 60)


def batches(source: LengthBuckets | PackedSamples) -> list[tuple[Any, ...]]:
    return [
        (indices, np.array(batch.tokens).tolist(), np.array(batch.targets).tolist())
        for number in range(2)
        for indices in source.epoch(number)
        for batch in [source.batch(indices)]
    ]


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("valid", [None, 0.2, "file"])
def test_streamed_as_in_memory(
    valid: float | str | None, packing: bool, data: Path, lm: LanguageModel, tmp_path: Path
) -> None:
    apart = write(tmp_path / "valid.jsonl", 20, seed=0) if valid == "file" else valid
    prepared = [
        prepare_data(
            data,
            apart,
            lm.tokenizer,
            TrainConfig(max_tokens=48, batch_tokens=128, packing=packing, stream=stream),
        )
        for stream in (False, True)
    ]
    memory, disk = prepared
    assert isinstance(disk.train.encoded, StoredRows)
    assert isinstance(disk.train, PackedSamples if packing else LengthBuckets)
    assert memory.sha256 == disk.sha256
    assert memory.report == disk.report
    assert batches(memory.train) == batches(disk.train)
    assert (memory.valid is None) == (disk.valid is None) == (valid is None)
    if memory.valid and disk.valid:
        assert batches(memory.valid) == batches(disk.valid)


def test_the_report(data: Path, lm: LanguageModel, tmp_path: Path) -> None:
    valid = write(tmp_path / "valid.jsonl", 20, seed=0)
    config = TrainConfig(max_tokens=48, batch_tokens=128, stream=True)
    report = prepare_data(data, valid, lm.tokenizer, config).report
    assert report.samples == 60
    assert report.duplicates == len(data.read_text().splitlines()) - len(
        set(data.read_text().splitlines())
    )
    assert report.leaked == 20
    assert report.dropped > 0
    assert report.truncated > 0
    assert report.split > 0
    assert 0 < report.targets < report.tokens
    assert report.shortest <= report.median <= report.longest <= 48
    assert "data.jsonl:" in report.reasons[0]
    assert "held out and trained on as well" in str(report)


def test_large_files_are_streamed(
    data: Path, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not isinstance(read(data, lm), StoredRows)
    monkeypatch.setattr(data_sets, "STREAM_BYTES", data.stat().st_size)
    assert isinstance(read(data, lm), StoredRows)
    assert isinstance(read(data.parent, lm), StoredRows)
    assert not isinstance(read(data, lm, stream=False), StoredRows)


def read(path: Path, lm: LanguageModel, **options: Any) -> Sequence[Any]:
    return prepare_data(path, None, lm.tokenizer, TrainConfig(**options)).train.encoded


def test_samples_in_memory_are_not_streamed(lm: LanguageModel) -> None:
    samples = [Sample(messages=(Message("user", "a"), Message("assistant", "b")))]
    with pytest.raises(ConfigError, match="give a file or a folder"):
        prepare_data(samples, None, lm.tokenizer, TrainConfig(stream=True))


def test_nothing_left(lm: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"prompt": "garden " * 90, "completion": "river"}) + "\n")
    for stream in (False, True):
        with pytest.raises(
            DataError, match=r"no training row is left: .*long\.jsonl:1: all of its"
        ):
            prepare_data(path, None, lm.tokenizer, TrainConfig(max_tokens=16, stream=stream))


def run(lm: LanguageModel, data: Path, out: Path, **options: Any) -> Any:
    train = TrainConfig(max_steps=4, batch_tokens=128, max_tokens=48, **options)
    lora = LoraConfig(rank=2, alpha=4.0)
    return finetune(lm, data, out, lora=lora, train=train, valid=0.2, progress=False, track=())


def test_runs_are_the_same_and_may_change_over(
    data: Path, lm: LanguageModel, tmp_path: Path
) -> None:
    results = [run(lm, data, tmp_path / str(s), stream=s) for s in (False, True)]
    assert results[0].adapter_sha256 == results[1].adapter_sha256
    assert run(lm, data, tmp_path / "False", stream=True).finished_before


def test_a_packed_run(data: Path, lm: LanguageModel, tmp_path: Path) -> None:
    result = run(lm, data, tmp_path / "run", packing=True)
    assert result.padding == 0
    assert result.data["padding"] == 0
    assert result.valid_after < result.valid_before
    assert run(lm, data, tmp_path / "again", packing=True).adapter_sha256 == result.adapter_sha256


def test_models_that_cannot_pack_get_buckets_and_a_note(
    data: Path, lm: LanguageModel, tmp_path: Path
) -> None:
    model = build("gemma2", head_dim=8, query_pre_attn_scalar=8, vocab_size=512)
    other = LanguageModel(model, lm.tokenizer, "tiny gemma2", tmp_path, "0" * 64)
    result = run(other, data, tmp_path / "run", packing=True)
    assert "packing is refused: its attention is not mlx-lm's" in result.data["note"]
    config = TrainConfig(packing=True, max_steps=2)
    report = rehearse(other, data, train=config, lora=LoraConfig(rank=2, alpha=4.0)).data
    assert report.note
    assert report.note in str(report)


def test_other_losses_refuse_packed_rows(data: Path, lm: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the loss is DistillLoss"):
        finetune(lm, data, tmp_path / "run", loss=DistillLoss(), train=TrainConfig(packing=True))
