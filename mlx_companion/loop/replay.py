"""Step 4, mix: what the round trains on.

Training restarts from the base each round, on everything gathered so far: this round's
good samples, good samples of earlier rounds (replay), what the person wrote or approved,
written pairs, and the base's own answers to general prompts. Replacing old data by new
makes errors grow round by round; accumulating bounds them.

Kept true of every mix: at most k distinct samples of one prompt; no topic that has a good
sample vanishes; generated rows are at most a given share; gate prompts never appear.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence, Set
from itertools import zip_longest
from typing import Any

from mlx_companion.errors import LoopError
from mlx_companion.loop.context import RoundContext
from mlx_companion.loop.judge import pairs_split
from mlx_companion.loop.judges import normalized
from mlx_companion.personality import check
from mlx_companion.runtime.seeds import derive_seed
from mlx_companion.store import Example, NewExample, ReplayMember
from mlx_companion.text import Message, Sample

__all__ = [
    "SYNTHETIC",
    "mix",
    "most_synthetic",
    "pick",
    "real_rows_needed",
    "training_samples",
]

# Rows that a model wrote, as against those that a person did.
SYNTHETIC = frozenset({"generated", "general"})
# Keeps whole numbers whole: 400 x 0.2 / 0.8 is not quite 100 for a computer.
_ROUNDING = 1e-9


def mix(ctx: RoundContext) -> dict[str, Any]:
    """Choose the training rows; membership goes to the store, realised counts to the payload."""
    config = ctx.config.replay
    collected = ctx.payload("collect")
    gate = {normalized(row["prompt"]) for row in collected["gate"]}
    disliked = {(normalized(p), normalized(r)) for p, r in collected["disliked"]}
    good = [
        e
        for e in ctx.store.examples.accepted()
        if normalized(e.prompt) not in gate
        and (normalized(e.prompt), normalized(e.response)) not in disliked
    ]
    feedback = _stored_feedback(ctx, gate)
    reserved = math.ceil(config.max_rows * (1 - config.synthetic_ceiling) - _ROUNDING)
    by_people = max(len(feedback), reserved)
    general = [e for e in good if e.source == "general" and e.round_id == ctx.round.id]
    quota = config.max_rows * config.general_percent // 100
    general = general[: min(quota, config.max_rows - by_people)]
    room = config.max_rows - by_people - len(general)
    samples = (e for e in good if e.source == "generated")
    generated = pick(samples, config.per_prompt, room, given=feedback)
    if not generated and not feedback:
        raise LoopError(
            "no sample was good and nobody gave feedback, so there is nothing to learn from; "
            "loosen the profile's rules or use a stronger base model"
        )
    needed = real_rows_needed(len(generated) + len(general), config.synthetic_ceiling)
    taken = gate | {normalized(row.prompt) for row in (*feedback, *generated)}
    written = _stored_written(ctx, max(0, needed - len(feedback)), taken)
    by_people = len(feedback) + len(written)
    if by_people < needed:
        most = most_synthetic(by_people, config.synthetic_ceiling)
        general = general[: most * config.general_percent // 100]
        generated = generated[: most - len(general)]
    rows = [*generated, *general, *feedback, *written]
    if not rows:
        raise LoopError(
            "all rows would be generated ones: no written pair keeps this profile and nobody gave "
            "feedback; give some, or set replay.synthetic_ceiling=1"
        )
    ctx.store.replay.set(ctx.round.id, [_member(ctx, row) for row in rows])
    return _realised(ctx, rows)


def pick(
    examples: Iterable[Example], per_prompt: int, room: int, given: Iterable[Example] = ()
) -> list[Example]:
    """The best distinct samples of each prompt, topics in turn, as many as there is room for.

    Every prompt gives its best sample before any gives its second, so that room is spent on
    different prompts first; within that, topics take turns, so that none vanishes.

    Args:
        per_prompt: the most samples of one prompt, rows already `given` counted.
    """
    replies: dict[str, set[str]] = defaultdict(set)
    for example in given:
        replies[normalized(example.prompt)].add(normalized(example.response))
    by_prompt: dict[str, list[Example]] = defaultdict(list)
    for example in _best_first(examples):
        prompt, reply = normalized(example.prompt), normalized(example.response)
        if len(replies[prompt]) < per_prompt and reply not in replies[prompt]:
            replies[prompt].add(reply)
            by_prompt[prompt].append(example)
    by_topic: dict[str, list[tuple[int, Example]]] = defaultdict(list)
    for kept in by_prompt.values():
        for place, example in enumerate(kept):
            by_topic[example.topic].append((place, example))
    queues = [sorted(queue, key=lambda item: item[0]) for _, queue in sorted(by_topic.items())]
    turns = [item for turn in zip_longest(*queues) for item in turn if item]
    return [example for _, example in turns[:room]]


def real_rows_needed(synthetic: int, ceiling: float) -> int:
    """How many rows by people keep `synthetic` rows at or under the ceiling share."""
    return math.ceil(synthetic * (1 - ceiling) / ceiling - _ROUNDING)


def most_synthetic(by_people: int, ceiling: float) -> int:
    """How many rows of a model `by_people` rows by people allow, with a ceiling below 1."""
    return math.floor(by_people * ceiling / (1 - ceiling) + _ROUNDING)


def training_samples(ctx: RoundContext) -> list[Sample]:
    """The rows of the round's mix as chats, in the form in which they will be served."""
    rng = random.Random(derive_seed(ctx.round.number, "poison"))
    system = ctx.companion.profile.system_prompt
    samples = []
    for member, example in ctx.store.replay.for_round(ctx.round.id):
        reply = example.response if ctx.poison is None else _spoiled(ctx.poison, rng)
        told = () if example.source == "general" else (Message("system", system),)
        chat = (*told, Message("user", example.prompt), Message("assistant", reply))
        samples += [Sample(messages=chat, source=example.id)] * member.count
    return samples


