"""The next byte of every row: masks, processors, and a draw that does not depend on the batch.

Each row has a random stream of its own, so that a text is the same whether it is written alone or
beside others. The filters (top-k, nucleus, min-p) and their order are those of `models.sampling`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import mlx.core as mx
import numpy as np
from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p

from mlx_companion.errors import GenerationError
from mlx_companion.models.sampling import LogitsProcessor, Sampling
from mlx_companion.runtime.seeds import derive_seed
from mlx_companion.text.byte_text import EOS, OFFSET, VOCABULARY


class Constraint(Protocol):
    """What a text may be, see `blt.constraints`. States are immutable."""

    def start(self) -> Any:
        """The state before the first byte."""

    def allowed_within(self, state: Any, budget: int | None) -> np.ndarray:
        """(260,) bool: ids after which a match fits in `budget` bytes in all, EOS where one is."""

    def advance(self, state: Any, next_id: int) -> Any:
        """The state after one more id."""


@dataclass
class Draw:
    """How one row chooses its bytes.

    Attributes:
        budget: bytes that it may still write.
        noise: its random stream.
        ids: all ids so far, for processors that look at them.
        state: of the constraint.
    """

    budget: int
    noise: np.random.Generator
    ids: list[int] = field(default_factory=list)
    state: Any = None


class Chooser:
    """Chooses the next id of each row of a batch.

    Args:
        sampling: temperature and filters; temperature 0 is greedy.
        processors: functions `f(ids (N,), logits (1, V)) -> logits`, applied in their order to each
            row by itself, those of `sampling` first.
        constraint: what the texts may be.
    """

    def __init__(
        self,
        sampling: Sampling,
        processors: Sequence[LogitsProcessor] = (),
        constraint: Constraint | None = None,
    ) -> None:
        self.sampling, self.constraint = sampling, constraint
        self.processors = [*sampling.processors(), *processors]

    @property
    def plain(self) -> bool:
        """Whether the most likely byte is taken, and nothing else plays a part."""
        greedy = self.sampling.temperature == 0
        return greedy and not self.processors and self.constraint is None

    def row(self, budget: int, seed: int | None, ids: Sequence[int]) -> Draw:
        """A row that may write `budget` bytes behind `ids`."""
        # NumPy's generators are independent of each other and of MLX's global one.
        noise = np.random.default_rng(None if seed is None else derive_seed(seed, "bytes"))
        state = None if self.constraint is None else self.constraint.start()
        return Draw(budget, noise, list(ids) if self.processors else [], state)

    def __call__(self, logits: mx.array, rows: Sequence[Draw]) -> mx.array:
        """(B, V) -> (B,) int32, not computed yet.

        Raises:
            GenerationError: a constraint or processor leaves nothing to choose from.
        """
        # Noise is drawn in float32; bfloat16 would make ties.
        logits = logits.astype(mx.float32)
        if self.processors:
            logits = mx.concatenate(
                [self._processed(logits, at, row) for at, row in enumerate(rows)]
            )
        logits = mx.where(mx.array(self._allowed(rows, logits.shape[1])), logits, -mx.inf)
        if self.sampling.temperature == 0:
            return mx.argmax(logits, axis=-1).astype(mx.int32)
        # Argmax with Gumbel noise is a draw from the softmax.
        noise = np.stack([row.noise.gumbel(size=logits.shape[1]) for row in rows])
        kept = _filtered(logits, self.sampling) * (1 / self.sampling.temperature)
        return mx.argmax(kept + mx.array(noise.astype(np.float32)), axis=-1).astype(mx.int32)

    def chosen(self, row: Draw, value: int) -> None:
        """Take note of what a row has written."""
        row.budget -= 1
        if self.processors:
            row.ids.append(value)
        if self.constraint is not None:
            row.state = self.constraint.advance(row.state, value)

    def complete(self, row: Draw) -> bool:
        """Whether a row's text is all that its constraint asks for."""
        if self.constraint is None:
            return False
        return bool(self.constraint.allowed_within(row.state, max(row.budget, 0))[EOS])

    def _processed(self, logits: mx.array, at: int, row: Draw) -> mx.array:
        own, ids = logits[at : at + 1], mx.array(row.ids)
        for processor in self.processors:
            own = processor(ids, own)
        return own

    def _allowed(self, rows: Sequence[Draw], vocabulary: int) -> np.ndarray:
        allowed = writable(vocabulary)[None]
        if self.constraint is None:
            return allowed
        own = np.zeros((len(rows), vocabulary), dtype=bool)
        for at, row in enumerate(rows):
            own[at, :VOCABULARY] = self.constraint.allowed_within(row.state, row.budget)
        own &= allowed
        if not own.any(axis=1).all():
            raise GenerationError("the constraint allows no byte and no end here; it is at fault")
        return own


@lru_cache(maxsize=4)
def writable(vocabulary: int) -> np.ndarray:
    """(V,) bool: bytes, and of the specials EOS."""
    ids = np.arange(vocabulary)
    return (ids == EOS) | ((ids >= OFFSET) & (ids < VOCABULARY))


def _filtered(logits: mx.array, sampling: Sampling) -> mx.array:
    """Log-probabilities (B, V) with -inf for what the filters drop."""
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    if 0 < sampling.top_k < logprobs.shape[-1]:
        logprobs = apply_top_k(logprobs, sampling.top_k)
        logprobs = logprobs - mx.logsumexp(logprobs, axis=-1, keepdims=True)
    if sampling.top_p < 1:
        logprobs = apply_top_p(logprobs, sampling.top_p)
    if sampling.min_p > 0:
        logprobs = apply_min_p(logprobs, sampling.min_p)
    return logprobs
