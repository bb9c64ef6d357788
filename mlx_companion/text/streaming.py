"""Data sets larger than memory: encoded once, kept on the disk, read a batch at a time.

    store = store_samples("chats.jsonl", tokenizer, max_tokens=1024)
    rows = store.rows()                              # a sequence of Encoded, none of it in memory
    buckets = LengthBuckets(rows, batch_tokens=2048, seed=0)

The first pass reads the files sample by sample and writes tokens, masks and sizes to a cache that
is keyed by the hashes of data and tokenizer; a killed pass goes on where it was, and a second run
finds all of it there. In memory are 60 bytes per row and 20 per sample: lengths and places from
which batches are planned, and a hash of each sample's content. The batches are those that
`encode_samples` gives, bit for bit.

Rows are read with `pread`. A memory map would do the same with every page that was touched counted
as this process's memory.

Constant memory needs jsonl or csv files; a json or txt file is held whole while it is read.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mlx_companion.errors import DataError
from mlx_companion.runtime.logs import get_logger
from mlx_companion.runtime.paths import cache_dir
from mlx_companion.text.encode import Encoded, EncodeReport, encode_samples
from mlx_companion.text.fingerprints import KEY_BYTES, content_key, files_sha256, tokenizer_sha256
from mlx_companion.text.journal_files import JournalFiles
from mlx_companion.text.readers import data_files
from mlx_companion.text.records import Sample, iter_samples
from mlx_companion.text.row_sizes import RowSizes

FORMAT = 1
TOKENS, TARGETS, ROWS, SAMPLES, DROPPED = (
    "tokens.bin",
    "targets.bin",
    "rows.bin",
    "samples.bin",
    "dropped.jsonl",
)
KEPT, TRUNCATED, SPLIT, LEFT_OUT = range(4)
_ROW = np.dtype([("length", "<i4"), ("targets", "<i4"), ("sample", "<i8")])
_SAMPLE = np.dtype([("key", f"V{KEY_BYTES}"), ("state", "u1")])
# A part is written when it holds so many of either.
_PART_TOKENS, _PART_SAMPLES = 1 << 18, 1 << 13
_log = get_logger(__name__)


def store_samples(
    path: str | Path, tokenizer: Any, max_tokens: int, *, folder: str | Path | None = None
) -> TokenStore:
    """Encode the samples of a file or folder to the disk, unless they are there already.

    Args:
        path: as of `records.iter_samples`.
        tokenizer, max_tokens: as of `encode.encode_samples`.
        folder: where the cache lies; default: `tokens/` in the cache folder, which may be deleted
            at any time.

    Raises:
        DataError: a sample is malformed or cannot be encoded, or the files changed meanwhile.
        DiskFullError: no space; started again it goes on where it stopped.
    """
    path = Path(path)
    stamps = _stamps(path)
    vocabulary = max(tokenizer.get_vocab().values()) + 1
    kind = np.dtype("<u2" if vocabulary <= 1 << 16 else "<i4")
    hashes = files_sha256(path), tokenizer_sha256(tokenizer)
    name = f"{hashes[0][:16]}-{hashes[1][:8]}-{max_tokens}"
    where = Path(folder) if folder else cache_dir() / "tokens" / name
    made_of = json.dumps([*hashes, max_tokens, FORMAT, kind.str])
    with JournalFiles(where, (TOKENS, TARGETS, ROWS, SAMPLES, DROPPED), made_of) as files:
        if not files.finished:
            _fill(files, path, tokenizer, max_tokens, kind)
            if _stamps(path) != stamps:
                raise DataError("a data file changed while it was read; run it again", path=path)
            files.finish()
    return TokenStore(where, kind)


@dataclass(frozen=True)
class TokenStore:
    """Encoded samples on the disk.

    Attributes:
        folder: where they lie.
        dtype: of the tokens there.
    """

    folder: Path
    dtype: np.dtype[Any]

    @cached_property
    def samples(self) -> np.ndarray:
        """(S,) records: `key`, see `content_key`, and `state`, one of KEPT, TRUNCATED, SPLIT and
        LEFT_OUT."""
        return np.fromfile(self.folder / SAMPLES, dtype=_SAMPLE)

    @cached_property
    def _table(self) -> np.ndarray:
        return np.fromfile(self.folder / ROWS, dtype=_ROW)

    def rows(self, of: np.ndarray | None = None) -> StoredRows:
        """The rows of some samples, in the order of the files.

        Args:
            of: (S,) bool, which samples; all by default.
        """
        lengths = self._table["length"].astype(np.int64)
        starts = np.cumsum(lengths) - lengths
        targets = self._table["targets"].astype(np.int64)
        if of is None:
            return StoredRows(self, starts, RowSizes(lengths, targets))
        chosen = of[self._table["sample"]]
        return StoredRows(self, starts[chosen], RowSizes(lengths[chosen], targets[chosen]))

    def dropped(self, of: np.ndarray | None = None) -> Iterator[tuple[str, str]]:
        """Source and reason of each sample that was left out."""
        with open(self.folder / DROPPED, encoding="utf-8") as file:
            for line in file:
                entry = json.loads(line)
                if of is None or of[entry["sample"]]:
                    yield entry["source"], entry["reason"]


class StoredRows(Sequence[Encoded]):
    """Encoded rows on the disk, as a sequence; may be read from several threads.

    Args:
        store: what they are part of.
        starts: (N,) where each begins in the file of tokens.
        sizes: of each.
    """

    def __init__(self, store: TokenStore, starts: np.ndarray, sizes: RowSizes) -> None:
        self.sizes = sizes
        self._starts, self._dtype = starts, store.dtype
        self._tokens = _Reader(store.folder / TOKENS)
        self._targets = _Reader(store.folder / TARGETS)

    def __len__(self) -> int:
        """N."""
        return len(self._starts)

    def __getitem__(self, index: Any) -> Any:
        """One row, or a list of them for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        tokens, targets = self.arrays(range(len(self))[index])
        return Encoded(tokens.tolist(), targets.tolist())

    def arrays(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (n,) and targets (n,) bool of a row."""
        start, length = int(self._starts[index]), int(self.sizes.lengths[index])
        width = self._dtype.itemsize
        tokens = np.frombuffer(self._tokens.read(start * width, length * width), self._dtype)
        return tokens, np.frombuffer(self._targets.read(start, length), dtype=bool)


class _Reader:
    """A file that is read in places."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDONLY)

    def read(self, start: int, size: int) -> bytes:
        data = os.pread(self._file, size, start)
        if len(data) < size:
            raise DataError(
                "is shorter than it was; delete its folder and run again", path=self.path
            )
        return data

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):
            os.close(self._file)


