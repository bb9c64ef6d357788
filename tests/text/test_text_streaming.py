"""Samples streamed from the disk against the same in memory; kills, damage, memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import streamed_files as files
from streamed_files import Words, records, write

import mlx_companion  # noqa: F401
from mlx_companion.errors import DataError
from mlx_companion.text import LengthBuckets, encode_samples, read_samples, streaming
from mlx_companion.text.fingerprints import content_key, files_sha256, tokenizer_sha256
from mlx_companion.text.packed_samples import PackedSamples
from mlx_companion.text.records import Message, Sample

PROGRAM = Path(files.__file__)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "data.jsonl", records(150))


def test_rows_as_in_memory(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_PART_SAMPLES", 7)
    store = streaming.store_samples(data, Words(), 128, folder=tmp_path / "cache")
    samples = read_samples(data)
    expected, report = encode_samples(samples, Words(), 128)
    rows = store.rows()
    assert list(rows) == expected
    assert rows[-1] == expected[-1]
    assert rows[2:5] == expected[2:5]
    assert rows.sizes.targets.tolist() == [row.target_count for row in expected]
    states = store.samples["state"].tolist()
    assert states.count(streaming.TRUNCATED) == report.truncated > 0
    assert states.count(streaming.SPLIT) == report.split > 0
    assert states.count(streaming.LEFT_OUT) == len(report.dropped) > 0
    assert list(store.dropped()) == [(drop.source, drop.reason) for drop in report.dropped]
    assert store.samples["key"].tobytes() == b"".join(map(content_key, samples))


def test_some_samples(data: Path, tmp_path: Path) -> None:
    store = streaming.store_samples(data, Words(), 128, folder=tmp_path / "cache")
    of = np.arange(150) % 3 > 0
    chosen = [sample for sample, kept in zip(read_samples(data), of, strict=True) if kept]
    expected, report = encode_samples(chosen, Words(), 128)
    assert list(store.rows(of)) == expected
    assert list(store.dropped(of)) == [(drop.source, drop.reason) for drop in report.dropped]


@pytest.mark.parametrize("kind", [LengthBuckets, PackedSamples])
def test_the_same_batches(kind: Any, data: Path, tmp_path: Path) -> None:
    stored = streaming.store_samples(data, Words(), 128, folder=tmp_path / "cache").rows()
    known, _ = encode_samples(read_samples(data), Words(), 128)
    left, right = kind(stored, seed=5), kind(known, seed=5)
    assert left.target_count == right.target_count
    for number in range(2):
        plan = left.epoch(number)
        assert plan == right.epoch(number)
        for indices in plan:
            ours, theirs = left.batch(indices), right.batch(indices)
            assert np.array_equal(np.array(ours.tokens), np.array(theirs.tokens))
            assert np.array_equal(np.array(ours.targets), np.array(theirs.targets))
            assert ours.indices == theirs.indices


@pytest.mark.parametrize("suffix", [".json", ".csv", ".txt", "folder"])
def test_every_kind_of_file(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"data{suffix}"
    rows = [row for row in records(20) if "prompt" in row]
    if suffix == ".json":
        path.write_text(json.dumps(rows))
    elif suffix == ".csv":
        lines = [f"{row['prompt']},{row['completion']}" for row in rows]
        path.write_text("\n".join(["prompt,completion", *lines]) + "\n")
    elif suffix == ".txt":
        path.write_text("one long document " * 40)
    else:
        path.mkdir()
        write(path / "b.jsonl", rows[:5])
        (path / "a.txt").write_text("a document")
    store = streaming.store_samples(path, Words(), 64, folder=tmp_path / "cache")
    expected, _ = encode_samples(read_samples(path), Words(), 64)
    assert list(store.rows()) == expected


def test_large_vocabularies(data: Path, tmp_path: Path) -> None:
    class Large(Words):
        def encode(self, text: str, **_: Any) -> list[int]:
            return [byte + 100_000 for byte in text.encode()]

        def get_vocab(self) -> dict[str, int]:
            return {"last": 100_300}

    store = streaming.store_samples(data, Large(), 128, folder=tmp_path / "cache")
    expected, _ = encode_samples(read_samples(data), Large(), 128)
    assert list(store.rows()) == expected


def test_found_again_and_made_anew(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    streaming.store_samples(data, Words(), 128, folder=folder)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.suffix}
    moved = data.rename(data.with_name("other.jsonl"))
    streaming.store_samples(moved, Words(), 128, folder=folder)
    assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.suffix}
    assert len(streaming.store_samples(moved, Words(), 64, folder=folder).rows()) > len(before)
    write(moved, records(20, seed=1))
    store = streaming.store_samples(moved, Words(), 64, folder=folder)
    assert list(store.rows()) == encode_samples(read_samples(moved), Words(), 64)[0]


def test_default_folder(data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLX_COMPANION_CACHE", str(tmp_path / "home"))
    stores = [streaming.store_samples(data, Words(), length) for length in (64, 128)]
    assert {store.folder.parent for store in stores} == {tmp_path / "home" / "tokens"}
    assert stores[0].folder != stores[1].folder


def test_bad_rows_are_named_and_the_good_ones_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", [*records(30), {"nothing": 1}])
    for _ in range(2):
        with pytest.raises(DataError, match=r"data\.jsonl:31"):
            streaming.store_samples(path, Words(), 128, folder=tmp_path / "cache")


def test_a_file_that_changes_meanwhile(data: Path, tmp_path: Path) -> None:
    class Touching(Words):
        def encode(self, text: str, **options: Any) -> list[int]:
            os.utime(data, ns=(1, time.time_ns()))
            return super().encode(text, **options)

    with pytest.raises(DataError, match="changed while it was read"):
        streaming.store_samples(data, Touching(), 128, folder=tmp_path / "cache")


def test_rows_that_are_gone(data: Path, tmp_path: Path) -> None:
    store = streaming.store_samples(data, Words(), 128, folder=tmp_path / "cache")
    rows = store.rows()
    os.truncate(store.folder / streaming.TOKENS, 10)
    with pytest.raises(DataError, match="shorter than it was"):
        rows[len(rows) - 1]


# --- kills and memory ------------------------------------------------------------------------


def start(repository: Path, *arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": str(repository)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=env)


def test_killed_at_any_moment_it_goes_on(data: Path, tmp_path: Path, repository: Path) -> None:
    folder = tmp_path / "killed"
    waits = np.random.default_rng(8).uniform(0.02, 0.2, 5)
    parts = [0]
    for wait in waits:
        process = start(repository, "encode", data, folder, 0.003)
        journal = folder / "journal.jsonl"
        wanted = parts[-1] + 1
        while process.poll() is None:
            if journal.exists() and journal.read_bytes().count(b"\n") > wanted:
                break
            time.sleep(0.005)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        parts.append(journal.read_bytes().count(b"\n"))
    assert parts == sorted(parts)
    for target in (folder, tmp_path / "whole"):
        process = start(repository, "encode", data, target)
        process.communicate()
        assert process.returncode == 0
    assert snapshot(folder) == snapshot(tmp_path / "whole")


@pytest.mark.parametrize("packed", [False, True])
def test_memory_does_not_grow_with_the_file(packed: bool, tmp_path: Path, repository: Path) -> None:
    """Ten times the data: 8 MB more, where lists of its tokens would take 180."""
    rng = np.random.default_rng(0)
    small = [{"text": files.sentence(rng, 300)} for _ in range(250)]
    peaks, tokens = [], []
    for times in (1, 10):
        path = tmp_path / f"{times}.jsonl"
        with path.open("w") as file:
            for _ in range(times):
                file.writelines(json.dumps(row) + "\n" for row in small)
        how = "packed" if packed else "buckets"
        process = start(repository, "train", path, tmp_path / "cache", how)
        output, _ = process.communicate()
        figures = json.loads(output)
        peaks.append(figures["peak_mb"])
        tokens.append(figures["tokens"])
    assert 45e-6 * (tokens[1] - tokens[0]) > 150
    assert peaks[1] - peaks[0] < 8


# --- fingerprints ----------------------------------------------------------------------------


def test_content_keys() -> None:
    pair = Message("user", "a"), Message("assistant", "b")
    same = [Sample(messages=pair, source="x:1"), Sample(messages=pair, source="y:2")]
    others = [
        Sample(messages=(Message("user", "ab"), Message("assistant", ""))),
        Sample(text="a"),
        Sample(text="ab"),
        Sample(messages=(Message("system", "a"), *pair)),
    ]
    keys = [content_key(sample) for sample in (*same, *others)]
    assert keys[0] == keys[1]
    assert len(set(keys)) == len(keys) - 1
    assert {len(key) for key in keys} == {16}


def test_file_hashes(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        write(folder / "a.jsonl", [{"text": "x"}])
    assert files_sha256(one) == files_sha256(two)
    assert files_sha256(one) != files_sha256(one / "a.jsonl")
    write(two / "a.jsonl", [{"text": "y"}])
    assert files_sha256(one) != files_sha256(two)


def test_tokenizer_hashes() -> None:
    class Other(Words):
        def encode(self, text: str, **options: Any) -> list[int]:
            return super().encode(text.lower(), **options)

    class Ending(Words):
        all_special_ids = (255, 256)

    hashes = [tokenizer_sha256(kind()) for kind in (Words, Words, Other, Ending)]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3
