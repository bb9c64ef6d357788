"""A llama-family GGUF file as an mlx-lm llama model.

MLX reads the tensors: Q4_0, Q4_1 and Q8_0 become its own affine groups of 32 without loss (4 or
8 bits, float16 scale and bias), F16 and F32 stay. This module checks the kinds first, names the
tensors as mlx-lm does, and makes a configuration of the metadata. Rows of the q and k projections
are in GGUF's interleaved-RoPE order, hence `rope_traditional`.

    model, header = load_gguf("model.gguf", dequantize=True)
    logits = model(tokens)
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import llama

from mlx_companion.errors import WeightsError
from mlx_companion.models.gguf_header import GGUFHeader, read_header

GROUP_SIZE = 32
SUPPORTED_KINDS = ("F32", "F16", "Q8_0", "Q4_1", "Q4_0")

_PARTS = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTER = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_ROPE_FACTORS = "rope_freqs.weight"
_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias|scales|biases)")
_TOP = re.compile(r"(\w+)\.(weight|bias|scales|biases)")


def load_gguf(
    path: str | Path, dequantize: bool = True, dtype: mx.Dtype = mx.float32
) -> tuple[llama.Model, GGUFHeader, dict[str, Any]]:
    """Read a GGUF file of the llama family.

    Args:
        path: the file.
        dequantize: plain layers of `dtype`; else quantized layers stay quantized (4 or 8 bits per
            weight, groups of 32) and `dtype` is that of scales, biases and activations.
        dtype: number type of everything that is not packed.

    Returns:
        The model (its arrays not yet evaluated), the header, and the configuration in the terms
        of mlx-lm's `config.json`.

    Raises:
        ModelNotFoundError: there is no such file.
        WeightsError: cut short, not a llama, or a tensor of a kind that is not supported.
    """
    header = read_header(path)
    check_kinds(header, path)
    config = config_from_header(header, path)
    arrays = _read_arrays(path)
    factors = arrays.pop(_ROPE_FACTORS, None)
    weights = {_mlx_name(name, path): value for name, value in arrays.items()}
    weights = {name: _cast(value, dtype) for name, value in weights.items()}
    model = llama.Model(llama.ModelArgs.from_dict(config))
    if dequantize:
        weights = _dequantize(weights)
    else:
        _quantize_layers(model, weights)
    if factors is not None:
        _set_rope_factors(model, config, factors)
    model.eval()
    try:
        model.load_weights(list(weights.items()), strict=True)
    except ValueError as error:
        raise WeightsError(f"{path} does not hold the tensors of a llama: {error}") from error
    return model, header, config


def check_kinds(header: GGUFHeader, path: str | Path) -> None:
    """Refuse kinds of tensor that MLX would convert silently, or not read at all.

    Raises:
        WeightsError: names the first such tensor and its kind.
    """
    for tensor in header.tensors.values():
        if tensor.kind not in SUPPORTED_KINDS:
            raise WeightsError(
                f"tensor '{tensor.name}' of {path} is of kind {tensor.kind}; supported are "
                f"{', '.join(SUPPORTED_KINDS)}; get a file quantized to one of these, or the "
                "original model from the hub"
            )


def config_from_header(header: GGUFHeader, path: str | Path) -> dict[str, Any]:
    """The configuration of an mlx-lm llama, from the metadata of a GGUF file.

    Raises:
        WeightsError: another architecture, a mixture of experts, or a key is missing.
    """
    data = header.metadata
    architecture = data.get("general.architecture")
    if architecture != "llama" or data.get("llama.expert_count", 0):
        kind = "a mixture of experts" if architecture == "llama" else f"'{architecture}'"
        raise WeightsError(
            f"{path} is {kind}; GGUF files of the plain llama family can be read "
            "(load other architectures from the hub or from a folder)"
        )
    try:
        heads = int(data["llama.attention.head_count"])
        width = int(data["llama.embedding_length"])
        embedding = header.tensors["token_embd.weight"]
        config = {
            "model_type": "llama",
            "hidden_size": width,
            "num_hidden_layers": int(data["llama.block_count"]),
            "intermediate_size": int(data["llama.feed_forward_length"]),
            "num_attention_heads": heads,
            "num_key_value_heads": int(data.get("llama.attention.head_count_kv", heads)),
            "head_dim": int(data.get("llama.attention.key_length", width // heads)),
            "rms_norm_eps": _shortest_float(data["llama.attention.layer_norm_rms_epsilon"]),
        }
    except (KeyError, TypeError) as error:
        raise WeightsError(
            f"{path} lacks metadata that every llama has, or has it in another form ({error}); "
            "fetch it again"
        ) from None
    config |= {
        "vocab_size": embedding.shape[0],
        "max_position_embeddings": int(data.get("llama.context_length", 2048)),
        "rope_theta": float(data.get("llama.rope.freq_base", 10000.0)),
        "rope_traditional": True,
        "rope_scaling": _rope_scaling(data, path),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "attention_bias": "blk.0.attn_q.bias" in header.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in header.tensors,
    }
    _check_rotary(data, config, path)
    return config


def _shortest_float(value: float) -> float:
    """1e-05 for the float32 nearest to it, so that a configuration reads as it was written."""
    return float(f"{value:.7g}")


def _rope_scaling(data: dict[str, Any], path: str | Path) -> dict[str, Any] | None:
    # Files from before 2023-10 hold only `scale_linear`.
    old = data.get("llama.rope.scale_linear", 1.0)
    kind = data.get("llama.rope.scaling.type", "none" if old == 1.0 else "linear")
    factor = float(data.get("llama.rope.scaling.factor", old))
    if kind == "none" or factor == 1.0:
        return None
    if kind == "linear":
        return {"type": "linear", "factor": factor}
    if kind == "yarn" and "llama.rope.scaling.original_context_length" in data:
        original = int(data["llama.rope.scaling.original_context_length"])
        return {"type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    raise WeightsError(
        f"{path} scales its rotary positions by '{kind}'; none, linear and yarn (with its original "
        "context length) can be read; load the original model from the hub"
    )


def _check_rotary(data: dict[str, Any], config: dict[str, Any], path: str | Path) -> None:
    rotated = int(data.get("llama.rope.dimension_count", config["head_dim"]))
    if rotated != config["head_dim"]:
        raise WeightsError(
            f"{path} rotates {rotated} of {config['head_dim']} dimensions of a head; a llama "
            "rotates all of them; load the original model from the hub"
        )


def _read_arrays(path: str | Path) -> dict[str, mx.array]:
    # mx.load tells the format by the suffix alone, and downloads do not always keep it.
    try:
        return mx.load(str(path), format="gguf")  # type: ignore[return-value]
    except RuntimeError as error:
        raise WeightsError(f"MLX cannot read {path}: {error}; fetch it again") from error


def _mlx_name(name: str, path: str | Path) -> str:
    block = _BLOCK.fullmatch(name)
    if block and block[2] in _PARTS:
        return f"model.layers.{block[1]}.{_PARTS[block[2]]}.{block[3]}"
    top = _TOP.fullmatch(name)
    if top and top[1] in _OUTER:
        return f"{_OUTER[top[1]]}.{top[2]}"
    raise WeightsError(f"{path} holds tensor '{name}', which a plain llama does not have")


def _cast(value: mx.array, dtype: mx.Dtype) -> mx.array:
    return value.astype(dtype) if mx.issubdtype(value.dtype, mx.floating) else value


def _bits(packed: mx.array, scales: mx.array) -> int:
    """Bits per weight of one tensor; a file mixes 4 and 8."""
    return packed.shape[-1] * 32 // (scales.shape[-1] * GROUP_SIZE)


def _dequantize(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    plain = {}
    for name, value in weights.items():
        stem, _, part = name.rpartition(".")
        scales = weights.get(f"{stem}.scales")
        if part in ("scales", "biases"):
            continue
        if part == "weight" and scales is not None:
            biases, bits = weights[f"{stem}.biases"], _bits(value, scales)
            value = mx.dequantize(value, scales, biases, group_size=GROUP_SIZE, bits=bits)
        plain[name] = value
    return plain


def _quantize_layers(model: nn.Module, weights: dict[str, mx.array]) -> None:
    """Put quantized layers where the file has packed tensors, each with its own bits."""

    def predicate(name: str, module: nn.Module) -> bool | dict[str, int]:
        scales = weights.get(f"{name}.scales")
        if scales is None:
            return False
        return {"group_size": GROUP_SIZE, "bits": _bits(weights[f"{name}.weight"], scales)}

    nn.quantize(model, group_size=GROUP_SIZE, bits=4, class_predicate=predicate)


class FactoredRoPE(nn.Module):
    """Rotary positions whose wavelengths are stretched by one stored factor per frequency.

    Llama 3.1 and later: GGUF stores the factors themselves (`rope_freqs.weight`), not the four
    numbers that they were computed from.

    Args:
        dims: width of a head.
        base: the theta of the rotary embedding.
        factors: (dims / 2,) float32.
    """

    def __init__(self, dims: int, base: float, factors: mx.array) -> None:
        super().__init__()
        self.dims = dims
        self._freqs = factors.astype(mx.float32) * base ** (mx.arange(0, dims, 2) / dims)

    def __call__(self, x: mx.array, offset: int | mx.array = 0) -> mx.array:
        """Rotate x (B, H, L, dims), whose first position is `offset` tokens into the text."""
        return mx.fast.rope(
            x, self.dims, traditional=True, base=None, scale=1.0, offset=offset, freqs=self._freqs
        )


def _set_rope_factors(model: llama.Model, config: dict[str, Any], factors: mx.array) -> None:
    rope = FactoredRoPE(config["head_dim"], config["rope_theta"], factors)
    for layer in model.layers:
        layer.self_attn.rope = rope
