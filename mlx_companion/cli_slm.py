"""`mlx-companion slm <verb>`: the small modules; see `cli` for the conventions."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_companion.cli_parts import (
    AsJson,
    ConfigFile,
    DataDir,
    Set,
    flag,
    lines_in,
    lines_out,
    make_console,
    option,
    print_json,
    read_settings,
)
from mlx_companion.cli_slm_versions import (
    WHICH,
    activate,
    register,
    require_module,
    rollback,
    shadow,
    versions,
)
from mlx_companion.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.table import Table

    from mlx_companion.loop.presence import Running
    from mlx_companion.slm.batches import FileRun
    from mlx_companion.slm.bench import LatencyRow
    from mlx_companion.slm.config import SLMConfig
    from mlx_companion.slm.factory import SLMFactory
    from mlx_companion.slm.health import ModuleStatus
    from mlx_companion.slm.orchestrator import SLMOrchestrator

app = typer.Typer(no_args_is_help=True, help="The four small modules: run, time, look at them.")
for _verb in (versions, register, shadow, activate, rollback):
    app.command()(_verb)

_HELLO = "hey, what is new today?"
_RATE_FROM = 50


@app.command()
def run(
    module: Annotated[str, typer.Argument(help=WHICH)],
    source: Annotated[
        Path, option("FILE", "JSON lines with the module's field; - for standard input.", "--in")
    ],
    out: Annotated[
        Path, option("FILE", "The lines again with their results; - for standard output.", "--out")
    ],
    config: ConfigFile = None,
    set_: Set = None,
    data_dir: DataDir = None,
) -> None:
    """Run one module over a file, a line each; nothing leaves this machine.

    It reads `query` (research_classifier), `text` (personality_guard), `text` or `turns`
    (context_tracker), `responses`, the first half being the baseline unless `baseline` is given,
    or `text`, one message (drift_monitor).
    """
    from mlx_companion.slm import ResourceScheduler, SLMConfig, run_file

    settings = read_settings(SLMConfig, config, set_)
    factory, scheduler = _factory(settings), ResourceScheduler(settings.resources)
    require_module(module, factory.module_names)

    def batch_size() -> int:
        scheduler.refresh()
        return scheduler.batch_size(settings.module(module).batch_size)

    with make_console(stderr=True).status("loading"):
        built = factory.get_module(module)
        built.prepare()
    with lines_in(source) as lines, lines_out(out) as results, _counted("lines") as progress:
        done = run_file(built, lines, results, batch_size=batch_size, progress=progress)
    _tell(done, out)
    if done.failed:
        raise typer.Exit(1)


@app.command()
def bench(
    repeats: Annotated[int, option("N", "Messages for each module (50).")] = 50,
    config: ConfigFile = None,
    set_: Set = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Time the modules on this machine: each alone, then all four together."""
    import asyncio
    from dataclasses import asdict

    from mlx_companion.slm import SLMConfig, SLMOrchestrator, measure_latencies

    settings = read_settings(SLMConfig, config, set_)
    if repeats < 1:
        raise ConfigError(f"--repeats is {repeats}; expected 1 or more")

    async def measure() -> list[LatencyRow]:
        with _counted("rounds") as progress:
            own = SLMOrchestrator(factory=_factory(settings))
            try:
                return await measure_latencies(own, repeats, lambda done, _: progress(done))
            finally:
                own.close()

    rows = asyncio.run(measure())
    if as_json:
        print_json([asdict(row) for row in rows])
    else:
        make_console().print(_latency_table(rows))


