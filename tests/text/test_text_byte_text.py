"""Bytes to ids and back, and characters out of a stream of bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_companion.errors import DataError
from mlx_companion.text import byte_text
from mlx_companion.text.byte_text import Utf8Stream, decode_bytes, encode_bytes

# Bytes that continue and begin characters come up often enough to meet.
HARD = st.lists(st.sampled_from(b"a\x80\xbf\xc3\xa9\xe2\x82\xac\xed\xa0\xf0\x9f\x98\x80\xff"))
SEQUENCES = st.one_of(st.binary(), HARD.map(bytes), st.text().map(str.encode))


def test_the_vocabulary_is_the_published_one() -> None:
    specials = byte_text.BOE, byte_text.BOS, byte_text.EOS, byte_text.BPE
    assert specials == (0, 1, 2, 3)
    assert (byte_text.OFFSET, byte_text.VOCABULARY) == (4, 260)
    assert encode_bytes("Aé").tolist() == [1, 69, 199, 173]
    assert encode_bytes("Aé").dtype == np.int32


@settings(deadline=None)
@given(data=SEQUENCES, bos=st.booleans())
def test_every_byte_sequence_comes_back(data: bytes, bos: bool) -> None:
    ids = encode_bytes(data, bos=bos)
    assert ids.tolist() == [1] * bos + [byte + 4 for byte in data]
    assert decode_bytes(ids) == data
    assert decode_bytes(iter(ids.tolist())) == data


def test_specials_and_padding_are_left_out() -> None:
    assert decode_bytes([1, 76, -1, 109, 2, 0, 3]) == b"Hi"
    assert decode_bytes([]) == b""
    with pytest.raises(DataError, match="id 260 is no byte"):
        decode_bytes([260])


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(DataError, match="lone surrogate at character 2"):
        encode_bytes("ab\ud800")


@settings(deadline=None)
@given(data=SEQUENCES)
def test_a_stream_is_the_whole_decoding(data: bytes) -> None:
    stream = Utf8Stream()
    pieces = [stream.push(byte) for byte in data]
    assert "".join(pieces) + stream.finish() == data.decode("utf-8", "replace")
    # What is out already is never taken back.
    for count in range(len(data)):
        whole = data[:count].decode("utf-8", "ignore")
        assert len("".join(pieces[:count])) >= len(whole)


@settings(deadline=None)
@given(text=st.text(max_size=20))
def test_a_character_comes_with_its_last_byte(text: str) -> None:
    stream = Utf8Stream()
    for character in text:
        *before, last = character.encode()
        assert [stream.push(byte) for byte in before] == [""] * len(before)
        assert stream.push(last) == character
    assert stream.finish() == ""


def test_a_stream_can_be_used_again() -> None:
    stream = Utf8Stream()
    stream.push(0xE2)
    assert stream.finish() == "\ufffd"
    assert stream.push(65) == "A"
