"""The companion's memory on disk: one SQLite file with everything that must not be lost.

Why one: a kill between two files leaves them contradicting each other; one file with one
transaction cannot. Its parts are small objects, one per subject::

    with Store() as store:
        said = store.interactions.add("What is a fjord?", "A flooded glacier valley.")
        store.feedback.add(said.id, "up")
        print(store.versions.active())

Several threads may share a `Store` and several processes may open the same file. What one
`with store.transaction():` block writes becomes visible at once, or not at all.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from mlx_companion.errors import StoreError
from mlx_companion.runtime.paths import data_dir
from mlx_companion.store.backups import check, make_backup, sweep_copies
from mlx_companion.store.context import ContextLog
from mlx_companion.store.database import BUSY_SECONDS, Database
from mlx_companion.store.examples import Examples, Replay
from mlx_companion.store.faults import files_explained
from mlx_companion.store.interactions import FeedbackLog, Interactions
from mlx_companion.store.ledger import Ledger
from mlx_companion.store.modules import ModuleStates, ModuleVersions, TrafficLog
from mlx_companion.store.rounds import Rounds
from mlx_companion.store.runs import Runs
from mlx_companion.store.schema import MIGRATIONS
from mlx_companion.store.settings import Settings
from mlx_companion.store.versions import Versions

FILE_NAME = "companion.db"


class Store:
    """The open database and its parts.

    Args:
        path: the database file, created when missing; `data_dir()/companion.db` by default.
            Adapters and backups lie in folders beside it.
        busy_seconds: how long a write waits for another process's write.

    Raises:
        StoreError: the file is damaged (names the newest backup), newer than this program,
            another program's, or cannot be opened. It is never deleted.
        DiskFullError: there is no space to create or migrate it.
    """

    def __init__(
        self, path: str | Path | None = None, *, busy_seconds: float = BUSY_SECONDS
    ) -> None:
        self.path = Path(path).expanduser().absolute() if path else data_dir() / FILE_NAME
        self.database = Database(self.path, MIGRATIONS, busy_seconds)
        sweep_copies(self.path)
        self.interactions = Interactions(self.database)
        self.feedback = FeedbackLog(self.database)
        self.examples = Examples(self.database)
        self.replay = Replay(self.database)
        self.runs = Runs(self.database)
        self.versions = Versions(self.database)
        self.rounds = Rounds(self.database)
        self.ledger = Ledger(self.database)
        self.settings = Settings(self.database)
        self.context = ContextLog(self.database)
        self.module_states = ModuleStates(self.database)
        self.module_versions = ModuleVersions(self.database)
        self.traffic = TrafficLog(self.database)

    @property
    def folder(self) -> Path:
        """The folder of the database."""
        return self.path.parent

    @property
    def adapters_dir(self) -> Path:
        """Where the adapters of the versions lie; created on first use."""
        folder = self.folder / "adapters"
        with files_explained(folder):
            folder.mkdir(exist_ok=True, mode=0o700)
        return folder

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Make all writes of the block one: all of them happen or none.

        Other threads and processes wait for it, so keep it short; blocks may nest.
        """
        with self.database.transaction():
            yield

    @property
    def in_transaction(self) -> bool:
        """Whether this thread is inside of a `transaction` block."""
        return self.database.in_transaction

    @contextlib.contextmanager
    def exclusive(self, name: str = "improve") -> Iterator[None]:
        """Hold a lock that only one process (and one block) at a time can hold.

        It ends with the process, however that ends, so a kill leaves no stale lock.

        Raises:
            StoreError: somebody else holds it.
        """
        file = self.path.with_name(f"{self.path.name}.{name}.lock")
        with files_explained(file):
            descriptor = os.open(file, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            try:
                # The kernel drops it with the descriptor, also when the process is killed.
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise StoreError(
                    f"'{name}' is already running on {self.path}; wait for it or stop it first"
                ) from error
            yield
        finally:
            os.close(descriptor)

    def backup(self) -> Path:
        """Copy the database into `backups` beside it (the newest five are kept).

        Raises:
            DiskFullError: no space; no copy was made.
        """
        return make_backup(self.path, self.database.schema_version)

    def check(self) -> None:
        """Check the file again. Raises StoreError, naming the newest backup, when damaged."""
        with self.database.snapshot() as connection:
            check(connection, self.path)

    def close(self) -> None:
        """Close the database; closing twice does nothing."""
        self.database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
