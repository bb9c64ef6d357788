"""`config.json` of transformers' byte latent transformers, to our configuration and back.

What is missing there has the default that transformers gives it, so that both read the same model.
transformers knows two ways of patching, by entropy and byte by byte; our other modes are written
under their names, and it takes them for byte by byte unless patch lengths are passed to it.

    config = from_hf(json.loads(path.read_text()))
    path.write_text(json.dumps(to_hf(config)))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlx_companion.blt.config import PATCH_MODES, BlockConfig, BltConfig
from mlx_companion.errors import ConfigError
from mlx_companion.runtime.config import load_config

MODEL_TYPE = "blt"

# Ours -> theirs, and their defaults.
_SECTIONS = {
    "encoder": "encoder_config",
    "latent": "global_config",
    "decoder": "decoder_config",
    "entropy": "patcher_config",
}
_LOCAL = {"hidden_size": 1024, "num_attention_heads": 16}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "encoder": {**_LOCAL, "num_hidden_layers": 1, "intermediate_size": None},
    "latent": {
        "hidden_size": 2048,
        "num_attention_heads": 16,
        "num_hidden_layers": 25,
        "intermediate_size": 5632,
    },
    "decoder": {**_LOCAL, "num_hidden_layers": 9, "intermediate_size": 2816},
    "entropy": {
        "hidden_size": 768,
        "num_attention_heads": 12,
        "num_hidden_layers": 14,
        "intermediate_size": 2048,
    },
}
_THETA = {"entropy": 10000.0}


def from_hf(tree: Mapping[str, Any]) -> BltConfig:
    """Our configuration of a transformers `config.json`.

    Args:
        tree: its content, `model_type` "blt".

    Raises:
        ConfigError: another kind of model, a value of the wrong type, or a feature that is not
            known here (a scaled RoPE, another activation, another patching mode).
    """
    if tree.get("model_type") != MODEL_TYPE:
        raise ConfigError(f"model_type is {tree.get('model_type')!r}; expected '{MODEL_TYPE}'")
    window = tree.get("local_attention_window_len", 512)
    stacks = {name: _stack(name, tree.get(key) or {}) for name, key in _SECTIONS.items()}
    stacks["encoder"]["window"] = stacks["decoder"]["window"] = window
    stacks["entropy"]["window"] = (tree.get("patcher_config") or {}).get("sliding_window", 512)
    _check_agreement(tree)
    patches_itself = tree.get("patch_in_forward", True)
    fields: dict[str, Any] = {
        **stacks,
        "entropy": stacks["entropy"] if patches_itself else None,
        "cross_k": tree.get("cross_attn_k", 2),
        "hash": {
            "group_sizes": tree.get("encoder_hash_byte_group_size") or [3, 4, 5, 6, 7, 8],
            "functions": tree.get("encoder_hash_byte_group_nb_functions", 1),
            "vocabulary": tree.get("encoder_hash_byte_group_vocab", 500002),
        },
        "patching": _patching(tree, patches_itself),
        "cross_all_encoder": _flag(tree, "encoder_config", False),
        "cross_all_decoder": _flag(tree, "decoder_config", True),
        "vocabulary": tree.get("vocab_size", 260),
        "context": tree.get("max_position_embeddings", 4096),
    }
    return load_config(BltConfig, None, fields)


def to_hf(config: BltConfig) -> dict[str, Any]:
    """A `config.json` from which transformers makes the same model.

    Raises:
        ConfigError: transformers has no such model (unequal windows of encoder and decoder, or a
            latent transformer with a window).
    """
    if config.encoder.window != config.decoder.window or config.latent.window is not None:
        raise ConfigError(
            "transformers has one window for encoder and decoder and none for the latent "
            f"transformer; these are {config.encoder.window}, {config.decoder.window} and "
            f"{config.latent.window}"
        )
    shared = {
        "vocab_size": config.vocabulary,
        "cross_attn_k": config.cross_k,
        "hidden_size_global": config.latent.width,
        "max_position_embeddings": config.context,
    }
    patching, hashing = config.patching, config.hash
    encoder, decoder = _section(config.encoder) | shared, _section(config.decoder) | shared
    tree: dict[str, Any] = {
        "architectures": ["BltForCausalLM"],
        "model_type": MODEL_TYPE,
        "vocab_size": config.vocabulary,
        "max_position_embeddings": config.context,
        "cross_attn_k": config.cross_k,
        "local_attention_window_len": config.encoder.window,
        "patch_in_forward": config.entropy is not None,
        "patching_mode": patching.mode,
        # Infinity is no JSON; no entropy reaches this.
        "patching_threshold": max(-1e30, min(patching.threshold, 1e30)),
        "patch_size": patching.size,
        "max_patch_length": patching.max_length,
        "encoder_hash_byte_group_size": list(hashing.group_sizes) or [3],
        "encoder_hash_byte_group_vocab": hashing.vocabulary,
        "encoder_hash_byte_group_nb_functions": hashing.functions if hashing.group_sizes else 0,
        "rope_parameters": encoder["rope_parameters"],
        "tie_word_embeddings": False,
        "dtype": "float32",
        "encoder_config": encoder | {"cross_attn_all_layers": config.cross_all_encoder},
        "decoder_config": decoder | {"cross_attn_all_layers": config.cross_all_decoder},
        "global_config": _section(config.latent) | {"max_position_embeddings": config.context},
    }
    if patching.rise_threshold is not None:
        tree["patching_rise_threshold"] = patching.rise_threshold
    if config.entropy is not None:
        tree["patcher_config"] = _section(config.entropy) | {
            "vocab_size": config.vocabulary,
            "sliding_window": config.entropy.window,
            "max_position_embeddings": config.context,
        }
    return tree


def patches_in_transformers(config: BltConfig) -> bool:
    """Whether transformers finds the same patches by itself."""
    rule = config.patching
    known = rule.mode == "byte" or (rule.mode == "entropy" and config.entropy is not None)
    return known and (rule.max_length is None or rule.mode == "byte")


def _stack(name: str, section: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `BlockConfig` but for its window."""
    if not isinstance(section, Mapping):
        raise ConfigError(f"{_SECTIONS[name]} is {section!r}; expected a section of settings")
    if section.get("hidden_act", "silu") != "silu":
        raise ConfigError(f"hidden_act is {section['hidden_act']!r}; only 'silu' is known here")
    values = {key: section.get(key, default) for key, default in _DEFAULTS[name].items()}
    width, kv_heads = values["hidden_size"], section.get("num_key_value_heads")
    return {
        "width": width,
        "layers": values["num_hidden_layers"],
        "heads": values["num_attention_heads"],
        "ffn": values["intermediate_size"] or (isinstance(width, int) and int(8 * width / 3)),
        "kv_heads": None if kv_heads == values["num_attention_heads"] else kv_heads,
        "rope_theta": _rope_theta(name, section),
        # The first converted models have the second name.
        "norm_eps": section.get("rms_norm_eps", section.get("norm_eps", 1e-5)),
    }