@app.command()
def status(
    once: Annotated[bool, flag("--once", "Print one picture and end.")] = False,
    own: Annotated[bool, flag("--own", "Load the modules here, whatever runs elsewhere.")] = False,
    text: Annotated[str, option("TEXT", "The message that the modules are given.")] = _HELLO,
    every: Annotated[float, option("SECONDS", "Time between two pictures (2).")] = 2.0,
    config: ConfigFile = None,
    set_: Set = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Watch the modules at work: state, circuit, latencies, memory, last results.

    Where a companion runs (`chat --modules`, or a program), its modules are shown as they were
    after its last reply. Where none does, they are loaded here and given a message again and again.
    Ctrl-C ends it.
    """
    import asyncio

    from mlx_companion.slm import SLMConfig, SLMOrchestrator

    settings = read_settings(SLMConfig, config, set_)
    if not every > 0:
        raise ConfigError(f"--every is {every}; expected more than 0 seconds")
    if not own and (seen := _running()) is not None and seen.alive:
        _watch_other(seen, every, as_json, once)
        return
    modules = SLMOrchestrator(factory=_factory(settings))
    if once or as_json:
        asyncio.run(_one_picture(modules, text, as_json))
    else:
        asyncio.run(_watch(modules, text, every))


def _running() -> Running | None:
    from mlx_companion.loop.presence import running
    from mlx_companion.runtime.paths import data_dir
    from mlx_companion.store import Store
    from mlx_companion.store.store import FILE_NAME

    if not (data_dir() / FILE_NAME).exists():
        return None
    with Store() as store:
        return running(store)


def _watch_other(seen: Running, every: float, as_json: bool, once: bool) -> None:
    """Pictures of a companion in another process, until it ends."""
    import time

    from rich.live import Live

    if as_json:
        print_json([one.to_dict() for one in seen.modules])
        return
    if once:
        make_console().print(_picture_of(seen))
        return
    with Live(_picture_of(seen), console=make_console(), auto_refresh=False) as live:
        latest: Running | None = seen
        while latest is not None and latest.alive:
            live.update(_picture_of(latest), refresh=True)
            time.sleep(every)
            latest = _running()
    typer.echo("the companion has ended", err=True)


def _picture_of(seen: Running) -> Table:
    table = status_table(seen.modules)
    table.caption = (
        f"companion {seen.version}, process {seen.pid}, {seen.memory_mb:,.0f} MB in memory, "
        f"last reply {seen.at[:19]}"
    )
    return table


async def _one_picture(own: SLMOrchestrator, text: str, as_json: bool) -> None:
    try:
        await own.run_parallel(text)
        if as_json:
            print_json([one.to_dict() for one in own.status()])
        else:
            make_console().print(status_table(own.status()))
    finally:
        own.close()


async def _watch(own: SLMOrchestrator, text: str, every: float) -> None:
    import asyncio

    from rich.live import Live

    with Live(status_table(own.status()), console=make_console(), auto_refresh=False) as live:
        try:
            while True:
                await own.run_parallel(text)
                live.update(status_table(own.status()), refresh=True)
                await asyncio.sleep(every)
        finally:
            own.close()


def status_table(statuses: list[ModuleStatus]) -> Table:
    """The modules as a table; the last line is the whole process."""
    from mlx_companion.loop.console import plain_table, short
    from mlx_companion.runtime.memory import memory_mb

    # The version stands beside the name: all of it has to fit into 80 columns.
    table = plain_table("module", "state", "ok", "not ok", "median", "p95", "last")
    for column in (table.columns[0], *table.columns[2:6]):
        column.no_wrap = True
    for one in statuses:
        bad = sum(n for status, n in one.counts.items() if status not in ("ok", "skipped"))
        table.add_row(
            f"{one.module} {one.version or ''}".rstrip(),
            _state(one),
            str(one.counts.get("ok", 0)),
            str(bad),
            _ms(one.median_ms),
            _ms(one.p95_ms),
            short(_last(one), 60),
        )
    table.caption = f"{memory_mb():,.0f} MB in memory"
    return table


def _state(one: ModuleStatus) -> str:
    notes = [one.state]
    if one.breaker.retry_in > 0:
        notes.append(f"{one.breaker.retry_in:.0f} s")
    if one.abandoned:
        notes.append(f"{one.abandoned} hung")
    return ", ".join(notes)


def _last(one: ModuleStatus) -> str:
    if one.last is None:
        return ""
    if one.last.result is None:
        # Of another process only this is known: results are what somebody has said.
        return one.last.status + (f": {one.last.error}" if one.last.error else "")
    shown = ", ".join(
        f"{_words(key)} {_brief(value)}" for key, value in _head(one.last.result.to_dict())
    )
    return shown if one.last.ok else f"{one.last.status}, {one.last.fallback}: {shown}"


def _head(result: dict[str, Any]) -> list[tuple[str, Any]]:
    told = [
        (k, v) for k, v in result.items() if isinstance(v, bool | float | list) and k != "spans"
    ]
    return told[:2]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _brief(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.2f}" if isinstance(value, float) else str(len(value))


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f} ms"


def _latency_table(rows: list[LatencyRow]) -> Table:
    from mlx_companion.loop.console import plain_table

    table = plain_table("module", "median", "p95", "CPU time", "aim", "answered")
    for row in rows:
        aim = "" if row.aim_ms is None else f"{row.aim_ms:.0f} ms"
        times = (_ms(value) for value in (row.median_ms, row.p95_ms, row.cpu_ms))
        table.add_row(row.name, *times, aim, f"{row.answered:.0%}")
    return table


def _factory(settings: SLMConfig) -> SLMFactory:
    """A factory of the versions in use; a person without a database has those of the package."""
    from mlx_companion.runtime.paths import data_dir
    from mlx_companion.slm import SLMFactory
    from mlx_companion.slm.registry import SLMRegistry
    from mlx_companion.store import Store
    from mlx_companion.store.store import FILE_NAME

    if not (data_dir() / FILE_NAME).exists():
        return SLMFactory(settings)
    with Store() as store:
        return SLMFactory(settings, packs=SLMRegistry(store).packs())


def _tell(done: FileRun, out: Path) -> None:
    say = partial(typer.echo, err=True)
    lines = "1 line" if done.rows == 1 else f"{done.rows:,} lines"
    # Of a few lines the first, which loads and warms up, says nothing about the rest.
    many = done.rows >= _RATE_FROM and done.seconds
    rate = f", {done.rows / done.seconds:,.0f} a second" if many else ""
    say(f"{'standard output' if str(out) == '-' else out}: {lines} in {done.seconds:.1f} s{rate}")
    if done.fallbacks:
        say(f"{done.fallbacks:,} answered by rules alone; `error` in the line says why")
    if done.failed:
        say(f"{done.failed:,} without a result; `error` in the line says why")


@contextmanager
def _counted(what: str) -> Iterator[Callable[[int], None]]:
    """A count on standard error while work goes on; nothing where that is no terminal."""
    console = make_console(stderr=True)
    with console.status(f"0 {what}") as shown:
        yield lambda done: shown.update(f"{done:,} {what}")
