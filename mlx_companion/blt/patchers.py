"""Where patches begin: the rules, for whole texts at once.

A rule looks at position t of a document (0 is BOS) and decides whether t + 1, seen or not, starts a
patch. Positions 0 and 1 always start one. H[t] is the entropy of the byte after t, in nats:

=========== =======================================================================================
entropy     H[t] > threshold
monotonic   H[t] - H[t-1] > threshold; position 2 always starts, as BOS's entropy means nothing
combined    H[t] - H[t-1] > rise_threshold and H[t] > threshold, and this did not hold at t - 1
            already; position 2 always starts, and counts as such a hit for position 3
space       byte t is space-like and byte t - 1 is not
static      every `size` bytes, counted from position 1
byte        always
topk        t is among the n // size - 2 highest entropies of its document of n positions, the
            earlier first among equals; BOS's own entropy does not take part
=========== =======================================================================================

Space-like is what is not a Latin letter, not a digit and not a UTF-8 continuation byte. So the
first byte of a character of several bytes is space-like (paper, section 2.2; SpaceByte, arXiv
2404.14408): Cyrillic or Chinese text is divided behind first bytes, into patches of about one
character. Of several space-like bytes in a row the first one ends a patch and the others begin
the next, so that every patch holds a byte that is not space-like. Specials are space-like.

`max_length` m then splits longer patches every m bytes, which changes no other decision.

    patching = make_patching(ids, PatchConfig(mode="space"))
    patching = make_patching(ids, PatchConfig(threshold=1.2), entropies)

Everything but "topk" depends on nothing behind t, so that a prefix of a text is divided like the
text; `patch_clock` does the same byte by byte, with the same `hits`. NumPy, because the number of
patches decides shapes and has to be known before the model runs.

Source: Pagnoni et al. 2024, arXiv 2412.09871, section 2.
"""

from __future__ import annotations

from string import ascii_letters, digits
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_companion.blt.config import PatchConfig
from mlx_companion.blt.patching import Patching
from mlx_companion.errors import ConfigError, DataError
from mlx_companion.text.byte_text import OFFSET, VOCABULARY

# Modes in which a hit right after a hit starts no patch.
MERGING = ("space", "combined")

# By id: letters, digits and continuation bytes.
_IN_WORD = np.isin(
    np.arange(VOCABULARY) - OFFSET, [*(ascii_letters + digits).encode(), *range(0x80, 0xC0)]
)


class Layout(NamedTuple):
    """How rows are divided into documents.

    Attributes:
        real: (B, N) bool, False on padding.
        position: (B, N) int64, within the document; padding counts as a document.
        document: (B, N) int64, numbered through all rows.
    """

    real: np.ndarray
    position: np.ndarray
    document: np.ndarray


def make_patching(
    ids: Any,
    config: PatchConfig,
    entropies: Any = None,
    documents: Any = None,
    lengths: Any = None,
) -> Patching:
    """Divide a batch of rows into patches.

    Args:
        ids: (B, N) int, byte ids, every document with BOS in front.
        config: the rule.
        entropies: (B, N) nats, of the byte after each position; for the modes that need them.
        documents: (B, N) int, equal along each text of a row; None for one text per row.
        lengths: (B,) int, bytes of each row, where rows are padded on the right; what lies behind
            is one patch of its own (several with `max_length`) that reads only itself.

    Returns:
        The patching, see `Patching`. On padding `closes` is True, so that its `source` is its own
        patch.

    Raises:
        ConfigError: the mode needs entropies and there are none; shapes that do not fit.
        DataError: an entropy is not a number.
    """
    if config.needs_entropies:
        if entropies is None:
            raise ConfigError(
                f'patching mode "{config.mode}" needs the entropies of an entropy model; '
                'compute them, or use mode "space", "static" or "byte"'
            )
        return patching_from_entropies(entropies, config, documents, lengths)
    return patching_from_bytes(ids, config, documents, lengths)


def patching_from_entropies(
    entropies: Any, config: PatchConfig, documents: Any = None, lengths: Any = None
) -> Patching:
    """Patches by entropies (B, N) in nats. Arguments, result and errors as of `make_patching`."""
    if not config.needs_entropies:
        raise ConfigError(f'patching mode "{config.mode}" goes by bytes; use patching_from_bytes')
    values = _matrix("entropies", host_floats(entropies))
    layout = layout_of(values.shape, documents, lengths)
    if np.isnan(values[layout.real]).any():
        raise DataError("entropies hold values that are not numbers; check the entropy model")
    return _patching(divide(config, layout, values, _nothing(values)))


def patching_from_bytes(
    ids: Any, config: PatchConfig, documents: Any = None, lengths: Any = None
) -> Patching:
    """Patches by byte ids (B, N). Arguments, result and errors as of `make_patching`."""
    if config.needs_entropies:
        raise ConfigError(f'patching mode "{config.mode}" needs entropies, not bytes')
    values = _matrix("ids", np.asarray(ids).astype(np.int64))
    layout = layout_of(values.shape, documents, lengths)
    return _patching(divide(config, layout, _nothing(values), values))


