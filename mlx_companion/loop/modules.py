"""The four small modules as a conversation uses them: asked through the orchestrator, remembered.

Why a class of its own: the companion decides what happens in which order; this decides what each
module is given, what of its work is stored, and what becomes of its state. Modules come from the
registry's active versions. Nothing here raises on account of a module: outcomes that are not
whole end up in the step of the trace.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mlx_companion.errors import CompanionError
from mlx_companion.loop.rewriting import Ask, ToneStep
from mlx_companion.loop.trace import TraceStep, short
from mlx_companion.loop.watch import Watcher
from mlx_companion.models import LanguageModel
from mlx_companion.personality import Profile
from mlx_companion.runtime.logs import get_logger
from mlx_companion.slm.backbone import forget_texts
from mlx_companion.slm.config import SLMConfig
from mlx_companion.slm.factory import SLMFactory
from mlx_companion.slm.module import SLMModule
from mlx_companion.slm.orchestrator import SLMOrchestrator
from mlx_companion.slm.outcomes import ModuleOutcome, RunReport
from mlx_companion.slm.registry import SLMRegistry
from mlx_companion.slm.results import ContextResult, DriftResult, GuardResult, ResearchResult
from mlx_companion.store import Store, marks

__all__ = ["Modules"]

_log = get_logger(__name__)

RESEARCH, GUARD, TRACKER, DRIFT = (
    "research_classifier",
    "personality_guard",
    "context_tracker",
    "drift_monitor",
)


@runtime_checkable
class _Remembers(Protocol):
    """A tracker that counts over many messages."""

    def learned_state(self) -> dict[str, Any]:
        """What it counted, JSON values."""


@runtime_checkable
class _Shares(Protocol):
    """A tracker whose counts are added to those of others."""

    def share_learned(self, state: Mapping[str, Any] | None) -> dict[str, Any]:
        """The state to keep in the place of what is there."""

    def learned_kept(self) -> None:
        """It has been kept."""


class Modules:
    """The modules around one conversation.

    Args:
        store: states, traffic and versions of the modules.
        profile: that the guard keeps.
        config: of the modules.
        factory: of modules of one's own; what it builds is used as it is.
        served: the model that answers; modules that read the same one share its weights.
    """

    def __init__(
        self,
        store: Store,
        profile: Profile,
        config: SLMConfig | None = None,
        factory: SLMFactory | None = None,
        served: LanguageModel | None = None,
    ) -> None:
        self.store = store
        self._marks = marks(store)
        self.registry = SLMRegistry(store)
        self.factory = factory or self._factory(profile, config, served)
        self.orchestrator = SLMOrchestrator(config, self.factory)
        guard = self.orchestrator.config.modules.personality_guard
        self._tone = ToneStep(guard, self.orchestrator.scheduler, served)
        self._traffic: list[tuple[ModuleOutcome, Any]] = []

    async def listen(
        self, text: str, facts: Mapping[str, Any], conversation: str, step: TraceStep
    ) -> tuple[ResearchResult | None, ContextResult | None]:
        """What the classifier and the tracker read from a message; None of one that failed."""
        self._traffic.clear()
        now = dt.datetime.now().astimezone().isoformat(timespec="seconds")
        message = {"text": text, "now": now, "known": dict(facts), "conversation": conversation}
        report = await self._run({RESEARCH: text, TRACKER: message}, step)
        research, context = report.result(RESEARCH), report.result(TRACKER)
        told = []
        if research is not None:
            need = "needs research" if research.needs_research else "needs no research"
            told.append(f"{need} ({research.category}, {research.confidence:.2f})")
        if context is not None:
            found = (one.get("term") for one in context.slang_detected if isinstance(one, Mapping))
            if terms := dict.fromkeys(str(term) for term in found if term):
                told.append(f"slang: {', '.join(terms)}")
            told.append(f"{len(context.updates)} things to learn")
        step.made = short("; ".join(told))
        return research, context

    async def guard(self, item: Mapping[str, Any], step: TraceStep) -> GuardResult | None:
        """What the guard, or its rules, made of a reply; None when not even those answered."""
        report = await self._run({GUARD: item}, step)
        result: GuardResult | None = report.result(GUARD)
        if result is not None:
            step.made = short(", ".join(result.violations_detected) or "nothing to mend")
            step.details |= {"changes": len(result.changes_made)}
        return result

    async def rewrite(
        self, item: Mapping[str, Any], found: GuardResult | None, ask: Ask, step: TraceStep
    ) -> str | None:
        """The reply with sentences of the wrong tone said again by a model; None: it stays."""
        guard = self.factory.loaded_module(GUARD)
        why_not = self._tone.refusal(guard, found)
        if why_not is not None or guard is None or found is None:
            step.skipped(why_not or "the guard is not loaded")
            return None
        mended = found.rewritten_response
        return await self._tone.run(guard, item, mended, self._own_voice() or ask, step)

    def _own_voice(self) -> Ask | None:
        """The guard's own adapter as what rewrites, where it has one."""
        adapted = self.factory.adapted_backbone(GUARD)
        if adapted is None:
            return None
        return lambda messages, most, seconds: adapted.generate(messages, most)

    async def watch(self, response: str, user: str, step: TraceStep) -> None:
        """Let the drift monitor see a reply, and store where it stands."""
        # The last two are for those that judge one exchange by itself: rules, and shadow runs.
        item = {"response": response, "user": user, "responses": [response], "messages": [user]}
        result: DriftResult | None = (await self._run({DRIFT: item}, step)).result(DRIFT)
        if result is None:
            return
        step.made = result.drift_type or "no drift"
        step.details |= {"severity": result.severity, "alert": result.should_alert}
        if result.should_alert:
            step.made = short(f"{step.made}: {result.recommendation}")

    def keep(self) -> None:
        """Store what the modules were given and answered, for shadow runs, and what they count."""
        answered = [(outcome, item) for outcome, item in self._traffic if outcome.ok]
        self._traffic.clear()
        counts: _Shares | None = None
        with self.store.transaction():
            # Nothing of before comes back, when somebody has everything forgotten just now.
            if marks(self.store) == self._marks:
                for outcome, item in answered:
                    self._keep_one(outcome, item)
                if any(outcome.module == TRACKER for outcome, _ in answered):
                    counts = self._keep_counts()
        if counts is not None:
            counts.learned_kept()

    def _keep_one(self, outcome: ModuleOutcome, item: Any) -> None:
        if outcome.result is None:
            return
        result, version = outcome.result.to_dict(), outcome.version or ""
        self.store.traffic.add(outcome.module, version, item, result, outcome.seconds)

    def _keep_counts(self) -> _Shares | None:
        """Store what the tracker counts; the tracker, when it counts together with others."""
        tracker, states = self.factory.loaded_module(TRACKER), self.store.module_states
        if isinstance(tracker, _Shares):
            states.set(TRACKER, tracker.share_learned(states.get(TRACKER)))
            return tracker
        if isinstance(tracker, _Remembers):
            states.set(TRACKER, tracker.learned_state())
        return None

    def catch_up(self) -> bool:
        """Let the modules begin anew when what they had stored was deleted, here or elsewhere.

        Returns:
            Whether what was said was deleted as well.
        """
        before, self._marks = self._marks, marks(self.store)
        if self._marks.learned != before.learned:
            self._traffic.clear()
            self.orchestrator.forget()
            forget_texts()
            for name in (TRACKER, DRIFT):
                if self.factory.loaded_module(name) is not None:
                    self._begin_anew(name)
        return self._marks.said != before.said

    def _begin_anew(self, name: str) -> None:
        try:
            self.factory.reload(name)
        except Exception as error:
            # The old one would go on with what it knows; without it the loader tries again.
            self.factory.discard(name)
            _log.warning("a module cannot begin anew", extra={"error": str(error)})

    def close(self) -> None:
        """Let threads and modules go."""
        self._tone.close()
        self.orchestrator.close()
        self.factory.close()

    async def _run(self, items: Mapping[str, Any], step: TraceStep) -> RunReport:
        report = await self.orchestrator.run_parallel(items)
        for name, outcome in report.items():
            step.details[name] = _outline(outcome)
            self._traffic.append((outcome, items[name]))
            if not outcome.ok and outcome.status != "skipped":
                instead = f", {outcome.fallback} answered" if outcome.fallback else ""
                step.failed(f"{name} {outcome.status}: {outcome.error}{instead}")
        return report

    def _factory(
        self, profile: Profile, config: SLMConfig | None, served: LanguageModel | None
    ) -> SLMFactory:
        try:
            packs = self.registry.packs()
        except CompanionError:
            # Not even a shipped pack can be read; each module then says so when it is loaded.
            packs = {}
        # Rewriting has a step of its own, with more time than the guard has.
        options = {GUARD: {"profile": profile, "rewriter": None}}
        factory = SLMFactory(config, packs=packs, options=options, served=served)

        def folder(name: str) -> Path | None:
            return packs.get(name, factory.config.module(name).pack)

        factory.register_module(
            DRIFT, lambda: Watcher(self.store, folder(DRIFT), backbone=factory.get_slm())
        )
        factory.register_module(TRACKER, lambda: self._tracker(folder(TRACKER)))
        return factory

    def _tracker(self, pack: Path | None) -> SLMModule[ContextResult]:
        from mlx_companion.slm.tracker import ContextTracker

        return ContextTracker(pack, learned=self.store.module_states.get(TRACKER))


def _outline(outcome: ModuleOutcome) -> dict[str, Any]:
    """An outcome without the texts in it."""
    whole = outcome.to_dict()
    return {name: whole[name] for name in ("status", "error", "seconds", "fallback", "version")}
