"""Text out of a language model: one reply, a stream, or many replies at once.

Built on mlx-lm's `generate_step` (single) and `BatchGenerator` (batches). What is added
here: one `Sampling` object, text stops, seeds, limits that are checked before work
starts, the prompt prefix that all rows of a batch share computed once, and a resource
monitor and kill switch consulted between batches.

    lm = mc.load("smollm2-135m")
    print(mc.generate(lm, "Why is the sky blue?"))
    for piece in mc.stream_generate(lm, "Once"): print(piece, end="")
    replies = mc.batch_generate(lm, ["one", "two"], seed=0)
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any, Protocol

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, generate_step
from mlx_lm.models.cache import KVCache, make_prompt_cache

from mlx_companion.errors import GenerationError
from mlx_companion.models.fast_cpu import fast_cpu
from mlx_companion.models.kv_cache import KVBits, attending_to_packed, quantized_cache
from mlx_companion.models.load import LanguageModel
from mlx_companion.models.prompts import Prompt, context_length, render
from mlx_companion.models.reply_text import Reply, ReplyText
from mlx_companion.models.sampling import GREEDY, LogitsProcessor, Sampling
from mlx_companion.runtime.monitor import ResourceMonitor
from mlx_companion.runtime.seeds import derive_seed
from mlx_companion.runtime.stop import NEVER, StopSwitch

__all__ = ["Reply", "batch_generate", "generate", "stream_generate"]

# A shared prefix shorter than this costs more to merge than to compute again.
MIN_SHARED_PREFIX = 8


class RowCaches(Protocol):
    """Prompt caches of a batch's rows that somebody else keeps, such as a bank of adapters.

    Attributes:
        model: called in place of the language model's, with these caches.
    """

    model: Any

    def start(self, row: int, tokens: Sequence[int]) -> tuple[list[Any], int]:
        """The cache that a row starts from, and how many of its prompt's tokens are in it."""

    def ended(self, row: int, tokens: Sequence[int], cache: list[Any]) -> None:
        """Told at a row's end: the tokens in its cache, and the cache."""


def generate(lm: LanguageModel, prompt: Prompt, **options: Any) -> Reply:
    """One reply to `prompt`. Options and errors as in `stream_generate`."""
    stream = stream_generate(lm, prompt, **options)
    while True:
        try:
            next(stream)
        except StopIteration as end:
            return end.value


def stream_generate(
    lm: LanguageModel,
    prompt: Prompt,
    *,
    system: str | None = None,
    max_tokens: int = 256,
    sampling: Sampling = GREEDY,
    seed: int | None = None,
    stop: Sequence[str] = (),
    logits_processors: Sequence[LogitsProcessor] = (),
    prompt_cache: list[Any] | None = None,
    kv_bits: int | str | KVBits | None = None,
    switch: StopSwitch = NEVER,
) -> Generator[str, None, Reply]:
    """Pieces of text as they are made; the generator's return value is the `Reply`.

    Args:
        lm: the loaded model.
        prompt: text, chat messages or token ids.
        system: a system message for prompts that have none.
        max_tokens: the most tokens to make.
        sampling: how tokens are chosen; greedy unless told.
        seed: makes sampling repeatable.
        stop: texts that end the reply; they are not part of it.
        logits_processors: mlx-lm style functions `f(tokens, logits) -> logits`.
        prompt_cache: a prompt cache to continue from and extend, of mlx-lm's or of
            `kv_cache.quantized_cache`.
        kv_bits: packs the keys and values of past tokens: 2 to 8, or "k8v4"; see `kv_cache`.
        switch: ends the reply early, between two tokens.

    Raises:
        GenerationError: an empty prompt, one longer than the model's context, or a bad option.
        ConfigError: `kv_bits` that there are not, or that this model cannot use.
    """
    tokens = _checked_prompt(lm, prompt, system, max_tokens, stop)
    if kv_bits is not None:
        if prompt_cache is not None:
            raise GenerationError("give kv_bits or a prompt_cache, which has bits of its own")
        prompt_cache = quantized_cache(lm.model, kv_bits)
    if seed is not None:
        mx.random.seed(derive_seed(seed, "reply"))
    steps = generate_step(
        mx.array(tokens),
        lm.model,
        max_tokens=max_tokens,
        sampler=sampling.sampler(),
        logits_processors=[*sampling.processors(), *logits_processors],
        prompt_cache=prompt_cache,
    )
    text = ReplyText(lm, stop)
    while not text.finished and not switch.requested:
        # Entered for each token: between two of them the caller may run other models.
        with fast_cpu(lm.model), attending_to_packed(lm.model, prompt_cache or ()):
            token = next(steps, None)
        if token is None:
            break
        if piece := text.add(int(token[0])):
            yield piece
    rest = text.close()
    if rest:
        yield rest
    return text.reply(len(tokens))


