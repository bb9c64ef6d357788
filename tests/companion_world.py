"""A companion of stand-ins: a model that answers as told, and modules of a few lines each."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from types import SimpleNamespace
from typing import Any

from slm_stand_ins import PATIENT

from mlx_companion.loop.companion import Companion
from mlx_companion.loop.config import ServeConfig
from mlx_companion.models.generation import Reply
from mlx_companion.personality import Profile, load_profile
from mlx_companion.runtime.config import load_config
from mlx_companion.runtime.stop import NEVER, StopSwitch
from mlx_companion.slm.config import SLMConfig
from mlx_companion.slm.factory import SLMFactory
from mlx_companion.slm.module import SLMModule
from mlx_companion.slm.results import (
    ContextResult,
    ContextUpdate,
    DriftResult,
    GuardResult,
    ResearchResult,
)
from mlx_companion.store import Store


class Scripted:
    """Stands in for `ServedModel`; remembers what it was asked.

    Args:
        answer: the reply to a prompt and a system text.
    """

    version_id = "v0001"

    def __init__(
        self,
        answer: Callable[[str, str], str] = lambda prompt, system: f"You said: {prompt}.",
        profile: Profile | None = None,
    ) -> None:
        self.answer = answer
        self.profile = profile or load_profile()
        self.serve = ServeConfig()
        self.lm = SimpleNamespace(tokenizer=SimpleNamespace(encode=lambda text: text.split()))
        self.asked: list[SimpleNamespace] = []

    def stream(
        self,
        prompt: str,
        history: Sequence[tuple[str, str]] = (),
        *,
        seed: int | None = None,
        switch: StopSwitch = NEVER,
        system: str | None = None,
    ) -> Generator[str, None, Reply]:
        self.asked.append(
            SimpleNamespace(prompt=prompt, history=list(history), seed=seed, system=system)
        )  # fmt: skip
        text = self.answer(prompt, system or "")
        yield text
        return self._reply(text)

    def reply_all(self, chats: Sequence[str], **_: Any) -> list[Reply]:
        return [self._reply(self.answer(prompt, "")) for prompt in chats]

    def _reply(self, text: str) -> Reply:
        return Reply(text, tuple(range(len(text.split()))), "stop", 3)


class Module(SLMModule[Any]):
    """A module that answers with a function, and perhaps with another when that fails."""

    def __init__(
        self, name: str, work: Callable[[Any], Any], rules: Callable[[Any], Any] | None = None
    ) -> None:
        self.name, self.work, self.rules = name, work, rules  # type: ignore[misc]

    def process_batch(self, items: Sequence[Any]) -> list[Any]:
        return [self.work(item) for item in items]

    def fallback(self, item: Any) -> Any:
        return None if self.rules is None else self.rules(item)


def classify(text: str) -> ResearchResult:
    today = "today" in text
    return ResearchResult(today, 0.9, "says today" if today else "", "weather" if today else "chat")


def guard(item: Any) -> GuardResult:
    mended = item["text"].replace("!", ".")
    found = ["exclamation_overuse"] if mended != item["text"] else []
    return GuardResult(item["text"], found, mended, [{"how": "rule"}] * len(found), 1.0)


def track(item: Any) -> ContextResult:
    text = item["text"]
    updates = []
    if "call me " in text:
        name = text.partition("call me ")[2].split()[0]
        updates.append(ContextUpdate("person.name", name, text, (0, len(text)), 0.95))
    if "emoji" in text:
        updates.append(ContextUpdate("preference.emoji", False, text, (0, len(text)), 0.95))
    return ContextResult([], {}, {"time": None, "topic": None, "mood": None}, 0.5, 0.0, updates)


def drift(item: Any) -> DriftResult:
    return DriftResult(False, None, 0.0, [], "", False)


WORK: dict[str, Callable[[Any], Any]] = {
    "research_classifier": classify,
    "personality_guard": guard,
    "context_tracker": track,
    "drift_monitor": drift,
}


def companion(
    store: Store,
    served: Any = None,
    *,
    work: dict[str, Callable[[Any], Any]] | None = None,
    rules: dict[str, Callable[[Any], Any]] | None = None,
    slm: dict[str, Any] | None = None,
    **options: Any,
) -> Companion:
    """A companion of stand-ins; `work` and `rules` replace what modules and fallbacks do."""
    config = load_config(SLMConfig, overrides={**PATIENT, **(slm or {})})
    factory = SLMFactory(config)
    for name, usual in WORK.items():
        doing, instead = (work or {}).get(name, usual), (rules or {}).get(name)
        factory.register_module(name, Module(name, doing, instead))
    made = served or Scripted()
    return Companion(made, store, slm=config, factory=factory, **options)
