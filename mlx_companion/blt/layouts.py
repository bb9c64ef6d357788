"""Three layouts of byte models on disk, told apart, and the names of their tensors.

Ours and transformers' have the same names; Meta's checkpoints have others, keep the entropy model
apart, and may have one embedding table per n-gram size where the others have one for all. The
numbers are the same everywhere: no matrix is transposed and no RoPE pair moves.

    Meta                                      transformers and ours
    attention.{wq, wk, wv, wo}                self_attn.{q_proj, k_proj, v_proj, o_proj}
    feed_forward.{w1, w2, w3}                 mlp.{gate_proj, down_proj, up_proj}
    attention_norm, ffn_norm                  input_layernorm, post_attention_layernorm
    cross_attn_norm_q, cross_attn_norm_kv     q_norm, k_norm
    tok_embeddings                            embed_tokens
    encoder_hash_tok_embedding.I.weight       rows I * V_h on of encoder_hash_tok_embedding.weight
    local_decoder.output                      lm_head
    the entropy model's file                  patcher.*

All but `lm_head` are under `model.`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx

from mlx_companion.blt.hf_config import MODEL_TYPE
from mlx_companion.errors import ModelNotFoundError, WeightsError
from mlx_companion.models.folder import read_json

Layout = Literal["ours", "hf", "meta"]

FORMAT = "mlx-companion-blt"
HASH_TABLE = "model.encoder_hash_tok_embedding.weight"

# Whatever holds one of these as a part of its name is a table that is computed, no weight.
_COMPUTED = ("rope", "rotary_emb", "freqs_cis", "inv_freq", "freqs")
# What distributed training and compilation put in front.
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module")
_PARTS = {
    "attention": "self_attn",
    "feed_forward": "mlp",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "tok_embeddings": "embed_tokens",
    "cross_attn_norm_q": "q_norm",
    "cross_attn_norm_kv": "k_norm",
    "w1": "gate_proj",
    "w2": "down_proj",
    "w3": "up_proj",
    "wq": "q_proj",
    "wk": "k_proj",
    "wv": "v_proj",
    "wo": "o_proj",
    "output": "lm_head",
}
_TABLE = re.compile(r"model\.encoder_hash_tok_embedding\.(\d+)\.weight")


def find_layout(folder: Path) -> tuple[Layout, dict[str, Any]]:
    """Which layout a folder has, and its configuration file's content.

    Args:
        folder: with a `config.json` (any layout) or a `params.json` (Meta's training folders).

    Raises:
        ModelNotFoundError: it is no folder.
        WeightsError: no configuration, a malformed one, or one of another kind of model.
    """
    if not folder.is_dir():
        raise ModelNotFoundError(f"{folder} is no folder; give the folder of a byte model")
    name = next((n for n in ("config.json", "params.json") if (folder / n).is_file()), None)
    if name is None:
        raise WeightsError(f"{folder} is no model folder: no config.json and no params.json")
    tree = read_json(folder / name)
    if isinstance(tree, dict):
        if tree.get("format") == FORMAT:
            return "ours", tree
        if tree.get("model_type") == MODEL_TYPE:
            return "hf", tree
        if "model_type" not in tree and any(k.startswith("n_heads") for k in meta_section(tree)):
            return "meta", tree
    found = tree.get("model_type") if isinstance(tree, dict) else type(tree).__name__
    raise WeightsError(
        f"{folder / name} is not the configuration of a byte model (model_type: {found!r}); "
        f"expected format '{FORMAT}', model_type '{MODEL_TYPE}', or Meta's params"
    )


def meta_section(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """The model's settings in a configuration of Meta's: under "args", "model", or at the top."""
    for key in ("args", "model", "entropy_model"):
        if isinstance(tree.get(key), dict):
            return tree[key]
    return tree


def meta_to_hf(tensors: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Rename Meta's tensors of a byte latent transformer; join tables; drop computed ones.

    Args:
        tensors: of the main model, by Meta's names, without the entropy model.
    """
    renamed = {"model." + name: value for name, value in _rename(tensors).items()}
    if (head := renamed.pop("model.local_decoder.lm_head.weight", None)) is not None:
        renamed["lm_head.weight"] = head
    return _join_tables(renamed)


def entropy_to_hf(tensors: Mapping[str, mx.array], prefix: str) -> dict[str, mx.array]:
    """Rename Meta's tensors of an entropy model, and put `prefix` in front of each name."""
    return {prefix + name: value for name, value in _rename(tensors).items()}


def without_computed(tensors: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Leave out what is no weight (tables of rotary angles)."""
    return {name: x for name, x in tensors.items() if not set(name.split(".")) & {*_COMPUTED}}


def _rename(tensors: Mapping[str, mx.array]) -> dict[str, mx.array]:
    result = {}
    for name, value in without_computed(tensors).items():
        parts = [part for part in name.split(".") if part not in _WRAPPERS]
        result[".".join(_PARTS.get(part, part) for part in parts)] = value
    return result


def _join_tables(tensors: dict[str, mx.array]) -> dict[str, mx.array]:
    numbered = {int(m[1]): name for name in tensors if (m := _TABLE.fullmatch(name))}
    if not numbered:
        return tensors
    if sorted(numbered) != list(range(len(numbered))):
        raise WeightsError(
            f"the checkpoint has hash tables {sorted(numbered)}; expected each from 0 to "
            f"{max(numbered)}"
        )
    tables = [tensors.pop(numbered[i]) for i in range(len(numbered))]
    if len({table.shape for table in tables}) > 1:
        shapes = ", ".join(str(table.shape) for table in tables)
        raise WeightsError(f"the hash tables of the checkpoint have unequal shapes: {shapes}")
    return tensors | {HASH_TABLE: mx.concatenate(tables)}
