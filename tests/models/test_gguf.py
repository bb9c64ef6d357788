"""GGUF files: tensors against the `gguf` package, whole models against their folders."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from gguf_files import write_gguf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten
from tiny import tiny_llama

from mlx_companion.errors import CompanionError, ModelNotFoundError, WeightsError
from mlx_companion.models.gguf import load_gguf
from mlx_companion.models.gguf_header import is_gguf, read_header
from mlx_companion.models.load import load

FIXTURES = Path(__file__).parent.parent / "fixtures"
TOKENS = mx.array([[1, 87, 12, 300, 45, 45, 2, 9]])
MIXED = {"": "Q4_1", "token_embd.weight": "Q8_0", "blk.0.attn_q.weight": "Q4_0"} | {
    "blk.1.ffn_down.weight": "F16"
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("llama"), hidden_size=64, rope_theta=500.0)


def in_hub_order(name: str, value: np.ndarray, heads: int) -> np.ndarray:
    """Undo the interleaving of q and k rows."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return value
    return value.reshape(heads, -1, 2, value.shape[-1]).swapaxes(1, 2).reshape(value.shape)


@pytest.mark.parametrize("kinds", ["F32", "F16", "Q8_0", "Q4_1", "Q4_0", MIXED], ids=str)
def test_tensors_equal_the_gguf_package_s(tmp_path, folder, kinds):
    expected = write_gguf(tmp_path / "m.gguf", folder, kinds)
    model, _, _ = load_gguf(tmp_path / "m.gguf")
    found = dict(tree_flatten(model.parameters()))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        its = in_hub_order(name, np.array(found[name]), 2 if "k_proj" in name else 4)
        np.testing.assert_allclose(its, value, rtol=1e-6, atol=1e-7, err_msg=name)
        assert found[name].dtype == mx.float32


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kinds", ["F32", "Q4_1"])
def test_logits_equal_those_of_the_folder(tmp_path, kinds, tied):
    folder = tiny_llama(tmp_path / "hub", rope_theta=500.0, tie_word_embeddings=tied)
    expected = write_gguf(tmp_path / "m.gguf", folder, kinds)
    hub_model, _ = load(folder)
    hub_model.load_weights([(name, mx.array(value)) for name, value in expected.items()])
    model, _, config = load_gguf(tmp_path / "m.gguf")
    assert config["tie_word_embeddings"] is tied
    np.testing.assert_allclose(model(TOKENS), hub_model(TOKENS), rtol=1e-4, atol=1e-5)


def test_quantized_layers_stay_quantized_on_request(tmp_path, folder):
    write_gguf(tmp_path / "m.gguf", folder, MIXED)
    plain, _, _ = load_gguf(tmp_path / "m.gguf")
    packed, _, _ = load_gguf(tmp_path / "m.gguf", dequantize=False)
    embedding, first = packed.model.embed_tokens, packed.model.layers[0].self_attn.q_proj
    assert isinstance(embedding, nn.QuantizedEmbedding)
    assert (embedding.bits, first.bits, first.group_size) == (8, 4, 32)
    assert type(packed.model.layers[1].mlp.down_proj) is nn.Linear
    np.testing.assert_allclose(packed(TOKENS), plain(TOKENS), rtol=1e-3, atol=1e-4)


def test_one_number_type_for_everything_that_is_not_packed(tmp_path, folder):
    write_gguf(tmp_path / "m.gguf", folder, MIXED)
    model, _, _ = load_gguf(tmp_path / "m.gguf", dequantize=False, dtype=mx.float16)
    kinds = {v.dtype for _, v in tree_flatten(model.parameters())}
    assert kinds == {mx.uint32, mx.float16}
    assert model(TOKENS).dtype == mx.float16


def test_rope_factors_equal_llama3_scaling(tmp_path):
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    folder = tiny_llama(tmp_path / "hub", rope_theta=500.0, rope_scaling=scaling)
    hub_model, _ = load(folder)
    base = 500.0 ** (np.arange(0, 8, 2) / 8)
    factors = np.array(hub_model.model.layers[0].self_attn.rope._freqs) / base
    assert factors.max() > 2
    write_gguf(tmp_path / "m.gguf", folder, extra={"rope_freqs.weight": factors.astype(np.float32)})
    model, _, _ = load_gguf(tmp_path / "m.gguf")
    np.testing.assert_allclose(model(TOKENS), hub_model(TOKENS), rtol=1e-4, atol=1e-5)
    assert "rope" not in str([name for name, _ in tree_flatten(model.parameters())])


