"""What a byte model remembers while it writes, so that the next byte costs no more than the last.

    cache = make_cache(model)                # empty; `stepping.prefill` and `advance` fill it
    other = cache.copy()                     # two continuations of one prompt
    cache.trim(3)                            # as if the last three bytes had not been
    save_cache(cache, "prompt.safetensors", model)       # see `cache_file`
    cache = load_cache("prompt.safetensors", model)

Of local layers (byte encoder, byte decoder, entropy model) the positions of their window are kept,
of the latent transformer one position per closed patch. Of patches themselves there is the open
one of each row, as the encoder's states of its bytes, and what the decoder reads of the last closed
one: no byte reads an older one. A flat model has only its layers.

Up to `margin` bytes can be taken back: what changed with each of them is noted (references, not
copies), and rings of keys are that much larger than their window.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlx_companion.blt.byte_lm import ByteLM
from mlx_companion.blt.model import BltModel
from mlx_companion.blt.patch_clock import PatchClock
from mlx_companion.blt.rolling import KeysValues, RollingKV
from mlx_companion.errors import ConfigError, GenerationError

# Bytes that can be taken back, unless told otherwise.
MARGIN = 64

ByteModel = BltModel | ByteLM


@dataclass
class Patches:
    """Where each row is in its patches.

    Attributes:
        clock: decides where they end.
        closed: (B,) int64, patches closed so far.
        open: (B,) int64, bytes of the open patch.
        states: the encoder's states of the last bytes, blocks (B, m, D) that end with the last
            byte; at least the open patches' bytes.
        memory: per cross-attention of the decoder, keys and values (B, 1, k, H, W) of the last
            closed patch.
    """

    clock: PatchClock
    closed: np.ndarray
    open: np.ndarray
    states: list[mx.array]
    memory: list[KeysValues]

    def copy(self) -> Patches:
        """A second one that shares no mutable part."""
        # A clock replaces its arrays instead of writing to them, so they can be shared.
        clock = PatchClock.restore(self.clock.config, self.clock.state())
        return replace(self, clock=clock, states=list(self.states), memory=list(self.memory))

    def take(self, rows: np.ndarray) -> Patches:
        """Some of the rows, in the order given: (K,) int."""
        index = mx.array(rows)
        return Patches(
            self.clock.take(rows),
            self.closed[rows],
            self.open[rows],
            [block[index] for block in self.states],
            [(k[index], v[index]) for k, v in self.memory],
        )


class _Mark(NamedTuple):
    """What a byte changed, as it was before; arrays are shared, never written to."""

    positions: np.ndarray
    recent: mx.array
    logits: mx.array | None
    clock: dict[str, np.ndarray]
    closed: np.ndarray
    open: np.ndarray
    memory: list[KeysValues]


class Cache:
    """What is remembered of the texts of a batch; see the module.

    Args:
        stacks: keys and values by stack: "encoder", "decoder", "latent" and "entropy" of a byte
            latent transformer, "layers" of a flat model.
        recent: (B, W) int32, the last ids, zeros in front of a shorter text.
        patches: None for a flat model.
        margin: bytes that can be taken back.

    Attributes:
        positions: (B,) int64, bytes so far, BOS included.
        logits: (B, V), the prediction behind the last byte; None before the first one.
        ids: (B,) int32, the last bytes, on the host.
        latent_rows: positions that the latent transformer has computed one by one, over all rows.
    """

    def __init__(
        self, stacks: dict[str, RollingKV], recent: mx.array, patches: Patches | None, margin: int
    ) -> None:
        self.stacks, self.recent, self.patches, self.margin = stacks, recent, patches, margin
        self.positions = np.zeros(recent.shape[0], dtype=np.int64)
        self.logits: mx.array | None = None
        self.ids = np.zeros(recent.shape[0], dtype=np.int32)
        self.latent_rows = 0
        self._history: deque[_Mark] = deque(maxlen=margin)

    @property
    def rows(self) -> int:
        """B."""
        return len(self.positions)

    @property
    def empty(self) -> bool:
        """Whether there is no byte yet."""
        return self.logits is None

    @property
    def trimmable(self) -> int:
        """How many bytes `trim` can take back now."""
        return len(self._history)

    @property
    def nbytes(self) -> int:
        """Memory of its arrays, in bytes; marks of `trim` aside."""
        arrays = [x for stack in self.stacks.values() for pair in stack.layers for x in pair]
        if self.patches is not None:
            arrays += self.patches.states + [x for pair in self.patches.memory for x in pair]
        return sum(array.nbytes for array in arrays)

    def copy(self) -> Cache:
        """A second cache that goes on from here by itself; arrays are shared until they change."""
        other = Cache(
            {name: stack.copy() for name, stack in self.stacks.items()},
            self.recent,
            None if self.patches is None else self.patches.copy(),
            self.margin,
        )
        other.positions, other.logits, other.ids = self.positions, self.logits, self.ids
        other.latent_rows = self.latent_rows
        other._history = self._history.copy()
        return other

    def take(self, rows: np.ndarray) -> Cache:
        """A cache of some of the rows, in the order given; nothing in it can be taken back.

        Args:
            rows: (K,) int.
        """
        index = mx.array(rows)
        other = Cache(
            {name: stack.take(index) for name, stack in self.stacks.items()},
            self.recent[index],
            None if self.patches is None else self.patches.take(rows),
            self.margin,
        )
        other.positions, other.ids = self.positions[rows], self.ids[rows]
        other.logits = None if self.logits is None else self.logits[index]
        other.latent_rows = self.latent_rows
        return other

    def trim(self, count: int) -> None:
        """Take back the last `count` bytes of every row.

        Raises:
            GenerationError: more than `trimmable`. That is the bytes that were added one by one or
                by `extend` since the prompt, and at most `margin`.
        """
        if not 0 <= count <= self.trimmable:
            raise GenerationError(
                f"{count} bytes cannot be taken back, {self.trimmable} can: those added since the "
                f"prompt, at most {self.margin}; for more, make the cache with a larger margin, or "
                "begin again from the prompt"
            )
        if count == 0:
            return
        # Keys and values stay: what lies behind a row's position is not seen, and overwritten.
        for _ in range(count):
            mark = self._history.pop()
        self.positions, self.recent, self.logits = mark.positions, mark.recent, mark.logits
        if self.patches is not None:
            config = self.patches.clock.config
            self.patches = Patches(
                PatchClock.restore(config, mark.clock),
                mark.closed,
                mark.open,
                self.patches.states[:-count],
                mark.memory,
            )

    def remember(self) -> None:
        """Note what the next byte will change; every byte that is added calls it first."""
        patches = self.patches
        self._history.append(
            _Mark(
                self.positions,
                self.recent,
                self.logits,
                {} if patches is None else patches.clock.state(),
                self.positions if patches is None else patches.closed,
                self.positions if patches is None else patches.open,
                [] if patches is None else patches.memory,
            )
        )

    def forget(self) -> None:
        """Drop states of bytes that no open patch and no mark needs any more."""
        patches = self.patches
        if patches is None:
            return
        behind = len(self._history)
        oldest = self._history[0].open if behind else patches.open
        needed = behind + int(oldest.max(initial=0))
        held = sum(block.shape[1] for block in patches.states)
        dropped = 0
        # One block per byte that can be taken back stays, whatever it holds.
        while dropped < len(patches.states) - behind:
            held -= patches.states[dropped].shape[1]
            if held < needed:
                break
            dropped += 1
        del patches.states[:dropped]


def make_cache(model: ByteModel, rows: int = 1, margin: int = MARGIN) -> Cache:
    """An empty cache for a model.

    Args:
        model: of either kind.
        rows: B, texts written together.
        margin: bytes that can be taken back with `trim`, or drafted by speculation.

    Raises:
        ConfigError: the model's patches need the whole text or an entropy model that it lacks, or
            a number is out of range.
    """
    if rows < 1 or margin < 1:
        raise ConfigError(f"rows is {rows} and margin {margin}; expected 1 or more of each")
    if isinstance(model, ByteLM):
        dtype = model.model.norm.weight.dtype
        stacks = {"layers": RollingKV(model.config.block, rows, margin, dtype)}
        return Cache(stacks, mx.zeros((rows, 1), dtype=mx.int32), None, margin)
    config, parts = model.config, model.model
    # Norms keep the type of the activations when the matrices are packed.
    dtype = parts.local_decoder.norm.weight.dtype
    blocks = {"encoder": config.encoder, "decoder": config.decoder, "latent": config.latent}
    if config.patching.needs_entropies:
        if config.entropy is None:
            raise ConfigError(
                f'patching mode "{config.patching.mode}" needs an entropy model and this model '
                'has none; use mode "space"'
            )
        blocks["entropy"] = config.entropy
    stacks = {name: RollingKV(block, rows, margin, dtype) for name, block in blocks.items()}
    nothing = np.zeros(rows, dtype=np.int64)
    shape = (rows, 1, config.cross_k, config.decoder.heads, config.decoder.head_width)
    memory = [
        (mx.zeros(shape, dtype), mx.zeros(shape, dtype))
        for _ in parts.local_decoder.cross_attn_layers
    ]
    patches = Patches(PatchClock(config.patching, rows), nothing, nothing, [], memory)
    # Zeros in front are what the hashes count before a text.
    width = max(config.hash.group_sizes, default=1)
    return Cache(stacks, mx.zeros((rows, width), dtype=mx.int32), patches, margin)
