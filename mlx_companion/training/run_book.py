"""The book of training runs: which there were, with what settings, and how they went.

    book = RunBook()                        # runs.sqlite in the data folder
    for run in book.all():
        print(run.id, run.status, run.summary.get("valid_after"))
    book.series("3f2a", "loss")             # [(step, value), ...]

It is an index. Each run's folder holds its own `run.json`, `metrics.jsonl` and `result.json`, from
which an entry can be made again (`RunBook.add_folder`), so the book may be deleted; that is also
why it is a file of its own and not part of the store, which keeps what cannot be made again (and
which this layer does not import). Several processes may write at once.
"""

from __future__ import annotations

import json
import math
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from mlx_companion.errors import DataError, DiskFullError, TrainingError
from mlx_companion.runtime.paths import data_dir

FILE = "runs.sqlite"
RUNNING, FINISHED, STOPPED, INTERRUPTED = "running", "finished", "stopped", "interrupted"
_BUSY_SECONDS = 30.0
_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, folder TEXT NOT NULL, status TEXT NOT NULL,
    pid INTEGER NOT NULL, pid_started REAL NOT NULL, started REAL NOT NULL, updated REAL NOT NULL,
    step INTEGER NOT NULL, total_steps INTEGER NOT NULL,
    settings TEXT NOT NULL, about TEXT NOT NULL, summary TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS metrics (
    run TEXT NOT NULL REFERENCES runs(id) ON DELETE CASCADE, name TEXT NOT NULL,
    step INTEGER NOT NULL, value REAL, PRIMARY KEY (run, name, step)
) STRICT, WITHOUT ROWID;
"""

Reading = tuple[str, int, float | None]


@dataclass(frozen=True)
class TrackedRun:
    """One entry.

    Attributes:
        id: 8 hexadecimal digits, the same whenever the run is started again.
        name: the folder's.
        folder: where it writes.
        status: "running", "finished", "stopped" (with a checkpoint) or "interrupted" (its process
            is gone).
        started, updated: seconds since 1970 (UTC).
        step, total_steps: optimizer steps done and planned.
        settings: nested settings ("lora", "train").
        about: hashes, data report, machine and versions.
        summary: the figures it ended with.
    """

    id: str
    name: str
    folder: str
    status: str
    started: float
    updated: float
    step: int
    total_steps: int
    settings: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)


class RunBook:
    """The file and what can be asked of it.

    Args:
        path: the file; made when missing.

    Raises:
        TrainingError: it is no such file, or of a newer version.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = Path(path) if path is not None else data_dir() / FILE
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._connected() as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > _VERSION:
                raise TrainingError(
                    f"{self.path} is of version {version}, this program knows {_VERSION}; update "
                    "mlx-companion, or move the file away (it can be made again from the runs)"
                )
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(_SCHEMA)
            connection.execute(f"PRAGMA user_version = {_VERSION}")

    def all(self) -> list[TrackedRun]:
        """Every run, the newest first."""
        with self._connected() as connection:
            rows = connection.execute("SELECT * FROM runs ORDER BY started DESC, id").fetchall()
        return [_tracked(row) for row in rows]

    def get(self, which: str) -> TrackedRun:
        """One run.

        Args:
            which: its id or the beginning of it, its name, its folder, or "last".

        Raises:
            DataError: none or several match.
        """
        runs = self.all()
        if which == "last" and runs:
            return runs[0]
        folder = str(Path(which).expanduser().absolute())
        for found in (
            [run for run in runs if run.id == which or run.folder == folder],
            [run for run in runs if run.name == which],
            [run for run in runs if which and run.id.startswith(which)],
        ):
            if len(found) == 1:
                return found[0]
            if found:
                names = ", ".join(run.id for run in found)
                raise DataError(f"'{which}' means {len(found)} runs: {names}; give one of these")
        raise DataError(f"there is no run '{which}'; `mlx-companion runs list` shows what there is")

    def names(self, run: str) -> list[str]:
        """Names of the series that a run has, by its id."""
        with self._connected() as connection:
            asked = "SELECT DISTINCT name FROM metrics WHERE run = ? ORDER BY name"
            return [row["name"] for row in connection.execute(asked, (run,))]

    def series(self, run: str, name: str) -> list[tuple[int, float | None]]:
        """(step, value) of one series in ascending steps; None where it was not finite."""
        with self._connected() as connection:
            asked = "SELECT step, value FROM metrics WHERE run = ? AND name = ? ORDER BY step"
            return [
                (step, value) for step, value in map(tuple, connection.execute(asked, (run, name)))
            ]

    def begin(
        self,
        run: str,
        folder: str | Path,
        *,
        step: int,
        total_steps: int,
        settings: Mapping[str, Any],
        about: Mapping[str, Any],
    ) -> None:
        """Note that this process runs it, from `step` on; what it had noted behind that goes."""
        path, process = Path(folder).expanduser().absolute(), psutil.Process()
        now = time.time()
        values = {
            "id": run,
            "name": path.name,
            "folder": str(path),
            "status": RUNNING,
            "pid": process.pid,
            "pid_started": process.create_time(),
            "started": now,
            "updated": now,
            "step": step,
            "total_steps": total_steps,
            "settings": json.dumps(settings),
            "about": json.dumps(about),
            "summary": "{}",
        }
        kept = [name for name in values if name not in ("id", "started")]
        with self._connected() as connection:
            connection.execute(
                f"INSERT INTO runs ({', '.join(values)}) VALUES ({', '.join('?' * len(values))}) "
                f"ON CONFLICT (id) DO UPDATE SET {', '.join(f'{n} = excluded.{n}' for n in kept)}",
                tuple(values.values()),
            )
            connection.execute("DELETE FROM metrics WHERE run = ? AND step > ?", (run, step))

    def note(self, run: str, readings: Iterable[Reading], step: int) -> None:
        """Add readings (name, step, value) and how far the run is."""
        rows = [(run, name, at, _finite(value)) for name, at, value in readings]
        with self._connected() as connection:
            connection.executemany("INSERT OR REPLACE INTO metrics VALUES (?, ?, ?, ?)", rows)
            connection.execute(
                "UPDATE runs SET step = ?, updated = ? WHERE id = ?", (step, time.time(), run)
            )

    def end(self, run: str, status: str, summary: Mapping[str, Any] | None = None) -> None:
        """Note how it ended."""
        clean = {name: _finite(value) for name, value in (summary or {}).items()}
        with self._connected() as connection:
            connection.execute(
                "UPDATE runs SET status = ?, summary = ?, updated = ? WHERE id = ?",
                (status, json.dumps(clean), time.time(), run),
            )

    def remove(self, run: str) -> None:
        """Forget a run, by its id; its folder stays as it is."""
        with self._connected() as connection:
            connection.execute("DELETE FROM runs WHERE id = ?", (run,))

    def add_folder(self, folder: str | Path) -> TrackedRun:
        """Make an entry from a run's folder, as the run itself would have left it.

        Raises:
            DataError: the folder holds no run.
        """
        path = Path(folder)
        about = _read_json(path / "run.json")
        if about is None or "run_hash" not in about:
            raise DataError("it holds no run.json of a run", path=path)
        parts = ("lora", "train")
        settings: dict[str, Any] = {n: about.pop(n) for n in parts if n in about}
        readings = list(_logged(path / "metrics.jsonl"))
        step = max((at for _, at, _ in readings), default=0)
        run = run_id(path, about["run_hash"])
        result = _read_json(path / "result.json")
        total = int(result["steps"]) if result else step
        self.begin(run, path, step=step, total_steps=total, settings=settings, about=about)
        self.note(run, readings, step)
        self.end(run, FINISHED if result else STOPPED, result)
        return self.get(run)

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """A connection and a transaction; runs write seldom, so none is kept open."""
        try:
            with closing(sqlite3.connect(self.path, timeout=_BUSY_SECONDS)) as connection:
                connection.row_factory = sqlite3.Row
                connection.execute("PRAGMA foreign_keys = ON")
                with connection:
                    yield connection
        except sqlite3.OperationalError as error:
            if "full" in str(error):
                raise DiskFullError(f"no space left to write {self.path}") from error
            raise TrainingError(f"{self.path} cannot be used: {error}") from error
        except sqlite3.DatabaseError as error:
            raise TrainingError(
                f"{self.path} is damaged ({error}); move it away: it can be made again with "
                "`mlx-companion runs add FOLDER`"
            ) from error


