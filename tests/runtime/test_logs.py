"""Logs: JSON lines with context, nothing on stderr, rotation that several processes survive."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlx_companion.runtime.logs import close_logging, configure_logging, get_logger, log_context


@pytest.fixture(autouse=True)
def closed_afterwards() -> Iterator[None]:
    yield
    close_logging()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_line_holds_message_context_and_extra_fields(tmp_path: Path) -> None:
    path = configure_logging(tmp_path / "logs")
    log = get_logger("mlx_companion.loop.train")
    with log_context(run="r1"), log_context(round=2):
        log.info("step %d\nzoë", 3, extra={"loss": 1.5, "out": tmp_path})
    log.warning("after")
    first, second = lines(path)
    assert first["message"] == "step 3\nzoë"
    assert (first["run"], first["round"], first["loss"]) == ("r1", 2, 1.5)
    assert first["out"] == str(tmp_path)
    assert (first["level"], first["logger"]) == ("INFO", "mlx_companion.loop.train")
    assert first["time"].endswith("+00:00")
    assert set(second) == {"time", "level", "logger", "message"}


def test_errors_carry_their_traceback(tmp_path: Path) -> None:
    path = configure_logging(tmp_path)
    try:
        raise ValueError("bad")
    except ValueError:
        get_logger("x").exception("failed")
    assert "ValueError: bad" in lines(path)[0]["error"]
    assert lines(path)[0]["logger"] == "mlx_companion.x"


def test_the_level_filters_and_a_new_configuration_replaces_the_old(tmp_path: Path) -> None:
    old = configure_logging(tmp_path / "old")
    new = configure_logging(tmp_path / "new", level="WARNING")
    get_logger("x").info("quiet")
    get_logger("x").warning("loud")
    assert [line["message"] for line in lines(new)] == ["loud"]
    assert old.read_text() == ""


def test_nothing_is_printed_without_a_configuration() -> None:
    script = """
        from mlx_companion.runtime.logs import get_logger
        get_logger("x").error("not on the terminal")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, check=True
    )
    assert done.stdout + done.stderr == b""


def test_the_file_is_rotated(tmp_path: Path) -> None:
    path = configure_logging(tmp_path, max_bytes=2000, backups=2)
    for number in range(60):
        get_logger("x").info("line", extra={"number": number})
    kept = sorted(p.name for p in tmp_path.glob("companion.log*"))
    assert kept == ["companion.log", "companion.log.1", "companion.log.2"]
    assert path.stat().st_size <= 2000
    assert lines(path)[-1]["number"] == 59


def test_processes_share_the_file_and_lose_no_line(tmp_path: Path) -> None:
    script = """
        import sys
        from mlx_companion.runtime.logs import configure_logging, get_logger
        configure_logging(sys.argv[1], max_bytes=4000, backups=50)
        for number in range(100):
            get_logger("x").info("line", extra={"who": sys.argv[2], "number": number})
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    writers = [subprocess.Popen([*command, who]) for who in "abc"]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    written = [line for path in tmp_path.glob("companion.log*") for line in lines(path)]
    found = sorted((line["who"], line["number"]) for line in written)
    assert found == [(who, number) for who in "abc" for number in range(100)]


def test_a_log_that_cannot_be_written_stops_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure_logging(tmp_path / "logs")
    handler = logging.getLogger("mlx_companion").handlers[-1]

    def full(text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(handler.stream, "write", full, raising=False)
    get_logger("x").info("lost")
    assert capfd.readouterr() == ("", "")
