"""How likely a model finds given text: log-probabilities, perplexity, divergence.

Rows are sorted by length and padded in batches. Tokens that all rows of a batch begin with
are run once, and logits are computed only at the tokens that are scored: the output matrix
is a fifth of a small model's work. Used by the judges and the gate of the self-improvement
loop, and by evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os.path import commonprefix

import mlx.core as mx
import numpy as np

from mlx_companion.errors import GenerationError
from mlx_companion.kernels.linear_cross_entropy import linear_cross_entropy
from mlx_companion.models.fast_cpu import fast_cpu
from mlx_companion.models.heads import output_head, split_head
from mlx_companion.models.load import LanguageModel
from mlx_companion.models.prefix import can_share, run_prefixed
from mlx_companion.runtime.stop import NEVER, StopSwitch

_LEAST_SHARED = 8

__all__ = ["Row", "RowScore", "perplexity", "score_rows", "scored_logits"]


@dataclass(frozen=True)
class Row:
    """Tokens of which those from index `start` (1 or more) on are scored."""

    tokens: Sequence[int]
    start: int = 1


@dataclass(frozen=True)
class RowScore:
    """Summed log-probability (nats) of a row's scored tokens, and how many they are."""

    logprob: float
    count: int

    @property
    def mean(self) -> float:
        """Mean log-probability per token (nats)."""
        return self.logprob / self.count


def score_rows(
    lm: LanguageModel,
    rows: Sequence[Row],
    *,
    batch_tokens: int = 2048,
    switch: StopSwitch = NEVER,
) -> list[RowScore]:
    """Log-probability of each row's scored tokens given all tokens before them.

    Args:
        lm: the loaded model.
        rows: what to score.
        batch_tokens: the most tokens (rows x padded length) in one forward pass.
        switch: consulted between batches.

    Raises:
        GenerationError: a row has nothing to score.
    """
    scores: dict[int, RowScore] = {}
    for batch in _batches(rows, batch_tokens):
        switch.check()
        hidden = _scored_hidden(lm, [rows[i] for i in batch])
        targets = mx.array(np.concatenate([rows[i].tokens[rows[i].start :] for i in batch]))
        losses = linear_cross_entropy(hidden, output_head(lm.model), targets, gradient=False)
        logprobs = -np.array(losses, dtype=np.float64)
        at = 0
        for i in batch:
            count = len(rows[i].tokens) - rows[i].start
            scores[i] = RowScore(float(logprobs[at : at + count].sum()), count)
            at += count
    return [scores[i] for i in range(len(rows))]


def scored_logits(lm: LanguageModel, rows: Sequence[Row]) -> mx.array:
    """Logits (N, V), float32, that predict the scored tokens of all rows, row after row."""
    return split_head(lm.model).head(_scored_hidden(lm, rows)).astype(mx.float32)


def _scored_hidden(lm: LanguageModel, rows: Sequence[Row]) -> mx.array:
    """Hidden states (N, D) that predict the scored tokens of all rows, row after row."""
    backbone = split_head(lm.model).backbone
    prefix = _shared_length(rows) if can_share(lm.model, backbone) else 0
    length = max(len(row.tokens) for row in rows) - 1
    tokens = np.zeros((len(rows), length), dtype=np.int32)
    wanted = []
    for i, row in enumerate(rows):
        tokens[i, : len(row.tokens) - 1] = row.tokens[:-1]
        first = i * (length - prefix) - prefix
        wanted.append(first + np.arange(row.start - 1, len(row.tokens) - 1))
    with fast_cpu(lm.model):
        if prefix:
            hidden = run_prefixed(lm.model, mx.array(tokens), prefix)
        else:
            hidden = backbone(mx.array(tokens))
    return hidden.reshape(-1, hidden.shape[-1])[mx.array(np.concatenate(wanted))]


def _shared_length(rows: Sequence[Row]) -> int:
    """How many leading tokens all rows share; each keeps the one before its first scored."""
    if len(rows) < 2:
        return 0
    shared = len(commonprefix([list(row.tokens) for row in rows]))
    length = min(shared, *(row.start - 1 for row in rows))
    return length if length >= _LEAST_SHARED else 0


def perplexity(
    lm: LanguageModel, text: str, *, window: int = 256, switch: StopSwitch = NEVER
) -> float:
    """Perplexity per token of a text, read in windows that do not overlap.

    Args:
        lm: the loaded model.
        text: the text.
        window: tokens per window; each window starts without a past.

    Raises:
        GenerationError: the text is too short to score.
    """
    tokens = lm.tokenizer.encode(text)
    pieces = [tokens[i : i + window] for i in range(0, len(tokens), window)]
    rows = [Row(piece) for piece in pieces if len(piece) > 1]
    if not rows:
        raise GenerationError("perplexity needs a text of at least two tokens")
    scores = score_rows(lm, rows, switch=switch)
    return math.exp(-sum(s.logprob for s in scores) / sum(s.count for s in scores))


def _batches(rows: Sequence[Row], batch_tokens: int) -> Iterator[list[int]]:
    for row in rows:
        if not 1 <= row.start < len(row.tokens):
            raise GenerationError(
                f"nothing to score: a row of {len(row.tokens)} tokens with start={row.start}"
            )
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].tokens))
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) + 1) * len(rows[i].tokens) > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
