"""Where a model divides a text into patches, and how sure it was of each byte.

    found = patches(model, "Gestern im Café…")
    found.pieces                    # [b"G", b"estern ", b"im ", ...]
    found.entropies[8]              # nats: how open the 9th byte was, before it was read

`render` shows the result in a terminal and as a picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_companion.blt.byte_lm import ByteLM
from mlx_companion.blt.config import PatchConfig
from mlx_companion.blt.evaluate import TextOrPath, read_text
from mlx_companion.blt.model import BltModel
from mlx_companion.blt.patchers import make_patching
from mlx_companion.blt.windows import window_batches
from mlx_companion.errors import DataError
from mlx_companion.text.byte_text import BOS, encode_bytes


@dataclass(frozen=True)
class TextPatches:
    """The patches of one text. BOS, a patch of its own in front of all, is left out.

    Attributes:
        data: the text, N bytes.
        starts: (P,) int64, where each patch begins.
        entropies: (N,) float32, of the prediction of each byte, in nats; None where the rule goes
            by bytes.
        rule: that placed the boundaries.
        next_starts: whether the byte behind the text, whatever it is, begins a patch.
    """

    data: bytes
    starts: np.ndarray
    entropies: np.ndarray | None
    rule: PatchConfig
    next_starts: bool

    @cached_property
    def lengths(self) -> np.ndarray:
        """(P,) int64, bytes of each patch."""
        return np.diff(self.starts, append=len(self.data))

    @property
    def mean_patch_bytes(self) -> float:
        """N / P."""
        return len(self.data) / len(self.starts)

    @property
    def pieces(self) -> list[bytes]:
        """The text, patch by patch; a patch may begin or end inside a UTF-8 character."""
        ends = self.starts + self.lengths
        return [self.data[a:b] for a, b in zip(self.starts, ends, strict=True)]

    @cached_property
    def owners(self) -> np.ndarray:
        """(N,) int64, the patch of each byte."""
        return np.repeat(np.arange(len(self.starts)), self.lengths)

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON; `text` of a patch has U+FFFD where it tears a character."""
        rule = self.rule
        return {
            "bytes": len(self.data),
            "patches": [piece.decode("utf-8", "replace") for piece in self.pieces],
            "mean_patch_bytes": self.mean_patch_bytes,
            "boundaries": self.starts.tolist(),
            "lengths": self.lengths.tolist(),
            "entropies": None if self.entropies is None else np.round(self.entropies, 5).tolist(),
            "next_starts": self.next_starts,
            "mode": rule.mode,
            "threshold": rule.threshold if rule.needs_entropies else None,
        }


def patches(
    model: BltModel | ByteLM, text: TextOrPath, *, rule: PatchConfig | None = None
) -> TextPatches:
    """Divide a text into patches as a model does.

    Args:
        model: a byte latent transformer, or (with `rule`) an entropy model alone.
        text: bytes, a `Path`, or a string: the file of that name if there is one, else itself.
            Entropies of a text longer than the model's context come from overlapping windows.
        rule: another rule than the model's own.

    Raises:
        DataError: the text is empty, cannot be read, or is a folder of several.
        ConfigError: the rule needs an entropy model, and this model has none.
    """
    rule = rule or (model.config.patching if isinstance(model, BltModel) else PatchConfig())
    documents = read_text(text)
    if len(documents) > 1:
        raise DataError(f"there are {len(documents)} texts in {text!r}; give one of them")
    ids = encode_bytes(documents[0])
    entropies = windowed_entropies(model, ids) if rule.needs_entropies else None
    patching = make_patching(ids[None], rule, None if entropies is None else entropies[None])
    return TextPatches(
        data=documents[0],
        starts=np.flatnonzero(np.asarray(patching.opens)[0, 1:]),
        # The prediction at a position is that of the byte behind it.
        entropies=None if entropies is None else entropies[:-1],
        rule=rule,
        next_starts=bool(patching.closes[0, -1]),
    )


def windowed_entropies(model: BltModel | ByteLM, ids: np.ndarray) -> np.ndarray:
    """Entropies of all predictions over one text, in windows of the model's context.

    Args:
        model: with an entropy model.
        ids: (N,) int, BOS first.

    Returns:
        (N,) float32, nats. Up to the context they are those of one forward pass.

    Raises:
        ConfigError: the model has no entropy model.
    """
    found = np.empty(len(ids), dtype=np.float32)
    for windows in window_batches(len(ids), context=model.config.context):
        # Place p is what the input at p predicts; the last place lies behind the text.
        rows = windows.inputs(ids[1:], BOS)
        entropies = np.asarray(model.entropies(mx.array(rows)))
        found[windows.places[windows.counted]] = entropies[windows.counted]
    return found
