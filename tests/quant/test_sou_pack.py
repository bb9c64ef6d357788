"""What goes into a `.sou` file comes out of it again: folders, weights, models, extras."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from gguf_files import write_gguf
from mlx.utils import tree_flatten
from small_disk import mounted_disk
from tiny import tiny_bert, tiny_llama

import mlx_companion  # noqa: F401
from mlx_companion.errors import ConfigError, DiskFullError, ModelNotFoundError, SouError
from mlx_companion.models.encoder import load_encoder
from mlx_companion.models.load import load
from mlx_companion.models.tiny import tiny_model
from mlx_companion.quant.sou import (
    Kind,
    SouFile,
    adapter_folder,
    adapter_names,
    diff,
    load_companion,
    pack,
    unpack,
    verify,
)
from mlx_companion.quant.sou_safetensors import read_safetensors
from mlx_companion.quant.sou_writer import TensorSet, text_part, write_sou

TOKENS = mx.array([[1, 5, 9, 20, 3]])


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "model")


@pytest.fixture
def extras(tmp_path: Path) -> dict:
    """One of everything that a companion has beside its model."""
    folder = tmp_path / "extras"
    (folder / "tone").mkdir(parents=True)
    mx.save_safetensors(str(folder / "tone" / "adapters.safetensors"), {"a": mx.ones((3, 4))})
    (folder / "tone" / "adapter_config.json").write_text('{"rank": 4}')
    mx.save_safetensors(str(folder / "me.safetensors"), {"embedding": mx.arange(8.0)})
    (folder / "profile.yaml").write_text("name: kind\n")
    for name in ("modules", "retrieval", "access"):
        (folder / f"{name}.json").write_text(json.dumps({"of": name}))
    (folder / "polite.yaml").write_text("say: please\n" * 100)
    return {
        "adapters": {"tone": folder / "tone"},
        "profile": folder / "profile.yaml",
        "embedding": folder / "me.safetensors",
        "modules": folder / "modules.json",
        "rules": [folder / "polite.yaml"],
        "retrieval": folder / "retrieval.json",
        "access": folder / "access.json",
        "licence": "MIT",
        "created": "2026-01-31",
    }


def test_a_folder_comes_back_byte_for_byte(model: Path, tmp_path: Path) -> None:
    (model / "README.md").write_text("A model.\n" * 200)
    pack(model, tmp_path / "a.sou")
    unpack(tmp_path / "a.sou", tmp_path / "out")
    after = contents(tmp_path / "out")
    provenance = json.loads(after.pop("companion/provenance.json"))
    assert after == contents(model)
    assert provenance["base_sha256"] == load(model).base_sha256


def test_shards_come_back_as_they_were(model: Path, tmp_path: Path) -> None:
    weights = list(mx.load(str(model / "model.safetensors")).items())
    (model / "model.safetensors").unlink()
    for number in (1, 2):
        part = dict(weights[number - 1 :: 2])
        mx.save_safetensors(str(model / f"model-{number}-of-2.safetensors"), part, {"made": "here"})
    pack(model, tmp_path / "a.sou")
    unpack(tmp_path / "a.sou", tmp_path / "out")
    assert contents(model).items() <= contents(tmp_path / "out").items()
    same = mx.array_equal(
        load(model).model(TOKENS), load_companion(tmp_path / "a.sou").model(TOKENS)
    )
    assert same.item()


def test_packing_twice_gives_the_same_bytes(model: Path, extras: dict, tmp_path: Path) -> None:
    for name in ("a.sou", "b.sou"):
        pack(model, tmp_path / name, **extras)
    assert (tmp_path / "a.sou").read_bytes() == (tmp_path / "b.sou").read_bytes()


def test_packing_what_was_unpacked_gives_the_same_bytes(
    model: Path, extras: dict, tmp_path: Path
) -> None:
    pack(model, tmp_path / "a.sou", **extras)
    verify(tmp_path / "a.sou")
    unpack(tmp_path / "a.sou", tmp_path / "out")
    pack(tmp_path / "out", tmp_path / "b.sou")
    assert diff(tmp_path / "a.sou", tmp_path / "b.sou")["same"]
    assert (tmp_path / "a.sou").read_bytes() == (tmp_path / "b.sou").read_bytes()


def test_extras_are_where_they_are_said_to_be(model: Path, extras: dict, tmp_path: Path) -> None:
    pack(model, tmp_path / "a.sou", **extras)
    with SouFile(tmp_path / "a.sou") as sou:
        assert sou.json(Kind.MODULES) == {"of": "modules"}
        assert sou.json(Kind.RETRIEVAL) == {"of": "retrieval"}
        assert sou.json(Kind.ACCESS) == {"of": "access"}
        facts = sou.json(Kind.PROVENANCE)
        assert (facts["licence"], facts["created"]) == ("MIT", "2026-01-31")
        (rules,) = sou.all(Kind.RULES)
        assert sou.read(rules) == extras["rules"][0].read_bytes()
        assert rules.size < rules.raw_size
        embedding = sou.tensor("embedding", "personality")
        assert np.array_equal(np.array(embedding), np.arange(8.0))
        assert adapter_names(sou) == ["tone"]
        with adapter_folder(sou, "tone") as folder:
            assert contents(folder) == contents(extras["adapters"]["tone"])
        with pytest.raises(SouError, match="there are: tone"), adapter_folder(sou, "voice"):
            pass


@pytest.mark.parametrize("dequantize", [True, False], ids=["plain", "packed"])
@pytest.mark.parametrize("bits", [None, 2, 3, 4, 5, 6, 8])
def test_a_loaded_model_gives_the_same_logits(
    bits: int | None, dequantize: bool, tmp_path: Path
) -> None:
    folder = tiny_model(tmp_path / "model", bits=bits)
    pack(folder, tmp_path / "a.sou")
    expected = load(folder, dequantize=dequantize)
    found = load(tmp_path / "a.sou", dequantize=dequantize)
    assert mx.array_equal(expected.model(TOKENS), found.model(TOKENS)).item()
    assert found.base_sha256 == expected.base_sha256
    assert found.config == expected.config
    text = "Write to me, 12 times.\n"
    assert found.tokenizer.encode(text) == expected.tokenizer.encode(text)
    assert found.tokenizer.eos_token_ids == expected.tokenizer.eos_token_ids


@pytest.mark.parametrize("mode", ["mxfp4", "mxfp8", "nvfp4"])
def test_other_ways_of_packing(mode: str, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model")
    lm = load(folder)
    settings = {"mxfp4": (32, 4), "mxfp8": (32, 8), "nvfp4": (16, 4)}[mode]
    nn.quantize(lm.model, *settings, mode=mode)
    _rewrite(folder, lm.model, {"group_size": settings[0], "bits": settings[1], "mode": mode})
    pack(folder, tmp_path / "a.sou")
    expected, found = load(folder), load_companion(tmp_path / "a.sou")
    assert mx.array_equal(expected.model(TOKENS), found.model(TOKENS)).item()


def test_bits_that_differ_from_layer_to_layer(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model")
    lm = load(folder)
    config: dict = {"group_size": 32, "bits": 4}

    def choose(name: str, layer: nn.Module) -> bool | dict:
        if not hasattr(layer, "to_quantized"):
            return False
        config[name] = {"group_size": 64, "bits": (3, 5, 8)[len(name) % 3]}
        return config[name]

    nn.quantize(lm.model, class_predicate=choose)
    assert len({json.dumps(one) for one in config.values()}) >= 4
    _rewrite(folder, lm.model, config)
    pack(folder, tmp_path / "a.sou")
    for dequantize in (True, False):
        expected = load(folder, dequantize=dequantize)
        found = load_companion(tmp_path / "a.sou", dequantize=dequantize)
        assert mx.array_equal(expected.model(TOKENS), found.model(TOKENS)).item()


def _rewrite(folder: Path, model: nn.Module, quantization: dict) -> None:
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization": quantization}))


def test_every_number_type_survives(tmp_path: Path) -> None:
    types = [
        mx.bool_, mx.uint8, mx.uint16, mx.uint32, mx.uint64, mx.int8, mx.int16, mx.int32,
        mx.int64, mx.float16, mx.bfloat16, mx.float32, mx.complex64,
    ]  # fmt: skip
    arrays = {str(t): (mx.arange(15) % 3).astype(t).reshape(3, 5) for t in types}
    arrays |= {"scalar": mx.array(2.5), "empty": mx.zeros((0, 3)), "one": mx.zeros((1, 1, 1, 1))}
    mx.save_safetensors(str(tmp_path / "x.safetensors"), arrays)
    pack(tmp_path / "x.safetensors", tmp_path / "x.sou")
    verify(tmp_path / "x.sou")
    with SouFile(tmp_path / "x.sou") as sou:
        for name, expected in arrays.items():
            found = sou.tensor(name, check=True)
            assert found.dtype == expected.dtype, name
            assert found.shape == expected.shape, name
            assert mx.array_equal(found, expected).item(), name
    unpack(tmp_path / "x.sou", tmp_path / "out")
    again = mx.load(str(tmp_path / "out" / "model.safetensors"))
    assert all(mx.array_equal(again[name], arrays[name]).item() for name in arrays)


def test_numbers_of_64_bits_survive(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    values = np.array([1 / 3, -np.pi, 5e-324, np.inf])
    save_file({"x": values}, tmp_path / "x.safetensors")
    pack(tmp_path / "x.safetensors", tmp_path / "x.sou")
    with SouFile(tmp_path / "x.sou") as sou:
        assert b"".join(sou.tensor_bytes("x")) == values.tobytes()
        assert sou.tensor("x").dtype == mx.float64


@pytest.mark.parametrize(
    "kinds", ["F32", "F16", "Q8_0", {"": "Q4_1", "blk.1.ffn_up.weight": "Q8_0"}]
)
def test_a_gguf_file_becomes_a_companion(kinds: dict | str, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, model, kinds)
    pack(path, tmp_path / "a.sou")
    verify(tmp_path / "a.sou")
    for dequantize in (True, False):
        expected = load(path, dequantize=dequantize, dtype=mx.float32)
        found = load_companion(tmp_path / "a.sou", dequantize=dequantize, dtype=mx.float32)
        assert mx.array_equal(expected.model(TOKENS), found.model(TOKENS)).item()
    assert found.base_sha256 == expected.base_sha256
    for text in ("How do I mend a bicycle?", " 12 café\n\n<|im_end|>", ""):
        assert found.tokenizer.encode(text) == expected.tokenizer.encode(text)
    assert found.tokenizer.eos_token_ids == expected.tokenizer.eos_token_ids
    unpack(tmp_path / "a.sou", tmp_path / "out")
    again = load(tmp_path / "out", dequantize=False, dtype=mx.float32)
    assert mx.array_equal(again.model(TOKENS), found.model(TOKENS)).item()


def test_pointers_to_code_are_not_followed(model: Path, tmp_path: Path) -> None:
    expected = load(model).model(TOKENS)
    for name in ("config.json", "tokenizer_config.json"):
        value = json.loads((model / name).read_text())
        value["auto_map"] = {"AutoConfig": "evil.Config", "AutoTokenizer": ["evil.Tok", None]}
        (model / name).write_text(json.dumps(value))
    pack(model, tmp_path / "a.sou")
    found = load_companion(tmp_path / "a.sou")
    assert mx.array_equal(found.model(TOKENS), expected).item()
    for key in ("tool_parser_type", "chat_template_type"):
        (model / "tokenizer_config.json").write_text(json.dumps({key: "..evil"}))
        pack(model, tmp_path / "a.sou")
        with pytest.raises(SouError, match="no plain name"):
            load_companion(tmp_path / "a.sou")


def test_what_does_not_belong_is_left_out(model: Path, tmp_path: Path) -> None:
    left_out = {"evil.py", "data.pkl", ".hidden", "model.bin", ".git/config.json", "sub/code.so"}
    for name in left_out:
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_bytes(b"x")
    done = pack(model, tmp_path / "a.sou")
    assert set(done.skipped) == left_out
    with SouFile(tmp_path / "a.sou") as sou:
        assert not {section.name for section in sou.sections} & set(done.skipped)


def test_a_byte_model_and_an_encoder_come_back_whole(tmp_path: Path) -> None:
    encoder = tiny_bert(tmp_path / "encoder")
    pack(encoder, tmp_path / "a.sou")
    verify(tmp_path / "a.sou")
    unpack(tmp_path / "a.sou", tmp_path / "out")
    assert contents(encoder).items() <= contents(tmp_path / "out").items()
    vectors = [load_encoder(folder).encode(["a kettle"]) for folder in (encoder, tmp_path / "out")]
    assert np.array_equal(np.array(vectors[0]), np.array(vectors[1]))

    parts = encoder / "entropy_model"
    parts.mkdir()
    mx.save_safetensors(str(parts / "model.safetensors"), {"a": mx.ones(9)})
    mx.save_safetensors(str(encoder / "hash_table.safetensors"), {"b": mx.ones(9)})
    pack(encoder, tmp_path / "b.sou")
    unpack(tmp_path / "b.sou", tmp_path / "out2")
    assert contents(encoder).items() <= contents(tmp_path / "out2").items()


def test_two_rule_packs_of_one_name_are_refused(model: Path, tmp_path: Path) -> None:
    paths = [tmp_path / folder / "rules.yaml" for folder in "ab"]
    for path in paths:
        path.parent.mkdir()
        path.write_text("be: kind")
    with pytest.raises(ConfigError, match="the same file name"):
        pack(model, tmp_path / "a.sou", rules=paths)


def test_differences_are_named(model: Path, extras: dict, tmp_path: Path) -> None:
    pack(model, tmp_path / "a.sou", licence="MIT")
    weights = mx.load(str(model / "model.safetensors"))
    weights["model.norm.weight"] = weights["model.norm.weight"] + 1
    weights["lm_head.weight"] = weights["lm_head.weight"].astype(mx.float16)
    weights["extra"] = mx.zeros(3)
    mx.save_safetensors(str(model / "model.safetensors"), weights)
    pack(model, tmp_path / "b.sou", **extras | {"licence": "Apache-2.0"})
    found = diff(tmp_path / "a.sou", tmp_path / "b.sou")
    assert not found["same"]
    assert "profile: profile.yaml" in found["added"]
    assert found["removed"] == []
    assert found["settings"]["provenance.licence"] == ["MIT", "Apache-2.0"]
    change = found["tensors"]["model"]
    assert change["added"] == ["extra"]
    assert change["changed"]["model.norm.weight"] == "values"
    assert change["changed"]["lm_head.weight"].startswith("F32 [")
    assert set(change["changed"]) == {"model.norm.weight", "lm_head.weight"}


def test_a_failed_write_leaves_the_old_file(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "a.sou"
    pack(model, target)
    before = target.read_bytes()
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(SouError, match="bytes, expected"):
        pack(model, target)
    assert target.read_bytes() == before
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_full_disk_leaves_the_old_file(model: Path, tmp_path: Path) -> None:
    with mounted_disk(tmp_path / "disk", "256k") as disk:
        small = disk / "a.sou"
        write_sou(small, [text_part(Kind.CONFIG, "config.json", b"{}")])
        before = small.read_bytes()
        (disk / "filler").write_bytes(bytes(100_000))
        with pytest.raises(DiskFullError):
            pack(model, small)
        assert small.read_bytes() == before
        assert sorted(path.name for path in disk.iterdir()) == ["a.sou", "filler"]


def test_a_source_that_shrinks_while_it_is_read(model: Path, tmp_path: Path) -> None:
    weights = model / "model.safetensors"
    _, sources = read_safetensors(weights)
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(SouError, match="shorter while it was read"):
        write_sou(tmp_path / "a.sou", [], [TensorSet("model", sources)])
    assert list(tmp_path.iterdir()) == [model]


def test_a_folder_with_something_in_it_is_not_replaced(model: Path, tmp_path: Path) -> None:
    pack(model, tmp_path / "a.sou")
    before = contents(model)
    with pytest.raises(ConfigError, match="not empty"):
        unpack(tmp_path / "a.sou", model)
    assert contents(model) == before
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="not empty"):
        unpack(tmp_path / "a.sou", tmp_path / "link")


def test_what_is_missing_is_named(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.sou"
    with pytest.raises(ModelNotFoundError):
        pack(tmp_path / "nowhere", out)
    with pytest.raises(ConfigError, match="no adapter folder"):
        pack(model, out, adapters={"tone": tmp_path / "nowhere"})
    with pytest.raises(ConfigError, match="no file"):
        pack(model, out, rules=[tmp_path / "nowhere.yaml"])
    (tmp_path / "bad.json").write_text('{"a": 1, "a": 2}')
    with pytest.raises(SouError, match="comes twice"):
        pack(model, out, access=tmp_path / "bad.json")
    with pytest.raises(ModelNotFoundError, match="check the path"):
        verify(out)
    assert not out.exists()


@pytest.mark.real_model
def test_the_default_model_gives_the_same_logits(real_cache: Path, tmp_path: Path) -> None:
    pack("smollm2-135m", tmp_path / "a.sou")
    verify(tmp_path / "a.sou")
    expected, found = load("smollm2-135m"), load_companion(tmp_path / "a.sou")
    text = "The capital of Portugal, 123 \u2014 is\n\n<|im_end|>"
    tokens = expected.tokenizer.encode(text)
    assert found.tokenizer.encode(text) == tokens
    assert found.base_sha256 == expected.base_sha256
    logits = [lm.model(mx.array([tokens])) for lm in (expected, found)]
    assert mx.array_equal(*logits).item()
