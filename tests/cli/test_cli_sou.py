"""`mlx-companion sou ...`: a companion packed, looked at, checked, compared, unpacked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import tiny_llama
from typer.testing import CliRunner, Result

from mlx_companion.cli import app


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "model")


def run(*words: object) -> Result:
    return CliRunner().invoke(app, ["sou", *map(str, words)])


def test_a_companion_there_and_back(model: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "tone"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (tmp_path / "access.json").write_text('{"level": "friends"}')
    (model / "code.py").write_text("")
    a, b = tmp_path / "a.sou", tmp_path / "b.sou"
    packed = run(
        "pack", model, a, "--adapter", adapter, "--adapter", f"voice={adapter}",
        "--access", tmp_path / "access.json", "--licence", "MIT", "--created", "2026-01-31T10",
    )  # fmt: skip
    assert packed.exit_code == 0, packed.output
    assert "left out: code.py" in packed.output
    shown = json.loads(run("inspect", a, "--tensors", "--json").stdout)
    kinds = {(one["kind"], one["name"]) for one in shown["sections"]}
    assert ("adapter", "tone/adapter_config.json") in kinds
    assert ("adapter", "voice/adapter_config.json") in kinds
    assert shown["provenance"]["created"] == "2026-01-31T10"
    assert shown["tensors"]["model"]["model.norm.weight"]["shape"] == [32]
    assert "model.norm.weight" in run("inspect", a, "--tensors").stdout

    assert "is whole" in run("verify", a).stdout
    assert json.loads(run("verify", a, "--json").stdout)["digest"] == shown["digest"]
    assert run("unpack", a, tmp_path / "out").exit_code == 0
    assert run("pack", tmp_path / "out", b).exit_code == 0
    assert run("diff", a, b).stdout == "the content is the same\n"
    assert run("pack", model, b, "--licence", "GPL-3.0").exit_code == 0
    lines = run("diff", a, b).stdout.splitlines()
    assert "- access: access.json" in lines
    assert "~ provenance.licence: 'MIT' -> 'GPL-3.0'" in lines
    assert not json.loads(run("diff", a, b, "--json").stdout)["same"]


def test_a_damaged_file_gives_one_line(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.sou"
    run("pack", model, file)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    result = run("verify", file)
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert str(file) in result.stderr
    assert "is damaged" in result.stderr
    assert run("unpack", file, tmp_path / "out").exit_code == 1
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".tmp-*"))


def test_wrong_words_are_refused(model: Path, tmp_path: Path) -> None:
    result = run("pack", model, tmp_path / "a.sou", "--created", "yesterday")
    assert result.exit_code == 2
    assert "ISO 8601" in result.stderr
    assert not (tmp_path / "a.sou").exists()
    assert run("verify", tmp_path / "nowhere.sou").exit_code == 1
    same = run("pack", model, tmp_path / "a.sou", "--adapter", "a/tone", "--adapter", "b/tone")
    assert same.exit_code == 2
    assert "two adapters" in same.stderr


def test_now_is_noted(model: Path, tmp_path: Path) -> None:
    run("pack", model, tmp_path / "a.sou", "--created", "now")
    shown = json.loads(run("inspect", tmp_path / "a.sou", "--json").stdout)
    assert shown["provenance"]["created"].startswith("20")


def test_names_in_a_file_are_not_read_as_markup(tmp_path: Path) -> None:
    from sou_bytes import build, one, tensors

    (tmp_path / "a.sou").write_bytes(
        build([one(9, "[bold]x[/bold].md"), *tensors({"[red]y": ("U8", [1], b"1")})])
    )
    shown = run("inspect", tmp_path / "a.sou", "--tensors").stdout
    assert "[bold]x[/bold].md" in shown
    assert "[red]y" in shown
