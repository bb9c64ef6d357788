"""`mlx-companion runs <verb>`: training runs on this machine; see `cli` for the conventions."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mlx_companion.cli_parts import AsJson, DataDir, make_console, option, print_json

app = typer.Typer(no_args_is_help=True, help="Training runs: list, show, compare, plot.")

Run = Annotated[str, typer.Argument(help="Id or its beginning, name, folder, or last.")]
Runs = Annotated[list[str], typer.Argument(help="Ids, names or folders, or last.")]


@app.command("list")
def list_runs(as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """List all training runs, the newest first."""
    from mlx_companion.loop.run_view import run_table
    from mlx_companion.training.run_book import RunBook

    runs = RunBook().all()
    if as_json:
        print_json([asdict(run) for run in runs])
    else:
        make_console().print(
            run_table(runs) if runs else "no run yet: `mlx-companion finetune` makes one"
        )


@app.command()
def show(run: Run, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Show one run: figures and settings."""
    from mlx_companion.loop.console import pairs
    from mlx_companion.loop.run_view import run_facts
    from mlx_companion.training.run_book import RunBook

    found = RunBook().get(run)
    if as_json:
        print_json(asdict(found))
    else:
        make_console().print(pairs(run_facts(found)))


@app.command()
def compare(runs: Runs, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Compare runs: their figures, and the settings that differ."""
    from mlx_companion.loop.run_view import compared, compared_table
    from mlx_companion.training.run_book import RunBook

    book = RunBook()
    found = [book.get(run) for run in runs]
    result = compared(found)
    if as_json:
        print_json({"runs": [run.id for run in found], **result})
    else:
        make_console().print(compared_table(found, result))


@app.command()
def plot(
    runs: Runs,
    out: Annotated[Path, option("FILE", "The page; its numbers come beside it.", "--out")] = Path(
        "curves.html"
    ),
    data_dir: DataDir = None,
) -> None:
    """Draw the curves of one or several runs as an HTML page."""
    from mlx_companion.loop.run_page import write_curves
    from mlx_companion.training.run_book import RunBook

    book = RunBook()
    page, numbers = write_curves(out, book, [book.get(run) for run in runs])
    print(f"{page}\n{numbers}")


@app.command()
def add(
    folder: Annotated[Path, typer.Argument(help="Folder of a run.")], data_dir: DataDir = None
) -> None:
    """Add a run from its folder, such as one from another machine."""
    from mlx_companion.training.run_book import RunBook

    print(RunBook().add_folder(folder).id)


@app.command()
def forget(run: Run, data_dir: DataDir = None) -> None:
    """Take a run off the list; its folder stays as it is."""
    from mlx_companion.training.run_book import RunBook

    book = RunBook()
    found = book.get(run)
    book.remove(found.id)
    print(f"{found.id} ({found.name}) is off the list; its files are still in {found.folder}")
