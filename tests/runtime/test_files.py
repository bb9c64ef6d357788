"""Atomic writes: the old content or the new, never a part; also on a full disk and after a kill."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from small_disk import mounted_disk

from mlx_companion.errors import ConfigError, DiskFullError
from mlx_companion.runtime import files
from mlx_companion.runtime.files import (
    atomic_dir,
    atomic_path,
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_text,
    sha256_file,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=30,
)
@given(st.binary(max_size=3000))
def test_bytes_and_checksum_round_trip(tmp_path: Path, data: bytes) -> None:
    target = tmp_path / "data.bin"
    atomic_write_bytes(target, data)
    assert target.read_bytes() == data
    assert sha256_file(target) == hashlib.sha256(data).hexdigest()
    assert names(tmp_path) == ["data.bin"]


def test_folders_devices_and_pipes_are_left_alone_and_links_are_followed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(ConfigError, match=f"{name} is a .*expected the name of a file"):
            atomic_write_text(tmp_path / name, "x")
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "file")
    atomic_write_text(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "folder" / "file").read_text() == "x"
    assert names(tmp_path) == ["folder", "link", "pipe"]


@pytest.mark.parametrize("name", ["file/b.txt", "file/deep/b.txt"])
def test_a_folder_that_cannot_be_made_is_told_with_what_to_do(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"folder .*file.* cannot be made .*give a place"):
        atomic_write_text(tmp_path / name, "x")
    with pytest.raises(ConfigError, match="cannot be made"), atomic_dir(tmp_path / name):
        pytest.fail("there is no place for it")
    assert names(tmp_path) == ["file"]


def test_text_is_utf8_and_line_ends_are_kept(tmp_path: Path) -> None:
    atomic_write_text(tmp_path / "a.txt", "é\r\n𝄞\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa9\r\n\xf0\x9d\x84\x9e\n"


def test_json_is_readable_and_refuses_what_json_has_not(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.json"
    atomic_write_json(target, {"name": "Zoë", "loss": 1.5})
    assert json.loads(target.read_text()) == {"name": "Zoë", "loss": 1.5}
    with pytest.raises(ValueError, match="JSON compliant"):
        atomic_write_json(target, {"loss": float("nan")})
    assert json.loads(target.read_text())["loss"] == 1.5


def test_temporary_name_keeps_the_suffix_and_the_folder(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "w.safetensors") as temporary:
        assert temporary.suffix == ".safetensors"
        assert temporary.parent == tmp_path
        temporary.write_bytes(b"new")


def test_an_error_in_the_block_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="boom"), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError("boom")
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_keyboard_interrupt_leaves_no_litter(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_dir(tmp_path / "d") as temporary:
        (temporary / "x").write_text("half")
        raise KeyboardInterrupt
    assert names(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match=r"a\.txt.*untouched.*free some space"):
        atomic_write_text(target, "new")
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_other_errors_are_not_called_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="too long") as caught:
        atomic_write_text(tmp_path / ("a" * 300), "text")
    assert not isinstance(caught.value, DiskFullError)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted_disk(tmp_path / "small", "256k") as folder:
        yield folder


def test_a_really_full_disk_keeps_the_old_file(small_disk: Path) -> None:
    target = small_disk / "a.bin"
    atomic_write_bytes(target, b"o" * 1000)
    with pytest.raises(DiskFullError):
        atomic_write_bytes(target, b"n" * 1_000_000)
    assert target.read_bytes() == b"o" * 1000
    assert names(small_disk) == ["a.bin"]


def test_a_really_full_disk_keeps_the_old_folder(small_disk: Path) -> None:
    with atomic_dir(small_disk / "d") as temporary:
        (temporary / "x").write_bytes(b"old")
    with pytest.raises(DiskFullError), atomic_dir(small_disk / "d") as temporary:
        (temporary / "x").write_bytes(b"n" * 1_000_000)
    assert (small_disk / "d" / "x").read_bytes() == b"old"
    assert names(small_disk) == ["d"]


@pytest.mark.parametrize("library", ["mlx", "safetensors"])
def test_libraries_that_hide_a_full_disk_are_seen_through(small_disk: Path, library: str) -> None:
    target = small_disk / "a.safetensors"
    mx.save_safetensors(str(target), {"x": mx.zeros((10,))})
    before = target.read_bytes()
    with pytest.raises(DiskFullError), atomic_path(target) as temporary:
        if library == "mlx":
            mx.save_safetensors(str(temporary), {"x": mx.ones((500, 500))})
        else:
            save_file({"x": np.ones((500, 500))}, temporary)
    assert target.read_bytes() == before
    assert names(small_disk) == ["a.safetensors"]


def test_a_library_s_error_with_space_left_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="Unable to write"), atomic_path(tmp_path / "a"):
        raise RuntimeError("[write] Unable to write 5 bytes to file.")


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_folder_is_replaced_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    for content in ("one", "two"):
        with atomic_dir(tmp_path / "d") as temporary:
            (temporary / "sub").mkdir()
            (temporary / "sub" / content).write_text(content)
    assert names(tmp_path) == ["d"]
    assert names(tmp_path / "d" / "sub") == ["two"]


def test_linux_swaps_folders_in_one_step(tmp_path: Path) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("renameat2 is Linux's")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not files._exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot exchange two folders")
    assert names(tmp_path / "a") == ["b"]
    assert names(tmp_path / "b") == ["a"]


def test_what_a_killed_writer_left_is_swept_by_the_next(tmp_path: Path) -> None:
    script = """
        import sys, time
        from mlx_companion.runtime.files import atomic_path, atomic_dir
        with atomic_path(sys.argv[1] + "/a.txt") as one, atomic_dir(sys.argv[1] + "/d") as two:
            one.write_text("half"); (two / "x").write_text("half")
            print("ready", flush=True)
            time.sleep(100_000)
    """
    writer = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], stdout=subprocess.PIPE
    )
    with writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        writer.send_signal(signal.SIGKILL)
    assert len(names(tmp_path)) == 2
    atomic_write_text(tmp_path / "a.txt", "whole")
    with atomic_dir(tmp_path / "d") as temporary:
        (temporary / "x").write_text("whole")
    assert names(tmp_path) == ["a.txt", "d"]


def test_a_living_writers_temporary_is_left_alone(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a.txt") as outer:
        outer.write_text("outer")
        atomic_write_text(tmp_path / "a.txt", "inner")
        assert outer.exists()
    assert (tmp_path / "a.txt").read_text() == "outer"