class _Part:
    """What will be written next."""

    def __init__(self, done: int) -> None:
        self.first = done
        self.tokens: list[np.ndarray] = []
        self.targets: list[np.ndarray] = []
        self.rows: list[tuple[int, int, int]] = []
        self.samples: list[tuple[bytes, int]] = []
        self.dropped: list[dict[str, Any]] = []
        self.size = 0

    @property
    def done(self) -> int:
        """Samples up to here."""
        return self.first + len(self.samples)

    @property
    def full(self) -> bool:
        return self.size >= _PART_TOKENS or len(self.samples) >= _PART_SAMPLES

    def add(self, sample: Sample, rows: Sequence[Encoded], report: EncodeReport) -> None:
        state = KEPT
        if report.dropped:
            state, drop = LEFT_OUT, report.dropped[0]
            self.dropped.append({"sample": self.done, "source": drop.source, "reason": drop.reason})
        elif report.split:
            state = SPLIT
        elif report.truncated:
            state = TRUNCATED
        for row in rows:
            self.tokens.append(np.array(row.tokens, dtype=np.int32))
            self.targets.append(np.array(row.targets, dtype=bool))
            self.rows.append((len(row.tokens), row.target_count, self.done))
            self.size += len(row.tokens)
        self.samples.append((content_key(sample), state))

    def parts(self, kind: np.dtype[Any]) -> dict[str, bytes]:
        empty = [np.zeros(0)]
        lines = [json.dumps(entry) + "\n" for entry in self.dropped]
        return {
            TOKENS: np.concatenate(self.tokens or empty).astype(kind).tobytes(),
            TARGETS: np.concatenate(self.targets or empty).astype(bool).tobytes(),
            ROWS: np.array(self.rows, dtype=_ROW).tobytes(),
            SAMPLES: np.array(self.samples, dtype=_SAMPLE).tobytes(),
            DROPPED: "".join(lines).encode("utf-8"),
        }


def _fill(
    files: JournalFiles, path: Path, tokenizer: Any, max_tokens: int, kind: np.dtype[Any]
) -> None:
    """Encode what is not there yet."""
    part = _Part(files.state.get("samples", 0))
    if part.done:
        _log.info("encoding goes on", extra={"path": str(path), "samples": part.done})
    for sample in islice(iter_samples(path), part.done, None):
        part.add(sample, *encode_samples([sample], tokenizer, max_tokens))
        if part.full:
            files.append(part.parts(kind), {"samples": part.done})
            part = _Part(part.done)
    if part.samples:
        files.append(part.parts(kind), {"samples": part.done})


def _stamps(path: Path) -> list[tuple[str, int, int]]:
    found = [(str(file), file.stat()) for file in data_files(path)]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in found]