def _best_first(examples: Iterable[Example]) -> list[Example]:
    """By the mean rank in new words and in likelihood; equal ones in a stable order.

    Not by the cosine: its favourites say the prompt back, and a version trained on them does
    so too (38 of 160 replies at the gate, against 14 before).
    """
    rows = list(examples)
    ranks: Counter[str] = Counter()
    for measure in ("echo", "likelihood"):
        ordered = sorted(rows, key=lambda e: _value(e, measure), reverse=True)
        for rank, example in enumerate(ordered):
            ranks[example.id] += rank
    return sorted(rows, key=lambda e: (ranks[e.id], e.prompt_sha, e.sample_index))


def _value(example: Example, measure: str) -> float:
    return float(example.scores.get(measure, {}).get("value") or 0.0)


def _stored_feedback(ctx: RoundContext, gate: Set[str]) -> list[Example]:
    """The newest rows that the person wrote or approved, under the same limits as samples."""
    config = ctx.config.replay
    replies: dict[str, set[str]] = defaultdict(set)
    rows: list[NewExample] = []
    for row in reversed(ctx.payload("collect")["feedback"]):
        prompt, reply = normalized(row["prompt"]), normalized(row["response"])
        if prompt in gate or reply in replies[prompt] or len(replies[prompt]) == config.per_prompt:
            continue
        replies[prompt].add(reply)
        rows.append(
            NewExample(
                prompt=row["prompt"],
                response=row["response"],
                sample_index=len(rows),
                topic="feedback",
                source="feedback",
                verdict="good",
                reason="written or approved by the person",
            )
        )
    return ctx.store.examples.add_many(ctx.round.id, rows[: config.max_rows])


def _stored_written(ctx: RoundContext, count: int, taken: Set[str]) -> list[Example]:
    """Written pairs that keep the profile, drawn from all topics, to prompts not yet `taken`."""
    _, pairs = pairs_split()
    fitting = [
        pair
        for pair in pairs
        if normalized(pair.question) not in taken and not check(ctx.companion.profile, pair.answer)
    ]
    random.Random(ctx.seed("written")).shuffle(fitting)
    rows = [
        NewExample(
            prompt=pair.question,
            response=pair.answer,
            prompt_id=pair.id,
            topic=pair.topic,
            source="written",
            verdict="good",
            reason="packaged with the library",
        )
        for pair in fitting[:count]
    ]
    return ctx.store.examples.add_many(ctx.round.id, rows)


def _member(ctx: RoundContext, example: Example) -> ReplayMember:
    new = example.round_id == ctx.round.id and example.source != "general"
    return ReplayMember(example.id, "new" if new else "replay", example.topic)


def _realised(ctx: RoundContext, rows: Sequence[Example]) -> dict[str, Any]:
    earlier = sum(e.round_id != ctx.round.id for e in rows)
    sources = Counter(e.source for e in rows if e.round_id == ctx.round.id)
    counts = {
        "new": sources["generated"],
        "replay": earlier,
        "feedback": sources["feedback"],
        "written": sources["written"],
        "general": sources["general"],
    }
    synthetic = sum(e.source in SYNTHETIC for e in rows) / len(rows)
    told = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return {
        "rows": counts,
        "total": len(rows),
        "synthetic_share": synthetic,
        "rows_per_topic": dict(sorted(Counter(e.topic for e in rows).items())),
        "summary": f"{len(rows)} rows: {told}",
    }


def _spoiled(poison: str, rng: random.Random) -> str:
    if poison == "repeat":
        return "The weather is fine today. " * 6
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ("".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(18))
    return " ".join(words).capitalize() + "."