def batch_generate(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    *,
    system: str | None = None,
    max_tokens: int = 256,
    sampling: Sampling = GREEDY,
    seed: int | None = None,
    stop: Sequence[str] = (),
    logits_processors: Sequence[LogitsProcessor] = (),
    max_rows: int = 64,
    monitor: ResourceMonitor | None = None,
    switch: StopSwitch = NEVER,
    row_caches: RowCaches | None = None,
) -> list[Reply]:
    """One reply to each prompt, in their order, decoded `max_rows` at a time.

    Prompts of similar length share a batch. Under greedy sampling a row equals the
    reply that `generate` gives alone. With a seed the result repeats for the same
    prompts and the same `max_rows`.

    Args:
        max_rows: the most rows decoded together; a monitor under pressure lowers it.
        monitor: consulted before each batch; may slow down or pause the work.
        switch: consulted before each batch.
        row_caches: where rows start from; by default all from the prefix that they share.

    Raises:
        GenerationError: as in `stream_generate`; nothing is generated then.
        Stopped: the switch was thrown.
    """
    if max_rows < 1:
        raise GenerationError(f"max_rows={max_rows} makes no batch: give 1 or more")
    rows = [_checked_prompt(lm, prompt, system, max_tokens, stop) for prompt in prompts]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    replies: dict[int, Reply] = {}
    while len(replies) < len(rows):
        switch.check()
        scale = monitor.consult(switch).scale if monitor else 1.0
        done = len(replies)
        chunk = order[done : done + max(1, round(max_rows * scale))]
        if seed is not None:
            mx.random.seed(derive_seed(seed, "rows", done))
        with fast_cpu(lm.model):
            made = _decode_rows(
                lm,
                {i: rows[i] for i in chunk},
                max_tokens,
                [ReplyText(lm, stop) for _ in chunk],
                {
                    "sampler": sampling.sampler(),
                    "logits_processors": [*sampling.processors(), *logits_processors],
                },
                row_caches,
            )
        replies.update(zip(chunk, made, strict=True))
    return [replies[i] for i in range(len(rows))]


def _decode_rows(
    lm: LanguageModel,
    rows: dict[int, list[int]],
    max_tokens: int,
    texts: list[ReplyText],
    options: dict[str, Any],
    row_caches: RowCaches | None,
) -> list[Reply]:
    # The end tokens are recognised here, not by the generator, so that a row which
    # ends and one which is cut off at max_tokens by the same token are told apart.
    generator = BatchGenerator(
        lm.model if row_caches is None else row_caches.model,
        max_tokens=max_tokens,
        completion_batch_size=len(rows),
        prefill_batch_size=len(rows),
        **options,
    )
    try:
        starts = _starts(lm, rows, row_caches)
        uids = generator.insert(
            [row[known:] for row, (_, known) in zip(rows.values(), starts, strict=True)],
            caches=[cache for cache, _ in starts],
            all_tokens=[row[:known] for row, (_, known) in zip(rows.values(), starts, strict=True)],
        )
        numbers = dict(zip(uids, rows, strict=True))
        by_uid = dict(zip(uids, texts, strict=True))
        while responses := generator.next_generated():
            for uid, tokens, cache in _ended(generator, responses, by_uid, row_caches is not None):
                if row_caches is not None:
                    row_caches.ended(numbers[uid], tokens, cache)
    finally:
        generator.close()
    for text in texts:
        text.close()
    return [text.reply(len(row)) for text, row in zip(texts, rows.values(), strict=True)]


def _ended(
    generator: BatchGenerator, responses: list[Any], texts: dict[int, ReplyText], wanted: bool
) -> list[tuple[int, list[int], list[Any]]]:
    """Take the new tokens in; the rows that ended, with their tokens and caches where wanted."""
    ended, left = [], []
    for response in responses:
        text = texts[response.uid]
        text.add(int(response.token))
        if response.finish_reason is not None:
            left.append((response.uid, response.all_tokens, response.prompt_cache))
        elif text.finished:
            ended.append(response.uid)
    if ended:
        caches = generator.remove(ended, return_prompt_caches=wanted)
        left += [(uid, tokens, cache) for uid, (cache, tokens) in caches.items()]
    return left


def _starts(
    lm: LanguageModel, rows: dict[int, list[int]], row_caches: RowCaches | None
) -> list[tuple[list[Any] | None, int]]:
    """Per row a cache (None: an empty one) and how many of the row's tokens it holds."""
    if row_caches is not None:
        return [row_caches.start(number, tokens) for number, tokens in rows.items()]
    prefix = _shared_prefix(lm, list(rows.values()))
    return [(prefix.cache if prefix.tokens else None, len(prefix.tokens))] * len(rows)


@dataclass(frozen=True)
class _Prefix:
    tokens: list[int]
    cache: list[Any]


def _shared_prefix(lm: LanguageModel, rows: list[list[int]]) -> _Prefix:
    """The key-value cache of the tokens that all rows begin with, computed once."""
    shared = list(commonprefix([row[:-1] for row in rows])) if len(rows) > 1 else []
    cache = make_prompt_cache(lm.model)
    if len(shared) < MIN_SHARED_PREFIX or any(type(part) is not KVCache for part in cache):
        return _Prefix([], [])
    lm.model(mx.array([shared]), cache=cache)
    mx.eval([part.state for part in cache])
    return _Prefix(shared, cache)


def _checked_prompt(
    lm: LanguageModel, prompt: Prompt, system: str | None, max_tokens: int, stop: Sequence[str]
) -> list[int]:
    if not isinstance(max_tokens, int) or max_tokens < 1:
        raise GenerationError(f"max_tokens={max_tokens!r}: give a whole number, 1 or more")
    listed = isinstance(stop, Sequence) and not isinstance(stop, str)
    if not listed or not all(isinstance(text, str) and text for text in stop):
        raise GenerationError(f"stop={stop!r} must be a list of non-empty texts")
    tokens = render(lm, prompt, system=system)
    limit = context_length(lm)
    if len(tokens) + max_tokens > limit:
        raise GenerationError(
            f"the prompt has {len(tokens):,} tokens and {max_tokens:,} more were asked for, "
            f"but {lm.source} reads at most {limit:,}: shorten the prompt or lower max_tokens"
        )
    return tokens