def _rope_theta(name: str, section: Mapping[str, Any]) -> Any:
    rope = section.get("rope_parameters") or section.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ConfigError(
            f"{_SECTIONS[name]} asks for RoPE of type {kind!r}; only 'default' is known here"
        )
    theta = rope.get("rope_theta", section.get("rope_theta"))
    return _THETA.get(name, 500000.0) if theta is None else theta


def _check_agreement(tree: Mapping[str, Any]) -> None:
    """The sections repeat some settings; transformers fails late and unclearly if they differ."""
    k = tree.get("cross_attn_k", 2)
    latent = (tree.get("global_config") or {}).get("hidden_size", 2048)
    for key in ("encoder_config", "decoder_config"):
        section = tree.get(key) or {}
        for name, expected in (("cross_attn_k", k), ("hidden_size_global", latent)):
            if section.get(name, expected) != expected:
                raise ConfigError(
                    f"{key}.{name} is {section[name]!r}, elsewhere it is {expected!r}; "
                    "make them equal"
                )


def _patching(tree: Mapping[str, Any], patches_itself: bool) -> dict[str, Any]:
    mode = tree.get("patching_mode", "entropy")
    if mode not in PATCH_MODES:
        raise ConfigError(f"patching_mode is {mode!r}; expected one of {', '.join(PATCH_MODES)}")
    threshold = tree.get("patching_threshold")
    return {
        # What transformers does without its entropy model.
        "mode": "byte" if mode == "entropy" and not patches_itself else mode,
        "threshold": 1.335442066192627 if threshold is None else threshold,
        "rise_threshold": tree.get("patching_rise_threshold"),
        "size": tree.get("patch_size") or 4,
        "max_length": tree.get("max_patch_length"),
    }


def _flag(tree: Mapping[str, Any], section: str, default: bool) -> Any:
    return (tree.get(section) or {}).get("cross_attn_all_layers", default)


def _section(stack: BlockConfig) -> dict[str, Any]:
    return {
        "hidden_size": stack.width,
        "num_hidden_layers": stack.layers,
        "num_attention_heads": stack.heads,
        "num_key_value_heads": stack.kv_heads,
        "intermediate_size": stack.ffn,
        "rms_norm_eps": stack.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": stack.rope_theta},
    }
