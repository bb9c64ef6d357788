"""The file of a teacher's replies: appended to, never rewritten, and sound after a `kill -9`.

A line is {"key", "messages", "reply", "finish_reason", "model"}. The key is a hash of the prompt
and of every setting that a reply depends on. A line that a kill cut short is dropped when the file
is opened again, and its prompt is asked again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from mlx_companion.errors import DataError, DiskFullError, TeacherError
from mlx_companion.runtime.logs import get_logger
from mlx_companion.training.teacher_client import TeacherConfig, TeacherReply

_log = get_logger(__name__)


def reply_key(messages: Sequence[dict[str, str]], config: TeacherConfig) -> str:
    """SHA-256 of a prompt and of the settings that its reply depends on."""
    text = json.dumps([messages, config.identity()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class ReplyFile:
    """The replies that are known, and a way to add more; a context manager.

    Args:
        path: the file; made when missing.

    Attributes:
        replies: by key.

    Raises:
        TeacherError: another process appends to the same file.
        DataError: the file is of another kind.
        DiskFullError: no space.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.replies: dict[str, TeacherReply] = {}
        self._lock = FileLock(self.path.with_name(self.path.name + ".lock"), timeout=0)
        self._file: IO[bytes] | None = None

    def __enter__(self) -> ReplyFile:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise TeacherError(
                f"another process is asking a teacher for {self.path}; wait for it, or give "
                "another file"
            ) from error
        try:
            self._file = open(self.path, "ab+", buffering=0)
            self._read(self._file)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._lock.release()

    def add(self, key: str, reply: TeacherReply) -> None:
        """Append a reply; it is on the disk when this returns."""
        assert self._file is not None
        data = _line({"key": key, **reply.to_json()})
        end = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except OSError as error:
            os.ftruncate(self._file.fileno(), end)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise DiskFullError(
                f"no space left to write {self.path}; the replies before are kept: free some space "
                "and run it again"
            ) from error
        self.replies[key] = reply

    def _read(self, file: IO[bytes]) -> None:
        file.seek(0)
        data = file.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            _log.warning("a reply that was cut short is dropped", extra={"path": str(self.path)})
            os.ftruncate(file.fileno(), whole)
        bad = 0
        for line in data[:whole].splitlines():
            try:
                values: Any = json.loads(line)
                self.replies[str(values["key"])] = TeacherReply.from_json(values)
            except (ValueError, KeyError, TypeError, AttributeError):
                bad += 1
        if bad and not self.replies:
            raise DataError("is no file of a teacher's replies; give another name", path=self.path)
        if bad:
            _log.warning("damaged replies are asked again", extra={"lines": bad})


def _line(values: dict[str, Any]) -> bytes:
    try:
        return json.dumps(values, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        # Half of a surrogate pair has a form in JSON, and none in UTF-8.
        return json.dumps(values).encode() + b"\n"
