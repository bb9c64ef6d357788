"""Every error that mlx-companion raises on purpose, in one tree.

A message says what was given, what was expected and what to do. Callers catch
`CompanionError` to catch them all::

    CompanionError
    ├── ConfigError            a configuration file, key or value is wrong        (also ValueError)
    ├── DataError              a data file is malformed; names file, line, field  (also ValueError)
    ├── ModelError
    │   ├── ModelNotFoundError no such alias, hub id, folder or file
    │   ├── DownloadError      a model could not be fetched or failed its checksum
    │   ├── WeightsError       weights are truncated, missing or of an unsupported kind
    │   ├── SouError           a .sou file is damaged, hostile or of another version
    │   └── GenerationError    a prompt or a sampling argument cannot be used
    ├── AdapterError           an adapter is corrupt, missing or made for another base
    ├── TrainingError
    │   ├── CheckpointError    a checkpoint is corrupt or belongs to another run
    │   └── TeacherError       a teacher's server cannot be asked
    ├── StoreError             the local database cannot be opened, read or migrated
    ├── SLMError               a small module is damaged, unknown or cannot answer
    ├── LoopError              a round of the self-improvement loop cannot go on
    ├── HardwareError          an accelerator was asked for that this machine lacks
    ├── KernelError            an accelerator kernel cannot be built, or failed on the bench
    │   ├── KernelBuildError   its source does not compile
    │   ├── KernelBoundsError  it reads or writes outside of a buffer
    │   ├── KernelRaceError    two threads touch the same memory with nothing to order them
    │   ├── KernelUninitializedError  it uses memory that nothing has written
    │   └── KernelDivergenceError     threads of a group wait at different barriers
    ├── DiskFullError          a write failed for want of space; nothing was replaced
    └── MissingExtraError      an optional dependency is not installed            (also ImportError)

    Stopped                    a kill switch was thrown; work ended at a safe point. Not an
                               error (not a CompanionError): nothing went wrong.
"""

from __future__ import annotations

from pathlib import Path


class CompanionError(Exception):
    """Base of every deliberate error of this package."""


class ConfigError(CompanionError, ValueError):
    """A configuration file, key or value is wrong."""


class DataError(CompanionError, ValueError):
    """A data file is malformed.

    Args:
        problem: what is wrong and what to do about it.
        path: the file, when the data came from one.
        line: 1-based line (or 1-based item) number in it.
        field: the field that is missing or wrong.
    """

    def __init__(
        self,
        problem: str,
        *,
        path: str | Path | None = None,
        line: int | None = None,
        field: str | None = None,
    ) -> None:
        self.path = None if path is None else Path(path)
        self.line = line
        self.field = field
        where = "" if path is None else str(path)
        if line is not None:
            where += f":{line}"
        if field is not None:
            where += f"{': ' if where else ''}field '{field}'"
        super().__init__(f"{where}: {problem}" if where else problem)


class ModelError(CompanionError):
    """Something about a model, its files or its use."""


class ModelNotFoundError(ModelError):
    """No such alias, hub id, folder or file."""


class DownloadError(ModelError):
    """A model could not be fetched, or what arrived failed its checksum."""


class WeightsError(ModelError):
    """Weights are truncated, missing or of an unsupported kind."""


class SouError(ModelError):
    """A `.sou` file is damaged, hostile, of another version, or not signed as it must be."""


class GenerationError(ModelError, ValueError):
    """A prompt or a sampling argument cannot be used."""


class AdapterError(CompanionError):
    """An adapter is corrupt, missing or was made for another base model."""


class TrainingError(CompanionError):
    """Training cannot start or cannot go on."""


class CheckpointError(TrainingError):
    """A checkpoint is corrupt or belongs to another run."""


class TeacherError(TrainingError):
    """A teacher's server cannot be reached, refuses, or keeps failing."""


class StoreError(CompanionError):
    """The local database cannot be opened, read, migrated or written."""


class SLMError(CompanionError):
    """A small module's weights or rules are damaged, it is unknown, or it cannot answer."""


class LoopError(CompanionError):
    """A round of the self-improvement loop cannot go on."""


class HardwareError(CompanionError):
    """An accelerator was asked for that this machine does not have."""


class KernelError(CompanionError):
    """An accelerator kernel cannot be built, or did something wrong on the bench."""


class KernelBuildError(KernelError):
    """A kernel's source does not compile."""


class KernelBoundsError(KernelError):
    """A kernel reads or writes outside of a buffer."""


class KernelRaceError(KernelError):
    """Two threads touch the same memory, one of them writing, with nothing to order them."""


class KernelUninitializedError(KernelError):
    """A kernel uses memory that nothing has written."""


class KernelDivergenceError(KernelError):
    """Threads that must meet at a barrier or a collective operation do not."""


class DiskFullError(CompanionError, OSError):
    """A write failed because the disk is full; what was there before is untouched."""


class MissingExtraError(CompanionError, ImportError):
    """An optional dependency is not installed.

    Args:
        module: the import that failed.
        extra: the extra that brings it.
    """

    def __init__(self, module: str, extra: str) -> None:
        self.module = module
        self.extra = extra
        super().__init__(
            f"'{module}' is not installed and is needed here; "
            f'run: pip install "mlx-companion[{extra}]"'
        )


class Stopped(Exception):  # noqa: N818 - a request that was honoured, not an error
    """A kill switch was thrown; work ended at a safe point with nothing lost."""
