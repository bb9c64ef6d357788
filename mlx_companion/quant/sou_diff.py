"""What differs between two `.sou` files, from their tables and indices: `diff`.

Weights are compared by their SHA-256, so that gigabytes are compared in milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_companion.quant.sou_layout import TENSOR_KINDS
from mlx_companion.quant.sou_reader import SouFile
from mlx_companion.quant.sou_rules import JSON_KINDS
from mlx_companion.quant.sou_tensors import TensorEntry


def diff(a: str | Path, b: str | Path) -> dict[str, Any]:
    """Compare two files.

    Returns:
        `same`: whether all content is the same (signatures do not count);
        `added`, `removed`, `changed`: sections of `b` against `a`, by kind and name;
        `settings`: changed entries of JSON sections, path -> [old, new];
        `tensors`: set -> `added`, `removed`, `changed` (name -> "values", or what became of
        type and shape), `same` (a count).

    Raises:
        ModelNotFoundError: a file is missing.
        SouError: a file is damaged.
    """
    with SouFile(a) as one, SouFile(b) as two:
        old, new = _sections(one), _sections(two)
        both = old.keys() & new.keys()
        changed = sorted(key for key in both if old[key] != new[key])
        tensors = _tensors(one, two)
        found: dict[str, Any] = {
            "added": sorted(new.keys() - old.keys()),
            "removed": sorted(old.keys() - new.keys()),
            "changed": changed,
            "settings": _settings(one, two, changed),
            "tensors": tensors,
        }
    moved = any(v["added"] or v["removed"] or v["changed"] for v in tensors.values())
    same = not (found["added"] or found["removed"] or changed or moved)
    return {"same": same, **found}


def _sections(sou: SouFile) -> dict[str, bytes]:
    return {
        f"{s.kind_name}: {s.name}": s.sha256 + bytes([s.compression])
        for s in sou.sections
        if s.kind not in TENSOR_KINDS
    }


def _settings(one: SouFile, two: SouFile, changed: list[str]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for kind in sorted(JSON_KINDS):
        if any(key.startswith(f"{kind.name.lower()}: ") for key in changed):
            old, new = _flat(one.json(kind)), _flat(two.json(kind))
            for key in sorted(old.keys() | new.keys()):
                if old.get(key) != new.get(key):
                    found[f"{kind.name.lower()}.{key}"] = [old.get(key), new.get(key)]
    return found


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, one in value.items():
        if isinstance(one, Mapping) and one:
            found |= _flat(one, f"{prefix}{key}.")
        else:
            found[prefix + key] = one
    return found


def _tensors(one: SouFile, two: SouFile) -> dict[str, dict[str, Any]]:
    found = {}
    for name in sorted({*one.tensor_sets, *two.tensor_sets}):
        old = one.index(name) if name in one.tensor_sets else {}
        new = two.index(name) if name in two.tensor_sets else {}
        both = [key for key in old if key in new]
        changed = {key: change for key in both if (change := _change(old[key], new[key]))}
        found[name] = {
            "added": sorted(new.keys() - old.keys()),
            "removed": sorted(old.keys() - new.keys()),
            "changed": changed,
            "same": len(both) - len(changed),
        }
    return found


def _change(old: TensorEntry, new: TensorEntry) -> str:
    if (old.dtype, old.shape) != (new.dtype, new.shape):
        return f"{_what(old)} -> {_what(new)}"
    return "" if old.sha256 == new.sha256 else "values"


def _what(entry: TensorEntry) -> str:
    return f"{entry.dtype.name} {list(entry.shape)}"
