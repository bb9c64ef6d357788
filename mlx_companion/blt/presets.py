"""Shapes of byte models by name, for training runs that do not spell one out.

    BltModel(blt_preset("small"))
    ByteLM(flat_preset("small"))          # a flat model to compare with; it costs more per byte
    ByteLM(entropy_preset("small"))       # the model that places the boundaries of the first

"tiny" is for tests and first tries, "small" for an hour on a CPU (the shapes that
`benchmarks/blt_bpb.py` compares), "base" for a GPU. Local layers
are narrow and see a window, and most of the work is left to the latent transformer, which runs once
per patch; the tables of hash n-grams cost memory and no time.
"""

from __future__ import annotations

from typing import Literal, get_args

from mlx_companion.blt.config import (
    BlockConfig,
    BltConfig,
    ByteLMConfig,
    HashConfig,
    PatchConfig,
)
from mlx_companion.errors import ConfigError

Preset = Literal["tiny", "small", "base"]
PRESETS: tuple[Preset, ...] = get_args(Preset)

_ENTROPY = {
    "tiny": BlockConfig(32, 1, 2, 64, window=32, rope_theta=10000.0),
    "small": BlockConfig(64, 2, 2, 96, window=64, rope_theta=10000.0),
    "base": BlockConfig(256, 4, 4, 704, window=512, rope_theta=10000.0),
}
_FLAT = {
    "tiny": BlockConfig(48, 2, 2, 96, window=64),
    "small": BlockConfig(160, 6, 2, 448, window=256, rope_theta=10000.0),
    "base": BlockConfig(768, 12, 12, 2048, window=512),
}
_LOCAL = {
    "tiny": (BlockConfig(32, 1, 2, 64, window=32), BlockConfig(32, 1, 2, 64, window=32)),
    "small": (
        BlockConfig(96, 1, 2, 64, window=32, rope_theta=10000.0),
        BlockConfig(96, 1, 2, 256, window=32, rope_theta=10000.0),
    ),
    "base": (BlockConfig(512, 1, 8, 1408, window=512), BlockConfig(512, 6, 8, 1408, window=512)),
}
_LATENT = {
    "tiny": BlockConfig(64, 1, 2, 128),
    "small": BlockConfig(192, 4, 3, 512, rope_theta=10000.0),
    "base": BlockConfig(1024, 16, 16, 2816),
}
_HASH = {
    "tiny": HashConfig((3, 4), 1, 509),
    "small": HashConfig(vocabulary=16384),
    "base": HashConfig(vocabulary=200003),
}
_CONTEXT = {"tiny": 128, "small": 1024, "base": 4096}


def blt_preset(name: Preset, patching: PatchConfig | None = None) -> BltConfig:
    """A byte latent transformer, with an entropy model where the patching needs one.

    Args:
        name: of the preset.
        patching: where patches begin; default: by entropy, at a threshold to be calibrated.

    Raises:
        ConfigError: an unknown name.
    """
    rule = patching or PatchConfig()
    encoder, decoder = _LOCAL[_known(name)]
    return BltConfig(
        encoder,
        _LATENT[name],
        decoder,
        _ENTROPY[name] if rule.needs_entropies else None,
        hash=_HASH[name],
        patching=rule,
        context=_CONTEXT[name],
    )


def flat_preset(name: Preset) -> ByteLMConfig:
    """A flat byte model. Raises ConfigError for an unknown name."""
    return ByteLMConfig(_FLAT[_known(name)], context=_CONTEXT[name])


def entropy_preset(name: Preset) -> ByteLMConfig:
    """An entropy model. Raises ConfigError for an unknown name."""
    return ByteLMConfig(_ENTROPY[_known(name)], context=_CONTEXT[name])


def _known(name: Preset) -> Preset:
    if name not in PRESETS:
        raise ConfigError(f"preset is {name!r}; expected one of {', '.join(PRESETS)}")
    return name
