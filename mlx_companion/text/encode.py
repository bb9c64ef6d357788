"""Samples to tokens, with a mask that says which tokens are trained on.

Conversations train on the completions only: every assistant turn, its end token included,
nothing else. Plain texts train on everything. A token's mask belongs to the token that is
predicted, so ``targets[i]`` counts the loss of predicting ``tokens[i]`` from position i-1.

    encoded, report = encode_samples(samples, tokenizer, max_tokens=1024)
    print(report)

Too long: a conversation keeps its first `max_tokens` tokens, and when no target is among
them it is dropped and reported (a batch without targets has a loss of 0/0). A text is cut
into windows that share one token, so that each of its tokens is trained on exactly once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mlx_companion.errors import ConfigError, DataError
from mlx_companion.text.records import Sample
from mlx_companion.text.spans import assistant_spans, has_template


@dataclass(frozen=True)
class Encoded:
    """Tokens of one sample and which of them are trained on; both of the same length."""

    tokens: list[int]
    targets: list[bool]

    @property
    def target_count(self) -> int:
        """How many tokens are trained on."""
        return sum(self.targets)

    def window(self, start: int, end: int) -> Encoded:
        """Tokens start..end; the first one is no target, as nothing there predicts it."""
        targets = self.targets[start:end]
        return Encoded(self.tokens[start:end], [False, *targets[1:]])


@dataclass(frozen=True)
class Dropped:
    """A sample that is not trained on, and why."""

    source: str
    reason: str


@dataclass
class EncodeReport:
    """What became of the samples.

    Args:
        kept: training rows made (more than samples where texts were split).
        truncated: conversations that lost their tail but kept targets.
        split: texts cut into several windows.
        dropped: samples left out, each with its reason.
        tokens, targets: totals over the rows kept.
    """

    kept: int = 0
    truncated: int = 0
    split: int = 0
    dropped: list[Dropped] = field(default_factory=list)
    tokens: int = 0
    targets: int = 0

    def __str__(self) -> str:
        parts = [f"{self.kept} rows kept ({self.tokens} tokens, {self.targets} trained on)"]
        parts += [f"{self.truncated} truncated"] if self.truncated else []
        parts += [f"{self.split} texts split"] if self.split else []
        if self.dropped:
            first = self.dropped[0]
            parts.append(f"{len(self.dropped)} dropped (first: {first.source}: {first.reason})")
        return ", ".join(parts)


def encode_sample(sample: Sample, tokenizer: Any, max_tokens: int) -> Encoded:
    """Encode one sample, cut to its first `max_tokens` tokens.

    Args:
        sample: a conversation or a text.
        tokenizer: an mlx-lm `TokenizerWrapper` or a transformers tokenizer.
        max_tokens: most tokens kept; all targets may be lost to it (`target_count` is 0).

    Raises:
        ConfigError: `max_tokens` is under 2, which leaves nothing to predict.
        DataError: the chat template refuses the conversation or cannot be masked.
    """
    _check_max_tokens(max_tokens)
    return _encode(sample, tokenizer).window(0, max_tokens)


def encode_samples(
    samples: Iterable[Sample],
    tokenizer: Any,
    max_tokens: int,
    *,
    on_error: Literal["raise", "skip"] = "raise",
) -> tuple[list[Encoded], EncodeReport]:
    """Encode samples into training rows, each with at least one target.

    Args:
        samples: what `records.read_samples` gave.
        tokenizer: an mlx-lm `TokenizerWrapper` or a transformers tokenizer.
        max_tokens: most tokens in a row.
        on_error: "raise" when a sample cannot be encoded, or "skip" it into the report.

    Raises:
        ConfigError: `max_tokens` is under 2.
        DataError: as `encode_sample`, with the sample's source in front.
    """
    _check_max_tokens(max_tokens)
    rows: list[Encoded] = []
    report = EncodeReport()
    for sample in samples:
        try:
            whole = _encode(sample, tokenizer)
        except DataError as error:
            if on_error == "raise":
                raise DataError(str(error), path=sample.source or None) from error
            report.dropped.append(Dropped(sample.source, str(error)))
            continue
        rows += _rows(sample, whole, max_tokens, report)
    report.kept = len(rows)
    report.tokens = sum(len(row.tokens) for row in rows)
    report.targets = sum(row.target_count for row in rows)
    return rows, report


def _rows(sample: Sample, whole: Encoded, max_tokens: int, report: EncodeReport) -> list[Encoded]:
    """The rows that one encoded sample gives, noted in the report."""
    length = len(whole.tokens)
    if sample.text is not None and length > max_tokens:
        report.split += 1
        starts = range(0, length - 1, max_tokens - 1)
        return [whole.window(start, start + max_tokens) for start in starts]
    row = whole.window(0, max_tokens)
    if row.target_count == 0:
        reason = f"all of its targets lie beyond token {max_tokens} of {length}"
        if length <= max_tokens:
            reason = "it has no token to train on"
        report.dropped.append(Dropped(sample.source, reason))
        return []
    report.truncated += length > max_tokens
    return [row]


def _encode(sample: Sample, tokenizer: Any) -> Encoded:
    if sample.text is not None:
        return _encode_text(sample.text, tokenizer)
    text, spans = assistant_spans(sample.messages, tokenizer)
    # A template has written the special tokens already; plain text lacks them.
    plain = not has_template(tokenizer)
    tokens = _ids(text, tokenizer, plain)
    ranges = _ranges_by_prefix(text, spans, tokens, tokenizer, plain)
    if ranges is None:
        ranges = _ranges_by_offset(text, spans, tokens, tokenizer, plain)
    targets = [False] * len(tokens)
    special = _special_ids(tokenizer)
    for start, end in ranges:
        end = _through_end_token(tokens, start, end, special, tokenizer)
        targets[start:end] = [True] * (end - start)
    if plain and targets[-1]:
        _append_end(tokens, targets, tokenizer)
    return Encoded(tokens, targets).window(0, len(tokens))


def _encode_text(text: str, tokenizer: Any) -> Encoded:
    tokens = _ids(text, tokenizer, True)
    targets = [True] * len(tokens)
    _append_end(tokens, targets, tokenizer)
    return Encoded(tokens, targets).window(0, len(tokens))


def _append_end(tokens: list[int], targets: list[bool], tokenizer: Any) -> None:
    end = tokenizer.eos_token_id
    if end is not None and tokens[-1:] != [end]:
        tokens.append(end)
        targets.append(True)


def _ids(text: str, tokenizer: Any, plain: bool) -> list[int]:
    # Not verbose: transformers warns of long texts, which are cut here anyway.
    return list(tokenizer.encode(text, add_special_tokens=plain, verbose=False))


def _special_ids(tokenizer: Any) -> set[int]:
    ends = getattr(tokenizer, "eos_token_ids", None)
    # A set in mlx-lm's wrapper; transformers answers the same name with one number.
    return {*tokenizer.all_special_ids, *(ends if isinstance(ends, set) else ())}


def _ranges_by_prefix(
    text: str, spans: Sequence[tuple[int, int]], tokens: list[int], tokenizer: Any, plain: bool
) -> list[tuple[int, int]] | None:
    """Token ranges of the spans, or None where a prefix does not tokenize as it does inside."""
    ranges = []
    for span in spans:
        bounds = []
        for char in span:
            prefix = _ids(text[:char], tokenizer, plain)
            if tokens[: len(prefix)] != prefix:
                return None
            bounds.append(len(prefix))
        ranges.append((bounds[0], bounds[1]))
    return ranges


def _ranges_by_offset(
    text: str, spans: Sequence[tuple[int, int]], tokens: list[int], tokenizer: Any, plain: bool
) -> list[tuple[int, int]]:
    """Token ranges of the spans by character offsets; a token that straddles a start counts."""
    try:
        # mlx-lm's wrapper does not forward calls.
        call = tokenizer if callable(tokenizer) else tokenizer._tokenizer
        out = call(text, add_special_tokens=plain, return_offsets_mapping=True, verbose=False)
    except NotImplementedError as error:
        raise DataError(
            "a token straddles the border of an assistant turn and this tokenizer cannot "
            "tell where its tokens lie; use a fast tokenizer"
        ) from error
    if list(out["input_ids"]) != tokens:
        raise DataError("the tokenizer gives different tokens for the same text; cannot mask it")
    ranges = []
    for start, end in spans:
        inside = [at for at, (a, b) in enumerate(out["offset_mapping"]) if b > start and a < end]
        if not inside:
            raise DataError("an assistant turn has no tokens of its own; cannot mask it")
        ranges.append((inside[0], inside[-1] + 1))
    return ranges


def _through_end_token(
    tokens: list[int], start: int, end: int, special: set[int], tokenizer: Any
) -> int:
    """End of the range without the blank space that templates write after an end token.

    Generation stops at the end token, so what follows it is never produced.
    """
    for at in range(end - 1, start - 1, -1):
        if tokens[at] in special:
            blank = not tokenizer.decode(tokens[at + 1 : end]).strip()
            return at + 1 if blank else end
    return end


def _check_max_tokens(max_tokens: int) -> None:
    if max_tokens < 2:
        raise ConfigError(f"max_tokens must be 2 or more, got {max_tokens}")
