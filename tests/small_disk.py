"""A real full disk for tests: a small tmpfs, where mounting one is allowed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted_disk(folder: Path, size: str) -> Iterator[Path]:
    """`folder` on a disk of this size ("2m"); skips the test where none may be mounted."""
    if sys.platform != "linux":
        pytest.skip("mounts a tmpfs, which only Linux has")
    if shutil.which("mount") is None:
        pytest.skip("no mount command here")
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"may not mount a tmpfs here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
