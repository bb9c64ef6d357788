"""Versions of modules: checked as a whole, left when damaged, switched by rule after a trial."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_companion.errors import ConfigError, SLMError, StoreError
from mlx_companion.slm import SLMModule, load_pack, save_pack
from mlx_companion.slm.packs import copy_pack
from mlx_companion.slm.registry import SHIPPED, SLMRegistry
from mlx_companion.slm.results import ResearchResult
from mlx_companion.slm.shadow import PromotionRule, TriggerRule, decision
from mlx_companion.store import Store, forget
from mlx_companion.store.modules import KEPT

NAME = "research_classifier"


def pack(folder: Path, threshold: float, version: str = "1", module: str = NAME) -> Path:
    save_pack(
        folder,
        module,
        version,
        arrays={"w": np.full(3, threshold, np.float32)},
        settings={"threshold": threshold},
        rules="- rule\n",
        metrics={"accuracy": threshold},
    )
    return folder


class Longer(SLMModule[ResearchResult]):
    """Needs research when a text is longer than its pack's threshold."""

    name = NAME

    def __init__(self, folder: Path, *, slow: float = 0.0, fails: bool = False) -> None:
        self.threshold = load_pack(folder).settings["threshold"]
        self.slow, self.fails = slow, fails

    def process_batch(self, items: Any) -> list[ResearchResult]:
        time.sleep(self.slow)
        if self.fails:
            raise RuntimeError("broken")
        return [ResearchResult(len(item) > self.threshold, 0.9, "", "length") for item in items]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "home" / "companion.db") as opened:
        yield opened


@pytest.fixture
def registry(store: Store, tmp_path: Path) -> SLMRegistry:
    shipped = pack(tmp_path / "shipped", 4.0, "shipped")
    return SLMRegistry(store, build=lambda _, folder: Longer(folder), shipped=lambda _: shipped)


@pytest.fixture
def three(registry: SLMRegistry, tmp_path: Path) -> list[str]:
    """Three versions that were in use one after the other; their ids."""
    ids = []
    for n in (5, 6, 7):
        version = registry.register_version(NAME, pack(tmp_path / f"p{n}", float(n), str(n)))
        registry.activate(version.id, f"number {n}")
        ids.append(version.id)
    return ids


def damage(registry: SLMRegistry, version_id: str, name: str = "settings.json") -> None:
    folder = next(v.folder for v in registry.list_versions() if v.id == version_id)
    (folder / name).write_bytes(b'{"threshold": 0}')


def test_without_versions_the_shipped_pack_is_in_use(registry: SLMRegistry) -> None:
    active = registry.get_active_version(NAME)
    assert (active.id, active.pack.settings, active.faults) == (SHIPPED, {"threshold": 4.0}, ())
    assert (registry.list_versions(), registry.packs()) == ([], {})
    with pytest.raises(SLMError, match="runs on its shipped pack"):
        registry.rollback(NAME, "why not")


def test_a_version_is_copied_and_recorded_and_not_yet_used(
    registry: SLMRegistry, tmp_path: Path
) -> None:
    folder = pack(tmp_path / "new", 5.0)
    version = registry.register_version(NAME, folder, {"f1": 0.8}, note="trained again")
    assert (version.id, version.metrics, version.active) == (f"{NAME}-v0001", {"f1": 0.8}, False)
    assert version.sha256 == load_pack(folder).sha256
    assert registry.store.folder in version.folder.parents
    assert registry.get_active_version(NAME).id == SHIPPED
    (folder / "settings.json").unlink()
    registry.activate(version.id, "better")
    assert registry.get_active_version(NAME).pack.settings == {"threshold": 5.0}
    assert registry.packs() == {NAME: version.folder}
    assert [(e.action, e.to_version, e.reason) for e in registry.history(NAME)] == [
        ("register", version.id, "trained again"), ("activate", version.id, "better"),
    ]  # fmt: skip


def test_the_same_content_is_one_version_also_to_mend_it(
    registry: SLMRegistry, tmp_path: Path
) -> None:
    folder = pack(tmp_path / "new", 5.0)
    version = registry.register_version(NAME, folder)
    assert version.metrics == {"accuracy": 5.0}
    assert registry.register_version(NAME, folder) == version
    damage(registry, version.id)
    with pytest.raises(SLMError, match=r"is damaged.*the version in use stays"):
        registry.activate(version.id, "")
    assert registry.register_version(NAME, folder) == version
    assert registry.activate(version.id, "").active


