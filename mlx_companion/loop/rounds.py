"""The loop: rounds of collect -> generate -> judge -> mix -> train -> gate -> deploy -> report.

Each step is recorded in the store when it is done, with what it found. A round that was
interrupted, by Ctrl-C or by `kill -9`, goes on at its first step that is not done, and
within generation, training and the gate at the first part that is missing.

    results = improve()                      # one round on the default model
    print(results[0].report["after"])
"""

from __future__ import annotations

import errno
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

from mlx_companion.errors import (
    CompanionError,
    ConfigError,
    DiskFullError,
    DownloadError,
    LoopError,
    MissingExtraError,
    Stopped,
    StoreError,
)
from mlx_companion.loop.collect import collect
from mlx_companion.loop.config import LoopConfig
from mlx_companion.loop.context import Poison, RoundContext, round_folder
from mlx_companion.loop.deploy import deploy
from mlx_companion.loop.gate import gate
from mlx_companion.loop.generate import generate
from mlx_companion.loop.judge import judge
from mlx_companion.loop.progress import Progress, Silent
from mlx_companion.loop.replay import mix
from mlx_companion.loop.report import write_report
from mlx_companion.loop.served import ServedModel
from mlx_companion.loop.summary import summarize
from mlx_companion.loop.train import train
from mlx_companion.models import LanguageModel, load
from mlx_companion.personality import load_profile
from mlx_companion.runtime.config import load_config, to_dict
from mlx_companion.runtime.logs import get_logger
from mlx_companion.runtime.memory import peak_memory_mb
from mlx_companion.runtime.seeds import seed_everything
from mlx_companion.runtime.stop import NEVER, StopSwitch
from mlx_companion.store import Round, Step, Store
from mlx_companion.training.run_folder import CHECKPOINTS

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
# Other errors of this package would be raised again by the next attempt at the step.
_PASSING = (DiskFullError, DownloadError, MissingExtraError, StoreError)
_MOST_ATTEMPTS = 3
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
        ConfigError: the profile cannot be used.
        LoopError: the cool-down is not over, the limit of rounds is reached, or a round
            has nothing to learn from (it is then over; the next call begins another).
        Stopped: the switch was thrown; calling again goes on.
        StoreError: another process is improving the same store.
    """
    config = config or LoopConfig()
    if poison not in (None, *get_args(Poison)):
        raise ConfigError(f"poison={poison!r} is unknown: give one of {get_args(Poison)}")
    progress = progress or Silent()
    opened = None if store is not None else Store()
    store = store or opened
    assert store is not None
    try:
        with store.exclusive("improve"):
            # First of all: an interrupted round must not be given up for a slip in the profile.
            load_profile(config.profile)
            base = lm or load(config.model)
            results: list[RoundResult] = []
            while len(results) < config.rounds:
                switch.check()
                found = _resumed(config, store, base, progress)
                if found is None:
                    reason = _limit_reached(config, store)
                    if reason and results:
                        progress.note(f"No further round: {reason}.")
                        break
                    if reason:
                        raise LoopError(reason)
                    found = _begun(config, store, base, progress)
                results.append(_run(RoundContext(store, *found, progress, switch, poison)))
            return results
    finally:
        if opened is not None:
            opened.close()


def _begun(
    config: LoopConfig, store: Store, lm: LanguageModel, progress: Progress
) -> tuple[LoopConfig, Round, ServedModel]:
    """A new round, on the active version."""
    companion = ServedModel.open(store, config, lm=lm)
    store.backup()
    new = store.rounds.begin(
        config=to_dict(config), seed=config.seed, base_version=companion.version_id
    )
    progress.round_started(new.number, companion.version_id, resumed=False)
    return config, new, companion


def _resumed(
    config: LoopConfig, store: Store, lm: LanguageModel, progress: Progress
) -> tuple[LoopConfig, Round, ServedModel] | None:
    """The interrupted round, with the settings it began with; None when there is none to go on."""
    unfinished = store.rounds.unfinished()
    if unfinished is None:
        return None
    active = store.versions.active()
    if active and unfinished.id != active.round_id and unfinished.base_version != active.id:
        why = f"it began with {unfinished.base_version}, but {active.id} is active now"
    else:
        try:
            return _reopened(unfinished, config, store, lm, progress)
        except ConfigError as error:
            why = f"its settings cannot be used now: {error}"
    progress.note(f"Round {unfinished.number} is abandoned: {why}.")
    _end(store, unfinished, "abandoned", {"why": why})
    return None


def _reopened(
    unfinished: Round, config: LoopConfig, store: Store, lm: LanguageModel, progress: Progress
) -> tuple[LoopConfig, Round, ServedModel]:
    stored = load_config(LoopConfig, overrides=unfinished.config)
    # What the person wants done now, and how hard the machine may work, is today's matter.
    stored = replace(stored, mode=config.mode, rounds=config.rounds, limits=config.limits)
    companion = ServedModel.open(store, stored, lm=lm)
    progress.round_started(unfinished.number, str(unfinished.base_version), resumed=True)
    if stored != config:
        progress.note("It keeps the settings that it began with.")
    return stored, unfinished, companion


def _limit_reached(config: LoopConfig, store: Store) -> str | None:
    """Why no round may begin now, or None."""
    rounds = [r for r in store.rounds.all() if r.outcome not in ("abandoned", "failed")]
    if config.max_rounds and len(rounds) >= config.max_rounds:
        return (
            f"{len(rounds)} rounds were run and max_rounds is {config.max_rounds}; "
            "raise it to go on"
        )
    ended = [datetime.fromisoformat(each.finished_at) for each in rounds if each.finished_at]
    if not (config.cooldown_minutes and ended):
        return None
    left = max(ended) + timedelta(minutes=config.cooldown_minutes) - datetime.now(UTC)
    if left <= timedelta():
        return None
    return (
        f"the last round ended less than {config.cooldown_minutes:g} minutes ago; "
        f"wait {math.ceil(left / timedelta(minutes=1))} more or set cooldown_minutes=0"
    )


def _run(ctx: RoundContext) -> RoundResult:
    seed_everything(ctx.seed("round"))
    for name, step in STEPS.items():
        _run_step(ctx, name, step)
        ctx.switch.check()
    return _finish(ctx)


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
            told = _told(error, ctx.store.folder)
            _note_failure(ctx, state, told)
            if told is error:
                raise
            raise told from error
        payload |= {"seconds": time.monotonic() - started, "peak_mb": peak_memory_mb()}
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


def _told(error: Exception, folder: Path) -> Exception:
    """A full disk in this package's words, wherever it was noticed."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if not full or isinstance(error, DiskFullError):
        return error
    return DiskFullError(
        f"no space left in {folder}; what was done so far is kept; free some space and run it again"
    )


