"""Bits per byte against plain NumPy, at every stride, and on all that is no ordinary text."""

from __future__ import annotations

import gzip
import math
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_companion.blt.byte_lm import ByteLM
from mlx_companion.blt.config import BlockConfig, BltConfig, ByteLMConfig, HashConfig, PatchConfig
from mlx_companion.blt.evaluate import Evaluation, bits_per_byte, evaluate, nats_of_ids, read_text
from mlx_companion.blt.flops import inference_flops
from mlx_companion.blt.model import BltModel
from mlx_companion.errors import ConfigError, DataError, ModelError
from mlx_companion.text.byte_text import encode_bytes

CONTEXT = 24
LOCAL = BlockConfig(16, 1, 2, 24, window=8)
CONFIG = BltConfig(
    LOCAL,
    BlockConfig(32, 1, 2, 32),
    LOCAL,
    None,
    hash=HashConfig((3, 4), 1, 101),
    patching=PatchConfig(mode="space"),
    context=CONTEXT,
)
TEXT = "Gestern im Café: »zwölf Bücher«, und 東京. " * 4


@pytest.fixture(scope="module")
def model() -> BltModel:
    mx.random.seed(0)
    return BltModel(CONFIG)


@pytest.fixture(scope="module")
def flat() -> ByteLM:
    mx.random.seed(1)
    return ByteLM(ByteLMConfig(replace(LOCAL, window=None), context=CONTEXT))


