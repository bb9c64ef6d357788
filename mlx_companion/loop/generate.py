"""Step 2, generate: several samples for each training prompt, from the active version.

Samples of one prompt differ by template (see `templates.py`). The template only helps to
get a good sample; the sample is trained as the answer to the plain prompt under the served
system prompt, so that what needed a reminder becomes a habit.

Each batch is stored when it is done; a killed step goes on with the first missing batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from mlx_companion.loop.collect import RoundPrompt
from mlx_companion.loop.context import RoundContext
from mlx_companion.loop.judges import similarity
from mlx_companion.loop.judges.style import normalized
from mlx_companion.loop.packaged import GeneralPrompt, general_prompts
from mlx_companion.loop.templates import Template, templates
from mlx_companion.models import Reply
from mlx_companion.store import Example, NewExample

__all__ = ["Template", "general_split", "generate", "templates"]


def general_split() -> tuple[list[GeneralPrompt], list[GeneralPrompt]]:
    """General prompts to replay, and others on which divergence from the base is measured."""
    prompts = general_prompts()
    return list(prompts[0::2]), list(prompts[1::2])


def generate(ctx: RoundContext) -> dict[str, Any]:
    """Sample the active version; samples go to the store, counts to the payload."""
    prompts = [RoundPrompt(**row) for row in ctx.payload("collect")["train"]]
    ctx.companion.use(ctx.base_version)
    _generate_general(ctx)
    samples = ctx.config.generate.samples_per_prompt
    total, done = len(prompts) * samples, 0
    for index in range(samples):
        stored = {e.prompt_id for e in _generated(ctx) if e.sample_index == index}
        rows = ctx.config.generate.max_rows
        for start in range(0, len(prompts), rows):
            chunk = prompts[start : start + rows]
            if not stored.issuperset(prompt.id for prompt in chunk):
                _generate_chunk(ctx, chunk, index, start)
            done += len(chunk)
            ctx.progress.advance("generate", done, total, "samples")
            ctx.switch.check()
    made = _generated(ctx)
    return {
        "generated": len(made),
        "diversity": diversity(ctx, made),
        "summary": f"{len(made)} samples for {len(prompts)} prompts",
    }


def _generated(ctx: RoundContext) -> list[Example]:
    examples = ctx.store.examples.for_round(ctx.round.id, purpose="train")
    return [example for example in examples if example.source == "generated"]


def _generate_chunk(
    ctx: RoundContext, chunk: Sequence[RoundPrompt], index: int, start: int
) -> None:
    known = templates(ctx.companion.profile)
    template = known[index % len(known)]
    config = ctx.config.generate
    replies = ctx.companion.reply_all(
        [template.messages(ctx.companion.profile, prompt.prompt) for prompt in chunk],
        seed=ctx.seed("generate", index, start),
        sampling=ctx.companion.sampling(temperature=config.temperature, top_k=config.top_k),
        max_rows=config.max_rows,
        monitor=ctx.monitor,
        switch=ctx.switch,
    )
    ctx.store.examples.add_many(
        ctx.round.id,
        [
            _example(prompt, reply, ctx, template=template.name, sample_index=index)
            for prompt, reply in zip(chunk, replies, strict=True)
        ],
    )


def _example(prompt: RoundPrompt, reply: Reply, ctx: RoundContext, **fields: Any) -> NewExample:
    return NewExample(
        prompt=prompt.prompt,
        # A model may answer with nothing; a space keeps the row, which the judges refuse.
        response=reply.text or " ",
        prompt_id=prompt.id,
        topic=prompt.topic,
        model_version=ctx.base_version.id,
        sampling={"finish_reason": reply.finish_reason, "tokens": len(reply.tokens)},
        **fields,
    )


def _generate_general(ctx: RoundContext) -> None:
    """The base's own answers to general prompts, without the profile: replayed so that the
    new version keeps them."""
    examples = ctx.store.examples.for_round(ctx.round.id, purpose="train")
    if any(example.source == "general" for example in examples):
        return
    replayed, _ = general_split()
    with ctx.companion.as_base():
        replies = ctx.companion.reply_all(
            [[{"role": "user", "content": prompt.prompt}] for prompt in replayed],
            seed=ctx.seed("general"),
            monitor=ctx.monitor,
            switch=ctx.switch,
        )
    rows = [RoundPrompt(prompt.id, prompt.kind, prompt.prompt) for prompt in replayed]
    ctx.store.examples.add_many(
        ctx.round.id,
        [
            _example(row, reply, ctx, source="general", template="plain")
            for row, reply in zip(rows, replies, strict=True)
        ],
    )


def diversity(ctx: RoundContext, examples: Sequence[Example]) -> dict[str, float]:
    """How varied the samples are.

    Returns:
        distinct_1, distinct_2: distinct words and word pairs per word (higher is more
        varied); unique_share: share of different texts; mean_similarity: mean cosine of
        consecutive samples of one prompt (lower is more varied).

    Reference: distinct-n of Li et al. 2016, "A Diversity-Promoting Objective Function".
    """
    texts = [normalized(example.response) for example in examples]
    words = [text.split() for text in texts]
    pairs = {pair for row in words for pair in pairwise(row)}
    count = max(1, sum(map(len, words)))
    by_prompt: dict[str | None, list[str]] = {}
    for example in examples:
        by_prompt.setdefault(example.prompt_id, []).append(example.response)
    left = [a for row in by_prompt.values() for a in row[:-1]]
    right = [b for row in by_prompt.values() for b in row[1:]]
    likeness = similarity(ctx.encoder, left, right)
    return {
        "distinct_1": len({word for row in words for word in row}) / count,
        "distinct_2": len(pairs) / count,
        "unique_share": len(set(texts)) / max(1, len(texts)),
        "mean_similarity": float(likeness.mean()) if len(likeness) else 0.0,
    }
