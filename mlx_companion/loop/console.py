"""A round in the terminal while it runs; `round_view.py` then shows what came of it.

`RichProgress` listens to a round (see `progress.py`). On a terminal the running step is one line
with a bar, a rate and the time left, and each finished step stays as one line. Anywhere else
only the finished steps are printed, one line each, without control codes::

    with RichProgress(Console(stderr=True)) as progress:
        improve(config, progress=progress)
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
)
from rich.table import Column, Table
from rich.text import Text

from mlx_companion.loop import formats

__all__ = ["RichProgress", "clean", "marks", "pairs", "plain_table", "short"]

# C0 and C1 controls but tab and line feed, overrides of the writing direction, half characters.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_BAR = 20
_STEP = 9


class RichProgress:
    """Shows a round on a console; close it (or use it in `with`) before printing anything else.

    Args:
        console: where to; whether it is a terminal decides between a live line and plain lines.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._ok, self._no = marks(console)
        self._live: Progress | None = None
        self._task = TaskID(0)
        self._running: str | None = None

    def __enter__(self) -> RichProgress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the live line away; a step that is still running is shown as not finished."""
        step, self._running = self._running, None
        self._stop_live()
        if step is not None:
            self._line(self._no, step, "not finished", "", "yellow")

    def round_started(self, number: int, base_version: str, *, resumed: bool) -> None:
        """See `Progress`."""
        how = "goes on where it was interrupted" if resumed else "begins"
        self._console.print(
            Text.assemble((f"Round {number}", "bold"), f" {how}, from {base_version}")
        )

    def note(self, text: str | None) -> None:
        """See `Progress`; None says that a pause is over."""
        said = "the pause is over" if text is None else clean(text)
        self._console.print(Text(f"  {said}", style="dim"), soft_wrap=not self._console.is_terminal)

    def step_started(self, step: str) -> None:
        """See `Progress`."""
        self._stop_live()
        self._running = step
        if self._console.is_terminal:
            self._live = _live_line(self._console)
            self._task = self._live.add_task(step, total=None, detail="", first=None)
            self._live.start()

    def advance(self, step: str, done: int, total: int, detail: str = "") -> None:
        """See `Progress`."""
        if self._live is None:
            return
        first = self._live.tasks[0].fields["first"] or (done, time.monotonic())
        self._live.update(
            self._task, completed=done, total=total, detail=_one_line(detail), first=first
        )

    def step_finished(self, step: str, summary: str, *, seconds: float, skipped: bool) -> None:
        """See `Progress`."""
        self._running = None
        self._stop_live()
        if skipped:
            self._line(self._ok, step, f"{summary} (done before)".strip(), "", "dim")
        else:
            self._line(self._ok, step, summary, formats.seconds(seconds), "green")

    def _stop_live(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _line(self, mark: str, step: str, text: str, took: str, style: str) -> None:
        text = _one_line(text)
        if not self._console.is_terminal:
            line = f"  {mark} {step:<{_STEP}} {text}" + (f"  ({took})" if took else "")
            self._console.print(Text(line.rstrip()), soft_wrap=True)
            return
        row = Table.grid(padding=(0, 1), expand=True)
        row.add_column(width=3)
        row.add_column(min_width=_STEP)
        row.add_column(ratio=1)
        row.add_column(justify="right", no_wrap=True)
        dim = "dim" if style == "dim" else ""
        took_cell = Text(took, style="dim")
        row.add_row(Text(f"  {mark}", style), Text(step, dim), Text(text, dim), took_cell)
        self._console.print(row)


def marks(console: Console) -> tuple[str, str]:
    """The marks for right and wrong that the console's encoding can write."""
    return ("✓", "✗") if console.encoding.lower().startswith("utf") else ("ok", "x")


def clean(text: str) -> str:
    """`text` without the control characters that command a terminal; tabs and lines stay."""
    return _CONTROL.sub("�", text)


def short(text: str, most: int) -> str:
    """`text` on one line, cut to `most` characters."""
    line = _one_line(text)
    return line if len(line) <= most else line[: max(1, most - 3)].rstrip() + "..."


def plain_table(*columns: str, numbers: Sequence[str] = ()) -> Table:
    """An empty table without lines: text columns, then columns of numbers."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def pairs(rows: Mapping[str, Any]) -> Table:
    """Names and values, one pair a line."""
    table = Table.grid(padding=(0, 2))
    table.add_column(min_width=18, style="dim")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(f"  {formats.words(name)}", Text(clean(formats.setting(value))))
    return table


class _Pace(ProgressColumn):
    """How far, how fast and how long still; how long already while the total is unknown."""

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text(formats.seconds(task.elapsed or 0.0), style="dim")
        done, total = int(task.completed), int(task.total)
        text = f"{done:,}/{total:,}"
        units, seconds = done - task.fields["first"][0], time.monotonic() - task.fields["first"][1]
        if units > 0 and seconds > 1:
            rate = units / seconds
            text += f"  {rate:.1f}/s" if rate >= 1 else f"  {1 / rate:.1f} s each"
            text += f"  {formats.seconds((total - done) / rate)} left" if done < total else ""
        return Text(text, no_wrap=True)


def _live_line(console: Console) -> Progress:
    # The streams stay as they are: standard output may go to a file while this goes to a terminal.
    return Progress(
        TextColumn(" "),
        SpinnerColumn(),
        TextColumn("{task.description}", table_column=Column(min_width=_STEP)),
        BarColumn(bar_width=_BAR),
        _Pace(table_column=Column(no_wrap=True)),
        TextColumn(
            "{task.fields[detail]}",
            style="dim",
            markup=False,
            table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
        ),
        console=console,
        transient=True,
        expand=True,
        refresh_per_second=4,
        redirect_stdout=False,
        redirect_stderr=False,
    )


def _one_line(text: str) -> str:
    return " ".join(clean(text).split())
