"""The loss at target positions against the loss from all logits: values and gradients."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_models import adapted, distance, llama, rows

from mlx_companion.errors import DataError
from mlx_companion.lora import LoraConfig, attach
from mlx_companion.models.heads import head_trains, output_head
from mlx_companion.models.prefix import can_share, shared_length
from mlx_companion.text import Batch, Encoded, collate
from mlx_companion.training import SftLoss, sft_loss


def full_logits_loss(model: nn.Module, batch: Batch) -> tuple[mx.array, mx.array]:
    """The same, the plain way."""
    logits = model(batch.tokens[:, :-1]).astype(mx.float32)
    ce = nn.losses.cross_entropy(logits, batch.tokens[:, 1:])
    return (ce * batch.targets[:, 1:]).sum(), batch.targets[:, 1:].sum()


def assert_agrees(model: nn.Module, batch: Batch, loss: Any, tolerance: float = 1e-5) -> None:
    (expected, count), slopes = nn.value_and_grad(model, full_logits_loss)(model, batch)
    (got, number), gradients = nn.value_and_grad(model, loss)(model, batch)
    assert number.item() == count.item()
    assert abs(got.item() / expected.item() - 1) < tolerance
    assert distance(gradients, slopes) < tolerance


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("share", [False, True])
def test_it_agrees_with_full_logits(tied: bool, share: bool) -> None:
    model = adapted(tie_word_embeddings=tied)
    model.train()
    encoded = rows(7, prefix=25)
    assert_agrees(model, collate(encoded, range(7)), SftLoss(share_prefix=share))


@pytest.mark.parametrize("size", [1, 5, 16, 1000])
def test_chunks_change_nothing(size: int) -> None:
    model = adapted()
    model.train()
    loss = SftLoss(chunk=size)
    assert_agrees(model, collate(rows(5), range(5)), loss)
    expected = full_logits_loss(model, collate(rows(5), range(5)))[0].item()
    model.eval()
    assert loss(model, collate(rows(5), range(5)))[0].item() == pytest.approx(expected)


def test_a_model_that_is_not_in_training_mode_has_the_same_gradient() -> None:
    model = adapted()
    model.eval()
    assert_agrees(model, collate(rows(5), range(5)), SftLoss(chunk=4))


@pytest.mark.parametrize("chunk", [4, None])
@pytest.mark.parametrize("tied", [False, True])
def test_all_parameters_are_trained(tied: bool, chunk: int | None) -> None:
    model = llama(tie_word_embeddings=tied)
    model.train()
    assert_agrees(model, collate(rows(4), range(4)), SftLoss(chunk=chunk))


@pytest.mark.parametrize("chunk", [4, None])
def test_adapters_on_the_output_layer(chunk: int | None) -> None:
    model = llama()
    attach(model, LoraConfig(rank=2, targets=("lm_head", "q_proj"), dropout=0.0), seed=0)
    model.lm_head.lora_b = mx.random.normal(model.lm_head.lora_b.shape, key=mx.random.key(3))
    model.train()
    assert head_trains(output_head(model))
    assert_agrees(model, collate(rows(4), range(4)), SftLoss(chunk=chunk))


def test_a_quantized_model_and_head() -> None:
    model = adapted(hidden_size=64)
    nn.quantize(model, group_size=32, bits=4, class_predicate=lambda path, _: path == "lm_head")
    model.train()
    assert_agrees(model, collate(rows(4), range(4)), sft_loss)


def test_a_head_that_trains_gets_its_gradient() -> None:
    model = llama()
    model.train()
    assert_agrees(model, collate(rows(4), range(4)), sft_loss)
    _, gradients = nn.value_and_grad(model, sft_loss)(model, collate(rows(4), range(4)))
    assert float(mx.abs(gradients["lm_head"]["weight"]).max()) > 0


def test_half_precision_is_summed_in_single() -> None:
    model = adapted()
    model.set_dtype(mx.bfloat16)
    model.train()
    loss, count = sft_loss(model, collate(rows(6), range(6)))
    assert (loss.dtype, count.dtype) == (mx.float32, mx.float32)
    assert_agrees(model, collate(rows(6), range(6)), sft_loss, 0.05)


def test_fillers_of_compiled_shapes_count_nothing() -> None:
    batch = collate(rows(5), range(5))
    picked = SftLoss(pad_to=64).prepare(batch)
    assert len(picked.labels) == 64
    model = adapted()
    model.train()
    assert_agrees(model, batch, SftLoss(pad_to=64))


def test_rows_may_weigh_differently() -> None:
    model = adapted()
    batch = collate(rows(3), range(3))
    weights = np.array([0.0, 0.5, 2.0])
    loss, count = sft_loss(model, sft_loss.prepare(batch, weights))
    single = [sft_loss(model, collate(rows(3), [i])) for i in range(3)]
    expected = sum(w * float(s[0]) for w, s in zip(weights, single, strict=True))
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert count.item() == pytest.approx(
        sum(w * float(s[1]) for w, s in zip(weights, single, strict=True))
    )


def test_a_batch_without_targets_is_refused() -> None:
    batch = collate([Encoded([1, 2, 3], [False] * 3)], [0])
    with pytest.raises(DataError, match="no token to train on"):
        sft_loss(adapted(), batch)


def test_memory_is_a_fraction_of_full_logits() -> None:
    model = adapted(vocab_size=30_000)
    model.train()
    batch = collate(rows(16, prefix=30), range(16))

    def peak(loss: Any) -> int:
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(nn.value_and_grad(model, loss)(model, batch))
        return mx.get_peak_memory() - before

    assert peak(sft_loss) < 0.3 * peak(full_logits_loss)


class Windowed(nn.Module):
    """A model whose layers do not keep plain keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = adapted()

    def __call__(self, tokens: mx.array) -> mx.array:
        return self.inner(tokens)


