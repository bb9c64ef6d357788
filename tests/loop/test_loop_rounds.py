"""Rounds from end to end on tiny models: what they leave behind, go on from, and refuse.

The talkative model never ends its replies, so no reply is good; a few of the person's own
replies teach it to end, which the gate sees. The brief model's replies are mostly good, so
spoiled training shows.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from loop_world import BRIEF, QUICK, TAUGHT, build, one_round, settings

from mlx_companion.errors import LoopError, Stopped, StoreError
from mlx_companion.loop import RoundResult, ServedModel, diff, improve, promote, rollback
from mlx_companion.loop.progress import Silent
from mlx_companion.loop.rounds import STEPS
from mlx_companion.models.prompts import render
from mlx_companion.runtime.stop import NEVER, StopSwitch
from mlx_companion.store import Store, list_backups

PROMISED = {
    "deployed", "before", "after", "distinct_before", "distinct_after", "p", "relevance_before",
    "relevance_after", "perplexity_before", "perplexity_after", "seconds", "peak_mb", "report",
    "version",
}  # fmt: skip
# What a repeated round must reproduce.
FIGURES = (
    "outcome", "before", "after", "likelihood_before", "likelihood_after", "p", "p_likelihood",
    "interval", "distinct_before", "distinct_after", "relevance_before", "relevance_after",
    "perplexity_before", "perplexity_after", "divergence", "margins", "tries", "rules", "judges",
    "topics", "loss", "data", "calibration", "gate",
)  # fmt: skip


class Listener(Silent):
    """Keeps the notes and whether rounds were resumed; can throw a switch inside a step."""

    def __init__(self, stop_in: str | None = None) -> None:
        self.notes: list[str] = []
        self.resumed: list[bool] = []
        self.switch: StopSwitch = StopSwitch() if stop_in else NEVER
        self._stop_in = stop_in

    def round_started(self, number: int, base_version: str, *, resumed: bool) -> None:
        self.resumed.append(resumed)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def step_started(self, step: str) -> None:
        # The switch is honoured after the steps that take no time, inside the judging.
        if step == self._stop_in and step in ("collect", "judge", "mix", "deploy"):
            self.switch.request("test")

    def advance(self, step: str, done: int, total: int, detail: str = "") -> None:
        if step == self._stop_in:
            self.switch.request("test")


def interrupted(folder: Path, step: str, **changes: Any) -> None:
    listener = Listener(stop_in=step)
    with Store(folder / "companion.db") as store, pytest.raises(Stopped):
        improve(
            settings(folder, **{**TAUGHT, **changes}),
            store=store,
            progress=listener,
            switch=listener.switch,
        )


def logits(companion: ServedModel, prompt: str = "Is the kettle on?") -> np.ndarray:
    tokens = mx.array([render(companion.lm, prompt)])
    return np.array(companion.lm.model(tokens)[0, -1])


def test_round_is_reported_and_recorded(finished: tuple[Path, RoundResult]) -> None:
    folder, result = finished
    report = json.loads(result.json.read_text(encoding="utf-8"))
    assert report.keys() >= PROMISED
    assert result.html.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert report["report"] == str(result.html)
    shares = [
        np.mean([row[f"{arm}_good"] for row in report["gate"]]) for arm in ("before", "after")
    ]
    assert [report["before"], report["after"]] == pytest.approx(shares)
    with Store(folder / "companion.db") as store:
        (done,) = store.rounds.all()
        steps = store.rounds.steps(done.id)
        assert list(steps) == list(STEPS)
        assert all(step.done and step.attempts == 1 for step in steps.values())
        assert done.outcome == "deployed"
        assert done.summary["after"] == report["after"]
        run = store.runs.get(steps["train"].payload["run"])
        losses = store.runs.metrics(run.id, "train_loss")
        assert run.status == "done"
        assert [loss.step for loss in losses] == list(range(1, steps["train"].payload["steps"] + 1))
        assert losses[-1].value < losses[0].value
        spent = store.ledger.entries(steps["collect"].payload["gate_sha256"])
        assert [(look.round_id, look.p) for look in spent] == [(done.id, report["p"])]


def test_better_version_is_deployed_and_acts(finished: tuple[Path, RoundResult]) -> None:
    folder, result = finished
    report = result.report
    assert (report["outcome"], report["deployed"], report["version"]) == ("deploy", True, "v0002")
    assert report["before"] == 0
    assert report["p"] < report["alpha"] < 0.05
    with Store(folder / "companion.db") as store:
        base, version = store.versions.all()
        assert store.versions.active() == version
        assert version.parent == base.id
        assert version.metrics["after"] == report["after"]
        assert store.versions.verify(version.id) == version
        companion = ServedModel.open(store, settings(folder))
        assert companion.version_id == version.id
        assert companion.check_adapter_acts() > 0
        served = logits(companion)
        companion.use(base)
        assert np.abs(served - logits(companion)).max() > 0.01


def test_checkpoints_go_and_few_backups_stay(world: Path) -> None:
    for number in range(6):
        one_round(world, mode="dry-run", **QUICK)
        folder = world / "rounds" / f"{number + 1:04d}"
        assert (folder / "train" / "adapter").is_dir()
        assert not (folder / "train" / "checkpoints").exists()
    assert len(list_backups(world / "companion.db")) == 5


def test_second_round_starts_from_the_deployed_version(
    deployed: Path, finished: tuple[Path, RoundResult]
) -> None:
    first, second = finished[1].report, one_round(deployed).report
    assert (second["round"], second["base_version"]) == (2, "v0002")
    # Other draws of the same version; without the adapter no reply at all was good.
    assert second["before"] == pytest.approx(first["after"], abs=0.3)
    assert second["before"] > 0.1
    assert second["alpha"] == pytest.approx(first["alpha"] / 4)
    with Store(deployed / "companion.db") as store:
        assert store.versions.active().id == second["version"]
        earlier = store.rounds.all()[0].id
        rows = [e for _, e in store.replay.for_round(store.rounds.all()[1].id)]
        assert len(rows) == second["data"]["total_rows"]
        assert sum(e.round_id == earlier for e in rows) == second["data"]["rows"]["replay"]


def test_versions_can_be_rolled_back_promoted_and_compared(deployed: Path) -> None:
    with Store(deployed / "companion.db") as store:
        base, version = store.versions.all()
        compared = diff(store, base.id, version.id)
        assert compared["metrics"]["after"] == (None, version.metrics["after"])
        assert len(compared["examples"]) == TAUGHT["collect.gate_items"]
        assert any(row["old"] != row["new"] for row in compared["examples"])
        assert rollback(store, "not good").id == base.id
        assert ServedModel.open(store, settings(deployed)).version_id == base.id
        assert promote(store, version.id).id == version.id
        assert ServedModel.open(store, settings(deployed)).version_id == version.id
        moves = [(event.action, event.to_version) for event in store.versions.history()]
        expected = [("promote", "v0001"), ("promote", "v0002")]
        assert moves == [*expected, ("rollback", "v0001"), ("promote", "v0002")]


def test_review_leaves_the_candidate_to_the_person(world: Path) -> None:
    report = one_round(world, mode="review").report
    assert (report["outcome"], report["deployed"]) == ("deploy", False)
    assert (report["version"], report["candidate"]) == ("v0001", "v0002")
    with Store(world / "companion.db") as store:
        assert store.versions.active().id == "v0001"
        assert store.rounds.all()[0].outcome == "waiting"
        promote(store, "v0002")
        assert ServedModel.open(store, settings(world)).check_adapter_acts() > 0


def test_dry_run_decides_and_changes_nothing(world: Path) -> None:
    report = one_round(world, mode="dry-run").report
    assert (report["outcome"], report["deployed"]) == ("deploy", False)
    assert (report["version"], report["candidate"]) == ("v0001", None)
    with Store(world / "companion.db") as store:
        assert [version.id for version in store.versions.all()] == ["v0001"]
        assert store.rounds.all()[0].outcome == "dry-run"
    assert not (world / "adapters").exists()


def test_cooldown_and_limit_of_rounds(deployed: Path) -> None:
    with Store(deployed / "companion.db") as store:
        before = store.rounds.all()
        # The shared world may be some minutes old.
        with pytest.raises(LoopError, match=r"less than 900 minutes ago; wait 8\d\d more|900 more"):
            improve(settings(deployed, cooldown_minutes=900.0), store=store)
        with pytest.raises(LoopError, match="1 rounds were run and max_rounds is 1"):
            improve(settings(deployed, max_rounds=1), store=store)
        assert store.rounds.all() == before
        listener = Listener()
        quick = {**QUICK, "rounds": 3, "max_rounds": 2}
        results = improve(settings(deployed, **quick), store=store, progress=listener)
        assert len(results) == 1
        assert "max_rounds is 2" in listener.notes[-1]
        # A cool-down that is over lets the next round begin.
        soon = settings(deployed, cooldown_minutes=1e-6, **{**quick, "max_rounds": 3})
        assert len(improve(soon, store=store)) == 1


def test_only_one_may_improve_a_store_at_a_time(world: Path) -> None:
    with Store(world / "companion.db") as mine, Store(world / "companion.db") as theirs:
        with theirs.exclusive("improve"), pytest.raises(StoreError, match="already running"):
            improve(settings(world), store=mine)
        assert mine.rounds.all() == []
        assert mine.versions.all() == []


def test_interrupted_round_goes_on_as_if_nothing_had_happened(
    fresh: Path, finished: tuple[Path, RoundResult], tmp_path: Path
) -> None:
    folder = shutil.copytree(fresh, tmp_path / "interrupted")
    for step in STEPS:
        interrupted(folder, step)
        with Store(folder / "companion.db") as store:
            steps = store.rounds.steps(store.rounds.unfinished().id)
            assert list(steps)[-1] == step
            assert steps[step].done == (step in ("collect", "mix", "deploy"))
    report = one_round(folder).report
    with Store(folder / "companion.db") as store:
        assert len(store.rounds.all()) == 1
        assert [v.id for v in store.versions.all()] == ["v0001", "v0002"]
    whole = finished[1].report
    assert {name: report[name] for name in FIGURES} == {name: whole[name] for name in FIGURES}


def test_same_seed_same_figures_other_seed_other_figures(
    world: Path, finished: tuple[Path, RoundResult]
) -> None:
    whole = finished[1].report
    other = one_round(
        shutil.copytree(world, world.parent / "other"), seed=1, **{"train.epochs": 1}
    ).report
    assert [row["before"] for row in other["gate"]] != [row["before"] for row in whole["gate"]]
    again = one_round(world).report
    assert {name: again[name] for name in FIGURES} == {name: whole[name] for name in FIGURES}


def test_resumed_round_keeps_its_settings_but_obeys_the_mode(world: Path) -> None:
    interrupted(world, "generate", **{"collect.gate_items": 24})
    listener = Listener()
    with Store(world / "companion.db") as store:
        now = settings(world, mode="dry-run", **{"collect.gate_items": 5, "train.epochs": 1})
        report = improve(now, store=store, progress=listener)[0].report
        assert listener.resumed == [True]
        assert "It keeps the settings that it began with." in listener.notes
        assert (report["items"], report["config"]["train"]["epochs"]) == (24, 20)
        # The person asks for a dry run now: the round must not deploy because it once meant to.
        assert (report["mode"], report["deployed"]) == ("dry-run", False)
        assert [version.id for version in store.versions.all()] == ["v0001"]


@pytest.mark.parametrize("to", ["v0001", "v0003"], ids=["rolled back", "sibling promoted"])
def test_round_is_abandoned_when_another_version_became_active(deployed: Path, to: str) -> None:
    interrupted(deployed, "train")
    with Store(deployed / "companion.db") as store:
        active = store.versions.active()
        sibling = store.versions.create(
            parent=active.id,
            adapter_path=active.adapter_path,
            adapter_sha256=active.adapter_sha256,
            base_sha256=active.base_sha256,
        )
        assert sibling.id == "v0003"
        store.versions.activate(to, "by hand")
        listener = Listener()
        result = improve(settings(deployed, **QUICK), store=store, progress=listener)[0]
        assert (result.report["round"], result.report["base_version"]) == (3, to)
        assert listener.resumed == [False]
        assert f"began with v0002, but {to} is active now" in listener.notes[0]
        assert store.rounds.all()[1].outcome == "abandoned"
    assert not (deployed / "rounds" / "0002" / "train" / "checkpoints").exists()


def test_round_goes_on_after_its_profile_was_rewritten(world: Path) -> None:
    interrupted(world, "train")
    assert list((world / "rounds" / "0001" / "train" / "checkpoints").iterdir())
    profile = world / "profile.yaml"
    profile.write_text(profile.read_text().replace("Be brief.", "Answer in few words."))
    listener = Listener()
    with Store(world / "companion.db") as store:
        improve(settings(world, **TAUGHT), store=store, progress=listener)
        assert listener.resumed == [True]
        assert any("Training starts over" in note for note in listener.notes)
        assert len(store.rounds.all()) == 1


@pytest.mark.parametrize("poison", ["garbage", "repeat"])
def test_poisoned_round_is_rejected(tmp_path: Path, poison: str) -> None:
    build(tmp_path, ending=BRIEF)
    spoiling = {"train.epochs": 8, "train.batch_tokens": 1024, "serve.max_tokens": 24}
    report = one_round(tmp_path, poison, **spoiling).report
    # The version in use was mostly good, so harm can be seen.
    assert report["before"] > 0.7
    assert report["after"] < report["before"] - 0.3
    assert (report["outcome"], report["deployed"], report["version"]) == ("reject", False, "v0001")
    with Store(tmp_path / "companion.db") as store:
        assert store.versions.active().id == "v0001"
        assert len(store.versions.all()) == 1
        assert store.rounds.all()[0].outcome == "rejected"


def test_poison_does_not_replace_a_deployed_version(deployed: Path) -> None:
    report = one_round(deployed, "garbage", **{"train.epochs": 5}).report
    assert (report["outcome"], report["version"]) == ("reject", "v0002")
    assert report["after"] < report["before"]
    assert len(report["tries"]) > 1, "a smaller scale is tried before the reject"
    with Store(deployed / "companion.db") as store:
        companion = ServedModel.open(store, settings(deployed))
        assert companion.version_id == "v0002"
        assert companion.check_adapter_acts() > 0
