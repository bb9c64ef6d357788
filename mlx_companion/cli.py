"""`mlx-companion <verb>`: parses the command line, calls the library, shows what came of it.

Nothing is computed here. Each verb is a function whose docstring is its help; `docs/cli.md` lists
them all and is made from them. Results go to standard output, progress and errors to standard
error. Exit codes: 0 done, 1 an error (one line that says what to do), 2 a wrong command line or
configuration, 130 stopped by Ctrl-C or the kill switch with nothing lost. `MLX_COMPANION_DEBUG=1`
shows where in the code an error came from.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text
from typer.core import TyperGroup

import mlx_companion
from mlx_companion.cli_blt import app as blt
from mlx_companion.cli_learn import classify, tune
from mlx_companion.cli_parts import (
    AsJson,
    ClearStop,
    ConfigFile,
    DataDir,
    Model,
    Profile,
    Seed,
    Set,
    flag,
    make_console,
    option,
    path_or_share,
    print_json,
    read_settings,
)
from mlx_companion.cli_plan import plan
from mlx_companion.cli_quant import quantize
from mlx_companion.cli_runs import app as runs
from mlx_companion.cli_slm import app as slm
from mlx_companion.cli_sou import app as sou
from mlx_companion.cli_talk import chat, generate
from mlx_companion.errors import CompanionError, ConfigError, Stopped
from mlx_companion.runtime.paths import cache_dir

if TYPE_CHECKING:
    from mlx_companion.store import Store

# Seconds of imports (MLX, transformers) belong to the verbs that need them, so that `--help`
# answers at once; hence the imports inside the functions.

DEBUG_VARIABLE = "MLX_COMPANION_DEBUG"
POISON_VARIABLE = "MLX_COMPANION_TEST_POISON"
TALK, LEARN, VERSIONS, DATA, MACHINE = "Talk", "Learn", "Versions", "Your data", "Machine"
BYTES, MODULES = "Byte models", "Small modules"


class _Verbs(TyperGroup):
    """Turns the library's errors into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Stopped as error:
            raise _failed(f"{error}; run the same command again to continue", 130) from error
        except KeyboardInterrupt as error:
            raise _failed("interrupted", 130) from error
        except BrokenPipeError:
            raise
        except UnicodeDecodeError as error:
            raise _failed(f"the input is not UTF-8 text: {error.reason}", 1) from error
        except (CompanionError, OSError) as error:
            if os.environ.get(DEBUG_VARIABLE):
                raise
            raise _failed(str(error), 2 if isinstance(error, ConfigError) else 1) from error


def _failed(message: str, code: int) -> typer.Exit:
    told = Text(message, style="yellow") if code == 130 else Text(f"error: {message}", "bold red")
    make_console(stderr=True).print(told, soft_wrap=True)
    return typer.Exit(code)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"mlx-companion {mlx_companion.__version__}")
        raise typer.Exit


