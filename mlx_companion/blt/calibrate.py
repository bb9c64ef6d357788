"""The threshold that gives patches of a wanted mean length, and statistics of patches.

A threshold in nats means nothing by itself: the same number gives one byte per patch on one text
and nine on another (reported of the released model). What a person knows is how many bytes a
patch should hold, because the cost per byte follows from it::

    entropies = [model.entropies(ids) for ids in texts]
    theta = calibrate_threshold(entropies, 4.5, PatchConfig(max_length=16))
    config = replace(config, threshold=theta)
    patch_statistics(make_patching(ids, config, H)).mean

Only decisions count, and those change only where the threshold passes an observed value. So the
search goes over the gaps between neighbouring values, and the answer lies in the middle of one:
an observed value on the threshold itself would be decided by rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from mlx_companion.blt.config import PatchConfig
from mlx_companion.blt.patchers import Layout, divide, host_floats, layout_of
from mlx_companion.blt.patching import Patching
from mlx_companion.errors import ConfigError, DataError

# Modes with a threshold.
_CALIBRATED = ("entropy", "monotonic", "combined")
# The mean length rises with the threshold, but for "combined" only nearly: there a hit that goes
# may uncover the next one. Gaps on both sides of the found one are tried too.
_AROUND = 16
# Beyond the smallest and the largest observed value, in nats.
_MARGIN = 1.0


@dataclass(frozen=True)
class PatchStatistics:
    """Lengths of patches in bytes; BOS counts as a byte, padding does not.

    Attributes:
        bytes: all positions.
        patches: how many.
        mean, median, p95: of the lengths; p95 is the 95th percentile.
        max: the longest.
        histogram: number of patches by length, lengths ascending.
    """

    bytes: int
    patches: int
    mean: float
    median: float
    p95: float
    max: int
    histogram: dict[int, int]

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self) | {"histogram": {str(n): k for n, k in self.histogram.items()}}


def patch_statistics(patching: Patching, lengths: Any = None) -> PatchStatistics:
    """Statistics of the patches of a batch.

    Args:
        patching: of (B, N) bytes.
        lengths: (B,) int, bytes of each row where rows are padded; None for N.

    Raises:
        DataError: there are no bytes.
        ConfigError: lengths that do not fit.
    """
    opens = np.asarray(patching.opens)
    real = layout_of(opens.shape, None, lengths).real
    if not real.any():
        raise DataError("there are no bytes, so there are no patches; give a text")
    sizes = _patch_lengths(opens[real])
    counts = np.bincount(sizes)
    return PatchStatistics(
        bytes=int(sizes.sum()),
        patches=len(sizes),
        mean=float(sizes.mean()),
        median=float(np.median(sizes)),
        p95=float(np.percentile(sizes, 95)),
        max=int(sizes.max()),
        histogram={int(size): int(counts[size]) for size in np.flatnonzero(counts)},
    )


def calibrate_threshold(
    entropies: Any,
    target_patch_bytes: float,
    config: PatchConfig,
    documents: Any = None,
    lengths: Any = None,
) -> float:
    """The threshold whose mean patch length is closest to the target.

    Args:
        entropies: nats, of the byte after each position of texts that begin with BOS: (B, N), or
            a list of (N,) or (1, N) arrays, one per text. Take the kind of text that the model is
            for; 100,000 bytes are enough for three digits.
        target_patch_bytes: wanted mean bytes per patch; BOS counts as a byte and its patch as one.
        config: the rule; its `threshold` is not looked at, `max_length` and the positions that
            always start a patch are.
        documents: (B, N) int, equal along each text of a row; for (B, N) entropies.
        lengths: (B,) int, bytes of each row; for (B, N) entropies.

    Returns:
        Nats; never exactly an observed value.

    Raises:
        ConfigError: a mode without a threshold, or a target outside what this text and rule can
            give; the message says what they can.
        DataError: no entropies, or some are not finite numbers.
    """
    if config.mode not in _CALIBRATED:
        raise ConfigError(
            f'patching mode "{config.mode}" has no threshold; modes that have one: '
            f"{', '.join(_CALIBRATED)}"
        )
    search = _Search(config, *_one_row(entropies, documents, lengths))
    search.check(target_patch_bytes)
    found = search.first_at_least(target_patch_bytes)
    around = _AROUND if config.mode == "combined" else 1
    near = range(max(found - around, 0), min(found + around, search.last) + 1)
    best = min(near, key=lambda gap: abs(search.mean(gap) - target_patch_bytes))
    return search.threshold(best)


class _Search:
    """Mean patch lengths by gap: gap i lies below the i-th smallest observed value.

    Args:
        config: the rule.
        entropies: (1, T) float64, all texts one after the other.
        layout: where the texts begin.
    """

    def __init__(self, config: PatchConfig, entropies: np.ndarray, layout: Layout) -> None:
        self.config, self.entropies, self.layout = config, entropies, layout
        self.values = np.unique(self._compared())
        self.last = len(self.values)
        self._means: dict[int, float] = {}

    def threshold(self, gap: int) -> float:
        """The middle of a gap."""
        if not len(self.values):
            return 0.0
        if gap == 0:
            return float(self.values[0] - _MARGIN)
        if gap == self.last:
            return float(self.values[-1] + _MARGIN)
        return float(self.values[gap - 1] + (self.values[gap] - self.values[gap - 1]) / 2)

    def mean(self, gap: int) -> float:
        """Mean bytes per patch with a threshold in the gap."""
        if gap not in self._means:
            config = replace(self.config, threshold=self.threshold(gap))
            # The rules that have a threshold do not look at the bytes.
            opens, _ = divide(config, self.layout, self.entropies, self.layout.position)
            self._means[gap] = opens.size / int(opens.sum())
        return self._means[gap]

    def check(self, target: float) -> None:
        """Refuse a target that no gap can come near to."""
        least, most = self.mean(0), self.mean(self.last)
        if not least <= target <= most:
            limit = self.config.max_length
            raise ConfigError(
                f"{target} bytes per patch cannot be reached: with mode "
                f'"{self.config.mode}"{f" and max_length {limit}" if limit else ""}, this text '
                f"gives from {least:.2f} to {most:.2f}; choose a target between them"
            )

    def first_at_least(self, target: float) -> int:
        """The lowest gap whose mean reaches the target, by bisection."""
        low, high = 0, self.last
        while low < high:
            middle = (low + high) // 2
            if self.mean(middle) < target:
                low = middle + 1
            else:
                high = middle
        return low

    def _compared(self) -> np.ndarray:
        """What the rule holds against the threshold."""
        position = self.layout.position[0]
        values = self.entropies[0]
        if self.config.mode == "monotonic":
            return np.diff(values)[position[1:] > 1]
        return values[position > 0]


def _one_row(entropies: Any, documents: Any, lengths: Any) -> tuple[np.ndarray, Layout]:
    """All texts in one row without padding, and where they begin."""
    if isinstance(entropies, Sequence):
        pieces = [host_floats(piece).ravel() for piece in entropies]
        numbers = np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces])
        values = np.concatenate(pieces) if pieces else np.zeros(0)
    else:
        rows = host_floats(entropies)
        rows = rows[None] if rows.ndim == 1 else rows
        layout = layout_of(rows.shape, documents, lengths)
        values, numbers = rows[layout.real], layout.document[layout.real]
    if not len(values):
        raise DataError("there are no entropies to calibrate on; give those of a text")
    if not np.isfinite(values).all():
        raise DataError("entropies hold values that are not finite; check the entropy model")
    return values[None], layout_of((1, len(values)), numbers[None])


def _patch_lengths(opens: np.ndarray) -> np.ndarray:
    """(T,) bool of rows one after the other -> lengths of the patches."""
    return np.diff(np.append(np.flatnonzero(opens), len(opens)))