def test_models_that_cannot_share_run_whole_rows() -> None:
    model = Windowed()
    model.train()
    batch = collate(rows(4, prefix=30), range(4))
    assert sft_loss.prepare(batch).prefix > 0
    assert_agrees(model, batch, sft_loss)
    assert not can_share(model, model)


def test_probing_leaves_the_mode_alone() -> None:
    model = adapted()
    model.train()
    assert can_share(model, model.model)
    assert model.training


def test_the_shared_part_of_rows() -> None:
    tokens = np.arange(60).reshape(1, 60).repeat(3, axis=0)
    targets = np.zeros_like(tokens, dtype=bool)
    targets[:, 50:] = True
    assert shared_length(tokens, targets) == 49
    assert shared_length(tokens, targets, step=8) == 48
    targets[1, 30] = True
    assert shared_length(tokens, targets) == 29
    tokens[2, 20] = 99
    assert shared_length(tokens, targets) == 20
    assert shared_length(tokens, targets, step=8) == 16
    tokens[2, 10] = 99
    assert shared_length(tokens, targets) == 0
    assert shared_length(tokens[:1], targets[:1]) == 0


@settings(max_examples=25, deadline=None)
@given(
    prefix=st.integers(0, 40),
    lengths=st.lists(st.integers(2, 12), min_size=1, max_size=5),
    seed=st.integers(0, 100),
)
def test_sharing_never_changes_the_loss(prefix: int, lengths: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    shared = rng.integers(0, 61, prefix).tolist()
    encoded = []
    for length in lengths:
        targets = [False] * prefix + (rng.random(length) < 0.6).tolist()
        targets[0], targets[-1] = False, True
        encoded.append(Encoded(shared + rng.integers(0, 61, length).tolist(), targets))
    batch = collate(encoded, range(len(encoded)))
    model = _MODEL
    plain = SftLoss(share_prefix=False)(model, batch)
    got = SftLoss()(model, batch)
    assert got[0].item() == pytest.approx(plain[0].item(), rel=1e-4)
    assert got[1].item() == plain[1].item() == sum(row.target_count for row in encoded)


_MODEL = adapted()
