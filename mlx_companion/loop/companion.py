"""`Companion`: the model, the four small modules and what was learned, as one conversation.

    companion = mc.Companion.open(store="companion.db", profile="dry_wit")
    reply = await companion.chat("hey, keep it short from now on")
    print(reply.text)
    print(reply.trace.text())          # every step, with its time and what was wrong
    companion.learned()                # what it knows of the person, and why
    companion.undo()                   # takes the last of it back
    companion.forget()                 # all of it, without a trace on the disk

A reply goes this way:

    listen     the research classifier and the context tracker read the message
    learn      what the tracker noticed goes through `ContextSyncManager` into the store
    research   asks the tool that was given; without one, the prompt says what cannot be known
    prompt     the profile, what is known of the person and the situation, within a token budget
    generate   the served version of the model
    guard      the reply is held against the profile and mended by rules
    rewrite    sentences of the wrong tone are said again by the model, where that pays
    polish     learned length, slang and tone
    keep       the exchange is stored
    remember   a sample of what the modules did, and what they count, is stored
    watch      the drift monitor sees the reply; its state is stored

A step that fails is recorded in the trace and the reply goes on without it; only `generate` and
`keep` are needed. Nothing leaves the machine, unless the research tool that was given does that.

This module imports nothing but the standard library and its like, so that its name may be mentioned
where an event loop runs. What it works with is imported when a companion is made, on whichever
thread that is: MLX, tokenizers and SciPy take more than a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mlx_companion.errors import LoopError, StoreError
from mlx_companion.loop.trace import Trace, short
from mlx_companion.loop.turns import Turns
from mlx_companion.runtime.stop import NEVER, EitherSwitch, StopSwitch
from mlx_companion.slm.lanes import Lane
from mlx_companion.slm.worker import Worker

if TYPE_CHECKING:
    from mlx_companion.loop.chat import Chat, Turn
    from mlx_companion.loop.config import LoopConfig
    from mlx_companion.loop.prompting import Known
    from mlx_companion.loop.served import ServedModel
    from mlx_companion.models import LanguageModel
    from mlx_companion.models.generation import Reply
    from mlx_companion.slm.config import SLMConfig
    from mlx_companion.slm.factory import SLMFactory
    from mlx_companion.slm.results import ContextResult, DriftResult
    from mlx_companion.slm.sync import Change, QueueReport, SyncConfig
    from mlx_companion.store import ContextEntry, Interaction, Store

__all__ = ["Companion", "CompanionReply"]

Research = Callable[[str], str]
# Closing waits so many seconds for a reply that is still being made.
_PATIENCE = 10.0


@dataclass(frozen=True)
class CompanionReply:
    """What the companion said, how it came about, and the stored exchange.

    `interaction` is None when the reply was ended early; it is then not kept.
    """

    text: str
    trace: Trace
    interaction: Interaction | None

    def __str__(self) -> str:
        return self.text


class Companion:
    """One person's companion; see the module. One reply is made at a time.

    Args:
        served: the version of the model that answers.
        store: exchanges, and what was learned.
        slm: settings of the modules.
        factory: where modules come from, for modules of your own.
        research: finds out what the model cannot know: a query in, findings out.
        research_seconds: that it may take.
        sync: limits of what is learned without asking.
        seed: makes sampled replies repeatable.
        budget_tokens: of the system prompt.
    """

    def __init__(
        self,
        served: ServedModel,
        store: Store,
        *,
        slm: SLMConfig | None = None,
        factory: SLMFactory | None = None,
        research: Research | None = None,
        research_seconds: float = 30.0,
        sync: SyncConfig | None = None,
        seed: int | None = None,
        budget_tokens: int = 400,
    ) -> None:
        # All that the steps use as well: the first message comes on the event loop's thread.
        from mlx_companion.loop import habits, probing, prompting  # noqa: F401
        from mlx_companion.loop.conversation import Conversation
        from mlx_companion.loop.modules import Modules
        from mlx_companion.loop.presence import Presence
        from mlx_companion.slm.sync import ContextSyncManager

        self.served = served
        self.store = store
        self.sync = ContextSyncManager(store, sync)
        self.conversation: Chat = Conversation(self, seed)
        self.research = research
        self.last_trace: Trace | None = None
        self._research_seconds = research_seconds
        self._budget = budget_tokens
        self._owns_store = False
        self._modules = Modules(store, served.profile, slm, factory, served.lm)
        self._presence = Presence(store)
        # One thread for the model: its replies and its loading never run beside each other.
        self._model_thread = Worker("companion-model")
        self._research_lane = Lane("research-tool")
        self._turns = Turns()

    @classmethod
    def open(
        cls,
        store: Store | str | Path | None = None,
        model: str | LanguageModel | None = None,
        profile: str | Path | None = None,
        *,
        config: LoopConfig | None = None,
        **options: Any,
    ) -> Companion:
        """The companion of a store: its active version, with the modules.

        Args:
            store: open, or the path of its file; the one in the user-data folder by default.
            model: what `mc.load` takes, or a loaded model; by default the one that the store's
                active version was made for, else the default model.
            profile: name of a packaged profile, or the path of a YAML file.
            config: settings of serving; `model` and `profile` replace its own.
            options: as `Companion`.

        Raises:
            ConfigError: no such profile.
            ModelError: the model cannot be loaded.
            AdapterError: the adapter of the active version is missing or changed.
            LoopError: the store's versions belong to another base model.
        """
        from mlx_companion.loop.served import ServedModel
        from mlx_companion.store import Store

        opened = store if isinstance(store, Store) else Store(store)
        try:
            settings = _settings(opened, config, model, profile)
            lm = None if model is None or isinstance(model, str) else model
            companion = cls(ServedModel.open(opened, settings, lm=lm), opened, **options)
        except BaseException:
            if opened is not store:
                opened.close()
            raise
        companion._owns_store = opened is not store
        return companion

    async def chat(self, text: str, *, switch: StopSwitch = NEVER) -> CompanionReply:
        """Answer.

        Args:
            text: what the person says.
            switch: ends the reply early; the exchange is then not kept.

        Raises:
            DataError: the text is empty, or is none.
            GenerationError: it is longer than the model's context.
            StoreError: the exchange cannot be stored.
        """
        async with self._turns.turn():
            turn = await asyncio.to_thread(self.conversation.begin, text)
            trace = self.last_trace = Trace()
            known = await self._listen(turn, trace)
            await self._look_up(turn.prompt, known, trace)
            system = await self._prompt(known, trace)
            reply = await self._generate(turn, system, switch, trace)
            if switch.requested:
                return CompanionReply(reply.text, trace, None)
            said = await self._mend(reply.text, turn, known, trace)
            with trace.step("keep", said, needed=True) as step:
                kept = await asyncio.to_thread(self._keep, turn, reply, said, trace)
                step.made = kept.id
            with trace.step("remember"):
                await asyncio.to_thread(self._modules.keep)
            await self._watch(turn, said, trace)
            return CompanionReply(said, trace, kept)

    def chat_sync(self, text: str, *, switch: StopSwitch = NEVER) -> CompanionReply:
        """`chat` for code without an event loop.

        Raises:
            LoopError: there is an event loop here already; await `chat` instead.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(self.chat(text, switch=switch))
        raise LoopError("chat_sync was called inside an event loop; write: await companion.chat()")

    def learned(self) -> list[ContextEntry]:
        """What is known of the person, with confidence, evidence and the id to undo it."""
        return self.sync.entries()

    def pending(self) -> list[ContextEntry]:
        """Changes that wait for the person's word; see `approve` and `reject`."""
        return self.sync.pending()

    def approve(self, update_id: str) -> Change:
        """Let a change that waits take effect. Errors as `ContextSyncManager.approve`."""
        return self.sync.approve(update_id)

    def reject(self, update_id: str) -> None:
        """Drop a change that waits. Errors as `ContextSyncManager.reject`."""
        self.sync.reject(update_id)

    def undo(self, update_id: str | None = None) -> Change | None:
        """Take back one thing that was learned, the last one by default.

        Returns:
            What it changed; None when nothing is known.

        Raises:
            StoreError: there is no such update.
        """
        if update_id is None:
            last = self.sync.last_applied()
            if last is None:
                return None
            update_id = last.id
        return self.sync.undo(update_id)

    def forget(self, *, conversations: bool = False) -> dict[str, int]:
        """Delete what was learned about the person, in memory and without a trace on the disk.

        Args:
            conversations: the stored exchanges too, and what the loop made of them.

        Returns:
            What was deleted; see `store.erase.forget`.

        Raises:
            LoopError: a reply is being made.
            StoreError: another process is reading the store, or `improve` is running.
        """
        from mlx_companion.store.erase import forget as erase_learned

        with self._turns.idle():
            self.last_trace = None
            try:
                return erase_learned(self.store, conversations=conversations)
            finally:
                self._catch_up()

    def _catch_up(self) -> None:
        """Forget here what was forgotten in the store, by whomever."""
        if self._modules.catch_up():
            self.conversation.new()

    def check_probes(self, *, accept: bool = False) -> DriftResult | None:
        """Ask the active version twenty fixed questions and compare with the accepted answers.

        Unlike the replies of a conversation these differ by nothing but the version. None of it is
        stored as a conversation.

        Args:
            accept: take today's answers as those to compare with from now on.

        Returns:
            Whether it drifted; None when the answers were taken as the accepted ones, as they are
            the first time.
        """
        from mlx_companion.loop.probing import check_probes

        work = lambda: check_probes(self.served, self.store, accept=accept)  # noqa: E731
        return self._model_thread.submit(work).result()

    def close(self) -> None:
        """Let the threads and modules go, and the store when `open` opened it."""
        self._model_thread.settle(_PATIENCE)
        self._research_lane.close()
        self._modules.close()
        with contextlib.suppress(StoreError):
            self._presence.leave()
        if self._owns_store:
            self.store.close()

    def __enter__(self) -> Companion:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def _listen(self, turn: Turn, trace: Trace) -> Known:
        from mlx_companion.loop.prompting import Known

        known = Known()
        with trace.step("listen", turn.prompt) as step:
            await asyncio.to_thread(self._catch_up)
            known.facts = await asyncio.to_thread(self.sync.get_latest_context)
            known.research, known.context = await self._modules.listen(
                turn.prompt, known.facts, self.conversation.id, step
            )
        with trace.step("learn") as step:
            told = known.context.updates if known.context is not None else []
            step.given = short([one.key for one in told])
            known.facts, report = await asyncio.to_thread(self._learn, known.context)
            step.made = short(", ".join(f"{c.key} = {c.after!r}" for c in report.changes))
            step.details = dict(report.decided)
        return known

    def _learn(self, heard: ContextResult | None) -> tuple[dict[str, Any], QueueReport]:
        from mlx_companion.loop.habits import SOURCE, habits_of

        # First what others left there: a full queue would take nothing, this time and ever after.
        self.sync.process_queue()
        if heard is not None:
            self.sync.queue_updates(heard.updates)
            with self.store.transaction():
                states = self.store.module_states
                state, habits = habits_of(states.get(SOURCE), heard)
                self.sync.queue_updates(habits, source=SOURCE)
                states.set(SOURCE, state)
        report = self.sync.process_queue()
        return self.sync.get_latest_context(), report

    async def _look_up(self, query: str, known: Known, trace: Trace) -> None:
        with trace.step("research") as step:
            if known.research is None or not known.research.needs_research:
                step.skipped("not needed")
            elif self.research is None:
                step.skipped("no research tool; the prompt says what cannot be known")
            else:
                step.given = short(known.research.category)
                known.findings = await self._ask(self.research, query)
                step.made = short(known.findings)

    async def _ask(self, research: Research, query: str) -> str:
        # On a lane: a tool that hangs must not keep the program from ending.
        done = await self._research_lane.run(lambda: research(query), self._research_seconds)
        if done.error is not None:
            raise LoopError(f"the research tool failed: {done.error!r}") from done.error
        found = done.value
        if not isinstance(found, str) or not found.strip():
            raise LoopError(f"the research tool gave {short(found)!r}; expected text")
        return found

    async def _prompt(self, known: Known, trace: Trace) -> str | None:
        from mlx_companion.loop.prompting import built_prompt

        with trace.step("prompt", known.facts) as step:
            built = await asyncio.to_thread(
                built_prompt, self.served.profile, known, self._budget, self._count_tokens
            )
            step.made = short(" ".join(built.used) or "the profile's own")
            step.details = {
                "tokens": built.tokens, "used": list(built.used), "left_out": list(built.left_out),
            }  # fmt: skip
            return built.text
        return None

    def _count_tokens(self, text: str) -> int:
        return len(self.served.lm.tokenizer.encode(text))

    async def _generate(
        self, turn: Turn, system: str | None, switch: StopSwitch, trace: Trace
    ) -> Reply:
        ending = EitherSwitch(switch)

        def work() -> Reply:
            pieces = self.served.stream(
                turn.prompt,
                list(self.conversation.history),
                seed=turn.seed,
                switch=ending,
                system=system,
            )
            return _drain(pieces)

        with trace.step("generate", turn.prompt, needed=True) as step:
            try:
                reply = await asyncio.wrap_future(self._model_thread.submit(work))
            except asyncio.CancelledError:
                ending.request("nobody waits for the reply any more")
                raise
            step.made = short(reply.text)
            step.details = {"tokens": len(reply.tokens), "version": self.served.version_id}
        return reply

    async def _mend(self, text: str, turn: Turn, known: Known, trace: Trace) -> str:
        from mlx_companion.loop.prompting import polish

        item = {"text": text, "user_name": known.name, "prompt": turn.prompt}
        found = None
        with trace.step("guard", text) as step:
            found = await self._modules.guard(item, step)
            text = found.rewritten_response if found is not None else text
        with trace.step("rewrite") as step:
            text = await self._modules.rewrite(item, found, self._say, step) or text
        with trace.step("polish", text) as step:
            polished = await asyncio.to_thread(polish, text, known)
            if not polished.text.strip():
                raise LoopError("nothing would be left of the reply")
            text = polished.text
            rules = sorted({str(change["rule"]) for change in polished.changes})
            step.made = short(", ".join(rules) or "nothing to change")
        return text

    def _say(self, messages: list[dict[str, str]], max_tokens: int, seconds: float) -> str:
        """What the model says to these messages; nothing when it takes longer than it may."""
        late = StopSwitch()
        work = lambda: self.served.complete(messages, max_tokens=max_tokens, switch=late)  # noqa: E731
        try:
            return self._model_thread.submit(work).result(seconds)
        except TimeoutError:
            late.request("a rewritten sentence took too long")
            return ""

    def _keep(self, turn: Turn, reply: Reply, said: str, trace: Trace) -> Interaction:
        meta: dict[str, Any] = {"steps": {one.name: one.state for one in trace.steps}}
        return self.conversation.keep(turn, reply, text=said, meta=meta)

    async def _watch(self, turn: Turn, said: str, trace: Trace) -> None:
        with trace.step("watch", said) as step:
            await self._modules.watch(said, turn.prompt, step)
            await asyncio.to_thread(self._remember_watching)

    def _remember_watching(self) -> None:
        self._modules.keep()
        self._presence.tell(self.served.version_id, self._modules.orchestrator.status())


def _drain(pieces: Any) -> Reply:
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            return end.value


def _settings(
    store: Store,
    config: LoopConfig | None,
    model: str | LanguageModel | None,
    profile: str | Path | None,
) -> LoopConfig:
    from mlx_companion.loop.config import LoopConfig
    from mlx_companion.runtime.config import load_config

    changes: dict[str, Any] = {}
    if isinstance(model, str):
        changes["model"] = model
    elif model is None and config is None and (active := store.versions.active()) is not None:
        changes["model"] = active.model_source
    if profile is not None:
        changes["profile"] = str(profile)
    given = {name: value for name, value in changes.items() if value is not None}
    if config is None:
        return load_config(LoopConfig, overrides=given)
    return dataclasses.replace(config, **given)
