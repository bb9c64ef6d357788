"""GGUF files for tests, written with the `gguf` package from a model folder in the hub's layout.

The q and k rows are put into GGUF's interleaved order here, as converters do, so that a file and
its folder are one and the same model to whoever reads both rightly.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of halves (0, 1, ... | n, n+1, ...) to rows of pairs (0, n, 1, n+1, ...), per head."""
    per_head = rows.reshape(heads, 2, -1, *rows.shape[1:])
    return per_head.swapaxes(1, 2).reshape(rows.shape)


def gguf_name(name: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` to `blk.3.ffn_up.weight`."""
    stem, _, part = name.rpartition(".")
    if stem in NAMES:
        return f"{NAMES[stem]}.{part}"
    _, _, number, rest = stem.split(".", 3)
    return f"blk.{number}.{NAMES[rest]}.{part}"


def write_gguf(
    path: Path,
    folder: Path,
    kinds: dict[str, str] | str = "F32",
    metadata: dict[str, Any] | None = None,
    extra: dict[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Write the llama in `folder` as a GGUF file.

    Args:
        path: the file.
        folder: see `tiny.tiny_llama`.
        kinds: the kind of all matrices, or by GGUF name with a default under "".
        metadata: keys to add or change; None as a value leaves the key out.
        extra: further tensors, float32.

    Returns:
        What a right reader finds in each tensor, by the hub's name, float32, rows in the hub's
        order (by the `gguf` package's own dequantization).
    """
    config = json.loads((folder / "config.json").read_text())
    heads = {
        "q_proj": config["num_attention_heads"],
        "k_proj": config["num_key_value_heads"],
    }
    writer = gguf.GGUFWriter(path, "llama")
    keys = architecture_keys(config) | tokenizer_keys(folder) | (metadata or {})
    for key, value in keys.items():
        add_key(writer, key, value)
    expected = {}
    for name, value in load_file(folder / "model.safetensors").items():
        kind_name = "F32" if value.ndim == 1 else kind_of(kinds, gguf_name(name))
        kind = gguf.GGMLQuantizationType[kind_name]
        count = next((n for part, n in heads.items() if f".{part}." in name), None)
        packed = gguf.quants.quantize(interleave(value, count) if count else value, kind)
        writer.add_tensor(gguf_name(name), packed, raw_dtype=kind)
        expected[name] = gguf.quants.dequantize(gguf.quants.quantize(value, kind), kind)
    for name, value in (extra or {}).items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def kind_of(kinds: dict[str, str] | str, name: str) -> str:
    """The kind asked for a tensor."""
    return kinds if isinstance(kinds, str) else kinds.get(name, kinds[""])


def architecture_keys(config: dict[str, Any]) -> dict[str, Any]:
    """What a converter writes about a llama."""
    width, heads = config["hidden_size"], config["num_attention_heads"]
    return {
        "llama.block_count": config["num_hidden_layers"],
        "llama.context_length": config["max_position_embeddings"],
        "llama.embedding_length": width,
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": config["num_key_value_heads"],
        "llama.rope.freq_base": float(config["rope_theta"]),
        "llama.rope.dimension_count": config.get("head_dim", width // heads),
        "llama.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
    }


def tokenizer_keys(folder: Path) -> dict[str, Any]:
    """What a converter writes about a byte-level BPE tokenizer such as `tiny.tiny_llama`'s."""
    content = json.loads((folder / "tokenizer.json").read_text())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    vocabulary = content["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    added = {token["content"] for token in content["added_tokens"]}
    template = folder / "chat_template.jinja"
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in added else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in content["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": vocabulary[settings["bos_token"]],
        "tokenizer.ggml.eos_token_id": vocabulary[settings["eos_token"]],
        "tokenizer.ggml.padding_token_id": vocabulary[settings["pad_token"]],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": template.read_text(),
    }


def add_key(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Write a key as the type that converters use for such a value."""
    if value is None or key == "general.architecture":
        return
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