def test_the_same_content_becomes_personal_and_never_ceases_to_be(
    registry: SLMRegistry, store: Store, tmp_path: Path
) -> None:
    folder = pack(tmp_path / "new", 5.0)
    assert not registry.register_version(NAME, folder).personal
    version = registry.register_version(NAME, folder, personal=True)
    assert version.personal
    assert registry.register_version(NAME, folder) == version
    forget(store)
    assert registry.list_versions() == []
    assert not version.folder.exists()


def test_what_is_no_good_pack_is_not_registered(registry: SLMRegistry, tmp_path: Path) -> None:
    folder = pack(tmp_path / "new", 5.0)
    with pytest.raises(SLMError, match="expected 'context_tracker'"):
        registry.register_version("context_tracker", folder)
    (folder / "rules.yaml").write_text("- another rule\n")
    with pytest.raises(SLMError, match="changed or damaged"):
        registry.register_version(NAME, folder)
    assert registry.list_versions() == []


def test_only_the_pack_is_copied(registry: SLMRegistry, tmp_path: Path) -> None:
    folder = pack(tmp_path / "new", 5.0)
    (folder / "diary.txt").write_text("somebody's own")
    (folder / "itself").symlink_to(folder)
    (folder / "gone").symlink_to(tmp_path / "nowhere")
    rules = (folder / "rules.yaml").rename(tmp_path / "rules.yaml")
    (folder / "rules.yaml").symlink_to(rules)
    version = registry.register_version(NAME, folder)
    assert {path.name for path in version.folder.iterdir()} == {
        "pack.json", "settings.json", "weights.safetensors", "rules.yaml",
    }  # fmt: skip
    # Nor does it hang on what lies elsewhere.
    assert not (version.folder / "rules.yaml").is_symlink()
    assert registry.activate(version.id, "").active


