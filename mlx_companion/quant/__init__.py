"""Smaller weights, and companions in one file.

quantize_api  `quantize(model, level)`: fewer bits per weight, and a report of what that cost
sou           the `.sou` container: pack, load, verify, unpack, diff
plan          what a model takes on a machine, before it is there
"""

from mlx_companion.quant.quant_report import LayerReport, QuantReport
from mlx_companion.quant.quantize_api import Quantized, compare, quantize
from mlx_companion.quant.quantize_layers import bits_per_weight
from mlx_companion.quant.quantize_measure import Measure
from mlx_companion.quant.quantize_recipes import packed_words
from mlx_companion.quant.sou import (
    SouFile,
    diff,
    load_companion,
    pack,
    unpack,
    verify,
)

__all__ = [
    "LayerReport",
    "Measure",
    "QuantReport",
    "Quantized",
    "SouFile",
    "bits_per_weight",
    "compare",
    "diff",
    "load_companion",
    "pack",
    "packed_words",
    "quantize",
    "unpack",
    "verify",
]
