"""Makes docs/cli.md, the reference of all commands and options, from the program itself.

    python tests/cli_reference.py > docs/cli.md

`tests/cli/test_cli_reference.py` makes it again and compares, so that it cannot go stale.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

INTRODUCTION = """\
# Command line

Made from the program by `python tests/cli_reference.py > docs/cli.md`; do not edit it by hand.

`python -m mlx_companion` does the same as `mlx-companion`. Results go to standard output, progress
and errors to standard error. Exit codes: 0 done; 1 an error, told in one line; 2 a wrong command
line or configuration; 130 stopped by Ctrl-C or the kill switch, with nothing lost.

| variable | meaning |
|---|---|
| `MLX_COMPANION_HOME` | folder of the database, adapters, reports and logs |
| `MLX_COMPANION_CACHE` | folder of downloaded models |
| `MLX_COMPANION_OFFLINE` | `1` forbids the network |
| `MLX_COMPANION_BLAS` | on Linux without a GPU: the OpenBLAS to load, or `off` |
| `MLX_COMPANION_DEBUG` | `1` shows where in the code an error came from |
"""


def reference(app: typer.Typer) -> str:
    """The whole reference as Markdown."""
    sections = [
        section(f"mlx-companion {' '.join(verbs)}", command)
        for verbs, command in commands(typer.main.get_command(app), ())
    ]
    return "\n".join([INTRODUCTION, *sections])


def commands(command: Any, verbs: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command below `command` that does something, with the words that lead to it."""
    for name, inner in command.commands.items():
        if hasattr(inner, "commands"):
            yield from commands(inner, (*verbs, name))
        else:
            yield (*verbs, name), inner


def section(name: str, command: Any) -> str:
    """One command: what it does, its arguments and its options."""
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option"]
    usage = " ".join([name, *(p.name.upper() for p in arguments)])
    lines = [f"## `{usage}`", "", *command.help.strip().splitlines(), ""]
    if arguments or options:
        lines += ["| | |", "|---|---|"]
        lines += [f"| `{p.name.upper()}` | {p.help} |" for p in arguments]
        lines += [f"| `{written(p)}` | {p.help} |" for p in options]
        lines.append("")
    return "\n".join(lines)


def written(option: Any) -> str:
    """An option as it is typed: `--json`, or `--seed N`."""
    names = ", ".join([*option.opts, *option.secondary_opts])
    return names if option.is_flag else f"{names} {option.metavar or option.name.upper()}"


if __name__ == "__main__":
    from mlx_companion.cli import app

    print(reference(app), end="")
