"""Documents as one flat array of ids, which `packing` cuts into rows.

text = flatten(read_documents("books/"))                        # bytes
text = flatten(read_documents("books/"), encode=my_tokenizer)   # tokens
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from mlx_companion.errors import DataError
from mlx_companion.text.byte_text import BOS, encode_bytes

_SUFFIXES = (".txt", ".txt.gz")

Files = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class FlatText:
    """Documents as one array of ids.

    Attributes:
        ids: (T,) whole numbers; every document begins with BOS.
        starts: (K,) int64, where the documents begin.
        bytes: bytes of text in all documents, whatever an id stands for.
    """

    ids: np.ndarray
    starts: np.ndarray
    bytes: int

    @cached_property
    def sha256(self) -> str:
        """Identifies ids and documents, as 64 hexadecimal digits."""
        digest = hashlib.sha256(np.asarray(self.starts, dtype="<i8").tobytes())
        digest.update(np.ascontiguousarray(self.ids, dtype="<i4").tobytes())
        return digest.hexdigest()


def read_documents(files: Files, separator: str | None = None) -> list[bytes]:
    """The contents of text files.

    Args:
        files: a `.txt` or `.txt.gz` file, a folder of such files (in the order of their names), or
            several of either.
        separator: cut each file here into several documents; empty ones are left out.

    Returns:
        One document per file (or piece), as the bytes are.

    Raises:
        DataError: there is no such file, one cannot be read, or all of them are empty.
    """
    given = [files] if isinstance(files, str | Path) else list(files)
    paths = [path for item in given for path in _text_files(Path(item))]
    if not paths:
        raise DataError("no text files were given; give .txt or .txt.gz files or their folder")
    contents = [_read(path) for path in paths]
    if separator:
        mark = separator.encode("utf-8")
        contents = [piece for content in contents for piece in content.split(mark)]
    documents = [content for content in contents if content]
    if not documents:
        others = f", nor in the {len(paths) - 1} other files" if len(paths) > 1 else ""
        raise DataError(f"there is no text in it{others}; give one byte or more", path=paths[0])
    return documents


def flatten(
    documents: Iterable[bytes],
    encode: Callable[[bytes], Sequence[int] | np.ndarray] | None = None,
    *,
    bos: int = BOS,
    eos: int | None = None,
) -> FlatText:
    """Encode documents into one array of ids.

    Args:
        documents: their bytes.
        encode: a document's ids without BOS and EOS; default: its bytes (see `byte_text`).
        bos: the id in front of each document.
        eos: the id behind each document; None for none.

    Raises:
        DataError: no document has an id.
    """
    starts, pieces, size, source_bytes = [], [], 0, 0
    for document in documents:
        inner = (
            encode_bytes(document, bos=False) if encode is None else np.asarray(encode(document))
        )
        pieces.append(_framed(inner, bos, eos))
        starts.append(size)
        size += len(pieces[-1])
        source_bytes += len(document)
    if not source_bytes:
        raise DataError("there is no text; give documents of one byte or more")
    return FlatText(np.concatenate(pieces), np.array(starts, dtype=np.int64), source_bytes)


def _framed(inner: np.ndarray, bos: int, eos: int | None) -> np.ndarray:
    """A document's ids with BOS and EOS; in 16 bits where they fit, which halves long texts."""
    highest = max(int(inner.max(initial=0)), bos, eos or 0)
    ids = np.empty(len(inner) + 1 + (eos is not None), np.uint16 if highest < 2**16 else np.int32)
    ids[0] = bos
    ids[1 : len(inner) + 1] = inner
    if eos is not None:
        ids[-1] = eos
    return ids


def _text_files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(p for p in path.iterdir() if p.name.endswith(_SUFFIXES) and p.is_file())
    return [path]


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.name.endswith(".gz") else data
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot be read: {error}", path=path) from error
