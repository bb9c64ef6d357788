"""Preferences as training rows: encoded pairs in batches of like length.

    rows, report = encode_pairs(read_pairs("preferences.jsonl"), tokenizer, max_tokens=1024)
    source = PreferenceRows(rows, batch_tokens=2048)

Only the reply is scored, also where the prompt holds earlier turns of the assistant. A judged reply
(KTO) is paired with a reply that belongs to another prompt: how much more likely training has made
those is the estimate of its KL divergence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mlx_companion.errors import DataError
from mlx_companion.runtime.seeds import derive_seed
from mlx_companion.text.batches import Batch, LengthBuckets, collate
from mlx_companion.text.encode import Dropped, Encoded, EncodeReport, encode_sample
from mlx_companion.text.preference_records import (
    JudgedCompletion,
    PreferencePair,
    conversation,
)
from mlx_companion.text.records import Message

# Cut afterwards, so that what is cut can be counted.
_WHOLE = 1 << 30


@dataclass(frozen=True)
class EncodedPair:
    """Two encoded conversations.

    Attributes:
        first: with the chosen, or the judged reply.
        second: with the rejected reply, or one of another prompt.
        desirable: whether a judged reply is wanted; None for pairs.
    """

    first: Encoded
    second: Encoded
    desirable: bool | None = None


@dataclass(frozen=True)
class PreferenceBatch:
    """P pairs or judged replies.

    Attributes:
        rows: (2P, L) first replies, then second ones; (P, L) where replies are judged.
        mismatched: (P, L) judged replies' counterparts from other prompts, else None.
        desirable: (P,) float32, 1 where wanted, else None.
        reference: (2, P) float32 log-probabilities (nats) under the reference model, if known.
        indices: the pairs' positions in the data set.
    """

    rows: Batch
    mismatched: Batch | None
    desirable: np.ndarray | None
    reference: np.ndarray | None
    indices: tuple[int, ...]
    source: PreferenceRows

    def split_rows(self, parts: int) -> list[PreferenceBatch]:
        """The pairs as at most `parts` batches; judged replies share an estimate and stay whole."""
        if self.desirable is not None:
            return [self]
        ordered = sorted(self.indices, key=self.source.longest, reverse=True)
        parts = min(parts, len(ordered))
        return [self.source.batch(tuple(ordered[at::parts])) for at in range(parts)]


class PreferenceRows:
    """A row source of pairs; a row is a pair.

    Args:
        pairs: all with `desirable`, or all without.
        batch_tokens: both rows x padded length of a batch stay at or under this.
        max_pairs: most pairs in a batch; None for no limit.
        seed: with the epoch number, decides every plan.
        pad_to: padded lengths are rounded up to a multiple of this.
        reference: (2, rows) log-probabilities under the reference model (`reference_logprobs`).

    Raises:
        ConfigError: a limit is less than 1.
        DataError: no pairs, pairs and judged replies mixed, or a reference of another shape.
    """

    def __init__(
        self,
        pairs: Sequence[EncodedPair],
        *,
        batch_tokens: int = 2048,
        max_pairs: int | None = None,
        seed: int = 0,
        pad_to: int = 1,
        reference: np.ndarray | None = None,
    ) -> None:
        if len({pair.desirable is None for pair in pairs}) > 1:
            raise DataError("pairs and judged replies are mixed; turn pairs into judged replies")
        if reference is not None and reference.shape != (2, len(pairs)):
            raise DataError(
                f"the reference has shape {reference.shape}, {len(pairs)} pairs need "
                f"{(2, len(pairs))}; compute it again for these pairs"
            )
        self.pairs = pairs
        self.judged = bool(pairs) and pairs[0].desirable is not None
        self.reference = reference
        self.pad_to = pad_to
        # Planned by the longer of the two, and two rows at a time.
        longer = [max(pair.first, pair.second, key=lambda row: len(row.tokens)) for pair in pairs]
        self._buckets = LengthBuckets(
            longer,
            batch_tokens=batch_tokens if batch_tokens < 2 else batch_tokens // 2,
            max_rows=max_pairs,
            seed=seed,
            pad_to=pad_to,
        )
        self._rows = [pair.first for pair in pairs] + [pair.second for pair in pairs]

    @property
    def rows(self) -> int:
        """Pairs of an epoch."""
        return len(self.pairs)

    @property
    def target_count(self) -> int:
        """Pairs too: each counts once in the mean loss."""
        return len(self.pairs)

    def epoch(self, number: int) -> list[tuple[int, ...]]:
        """The batches of one epoch, as indices of pairs."""
        return self._buckets.epoch(number)

    def batch(self, indices: Sequence[int]) -> PreferenceBatch:
        """Collate those pairs."""
        first, second = list(indices), [len(self.pairs) + index for index in indices]
        known = None if self.reference is None else np.array(self.reference[:, first])
        if not self.judged:
            rows = collate(self._rows, first + second, self.pad_to)
            return PreferenceBatch(rows, None, None, known, tuple(indices), self)
        desirable = [float(bool(self.pairs[index].desirable)) for index in indices]
        return PreferenceBatch(
            collate(self._rows, first, self.pad_to),
            collate(self._rows, second, self.pad_to),
            np.array(desirable, dtype=np.float32),
            known,
            tuple(indices),
            self,
        )

    def tokens(self, indices: Sequence[int]) -> int:
        """Tokens of both rows of those pairs, padding excluded."""
        pairs = [self.pairs[index] for index in indices]
        return sum(len(pair.first.tokens) + len(pair.second.tokens) for pair in pairs)

    def slots(self, indices: Sequence[int]) -> int:
        """The same, padding included."""
        return 2 * self._buckets.slots(indices)

    def longest(self, index: int) -> int:
        """Tokens of the longer row of a pair."""
        return self._buckets.tokens([index])

    def with_reference(self, reference: np.ndarray) -> PreferenceRows:
        """The same rows with the reference's log-probabilities (2, rows)."""
        return PreferenceRows(
            self.pairs,
            batch_tokens=2 * self._buckets.batch_tokens,
            max_pairs=self._buckets.max_rows,
            seed=self._buckets.seed,
            pad_to=self.pad_to,
            reference=reference,
        )


