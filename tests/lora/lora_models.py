"""Small random llamas for the adapter tests, the same weights at every call."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.llama import Model, ModelArgs

from mlx_companion.lora import LoraConfig, adapter_parameters, attach, load_parameters

TOKENS = mx.array([[1, 5, 9, 33, 2], [7, 7, 0, 63, 12]])
CONFIG = LoraConfig(rank=4, alpha=8.0)


def llama(
    bits: int | None = None,
    width: int = 64,
    bias: bool = False,
    seed: int = 0,
    tied: bool = False,
) -> Model:
    """Two layers, 64 tokens; `bits` quantizes it in groups of 32, `tied` gives it no own head."""
    args = ModelArgs(
        model_type="llama",
        hidden_size=width if bits else width // 2,
        num_hidden_layers=2,
        intermediate_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        vocab_size=64,
        tie_word_embeddings=tied,
        attention_bias=bias,
        mlp_bias=bias,
    )
    model = Model(args)
    generator = iter(mx.random.split(mx.random.key(seed), 200))
    model.load_weights(
        [
            (name, mx.random.normal(w.shape, key=next(generator)) * w.shape[-1] ** -0.5)
            for name, w in sorted(tree_flatten(model.parameters()))
        ]
    )
    if bits:
        nn.quantize(model, group_size=32, bits=bits)
    mx.eval(model.parameters())
    return model


def adapted(model: nn.Module, config: LoraConfig = CONFIG) -> nn.Module:
    """Attach with random A and B, so that the adapter changes what the model says."""
    attach(model, config)
    keys = iter(mx.random.split(mx.random.key(11), 200))
    load_parameters(
        model,
        {
            name: 0.2 * mx.random.normal(w.shape, key=next(keys))
            for name, w in adapter_parameters(model).items()
        },
    )
    return model


def state(model: nn.Module) -> tuple[list[str], list[str], list[bytes]]:
    """Names of all and of the trainable parameters, and the bytes of all values."""
    parameters = dict(sorted(tree_flatten(model.parameters())))
    trainable = sorted(dict(tree_flatten(model.trainable_parameters())))
    return list(parameters), trainable, [bytes(memoryview(w)) for w in parameters.values()]
