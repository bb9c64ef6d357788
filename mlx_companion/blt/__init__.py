"""Byte-level and patching transformers: the Byte Latent Transformer, and flat byte models.

    model = blt.load("path-or-hub-id")
    blt.patches(model, "Gestern im Café…")          # boundaries, entropies
    for piece in blt.stream_generate(model, "Once", max_bytes=400):
        print(piece, end="")
    blt.bits_per_byte(model, "book.txt")
    logits = model(ids)                             # ids int32 (B, N), BOS first -> (B, N, 260)

What makes a model, in the order of the data:

config, presets     shapes
patchers, patching  where patches begin; `patch_clock` says it byte by byte, `calibrate` finds the
                    threshold
hashing, hash_table the n-grams of bytes that the encoder looks up
encoder, latent, decoder, model    the three transformers, and all of them together
byte_lm             the flat model: entropy model and baseline
load, save          weights in three layouts
generation          text, one byte at a time: `cache`, `prefill`, `stepping`, `speculation`
evaluate, noise     bits per byte, of a text and of one with typing errors; `flops` is the cost
render, entropy_plot    patches to look at
constraints         text that has to match a pattern or a schema
"""

from mlx_companion.blt.byte_lm import ByteLM
from mlx_companion.blt.cache import make_cache
from mlx_companion.blt.cache_file import load_cache, save_cache
from mlx_companion.blt.calibrate import PatchStatistics, calibrate_threshold, patch_statistics
from mlx_companion.blt.config import (
    BlockConfig,
    BltConfig,
    ByteLMConfig,
    HashConfig,
    PatchConfig,
)
from mlx_companion.blt.constraints import json_schema, json_value, regex
from mlx_companion.blt.entropy_plot import save_plot
from mlx_companion.blt.evaluate import Evaluation, bits_per_byte, evaluate, nats_of_ids
from mlx_companion.blt.flops import FlopsPerByte, inference_flops
from mlx_companion.blt.generation import (
    ByteReply,
    batch_generate,
    generate,
    stream_generate,
)
from mlx_companion.blt.load import load
from mlx_companion.blt.model import BltModel
from mlx_companion.blt.noise import NoiseResult, corrupt, robustness
from mlx_companion.blt.patchers import make_patching
from mlx_companion.blt.patching import Patching
from mlx_companion.blt.presets import blt_preset, entropy_preset, flat_preset
from mlx_companion.blt.render import colored
from mlx_companion.blt.save import convert, export_hf, save
from mlx_companion.blt.text_patches import TextPatches, patches

# Not lazy: a name such as `load` is a function here and a module of the package; whichever is
# bound last stays, and that has to be the function.
__all__ = [
    "BlockConfig",
    "BltConfig",
    "BltModel",
    "ByteLM",
    "ByteLMConfig",
    "ByteReply",
    "Evaluation",
    "FlopsPerByte",
    "HashConfig",
    "NoiseResult",
    "PatchConfig",
    "PatchStatistics",
    "Patching",
    "TextPatches",
    "batch_generate",
    "bits_per_byte",
    "blt_preset",
    "calibrate_threshold",
    "colored",
    "convert",
    "corrupt",
    "entropy_preset",
    "evaluate",
    "export_hf",
    "flat_preset",
    "generate",
    "inference_flops",
    "json_schema",
    "json_value",
    "load",
    "load_cache",
    "make_cache",
    "make_patching",
    "nats_of_ids",
    "patch_statistics",
    "patches",
    "regex",
    "robustness",
    "save",
    "save_cache",
    "save_plot",
    "stream_generate",
]
