"""LoRA: small trained updates beside frozen weights, plain or quantized.

config     method, rank, strength, targets
layers     the adapter layers: LoRA and DoRA, on linear layers and embeddings
principal  PiSSA's start
targets    which layers a config names
attach     put on, take off, scale
fuse       fold into the weights, with a measure of what survives rounding; report
io         save and load, tied to the base model by its hash
interop    mlx-lm's adapters, in and out
peft       PEFT's adapters, in and out; exchange: what the two share
shrink     a smaller adapter out of a trained one
bank       many adapters over one base, a row of the batch each
"""

from mlx_companion.lora.attach import (
    adapter_parameters,
    attach,
    attached_config,
    detach,
    get_multiplier,
    is_attached,
    load_parameters,
    set_multiplier,
)
from mlx_companion.lora.bank import AdapterBank
from mlx_companion.lora.bank_generation import PromptCaches
from mlx_companion.lora.config import DEFAULT_TARGETS, LoraConfig, lora_plus
from mlx_companion.lora.fuse import fuse
from mlx_companion.lora.interop import export_mlx_lm, import_mlx_lm
from mlx_companion.lora.io import AdapterInfo, load_adapter, read_adapter_config, save_adapter
from mlx_companion.lora.layers import LoRAEmbedding, LoRALinear
from mlx_companion.lora.peft import export_peft, import_peft
from mlx_companion.lora.report import FusedLayer, FuseReport
from mlx_companion.lora.shrink import ShrinkReport, shrink

__all__ = [
    "DEFAULT_TARGETS",
    "AdapterBank",
    "AdapterInfo",
    "FuseReport",
    "FusedLayer",
    "LoRAEmbedding",
    "LoRALinear",
    "LoraConfig",
    "PromptCaches",
    "ShrinkReport",
    "adapter_parameters",
    "attach",
    "attached_config",
    "detach",
    "export_mlx_lm",
    "export_peft",
    "fuse",
    "get_multiplier",
    "import_mlx_lm",
    "import_peft",
    "is_attached",
    "load_adapter",
    "load_parameters",
    "lora_plus",
    "read_adapter_config",
    "save_adapter",
    "set_multiplier",
    "shrink",
]
