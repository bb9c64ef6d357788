"""Training of byte models: entropies once and exact, patches from them, FLOPs, resuming."""

from __future__ import annotations

import json
import math
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_companion.blt.byte_lm import ByteLM
from mlx_companion.blt.config import BlockConfig, BltConfig, ByteLMConfig, HashConfig, PatchConfig
from mlx_companion.blt.flops import inference_flops
from mlx_companion.blt.model import BltModel
from mlx_companion.errors import ConfigError
from mlx_companion.text.documents import FlatText, flatten
from mlx_companion.text.packing import PackedRows
from mlx_companion.training import byte_models
from mlx_companion.training.byte_models import (
    ENTROPIES,
    batch_patching,
    states_of_batch,
    text_entropies,
    train_byte_model,
    training_flops,
)
from mlx_companion.training.callbacks import Callback, MetricsLog
from mlx_companion.training.config import TrainConfig
from mlx_companion.training.packed_loss import PackedLoss
from mlx_companion.training.state import StepInfo

ENTROPY = BlockConfig(12, 2, 2, 20, window=6)
DOCUMENTS = [b"The tide was out and the boats lay on the mud. " * 9, "Café. ".encode() * 20, b"ab"]
CONTEXT = 32


@pytest.fixture
def text() -> FlatText:
    return flatten(DOCUMENTS)


@pytest.fixture
def entropy_model() -> ByteLM:
    mx.random.seed(5)
    return ByteLM(ByteLMConfig(ENTROPY, context=CONTEXT))


def blt(entropy_model: ByteLM | None, threshold: float = 5.0) -> BltModel:
    mx.random.seed(2)
    rule = PatchConfig("space" if entropy_model is None else "entropy", threshold=threshold)
    model = BltModel(
        BltConfig(
            BlockConfig(16, 1, 2, 24, window=8),
            BlockConfig(24, 1, 2, 40),
            BlockConfig(16, 1, 2, 24, window=8),
            None if entropy_model is None else ENTROPY,
            hash=HashConfig((3, 4), 1, 50),
            patching=rule,
            context=CONTEXT,
        )
    )
    if entropy_model is not None:
        model.model.patcher.update(entropy_model.model.parameters())
    return model


def arrays(model: BltModel | ByteLM) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in tree_flatten(model.parameters())}


