"""`quantize` on every kind of model: packed, saved, read back, trained; nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten
from tiny import tiny_bert

import mlx_companion as mc
from mlx_companion import blt
from mlx_companion.blt.config import BlockConfig, ByteLMConfig
from mlx_companion.errors import ConfigError, DataError, ModelError, Stopped
from mlx_companion.lora import attach, load_adapter, save_adapter
from mlx_companion.models import load
from mlx_companion.models.load import LanguageModel
from mlx_companion.models.tiny import tiny_model
from mlx_companion.quant import Quantized, quantize
from mlx_companion.quant.levels import LEVELS
from mlx_companion.quant.quantize_layers import packable, packing_of, plain_twin

TEXTS = ["The kettle is warm and the garden is quiet. " * 8, "How do I mend a tyre? " * 12,
         "Rain fell all night long on the roof. " * 10]  # fmt: skip
SHORT = {"calibration": TEXTS, "window": 64}
TOKENS = mx.arange(3, 40)[None]


@pytest.fixture
def lm(tmp_path: Path) -> LanguageModel:
    return load(tiny_model(tmp_path / "tiny"))


def logits(model: nn.Module) -> np.ndarray:
    return np.array(model(TOKENS).astype(mx.float32))


def arrays(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in tree_flatten(model.parameters())}


@pytest.mark.parametrize("level", [*LEVELS, "3.5bpw", "6bpw"])
def test_what_is_saved_is_read_by_mlx_lm_and_by_load(
    level: str, lm: LanguageModel, tmp_path: Path
) -> None:
    before = arrays(lm.model)
    found = quantize(lm, level, distil_tokens=128, **SHORT)
    folder = found.save(tmp_path / "out")
    theirs, tokenizer = mlx_lm.load(str(folder))
    ours = load(folder)
    assert np.allclose(logits(ours.model), logits(found.plain().model), atol=2e-2)
    assert np.allclose(logits(theirs), logits(found.model), atol=5e-2)
    assert tokenizer.encode("warm") == lm.tokenizer.encode("warm")
    assert ours.base_sha256 == found.lm.base_sha256 != lm.base_sha256
    assert all((arrays(lm.model)[name] == value).all() for name, value in before.items())
    stored = (folder / "model.safetensors").stat().st_size
    assert found.report.bytes <= stored < found.report.bytes + 10_000


def test_mlx_lm_generates_with_it(lm: LanguageModel, tmp_path: Path) -> None:
    model, tokenizer = mlx_lm.load(str(quantize(lm, "4bpw", **SHORT).save(tmp_path / "out")))
    assert isinstance(mlx_lm.generate(model, tokenizer, "hello", max_tokens=4), str)


def test_it_unpacks_like_a_language_model(lm: LanguageModel) -> None:
    model, tokenizer = mc.quantize(lm, "q4", method="rtn")
    assert isinstance(model.layers[0].mlp.up_proj, nn.QuantizedLinear)
    assert tokenizer is lm.tokenizer


def test_a_budget_is_kept_and_spent(lm: LanguageModel) -> None:
    for bpw in (3.1, 4.5, 7.0):
        found = quantize(lm, f"{bpw}bpw", distil_tokens=0, **SHORT).report
        assert bpw - 0.2 < found.bits_per_weight <= bpw
    with pytest.raises(ConfigError, match="too small"):
        quantize(lm, "2.1bpw", **SHORT)


def test_more_bits_cost_less(lm: LanguageModel) -> None:
    found = [quantize(lm, level, distil_tokens=0, **SHORT).report for level in ("q2", "q4", "q8")]
    assert found[0].divergence > 4 * found[1].divergence > 16 * found[2].divergence
    assert found[0].agreement < found[2].agreement


def test_the_same_seed_gives_the_same_weights(lm: LanguageModel) -> None:
    first, second = (quantize(lm, "3.5bpw", seed=3, **SHORT) for _ in range(2))
    other = arrays(second.model)
    assert all((value == other[name]).all() for name, value in arrays(first.model).items())
    assert first.report.divergence == second.report.divergence


def test_a_packed_model_can_be_packed_again(tmp_path: Path) -> None:
    lm = load(tiny_model(tmp_path / "packed", bits=4), dequantize=False)
    assert isinstance(lm.model.layers[0].mlp.up_proj, nn.QuantizedLinear)
    found = quantize(lm, "q4", group_size=32, distil_tokens=0, **SHORT)
    assert found.report.divergence < 1e-5, "only its scales were rounded to 16 bits"
    assert all(own.error < 1e-6 for own in found.report.layers)
    spent = quantize(lm, "5.2bpw", distil_tokens=0, **SHORT).report
    assert {own.packing for own in spent.layers} == {"4 bits / 32"}


@pytest.mark.parametrize("level", ["q4", "5bpw", "nvfp4"])
def test_an_adapter_stays_and_works(level: str, lm: LanguageModel, tmp_path: Path) -> None:
    config = mc.LoraConfig(rank=4)
    attach(lm.model, config)
    for number, (_, layer) in enumerate(lm.model.named_modules()):
        if "lora_b" in layer:
            layer.lora_b = mx.random.normal(layer.lora_b.shape, key=mx.random.key(number)) * 0.05
    found = quantize(lm, level, distil_tokens=128, **SHORT)
    assert type(found.model.layers[0].self_attn.q_proj).__name__ == "LoRALinear"
    assert np.abs(logits(found.model) - logits(lm.model)).mean() < 0.1
    folder = found.save(tmp_path / "base")
    save_adapter(tmp_path / "adapter", found.model, config, base_sha256=found.lm.base_sha256)
    again = load(folder)
    load_adapter(tmp_path / "adapter", again.model, again.base_sha256)
    assert np.allclose(logits(again.model), logits(found.model), atol=2e-2)
    kept = arrays(found.model)
    for name, value in arrays(lm.model).items():
        assert "lora_" not in name or (kept[name] == value).all()


def test_a_packed_model_trains_with_lora(lm: LanguageModel, tmp_path: Path) -> None:
    folder = quantize(lm, "q4", method="rtn").save(tmp_path / "base")
    packed = load(folder, dequantize=False)
    attach(packed.model, mc.LoraConfig(rank=4))
    trainable = dict(tree_flatten(packed.model.trainable_parameters()))
    assert trainable
    assert all("lora_" in name for name in trainable)

    def loss(model: nn.Module) -> mx.array:
        return nn.losses.cross_entropy(model(TOKENS[:, :-1]), TOKENS[:, 1:]).mean()

    step = nn.value_and_grad(packed.model, loss)
    first, gradients = step(packed.model)
    for _ in range(8):
        _, gradients = step(packed.model)
        packed.model.update(
            {"model": _moved(packed.model["model"], gradients["model"])}  # type: ignore[index]
        )
    assert float(step(packed.model)[0]) < float(first)


def _moved(part: Any, gradient: Any) -> Any:
    from mlx.utils import tree_map

    return tree_map(lambda g, w: w - 0.5 * g, gradient, _like(part, gradient))


def _like(part: Any, tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _like(part[key], value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_like(part[i], value) for i, value in enumerate(tree)]
    return part


def test_a_byte_model_and_its_hash_table(tmp_path: Path) -> None:
    model = blt.load()
    found = quantize(model, "q6", calibration_tokens=512, evaluation_tokens=256,
                     distil_tokens=0, **SHORT)  # fmt: skip
    packed = {path: packing_of(layer) for path, layer in packable(found.model).items()}
    assert packed["model.encoder_hash_tok_embedding"] is not None
    assert found.report.divergence < 0.01
    again = blt.load(found.save(tmp_path / "bytes"))
    ids = mx.arange(4, 60)[None]
    assert np.allclose(np.array(again(ids)), np.array(plain_twin(found.model)(ids)), atol=1e-3)


def test_a_flat_byte_model_learns_its_scales(tmp_path: Path) -> None:
    mx.random.seed(0)
    model = blt.ByteLM(ByteLMConfig(BlockConfig(64, 1, 2, 64)))
    found = quantize(model, "q2", distil_tokens=512, distil_rate=2e-3, **SHORT).report
    assert found.recipe == "feedback+dwq"
    with pytest.raises(ConfigError, match="language models"):
        quantize(model, "q4", method="gptq", **SHORT)


def test_an_encoder(tmp_path: Path) -> None:
    encoder = mc.load_encoder(tiny_bert(tmp_path / "bert"))
    texts = [
        f"{word} is here, and {word} is there"
        for word in ["beans", "peas", "rain", "roof", "garden"]
    ]
    found = quantize(encoder, "q6", calibration=texts)
    assert found.report.measure == "cosine"
    assert found.report.kl is None
    assert found.report.perplexity is None
    assert found.report.divergence < 0.001
    again = mc.load_encoder(found.save(tmp_path / "out"))
    assert np.allclose(again.encode(texts), found.lm.encode(texts), atol=1e-3)
    assert (encoder.encode(texts) * again.encode(texts)).sum(axis=1).min() > 0.999
    quantize(encoder, "5bpw", calibration=texts)


def test_an_encoder_whose_packing_is_damaged_is_an_error(tmp_path: Path) -> None:
    encoder = mc.load_encoder(tiny_bert(tmp_path / "bert"))
    folder = quantize(encoder, "q4", calibration=TEXTS * 2).save(tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    config["quantization"] = {"bits": 7}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(mc.errors.WeightsError, match="packed"):
        mc.load_encoder(folder)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"level": "q9"}, "expected one of"),
        ({"method": "magic"}, "expected one of auto, rtn"),
        ({"calibration": "one text"}, "list of texts"),
        ({"calibration": []}, "at least one"),
        ({"calibration": ["a"]}, "few"),
        ({"evaluation": []}, "at least one"),
        ({"level": "4.5bpw", "method": "awq"}, "budget"),
        ({"level": "f16", "method": "gptq"}, "nothing"),
        ({"level": "mxfp4", "method": "gptq"}, "no mxfp4"),
        ({"window": 1}, "positive"),
        ({"distil_tokens": -1}, "positive"),
        ({"distil_rate": 0.0}, "positive"),
        ({"group_size": 48}, "32, 64 or 128"),
    ],
)
def test_bad_input_is_one_clear_error(
    options: dict[str, Any], told: str, lm: LanguageModel
) -> None:
    with pytest.raises((ConfigError, DataError), match=told):
        quantize(lm, **(SHORT | options))


def test_something_else_is_an_error() -> None:
    with pytest.raises(ConfigError, match="a Linear cannot be quantized"):
        quantize(nn.Linear(4, 4))


def test_nothing_is_written_over_other_things(lm: LanguageModel, tmp_path: Path) -> None:
    found: Quantized = quantize(lm, "q4", method="rtn")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(ConfigError, match="something else"):
        found.save(tmp_path / "mine")
    (tmp_path / "file").write_text("keep")
    with pytest.raises(ConfigError, match="is a file"):
        found.save(tmp_path / "file")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_a_writer_that_fails_leaves_the_last_model(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = quantize(lm, "q4", method="rtn").save(tmp_path / "out")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    other = quantize(lm, "q8", method="rtn")

    def fail(path: str) -> None:
        raise RuntimeError("no tokenizer today")

    monkeypatch.setattr(other.lm.tokenizer._tokenizer, "save_pretrained", fail)
    with pytest.raises(RuntimeError, match="today"):
        other.save(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".tmp")] == []


def test_it_can_be_stopped(lm: LanguageModel) -> None:
    switch = mc.StopSwitch()
    seen: list[str] = []

    def watch(stage: str, done: int, total: int) -> None:
        seen.append(stage)
        if done == 3:
            switch.request("enough")

    with pytest.raises(Stopped):
        quantize(lm, "4bpw", progress=watch, switch=switch, **SHORT)
    assert set(seen) == {"measuring layers"}


def test_a_layer_that_the_model_wants_plain_stays_plain(lm: LanguageModel, tmp_path: Path) -> None:
    """mlx-lm's models of experts say so of their routers."""
    kind = type(lm.model)

    class Careful(kind):  # type: ignore[misc, valid-type]
        @property
        def quant_predicate(self) -> Any:
            return lambda path, _: not path.endswith("v_proj")

    lm.model.__class__ = Careful
    for level in ("q4", "4.5bpw"):
        found = quantize(lm, level, distil_tokens=0, **SHORT)
        assert type(found.model.layers[0].self_attn.v_proj) is nn.Linear
        assert type(found.model.layers[0].self_attn.q_proj) is nn.QuantizedLinear
        again = load(found.save(tmp_path / "out"), dequantize=False).model
        assert type(again.layers[0].self_attn.v_proj) is nn.Linear


def test_a_model_that_breaks_is_an_error(lm: LanguageModel) -> None:
    layer = lm.model.layers[1].mlp.down_proj
    layer.weight = layer.weight.at[0, 0].add(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        quantize(lm, "q4", method="rtn", **SHORT)


@pytest.mark.parametrize("level", ["q4", "4.5bpw", "f16"])
def test_a_bfloat16_model_stays_one(level: str, lm: LanguageModel, tmp_path: Path) -> None:
    """Its activations may be too large for float16; a CPU computes with float32 meanwhile."""
    lm.config["torch_dtype"] = "bfloat16"
    found = quantize(lm, level, distil_tokens=128, **SHORT)
    folder = found.save(tmp_path / "out")
    stored: Any = mx.load(str(folder / "model.safetensors"))
    assert {v.dtype for v in stored.values() if mx.issubdtype(v.dtype, mx.floating)} == {
        mx.bfloat16
    }
    assert np.allclose(logits(load(folder).model), logits(found.plain().model), atol=2e-2)
