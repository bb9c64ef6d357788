"""Text as bytes: the vocabulary of byte-level models, and characters out of a stream of bytes.

A byte b is the id b + 4; the four ids before it are specials, of which only BOS (in front of every
document) and EOS (behind one, where wanted) occur. No text is out of vocabulary and nothing is
normalized: `decode_bytes(encode_bytes(data)) == data` for every byte sequence.

    ids = encode_bytes("Grüße")                      # int32 [1, 75, 118, 199, 192, ...]
    stream = Utf8Stream()
    for byte in decode_bytes(ids):
        print(stream.push(byte), end="")             # "ü" comes out whole, after its second byte
    print(stream.finish())

Reference: Pagnoni et al. 2024, "Byte Latent Transformer: Patches Scale Better Than Tokens".
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable

import numpy as np

from mlx_companion.errors import DataError

BOE, BOS, EOS, BPE = 0, 1, 2, 3
# Marks padding in files of other implementations; it never reaches a model.
PAD = -1
OFFSET = 4
VOCABULARY = OFFSET + 256


def encode_bytes(data: bytes | str, bos: bool = True) -> np.ndarray:
    """The ids of a text.

    Args:
        data: bytes, or text, which is taken as UTF-8.
        bos: begin with BOS.

    Returns:
        (N,) int32.

    Raises:
        DataError: the text has a lone surrogate, which no UTF-8 bytes stand for.
    """
    raw = np.frombuffer(_utf8(data) if isinstance(data, str) else bytes(data), dtype=np.uint8)
    ids = np.empty(len(raw) + bos, dtype=np.int32)
    ids[:bos] = BOS
    np.add(raw, OFFSET, out=ids[bos:], dtype=np.int32)
    return ids


def decode_bytes(ids: Iterable[int] | np.ndarray) -> bytes:
    """The bytes that ids stand for; specials and padding are left out.

    Args:
        ids: (N,) whole numbers under `VOCABULARY`.

    Raises:
        DataError: an id is no byte of this vocabulary.
    """
    values = np.array(ids if isinstance(ids, np.ndarray) else list(ids), dtype=np.int64).ravel()
    if values.size and values.max() >= VOCABULARY:
        raise DataError(f"id {values.max()} is no byte; byte ids are under {VOCABULARY}")
    return (values[values >= OFFSET] - OFFSET).astype(np.uint8).tobytes()


class Utf8Stream:
    """Turns bytes that come one at a time into text, character by whole character.

    All that is returned, put together, is `bytes.decode("utf-8", "replace")` of all that was
    pushed: an invalid sequence becomes U+FFFD as soon as it is known to be invalid.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, byte: int) -> str:
        """Take one byte; the text that it completed, mostly one character or none.

        Args:
            byte: 0-255.
        """
        return self._decoder.decode(bytes((byte,)))

    def finish(self) -> str:
        """The end: what an unfinished character becomes. Afterwards a new text may be pushed."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"the text has a lone surrogate at character {error.start}, which UTF-8 cannot hold; "
            "remove it, or pass bytes"
        ) from error
