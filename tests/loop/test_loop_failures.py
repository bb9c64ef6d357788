"""Steps that fail: a full disk, nothing to learn from, errors that pass and errors that stay.

What was done is kept; what can go on goes on; what cannot never blocks the next round.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from loop_world import QUICK, TAUGHT, one_round, settings
from small_disk import mounted_disk

from mlx_companion.errors import (
    DataError,
    DiskFullError,
    DownloadError,
    GenerationError,
    LoopError,
    ModelNotFoundError,
)
from mlx_companion.loop import RoundResult, ServedModel, improve, rounds
from mlx_companion.loop.progress import Silent
from mlx_companion.store import Store
from mlx_companion.training import TrainResult, finetune

IMPOSSIBLE = """
name: impossible
system_prompt: Be brief.
rules:
  max_words: {limit: 1}
  complete_sentences: {}
"""


class Filler(Silent):
    """Fills the disk at one moment of the round: when a step begins, advances or has ended."""

    def __init__(self, disk: Path, moment: tuple[str, str]) -> None:
        self._disk = disk
        self._moment = moment

    def step_started(self, step: str) -> None:
        self._at("start", step)

    def advance(self, step: str, done: int, total: int, detail: str = "") -> None:
        self._at("advance", step)

    def step_finished(self, step: str, summary: str, *, seconds: float, skipped: bool) -> None:
        self._at("end", step)

    def _at(self, *moment: str) -> None:
        if moment == self._moment and not (self._disk / "ballast").exists():
            with (self._disk / "ballast").open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(4096))
                except OSError as error:
                    full = error.errno == errno.ENOSPC
            assert full


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 16 MiB."""
    with mounted_disk(tmp_path / "disk", "16m") as folder:
        yield folder


@pytest.fixture
def silent_world(world: Path) -> Path:
    """A world in which the person never gave feedback."""
    with Store(world / "companion.db") as told:
        known = told.settings.all()
    for file in world.glob("companion.db*"):
        file.unlink()
    with Store(world / "companion.db") as store:
        for key, value in known.items():
            store.settings.set(key, value)
    return world


@pytest.mark.parametrize(
    "moment",
    [
        ("start", "generate"),
        ("advance", "generate"),
        ("start", "train"),
        ("advance", "train"),
        ("advance", "gate"),
        ("start", "deploy"),
        ("end", "deploy"),
    ],
    ids=" ".join,
)
def test_full_disk_is_named_and_the_round_goes_on_when_there_is_space(
    small_disk: Path, world: Path, finished: tuple[Path, RoundResult], moment: tuple[str, str]
) -> None:
    # A checkpoint at every step, so that one is due after the disk is full.
    changes = {**TAUGHT, "train.save_every": 1}
    shutil.copytree(world, small_disk, dirs_exist_ok=True)
    with Store(small_disk / "companion.db") as store:
        told = store.interactions.count(), store.feedback.count()
        with pytest.raises(DiskFullError, match=r"no space left.*free some space and run it again"):
            improve(
                settings(small_disk, **changes), store=store, progress=Filler(small_disk, moment)
            )
    with Store(small_disk / "companion.db") as store:
        store.check()
        assert (store.interactions.count(), store.feedback.count()) == told
        active = store.versions.active()
        # Only a full disk after the pointer was moved finds the new version in use.
        assert active.id == ("v0002" if moment == ("end", "deploy") else "v0001")
        ServedModel.open(store, settings(small_disk))
        (small_disk / "ballast").unlink()
        report = improve(settings(small_disk, **changes), store=store)[0].report
        assert (report["round"], report["version"]) == (1, "v0002")
        assert report["after"] == finished[1].report["after"]
        assert (store.interactions.count(), store.feedback.count()) == told


def test_nothing_to_learn_from_is_said_and_blocks_nothing(silent_world: Path) -> None:
    good = (silent_world / "profile.yaml").read_text()
    (silent_world / "profile.yaml").write_text(IMPOSSIBLE)
    with Store(silent_world / "companion.db") as store:
        with pytest.raises(LoopError, match=r"nothing to learn from; loosen the profile's rules"):
            improve(settings(silent_world, **QUICK), store=store)
        (ended,) = store.rounds.all()
        assert ended.outcome == "failed"
        assert ended.summary["step"] == "mix"
        assert "nothing to learn from" in ended.summary["error"]
        assert store.rounds.step(ended.id, "mix").status == "failed"
        # It counts neither as a round nor for the cool-down: nothing was changed by it.
        (silent_world / "profile.yaml").write_text(good)
        told = store.interactions.add("Is it late?", "x")
        store.feedback.add(told.id, "edit", "It is a quarter past nine.")
        told = store.interactions.add("Is it dark?", "x")
        store.feedback.add(told.id, "edit", "Not before ten, at this time of the year.")
        limits = {**QUICK, "max_rounds": 1, "cooldown_minutes": 60.0}
        report = improve(settings(silent_world, **limits), store=store)[0].report
        assert report["round"] == 2
        assert store.rounds.unfinished() is None


