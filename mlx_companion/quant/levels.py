"""What a person asks for ("q4", "nvfp4", "4.5bpw") and the ways in which one matrix can be kept.

    parse_level("q4")          # every matrix in 4 bits
    parse_level("4.5bpw")      # 4.5 bits per weight over the whole model, spent where it helps
    Packing(3, 64)             # 3 bits, one scale and one bias for each 64 weights

MLX's affine form keeps a group of weights as `scale * code + bias` with 16-bit scale and bias, so
that b bits in groups of g cost b + 32 / g bits per weight. The mx and nv forms are floating-point
codes with one 8-bit scale per group.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from mlx_companion.errors import ConfigError

Mode = Literal["affine", "mxfp4", "mxfp8", "nvfp4"]
LEVELS = ("f16", "q8", "q6", "q5", "q4", "q3", "q2", "mxfp4", "mxfp8", "nvfp4")
GROUPS = (32, 64, 128)
DEFAULT_GROUP = 64
LEAST_BPW, MOST_BPW = 2.0, 16.0
_FLOAT_FORMS: dict[str, tuple[int, int]] = {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}
_BUDGET = re.compile(r"(\d+(?:\.\d+)?)\s*bpw")


@dataclass(frozen=True, order=True)
class Packing:
    """How one matrix is kept.

    Attributes:
        bits: per weight.
        group_size: weights along a row that share a scale.
        mode: MLX's name of the form.
    """

    bits: int
    group_size: int
    mode: str = "affine"

    @property
    def bits_per_weight(self) -> float:
        """Scales and biases included."""
        return self.bits + (32 if self.mode == "affine" else 8) / self.group_size

    @property
    def name(self) -> str:
        """Such as "4 bits / 64" or "mxfp4"."""
        return f"{self.bits} bits / {self.group_size}" if self.mode == "affine" else self.mode

    def fits(self, columns: int) -> bool:
        """Whether rows of so many weights can be cut into groups."""
        return columns % self.group_size == 0

    def to_config(self) -> dict[str, Any]:
        """As mlx-lm writes it into a `config.json`."""
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}


@dataclass(frozen=True)
class Level:
    """What was asked for.

    Attributes:
        name: as it was written, in lower case.
        packing: one for all matrices; None for f16 and for a budget.
        budget: bits per weight over the whole model; None for a level with one packing.
    """

    name: str
    packing: Packing | None = None
    budget: float | None = None

    @property
    def plain(self) -> bool:
        """Whether weights stay 16-bit floating-point numbers."""
        return self.packing is None and self.budget is None


def parse_level(text: str, group_size: int | None = None) -> Level:
    """Read a level.

    Args:
        text: one of `LEVELS`, or such as "4.5bpw" (2 to 16 bits per weight).
        group_size: 32, 64 (default) or 128; with a budget the only one that is tried.

    Raises:
        ConfigError: no such level, or a group size that it does not have.
    """
    name = str(text).strip().lower()
    if group_size is not None and group_size not in GROUPS:
        raise ConfigError(f"group size is {group_size!r}; expected 32, 64 or 128")
    found = _BUDGET.fullmatch(name)
    if found:
        return Level(name, budget=_checked_budget(float(found[1]), text))
    if name not in LEVELS:
        raise ConfigError(
            f"level is {text!r}; expected one of {', '.join(LEVELS)}, or bits per weight such as "
            "'4.5bpw'"
        )
    if name == "f16":
        return Level(name)
    if name in _FLOAT_FORMS:
        bits, size = _FLOAT_FORMS[name]
        if group_size not in (None, size):
            raise ConfigError(f"{name} has groups of {size}; leave the group size out")
        return Level(name, Packing(bits, size, name))
    return Level(name, Packing(int(name[1:]), group_size or DEFAULT_GROUP))


def fitting(packing: Packing, columns: int) -> Packing | None:
    """The packing, in smaller groups where rows of so many weights need it.

    mlx-lm leaves such a matrix unpacked; a group of 32 nearly always divides.

    Args:
        packing: what was asked for.
        columns: weights in a row.

    Returns:
        None when no group size that MLX has divides the row.
    """
    if packing.fits(columns):
        return packing
    if packing.mode != "affine":
        return None
    sizes = [g for g in GROUPS if g <= packing.group_size and columns % g == 0]
    return Packing(packing.bits, max(sizes)) if sizes else None


def _checked_budget(bpw: float, text: str) -> float:
    if not LEAST_BPW < bpw <= MOST_BPW:
        raise ConfigError(
            f"level is {text!r}; expected more than {LEAST_BPW:g} and at most {MOST_BPW:g} bits "
            "per weight"
        )
    return bpw
