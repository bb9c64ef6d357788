"""The README is true: its commands, its make targets, its Python and its tree.

Fenced blocks are read by their info string:

    sh, console        every `mlx-companion <verb> ...` and `make <target>` line is checked
    python             compiled; its imports are made
    python session     run, with `load` giving a tiny random model
    text               the one that lists `mlx_companion/` is the tree
"""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from tiny import tiny_llama
from typer.testing import CliRunner

import mlx_companion

FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^(?:\S*/)?(?:python3? -m mlx_companion|mlx-companion)(?=\s|$)")


def blocks(text: str, *infos: str) -> list[str]:
    return [body for info, body in FENCE.findall(text) if info.strip() in infos]


def shell_lines(text: str) -> Iterator[str]:
    """Commands in sh blocks, and the prompted ones in console blocks, with `\\` lines joined."""
    for body in blocks(text, "sh", "bash"):
        yield from body.replace("\\\n", " ").splitlines()
    for body in blocks(text, "console"):
        lines = body.replace("\\\n", " ").splitlines()
        yield from (line[2:] for line in lines if line.startswith("$ "))


def companion_commands(text: str) -> list[list[str]]:
    """The words after `mlx-companion` of every such command, comments and pipes cut off."""
    commands = []
    for line in shell_lines(text):
        match = COMMAND.match(line.strip())
        if match:
            lexer = shlex.shlex(line.strip()[match.end() :], posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words: list[str] = []
            for word in lexer:
                if set(word) <= set("|&;<>"):
                    break
                words.append(word)
            commands.append(words)
    return commands


def make_targets(text: str) -> list[str]:
    found = []
    for line in shell_lines(text):
        words = shlex.split(line, comments=True)
        if words[:1] == ["make"]:
            found += [w for w in words[1:] if "=" not in w and not w.startswith("-")]
    return found


def check_command(app: typer.Typer, words: list[str]) -> None:
    """Fail unless each verb and each option of a command line exists, and its help prints."""
    command: Any = typer.main.get_command(app)
    verbs: list[str] = []
    rest = list(words)
    while rest and hasattr(command, "commands") and not rest[0].startswith("-"):
        verbs.append(rest.pop(0))
        assert verbs[-1] in command.commands, f"unknown verb: {' '.join(verbs)}"
        command = command.commands[verbs[-1]]
    known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)} | {"--help"}
    for word in rest:
        if word.startswith("-") and not re.fullmatch(r"-?\d+(\.\d+)?", word):
            assert word.split("=")[0] in known, f"{' '.join(verbs)} has no option {word}"
    assert CliRunner().invoke(app, [*verbs, "--help"]).exit_code == 0


@pytest.fixture(scope="module")
def readme() -> str:
    path = Path(mlx_companion.__file__).parent.parent / "README.md"
    return path.read_text(encoding="utf-8")


def test_every_companion_command_exists(readme: str) -> None:
    from mlx_companion.cli import app

    commands = companion_commands(readme)
    assert commands
    for words in commands:
        check_command(app, words)


def test_every_make_target_exists(readme: str, repository: Path) -> None:
    makefile = (repository / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE))
    assert targets >= {"help", "improve", "test", "lint", "bench", "clean"}
    assert set(make_targets(readme)) <= targets


def provides(module: ModuleType, name: str) -> bool:
    """Whether `from module import name` works: an attribute, or a module of the package."""
    return hasattr(module, name) or find_spec(f"{module.__name__}.{name}") is not None


def test_python_blocks_compile_and_import(readme: str) -> None:
    for body in blocks(readme, "python", "python session"):
        for node in ast.walk(ast.parse(body)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)
            elif isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module or "")
                for alias in node.names:
                    assert provides(module, alias.name), f"{node.module}.{alias.name}"


def test_attributes_of_the_package_in_python_blocks_are_public(readme: str) -> None:
    for body in blocks(readme, "python", "python session"):
        for name in re.findall(r"\bmc\.(\w+)", body):
            assert name in mlx_companion.__all__, f"mc.{name}"


