"""`load` by folder, file, alias and hub id; what the machine decides; every clear error."""

from __future__ import annotations

import importlib
import json
import shutil

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from gguf_files import write_gguf
from mlx.utils import tree_flatten
from mlx_lm import generate
from mlx_lm.utils import load as mlx_lm_load
from mlx_lm.utils import load_model, quantize_model, save_model
from tiny import tiny_bert, tiny_llama

from mlx_companion.errors import DownloadError, ModelNotFoundError, WeightsError
from mlx_companion.models.load import LanguageModel, load
from mlx_companion.runtime.files import sha256_file

# The package offers the function under the module's name.
load_module = importlib.import_module("mlx_companion.models.load")
TOKENS = mx.array([[1, 87, 12, 300, 45, 45, 2, 9]])


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def folder(shared, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(shared, tmp_path / "model")


def edit_config(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def quantized(folder, out, bits=4):
    """The folder's model as mlx-lm quantizes it."""
    model, config = load_model(folder)
    model, config = quantize_model(model, config, group_size=32, bits=bits)
    shutil.copytree(folder, out)
    (out / "model.safetensors").unlink()
    save_model(out, model)
    (out / "config.json").write_text(json.dumps(config))
    return out


def dtypes(model):
    return {value.dtype for _, value in tree_flatten(model.parameters())}


def test_a_folder_gives_what_mlx_lm_gives(shared):
    lm = load(shared)
    theirs, tokenizer = mlx_lm_load(str(shared))
    np.testing.assert_array_equal(lm.model(TOKENS), theirs(TOKENS))
    text = "Where is Porto? 42<|im_end|>"
    assert lm.tokenizer.encode(text) == tokenizer.encode(text)
    assert (lm.source, lm.path, lm.config["hidden_size"]) == (str(shared), shared, 32)
    assert not lm.model.training


def test_it_unpacks_to_model_and_tokenizer(shared):
    lm = load(str(shared))
    model, tokenizer = lm
    assert isinstance(lm, LanguageModel)
    assert model is lm.model
    assert tokenizer is lm.tokenizer


def test_every_token_that_ends_a_turn_ends_generation(folder):
    edit_config(folder, eos_token_id=0)
    _, tokenizer = load(folder)
    assert tokenizer.eos_token_ids == {0, 2}
    assert tokenizer.convert_ids_to_tokens([0, 2]) == ["<|endoftext|>", "<|im_end|>"]


def test_float32_on_the_cpu_backend(folder):
    model, _ = load(folder)
    half = {k: v.astype(mx.bfloat16) for k, v in tree_flatten(model.parameters())}
    mx.save_safetensors(str(folder / "model.safetensors"), half, metadata={"format": "mlx"})
    assert dtypes(load(folder).model) == {mx.float32}
    assert dtypes(load(folder, dtype=mx.bfloat16).model) == {mx.bfloat16}


def test_elsewhere_files_keep_their_types(folder, tmp_path, monkeypatch):
    packed = quantized(folder, tmp_path / "packed")
    write_gguf(tmp_path / "m.gguf", folder, "Q4_1")
    half = {k: v.astype(mx.bfloat16) for k, v in tree_flatten(load_model(folder)[0].parameters())}
    mx.save_safetensors(str(folder / "model.safetensors"), half, metadata={"format": "mlx"})

    class Gpu:
        type = mx.DeviceType.gpu

    monkeypatch.setattr(load_module.mx, "default_device", Gpu)
    assert dtypes(load(folder).model) == {mx.bfloat16}
    assert dtypes(load(packed).model) == {mx.uint32, mx.float32}
    model = load(tmp_path / "m.gguf").model
    assert dtypes(model) == {mx.uint32, mx.float16}
    assert isinstance(model.model.layers[0].mlp.up_proj, nn.QuantizedLinear)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_folders_are_dequantized_on_the_cpu_backend(folder, tmp_path, bits):
    packed = quantized(folder, tmp_path / "packed", bits)
    plain, kept = load(packed), load(packed, dequantize=False)
    assert type(plain.model.model.layers[0].mlp.up_proj) is nn.Linear
    assert "quantization" not in plain.config
    assert isinstance(kept.model.model.layers[0].mlp.up_proj, nn.QuantizedLinear)
    assert kept.config["quantization"]["bits"] == bits
    assert plain.base_sha256 == kept.base_sha256 != load(folder).base_sha256
    np.testing.assert_allclose(plain.model(TOKENS), kept.model(TOKENS), rtol=1e-3, atol=1e-4)


def test_lazy_reads_weights_later(shared):
    np.testing.assert_array_equal(load(shared, lazy=True).model(TOKENS), load(shared).model(TOKENS))


def test_a_gguf_file_with_its_tokenizer(shared, tmp_path):
    write_gguf(tmp_path / "m.gguf", shared, "F16")
    lm, hub = load(tmp_path / "m.gguf"), load(shared)
    np.testing.assert_allclose(lm.model(TOKENS), hub.model(TOKENS), rtol=0.02, atol=0.02)
    assert lm.tokenizer.eos_token_ids == hub.tokenizer.eos_token_ids == {0, 2}
    chat = [{"role": "user", "content": "Is it 21 or 42?\n\tTell me \U0001f600"}]
    ids = lm.tokenizer.apply_chat_template(chat, add_generation_prompt=True)
    assert ids == hub.tokenizer.apply_chat_template(chat, add_generation_prompt=True)
    assert lm.base_sha256 == sha256_file(tmp_path / "m.gguf")
    detokenizer = lm.tokenizer.detokenizer
    for token in ids:
        detokenizer.add_token(token)
    detokenizer.finalize()
    assert detokenizer.text == lm.tokenizer.decode(ids)


def test_a_folder_with_one_gguf_file_and_any_suffix(shared, tmp_path):
    write_gguf(tmp_path / "m.gguf", shared)
    assert load(tmp_path).path == tmp_path / "m.gguf"
    (tmp_path / "m.gguf").rename(tmp_path / "download.part")
    assert load(tmp_path / "download.part").tokenizer.eos_token_ids == {0, 2}


@pytest.mark.parametrize("name", ["smollm2-135m", "owner/model"])
def test_aliases_and_hub_ids_are_fetched(shared, monkeypatch, name):
    monkeypatch.setattr(load_module, "fetch", {name: shared}.__getitem__)
    lm = load(name)
    assert (lm.source, lm.path) == (name, shared)


def test_the_hash_is_of_the_content_alone(shared, folder, tmp_path):
    assert load(shared).base_sha256 == load(folder).base_sha256
    other = load(tiny_llama(tmp_path / "other", seed=1))
    assert other.base_sha256 != load(shared).base_sha256


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "x.gguf"])
def test_a_path_that_is_not_there_is_named(name):
    with pytest.raises(ModelNotFoundError, match=r"nowhere|x\.gguf"):
        load(name)


