"""Measures of what a new version must not lose: general fluency, and the base's own ways."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import mlx.core as mx

from mlx_companion.loop.context import RoundContext
from mlx_companion.loop.generate import general_split
from mlx_companion.loop.packaged import general_text
from mlx_companion.models.prompts import render
from mlx_companion.models.sampling import GREEDY
from mlx_companion.models.scoring import Row, perplexity, scored_logits

__all__ = ["divergence", "general_perplexity"]

_ROWS_AT_ONCE = 4


def general_perplexity(ctx: RoundContext) -> float:
    """Perplexity per token of the frozen general text under the companion as it is now."""
    text = general_text()[: ctx.config.gate.general_chars]
    return perplexity(ctx.companion.lm, text, switch=ctx.switch)


def divergence(ctx: RoundContext) -> float:
    """Mean KL divergence (nats per token) from the base on the base's own answers.

    The answers are to general prompts that are never trained on. At each of their tokens
    the base's distribution p is compared with the companion's q: sum p (log p - log q).
    """
    rows = _base_answers(ctx)
    total, count = 0.0, 0
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        ctx.switch.check()
        batch = rows[start : start + _ROWS_AT_ONCE]
        with ctx.companion.as_base() as base:
            reference = _log_softmax(scored_logits(base, batch))
        candidate = _log_softmax(scored_logits(ctx.companion.lm, batch))
        each = (mx.exp(reference) * (reference - candidate)).sum(axis=-1)
        total += float(each.sum())
        count += each.size
    return total / max(1, count)


def _base_answers(ctx: RoundContext) -> list[Row]:
    """The base's greedy answers; made once for a base and kept in the store."""
    _, prompts = general_split()
    lm, serve = ctx.companion.lm, ctx.config.serve
    named = f"{lm.base_sha256}|{serve.max_tokens}|{prompts!r}"
    key = f"base-answers/{hashlib.sha256(named.encode()).hexdigest()[:16]}"
    answers: Sequence[Sequence[int]] | None = ctx.store.settings.get(key)
    chats = [[{"role": "user", "content": prompt.prompt}] for prompt in prompts]
    if answers is None:
        with ctx.companion.as_base():
            replies = ctx.companion.reply_all(
                chats, seed=0, sampling=GREEDY, monitor=ctx.monitor, switch=ctx.switch
            )
        answers = [list(reply.tokens) for reply in replies]
        ctx.store.settings.set(key, answers)
    contexts = [render(lm, chat) for chat in chats]
    return [
        Row([*context, *answer], len(context))
        for context, answer in zip(contexts, answers, strict=True)
        if answer
    ]


def _log_softmax(logits: mx.array) -> mx.array:
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)