def plain_nats(model: BltModel | ByteLM, data: bytes) -> np.ndarray:
    """Cross-entropy of each byte, in float64, from the logits of one row."""
    ids = encode_bytes(data)
    logits = np.asarray(model(mx.array(ids[None, :-1])))[0].astype(np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    normalizer = np.log(np.exp(shifted).sum(axis=-1))
    return normalizer - shifted[np.arange(len(data)), ids[1:]]


def windowed_nats(model: BltModel | ByteLM, data: bytes, context: int, stride: int) -> float:
    """The same over a long text, one window after the other."""
    total, done, start = 0.0, 0, 0
    while done < len(data):
        nats = plain_nats(model, data[start : start + context])
        total += nats[done - start :].sum()
        done, start = start + len(nats), start + stride
    return total


@pytest.mark.parametrize("data", [b"a", b"\0", b"\xff\xfe\x00", TEXT.encode()[:CONTEXT]], ids=repr)
@pytest.mark.parametrize("kind", ["model", "flat"])
def test_a_text_within_the_context(kind: str, data: bytes, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    expected = plain_nats(model, data).sum()
    found = evaluate(model, data)
    assert found.nats == pytest.approx(expected, rel=2e-5)
    assert found.bits_per_byte == pytest.approx(expected / math.log(2) / len(data), rel=2e-5)
    assert (found.bytes, found.windows) == (len(data), 1)
    assert bits_per_byte(model, data) == found.bits_per_byte == float(found)


@pytest.mark.parametrize("rows", [1, 2, 100])
@pytest.mark.parametrize("stride", [1, 7, 12, 23, 24])
@pytest.mark.parametrize("kind", ["model", "flat"])
def test_a_long_text_at_any_stride(
    kind: str, stride: int, rows: int, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(kind)
    data = TEXT.encode()[:97]
    found = evaluate(model, data, stride=stride, batch_rows=rows)
    assert found.bytes == 97
    assert found.stride == stride
    assert found.nats == pytest.approx(windowed_nats(model, data, CONTEXT, stride), rel=2e-5)


def test_patches_are_those_of_the_text(model: BltModel) -> None:
    found = evaluate(model, b"one two  three four", context=64)
    # A patch ends with a space; the second of two spaces begins the next.
    assert found.patches == len(["one ", "two ", " three ", "four"])
    assert found.mean_patch_bytes == 19 / 4
    # One window is the whole text, so its length is what attention goes over.
    assert found.flops_per_byte == inference_flops(CONFIG, 19 / 4, 19).total


def test_windows_do_not_count_a_patch_twice(model: BltModel) -> None:
    text = b"ab cd ef gh ij kl mn op qr st uv wx yz " * 3
    found = evaluate(model, text, stride=CONTEXT // 3)
    assert found.patches == len(text) // 3


def test_a_flat_model_has_patches_of_one_byte(flat: ByteLM) -> None:
    found = evaluate(flat, TEXT)
    assert found.mean_patch_bytes == 1
    assert found.flops_per_byte == inference_flops(flat.config, 1.0, CONTEXT).total


def test_an_entropy_model_may_place_the_boundaries() -> None:
    mx.random.seed(2)
    entropy = BlockConfig(16, 1, 2, 24, window=8, rope_theta=1e4)
    for threshold, mean in ((-1.0, 1.0), (9.0, 20.0)):
        rule = PatchConfig(threshold=threshold)
        model = BltModel(replace(CONFIG, entropy=entropy, patching=rule))
        found = evaluate(model, TEXT.encode()[:20])
        assert found.mean_patch_bytes == mean
        assert found.nats == pytest.approx(plain_nats(model, TEXT.encode()[:20]).sum(), rel=2e-5)


def test_progress_reaches_the_end(model: BltModel) -> None:
    told: list[tuple[int, int]] = []
    found = evaluate(model, TEXT, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (found.bytes, found.bytes)
    assert [done for done, _ in told] == sorted({done for done, _ in told})


def test_any_way_to_give_a_text(model: BltModel, tmp_path: Path) -> None:
    data = TEXT.encode()
    plain, packed = tmp_path / "a.txt", tmp_path / "b.txt.gz"
    plain.write_bytes(data)
    packed.write_bytes(gzip.compress(data))
    assert read_text(TEXT) == read_text(data) == read_text(plain) == read_text(packed) == [data]
    assert read_text(str(plain)) == read_text(str(packed)) == [data]
    assert read_text(tmp_path) == [data, data]
    assert evaluate(model, tmp_path).nats == pytest.approx(2 * evaluate(model, data).nats)
    assert evaluate(model, tmp_path).bits_per_byte == pytest.approx(bits_per_byte(model, TEXT))


def test_a_text_is_no_path_only_because_it_is_short(model: BltModel) -> None:
    assert read_text("one\0two") == [b"one\0two"]
    assert read_text("x" * 10_000) == [b"x" * 10_000]
    assert read_text("the end of book.txt\n") == [b"the end of book.txt\n"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the text is empty"),
        (b"", "the text is empty"),
        ("boook.txt", "boook.txt: there is no such file"),
        (Path("nowhere"), "nowhere: cannot be read"),
        ("a\ud800b", "lone surrogate"),
    ],
    ids=["str", "bytes", "name", "path", "surrogate"],
)
def test_texts_that_cannot_be_read(model: BltModel, text: str | bytes | Path, said: str) -> None:
    with pytest.raises(DataError, match=said):
        bits_per_byte(model, text)


def test_empty_files_are_no_text(model: BltModel, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match="there is no text in it"):
        bits_per_byte(model, tmp_path / "empty.txt")


def test_settings_out_of_range(model: BltModel) -> None:
    with pytest.raises(ConfigError, match="stride is 25; expected 1 to the context, 24"):
        bits_per_byte(model, TEXT, stride=25)
    with pytest.raises(ConfigError, match="context is 0"):
        bits_per_byte(model, TEXT, context=0)


def test_damaged_weights_give_no_number() -> None:
    model = ByteLM(ByteLMConfig(LOCAL))
    model.model.norm.weight = mx.full(model.model.norm.weight.shape, float("nan"))
    with pytest.raises(ModelError, match="its weights are damaged"):
        bits_per_byte(model, TEXT)


def test_ids_of_any_vocabulary() -> None:
    mx.random.seed(3)
    tokens = ByteLM(ByteLMConfig(LOCAL, vocabulary=700, context=8))
    ids = np.array([699, 5, 300, 300, 17, 2], dtype=np.uint16)
    found = nats_of_ids(tokens, ids, bos=3)
    row = np.array([3, *ids[:-1]], dtype=np.int32)
    logits = np.asarray(tokens(mx.array(row[None])))[0].astype(np.float64)
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    assert found == pytest.approx(-np.log(p[np.arange(6), ids]), rel=1e-4)
    assert nats_of_ids(tokens, np.tile(ids, 9), bos=3, stride=3)[:6] == pytest.approx(found)
    with pytest.raises(DataError, match="there are no ids"):
        nats_of_ids(tokens, [])


def test_bytes_are_ids_too(model: BltModel) -> None:
    data = TEXT.encode()
    nats = nats_of_ids(model, encode_bytes(data, bos=False))
    assert nats.shape == (len(data),)
    assert nats.sum(dtype=np.float64) == pytest.approx(evaluate(model, data).nats)


def test_an_evaluation_is_plain_values(model: BltModel) -> None:
    found = evaluate(model, TEXT)
    assert isinstance(found, Evaluation)
    assert Evaluation(**found.to_dict()) == found