def test_entropies_are_those_of_whole_documents(
    text: FlatText, entropy_model: ByteLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(byte_models, "_STRETCH", 37)
    found = text_entropies(entropy_model, text)
    ends = [*text.starts[1:].tolist(), len(text.ids)]
    for start, end in zip(text.starts.tolist(), ends, strict=True):
        ids = mx.array(text.ids[start:end].astype(np.int32))[None]
        logits = np.array(entropy_model(ids))[0].astype(np.float64)
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        np.testing.assert_allclose(found[start:end], -(p * np.log(p)).sum(-1), atol=1e-5)


def test_entropies_are_computed_once(
    text: FlatText, entropy_model: ByteLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = text_entropies(entropy_model, text, tmp_path / "kept")
    inside = text_entropies(blt(entropy_model), text, tmp_path / "other")
    np.testing.assert_array_equal(first, inside)
    with monkeypatch.context() as patch:
        patch.setattr(byte_models, "_text_entropies", lambda *_: pytest.fail("computed again"))
        np.testing.assert_array_equal(first, text_entropies(entropy_model, text, tmp_path / "kept"))
    entropy_model.model.norm.weight = entropy_model.model.norm.weight * 2
    changed = text_entropies(entropy_model, text, tmp_path / "kept")
    assert np.abs(changed - first).max() > 1e-3


def test_entropies_of_a_model_without_them_are_refused(text: FlatText) -> None:
    with pytest.raises(ConfigError, match="this model has none"):
        text_entropies(blt(None), text)


def test_patches_come_from_the_entropies_that_ride_along(
    text: FlatText, entropy_model: ByteLM
) -> None:
    entropies = text_entropies(entropy_model, text)
    model = blt(entropy_model, float(np.median(entropies)) + 1e-6)
    rows = PackedRows(text, context=CONTEXT, batch_rows=3, extra={ENTROPIES: entropies})
    batch = rows.batch(rows.epoch(0)[0])
    opens = np.array(batch_patching(model, batch).opens)
    ids = np.array(batch.ids)
    documents = np.zeros_like(ids) if batch.documents is None else np.array(batch.documents)
    for row, start in enumerate(batch.indices):
        place = 0
        for t in range(CONTEXT):
            place = 0 if t == 0 or documents[row, t] != documents[row, t - 1] else place + 1
            before = entropies[(start + t - 1) % len(entropies)]
            assert opens[row, t] == (place < 2 or before > model.config.patching.threshold)
    assert 0.2 < opens.mean() < 0.8
    assert ids[:, 0].tolist() == [1, 1, 1]


@pytest.mark.parametrize("kind", ["flat", "space", "entropy"])
def test_a_run_learns_and_counts(
    kind: str, text: FlatText, entropy_model: ByteLM, tmp_path: Path
) -> None:
    entropies = text_entropies(entropy_model, text) if kind == "entropy" else None
    model = (
        entropy_model if kind == "flat" else blt(entropy_model if entropies is not None else None)
    )
    config = TrainConfig(optimizer="muon", lr=0.02, max_steps=25, batch_tokens=128, epochs=99)
    log = MetricsLog(tmp_path / "metrics.jsonl")
    frozen = None if kind != "entropy" else arrays(model)
    summary = train_byte_model(
        model, text, config, tmp_path, valid=text, entropies=entropies, callbacks=[log]
    )
    assert summary.valid_before is not None
    assert summary.valid_after is not None
    assert summary.valid_before > math.log(200)
    assert summary.valid_after < 0.6 * summary.valid_before
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    spent = [line["flops"] for line in lines if line["event"] == "step"]
    assert spent == sorted(spent)
    if kind == "flat":
        each = 3 * inference_flops(model.config).total * 128
        assert spent[0] == pytest.approx(each)
    if frozen is not None:
        for name, value in arrays(model).items():
            assert name.startswith("model.patcher.") == np.array_equal(frozen[name], value), name


def test_flops_follow_the_patches(text: FlatText, entropy_model: ByteLM) -> None:
    entropies = text_entropies(entropy_model, text)
    spent = {}
    for name, threshold in (("short", 0.0), ("long", 99.0)):
        model = blt(entropy_model, threshold)
        rows = PackedRows(text, context=CONTEXT, batch_rows=1, extra={ENTROPIES: entropies})
        batch = rows.batch((40,))
        spent[name] = training_flops(model)(batch) / CONTEXT
    cost = inference_flops(model.config, 1.0)
    assert spent["short"] == pytest.approx(3 * cost.trained + cost.entropy, rel=0.05)
    assert spent["long"] < spent["short"] - 2.5 * cost.latent * 0.8


def test_the_loss_is_the_mean_of_every_byte(text: FlatText) -> None:
    model = blt(None)
    rows = PackedRows(text, context=CONTEXT, batch_rows=4, shuffle=False)
    total = count = 0.0
    loss = PackedLoss(states_of_batch)
    for indices in rows.epoch(0):
        value, number = loss(model, rows.batch(indices))
        total, count = total + float(value), count + float(number)
    assert count == len(text.ids) - len(text.starts)
    assert total / count == pytest.approx(math.log(260), rel=0.2)


class InterruptedRunError(Exception):
    """Stands for a kill."""


class KillAt(Callback):
    """Raises at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, step: StepInfo) -> None:
        """Count."""
        if step.step == self.step:
            raise InterruptedRunError


def test_a_killed_run_ends_as_one_that_was_not(
    text: FlatText, entropy_model: ByteLM, tmp_path: Path
) -> None:
    entropies = text_entropies(entropy_model, text)
    config = TrainConfig(
        optimizer="muon", max_flops=3e8, batch_tokens=96, save_every=4, schedule="trapezoid"
    )
    ends = {}
    for name, kills in (("whole", []), ("killed", [3, 6, 11])):
        for kill in [*kills, None]:
            model = blt(entropy_model)
            watch = [] if kill is None else [KillAt(kill)]
            try:
                train_byte_model(
                    model, text, config, tmp_path / name, entropies=entropies, callbacks=watch
                )
            except InterruptedRunError:
                continue
        ends[name] = arrays(model)
    for key, value in ends["whole"].items():
        np.testing.assert_array_equal(value, ends["killed"][key])


def test_entropies_for_a_model_that_reads_none(text: FlatText, tmp_path: Path) -> None:
    config = TrainConfig(max_steps=1)
    with pytest.raises(ConfigError, match="do not come from them"):
        train_byte_model(blt(None), text, config, tmp_path, entropies=np.zeros(len(text.ids)))


def test_entropies_of_another_text(text: FlatText, entropy_model: ByteLM, tmp_path: Path) -> None:
    config = TrainConfig(max_steps=1)
    with pytest.raises(ConfigError, match="belongs to another text"):
        train_byte_model(blt(entropy_model), text, config, tmp_path, entropies=np.zeros(7))