@pytest.mark.parametrize(
    ("keys", "scaling"),
    [
        (
            {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
            {"type": "linear", "factor": 4.0},
        ),
        ({"llama.rope.scale_linear": 2.0}, {"type": "linear", "factor": 2.0}),
        (
            {
                "llama.rope.scaling.type": "yarn",
                "llama.rope.scaling.factor": 4.0,
                "llama.rope.scaling.original_context_length": 128,
            },
            {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
        ),
    ],
    ids=["linear", "old linear", "yarn"],
)
def test_rope_scaling_equals_the_folder_s(tmp_path, keys, scaling):
    folder = tiny_llama(tmp_path / "hub", rope_scaling=scaling)
    write_gguf(tmp_path / "m.gguf", folder, metadata=keys)
    model, _, _ = load_gguf(tmp_path / "m.gguf")
    hub_model, _ = load(folder)
    np.testing.assert_allclose(model(TOKENS), hub_model(TOKENS), rtol=1e-4, atol=1e-5)
    plain, _ = load(tiny_llama(tmp_path / "plain"))
    assert np.abs(np.array(plain(TOKENS) - hub_model(TOKENS))).max() > 1e-3


@pytest.mark.parametrize("kind", ["Q5_0", "Q5_1", "BF16", "Q4_K", "Q6_K", "Q2_K"])
def test_other_kinds_are_named_and_refused(tmp_path, kind):
    number = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[number]
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    data = np.zeros((2, 256 // block * size), dtype=np.uint8)
    writer.add_tensor("blk.0.attn_v.weight", data, raw_dtype=number)
    finish(writer)
    with pytest.raises(WeightsError, match=f"'blk.0.attn_v.weight'.*of kind {kind};"):
        load_gguf(tmp_path / "m.gguf")


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"llama.expert_count": 8}, "mixture of experts"),
        ({"llama.block_count": None}, "llama.block_count"),
        ({"llama.attention.head_count_kv": [2, 1]}, "another form"),
        ({"llama.rope.dimension_count": 4}, "rotates 4 of 8"),
        ({"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 2.0}, "'longrope'"),
        ({"llama.block_count": 3}, "does not hold the tensors"),
    ],
)
def test_what_is_no_plain_llama_is_refused(tmp_path, keys, message):
    folder = tiny_llama(tmp_path / "hub")
    write_gguf(tmp_path / "m.gguf", folder, metadata=keys)
    with pytest.raises(WeightsError, match=message):
        load_gguf(tmp_path / "m.gguf")


def test_another_architecture_is_named(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "qwen2")
    finish(writer)
    with pytest.raises(WeightsError, match="'qwen2'"):
        load_gguf(tmp_path / "m.gguf")


def test_an_unknown_tensor_is_named(tmp_path, folder):
    extra = {"blk.0.attn_sinks.weight": np.zeros(4, dtype=np.float32)}
    write_gguf(tmp_path / "m.gguf", folder, extra=extra)
    with pytest.raises(WeightsError, match=r"'blk\.0\.attn_sinks\.weight'"):
        load_gguf(tmp_path / "m.gguf")


@pytest.fixture(scope="module")
def file(folder, tmp_path_factory):
    """A file with every kind of metadata."""
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    keys = {"test.float": -2.5, "test.list": [1, 2, 300], "test.flags": [True, False]}
    write_gguf(path, folder, MIXED, keys | {"test.words": ["a", "\u00e9\u4f60", ""]})
    return path


class TestHeader:
    """The header reader against the `gguf` package's, and against damage."""

    def test_it_reads_what_the_gguf_package_reads(self, file):
        header, reader = read_header(file), gguf.GGUFReader(file)
        assert {t.name: (t.kind, t.shape, t.size) for t in header.tensors.values()} == {
            t.name: (t.tensor_type.name, tuple(t.shape[::-1].tolist()), t.n_bytes)
            for t in reader.tensors
        }
        for key, field in reader.fields.items():
            if not key.startswith("GGUF."):
                value = header.metadata[key]
                assert (value.tolist() if hasattr(value, "tolist") else value) == field.contents()
        assert len(header.metadata) > 20

    @settings(
        max_examples=60,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(share=st.floats(0, 1, exclude_max=True))
    def test_a_file_cut_anywhere_is_refused(self, file, tmp_path, share):
        data = file.read_bytes()
        (tmp_path / "cut.gguf").write_bytes(data[: int(share * len(data))])
        with pytest.raises(WeightsError, match=r"cut short|not a GGUF"):
            read_header(tmp_path / "cut.gguf")

    @settings(
        max_examples=150,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(place=st.integers(0, 3000), value=st.integers(0, 255))
    def test_a_damaged_byte_never_gives_another_kind_of_error(self, file, tmp_path, place, value):
        data = bytearray(file.read_bytes())
        data[place] = value
        (tmp_path / "bad.gguf").write_bytes(data)
        try:
            header = read_header(tmp_path / "bad.gguf")
        except CompanionError:
            return
        assert header.tensors

    def test_versions_and_byte_orders_that_are_not_known(self, file, tmp_path):
        data = file.read_bytes()
        for version in (struct.pack("<I", 1), struct.pack(">I", 3)):
            (tmp_path / "v.gguf").write_bytes(data[:4] + version + data[8:])
            with pytest.raises(WeightsError, match="version"):
                read_header(tmp_path / "v.gguf")

    def test_what_is_no_gguf_file(self, tmp_path):
        (tmp_path / "x").write_bytes(b"PK\3\4" + bytes(60))
        assert not is_gguf(tmp_path / "x")
        with pytest.raises(WeightsError, match="not a GGUF file"):
            read_header(tmp_path / "x")
        with pytest.raises(ModelNotFoundError, match=r"none\.gguf"):
            read_header(tmp_path / "none.gguf")


@pytest.mark.real_model
def test_the_default_model_s_logits_equal_those_of_transformers(real_cache):
    from mlx_companion.models.registry import DEFAULT_MODEL

    stored = np.load(FIXTURES / "smollm2_logits.npz")
    lm = load(DEFAULT_MODEL)
    if lm.path.is_dir():
        pytest.skip("the cache holds the hub's bfloat16 weights; the answers are for the GGUF")
    for number in range(3):
        logits = np.array(lm.model(mx.array(stored[f"tokens{number}"])[None])[0])
        np.testing.assert_array_equal(logits.argmax(-1), stored[f"best{number}"])
        np.testing.assert_allclose(
            logits[-2:, ::16], stored[f"logits{number}"], rtol=1e-3, atol=2e-3
        )
