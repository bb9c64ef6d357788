"""Caches to disk and back: a long prompt is read once and used in many runs.

    save_cache(cache, "prompt.safetensors", model)
    cache = load_cache("prompt.safetensors", model)

A safetensors file with the arrays of the cache; which model it belongs to stands in its metadata.
What `trim` notes is not kept: in a loaded cache only what is added later can be taken back.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_companion.blt.cache import ByteModel, Cache, make_cache
from mlx_companion.blt.patch_clock import PatchClock
from mlx_companion.blt.weights import read_safetensors
from mlx_companion.errors import ConfigError, ModelNotFoundError, WeightsError
from mlx_companion.runtime.config import config_hash
from mlx_companion.runtime.files import atomic_path

FORMAT = "mlx-companion byte cache 1"
# Rows of the output head that tell models of one shape apart.
_HEAD_ROWS = 8


def save_cache(cache: Cache, path: str | Path, model: ByteModel) -> Path:
    """Write a cache, atomically.

    Args:
        cache: not empty.
        path: the file, `.safetensors`.
        model: the one that the cache was made for.

    Returns:
        The path.

    Raises:
        ConfigError: the cache is empty, or the name has another ending.
        DiskFullError: no space; what was there before is untouched.
    """
    target = Path(path)
    if cache.empty:
        raise ConfigError("the cache is empty; there is nothing to save")
    if target.suffix != ".safetensors":
        raise ConfigError(
            f"{target} does not end in .safetensors, as caches do; choose such a name"
        )
    facts = {
        "format": FORMAT,
        "config": config_hash(model.config),
        "weights": _fingerprint(model),
        "margin": str(cache.margin),
        "latent_rows": str(cache.latent_rows),
    }
    tensors = _tensors(cache)
    # Computed before the file is begun: an error then leaves nothing behind.
    mx.eval(tensors)
    with atomic_path(target) as temporary:
        mx.save_safetensors(str(temporary), tensors, facts)
    return target


def load_cache(path: str | Path, model: ByteModel) -> Cache:
    """Read a cache.

    Args:
        path: of `save_cache`.
        model: the same model.

    Raises:
        ModelNotFoundError: there is no such file.
        WeightsError: it is truncated, or no cache.
        ConfigError: it was made with another model: another configuration, or other weights.
    """
    source = Path(path)
    if not source.is_file():
        raise ModelNotFoundError(f"there is no file {source}")
    tensors = read_safetensors(source)
    facts = _metadata(source)
    if facts.get("format") != FORMAT:
        raise WeightsError(f"{source} is no cache of a byte model; save one with save_cache")
    for what, own in (("config", config_hash(model.config)), ("weights", _fingerprint(model))):
        if facts.get(what) != own:
            raise ConfigError(
                f"{source} was made with another model (its {what} differ from this one's); "
                "load that model, or read the prompt again"
            )
    return _cache(model, tensors, facts, source)


def _tensors(cache: Cache) -> dict[str, mx.array]:
    """All arrays by name."""
    assert cache.logits is not None
    tensors = {"positions": mx.array(cache.positions), "recent": cache.recent}
    tensors |= {"logits": cache.logits, "ids": mx.array(cache.ids)}
    for name, stack in cache.stacks.items():
        for layer, (keys, values) in enumerate(stack.layers):
            tensors |= {f"{name}.{layer}.keys": keys, f"{name}.{layer}.values": values}
    patches = cache.patches
    if patches is None:
        return tensors
    tensors |= {"closed": mx.array(patches.closed), "open": mx.array(patches.open)}
    for name, value in patches.clock.state().items():
        # MLX has no float64 on every device; entropies are compared as NumPy holds them.
        tensors[f"clock.{name}"] = mx.array(np.ascontiguousarray(value).view(np.uint8))
    for crossing, (keys, values) in enumerate(patches.memory):
        tensors |= {f"memory.{crossing}.keys": keys, f"memory.{crossing}.values": values}
    longest = int(patches.open.max())
    if longest:
        tensors["states"] = mx.concatenate(patches.states, axis=1)[:, -longest:]
    return tensors


def _cache(
    model: ByteModel, tensors: dict[str, mx.array], facts: dict[str, str], source: Path
) -> Cache:
    try:
        rows = tensors["positions"].shape[0]
        cache = make_cache(model, rows, int(facts["margin"]))
        cache.positions = np.array(tensors["positions"])
        cache.recent, cache.logits = tensors["recent"], tensors["logits"]
        cache.ids, cache.latent_rows = np.array(tensors["ids"]), int(facts["latent_rows"])
        for name, stack in cache.stacks.items():
            stack.layers = _pairs(tensors, name, len(stack.layers))
        patches = cache.patches
        if patches is not None:
            patches.closed, patches.open = np.array(tensors["closed"]), np.array(tensors["open"])
            state = {
                name: np.array(tensors[f"clock.{name}"]).view(value.dtype)
                for name, value in patches.clock.state().items()
            }
            patches.clock = PatchClock.restore(patches.clock.config, state)
            patches.memory = _pairs(tensors, "memory", len(patches.memory))
            patches.states = [tensors["states"]] if "states" in tensors else []
    except (KeyError, ValueError) as error:
        raise WeightsError(f"{source} lacks a part of a cache ({error}); make it again") from error
    return cache


def _pairs(tensors: dict[str, mx.array], name: str, count: int) -> list[Any]:
    return [(tensors[f"{name}.{i}.keys"], tensors[f"{name}.{i}.values"]) for i in range(count)]


def _metadata(path: Path) -> dict[str, str]:
    """The text part of a safetensors file's header."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(size)).get("__metadata__") or {}


def _fingerprint(model: ByteModel) -> str:
    """Tells apart models of one configuration, by a few rows of the output head."""
    head: Any = model.lm_head
    rows = head.weight[:_HEAD_ROWS]
    data = np.array(rows if rows.dtype == mx.uint32 else rows.astype(mx.float32))
    return hashlib.sha256(data.tobytes()).hexdigest()
