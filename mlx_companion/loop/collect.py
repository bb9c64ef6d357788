"""Step 1, collect: which prompts this round learns from and which ones test it.

The person's own prompts (chat and imports) come first. A quarter of them, chosen by the
hash of the text and so for good, only ever tests; the rest only ever trains. While there
are few of them, the packaged prompts are used as well.

What the person wrote or approved (an edit, a thumb up) becomes a training row as it is.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import zip_longest
from typing import Any

from mlx_companion.loop.config import CollectConfig
from mlx_companion.loop.context import RoundContext
from mlx_companion.loop.judges import normalized
from mlx_companion.loop.packaged import load_prompts
from mlx_companion.loop.templates import prompt_room
from mlx_companion.models import SentenceEncoder
from mlx_companion.store import FeedbackState, Interaction, Store

__all__ = ["RoundPrompt", "collect", "gate_sha256", "is_gate_prompt", "topics_of"]


@dataclass(frozen=True)
class RoundPrompt:
    """A prompt of a round.

    Args:
        id: unique in the round.
        topic: the group it is counted and resampled in.
        prompt: the text.
    """

    id: str
    topic: str
    prompt: str


def collect(ctx: RoundContext) -> dict[str, Any]:
    """Choose the round's prompts; the payload holds them."""
    config = ctx.config.collect
    told = list(_usable(ctx, _told(ctx.store)))
    own = _own_prompts(ctx.encoder, [interaction.prompt for interaction, _ in told], config)
    testing = {p.id for p in own if is_gate_prompt(p.prompt, config.gate_percent)}
    own_train = [p for p in own if p.id not in testing]
    own_gate = [p for p in own if p.id in testing and normalized(p.prompt) not in _splits()]
    packaged = len(own) < config.least_prompts
    if packaged:
        asked = {normalized(p.prompt) for p in own_train}
        own_train += [p for p in _packaged("train") if normalized(p.prompt) not in asked]
    block = len(own_gate) - len(own_gate) % config.gate_block
    gate = [*own_gate[:block][-config.gate_items :], *_packaged("gate")][: config.gate_items]
    train = own_train[: config.max_prompts]
    if packaged:
        ctx.progress.note(
            f"The store holds {len(own)} prompts of your own (fewer than {config.least_prompts}), "
            "so the packaged prompts are used as well."
        )
    return {
        "train": [asdict(prompt) for prompt in train],
        "gate": [asdict(prompt) for prompt in gate],
        "gate_sha256": gate_sha256(gate),
        "packaged": packaged,
        "own_prompts": len(own),
        "feedback": _feedback_rows(told, config),
        "disliked": _disliked(told),
        "summary": f"{len(train)} prompts to learn from, {len(gate)} to be tested on",
    }


def is_gate_prompt(prompt: str, percent: int) -> bool:
    """Whether a prompt of the person's own belongs to the gate, for good and by its words.

    One that is packaged too stays on the side where it is packaged.
    """
    words = normalized(prompt)
    if words in _splits():
        return _splits()[words] == "gate"
    digest = hashlib.sha256(words.encode("utf-8")).digest()
    return int.from_bytes(digest[:4], "big") % 100 < percent


def gate_sha256(prompts: Iterable[RoundPrompt]) -> str:
    """Names a gate set: the hash of its prompts, whatever their order."""
    texts = sorted(prompt.prompt for prompt in prompts)
    return hashlib.sha256(json.dumps(texts).encode("ascii")).hexdigest()


def topics_of(encoder: SentenceEncoder, prompts: Sequence[str]) -> list[str]:
    """The packaged topic whose mean prompt vector is nearest to each prompt."""
    if not prompts:
        return []
    known = load_prompts("train")
    vectors = encoder.encode([prompt.prompt for prompt in known])
    topics = list(dict.fromkeys(prompt.topic for prompt in known))
    centers = [
        sum(v for v, prompt in zip(vectors, known, strict=True) if prompt.topic == topic)
        for topic in topics
    ]
    return [
        topics[max(range(len(topics)), key=lambda k: float(vector @ centers[k]))]
        for vector in encoder.encode(list(prompts))
    ]


@cache
def _splits() -> dict[str, str]:
    """The side of every packaged prompt, by its words."""
    return {normalized(row.prompt): row.split for row in load_prompts()}


def _told(store: Store) -> Iterator[tuple[Interaction, FeedbackState]]:
    """Every exchange, oldest first, with what the person thought of it."""
    states = store.feedback.states()
    for interaction in store.interactions.iter():
        yield interaction, states.get(interaction.id, FeedbackState())


def _usable(
    ctx: RoundContext, told: Iterable[tuple[Interaction, FeedbackState]]
) -> Iterator[tuple[Interaction, FeedbackState]]:
    """Exchanges whose prompt says something and can be read by the model in every wording."""
    lm, most = ctx.companion.lm, ctx.config.collect.max_prompt_chars
    # Some tokens to spare: borders between tokens fall otherwise inside a template.
    room = prompt_room(lm, ctx.companion.profile, ctx.config.serve.max_tokens) - 8
    for interaction, state in told:
        prompt = interaction.prompt
        if prompt.strip() and len(prompt) <= most and len(lm.tokenizer.encode(prompt)) <= room:
            yield interaction, state


def _own_prompts(
    encoder: SentenceEncoder, prompts: Sequence[str], config: CollectConfig
) -> list[RoundPrompt]:
    """Distinct prompts, the newest `max_prompts` of those that train; oldest first."""
    # The first wording stays, so that asking again changes no gate set.
    first: dict[str, str] = {}
    for prompt in prompts:
        first.setdefault(normalized(prompt), prompt)
    gate = {prompt for prompt in first.values() if is_gate_prompt(prompt, config.gate_percent)}
    train = set([prompt for prompt in first.values() if prompt not in gate][-config.max_prompts :])
    kept = [prompt for prompt in first.values() if prompt in gate or prompt in train]
    return [
        RoundPrompt(hashlib.sha256(prompt.encode()).hexdigest()[:16], topic, prompt)
        for prompt, topic in zip(kept, topics_of(encoder, kept), strict=True)
    ]


def _packaged(split: Any) -> list[RoundPrompt]:
    """The packaged prompts of a split, topic by topic in turn, so that any cut holds all."""
    by_topic: dict[str, list[RoundPrompt]] = defaultdict(list)
    for row in load_prompts(split):
        by_topic[row.topic].append(RoundPrompt(row.id, row.topic, row.prompt))
    return [prompt for turn in zip_longest(*by_topic.values()) for prompt in turn if prompt]


def _feedback_rows(
    told: Iterable[tuple[Interaction, FeedbackState]], config: CollectConfig
) -> list[dict[str, str]]:
    """Replies that the person wrote or approved, to prompts that may train."""
    rows = []
    for interaction, state in told:
        approved = state.edited or (interaction.response if state.rating == "up" else "")
        if approved.strip() and not is_gate_prompt(interaction.prompt, config.gate_percent):
            rows.append({"prompt": interaction.prompt, "response": approved})
    return rows


def _disliked(told: Iterable[tuple[Interaction, FeedbackState]]) -> list[list[str]]:
    return [
        [interaction.prompt, interaction.response]
        for interaction, state in told
        if state.rating == "down" or state.edited
    ]
