"""Text out of a byte model: one reply, a stream, or many replies at once.

    print(generate(model, "The sea"))
    for piece in stream_generate(model, "Once", max_bytes=400): print(piece, end="")
    replies = batch_generate(model, ["one", "two"], sampling=Sampling(temperature=0.8), seed=0)

The same for byte latent transformers and flat byte models. Names, stops and reasons are those of
`models.generation`; here a unit is a byte, and no piece holds half a character. A conversation
goes on with `cache=make_cache(model)`, which holds the prompts and replies so far; `speculate=n`
drafts n bytes at a time without the latent transformer (`speculation`), with the same result.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_companion.blt.cache import MARGIN, ByteModel, Cache, make_cache
from mlx_companion.blt.chunks import extend
from mlx_companion.blt.drawing import Chooser, Constraint, Draw
from mlx_companion.blt.prefill import prefill
from mlx_companion.blt.replies import ByteOut, ByteReply, FinishReason, stop_bytes
from mlx_companion.blt.speculation import Speculation, speculate_bytes
from mlx_companion.blt.stepping import advance
from mlx_companion.errors import GenerationError
from mlx_companion.models.sampling import GREEDY, LogitsProcessor, Sampling
from mlx_companion.runtime.seeds import derive_seed
from mlx_companion.runtime.stop import NEVER, StopSwitch
from mlx_companion.text.byte_text import BOS, VOCABULARY, encode_bytes

__all__ = ["ByteReply", "batch_generate", "generate", "row_seed", "stream_generate"]

ByteText = str | bytes


@dataclass
class _Row:
    """A text that is being written."""

    number: int
    draw: Draw
    out: ByteOut
    prompt_bytes: int

    def reply(self, chooser: Chooser, speculation: Speculation | None = None) -> ByteReply:
        ended = self.out.finished or chooser.complete(self.draw)
        reason: FinishReason = "stop" if ended else "length"
        drafts = None if speculation is None else speculation.drafts
        return ByteReply(self.out.text, self.out.data, reason, self.prompt_bytes, drafts)


def generate(model: ByteModel, prompt: ByteText = "", **options: Any) -> ByteReply:
    """One reply to `prompt`. Options and errors as in `stream_generate`."""
    stream = stream_generate(model, prompt, **options)
    while True:
        try:
            next(stream)
        except StopIteration as end:
            return end.value


def stream_generate(
    model: ByteModel,
    prompt: ByteText = "",
    *,
    max_bytes: int = 256,
    sampling: Sampling = GREEDY,
    seed: int | None = None,
    stop: Sequence[ByteText] = (),
    logits_processors: Sequence[LogitsProcessor] = (),
    constraint: Constraint | None = None,
    cache: Cache | None = None,
    speculate: int = 0,
    switch: StopSwitch = NEVER,
) -> Generator[str, None, ByteReply]:
    """Pieces of text as they are made; the generator's return value is the `ByteReply`.

    Args:
        model: a `BltModel` or a `ByteLM` over bytes.
        prompt: text or bytes; empty for a text from its beginning.
        max_bytes: the most bytes to write; 0 only reads the prompt.
        sampling: how bytes are chosen; greedy unless told.
        seed: makes sampling repeatable.
        stop: strings that end the reply; they are not part of it.
        logits_processors: mlx-lm style functions `f(ids, logits) -> logits`.
        constraint: keeps the reply to a form, see `blt.constraints`.
        cache: of one row; the prompt goes behind what it holds, and afterwards it holds the reply
            too.
        speculate: bytes drafted at a time; 0 for none. Greedy only, and without a constraint.
        switch: ends the reply early, between two bytes.

    Raises:
        GenerationError: a prompt longer than the model's context, or options that do not fit.
        ConfigError: the constraint cannot be met in `max_bytes`, or the model's patching mode
            cannot go byte by byte.
    """
    chooser = Chooser(sampling, logits_processors, constraint)
    stops = _checked(model, max_bytes, stop)
    cache = _checked_cache(model, cache, stops, speculate)
    ids = _prompt_ids(model, prompt, int(cache.positions[0]), max_bytes)
    speculation = Speculation(speculate) if speculate else None
    if speculation is not None and not chooser.plain:
        raise GenerationError(
            "speculate works with greedy sampling only, without penalties, processors and "
            "constraint; leave one of them out"
        )
    row = _Row(0, chooser.row(max_bytes, seed, ids), ByteOut(stops), len(ids) - (ids[:1] == [BOS]))
    if len(ids) or cache.empty:
        _read(model, cache, ids)
    if max_bytes:
        with closing(_stream(model, cache, row, chooser, speculation)) as pieces:
            for piece in pieces:
                if piece:
                    yield piece
                if switch.requested:
                    break
    if rest := row.out.close():
        yield rest
    return row.reply(chooser, speculation)


def batch_generate(
    model: ByteModel,
    prompts: Sequence[ByteText],
    *,
    max_bytes: int = 256,
    sampling: Sampling = GREEDY,
    seed: int | Sequence[int] | None = None,
    stop: Sequence[ByteText] = (),
    logits_processors: Sequence[LogitsProcessor] = (),
    constraint: Constraint | None = None,
    max_rows: int = 16,
    switch: StopSwitch = NEVER,
) -> list[ByteReply]:
    """One reply to each prompt, in their order, `max_rows` at a time.

    Prompts of similar length share a batch, and a row leaves it when its reply ends. Whatever else
    is in the batch, a row is the reply that `generate` gives alone (with `seed=row_seed(seed, i)`
    when it samples), except where two bytes are likely to within rounding.

    Args:
        model: as in `stream_generate`, and so are the options that are not listed here.
        prompts: texts or bytes.
        seed: one for all rows, or one per row.
        max_rows: the most rows written together.
        switch: consulted before each batch.

    Raises:
        GenerationError: as in `stream_generate`; nothing is generated then.
        Stopped: the switch was thrown.
    """
    stops = _checked(model, max_bytes, stop)
    if max_rows < 1:
        raise GenerationError(f"max_rows={max_rows} makes no batch: give 1 or more")
    ids = [_prompt_ids(model, prompt, 0, max_bytes) for prompt in prompts]
    seeds = _row_seeds(seed, len(prompts))
    chooser = Chooser(sampling, logits_processors, constraint)
    rows = [
        _Row(i, chooser.row(max_bytes, seeds[i], ids[i]), ByteOut(stops), len(ids[i]) - 1)
        for i in range(len(prompts))
    ]
    # The less padding the better, and short prompts are not kept waiting by long ones.
    order = sorted(rows, key=lambda row: row.prompt_bytes)
    for at in range(0, len(order) if max_bytes else 0, max_rows):
        switch.check()
        _write(model, order[at : at + max_rows], ids, chooser)
    for row in rows:
        row.out.close()
    return [row.reply(chooser) for row in rows]


def row_seed(seed: int, row: int) -> int:
    """The seed with which `generate` writes what row `row` of `batch_generate` writes."""
    return derive_seed(seed, "row", row)


def _stream(
    model: ByteModel, cache: Cache, row: _Row, chooser: Chooser, speculation: Speculation | None
) -> Generator[str]:
    """The pieces of one row, one per byte. Afterwards the cache ends with the reply."""
    start = int(cache.positions[0])
    source = (
        _sampled(model, cache, row, chooser)
        if speculation is None
        else speculate_bytes(model, cache, speculation)
    )
    try:
        for value in source:
            chooser.chosen(row.draw, value)
            yield row.out.add(value)
            if row.out.finished or row.draw.budget <= 0:
                break
    finally:
        # The end, a stop, and what was drafted too far are in the cache, but not in the reply.
        cache.trim(int(cache.positions[0]) - start - len(row.out.data))


def _sampled(model: ByteModel, cache: Cache, row: _Row, chooser: Chooser) -> Iterator[int]:
    assert cache.logits is not None
    logits = cache.logits
    while True:
        # The choice is computed together with the next entropies: one wait per byte.
        logits = advance(model, cache, chooser(logits, [row.draw]))
        yield int(cache.ids[0])


def _write(
    model: ByteModel, rows: list[_Row], ids: Sequence[Sequence[int]], chooser: Chooser
) -> None:
    """Write the replies of a batch."""
    own = [ids[row.number] for row in rows]
    lengths = np.array([len(line) for line in own])
    padded = np.full((len(own), lengths.max()), BOS, dtype=np.int32)
    for line, values in zip(padded, own, strict=True):
        line[: len(values)] = values
    cache = make_cache(model, len(rows))
    logits = prefill(model, cache, padded, lengths)
    while rows:
        logits = advance(model, cache, chooser(logits, [row.draw for row in rows]))
        going = []
        for at, row in enumerate(rows):
            value = int(cache.ids[at])
            chooser.chosen(row.draw, value)
            row.out.add(value)
            if not row.out.finished and row.draw.budget > 0:
                going.append(at)
        if len(going) < len(rows):
            rows = [rows[at] for at in going]
            if rows:
                cache = cache.take(np.array(going))
                logits = logits[mx.array(going)]


def _read(model: ByteModel, cache: Cache, ids: Sequence[int]) -> None:
    """Put a prompt behind what the cache holds."""
    if cache.empty:
        prefill(model, cache, np.array([ids], dtype=np.int32))
    else:
        extend(model, cache, np.array([ids], dtype=np.int32))


def _prompt_ids(model: ByteModel, prompt: ByteText, held: int, max_bytes: int) -> list[int]:
    if not isinstance(prompt, (str, bytes, bytearray)):
        raise GenerationError(f"the prompt is {type(prompt).__name__}; give text or bytes")
    ids = encode_bytes(prompt if isinstance(prompt, str) else bytes(prompt), bos=held == 0)
    total, limit = held + len(ids) + max_bytes, model.config.context
    if total > limit:
        raise GenerationError(
            f"the prompt has {held + len(ids):,} bytes and {max_bytes:,} more were asked for, but "
            f"the model was trained on texts of {limit:,}: shorten the prompt or lower max_bytes"
        )
    return ids.tolist()


def _checked(model: ByteModel, max_bytes: int, stop: Sequence[ByteText]) -> tuple[bytes, ...]:
    if model.config.vocabulary < VOCABULARY or not isinstance(max_bytes, int) or max_bytes < 0:
        if model.config.vocabulary < VOCABULARY:
            raise GenerationError(
                f"the model has {model.config.vocabulary} ids; bytes take {VOCABULARY}"
            )
        raise GenerationError(f"max_bytes={max_bytes!r}: give a whole number, 0 or more")
    return stop_bytes(stop)


def _checked_cache(
    model: ByteModel, cache: Cache | None, stops: Sequence[bytes], speculate: int
) -> Cache:
    if not isinstance(speculate, int) or speculate < 0:
        raise GenerationError(f"speculate={speculate!r}: give a number of bytes, 0 for none")
    needed = max(speculate, 0) + max((len(stop) for stop in stops), default=0) + 1
    if cache is None:
        return make_cache(model, margin=max(MARGIN, needed))
    if cache.rows != 1:
        raise GenerationError(f"the cache has {cache.rows} rows; use one of a single row")
    if cache.margin < needed:
        raise GenerationError(
            f"the cache can take back {cache.margin} bytes and {needed} may be needed for the "
            f"longest stop and a draft; make it with margin={needed}"
        )
    return cache


def _row_seeds(seed: int | Sequence[int] | None, rows: int) -> list[int | None]:
    if seed is None:
        return [None] * rows
    if isinstance(seed, int):
        return [row_seed(seed, row) for row in range(rows)]
    if len(seed) != rows:
        raise GenerationError(f"{len(seed)} seeds for {rows} prompts; give one for each, or one")
    return list(seed)
