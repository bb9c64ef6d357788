"""The live view of a round: plain lines without a terminal, one tidy line with one."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from mlx_companion.loop.console import RichProgress, clean, marks, pairs, short

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def plain_console(encoding: str = "utf-8") -> tuple[Console, io.BytesIO]:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    return Console(file=file, width=80, force_terminal=False, color_system=None), raw


def terminal() -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    console = Console(
        file=file, width=80, force_terminal=True, force_interactive=True, color_system="standard"
    )
    return console, file


def a_round(progress: RichProgress) -> None:
    progress.round_started(3, "v0002", resumed=True)
    progress.note(
        "a note that is longer than a line of eighty characters, and so is one line still"
    )
    progress.step_started("collect")
    progress.step_finished("collect", "260 prompts", seconds=0.2, skipped=True)
    progress.step_started("generate")
    progress.advance("generate", 10, 40, "samples")
    progress.advance("generate", 40, 40, "samples")
    progress.step_finished("generate", "40 samples\nof 10 prompts", seconds=187.0, skipped=False)
    progress.step_started("judge")


def test_without_a_terminal_each_finished_step_is_one_line() -> None:
    console, raw = plain_console()
    with RichProgress(console) as progress:
        a_round(progress)
    assert raw.getvalue().decode().splitlines() == [
        "Round 3 goes on where it was interrupted, from v0002",
        "  a note that is longer than a line of eighty characters, and so is one line still",
        "  ✓ collect   260 prompts (done before)",
        "  ✓ generate  40 samples of 10 prompts  (3\N{NO-BREAK SPACE}min 7\N{NO-BREAK SPACE}s)",
        "  ✗ judge     not finished",
    ]


def test_marks_are_writable_in_the_encoding() -> None:
    console, raw = plain_console("ascii")
    assert marks(console) == ("ok", "x")
    with RichProgress(console) as progress:
        progress.step_started("train")
        progress.step_finished("train", "done", seconds=0.0, skipped=True)
    assert raw.getvalue().decode("ascii") == "  ok train     done (done before)\n"


def test_on_a_terminal_finished_steps_stay_and_the_live_line_goes() -> None:
    console, file = terminal()
    with RichProgress(console) as progress:
        a_round(progress)
        assert "\x1b[?25l" in file.getvalue()  # the cursor is hidden while a step runs
    written = file.getvalue()
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")  # and shown again
    lines = [ESCAPE.sub("", line).rstrip() for line in re.split(r"[\r\n]+", written)]
    assert max(map(len, lines)) <= 80
    assert any(re.fullmatch(r"  ✓ generate  40 samples of 10 prompts +3.min 7.s", x) for x in lines)
    assert any(re.match(r"  . generate  ━+ 40/40 ", line) for line in lines)


def test_the_live_line_is_closed_when_a_step_fails() -> None:
    console, file = terminal()
    with pytest.raises(RuntimeError, match="in the step"), RichProgress(console) as progress:
        progress.step_started("train")
        raise RuntimeError("in the step")
    last = ESCAPE.sub("", file.getvalue()).rstrip().splitlines()[-1]
    assert re.fullmatch(r"  ✗ train +not finished", last.rstrip())
    assert file.getvalue().count("\x1b[?25h") >= 1


def test_a_rate_and_the_time_left_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    console, file = terminal()
    now = iter([100.0, 104.0, 104.0, 104.0, 104.0, 104.0, 104.0, 104.0])
    monkeypatch.setattr("mlx_companion.loop.console.time.monotonic", lambda: next(now, 104.0))
    with RichProgress(console) as progress:
        progress.step_started("generate")
        progress.advance("generate", 20, 100)
        progress.advance("generate", 40, 100)  # 20 units in 4 seconds; 60 are left
    shown = ESCAPE.sub("", file.getvalue()).replace("\N{NO-BREAK SPACE}", " ")
    assert "40/100  5.0/s  12 s left" in shown


def test_a_pause_can_be_said_to_be_over() -> None:
    console, raw = plain_console()
    RichProgress(console).note(None)
    assert raw.getvalue() == b"  the pause is over\n"


def test_text_cannot_command_the_terminal() -> None:
    assert clean("a\x1b[2Jb\x07\r\n\tc\u202ed\x9b") == "a�[2Jb��\n\tc�d�"
    assert clean("naïve 你好 😀 \u200d שלום") == "naïve 你好 😀 \u200d שלום"
    console, raw = plain_console()
    with RichProgress(console) as progress:
        progress.note("[red]x[/red] \x1b[31m")
        progress.step_started("s")
        progress.step_finished("s", "[bold]y \x1b]0;title\x07", seconds=1.0, skipped=False)
    assert b"\x1b" not in raw.getvalue()
    assert b"[red]x[/red]" in raw.getvalue()
    assert b"[bold]y" in raw.getvalue()


@pytest.mark.parametrize(
    ("text", "most", "expected"),
    [("one  two\nthree", 20, "one two three"), ("abcdefghij", 10, "abcdefghij"),
     ("abcdefghijk", 10, "abcdefg..."), ("", 5, "")],
)  # fmt: skip
def test_text_is_cut_to_a_line(text: str, most: int, expected: str) -> None:
    assert short(text, most) == expected


def test_pairs_show_every_value() -> None:
    console, raw = plain_console()
    console.print(pairs({"free_space": 12, "on": True, "none": None}))
    lines = [line.split() for line in raw.getvalue().decode().splitlines()]
    assert lines == [["free", "space", "12"], ["on", "yes"], ["none", "–"]]
