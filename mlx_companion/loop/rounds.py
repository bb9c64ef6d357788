"""The loop: rounds of collect -> generate -> judge -> mix -> train -> gate -> deploy -> report.

Each step is recorded in the store when it is done, with what it found. A round that was
interrupted, by Ctrl-C or by `kill -9`, goes on at its first step that is not done, and
within generation, training and the gate at the first part that is missing.

    results = improve()                      # one round on the default model
    print(results[0].report["after"])
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from mlx_companion.errors import LoopError, Stopped
from mlx_companion.loop.collect import collect
from mlx_companion.loop.companion import Companion
from mlx_companion.loop.config import LoopConfig
from mlx_companion.loop.context import Poison, RoundContext
from mlx_companion.loop.deploy import deploy
from mlx_companion.loop.gate import gate
from mlx_companion.loop.generate import generate
from mlx_companion.loop.judge import judge
from mlx_companion.loop.progress import Progress, Silent
from mlx_companion.loop.replay import mix
from mlx_companion.loop.report import write_report
from mlx_companion.loop.summary import summarize
from mlx_companion.loop.train import train
from mlx_companion.models import LanguageModel, load
from mlx_companion.runtime.config import load_config, to_dict
from mlx_companion.runtime.logs import get_logger
from mlx_companion.runtime.memory import peak_memory_mb
from mlx_companion.runtime.seeds import seed_everything
from mlx_companion.runtime.stop import NEVER, StopSwitch
from mlx_companion.store import Round, Store

__all__ = ["STEPS", "RoundResult", "improve"]

STEPS: dict[str, Callable[[RoundContext], dict[str, Any]]] = {
    "collect": collect,
    "generate": generate,
    "judge": judge,
    "mix": mix,
    "train": train,
    "gate": gate,
    "deploy": deploy,
}
_log = get_logger(__name__)


@dataclass(frozen=True)
class RoundResult:
    """A finished round.

    Args:
        report: everything about it, as in the JSON file.
        html, json: the report's files.
    """

    report: dict[str, Any]
    html: Path
    json: Path


def improve(
    config: LoopConfig | None = None,
    *,
    store: Store | None = None,
    lm: LanguageModel | None = None,
    progress: Progress | None = None,
    switch: StopSwitch = NEVER,
    poison: Poison | None = None,
) -> list[RoundResult]:
    """Run `config.rounds` rounds; an interrupted round is finished first and counts as one.

    Args:
        config: all settings; defaults for None.
        store: the database; the person's own for None.
        lm: the base model, when it is loaded already.
        progress: hears what happens.
        switch: stops the loop at its next safe point.
        poison: for tests only: spoils the training targets ("garbage" or "repeat").

    Raises:
        LoopError: the cool-down is not over, the limit of rounds is reached, or a round
            has nothing to learn from.
        Stopped: the switch was thrown; calling again goes on.
        StoreError: another process is improving the same store.
    """
    config = config or LoopConfig()
    progress = progress or Silent()
    opened = None if store is not None else Store()
    store = store or opened
    assert store is not None
    try:
        with store.exclusive("improve"):
            base = lm or load(config.model)
            return [
                _one_round(config, store, base, progress, switch, poison)
                for _ in range(config.rounds)
            ]
    finally:
        if opened is not None:
            opened.close()


def _one_round(
    config: LoopConfig,
    store: Store,
    lm: LanguageModel,
    progress: Progress,
    switch: StopSwitch,
    poison: Poison | None,
) -> RoundResult:
    switch.check()
    companion = Companion.open(store, config, lm=lm)
    current, resumed = _unfinished_or_new(config, store, progress)
    if resumed:
        config = load_config(LoopConfig, overrides=current.config)
        companion = Companion.open(store, config, lm=lm)
    ctx = RoundContext(store, config, current, companion, progress, switch, poison)
    seed_everything(ctx.seed("round"))
    progress.round_started(current.number, ctx.base_version.id, resumed=resumed)
    for name, step in STEPS.items():
        _run_step(ctx, name, step)
        switch.check()
    return _finish(ctx)


def _unfinished_or_new(config: LoopConfig, store: Store, progress: Progress) -> tuple[Round, bool]:
    active = store.versions.active()
    unfinished = store.rounds.unfinished()
    if unfinished is not None:
        if active is None or unfinished.base_version in (active.id, active.parent):
            return unfinished, True
        progress.note(
            f"Round {unfinished.number} began with {unfinished.base_version}, but "
            f"{active.id} is active now; it is abandoned."
        )
        store.rounds.finish(unfinished.id, "abandoned")
    _check_limits(config, store)
    store.backup()
    return store.rounds.begin(
        config=to_dict(config), seed=config.seed, base_version=active.id if active else None
    ), False


def _check_limits(config: LoopConfig, store: Store) -> None:
    rounds = [each for each in store.rounds.all() if each.outcome != "abandoned"]
    if config.max_rounds and len(rounds) >= config.max_rounds:
        raise LoopError(
            f"{len(rounds)} rounds were run and max_rounds is {config.max_rounds}; "
            "raise it to go on"
        )
    ended = [datetime.fromisoformat(each.finished_at) for each in rounds if each.finished_at]
    if config.cooldown_minutes and ended:
        ready = max(ended) + timedelta(minutes=config.cooldown_minutes)
        left = (ready - datetime.now(UTC)).total_seconds()
        if left > 0:
            raise LoopError(
                f"the last round ended less than {config.cooldown_minutes:g} minutes ago; "
                f"wait {left / 60:.0f} more or set cooldown_minutes=0"
            )


def _run_step(ctx: RoundContext, name: str, step: Callable[[RoundContext], dict[str, Any]]) -> None:
    state = ctx.store.rounds.begin_step(ctx.round.id, name)
    started = time.monotonic()
    ctx.progress.step_started(name)
    if not state.done:
        try:
            payload = step(ctx)
        except Stopped:
            raise
        except Exception as error:
            ctx.store.rounds.fail_step(ctx.round.id, name, f"{type(error).__name__}: {error}")
            raise
        seconds = time.monotonic() - started
        earlier = float(state.payload.get("seconds", 0.0))
        payload |= {"seconds": seconds + earlier, "peak_mb": peak_memory_mb()}
        state_after = ctx.store.rounds.finish_step(ctx.round.id, name, payload)
        _log.info("step finished", extra={"step": name, "summary": payload.get("summary")})
    else:
        state_after = state
    ctx.progress.step_finished(
        name,
        str(state_after.payload.get("summary", "")),
        seconds=float(state_after.payload.get("seconds", 0.0)),
        skipped=state.done,
    )


def _finish(ctx: RoundContext) -> RoundResult:
    report = summarize(ctx)
    folder = ctx.folder / "report"
    report["report"] = str(folder / "report.html")
    html, json_file = write_report(folder, report)
    outcome = {"deploy": "deployed", "reject": "rejected"}.get(report["outcome"], "inconclusive")
    if report["outcome"] == "deploy" and not report["deployed"]:
        outcome = "dry-run" if ctx.config.mode == "dry-run" else "waiting"
    kept = ("before", "after", "p", "deployed", "version", "scale", "seconds", "peak_mb")
    ctx.store.rounds.finish(ctx.round.id, outcome, {name: report[name] for name in kept})
    return RoundResult(report, html, json_file)
