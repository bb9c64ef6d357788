"""Meta's `params.json` together with the shapes of the weights, as our configuration.

Widths, layers, feed-forward widths, key-value heads, k and V_h are read off the weights, which
cannot be wrong. Only what leaves no trace in them is read from the file:

- of the main model (under "args" or "model", or at the top): `n_heads_local_encoder`,
  `n_heads_local_decoder`, `n_heads_global` (each else `n_heads`), `rope_theta`, `norm_eps`,
  `local_attention_window_len`, `encoder_hash_byte_group_size`,
  `encoder_hash_byte_group_nb_functions`, `max_seqlen`;
- of the entropy model (under "entropy_model"): `n_heads`, `rope_theta`, `norm_eps`,
  `sliding_window`, `max_seqlen`;
- of the patcher (under "data.patcher_args", else the main model's fields with `patching_` in
  front): `patching_mode`, `threshold`, `threshold_add`, `monotonicity`, `patch_size`,
  `max_patch_length`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from mlx_companion.blt.config import BltConfig, ByteLMConfig
from mlx_companion.blt.layouts import HASH_TABLE, meta_section
from mlx_companion.errors import WeightsError
from mlx_companion.runtime.config import load_config

Tree = Mapping[str, Any]


def from_meta(tree: Tree, entropy_tree: Tree, tensors: Mapping[str, mx.array]) -> BltConfig:
    """The configuration of a byte latent transformer.

    Args:
        tree: content of the main model's file.
        entropy_tree: content of the entropy model's `params.json`; empty if there is none.
        tensors: by transformers' names.

    Raises:
        WeightsError: the weights lack what every such model has, or a needed field is missing.
        ConfigError: a field has a value that cannot be.
    """
    args, shapes = meta_section(tree), {name: x.shape for name, x in tensors.items()}
    window = _get(args, "local_attention_window_len", 512)
    heads = {
        part: _heads(args, f"n_heads_{part}")
        for part in ("local_encoder", "local_decoder", "global")
    }
    encoder = _stack(shapes, "model.local_encoder.", heads["local_encoder"], args)
    decoder = _stack(shapes, "model.local_decoder.", heads["local_decoder"], args)
    width = encoder["width"]
    fields: dict[str, Any] = {
        "encoder": encoder | {"window": window},
        "latent": _stack(shapes, "model.global_transformer.", heads["global"], args),
        "decoder": decoder | {"window": window},
        "entropy": _entropy(entropy_tree, shapes),
        "cross_k": _shape(shapes, "model.local_encoder.patch_embedding_projection.weight")[0]
        // width,
        "hash": _hash(args, shapes),
        "patching": _patching(args, entropy_tree, has_entropy=_has_entropy(shapes)),
        "cross_all_encoder": _crossings(shapes, "model.local_encoder.") > 1,
        "cross_all_decoder": _crossings(shapes, "model.local_decoder.") == decoder["layers"],
        "vocabulary": _shape(shapes, "model.local_encoder.embed_tokens.weight")[0],
        "context": _get(args, "max_seqlen", 4096),
    }
    return load_config(BltConfig, None, fields)


def lm_from_meta(tree: Tree, tensors: Mapping[str, mx.array]) -> ByteLMConfig:
    """The configuration of an entropy model on its own.

    Args:
        tree: content of its file.
        tensors: by our names.

    Raises:
        WeightsError, ConfigError: as for `from_meta`.
    """
    args, shapes = meta_section(tree), {name: x.shape for name, x in tensors.items()}
    fields = {
        "block": _flat(shapes, "model.", args),
        "vocabulary": _shape(shapes, "model.embed_tokens.weight")[0],
        "context": _get(args, "max_seqlen", 4096),
    }
    return load_config(ByteLMConfig, None, fields)


def _get(args: Tree, name: str, default: Any) -> Any:
    value = args.get(name)
    return default if value is None else value


def _heads(args: Tree, name: str) -> int:
    heads = _get(args, name, args.get("n_heads"))
    if not isinstance(heads, int) or heads < 1:
        raise WeightsError(
            f"'{name}' is {heads!r} in the model's params; expected the number of heads, which "
            "the weights do not tell"
        )
    return heads


def _shape(shapes: Mapping[str, tuple[int, ...]], name: str) -> tuple[int, ...]:
    if name not in shapes or not shapes[name]:
        raise WeightsError(f"the checkpoint has no tensor '{name}' (under Meta's name for it)")
    return shapes[name]


def _stack(
    shapes: Mapping[str, tuple[int, ...]], prefix: str, heads: int, args: Tree
) -> dict[str, Any]:
    """Fields of a `BlockConfig`, the window left out."""
    ffn, width = _shape(shapes, prefix + "layers.0.mlp.gate_proj.weight")
    layers = len({n.split(".layers.")[1].split(".")[0] for n in shapes if _is_layer(n, prefix)})
    keys = _shape(shapes, prefix + "layers.0.self_attn.k_proj.weight")[0]
    kv_heads = keys * heads // width
    return {
        "width": width,
        "layers": layers,
        "heads": heads,
        "ffn": ffn,
        "kv_heads": None if kv_heads == heads else kv_heads,
        "rope_theta": _get(args, "rope_theta", 500000.0),
        "norm_eps": _get(args, "norm_eps", 1e-5),
    }


def _is_layer(name: str, prefix: str) -> bool:
    return name.startswith(prefix + "layers.")


def _crossings(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> int:
    start = prefix + "cross_attn_layers."
    return len({name[len(start) :].split(".")[0] for name in shapes if name.startswith(start)})


def _flat(shapes: Mapping[str, tuple[int, ...]], prefix: str, args: Tree) -> dict[str, Any]:
    settings = {"rope_theta": 10000.0, **{k: v for k, v in args.items() if v is not None}}
    stack = _stack(shapes, prefix, _heads(args, "n_heads"), settings)
    # A window of null is none; a file without the field is older than it.
    return stack | {"window": args.get("sliding_window", 512)}


def _has_entropy(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return any(name.startswith("model.patcher.") for name in shapes)


def _entropy(tree: Tree, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
    if not _has_entropy(shapes):
        return None
    return _flat(shapes, "model.patcher.", tree.get("entropy_model") or meta_section(tree))


def _hash(args: Tree, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    sizes = _get(args, "encoder_hash_byte_group_size", [3, 4, 5, 6, 7, 8])
    functions = _get(args, "encoder_hash_byte_group_nb_functions", 1)
    if HASH_TABLE not in shapes:
        return {"functions": 0}
    rows, tables = shapes[HASH_TABLE][0], len(sizes) * functions
    if not tables or rows % tables:
        raise WeightsError(
            f"the hash table has {rows} rows, which do not split into {functions} functions of "
            f"the group sizes {sizes}"
        )
    return {"group_sizes": sizes, "functions": functions, "vocabulary": rows // tables}


def _patching(args: Tree, entropy_tree: Tree, has_entropy: bool) -> dict[str, Any]:
    own = {key.removeprefix("patching_"): value for key, value in args.items()}
    given = (entropy_tree.get("data") or {}).get("patcher_args") or own
    mode = _get(given, "patching_mode", given.get("mode")) or "entropy"
    add = given.get("threshold_add")
    if mode == "entropy" and has_entropy:
        mode = "monotonic" if given.get("monotonicity") else mode if add is None else "combined"
    return {
        "mode": "byte" if mode == "entropy" and not has_entropy else mode,
        "threshold": _get(given, "threshold", 1.335442066192627),
        "rise_threshold": add,
        # Meta writes a number of bytes as 4.0 or 4.5; only the modes of fixed size need it whole.
        "size": max(1, int(_get(given, "patch_size", 4))),
        "max_length": given.get("max_patch_length"),
    }