def run_id(folder: str | Path, run_hash: str) -> str:
    """8 hexadecimal digits of a run in a folder."""
    import hashlib

    text = f"{Path(folder).expanduser().absolute()}\n{run_hash}"
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _tracked(row: sqlite3.Row) -> TrackedRun:
    status = row["status"]
    if status == RUNNING and not _alive(row["pid"], row["pid_started"]):
        status = INTERRUPTED
    plain = ("id", "name", "folder", "started", "updated", "step", "total_steps")
    parsed = {name: json.loads(row[name]) for name in ("settings", "about", "summary")}
    return TrackedRun(status=status, **{name: row[name] for name in plain}, **parsed)


def _alive(pid: int, started: float) -> bool:
    """Whether the very process is there; numbers of processes are used again."""
    try:
        return abs(psutil.Process(pid).create_time() - started) < 1.0
    except psutil.Error:
        return False


def _logged(path: Path) -> Iterator[Reading]:
    """The readings of a metrics file, as `MetricsLog` writes it."""
    from mlx_companion.training.tracking import EVAL, STEP

    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            values = json.loads(line)
        except ValueError:
            continue  # a kill cut it short
        names = STEP if values.get("event") == "step" else EVAL
        yield from ((new, values["step"], values.get(old)) for old, new in names.items())


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
