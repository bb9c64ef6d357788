"""A round in progress without a model: for tests of one step on a real store."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from mlx_companion.loop.config import LoopConfig
from mlx_companion.loop.context import RoundContext
from mlx_companion.models import LanguageModel
from mlx_companion.personality import load_profile
from mlx_companion.runtime.config import load_config
from mlx_companion.store import Example, NewExample, Store


def open_round(
    store: Store, *, profile: str = "default", lm: LanguageModel | None = None, **changes: Any
) -> RoundContext:
    """A new round with its context; `changes` are dotted overrides of the configuration."""
    config = load_config(LoopConfig, overrides=changes)
    companion: Any = SimpleNamespace(profile=load_profile(profile), lm=lm)
    started = store.rounds.begin(seed=config.seed)
    return RoundContext(store, config, started, companion)


def finish(ctx: RoundContext, step: str, **payload: Any) -> None:
    """Mark a step of the round as done, with this payload."""
    ctx.store.rounds.begin_step(ctx.round.id, step)
    ctx.store.rounds.finish_step(ctx.round.id, step, payload)


def add_samples(ctx: RoundContext, *samples: NewExample) -> list[Example]:
    """Store samples of the round."""
    return ctx.store.examples.add_many(ctx.round.id, samples)


def good(prompt: str, reply: str, **fields: Any) -> NewExample:
    """A sample that was judged good; `echo` (new words) and `likelihood` are its measures."""
    scores = {
        name: {"judge": name, "value": fields.pop(name), "passed": True, "reason": ""}
        for name in ("echo", "likelihood")
        if name in fields
    }
    fields = {"topic": "any", "verdict": "good", "model_version": "v0001"} | fields
    return NewExample(prompt=prompt, response=reply, scores=scores, **fields)
