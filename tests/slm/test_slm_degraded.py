"""Damaged packs of the real modules: rules answer, the fault is recorded, no reply is broken."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from slm_stand_ins import configured

from mlx_companion.errors import SLMError
from mlx_companion.slm import degraded
from mlx_companion.slm.degraded import rules_only, salvaged
from mlx_companion.slm.factory import SLMFactory
from mlx_companion.slm.orchestrator import SLMOrchestrator
from mlx_companion.slm.outcomes import ModuleOutcome
from mlx_companion.slm.packs import packaged, save_pack

RULED = ("research_classifier", "personality_guard")


def damaged(name: str, tmp_path: Path, *files: str) -> Path:
    """A copy of the shipped pack with some files changed."""
    folder = tmp_path / name
    shutil.copytree(packaged(name), folder)
    for file in files:
        path = folder / file
        path.write_bytes(path.read_bytes()[:-7] + b"garbage")
    return folder


def ask(name: str, folder: Path, item: Any) -> ModuleOutcome:
    async def main() -> ModuleOutcome:
        own = SLMOrchestrator(factory=SLMFactory(configured(), packs={name: folder}))
        try:
            return (await own.run_parallel({name: item}))[name]
        finally:
            own.close()

    return asyncio.run(main())


@pytest.mark.parametrize("files", [["weights.safetensors"], ["weights.safetensors", "rules.yaml"]])
def test_a_guard_with_damaged_weights_still_keeps_its_rules(
    files: list[str], tmp_path: Path
) -> None:
    folder = damaged("personality_guard", tmp_path, *files)
    outcome = ask("personality_guard", folder, "*grins* Noted.")
    assert (outcome.status, outcome.fallback) == ("unavailable", "rules")
    assert "restore the pack" in str(outcome.error)
    result: Any = outcome.result
    assert result.violations_detected == ["asterisk_action"]
    assert result.rewritten_response == "Noted."


@pytest.mark.parametrize(
    "files", [["weights.safetensors"], ["weights.safetensors", "settings.json"]]
)
def test_a_classifier_with_damaged_weights_goes_by_keywords(
    files: list[str], tmp_path: Path
) -> None:
    folder = damaged("research_classifier", tmp_path, *files)
    outcome = ask("research_classifier", folder, "latest news about the weather in Lisbon")
    assert (outcome.status, outcome.fallback) == ("unavailable", "keyword rule")
    result: Any = outcome.result
    assert result.needs_research is True
    assert result.reasoning


@pytest.mark.parametrize("name", ["context_tracker", "drift_monitor"])
def test_the_others_fail_open(name: str, tmp_path: Path) -> None:
    save_pack(folder := tmp_path / "pack", name, "9")
    (folder / "weights.safetensors").write_bytes(b"")
    outcome = ask(name, folder, {"text": "hello"})
    assert outcome.status == "unavailable"
    assert outcome.error


@pytest.mark.parametrize("name", RULED)
def test_whole_parts_of_the_damaged_pack_come_first(name: str, tmp_path: Path) -> None:
    folder = damaged(name, tmp_path, "weights.safetensors")
    text = (folder / "rules.yaml").read_text() + "\n# mine\n"
    index = json.loads((folder / "pack.json").read_text())
    (folder / "rules.yaml").write_text(text)
    assert not salvaged(name, folder).rules.endswith("# mine\n")
    index["files"]["rules.yaml"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "pack.json").write_text(json.dumps(index))
    assert salvaged(name, folder).rules.endswith("# mine\n")
    assert salvaged(name, folder).arrays == {}


def test_without_any_rules_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(degraded, "packaged", lambda name: tmp_path)
    with pytest.raises(SLMError, match="damaged as well"):
        rules_only("personality_guard")
    assert rules_only("drift_monitor") is None
