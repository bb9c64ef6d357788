"""Shapes of what `plan_families` does not list: mlx-lm's other architectures, and byte models.

The module is built and its layers are listed; MLX computes no array that nobody asks for, so that
a model of any size takes milliseconds and no memory. What its attention keeps comes from the
configuration.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mlx_companion.blt.config import BlockConfig, BltConfig, ByteLMConfig
from mlx_companion.errors import ConfigError
from mlx_companion.quant.plan_families import whole
from mlx_companion.quant.plan_shapes import Attention, Matrix, ModelShape


def module_shape(config: Mapping[str, Any], name: str) -> ModelShape:
    """The shape of a model that mlx-lm can build.

    Args:
        config: content of its `config.json`.
        name: what to call it.

    Raises:
        ConfigError: mlx-lm does not know the architecture, the configuration lacks something, or
            what it keeps of the past is no plain key-value cache.
    """
    from mlx_lm.utils import _get_classes

    family = config["model_type"]
    try:
        model_class, arguments = _get_classes(dict(config))
        model = model_class(arguments.from_dict(dict(config)))
        caches = model.make_cache() if hasattr(model, "make_cache") else []
    except ValueError as error:
        raise ConfigError(f"model_type '{family}' is unknown to mlx-lm; {error}") from error
    except (TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{name}: the configuration of a '{family}' model lacks something or has it in "
            f"another form ({error})"
        ) from error
    inner = config.get("text_config") or config
    chosen = inner.get("num_experts_per_tok", 0)
    matrices, vectors = _parts(model, chosen)
    attention = _attention(inner, name, caches)
    return ModelShape(
        name,
        family,
        whole(inner, "hidden_size", whole(inner, "n_embd", 0)),
        whole(inner, "vocab_size", 0) or max(m.rows for m in matrices),
        matrices,
        vectors,
        attention,
        (_hidden(inner),) * len(attention),
        context=whole(inner, "max_position_embeddings", 0) or None,
    )


def byte_shape(config: BltConfig | ByteLMConfig, name: str) -> ModelShape:
    """The shape of a byte model; positions are bytes.

    The latent layers of a BLT run once per patch: what a byte costs is divided by a mean patch of
    four bytes.
    """
    from mlx_companion.blt.byte_lm import ByteLM
    from mlx_companion.blt.model import BltModel

    if isinstance(config, ByteLMConfig):
        matrices, vectors = _parts(ByteLM(config), 0)
        return _bytes(name, "byte_lm", config, matrices, vectors, [config.block])
    matrices, vectors = _parts(BltModel(config), 0)
    stacks = [config.encoder, config.latent, config.decoder]
    stacks += [config.entropy] if config.entropy is not None else []
    return _bytes(name, "blt", config, matrices, vectors, stacks)


# The mean of entropy patching on English text, about.
PATCH_BYTES = 4


def _bytes(
    name: str,
    family: str,
    config: BltConfig | ByteLMConfig,
    matrices: tuple[Matrix, ...],
    vectors: int,
    stacks: list[BlockConfig],
) -> ModelShape:
    attention = [
        Attention(b.heads, b.kv_count, b.head_width, b.head_width, b.window)
        for b in stacks
        for _ in range(b.layers)
    ]
    return ModelShape(
        name,
        family,
        stacks[-1].width if len(stacks) == 1 else stacks[1].width,
        config.vocabulary,
        matrices,
        vectors,
        tuple(attention),
        tuple(b.ffn for b in stacks for _ in range(b.layers)),
        context=config.context,
        unit="byte",
    )


def _parts(model: Any, chosen: int) -> tuple[tuple[Matrix, ...], int]:
    """Every matrix of a module, and how many numbers the rest has."""
    from mlx.utils import tree_flatten

    tied = not any(path.rpartition(".")[2] == "lm_head" for path, _ in model.named_modules())
    matrices, counted = [], 0
    for path, module in model.named_modules():
        weight = module.get("weight") if isinstance(module, dict) else None
        if weight is None or weight.ndim < 2:
            continue
        matrices.append(_matrix(path, module, weight.shape, chosen, tied))
        counted += weight.size
    arrays: dict[str, Any] = dict(tree_flatten(model.parameters()))
    total = sum(value.size for value in arrays.values())
    return tuple(matrices), total - counted


def _matrix(path: str, module: Any, shape: tuple[int, ...], chosen: int, tied: bool) -> Matrix:
    packable = hasattr(module, "to_quantized")
    if len(shape) > 2:
        experts = shape[0] if len(shape) == 3 and packable else 1
        rows = shape[-2] if experts > 1 else shape[0]
        columns = shape[-1] if experts > 1 else math.prod(shape[1:])
        share = chosen / experts if chosen and experts > 1 else 1.0
        role: Any = "experts" if experts > 1 else "linear"
        return Matrix(path, rows, columns, role, experts, share, packable)
    rows, columns = shape
    name, kind = path.rpartition(".")[2], type(module).__name__
    if kind.endswith("HashEmbedding"):
        return Matrix(path, rows, columns, "table", share=0.0, packable=packable)
    if "Embedding" in kind:
        head = tied and name in ("embed_tokens", "wte", "tok_embeddings", "embedding")
        return Matrix(
            path, rows, columns, "embedding", share=1.0 if head else 0.0, packable=packable
        )
    role = "head" if name == "lm_head" else "linear"
    share = 1 / PATCH_BYTES if ".global_transformer." in f".{path}." else 1.0
    return Matrix(path, rows, columns, role, share=share, packable=packable)


def _attention(config: Mapping[str, Any], name: str, caches: list[Any]) -> tuple[Attention, ...]:
    kinds = {type(cache).__name__ for cache in caches}
    strange = kinds - {"KVCache", "RotatingKVCache"}
    if strange or "kv_lora_rank" in config:
        what = ", ".join(sorted(strange)) or "compressed keys and values"
        raise ConfigError(
            f"{name} ('{config.get('model_type')}') keeps more than keys and values of its "
            f"layers ({what}); the planner knows plain and windowed key-value caches only"
        )
    layers = whole(config, "num_hidden_layers", whole(config, "n_layer", 0))
    heads = whole(config, "num_attention_heads", whole(config, "n_head", 0))
    width = whole(config, "hidden_size", whole(config, "n_embd", 0))
    if not (layers and heads and width):
        raise ConfigError(f"{name}: the configuration does not say layers, heads and width")
    kv_heads = whole(config, "num_key_value_heads", heads)
    head = whole(config, "head_dim", width // heads)
    windows = [getattr(cache, "max_size", None) for cache in caches] or [None] * layers
    return tuple(Attention(heads, kv_heads, head, head, window) for window in windows)


def _hidden(config: Mapping[str, Any]) -> int:
    width = whole(config, "hidden_size", whole(config, "n_embd", 0))
    inner = whole(config, "moe_intermediate_size", 0) * whole(config, "num_experts_per_tok", 1)
    return inner or whole(config, "intermediate_size", 4 * width)