def fail(monkeypatch: pytest.MonkeyPatch, step: str, error: Exception) -> None:
    def raising(ctx: rounds.RoundContext) -> dict[str, object]:
        raise error

    monkeypatch.setitem(rounds.STEPS, step, raising)


@pytest.mark.parametrize(
    "error", [DownloadError("the hub does not answer"), RuntimeError("a bug")], ids=["known", "bug"]
)
def test_error_that_may_pass_keeps_the_round_for_two_more_tries(
    world: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with Store(world / "companion.db") as store:
        with monkeypatch.context() as patched:
            fail(patched, "judge", error)
            for _ in range(2):
                with pytest.raises(type(error)):
                    improve(settings(world, **QUICK), store=store)
        step = store.rounds.step(store.rounds.unfinished().id, "judge")
        assert (step.status, step.attempts) == ("failed", 2)
        assert str(error) in step.error
        report = improve(settings(world, **QUICK), store=store)[0].report
        assert report["round"] == 1


def test_error_that_stays_ends_the_round_at_the_third_try(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store(world / "companion.db") as store:
        fail(monkeypatch, "judge", RuntimeError("a bug"))
        for _ in range(3):
            with pytest.raises(RuntimeError):
                improve(settings(world, **QUICK), store=store)
        assert [each.outcome for each in store.rounds.all()] == ["failed"]
        monkeypatch.undo()
        assert improve(settings(world, **QUICK), store=store)[0].report["round"] == 2


def test_full_disk_is_never_held_against_a_round(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store(world / "companion.db") as store:
        # As the system itself says it, when a step writes without this package's help.
        fail(monkeypatch, "train", OSError(errno.ENOSPC, "No space left on device"))
        for _ in range(4):
            with pytest.raises(DiskFullError, match="free some space and run it again"):
                improve(settings(world, **QUICK), store=store)
        monkeypatch.undo()
        assert improve(settings(world, **QUICK), store=store)[0].report["round"] == 1


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"judge.encoder": "no/such/encoder"}, ModelNotFoundError),
        ({"serve.max_tokens": 600}, GenerationError),
    ],
)
def test_setting_that_cannot_work_ends_its_round_at_once(
    world: Path, wrong: dict[str, object], error: type[Exception]
) -> None:
    with Store(world / "companion.db") as store:
        with pytest.raises(error, match=r"no/such/encoder|reads at most 512"):
            improve(settings(world, **{**QUICK, **wrong}), store=store)
        assert store.rounds.all()[0].outcome == "failed"
        # Set right, a new round begins; the old one would still have the wrong setting.
        assert improve(settings(world, **QUICK), store=store)[0].report["round"] == 2


def test_one_remark_is_too_little_to_learn_from(silent_world: Path) -> None:
    with Store(silent_world / "companion.db") as store:
        for _ in range(2):
            told = store.interactions.add("Is it late?", "x")
            store.feedback.add(told.id, "edit", "It is a quarter past nine.")
        with pytest.raises(DataError, match="give more samples"):
            improve(settings(silent_world, **QUICK), store=store)
        assert store.rounds.all()[0].outcome == "failed"


def test_training_that_learned_nothing_is_said(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights of the lowest held-out loss are kept: here those of the beginning."""

    def learned_nothing(*arguments: Any, **options: Any) -> TrainResult:
        return replace(finetune(*arguments, **options), best_step=0)

    monkeypatch.setattr("mlx_companion.loop.train.finetune", learned_nothing)
    with Store(world / "companion.db") as store:
        with pytest.raises(LoopError, match="training never lowered the held-out loss"):
            improve(settings(world, **QUICK), store=store)
        assert store.rounds.all()[0].outcome == "failed"
        assert store.versions.active().id == "v0001"


def test_a_failing_round_leaves_the_served_version_alone(
    deployed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(monkeypatch, "gate", RuntimeError("a bug"))
    for _ in range(3):
        with pytest.raises(RuntimeError):
            one_round(deployed, **QUICK)
    with Store(deployed / "companion.db") as store:
        companion = ServedModel.open(store, settings(deployed))
        assert companion.version_id == "v0002"
        assert companion.check_adapter_acts() > 0
    assert not (deployed / "rounds" / "0002" / "train" / "checkpoints").exists()
