"""Content hashes of weights: right, remembered for large files, never stale."""

from __future__ import annotations

import hashlib
import os

import pytest

from mlx_companion.models import hashing
from mlx_companion.models.hashing import content_sha256


@pytest.fixture
def counted(monkeypatch):
    """Files count as large, and every file read is noted."""
    read = []
    real = hashing.sha256_file
    monkeypatch.setattr(hashing, "_REMEMBER_FROM", 10)
    monkeypatch.setattr(hashing, "sha256_file", lambda path: read.append(path.name) or real(path))
    return read


def old_file(path, data):
    path.write_bytes(data)
    os.utime(path, (1_000_000, 1_000_000 + len(data)))
    return path


def test_one_file_is_its_own_sum(tmp_path):
    file = old_file(tmp_path / "a", b"weights")
    assert content_sha256([file]) == hashlib.sha256(b"weights").hexdigest()


def test_names_do_not_count_and_order_does(tmp_path):
    a, b = old_file(tmp_path / "a", b"one"), old_file(tmp_path / "b", b"two")
    c, d = old_file(tmp_path / "c", b"one"), old_file(tmp_path / "d", b"two")
    assert content_sha256([a, b]) == content_sha256([c, d])
    assert content_sha256([a, b]) != content_sha256([b, a])


def test_a_large_file_is_read_once(tmp_path, counted):
    file = old_file(tmp_path / "a", b"x" * 20)
    assert content_sha256([file]) == content_sha256([file])
    assert counted == ["a"]


def test_a_changed_file_is_read_again(tmp_path, counted):
    file = old_file(tmp_path / "a", b"x" * 20)
    first = content_sha256([file])
    old_file(file, b"y" * 21)
    assert content_sha256([file]) != first


def test_a_file_written_just_now_is_not_remembered(tmp_path, counted):
    file = tmp_path / "a"
    file.write_bytes(b"x" * 20)
    content_sha256([file])
    content_sha256([file])
    assert counted == ["a", "a"]


@pytest.mark.parametrize("content", ["", "[1]", '{"broken'])
def test_a_damaged_book_is_started_anew(tmp_path, counted, content):
    hashing._book_path().write_text(content)
    file = old_file(tmp_path / "a", b"x" * 20)
    content_sha256([file])
    content_sha256([file])
    assert counted == ["a"]
