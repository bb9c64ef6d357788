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
from dataclasses import dataclass, field
from os.path import commonprefix
from typing import Any, Literal

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, generate_step
from mlx_lm.models.cache import KVCache, make_prompt_cache

from mlx_companion.errors import GenerationError
from mlx_companion.models.fast_cpu import fast_cpu
from mlx_companion.models.load import LanguageModel
from mlx_companion.models.prompts import Prompt, context_length, render
from mlx_companion.models.sampling import GREEDY, LogitsProcessor, Sampling
from mlx_companion.runtime.monitor import ResourceMonitor
from mlx_companion.runtime.seeds import derive_seed
from mlx_companion.runtime.stop import NEVER, StopSwitch

__all__ = ["Reply", "batch_generate", "generate", "stream_generate"]

FinishReason = Literal["stop", "length"]
# A shared prefix shorter than this costs more to merge than to compute again.
MIN_SHARED_PREFIX = 8


@dataclass(frozen=True)
class Reply:
    """What a model answered. `str(reply)` is the text.

    Args:
        text: the text, without the stop that ended it.
        tokens: the sampled token ids, end token excluded.
        finish_reason: "stop" (end token or text stop) or "length" (cut at max_tokens).
        prompt_tokens: length of the prompt (tokens).
    """

    text: str
    tokens: tuple[int, ...] = field(repr=False)
    finish_reason: FinishReason
    prompt_tokens: int

    def __str__(self) -> str:
        return self.text


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
        prompt_cache: an mlx-lm prompt cache to continue from and extend.
        switch: ends the reply early, between two tokens.

    Raises:
        GenerationError: an empty prompt, one longer than the model's context, or a bad option.
    """
    tokens = _checked_prompt(lm, prompt, system, max_tokens, stop)
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
    text = _TextOut(lm, stop)
    while not text.finished and not switch.requested:
        # Entered for each token: between two of them the caller may run other models.
        with fast_cpu(lm.model):
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
) -> list[Reply]:
    """One reply to each prompt, in their order, decoded `max_rows` at a time.

    Prompts of similar length share a batch. Under greedy sampling a row equals the
    reply that `generate` gives alone. With a seed the result repeats for the same
    prompts and the same `max_rows`.

    Args:
        max_rows: the most rows decoded together; a monitor under pressure lowers it.
        monitor: consulted before each batch; may slow down or pause the work.
        switch: consulted before each batch.

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
                lm, [rows[i] for i in chunk], max_tokens, sampling, stop, logits_processors
            )
        replies.update(zip(chunk, made, strict=True))
    return [replies[i] for i in range(len(rows))]


def _decode_rows(
    lm: LanguageModel,
    rows: list[list[int]],
    max_tokens: int,
    sampling: Sampling,
    stop: Sequence[str],
    processors: Sequence[LogitsProcessor],
) -> list[Reply]:
    # The end tokens are recognised here, not by the generator, so that a row which
    # ends and one which is cut off at max_tokens by the same token are told apart.
    generator = BatchGenerator(
        lm.model,
        max_tokens=max_tokens,
        sampler=sampling.sampler(),
        logits_processors=[*sampling.processors(), *processors],
        completion_batch_size=len(rows),
        prefill_batch_size=len(rows),
    )
    try:
        prefix = _shared_prefix(lm, rows)
        texts = dict(
            zip(
                generator.insert(
                    [row[len(prefix.tokens) :] for row in rows],
                    caches=[prefix.cache] * len(rows) if prefix.tokens else None,
                    all_tokens=[list(prefix.tokens) for _ in rows],
                ),
                (_TextOut(lm, stop) for _ in rows),
                strict=True,
            )
        )
        while responses := generator.next_generated():
            ended = []
            for response in responses:
                text = texts[response.uid]
                text.add(int(response.token))
                if text.finished and response.finish_reason is None:
                    ended.append(response.uid)
            if ended:
                generator.remove(ended)
    finally:
        generator.close()
    for text in texts.values():
        text.close()
    return [text.reply(len(row)) for text, row in zip(texts.values(), rows, strict=True)]


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


class _TextOut:
    """Collects one row's tokens and gives out text, holding back what may begin a stop."""

    def __init__(self, lm: LanguageModel, stop: Sequence[str]) -> None:
        self._end_tokens = lm.tokenizer.eos_token_ids
        self._detokenizer = lm.tokenizer.detokenizer
        self._stop = tuple(stop)
        self._tokens: list[int] = []
        self._text = ""
        self._given = 0
        self._cut = False
        self.finished = False

    def add(self, token: int) -> str:
        if self.finished:
            return ""
        if token in self._end_tokens:
            self.finished = True
            return ""
        self._tokens.append(token)
        self._detokenizer.add_token(token)
        self._text += self._detokenizer.last_segment
        return self._release(held=self._held())

    def close(self) -> str:
        self._detokenizer.finalize()
        # What a detokenizer still holds comes after the stop, when there was one.
        if not self._cut:
            self._text += self._detokenizer.last_segment
            self._cut_at_stop()
        return self._release(held=0)

    def reply(self, prompt_tokens: int) -> Reply:
        reason: FinishReason = "stop" if self.finished else "length"
        return Reply(self._text.strip(), tuple(self._tokens), reason, prompt_tokens)

    def _held(self) -> int:
        if self._cut_at_stop():
            return 0
        longest = 0
        for text in self._stop:
            for size in range(min(len(text) - 1, len(self._text)), longest, -1):
                if self._text.endswith(text[:size]):
                    longest = size
                    break
        return longest

    def _cut_at_stop(self) -> bool:
        found = [self._text.find(text) for text in self._stop if text in self._text]
        if found:
            self._text = self._text[: min(found)]
            self._cut = self.finished = True
        return bool(found)

    def _release(self, held: int) -> str:
        piece = self._text[self._given : len(self._text) - held]
        self._given += len(piece)
        return piece
