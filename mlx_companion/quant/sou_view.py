"""`.sou` files for people and scripts to look at: `describe`, tables, lines of differences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mlx_companion.quant.sou_layout import NONE, Kind
from mlx_companion.quant.sou_reader import SouFile
from mlx_companion.quant.sou_tensors import TensorEntry

_SHOWN = 20


def describe(sou: SouFile, *, tensors: bool = False) -> dict[str, Any]:
    """What a file holds, as JSON values.

    Args:
        sou: the open file.
        tensors: list the tensors, too.

    Raises:
        SouError: the provenance or an index is damaged.
    """
    header = sou.header
    found: dict[str, Any] = {
        "path": str(sou.path),
        "version": f"{header.major}.{header.minor}",
        "size": header.file_size,
        "digest": header.digest.hex(),
        "public_key": sou.signature.public_key.hex() if sou.signature else None,
        "provenance": sou.json(Kind.PROVENANCE),
        "sections": [
            {
                "kind": s.kind_name,
                "name": s.name,
                "offset": s.offset,
                "size": s.size,
                "raw_size": s.raw_size,
                "sha256": s.sha256.hex(),
            }
            for s in sou.sections
        ],
    }
    if tensors:
        found["tensors"] = {
            name: {
                e.name: {"dtype": e.dtype.name, "shape": list(e.shape), "sha256": e.sha256.hex()}
                for e in sou.index(name).values()
            }
            for name in sou.tensor_sets
        }
    return found


def section_table(sou: SouFile) -> Table:
    """The sections, for a terminal."""
    table = Table("section", "kind", "at byte", "bytes", "unpacked", "SHA-256", box=None)
    for s in sou.sections:
        raw = f"{s.raw_size:,}" if s.compression != NONE else ""
        # A stranger's names must not be read as markup.
        table.add_row(
            Text(s.name), s.kind_name, f"{s.offset:,}", f"{s.size:,}", raw, s.sha256.hex()[:12]
        )
    return table


def tensor_table(name: str, index: Mapping[str, TensorEntry]) -> Table:
    """The tensors of a set, for a terminal."""
    table = Table(escape(name), "type", "shape", "bytes", "SHA-256", box=None)
    for e in index.values():
        shape = " x ".join(map(str, e.shape))
        table.add_row(Text(e.name), e.dtype.name, shape, f"{e.size:,}", e.sha256.hex()[:12])
    return table


def difference_lines(found: Mapping[str, Any]) -> list[str]:
    """What `diff` found, in lines."""
    if found["same"]:
        return ["the content is the same"]
    lines = [f"+ {name}" for name in found["added"]]
    lines += [f"- {name}" for name in found["removed"]]
    lines += [f"~ {name}" for name in found["changed"]]
    settings = [f"~ {key}: {old!r} -> {new!r}" for key, (old, new) in found["settings"].items()]
    lines += _cut(settings)
    for name, one in found["tensors"].items():
        lines.append(
            f"tensors '{name}': {len(one['added'])} added, {len(one['removed'])} removed, "
            f"{len(one['changed'])} changed, {one['same']} the same"
        )
        lines += _cut([f"  ~ {key}: {change}" for key, change in one["changed"].items()])
    return lines


def _cut(lines: list[str]) -> list[str]:
    more = len(lines) - _SHOWN
    return [*lines[:_SHOWN], f"  ... and {more} more"] if more > 0 else lines
