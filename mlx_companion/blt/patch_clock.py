"""Where patches begin, byte by byte: the rules of `patchers` while a text is being written.

    clock = PatchClock(config, rows=B)
    closes = clock.step(ids, entropies)        # (B,), (B,) nats -> (B,) bool

After each byte the clock says whether the next one, not seen yet, starts a patch: the same as
`closes` of the whole text at that position. `PatchClock.after` is the clock behind a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mlx_companion.blt.config import PatchConfig
from mlx_companion.blt.patchers import MERGING, divide, hits, host_floats, layout_of
from mlx_companion.errors import ConfigError

# What the clock knows of each row.
_STATE = {"position": np.int64, "inside": np.int64, "entropy": np.float64, "hit": np.bool_}


class PatchClock:
    """The state of the rule for each row of a batch.

    Args:
        config: the rule.
        rows: B.

    Attributes:
        position: (B,) int64, bytes of the document so far, BOS among them.
        inside: (B,) int64, bytes so far of the patch that the rule started last (splits by
            `max_length` do not count); 0 when the next byte starts one.
        entropy: (B,) float64, at the last byte.
        hit: (B,) bool, of the last byte, see `patchers.hits`.

    Raises:
        ConfigError: mode "topk", which needs the whole text.
    """

    position: np.ndarray
    inside: np.ndarray
    entropy: np.ndarray
    hit: np.ndarray

    def __init__(self, config: PatchConfig, rows: int) -> None:
        if config.mode == "topk":
            raise ConfigError(
                'patching mode "topk" needs the whole text and cannot go byte by byte; '
                'generate with mode "entropy" and a threshold for the same patch size (calibrate)'
            )
        self.config = config
        for name, dtype in _STATE.items():
            setattr(self, name, np.zeros(rows, dtype=dtype))

    @property
    def rows(self) -> int:
        """B."""
        return len(self.position)

    @classmethod
    def after(
        cls,
        config: PatchConfig,
        ids: Any,
        entropies: Any = None,
        lengths: Any = None,
    ) -> PatchClock:
        """The clock behind the first `lengths` bytes of each row, without going through them.

        Args:
            config: the rule.
            ids: (B, N) int, one document per row.
            entropies: (B, N) nats, for modes that need them.
            lengths: (B,) int; None for N.

        Raises:
            ConfigError: mode "topk", missing entropies, shapes that do not fit.
        """
        values = np.asarray(ids).astype(np.int64)
        clock = cls(config, len(values))
        if not values.shape[1]:
            return clock
        entropy = clock._entropies(entropies, values.shape)
        layout = layout_of(values.shape, None, lengths)
        clock.position = layout.real.sum(axis=1)
        rows, last = np.arange(clock.rows), np.maximum(clock.position - 1, 0)
        before = np.roll(entropy, 1, axis=1)
        opens, starts = divide(replace(config, max_length=None), layout, entropy, values)
        place = np.arange(values.shape[1])
        start = np.maximum.accumulate(np.where(opens, place, 0), axis=1)[rows, last]
        begun = clock.position > 0
        clock.hit = begun & hits(config, layout.position, entropy, before, values)[rows, last]
        clock.entropy = np.where(begun, entropy[rows, last], 0.0)
        clock.inside = np.where(starts[rows, last], 0, clock.position - start)
        return clock

    def step(self, ids: Any, entropies: Any = None, active: Any = None) -> np.ndarray:
        """Take in one byte per row.

        Args:
            ids: (B,) int, the bytes.
            entropies: (B,) nats, of the bytes after them; for modes that need them.
            active: (B,) bool, False for rows that get no byte and stay as they are; None for all.

        Returns:
            (B,) bool, the next byte of the row starts a patch; False for rows not active.

        Raises:
            ConfigError: the mode needs entropies and there are none.
        """
        values = np.asarray(ids).astype(np.int64)
        entropy = self._entropies(entropies, values.shape)
        hit = hits(self.config, self.position, entropy, self.entropy, values)
        merged = hit & ~self.hit if self.config.mode in MERGING else hit
        starts = merged | (self.position == 0)
        # The byte itself is inside the patch that the rule let it start or go on.
        inside = self.inside + 1
        closes = (
            starts
            if self.config.max_length is None
            else (starts | (inside % self.config.max_length == 0))
        )
        new = {
            "position": self.position + 1,
            "inside": np.where(starts, 0, inside),
            "entropy": entropy,
            "hit": hit,
        }
        moves = np.ones(self.rows, dtype=bool) if active is None else np.asarray(active)
        for name, now in new.items():
            setattr(self, name, np.where(moves, now, getattr(self, name)))
        return closes & moves

    def take(self, rows: Any) -> PatchClock:
        """A clock of some of the rows, in the order given: (K,) int or (B,) bool."""
        return self.restore(self.config, {n: v[np.asarray(rows)] for n, v in self.state().items()})

    def state(self) -> dict[str, np.ndarray]:
        """What `restore` needs, as arrays of B values."""
        return {name: getattr(self, name) for name in _STATE}

    @classmethod
    def restore(cls, config: PatchConfig, state: Mapping[str, Any]) -> PatchClock:
        """The clock that had this `state`.

        Raises:
            ConfigError: an array is missing.
        """
        missing = [name for name in _STATE if name not in state]
        if missing:
            raise ConfigError(f"the state of a patch clock lacks {', '.join(missing)}")
        clock = cls(config, len(state["position"]))
        for name, dtype in _STATE.items():
            setattr(clock, name, np.array(state[name], dtype=dtype))
        return clock

    def _entropies(self, entropies: Any, shape: tuple[int, ...]) -> np.ndarray:
        if entropies is None:
            if self.config.needs_entropies:
                raise ConfigError(f'patching mode "{self.config.mode}" needs entropies')
            return np.zeros(shape)
        return host_floats(entropies)
