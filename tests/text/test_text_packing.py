"""Packed rows against a plain-Python reading of their definition."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_companion.errors import ConfigError, DataError
from mlx_companion.text import FlatText, PackedBatch, PackedRows, flatten, read_documents
from mlx_companion.text.array_cache import cached_array

BOS = 1
TEXTS = st.lists(st.binary(max_size=30), min_size=1, max_size=6).filter(any)


def whole(rows: PackedRows, epoch: int = 0) -> list[PackedBatch]:
    return [rows.batch(indices) for indices in rows.epoch(epoch)]


def lines(batches: list[PackedBatch], name: str) -> list[list[int]]:
    return [row for batch in batches for row in np.array(getattr(batch, name)).tolist()]


@settings(deadline=None)
@given(documents=TEXTS, eos=st.sampled_from([None, 2]))
def test_flat_text(documents: list[bytes], eos: int | None) -> None:
    text = flatten(documents, eos=eos)
    end = [] if eos is None else [eos]
    pieces = [[BOS, *(byte + 4 for byte in document), *end] for document in documents]
    assert text.ids.tolist() == [value for piece in pieces for value in piece]
    assert [text.ids[start] for start in text.starts] == [BOS] * len(documents)
    assert text.starts.tolist() == [sum(map(len, pieces[:at])) for at in range(len(pieces))]
    assert text.bytes == sum(map(len, documents))


def test_token_ids_beyond_16_bits() -> None:
    text = flatten([b"ab", b"c"], encode=lambda d: [70000 + byte for byte in d], bos=5)
    assert text.ids.tolist() == [5, 70097, 70098, 5, 70099]
    assert flatten([b"ab"]).ids.dtype == np.uint16


@settings(deadline=None)
@given(
    documents=TEXTS,
    context=st.integers(2, 12),
    batch_rows=st.integers(1, 4),
    shuffle=st.booleans(),
    seed=st.integers(0, 3),
    epoch=st.integers(0, 2),
)
def test_rows_are_as_defined(
    documents: list[bytes], context: int, batch_rows: int, shuffle: bool, seed: int, epoch: int
) -> None:
    text = flatten(documents)
    rows = PackedRows(text, context=context, batch_rows=batch_rows, seed=seed, shuffle=shuffle)
    ids, begins = text.ids.tolist(), set(text.starts.tolist())
    ring = shuffle and len(ids) > context
    seen = 0
    for indices in rows.epoch(epoch):
        batch = rows.batch(indices)
        assert 1 <= len(indices) <= batch_rows
        assert batch.indices == indices
        for at, start in enumerate(indices):
            places = [start + i for i in range(context + 1)]
            if ring:
                places = [place % len(ids) for place in places]
            pairs = [(i, p) for i, p in enumerate(places) if p < len(ids)]
            length = len(pairs) - 1
            assert int(batch.lengths[at]) == length
            assert batch.ids[at, :length].tolist() == [BOS] + [ids[p] for _, p in pairs[1:length]]
            assert batch.targets[at, :length].tolist() == [ids[p] for _, p in pairs[1:]]
            counts = [float(p not in begins) for _, p in pairs[1:]]
            assert batch.mask[at].tolist() == counts + [0.0] * (context - length)
            seen += int(sum(counts))
            numbers = [sum(p in begins for _, p in pairs[1 : i + 1]) for i in range(length)]
            if batch.documents is None:
                assert set(numbers) == {0}
            else:
                assert batch.documents[at, :length].tolist() == numbers
                assert not set(batch.documents[at, length:].tolist()) & set(numbers)
        assert rows.tokens(indices) == int(batch.lengths.sum())
        assert rows.slots(indices) == batch.ids.size
    if epoch == 0:
        assert rows.target_count == seen
    assert rows.rows == sum(map(len, rows.epoch(epoch)))


@settings(deadline=None)
@given(documents=TEXTS, context=st.integers(2, 12), epoch=st.integers(0, 5))
def test_held_out_rows_cover_every_id_once(
    documents: list[bytes], context: int, epoch: int
) -> None:
    text = flatten(documents)
    rows = PackedRows(text, context=context, batch_rows=3, shuffle=False)
    assert rows.epoch(epoch) == rows.epoch(0)
    batches = whole(rows)
    masks = lines(batches, "mask")
    targets = [
        value
        for row, mask in zip(lines(batches, "targets"), masks, strict=True)
        for value, counts in zip(row, mask, strict=True)
        if counts
    ]
    assert bytes(value - 4 for value in targets) == b"".join(documents)


@settings(deadline=None)
@given(documents=TEXTS, context=st.integers(2, 12))
def test_a_training_epoch_misses_less_than_a_row(documents: list[bytes], context: int) -> None:
    text = flatten(documents)
    rows = PackedRows(text, context=context, batch_rows=2)
    last = [start + context for indices in rows.epoch(0) for start in indices]
    targets = {(end - i) % len(text.ids) for end in last for i in range(context)}
    if len(text.ids) > context:
        assert len(targets) == rows.rows * context > len(text.ids) - context


def test_epochs_differ_and_repeat() -> None:
    text = flatten([bytes(range(256)) * 8])
    rows = PackedRows(text, context=16, batch_rows=4, seed=3)
    first, second = rows.epoch(0), rows.epoch(1)
    again = PackedRows(text, context=16, batch_rows=4, seed=3)
    assert (again.epoch(0), again.epoch(1)) == (first, second)
    phases = [{start % 16 for rows_ in epoch for start in rows_} for epoch in (first, second)]
    assert phases[0] != phases[1]
    assert PackedRows(text, context=16, batch_rows=4, seed=4).epoch(0) != first
    starts = [start for indices in first for start in indices]
    assert starts != sorted(starts)


def test_arrays_ride_along() -> None:
    text = flatten([b"abcdef", b"ghij"])
    values = np.arange(len(text.ids), dtype=np.float16) + 0.5
    pairs = np.stack([values, -values], axis=1)
    rows = PackedRows(
        text, context=5, batch_rows=2, shuffle=False, extra={"values": values, "pairs": pairs}
    )
    batch = whole(rows)[-1]
    assert batch.extra["values"].tolist() == [[10.5, 0.0, 0.0, 0.0, 0.0]]
    assert batch.extra["pairs"].shape == (1, 5, 2)
    ring = PackedRows(text, context=5, batch_rows=2, extra={"values": values})
    for batch in whole(ring):
        for at, start in enumerate(batch.indices):
            expected = [(start + i) % 12 + 0.5 for i in range(5)]
            assert batch.extra["values"][at].tolist() == expected


def test_a_batch_in_parts_is_the_batch() -> None:
    text = flatten([b"abcdefgh", b"ij", b"klmnopqrstuv"])
    values = np.arange(len(text.ids), dtype=np.float32)
    rows = PackedRows(text, context=5, batch_rows=5, extra={"values": values})
    (batch,) = whole(rows)
    assert batch.documents is not None
    for parts in (2, 3, 9):
        split = batch.split_rows(parts)
        assert len(split) == min(parts, 5)
        assert max(len(p.indices) for p in split) - min(len(p.indices) for p in split) <= 1
        assert sorted(index for p in split for index in p.indices) == sorted(batch.indices)
        for part in split:
            alone = rows.batch(part.indices)
            for name in ("ids", "targets", "mask", "lengths"):
                assert getattr(part, name).tolist() == getattr(alone, name).tolist()
            assert part.extra["values"].tolist() == alone.extra["values"].tolist()


def test_reading_files(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_bytes(b"zwei\0\xff")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"eins"))
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "notes.md").write_bytes(b"no")
    assert read_documents(tmp_path) == [b"eins", b"zwei\0\xff"]
    assert read_documents([tmp_path / "b.txt", tmp_path]) == [b"zwei\0\xff", b"eins", b"zwei\0\xff"]
    (tmp_path / "c.txt").write_bytes(b"one\n---\ntwo\n---\n")
    assert read_documents(tmp_path / "c.txt", separator="\n---\n") == [b"one", b"two"]


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no text files"):
        read_documents(tmp_path)
    with pytest.raises(DataError, match="no text files"):
        read_documents([])
    with pytest.raises(DataError, match=r"missing\.txt: cannot be read"):
        read_documents(tmp_path / "missing.txt")
    (tmp_path / "empty.txt").write_bytes(b"")
    with pytest.raises(DataError, match="there is no text in it"):
        read_documents(tmp_path)
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"eins" * 100)[:-9])
    with pytest.raises(DataError, match="cannot be read"):
        read_documents(tmp_path / "cut.txt.gz")


def test_bad_settings() -> None:
    text = flatten([b"abc"])
    with pytest.raises(DataError, match="no text"):
        flatten([b""])
    with pytest.raises(DataError, match="no text"):
        flatten([])
    with pytest.raises(ConfigError, match="context is 1"):
        PackedRows(text, context=1)
    with pytest.raises(ConfigError, match="batch_rows is 0"):
        PackedRows(text, context=2, batch_rows=0)
    with pytest.raises(ConfigError, match="'e' has 3 values for 4 ids"):
        PackedRows(text, context=2, extra={"e": np.zeros(3)})
    with pytest.raises(DataError, match="no id besides BOS"):
        PackedRows(FlatText(np.array([1]), np.array([0]), 0), context=2)


def test_the_hash_tells_texts_apart() -> None:
    hashes = {flatten(d).sha256 for d in ([b"ab"], [b"a", b"b"], [b"ac"], [b"ab", b""])}
    assert len(hashes) == 4
    one = flatten([b"ab"])
    wide = FlatText(one.ids.astype(np.int64), one.starts.astype(np.int32), one.bytes)
    assert wide.sha256 == one.sha256


def test_a_cached_array_is_computed_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    def compute() -> np.ndarray:
        calls.append(1)
        return np.arange(9, dtype=np.float16) + len(calls)

    folder = tmp_path / "entropies"
    first = cached_array(folder, "a", compute)
    assert isinstance(first, np.memmap)
    assert cached_array(folder, "a", compute).tolist() == first.tolist() == list(range(1, 10))
    assert len(calls) == 1
    assert cached_array(folder, "b", compute)[0] == 2
    content = bytearray((folder / "values.npy").read_bytes())
    content[-1] ^= 1
    (folder / "values.npy").write_bytes(content)
    assert cached_array(folder, "b", compute)[0] == 3
    (folder / "about.json").write_text("[]")
    assert cached_array(folder, "b", compute)[0] == 4