def test_a_file_that_is_no_model(tmp_path):
    (tmp_path / "x.bin").write_bytes(b"abc")
    with pytest.raises(ModelNotFoundError, match="neither GGUF"):
        load(tmp_path / "x.bin")


def test_a_hub_id_without_network(monkeypatch):
    monkeypatch.setenv("MLX_COMPANION_OFFLINE", "1")
    with pytest.raises(DownloadError, match="forbids the network"):
        load("owner/never-heard-of")


def truncate(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def truncate_header(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])


def empty_weights(folder):
    (folder / "model.safetensors").write_bytes(b"")


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def missing_shard(folder):
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def no_config(folder):
    (folder / "config.json").unlink()


def bad_config(folder):
    (folder / "config.json").write_text('{"model_type": "lla')


def no_model_type(folder):
    edit_config(folder, model_type=None)


def unknown_type(folder):
    edit_config(folder, model_type="hal9000")


def missing_key(folder):
    edit_config(folder, hidden_size=None)


def wrong_shape(folder):
    edit_config(folder, intermediate_size=48)


def other_layers(folder):
    edit_config(folder, num_hidden_layers=3)


def foreign_code(folder):
    edit_config(folder, model_file="evil.py")


def no_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"has \d+ bytes, expected \d+"),
        (truncate_header, "cut short"),
        (empty_weights, "cut short"),
        (no_weights, "holds no weights"),
        (missing_shard, r"'model-00002\.safetensors'"),
        (no_config, r"no config\.json"),
        (bad_config, "not valid JSON"),
        (no_model_type, "no 'model_type'"),
        (unknown_type, "hal9000 not supported"),
        (missing_key, "config.json lacks"),
        (wrong_shape, "cannot be loaded"),
        (other_layers, "cannot be loaded"),
        (foreign_code, "trust"),
        (no_tokenizer, "tokenizer in"),
    ],
)
def test_a_damaged_folder_gives_a_clear_error(folder, damage, message):
    damage(folder)
    with pytest.raises(WeightsError, match=message):
        load(folder)


def test_an_encoder_is_no_language_model(tmp_path):
    with pytest.raises(WeightsError, match="bert"):
        load(tiny_bert(tmp_path))


@pytest.mark.real_model
def test_the_default_model_answers(real_cache):
    model, tokenizer = load()
    assert tokenizer.eos_token_ids == {0, 2}
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True
    )
    answer = generate(model, tokenizer, prompt, max_tokens=12)
    assert answer == "The capital of France is Paris."
