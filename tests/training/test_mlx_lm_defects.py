"""Where mlx-lm's trainer is wrong: its own functions beside ours, on the same input.

Should one of the assertions about mlx-lm fail one day, it was mended there: good, drop the test.
Padding and fixed batches are shown in the tests of `text`, promoted types in those of `lora`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.optimizers import SGD
from mlx_lm.models import llama as llama_module
from mlx_lm.tuner import trainer as mlx_lm_trainer
from training_models import adapted, arrays, distance

from mlx_companion.errors import DataError
from mlx_companion.text import Encoded, LengthBuckets, collate
from mlx_companion.training import SftLoss, TrainConfig, Trainer, sft_loss
from mlx_companion.training.gradients import GradientEngine, clipped_mean
from mlx_companion.training.recompute import recompute_layers
from mlx_companion.training.rng import set_random_state

Row = tuple[list[int], int]


def encoded(row: Row) -> Encoded:
    """Ours: a mask. mlx-lm's: tokens and where the completion starts."""
    tokens, offset = row
    return Encoded(tokens, [at >= offset for at in range(len(tokens))])


def their_batches(rows: Sequence[Row], size: int, longest: int = 64) -> list[Any]:
    return list(mlx_lm_trainer.iterate_batches(list(rows), size, longest))


@pytest.fixture
def interpreted() -> Iterator[None]:
    """mlx-lm compiles its step; compiling takes seconds and is not the point."""
    mx.disable_compile()
    yield
    mx.enable_compile()


def test_mlx_lm_trains_on_a_pad_token_of_each_row() -> None:
    row = ([5, 6, 7, 8, 9, 10], 3)
    ((tokens, lengths),) = their_batches([row], 1)
    model = adapted()
    loss, count = mlx_lm_trainer.default_loss(model, tokens, lengths)
    assert count.item() == 4
    # Its fourth target is the first pad token, 0.
    with_pad = Encoded([*row[0], 0], [False] * 3 + [True] * 4)
    pad_loss, _ = sft_loss(model, collate([with_pad], [0]))
    assert loss.item() == pytest.approx(pad_loss.item() / 4, rel=1e-4)

    ours, our_count = sft_loss(model, collate([encoded(row)], [0]))
    assert our_count.item() == 3
    assert ours.item() / 3 != pytest.approx(loss.item(), rel=1e-3)


def test_mlx_lm_gives_nan_when_all_targets_are_cut_off() -> None:
    row = (list(range(1, 41)), 30)
    ((tokens, lengths),) = their_batches([row], 1, longest=16)
    loss, count = mlx_lm_trainer.default_loss(adapted(), tokens, lengths)
    assert count.item() == 0
    assert np.isnan(loss.item())

    cut = encoded(row).window(0, 16)
    with pytest.raises(DataError, match="no token to train on"):
        sft_loss(adapted(), collate([cut], [0]))
    with pytest.raises(DataError, match="drop it first"):
        LengthBuckets([cut])


# One short completion and one long one, and the latter's share of the targets is 10 of 12.
SHORT: Row = ([3, 1, 4, 1, 5, 9], 4)
LONG: Row = ([2, 7, 1, 8, 2, 8, 1, 8, 2, 8, 4, 5], 2)


def their_change(rows: Sequence[Row], accumulate: int, tmp_path: Path) -> dict[str, mx.array]:
    """What mlx-lm's training loop changes, with plain gradient descent at rate 1."""

    def one_row_each(**_: Any) -> Iterator[Any]:
        # Without a pad token at the end, so that this shows one defect at a time.
        for tokens, offset in rows:
            yield mx.array([tokens]), mx.array([[offset, len(tokens) - 1]])

    model = adapted()
    before = arrays(model)
    args = mlx_lm_trainer.TrainingArgs(
        batch_size=1,
        iters=len(rows),
        grad_accumulation_steps=accumulate,
        adapter_file=str(tmp_path / "adapters.safetensors"),
    )
    mlx_lm_trainer.train(model, SGD(1.0), list(rows), args=args, iterate_batches=one_row_each)
    return {name: before[name] - value for name, value in arrays(model).items()}


def mean_gradient(rows: Sequence[Row]) -> dict[str, mx.array]:
    """Gradient of the mean loss over all targets, from one batch and full logits."""
    model = adapted()
    batch = collate([encoded(row) for row in rows], range(len(rows)))

    def loss(model: nn.Module) -> mx.array:
        ce = nn.losses.cross_entropy(model(batch.tokens[:, :-1]), batch.tokens[:, 1:])
        targets = batch.targets[:, 1:]
        return (ce * targets).sum() / targets.sum()

    _, gradients = nn.value_and_grad(model, loss)(model)
    return flat(gradients)


def flat(tree: Any) -> dict[str, mx.array]:
    from mlx.utils import tree_flatten

    return dict(tree_flatten(tree))


def our_gradient(rows: Sequence[Row]) -> dict[str, mx.array]:
    model = adapted()
    model.train()
    engine = GradientEngine(model, SftLoss(), [mx.default_stream(mx.default_device())])
    total = None
    for row in rows:
        total = engine.add(collate([encoded(row)], [0]), total)
    assert total is not None
    return flat(clipped_mean(total, None)[0])


@pytest.mark.usefixtures("interpreted")
def test_mlx_lm_averages_means_of_micro_batches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = their_change([SHORT, LONG], 2, tmp_path)
    right = mean_gradient([SHORT, LONG])
    alone = [mean_gradient([row]) for row in (SHORT, LONG)]
    halves = {name: (alone[0][name] + alone[1][name]) / 2 for name in right}
    assert distance(theirs, halves) < 1e-3
    assert distance(theirs, right) > 0.1
    assert distance(our_gradient([SHORT, LONG]), right) < 1e-4


@pytest.mark.usefixtures("interpreted")
def test_mlx_lm_drops_the_last_micro_batches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    third: Row = ([11, 12, 13, 14, 15], 2)
    with_it = their_change([SHORT, LONG, third], 2, tmp_path)
    without = their_change([SHORT, LONG], 2, tmp_path)
    assert distance(with_it, without) == 0

    data = LengthBuckets([encoded(row) for row in (SHORT, LONG, third)], max_rows=1)
    summary = Trainer(adapted(), data, config=TrainConfig(epochs=1, accumulate=2)).run()
    assert summary.steps == 2
    assert summary.targets == 2 + 10 + 3


def test_mlx_lm_checkpoints_layers_with_another_dropout_mask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = adapted(dropout=0.5)
    model.train()
    batch = collate([encoded(SHORT), encoded(LONG)], range(2))

    def gradients() -> dict[str, mx.array]:
        set_random_state(3)
        return flat(nn.value_and_grad(model, SftLoss())(model, batch)[1])

    right = gradients()
    with recompute_layers(model):
        assert distance(gradients(), right) == 0
    # It changes the class, so every model of that class in the process; put back at the end.
    original = llama_module.TransformerBlock.__call__
    monkeypatch.setattr(llama_module.TransformerBlock, "__call__", original)
    mlx_lm_trainer.grad_checkpoint(model.layers[0])
    assert llama_module.TransformerBlock.__call__ is not original
    assert distance(gradients(), right) > 0.1
