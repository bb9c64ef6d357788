"""What the command line's modules share: options, settings from them, consoles, JSON."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from mlx_companion.errors import DataError
from mlx_companion.runtime.paths import HOME_VARIABLE

T = TypeVar("T")


def option(metavar: str, text: str, *names: str, callback: Any = None) -> Any:
    """An option with a value; its name is the parameter's unless given."""
    return typer.Option(*names, metavar=metavar, help=text, callback=callback)


def flag(name: str, text: str, callback: Any = None) -> Any:
    """An option without a value. With a callback, that runs before anything else."""
    return typer.Option(name, help=text, callback=callback, is_eager=callback is not None)


def use_data_dir(folder: Path | None) -> Path | None:
    """Let the rest of the program find its data in `folder`."""
    if folder is not None:
        os.environ[HOME_VARIABLE] = str(folder.expanduser().absolute())
    return folder


_WHERE = f"Folder of the database, adapters and reports; also ${HOME_VARIABLE}."
DataDir = Annotated[Path | None, option("FOLDER", _WHERE, "--data-dir", callback=use_data_dir)]
ConfigFile = Annotated[Path | None, option("FILE", "YAML file with settings.", "--config")]
Set = Annotated[list[str] | None, option("KEY=VALUE", "One setting; repeatable.", "--set")]
Seed = Annotated[int | None, option("N", "Makes the run repeatable.")]
ClearStop = Annotated[bool, flag("--clear-stop", "Take back the kill switch first.")]
Model = Annotated[str | None, option("NAME", "Alias, hub id, folder or GGUF file.")]
Profile = Annotated[str | None, option("NAME", "Style profile: a packaged name or a file.")]
AsJson = Annotated[bool, flag("--json", "Print JSON instead of tables.")]


def make_console(*, stderr: bool = False) -> Console:
    """A console for results, or for progress and errors."""
    return Console(stderr=stderr, highlight=False)


def read_settings(cls: type[T], config: Path | None, set_: list[str] | None, **named: Any) -> T:
    """Settings: defaults, then the file, then `--set`, then the options."""
    from mlx_companion.runtime.config import load_config, parse_overrides

    return load_config(cls, config, parse_overrides(set_ or ()) | given(**named))


def given(**options: Any) -> dict[str, Any]:
    """The options that were given, so that defaults live in the library alone."""
    return {name: value for name, value in options.items() if value is not None}


def print_json(value: Any) -> None:
    """Print a value as JSON on one line or several, as the library stores it."""
    from mlx_companion.store.values import dump_json

    print(dump_json(value))


def path_or_share(text: str | None) -> str | float | None:
    """A share of the data when it is a number, else a path; None stays None."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


@contextmanager
def lines_in(source: Path) -> Iterator[Path]:
    """The file of JSON lines to read: `source`, or for `-` what standard input gave, to its end.

    Raises:
        DataError: from the block; the place of one in standard input is named so.
    """
    if str(source) != "-":
        yield source
        return
    with tempfile.TemporaryDirectory() as folder:
        held = Path(folder, "lines.jsonl")
        with held.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        try:
            yield held
        except DataError as error:
            if error.path != held:
                raise
            raise DataError(str(error).replace(str(held), "standard input", 1)) from error


@contextmanager
def lines_out(out: Path) -> Iterator[Path]:
    """The file to write: `out`, or for `-` one that goes to standard output after the block."""
    if str(out) != "-":
        yield out
        return
    with tempfile.TemporaryDirectory() as folder:
        held = Path(folder, "lines.jsonl")
        yield held
        sys.stdout.flush()
        with held.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()
