"""Which layers of a model an adapter's config names.

    match_targets(model, LoraConfig(targets=("q_proj", "lm_head")))     # path -> layer

Linear layers match by their paths. Embeddings match when the last part of a pattern has letters in
it ("embed_tokens", not "*"), so that a pattern for all linear layers stays one. Where a model has
no `lm_head` because its head is the embedding, that name means the embedding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase

import mlx.nn as nn

from mlx_companion.errors import AdapterError
from mlx_companion.lora.config import LoraConfig
from mlx_companion.lora.layers import BASE_TYPES, EMBEDDING_TYPES, Adapter

HEAD = "lm_head"
_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_EMBEDDING_NAMES = ("embed_tokens", "wte", "tok_embeddings", "embeddings", "embedding")


def match_targets(model: nn.Module, config: LoraConfig) -> dict[str, nn.Module]:
    """The linear layers and embeddings that a config names, by path, in the model's order.

    Adapters that are on the model are looked through. The stacked experts of a
    mixture-of-experts model are left alone.

    Raises:
        AdapterError: there is none; names the nearest layers.
    """
    layers = base_layers(model)
    matched = {p: m for p, m in layers.items() if _matches(p, m, config.targets)}
    shared = tied_embedding(model)
    if shared is not None and any(_path_matches(HEAD, p) for p in config.targets if _named(p)):
        matched[shared] = layers[shared]
    if not matched:
        raise AdapterError(
            f"no linear layer matches the targets {', '.join(config.targets)}; "
            f"{_candidates(layers, config.targets)}"
        )
    blocks = _last_blocks(matched, config)
    chosen = {path: m for path, m in matched.items() if path in blocks}
    return dict(sorted(chosen.items(), key=lambda item: _natural(item[0])))


def wrapped_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The base of every layer that is wrapped, by our classes or those of mlx-lm, by path."""
    bases = {path: _base_of(module) for path, module in model.named_modules()}
    return {path: base for path, base in bases.items() if base is not None}


def base_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every linear layer and embedding by the path that it has without adapters."""
    wrapped = wrapped_layers(model)
    found = dict(wrapped)
    for path, module in model.named_modules():
        if path.rpartition(".")[0] not in wrapped:
            found.setdefault(path, module)
    return {path: module for path, module in found.items() if isinstance(module, BASE_TYPES)}


def tied_embedding(model: nn.Module) -> str | None:
    """The path of the embedding that is also the output head; None where the head is its own."""
    layers = base_layers(model)
    tied = getattr(getattr(model, "args", None), "tie_word_embeddings", True)
    if not tied or any(path.rpartition(".")[2] == HEAD for path in layers):
        return None
    embeddings = [p for p, m in layers.items() if isinstance(m, EMBEDDING_TYPES)]
    named = [p for p in embeddings if p.rpartition(".")[2] in _EMBEDDING_NAMES]
    return named[0] if named else None


def _base_of(module: nn.Module) -> nn.Module | None:
    if isinstance(module, Adapter):
        return module.base
    if type(module).__module__ in ("mlx_lm.tuner.lora", "mlx_lm.tuner.dora"):
        return module["linear"] if "linear" in module else module["embedding"]
    return None


def _matches(path: str, layer: nn.Module, patterns: tuple[str, ...]) -> bool:
    if isinstance(layer, EMBEDDING_TYPES):
        patterns = tuple(pattern for pattern in patterns if _named(pattern))
    return any(_path_matches(path, pattern) for pattern in patterns)


def _path_matches(path: str, pattern: str) -> bool:
    return fnmatchcase(path, pattern) or fnmatchcase(path, f"*.{pattern}")


def _named(pattern: str) -> bool:
    return bool(pattern.rpartition(".")[2].strip("*?"))


def _last_blocks(paths: Mapping[str, nn.Module], config: LoraConfig) -> set[str]:
    """The paths in the last `config.layers` blocks; all of them without that limit."""
    if config.layers is None:
        return set(paths)
    blocks = {path: int(m[1]) for path in paths if (m := _BLOCK.search(path))}
    if not blocks:
        raise AdapterError(f"layers={config.layers} was given, but no target is in a block list")
    first = max(blocks.values()) + 1 - config.layers
    return {path for path, block in blocks.items() if block >= first}


def _candidates(layers: Mapping[str, nn.Module], patterns: tuple[str, ...]) -> str:
    linear = {path for path, m in layers.items() if not isinstance(m, EMBEDDING_TYPES)}
    names = sorted({path.rpartition(".")[2] for path in linear})
    if not names:
        return "the model has no linear layer at all"
    near = [n for p in patterns for n in get_close_matches(p.rpartition(".")[2], names)]
    if near:
        return f"did you mean {', '.join(dict.fromkeys(near))}?"
    return f"its linear layers are called {', '.join(names[:12])}"


def _natural(path: str) -> list[tuple[int, int, str]]:
    parts = path.split(".")
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]