def layout_of(shape: tuple[int, ...], documents: Any = None, lengths: Any = None) -> Layout:
    """Where documents begin and rows end.

    Args:
        shape: (B, N).
        documents: (B, N) int, or None.
        lengths: (B,) int, or None.

    Raises:
        ConfigError: shapes that do not fit, or a length outside 0 to N.
    """
    B, N = shape
    place = np.broadcast_to(np.arange(N), (B, N))
    real = place < _lengths(lengths, B, N)[:, None]
    numbers = np.zeros((B, N), np.int64)
    if documents is not None:
        numbers = _matrix("documents", np.asarray(documents).astype(np.int64))
        if numbers.shape != (B, N):
            raise ConfigError(f"documents are {numbers.shape} and the rows {(B, N)}")
    begins = np.ones((B, N), dtype=bool)
    begins[:, 1:] = (numbers[:, 1:] != numbers[:, :-1]) & real[:, 1:]
    begins[:, 1:] |= real[:, 1:] != real[:, :-1]
    position = place - np.maximum.accumulate(np.where(begins, place, 0), axis=1)
    return Layout(real, position, np.cumsum(begins).reshape(B, N) - 1)


def divide(
    config: PatchConfig,
    layout: Layout,
    entropies: np.ndarray,
    ids: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """`opens` and `closes` (B, N) bool, from entropies (B, N) float64 and ids (B, N) int64.

    Of the two only what the rule looks at matters.
    """
    starts_next = _starts_next(config, layout, entropies, ids)
    opens = _shift(starts_next, layout, at_begin=True)
    closes = starts_next.copy()
    if config.max_length is not None:
        place = np.arange(opens.shape[1])
        inside = place - np.maximum.accumulate(np.where(opens, place, 0), axis=1)
        opens |= inside % config.max_length == 0
        closes |= (inside + 1) % config.max_length == 0
    return opens, closes | ~layout.real


def hits(
    config: PatchConfig,
    position: np.ndarray,
    entropy: np.ndarray,
    entropy_before: np.ndarray,
    ids: np.ndarray,
) -> np.ndarray:
    """Whether each position satisfies the rule's condition by itself, before hits are merged.

    Args:
        config: the rule, not "topk".
        position: (...) int, within the document.
        entropy, entropy_before: (...) float64, at the position and at the one before it.
        ids: (...) int.

    Returns:
        (...) bool. With `MERGING` modes a hit after a hit starts no patch; at position 0 the
        answer only tells what position 1 comes after.
    """
    if config.mode == "byte":
        return np.ones(position.shape, dtype=bool)
    if config.mode == "static":
        return position % config.size == 0
    if config.mode == "space":
        return space_like(ids)
    if config.mode == "entropy":
        return entropy > config.threshold
    rise = entropy - entropy_before
    if config.mode == "monotonic":
        over = rise > config.threshold
    else:
        over = (rise > config.rise_threshold) & (entropy > config.threshold)
    return np.where(position < 2, position == 1, over)


def space_like(ids: Any) -> np.ndarray:
    """Whether bytes end a word: (...) ids -> (...) bool; see the rules above."""
    clipped = np.clip(np.asarray(ids), 0, VOCABULARY - 1)
    return ~_IN_WORD[clipped]


def host_floats(values: Any) -> np.ndarray:
    """Numbers of any kind of array as NumPy's float64, in which thresholds are compared."""
    if isinstance(values, mx.array):
        values = values.astype(mx.float32)  # NumPy has no bfloat16
    return np.asarray(values).astype(np.float64)


def _starts_next(
    config: PatchConfig, layout: Layout, entropies: np.ndarray, ids: np.ndarray
) -> np.ndarray:
    """(B, N) bool: the rule lets the position after this one start a patch."""
    if config.mode == "topk":
        starts = _highest(config.size, layout, entropies)
    else:
        before = _shift(entropies, layout, at_begin=0.0)
        starts = hits(config, layout.position, entropies, before, ids)
        if config.mode in MERGING:
            starts = starts & ~_shift(starts, layout, at_begin=False)
    return (starts | (layout.position == 0)) & layout.real


def _shift(values: np.ndarray, layout: Layout, at_begin: Any) -> np.ndarray:
    """What was at the position before, in the same document."""
    shifted = np.empty_like(values)
    shifted[:, 1:] = values[:, :-1]
    shifted[layout.position == 0] = at_begin
    return shifted


def _highest(size: int, layout: Layout, entropies: np.ndarray) -> np.ndarray:
    """(B, N) bool: among the n // size - 2 highest of a document, BOS left out."""
    document, position = layout.document.ravel(), layout.position.ravel()
    values = np.where(position == 0, -np.inf, np.ravel(entropies))
    order = np.lexsort((position, -values, position == 0, document))
    lengths = np.bincount(document)
    first = np.cumsum(lengths) - lengths
    rank = np.empty(document.shape, dtype=np.int64)
    rank[order] = np.arange(document.size) - first[document[order]]
    chosen = (rank < (lengths // size - 2)[document]) & (position > 0)
    return chosen.reshape(layout.position.shape)


def _nothing(like: np.ndarray) -> np.ndarray:
    """Zeros that take no memory."""
    return np.broadcast_to(np.zeros((), dtype=np.int64), like.shape)


def _patching(divided: tuple[np.ndarray, np.ndarray]) -> Patching:
    opens, closes = divided
    return Patching(mx.array(opens), mx.array(closes))


def _matrix(name: str, values: np.ndarray) -> np.ndarray:
    if values.ndim != 2:
        raise ConfigError(f"{name} have shape {values.shape}; expected (rows, bytes)")
    return values


def _lengths(lengths: Any, rows: int, limit: int) -> np.ndarray:
    if lengths is None:
        return np.full(rows, limit)
    values = np.asarray(lengths).astype(np.int64)
    if values.shape != (rows,) or (values < 0).any() or (values > limit).any():
        raise ConfigError(
            f"lengths are {values.tolist()}; expected {rows} numbers from 0 to {limit}"
        )
    return values
