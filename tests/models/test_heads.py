"""Cutting a model before its output layer: equal to the whole, gradients included."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import cohere, gemma2, llama
from tiny import tiny_llama

from mlx_companion.models.heads import split_head
from mlx_companion.models.load import load

TOKENS = mx.array([[5, 9, 300, 2, 41, 7], [1, 1, 8, 250, 33, 12]])
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "vocab_size": 310,
}


def agree(model: nn.Module) -> None:
    backbone, head = split_head(model)
    np.testing.assert_allclose(head(backbone(TOKENS)), model(TOKENS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_llama_is_cut_at_its_head(tmp_path, tied):
    model, _ = load(tiny_llama(tmp_path, tie_word_embeddings=tied))
    backbone, head = split_head(model)
    assert backbone(TOKENS).shape == (2, 6, 32)
    hidden = backbone(TOKENS).reshape(-1, 32)[mx.array([3, 7])]
    expected = model(TOKENS).reshape(12, -1)[mx.array([3, 7])]
    np.testing.assert_allclose(head(hidden), expected, rtol=1e-4, atol=1e-5)


def test_logits_that_are_capped_are_not_cut():
    args = gemma2.ModelArgs.from_dict(
        {**SMALL, "model_type": "gemma2", "head_dim": 8, "num_key_value_heads": 2}
        | {"query_pre_attn_scalar": 8, "final_logit_softcapping": 2.0, "rms_norm_eps": 1e-6}
    )
    model = gemma2.Model(args)
    backbone, _ = split_head(model)
    assert backbone(TOKENS).shape == (2, 6, 310)
    agree(model)


def test_logits_that_are_scaled_are_not_cut():
    args = cohere.ModelArgs.from_dict({**SMALL, "model_type": "cohere", "logit_scale": 0.5})
    args.num_key_value_heads = 2
    model = cohere.Model(args)
    backbone, _ = split_head(model)
    assert backbone(TOKENS).shape == (2, 6, 310)
    agree(model)


def test_a_layer_put_in_after_the_cut_is_used(tmp_path):
    model, _ = load(tiny_llama(tmp_path))
    split = split_head(model)

    class Doubled(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def __call__(self, x):
            return 2 * self.inner(x)

    model.lm_head = Doubled(model.lm_head)
    np.testing.assert_allclose(
        split.head(split.backbone(TOKENS)), model(TOKENS), rtol=1e-5, atol=1e-5
    )


def test_gradients_are_those_of_the_whole_model(tmp_path):
    model, _ = load(tiny_llama(tmp_path))
    backbone, head = split_head(model)
    targets = mx.roll(TOKENS, -1, axis=1)
    pieces = nn.value_and_grad(
        model, lambda: nn.losses.cross_entropy(head(backbone(TOKENS)), targets).mean()
    )
    whole = nn.value_and_grad(model, lambda: nn.losses.cross_entropy(model(TOKENS), targets).mean())
    grads = dict(tree_flatten(pieces()[1]))
    expected = dict(tree_flatten(whole()[1]))
    assert grads.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(grads[name], expected[name], rtol=1e-3, atol=1e-6, err_msg=name)


def test_dropout_is_left_as_it_was():
    model = llama.Model(
        llama.ModelArgs.from_dict({**SMALL, "model_type": "llama", "rms_norm_eps": 1e-5})
    )
    model.eval()
    model.model.norm.train()
    before = [module.training for _, module in model.named_modules()]
    split_head(model)
    assert [module.training for _, module in model.named_modules()] == before
    assert any(before)
    assert not all(before)


def test_the_random_state_is_not_touched(tmp_path):
    model, _ = load(tiny_llama(tmp_path))
    mx.random.seed(3)
    expected = mx.random.uniform(shape=(4,))
    mx.random.seed(3)
    split_head(model)
    np.testing.assert_array_equal(mx.random.uniform(shape=(4,)), expected)
