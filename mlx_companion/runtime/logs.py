"""Structured logs: one JSON object per line, in a rotating file that several processes may share.

Nothing is printed: the terminal belongs to the progress display. Fields set with `log_context`
(a run's id, a round's number) go into every line written inside the block::

    configure_logging(data_dir() / "logs")
    with log_context(run="r17"):
        get_logger(__name__).info("step done", extra={"step": 3, "loss": 1.25})
"""

from __future__ import annotations

import contextlib
import contextvars
import fcntl
import json
import logging
import logging.handlers
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = "mlx_companion"
FILE_NAME = "companion.log"

_context: contextvars.ContextVar[dict[str, Any] | None] = contextvars.ContextVar(
    "mlx_companion_log_context", default=None
)
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

# Without a handler Python would print warnings to stderr.
logging.getLogger(ROOT).addHandler(logging.NullHandler())


def get_logger(name: str) -> logging.Logger:
    """A logger under the package's root, e.g. `get_logger(__name__)`."""
    if name == ROOT or name.startswith(ROOT + "."):
        return logging.getLogger(name)
    return logging.getLogger(f"{ROOT}.{name}")


def configure_logging(
    folder: str | Path, *, level: str = "INFO", max_bytes: int = 5_000_000, backups: int = 3
) -> Path:
    """Write the package's logs to `companion.log` in `folder`; replaces an earlier configuration.

    Args:
        folder: created when missing.
        level: the least severe level that is written.
        max_bytes: the file is rotated before it grows over this.
        backups: rotated files that are kept (`companion.log.1` is the newest).

    Returns:
        The file's path.
    """
    path = Path(folder) / FILE_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    logger = logging.getLogger(ROOT)
    close_logging()
    handler = _SharedRotatingHandler(path, max_bytes, backups)
    handler.setFormatter(JsonFormatter())
    logger.addHandler(handler)
    logger.setLevel(level)
    return path


def close_logging() -> None:
    """Close the log file, if one is open; the loggers stay usable and silent."""
    logger = logging.getLogger(ROOT)
    for handler in [h for h in logger.handlers if isinstance(h, _SharedRotatingHandler)]:
        logger.removeHandler(handler)
        handler.close()


@contextlib.contextmanager
def log_context(**fields: Any) -> Iterator[None]:
    """Add `fields` to every line logged inside the block, on this thread or task."""
    token = _context.set({**(_context.get() or {}), **fields})
    try:
        yield
    finally:
        _context.reset(token)


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON: time (UTC), level, logger, message, context, `extra` fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its line break."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": time,
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **(_context.get() or {}),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class _SharedRotatingHandler(logging.handlers.RotatingFileHandler):
    """Rotation that holds when several processes write to the same file.

    A lock file serialises the writers, and a writer whose file was rotated away by another
    process opens the new one first.
    """

    def __init__(self, path: Path, max_bytes: int, backups: int) -> None:
        self._lock_path = path.with_name(f".{path.name}.lock")
        super().__init__(path, maxBytes=max_bytes, backupCount=backups, encoding="utf-8")

    def emit(self, record: logging.LogRecord) -> None:
        try:
            with open(self._lock_path, "a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._reopen_if_rotated()
                super().emit(record)
        except OSError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Drop the line: a full disk must not stop, or write over, the work being logged."""

    def _reopen_if_rotated(self) -> None:
        try:
            on_disk = os.stat(self.baseFilename).st_ino
        except FileNotFoundError:
            on_disk = None
        if self.stream is None or os.fstat(self.stream.fileno()).st_ino != on_disk:
            if self.stream is not None:
                self.stream.close()
            self.stream = self._open()
