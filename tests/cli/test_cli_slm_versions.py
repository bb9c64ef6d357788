"""`mlx-companion slm register | shadow | activate | rollback` over small packs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run

from mlx_companion.slm.factory import SLMFactory
from mlx_companion.slm.module import SLMModule
from mlx_companion.slm.packs import load_pack, save_pack
from mlx_companion.slm.registry import SLMRegistry
from mlx_companion.slm.results import ResearchResult
from mlx_companion.store import Store

NAME = "research_classifier"


class Longer(SLMModule[ResearchResult]):
    """Needs research when a text is longer than its pack says; 4 where it says nothing."""

    name = NAME

    def __init__(self, folder: Path) -> None:
        self.most = load_pack(folder).settings.get("most", 4)

    def process_batch(self, items: Sequence[Any]) -> list[ResearchResult]:
        if self.most == 0:
            raise RuntimeError("broken")
        return [ResearchResult(len(item) > self.most, 0.9, "", "length") for item in items]


@pytest.fixture(autouse=True)
def module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SLMFactory, "_packaged", lambda self, name: Longer(self._packs[name]))


def pack(folder: Path, most: int, module: str = NAME) -> Path:
    arrays = {"w": np.zeros(1, np.float32)}
    save_pack(folder, module, f"of {most}", arrays=arrays, settings={"most": most})
    return folder


def feed(*texts: str, label: Any = None) -> None:
    with Store() as store:
        for text in texts:
            store.traffic.add(NAME, "shipped", text, {}, 0.001, label=label)


def active() -> str:
    with Store() as store:
        return SLMRegistry(store).get_active_version(NAME).id


def history() -> list[tuple[str, str | None, str]]:
    with Store() as store:
        return [(e.action, e.to_version, e.reason) for e in SLMRegistry(store).history(NAME)]


def test_the_way_of_a_pack(run: Run, tmp_path: Path) -> None:
    five, six = (pack(tmp_path / str(n), n) for n in (5, 6))
    done = run("slm", "register", NAME, five, "--note", "five")
    assert (done.exit_code, done.stdout) == (0, f"{NAME}-v0001\n"), done.output
    assert run("slm", "register", NAME, six, "--personal").stdout == f"{NAME}-v0002\n"
    assert active() == "shipped"
    done = run("slm", "activate", NAME, "1", "--reason", "better")
    assert (done.exit_code, done.stdout) == (0, f"{NAME}-v0001\n"), done.output
    assert "from now on" in done.stderr
    assert run("slm", "activate", NAME, "v0002").stdout == f"{NAME}-v0002\n"
    assert active() == f"{NAME}-v0002"
    assert run("slm", "rollback", NAME, "--reason", "worse").stdout == f"{NAME}-v0001\n"
    assert run("slm", "rollback", NAME, "--to", "shipped").stdout == "shipped\n"
    assert run("slm", "activate", NAME, f"{NAME}-v0002").exit_code == 0
    assert run("slm", "activate", NAME, "shipped").stdout == "shipped\n"
    assert active() == "shipped"
    assert ("register", f"{NAME}-v0001", "five") in history()
    assert ("activate", f"{NAME}-v0001", "better") in history()
    assert ("rollback", f"{NAME}-v0001", "worse") in history()
    with Store() as store:
        versions = SLMRegistry(store).list_versions(NAME)
    assert [one.personal for one in versions] == [False, True]


def test_a_shadow_run_of_a_folder_tells_where_it_differs(run: Run, tmp_path: Path) -> None:
    feed("abc", "abcde", "abcdef", "abcdefg" * 30)
    done = run("slm", "shadow", NAME, pack(tmp_path / "p", 5))
    assert done.exit_code == 0, done.output
    assert "the same answer to 3 of 4 inputs" in done.stdout
    assert "  abcde\n" in done.stdout
    assert "    shipped: needs_research True\n" in done.stdout
    assert "    of 5, not registered: needs_research False\n" in done.stdout
    assert "stays a candidate: 4 inputs are too few" in " ".join(done.stdout.split())
    assert active() == "shipped"
    assert [event[0] for event in history()] == ["shadow"]


def test_a_shadow_run_says_when_it_may_take_over(run: Run, tmp_path: Path) -> None:
    feed(*("abcdef" for _ in range(60)), label={"needs_research": True})
    run("slm", "register", NAME, pack(tmp_path / "p", 5))
    done = run("slm", "shadow", NAME, "1", "--limit", "50", "--show", "0")
    told = " ".join(done.stdout.split())
    assert "the same answer to 50 of 50 inputs" in told
    assert "right, of 50 known answers 100.0% 100.0%" in told
    assert f"{NAME}-v0001 may take over" in told
    found = json.loads(run("slm", "shadow", NAME, "1", "--json").stdout)
    assert (found["inputs"], found["refusal"], found["differences"]) == (60, None, [])


def test_a_candidate_that_fails_is_refused(run: Run, tmp_path: Path) -> None:
    feed(*("abcdef" for _ in range(60)))
    done = run("slm", "shadow", NAME, pack(tmp_path / "p", 0), "--show", "1")
    assert "    of 0, not registered: failed\n" in done.stdout
    assert "it failed on 60 of 60 inputs" in " ".join(done.stdout.split())


def test_without_traffic_nothing_is_decided(run: Run, tmp_path: Path) -> None:
    done = run("slm", "shadow", NAME, pack(tmp_path / "p", 5))
    assert done.exit_code == 0, done.output
    assert "nothing to try it on yet" in " ".join(done.stdout.split())
    done = run("slm", "shadow", NAME, pack(tmp_path / "p", 5), "--json")
    assert "0 inputs are too few" in json.loads(done.stdout)["refusal"]


def test_the_list_has_the_shipped_pack_and_fits_eighty_columns(run: Run, tmp_path: Path) -> None:
    run("slm", "register", NAME, pack(tmp_path / "p", 5))
    table = run("slm", "versions").stdout.splitlines()
    assert max(map(len, table)) <= 80
    (row,) = [line.split() for line in table if "v0001" in line]
    assert row[:5] == [NAME, "v0001", "of", "5", row[4]]
    entries = json.loads(run("slm", "versions", "--json").stdout)[NAME]
    assert [(one["id"], one["active"]) for one in entries] == [
        ("shipped", True),
        (f"{NAME}-v0001", False),
    ]
    run("slm", "activate", NAME, "1")
    entries = json.loads(run("slm", "versions", NAME, "--json").stdout)[NAME]
    assert [one["active"] for one in entries] == [False, True]


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("activate", NAME, "1"), 1, "no version of research_classifier is registered"),
        (("shadow", NAME, "no/folder"), 1, "nor is 'no/folder' a folder of a pack"),
        (("rollback", NAME), 1, "runs on its shipped pack"),
        (("activate", NAME, "shipped"), 1, "runs on its shipped pack"),
        (("register", NAME, "no/folder"), 1, "no/folder"),
        (("register", "research_clasifier", "x"), 2, "did you mean 'research_classifier'"),
        (("shadow", NAME, "x", "--limit", "0"), 2, "--limit is at least 1"),
    ],
)
def test_wrong_command_lines(words: Sequence[str], code: int, told: str, run: Run) -> None:
    done = run("slm", *words)
    assert done.exit_code == code, done.output
    assert told in " ".join(done.stderr.split())


def test_what_is_damaged_or_anothers_is_refused(run: Run, tmp_path: Path) -> None:
    good = pack(tmp_path / "good", 5)
    other = pack(tmp_path / "other", 5, "context_tracker")
    for verb in ("register", "shadow"):
        done = run("slm", verb, NAME, other)
        assert done.exit_code == 1
        assert "expected 'research_classifier'" in " ".join(done.stderr.split())
    run("slm", "register", NAME, good)
    done = run("slm", "activate", NAME, "7")
    assert f"there are {NAME}-v0001" in " ".join(done.stderr.split()) or "did you mean" in (
        done.stderr
    )
    with Store() as store:
        (version,) = SLMRegistry(store).list_versions(NAME)
    (version.folder / "settings.json").write_text("{}")
    for words in (("activate", NAME, "1"), ("shadow", NAME, "1")):
        done = run("slm", *words)
        assert done.exit_code == 1
        assert "is damaged" in " ".join(done.stderr.split())
    assert active() == "shipped"