def _note_failure(ctx: RoundContext, state: Step, error: Exception) -> None:
    """Keep the error; a round that would only fail again is ended, so that it blocks no other."""
    if isinstance(error, DiskFullError):
        # Nothing can be written now, and nothing is wrong with the round.
        return
    ctx.store.rounds.fail_step(ctx.round.id, state.step, f"{type(error).__name__}: {error}")
    hopeless = isinstance(error, CompanionError) and not isinstance(error, _PASSING)
    if hopeless or state.attempts >= _MOST_ATTEMPTS:
        _end(ctx.store, ctx.round, "failed", {"step": state.step, "error": str(error)})


def _end(store: Store, ended: Round, outcome: str, summary: dict[str, Any] | None = None) -> None:
    """Give a round its outcome and remove what only going on with it would need."""
    checkpoints = round_folder(store, ended.number) / "train" / CHECKPOINTS
    shutil.rmtree(checkpoints, ignore_errors=True)
    store.rounds.finish(ended.id, outcome, summary)


def _finish(ctx: RoundContext) -> RoundResult:
    report = summarize(ctx)
    folder = ctx.folder / "report"
    report["report"] = str(folder / "report.html")
    html, json_file = write_report(folder, report)
    outcome = {"deploy": "deployed", "reject": "rejected"}.get(report["outcome"], "inconclusive")
    if report["outcome"] == "deploy" and not report["deployed"]:
        outcome = "dry-run" if ctx.config.mode == "dry-run" else "waiting"
    kept = ("before", "after", "p", "deployed", "version", "scale", "seconds", "peak_mb")
    _end(ctx.store, ctx.round, outcome, {name: report[name] for name in kept})
    return RoundResult(report, html, json_file)