def test_python_sessions_run(readme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = blocks(readme, "python session")
    assert sessions
    model = mlx_companion.load(tiny_llama(tmp_path / "model"))
    monkeypatch.setattr(mlx_companion, "load", lambda *args, **kwargs: model)
    monkeypatch.chdir(tmp_path)
    for body in sessions:
        exec(compile(body, "README.md", "exec"), {"__name__": "__readme__"})


def tree_entries(block: str) -> list[tuple[str, int]]:
    """Paths of a tree block. Nesting is by two spaces; a line may list several paths, then,
    after two or more spaces, says what the last is for."""
    entries: list[tuple[str, int]] = []
    parents: list[str] = []
    for line in block.splitlines():
        if not line.strip():
            continue
        depth = (len(line) - len(line.lstrip())) // 2
        parents = parents[:depth]
        for token in re.split(r"\s{2,}", line.strip()):
            if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*/?", token) or not (
                "/" in token or "." in token or (line.strip().startswith(token) or token.istitle())
            ):
                break
            entries.append(("".join(parents) + token, depth))
        if entries and entries[-1][0].endswith("/"):
            parents = [*parents, entries[-1][0].removeprefix("".join(parents))]
    return entries


def tracked_folders(repository: Path, inside: str = "") -> set[str]:
    done = subprocess.run(
        ["git", "ls-files", inside or "."],
        cwd=repository, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    prefix = f"{inside}/" if inside else ""
    paths = [line.removeprefix(prefix) for line in done.stdout.splitlines()]
    return {f"{prefix}{path.split('/')[0]}/" for path in paths if "/" in path}


def test_the_tree_is_true(readme: str, repository: Path) -> None:
    trees = [b for b in blocks(readme, "text", "") if re.search(r"^mlx_companion/", b, re.M)]
    assert len(trees) == 1, "expected one tree block (```text) that lists mlx_companion/"
    listed = {path for path, _ in tree_entries(trees[0])}
    missing = {path for path in listed if not (repository / path).exists()}
    assert missing == set(), "the tree lists what does not exist"
    folders = {f for f in tracked_folders(repository) if not f.startswith(".")}
    assert folders <= listed, "the tree leaves out a folder"
    layers = tracked_folders(repository, "mlx_companion")
    assert layers <= listed, "the tree leaves out a part of the package"


TREE = """\
pyproject.toml  README.md  Makefile
mlx_companion/   the package
  text/      bytes in; batches out
  errors.py  one tree
    deep.py
tests/     mirrors the package
"""


def test_a_tree_is_read() -> None:
    assert [path for path, _ in tree_entries(TREE)] == [
        "pyproject.toml",
        "README.md",
        "Makefile",
        "mlx_companion/",
        "mlx_companion/text/",
        "mlx_companion/errors.py",
        "mlx_companion/deep.py",
        "tests/",
    ]


SAMPLE = """\
```sh
pip install x   # not ours
mlx-companion improve --dry-run --max-rounds=2 | tee log  # a comment
.venv/bin/python -m mlx_companion data export \\
    out.jsonl
make improve ARGS="--review" && true
```
```console
$ mlx-companion doctor
mlx-companion 0.1.0
$ make test
```
"""


def test_commands_are_found() -> None:
    assert companion_commands(SAMPLE) == [
        ["improve", "--dry-run", "--max-rounds=2"],
        ["data", "export", "out.jsonl"],
        ["doctor"],
    ]
    assert make_targets(SAMPLE)[:1] == ["improve"]
    assert "test" in make_targets(SAMPLE)


def test_a_wrong_command_is_told_from_a_right_one() -> None:
    app = typer.Typer()
    data = typer.Typer()
    app.add_typer(data, name="data")

    @data.command()
    def export(path: str, pretty: bool = False, scale: float = 1.0) -> None: ...

    check_command(app, ["data", "export", "out.jsonl", "--no-pretty", "--scale=-1", "--help"])
    check_command(app, ["data"])
    with pytest.raises(AssertionError, match="unknown verb: data exprt"):
        check_command(app, ["data", "exprt"])
    with pytest.raises(AssertionError, match="data export has no option --prety"):
        check_command(app, ["data", "export", "x", "--prety"])


def test_a_session_runs_on_a_tiny_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "```python session\nimport mlx_companion as mc\nm = mc.load('any')\nassert m.model\n```\n"
    )
    test_python_sessions_run(text, tmp_path, monkeypatch)
    with pytest.raises(AssertionError):
        test_python_sessions_run(text.replace("m.model", "False"), tmp_path, monkeypatch)