def test_a_pack_that_changes_while_it_is_copied_is_not_registered(
    registry: SLMRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pack(tmp_path / "new", 5.0)

    def late(source: Path, target: Path) -> None:
        pack(folder, 6.0)
        copy_pack(source, target)

    monkeypatch.setattr("mlx_companion.slm.registry.copy_pack", late)
    with pytest.raises(SLMError, match="changed while it was registered"):
        registry.register_version(NAME, folder)
    assert registry.list_versions() == []


def test_a_fault_does_not_undo_what_another_process_has_activated(
    registry: SLMRegistry, three: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(registry, three[2])
    find = registry._fault

    def slowly(version: Any) -> str | None:
        if version.id == three[2]:
            registry._rows.move(NAME, three[0], "activate", "by another process")
        return find(version)

    monkeypatch.setattr(registry, "_fault", slowly)
    assert registry.get_active_version(NAME).id == three[0]
    assert [event.action for event in registry.history(NAME)][-1] == "activate"


def test_what_was_in_use_by_going_back_counts_as_used(
    registry: SLMRegistry, three: list[str], tmp_path: Path
) -> None:
    never, last = (
        registry.register_version(NAME, pack(tmp_path / f"p{n}", float(n))).id for n in (8, 9)
    )
    registry.rollback(NAME, "it was better in the lab", to=never)
    registry.activate(last, "newer")
    damage(registry, last)
    assert registry.get_active_version(NAME).id == never


@pytest.mark.parametrize("file", ["settings.json", "weights.safetensors", "rules.yaml"])
def test_a_damaged_version_gives_way_to_the_last_good_one(
    registry: SLMRegistry, three: list[str], file: str
) -> None:
    damage(registry, three[2], file)
    damage(registry, three[1], file)
    active = registry.get_active_version(NAME)
    assert (active.id, active.pack.settings) == (three[0], {"threshold": 5.0})
    assert [three[2] in active.faults[0], three[1] in active.faults[1]] == [True, True]
    fault = registry.history(NAME)[-1]
    assert (fault.action, fault.from_version, fault.to_version) == ("fault", three[2], three[0])
    assert "SHA-256 differs" in fault.reason
    assert registry.get_active_version(NAME).faults == ()


def test_in_the_end_there_is_the_shipped_pack(registry: SLMRegistry, three: list[str]) -> None:
    for version in three:
        damage(registry, version)
    assert registry.packs() == {}
    assert registry.get_active_version(NAME).id == SHIPPED
    assert registry.history(NAME)[-1].to_version is None


def test_a_pack_put_in_the_place_of_another_is_found(
    registry: SLMRegistry, three: list[str], tmp_path: Path
) -> None:
    folder = registry.get_active_version(NAME).folder
    pack(folder, 99.0)  # whole in itself, and not what was recorded
    active = registry.get_active_version(NAME)
    assert active.id == three[1]
    assert "recorded was" in active.faults[0]


def test_going_back_step_by_step_ends_at_the_shipped_pack(
    registry: SLMRegistry, three: list[str]
) -> None:
    assert registry.rollback(NAME, "worse").id == three[1]
    assert registry.rollback(NAME, "worse too").id == three[0]
    assert registry.rollback(NAME, "all").id == SHIPPED
    registry.activate(three[2], "again")
    assert registry.rollback(NAME, "no", to=three[0]).id == three[0]
    assert registry.rollback(NAME, "no", to=SHIPPED).id == SHIPPED
    reasons = [event.reason for event in registry.history(NAME) if event.action == "rollback"]
    assert reasons == ["worse", "worse too", "all", "no", "no"]


def test_a_damaged_one_is_left_out_on_the_way_back(registry: SLMRegistry, three: list[str]) -> None:
    damage(registry, three[1])
    assert registry.rollback(NAME, "worse").id == three[0]
    with pytest.raises(SLMError, match="is damaged"):
        registry.rollback(NAME, "", to=three[1])
    with pytest.raises(StoreError, match="no version 'missing'"):
        registry.rollback(NAME, "", to="missing")


def test_modules_have_versions_of_their_own(registry: SLMRegistry, tmp_path: Path) -> None:
    other = registry.register_version(
        "drift_monitor", pack(tmp_path / "d", 1.0, module="drift_monitor")
    )
    mine = registry.register_version(NAME, pack(tmp_path / "r", 5.0))
    assert (other.number, mine.number) == (1, 1)
    registry.activate(mine.id, "")
    with pytest.raises(SLMError, match="a version of drift_monitor"):
        registry.rollback(NAME, "", to=other.id)
    with pytest.raises(SLMError, match="a version of drift_monitor"):
        registry.shadow(NAME, other.id)


TEXTS = ["a" * n for n in range(1, 9)] * 10


@pytest.fixture
def candidate(registry: SLMRegistry, tmp_path: Path) -> str:
    """A version that decides otherwise on texts of five letters, one in eight."""
    for text in TEXTS:
        registry.store.traffic.add(NAME, SHIPPED, text, {}, 0.01)
    return registry.register_version(NAME, pack(tmp_path / "candidate", 5.0)).id


def test_a_candidate_runs_beside_the_version_in_use(registry: SLMRegistry, candidate: str) -> None:
    report = registry.shadow(NAME, candidate)
    assert (report.inputs, report.agreement, report.failures) == (80, 70 / 80, 0)
    assert len(report.differences) == 10
    assert report.differences[0] == {
        "input": "aaaaa",
        "active": {"needs_research": True},
        "candidate": {"needs_research": False},
    }
    assert registry.get_active_version(NAME).id == SHIPPED
    event = registry.history(NAME)[-1]
    assert (event.action, event.to_version, event.meta["inputs"]) == ("shadow", candidate, 80)
    # The person's texts stay out of the history, which `forget` keeps.
    assert "aaaaa" not in json.dumps(event.meta)
    assert registry.shadow(NAME, candidate, limit=5).inputs == 5


def test_agreement_decides_where_right_answers_are_unknown(
    registry: SLMRegistry, candidate: str
) -> None:
    report = registry.shadow(NAME, candidate)
    with pytest.raises(SLMError, match=r"agrees on 87.5%; 90% are needed"):
        registry.promote(report, PromotionRule(most_slowdown=100))
    promoted = registry.promote(report, PromotionRule(least_agreement=0.8, most_slowdown=100))
    assert promoted.active
    assert promoted.id == candidate
    with pytest.raises(SLMError, match="no longer in use"):
        registry.promote(report, PromotionRule(least_agreement=0.8, most_slowdown=100))


@pytest.mark.parametrize(("right_from", "promoted"), [(6, True), (5, False)])
def test_being_right_decides_where_it_is_known(
    registry: SLMRegistry, candidate: str, right_from: int, promoted: bool
) -> None:
    for one in registry.store.traffic.recent(NAME):
        registry.store.traffic.label(one.id, len(one.input) >= right_from)
    report = registry.shadow(NAME, candidate)
    assert report.labelled == 80
    assert {report.active_right, report.candidate_right} == {1.0, 70 / 80}
    if promoted:
        assert registry.promote(report, PromotionRule(most_slowdown=100)).active
    else:
        with pytest.raises(SLMError, match=r"right in 87.5%, the version in use in 100.0%"):
            registry.promote(report, PromotionRule(most_slowdown=100))


@pytest.mark.parametrize(
    ("make", "rule", "why"),
    [
        (lambda f: Longer(f, fails=True), PromotionRule(), "it failed on 80 of 80 inputs"),
        (lambda f: Longer(f, slow=0.005), PromotionRule(), "it takes .* ms where"),
        (Longer, PromotionRule(least_inputs=81), "80 inputs are too few; 81 are needed"),
    ],
)
def test_a_bad_candidate_is_not_promoted(
    registry: SLMRegistry,
    candidate: str,
    make: Callable[[Path], Longer],
    rule: PromotionRule,
    why: str,
) -> None:
    registry._build = lambda _, folder: (  # type: ignore[assignment]
        make(folder) if "packs" in folder.parts else Longer(folder)
    )
    with pytest.raises(SLMError, match=why):
        registry.promote(registry.shadow(NAME, candidate), rule)
    assert registry.get_active_version(NAME).id == SHIPPED


def test_an_empty_trial_proves_nothing(registry: SLMRegistry, tmp_path: Path) -> None:
    version = registry.register_version(NAME, pack(tmp_path / "p", 5.0))
    with pytest.raises(SLMError, match="0 inputs are too few"):
        registry.promote(registry.shadow(NAME, version.id))
    with pytest.raises(ConfigError):
        PromotionRule(least_inputs=0)


def test_enough_labelled_traffic_asks_for_training(registry: SLMRegistry, tmp_path: Path) -> None:
    rule = TriggerRule(labelled=3)
    ids = [registry.store.traffic.add(NAME, SHIPPED, "text", {}, 0.01) for _ in range(4)]
    assert not registry.should_finetune(NAME, rule).due
    for traffic in ids[:3]:
        registry.store.traffic.label(traffic, False)
    advice = registry.should_finetune(NAME, rule)
    assert (advice.due, advice.labelled) == (True, 3)
    assert advice.reasons == ("3 right answers came in since the version in use was made",)
    registry.activate(registry.register_version(NAME, pack(tmp_path / "p", 5.0)).id, "trained")
    assert not registry.should_finetune(NAME, rule).due


def test_falling_figures_ask_for_training(registry: SLMRegistry) -> None:
    for accuracy in (0.95, 0.94, 0.80, 0.95):
        registry.record_metrics(NAME, {"accuracy": accuracy})
    assert not registry.should_finetune(NAME, TriggerRule(fall=0.06)).due
    for accuracy in (0.85, 0.84):
        registry.record_metrics(NAME, {"accuracy": accuracy})
    advice = registry.should_finetune(NAME, TriggerRule(fall=0.06))
    assert advice.reasons == ("accuracy fell from 0.950 to 0.880",)


def test_traffic_is_bounded(store: Store) -> None:
    with store.transaction():
        for n in range(KEPT + 20):
            store.traffic.add(NAME, "1", n, None, 0.0)
        store.traffic.add("other", "1", "kept", None, 0.0)
    kept = store.traffic.recent(NAME)
    assert [one.input for one in kept] == list(reversed(range(20, KEPT + 20)))
    assert len(store.traffic.recent("other")) == 1
    with pytest.raises(StoreError, match="no traffic 'gone'"):
        store.traffic.label("gone", 1)


@pytest.mark.parametrize(
    ("module", "result", "decided"),
    [
        ("personality_guard",
         {"violations_detected": ["a"], "rewritten_response": "r", "confidence": 0.4},
         {"violations_detected": ["a"], "rewritten_response": "r"}),
        ("context_tracker",
         {"slang_detected": [{"term": "lit", "confidence": 0.6}], "updates": [
             {"key": "k", "value": 1, "confidence": 0.2}]},
         {"slang": ["lit"], "updates": [("k", "1")]}),
        ("drift_monitor",
         {"drift_detected": True, "drift_type": "tone", "should_alert": False, "severity": 0.3},
         {"drift_detected": True, "drift_type": "tone", "should_alert": False}),
        ("mine", {"label": "x", "confidence": 0.4}, {"label": "x"}),
    ],
)  # fmt: skip
def test_confidences_are_no_decisions(
    module: str, result: dict[str, Any], decided: dict[str, Any]
) -> None:
    assert decision(module, result) == decided


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: PromotionRule(most_slowdown=float("nan")),
        lambda: PromotionRule(least_labelled=0),
        lambda: TriggerRule(fall=float("nan")),
        lambda: TriggerRule(labelled=0),
    ],
)
def test_rules_that_would_let_everything_pass_are_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        wrong()
