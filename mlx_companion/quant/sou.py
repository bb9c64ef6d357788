"""The `.sou` container: one file that carries a companion. The names to use are here.

    pack("path/to/mlx-folder", "mine.sou", adapters={"tone": "runs/tone/adapter"})
    lm = load_companion("mine.sou")
    with SouFile("mine.sou") as sou:
        sou.json(Kind.CONFIG), sou.index()["model.norm.weight"], sou.tensor("model.norm.weight")
    verify("mine.sou"); unpack("mine.sou", "folder"); diff("a.sou", "b.sou")

The format is specified in `docs/SOU.md`.
"""

from __future__ import annotations

from mlx_companion.quant.sou_diff import diff
from mlx_companion.quant.sou_layout import Kind, Section
from mlx_companion.quant.sou_model import adapter_folder, adapter_names, load_companion
from mlx_companion.quant.sou_pack import Packed, pack
from mlx_companion.quant.sou_reader import SouFile
from mlx_companion.quant.sou_sign import SigningKey, read_public_key
from mlx_companion.quant.sou_tensors import TensorEntry
from mlx_companion.quant.sou_unpack import Unpacked, unpack
from mlx_companion.quant.sou_verify import Verified, verify
from mlx_companion.quant.sou_view import describe

__all__ = [
    "Kind",
    "Packed",
    "Section",
    "SigningKey",
    "SouFile",
    "TensorEntry",
    "Unpacked",
    "Verified",
    "adapter_folder",
    "adapter_names",
    "describe",
    "diff",
    "load_companion",
    "pack",
    "read_public_key",
    "unpack",
    "verify",
]
