"""Companions in one file.

sou    the `.sou` container: pack, load, verify, unpack, diff
"""

from mlx_companion.quant.sou import (
    SouFile,
    diff,
    load_companion,
    pack,
    unpack,
    verify,
)

__all__ = ["SouFile", "diff", "load_companion", "pack", "unpack", "verify"]