def encode_pairs(
    pairs: Iterable[PreferencePair], tokenizer: Any, max_tokens: int
) -> tuple[list[EncodedPair], EncodeReport]:
    """Encode pairs, cut to their first `max_tokens` tokens.

    A pair of which nothing is left to score, or whose replies are equal after the cut, is dropped
    and reported.

    Raises:
        ConfigError: `max_tokens` is under 2.
        DataError: the chat template refuses a conversation, with the pair's source in front.
    """
    report, found = EncodeReport(), []
    for pair in pairs:
        chosen = _reply(pair.prompt, pair.chosen, pair.source, tokenizer)
        rejected = _reply(pair.prompt, pair.rejected, pair.source, tokenizer)
        cut = EncodedPair(chosen.window(0, max_tokens), rejected.window(0, max_tokens))
        if _kept(cut, pair.source, max_tokens, report):
            report.truncated += max(len(chosen.tokens), len(rejected.tokens)) > max_tokens
            found.append(cut)
    return found, report


def encode_judged(
    judged: Iterable[JudgedCompletion], tokenizer: Any, max_tokens: int, *, seed: int = 0
) -> tuple[list[EncodedPair], EncodeReport]:
    """Encode judged replies, each beside the reply to another prompt that `seed` deals it.

    Raises:
        ConfigError, DataError: as `encode_pairs`; also where all replies are to one prompt.
    """
    items = list(judged)
    report, found = EncodeReport(), []
    for item, other in zip(items, _mismatched(items, seed), strict=True):
        whole = _reply(item.prompt, item.completion, item.source, tokenizer)
        elsewhere = _reply(item.prompt, other.completion, other.source, tokenizer)
        cut = EncodedPair(
            whole.window(0, max_tokens), elsewhere.window(0, max_tokens), item.desirable
        )
        if _kept(cut, item.source, max_tokens, report):
            report.truncated += len(whole.tokens) > max_tokens
            found.append(cut)
    return found, report


def only_last_reply(encoded: Encoded) -> Encoded:
    """Without the targets of earlier turns: the last run of targets stays."""
    end = max((at + 1 for at, wanted in enumerate(encoded.targets) if wanted), default=0)
    start = end
    while start and encoded.targets[start - 1]:
        start -= 1
    kept = [start <= at < end for at in range(len(encoded.targets))]
    return replace(encoded, targets=kept)


def _reply(prompt: tuple[Message, ...], text: str, source: str, tokenizer: Any) -> Encoded:
    try:
        return only_last_reply(encode_sample(conversation(prompt, text), tokenizer, _WHOLE))
    except DataError as error:
        raise DataError(str(error), path=source or None) from error


def _kept(pair: EncodedPair, source: str, max_tokens: int, report: EncodeReport) -> bool:
    """Whether the pair can be trained on; noted in the report."""
    reason = None
    if not pair.first.target_count or not pair.second.target_count:
        reason = f"the prompt leaves no room for a reply in {max_tokens} tokens"
    elif pair.desirable is None and pair.first.tokens == pair.second.tokens:
        reason = f"both replies have the same first {max_tokens} tokens"
    if reason is not None:
        report.dropped.append(Dropped(source, reason))
        return False
    report.kept += 1
    report.tokens += len(pair.first.tokens) + len(pair.second.tokens)
    report.targets += pair.first.target_count + pair.second.target_count
    return True


def _mismatched(items: Sequence[JudgedCompletion], seed: int) -> list[JudgedCompletion]:
    """For each item another one with a different prompt: the next such one in a shuffled circle."""
    order = np.random.default_rng(derive_seed(seed, "mismatched")).permutation(len(items)).tolist()
    found: list[JudgedCompletion | None] = [None] * len(items)
    for place, at in enumerate(order):
        for step in range(1, len(order)):
            other = items[order[(place + step) % len(order)]]
            if other.prompt != items[at].prompt:
                found[at] = other
                break
        else:
            raise DataError(
                "all judged replies are to the same prompt; the estimate of the KL divergence "
                "needs replies to at least two different prompts"
            )
    return [other for other in found if other is not None]
