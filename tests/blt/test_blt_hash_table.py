"""The three kinds of hash tables answer alike, and the mapped one reads only what it must."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_companion.blt.config import HashConfig
from mlx_companion.blt.hash_table import (
    HashEmbedding,
    MappedHashEmbedding,
    QuantizedHashEmbedding,
)
from mlx_companion.blt.hashing import hash_ids
from mlx_companion.errors import ModelNotFoundError, WeightsError

CONFIG = HashConfig((2, 3, 5), 2, 100)
ROWS, WIDTH, KEY = CONFIG.rows, 64, "model.encoder_hash_tok_embedding.weight"
NO_TABLES = HashConfig(functions=0)


@pytest.fixture
def table() -> HashEmbedding:
    mx.random.seed(4)
    return HashEmbedding(ROWS, WIDTH)


@pytest.fixture
def ids() -> mx.array:
    # Few different bytes, so that many positions share a row.
    return mx.array(np.random.default_rng(0).integers(4, 7, (3, 50)).astype(np.int32))


def summed(weight: mx.array, ids: mx.array) -> np.ndarray:
    """What every table has to answer, in double precision."""
    table = np.array(weight.astype(mx.float32)).astype(np.float64)
    return table[np.array(hash_ids(ids, CONFIG))].sum(axis=0)


def test_rows_are_summed(table: HashEmbedding, ids: mx.array) -> None:
    assert np.allclose(np.array(table(ids, CONFIG)), summed(table.weight, ids), atol=1e-5)
    # One position per row while generating.
    last = table(ids, CONFIG, last=1)
    assert np.allclose(np.array(last), np.array(table(ids, CONFIG)[:, -1:]), atol=1e-6)
    assert [name for name, _ in tree_flatten(table.parameters())] == ["weight"]


def test_gradient_is_that_of_the_definition(table: HashEmbedding, ids: mx.array) -> None:
    weights = mx.random.normal((3, 50, WIDTH), key=mx.random.key(1))

    def loss(weight: mx.array) -> mx.array:
        table.weight = weight
        return (table(ids, CONFIG) * weights).sum()

    ours = np.array(mx.grad(loss)(table.weight))
    expected = np.zeros((ROWS, WIDTH))
    rows = np.array(hash_ids(ids, CONFIG))
    np.add.at(expected, rows, np.array(weights)[None].astype(np.float64))
    assert np.allclose(ours, expected, atol=1e-4)
    assert len(np.unique(rows)) < rows.size / 2


def test_gradient_passes_through_a_model(table: HashEmbedding, ids: mx.array) -> None:
    value, gradients = nn.value_and_grad(table, lambda: (table(ids, CONFIG) ** 2).mean())()
    step = 0.5
    table.weight = table.weight - step * gradients["weight"]
    assert (table(ids, CONFIG) ** 2).mean().item() < value.item()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [32, 64])
def test_quantized_rows_are_those_of_the_quantized_table(
    table: HashEmbedding, ids: mx.array, bits: int, group_size: int
) -> None:
    quantized = table.to_quantized(group_size, bits)
    parts = (quantized.weight, quantized.scales, quantized.biases)
    whole = mx.dequantize(*parts, group_size=group_size, bits=bits)
    assert np.allclose(np.array(quantized(ids, CONFIG)), summed(whole, ids), atol=1e-5)
    error = np.abs(np.array(quantized(ids, CONFIG)) - np.array(table(ids, CONFIG))).max()
    assert error < 6 * np.abs(np.array(table.weight)).max() / (2**bits - 1) * 1.1


def test_a_model_is_quantized_saved_and_loaded(
    table: HashEmbedding, ids: mx.array, tmp_path: Path
) -> None:
    model = nn.Module()
    model.table = table
    nn.quantize(model, group_size=32, bits=8)
    assert isinstance(model.table, QuantizedHashEmbedding)
    names = {name for name, _ in tree_flatten(model.parameters())}
    assert names == {"table.weight", "table.scales", "table.biases"}
    assert not tree_flatten(model.trainable_parameters())
    model.save_weights(str(tmp_path / "model.safetensors"))
    other = nn.Module()
    other.table = HashEmbedding(ROWS, WIDTH)
    nn.quantize(other, group_size=32, bits=8)
    other.load_weights(str(tmp_path / "model.safetensors"))
    assert mx.array_equal(other.table(ids, CONFIG), model.table(ids, CONFIG))
    mapped = MappedHashEmbedding(
        tmp_path / "model.safetensors", "table.weight", group_size=32, bits=8
    )
    assert mapped.width == WIDTH
    assert np.allclose(np.array(mapped(ids, CONFIG)), np.array(model.table(ids, CONFIG)), atol=1e-6)


def test_modes_without_biases(table: HashEmbedding, ids: mx.array) -> None:
    quantized = table.to_quantized(mode="mxfp8")
    whole = mx.dequantize(quantized.weight, quantized.scales, group_size=32, bits=8, mode="mxfp8")
    # This mode dequantizes to bfloat16, and so are the sums.
    ours = np.array(quantized(ids, CONFIG).astype(mx.float32))
    assert np.allclose(ours, summed(whole, ids), atol=0.01)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_mapped_tables_answer_alike(
    table: HashEmbedding, ids: mx.array, tmp_path: Path, dtype: mx.Dtype
) -> None:
    table.weight = table.weight.astype(dtype)
    # Something in front, so that the tensor does not begin where the data do.
    mx.save_safetensors(str(tmp_path / "w.safetensors"), {"a": mx.zeros((3,)), KEY: table.weight})
    mapped = MappedHashEmbedding(tmp_path / "w.safetensors", KEY)
    assert mapped(ids, CONFIG).dtype == dtype
    assert mx.array_equal(mapped(ids, CONFIG), table(ids, CONFIG))
    assert mapped(ids[:0], CONFIG).shape == (0, 50, WIDTH)
    assert mapped(ids, NO_TABLES).shape == (3, 50, WIDTH)
    assert not tree_flatten(mapped.parameters())
    assert "600, 64, w.safetensors" in repr(mapped)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/smaps")
def test_mapping_reads_only_the_rows_that_are_asked_for(tmp_path: Path) -> None:
    path, rows = tmp_path / "large.safetensors", 1_000_002
    entry = {"dtype": "F32", "shape": [rows, WIDTH], "data_offsets": [0, rows * WIDTH * 4]}
    header = json.dumps({KEY: entry}).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        # 256 MB of which the disk holds nothing.
        file.truncate(8 + len(header) + rows * WIDTH * 4)
    mapped = MappedHashEmbedding(path, KEY)
    config = HashConfig((2, 3, 4, 5, 6, 8), 1, rows // 6)
    assert not np.array(mapped(mx.arange(8)[None] + 4, config)).any()
    # A row touches one page or two; the header some more.
    assert resident_bytes(path) < 200 * 4096


def resident_bytes(path: Path) -> int:
    """Bytes of a mapped file that are in memory."""
    maps = Path("/proc/self/smaps").read_text()
    found = re.findall(rf"{re.escape(str(path))}\n(?:.*\n)*?Rss:\s+(\d+) kB", maps)
    assert found
    return sum(int(kilobytes) * 1024 for kilobytes in found)


def test_files_that_cannot_be_mapped(table: HashEmbedding, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(ModelNotFoundError, match="there is no file"):
        MappedHashEmbedding(path, KEY)
    path.write_bytes(b"")
    with pytest.raises(WeightsError, match="cannot be mapped"):
        MappedHashEmbedding(path, KEY)
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(WeightsError, match="no safetensors file"):
        MappedHashEmbedding(path, KEY)
    path.write_bytes((5).to_bytes(8, "little") + b"nojson")
    with pytest.raises(WeightsError, match="no readable safetensors header"):
        MappedHashEmbedding(path, KEY)
    mx.save_safetensors(str(path), {KEY: table.weight, "int": mx.zeros((2, 2), dtype=mx.int8)})
    with pytest.raises(WeightsError, match="no tensor 'other'"):
        MappedHashEmbedding(path, "other")
    with pytest.raises(WeightsError, match=r"'int' is I8 of shape \[2, 2\]"):
        MappedHashEmbedding(path, "int")
    with pytest.raises(WeightsError, match=r"no tensor 'model\.encoder_\w+\.scales'"):
        MappedHashEmbedding(path, KEY, group_size=64, bits=8)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match="ends inside"):
        MappedHashEmbedding(path, KEY)