app = typer.Typer(
    name="mlx-companion",
    cls=_Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
data = typer.Typer(no_args_is_help=True, help="Export, import, delete or count what is stored.")
app.add_typer(data, name="data", rich_help_panel=DATA)
app.add_typer(runs, name="runs", rich_help_panel=LEARN)
app.add_typer(blt, name="blt", rich_help_panel=BYTES)
app.add_typer(sou, name="sou", rich_help_panel=VERSIONS)
app.add_typer(slm, name="slm", rich_help_panel=MODULES)


@app.callback()
def root(
    version: Annotated[bool, flag("--version", "Show the version.", _show_version)] = False,
) -> None:
    """A small language-model companion that runs, tunes and improves itself on this machine."""


app.command(rich_help_panel=TALK)(chat)
app.command(rich_help_panel=TALK)(generate)


@app.command(rich_help_panel=LEARN)
def improve(
    config: ConfigFile = None,
    set_: Set = None,
    model: Model = None,
    profile: Profile = None,
    rounds: Annotated[int | None, option("N", "Rounds to run.")] = None,
    review: Annotated[bool, flag("--review", "Let me promote what passes the gate.")] = False,
    dry_run: Annotated[bool, flag("--dry-run", "Decide, but change nothing.")] = False,
    seed: Seed = None,
    quiet: Annotated[bool, flag("--quiet", "Print only the last line.")] = False,
    clear_stop: ClearStop = False,
    data_dir: DataDir = None,
) -> None:
    """Run a round: collect, generate, judge, train, test, then deploy or keep the old version.

    An interrupted round goes on where it was. The last line printed is a JSON object of figures.
    """
    from mlx_companion.loop import LoopConfig
    from mlx_companion.loop.round_view import result_line
    from mlx_companion.loop.shown import shown_rounds

    if review and dry_run:
        raise typer.BadParameter("give --review or --dry-run, not both")
    mode = "review" if review else "dry-run" if dry_run else None
    settings = read_settings(
        LoopConfig, config, set_, model=model, profile=profile, rounds=rounds, seed=seed, mode=mode
    )
    # A test asks for spoiled training targets, which the gate has to refuse.
    poison: Any = os.environ.get(POISON_VARIABLE) or None
    report = shown_rounds(
        settings,
        out=make_console(),
        err=make_console(stderr=True),
        quiet=quiet,
        clear_stop=clear_stop,
        poison=poison,
    )
    # Not through rich, which would wrap it.
    print(result_line(report))


@app.command(rich_help_panel=LEARN)
def finetune(
    data: Annotated[Path, option("PATH", "File or folder of txt, jsonl, json or csv.", "--data")],
    model: Model = None,
    valid: Annotated[str | None, option("PATH|SHARE", "Held-out data, or 0.1 of --data.")] = None,
    out: Annotated[Path | None, option("FOLDER", "The run's folder (runs/NAME-OF-DATA).")] = None,
    rank: Annotated[int | None, option("N", "Rank of the adapter.")] = None,
    alpha: Annotated[float | None, option("X", "Strength of the adapter.")] = None,
    layers: Annotated[int | None, option("N", "Adapt only the last N layers.")] = None,
    epochs: Annotated[int | None, option("N", "Passes over the data.")] = None,
    lr: Annotated[float | None, option("X", "Highest learning rate.")] = None,
    batch_tokens: Annotated[int | None, option("N", "Most tokens in a batch.")] = None,
    max_tokens: Annotated[int | None, option("N", "Most tokens in a row.")] = None,
    seed: Seed = None,
    config: ConfigFile = None,
    set_: Set = None,
    no_resume: Annotated[bool, flag("--no-resume", "Start over in the run's folder.")] = False,
    dry_run: Annotated[
        bool, flag("--dry-run", "Run a few steps; say what the run will take, and write nothing.")
    ] = False,
    track: Annotated[
        list[str] | None, option("NAME", "Note it elsewhere too: mlflow, wandb, trackio.")
    ] = None,
    clear_stop: ClearStop = False,
    data_dir: DataDir = None,
) -> None:
    """Train an adapter on your own file; an interrupted run goes on where it was."""
    from mlx_companion.loop.switch import long_work
    from mlx_companion.models import DEFAULT_MODEL
    from mlx_companion.runtime.monitor import ResourceMonitor
    from mlx_companion.training import finetune as train_adapter
    from mlx_companion.training.distributed import join
    from mlx_companion.training.settings import FinetuneConfig

    lora = {"lora.rank": rank, "lora.alpha": alpha, "lora.layers": layers}
    train = {"epochs": epochs, "lr": lr, "batch_tokens": batch_tokens, "max_tokens": max_tokens}
    train = {f"train.{name}": value for name, value in {**train, "seed": seed}.items()}
    settings = read_settings(FinetuneConfig, config, set_, **lora, **train)
    if dry_run:
        from mlx_companion.training import rehearse

        print(
            rehearse(
                model or DEFAULT_MODEL,
                data,
                lora=settings.lora,
                train=settings.train,
                valid=path_or_share(valid),
            )
        )
        return
    with long_work(clear_stop=clear_stop, say=partial(typer.echo, err=True)) as switch:
        result = train_adapter(
            model or DEFAULT_MODEL,
            data,
            out or Path("runs") / data.resolve().stem,
            lora=settings.lora,
            train=settings.train,
            valid=path_or_share(valid),
            resume=not no_resume,
            stop=switch,
            monitor=ResourceMonitor(settings.limits),
            track=("local", *(track or ())),
        )
    if join().first:
        print(f"adapter: {result.adapter}")


app.command(rich_help_panel=LEARN)(tune)
app.command(rich_help_panel=TALK)(classify)


@app.command(rich_help_panel=VERSIONS)
def versions(as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """List all versions of the companion; the active one is marked."""
    with _store() as store:
        known, history = store.versions.all(), store.versions.history()
    if as_json:
        print_json({"versions": known, "history": history})
        return
    from mlx_companion.loop.version_view import version_table

    make_console().print(
        version_table(known) if known else "no version yet: the first `chat` or `improve` makes one"
    )


@app.command(rich_help_panel=VERSIONS)
def promote(
    version: Annotated[str, typer.Argument(help="Such as v0002.")], data_dir: DataDir = None
) -> None:
    """Make a version the active one, for instance after `improve --review`."""
    from mlx_companion.loop import promote as make_active

    with _store() as store:
        print(f"{make_active(store, version).id} is active now")


@app.command(rich_help_panel=VERSIONS)
def rollback(
    to: Annotated[str | None, option("VERSION", "Version to go back to.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Go back to the version that was active before."""
    from mlx_companion.loop import rollback as go_back

    with _store() as store:
        print(f"{go_back(store, to=to).id} is active now")


@app.command(rich_help_panel=VERSIONS)
def diff(
    a: Annotated[str, typer.Argument(help="One version, such as v0001.")],
    b: Annotated[str, typer.Argument(help="Another one.")],
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Compare two versions: their figures, and replies to the same prompts."""
    from mlx_companion.loop import diff as compare
    from mlx_companion.loop.version_view import print_diff

    with _store() as store:
        found = compare(store, a, b)
    if as_json:
        print_json(found)
    else:
        print_diff(make_console(), a, b, found)


@data.command("export")
def data_export(
    file: Annotated[Path, typer.Argument(help="JSONL file to write.")],
    kind: Annotated[list[str] | None, option("KIND", "Such as interaction; repeatable.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Write everything that is stored to a JSONL file (adapters stay where they are)."""
    from mlx_companion.store import export

    with _store() as store:
        counts = export(store, file, kind)
    print(f"{sum(counts.values()):,} rows written to {file}")


@data.command("import")
def data_import(
    file: Annotated[Path, typer.Argument(help="JSONL file: an export, or chats.")],
    data_dir: DataDir = None,
) -> None:
    """Read an exported file or chat lines; all of it or, when a line is wrong, nothing.

    Chat lines are {"messages": [...]} or {"prompt": ..., "response": ...}.
    """
    from mlx_companion.store import import_

    with _store() as store:
        report = import_(store, file)
    print(f"{report.added.total():,} rows added, {report.existing.total():,} were here already")
    for conflict in report.conflicts:
        print(conflict)


@data.command("delete")
def data_delete(
    yes: Annotated[bool, flag("--yes", "Do not ask.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Delete everything: conversations, samples, versions, adapters, reports, logs, backups."""
    from mlx_companion.store import delete_everything

    with _store() as store:
        if not yes:
            said, made = store.interactions.count(), len(store.versions.all())
            what = f"{said:,} exchanges, {made:,} versions and all else in {store.folder}"
            typer.confirm(f"Delete {what}, for good?", abort=True)
        counts = delete_everything(store, confirm=True)
    files = counts.pop("files", 0) + counts.pop("backups", 0)
    print(f"deleted {sum(counts.values()):,} rows and {files:,} files")


@data.command("stats")
def data_stats(as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Show what is stored and how much room it takes."""
    from mlx_companion.loop.console import pairs
    from mlx_companion.loop.doctor import contents

    with _store() as store:
        found = contents(store)
    if as_json:
        print_json(found)
    else:
        make_console().print(pairs(found))


@app.command(rich_help_panel=MACHINE)
def doctor(as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Look at the machine, its speed and your data, and say what is wrong (exit code 1)."""
    from mlx_companion.loop.doctor import examine, print_examination

    found = examine()
    if as_json:
        print_json(found)
    else:
        print_examination(make_console(), found)
    if found["problems"]:
        raise typer.Exit(1)


@app.command(rich_help_panel=MACHINE)
def models() -> None:
    """List the models that have a short name, and which of them are on this disk."""
    from mlx_companion.loop.console import plain_table
    from mlx_companion.models import ALIASES, hub, wheel

    table = plain_table("alias", "on the hub as", "kind", "on this disk")
    for spec in ALIASES.values():
        here = wheel.cached(spec) or hub.cached(spec)
        table.add_row(spec.alias, spec.hub_id, spec.kind, "yes" if here else "no")
    make_console().print(table)


@app.command(rich_help_panel=MACHINE)
def fetch(
    model: Annotated[str, typer.Argument(help="Alias or hub id.")],
    verify: Annotated[bool, flag("--verify", "Check the content of every file.")] = False,
) -> None:
    """Download a model, or finish or mend what is there of it, and print where it is."""
    from mlx_companion.models.fetch import fetch as download

    with make_console(stderr=True).status(f"fetching {model} into {cache_dir()}"):
        path = download(model, verify=verify)
    print(path)


app.command(rich_help_panel=MACHINE)(plan)
app.command(rich_help_panel=VERSIONS)(quantize)


@app.command(rich_help_panel=MACHINE)
def stop(data_dir: DataDir = None) -> None:
    """Throw the kill switch: running work stops at its next safe point, and none starts."""
    from mlx_companion.loop.switch import throw

    print(f"the kill switch is thrown ({throw()}); `mlx-companion resume` takes it back")


@app.command(rich_help_panel=MACHINE)
def resume(data_dir: DataDir = None) -> None:
    """Take the kill switch back, so that `improve` and `finetune` may run again."""
    from mlx_companion.loop.switch import take_back

    print("the kill switch is taken back" if take_back() else "the kill switch was not thrown")


def main() -> None:
    """The command `mlx-companion`."""
    for stream in (sys.stdout, sys.stderr):
        # A reply may hold characters that an old terminal cannot write; show what it can.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    app()


def _store() -> Store:
    from mlx_companion.store import Store

    return Store()
