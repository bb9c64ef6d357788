"""Adapters of mlx-lm, both ways: the other program's model gives the same logits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from lora_models import TOKENS, adapted, llama, state
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters

from mlx_companion.errors import AdapterError
from mlx_companion.lora import (
    LoraConfig,
    adapter_parameters,
    attach,
    attached_config,
    export_mlx_lm,
    export_peft,
    import_mlx_lm,
    import_peft,
    load_adapter,
    load_parameters,
    save_adapter,
    set_multiplier,
)

LINEAR = ("q_proj", "mlp.*")
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def trained_by_mlx_lm(folder: Path, dora: bool, keys: list[str] | None, **options: Any) -> Any:
    """mlx-lm's model with an adapter that is not zero, and the folder that it would write."""
    model = llama(**options)
    settings: dict[str, Any] = {"rank": 3, "scale": 2.5, "dropout": 0.1}
    if keys:
        settings["keys"] = keys
    linear_to_lora_layers(model, 2, settings, use_dora=dora)
    weights = {}
    for name, value in tree_flatten(model.parameters()):
        leaf = name.rpartition(".")[2]
        if leaf in ("lora_a", "lora_b", "m"):
            noise = mx.random.normal(value.shape, key=mx.random.key(len(name)))
            weights[name] = value * (1 + 0.05 * noise) if leaf == "m" else 0.2 * noise
    model.load_weights(list(weights.items()), strict=False)
    folder.mkdir()
    mx.save_safetensors(str(folder / "adapters.safetensors"), weights)
    head = {"fine_tune_type": "dora" if dora else "lora", "num_layers": 2}
    head |= {"lora_parameters": settings, "model": "some/model", "iters": 100}
    (folder / "adapter_config.json").write_text(json.dumps(head))
    return model.eval()


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("keys", [None, ["self_attn.q_proj", "self_attn.v_proj"], ["lm_head"]])
def test_what_mlx_lm_trained_gives_its_logits(
    tmp_path: Path, dora: bool, bits: int | None, keys: list[str] | None
) -> None:
    theirs = trained_by_mlx_lm(tmp_path / "a", dora, keys, bits=bits)
    ours = llama(bits=bits)
    config = import_mlx_lm(tmp_path / "a", ours)
    ours.eval()
    np.testing.assert_allclose(np.array(ours(TOKENS)), np.array(theirs(TOKENS)), **CLOSE)
    assert not np.allclose(np.array(ours(TOKENS)), np.array(llama(bits=bits)(TOKENS)), **CLOSE)
    assert (config.rank, config.alpha, config.dora, config.dropout) == (3, 7.5, dora, 0.1)
    assert config == attached_config(ours)
    save_adapter(tmp_path / "b", ours, config, "ab" * 32)
    again = llama(bits=bits)
    load_adapter(tmp_path / "b", again)
    assert mx.array_equal(again.eval()(TOKENS), ours(TOKENS))


@pytest.mark.parametrize("tied", [False, True])
def test_embeddings_of_mlx_lm(tmp_path: Path, tied: bool) -> None:
    theirs = trained_by_mlx_lm(tmp_path / "a", False, ["model.embed_tokens"], tied=tied)
    ours = llama(tied=tied)
    assert import_mlx_lm(tmp_path / "a", ours).targets == ("embed_tokens",)
    np.testing.assert_allclose(np.array(ours.eval()(TOKENS)), np.array(theirs(TOKENS)), **CLOSE)


@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize(
    ("options", "multiplier"),
    [
        ({"targets": LINEAR}, 0.7),
        ({"targets": LINEAR, "dora": True}, 1.0),
        ({"targets": LINEAR, "dora": True, "init": "pissa", "layers": 1}, 1.0),
        ({"targets": ("q_proj", "lm_head"), "init": "pissa", "scaling": "rslora"}, 0.5),
        ({"targets": ("q_proj", "embed_tokens")}, 1.0),
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_mlx_lm_reads_what_is_exported(
    tmp_path: Path, bits: int | None, options: dict[str, Any], multiplier: float, tied: bool
) -> None:
    model = adapted(llama(bits=bits, tied=tied, bias=True), LoraConfig(rank=4, **options))
    for layer in (m for _, m in model.named_modules() if getattr(m, "dora", False)):
        layer.lora_m = 1 + mx.abs(layer.lora_m)
    set_multiplier(model, multiplier)
    export_mlx_lm(model, tmp_path / "out")
    theirs = llama(bits=bits, tied=tied, bias=True)
    load_adapters(theirs, str(tmp_path / "out"))
    np.testing.assert_allclose(
        np.array(theirs.eval()(TOKENS)), np.array(model(TOKENS)), rtol=1e-3, atol=1e-3
    )


def test_what_mlx_lm_has_no_form_for(tmp_path: Path) -> None:
    def refused(words: str, tied_model: bool = False, **options: Any) -> None:
        model = adapted(llama(tied=tied_model), LoraConfig(rank=4, **options))
        with pytest.raises(AdapterError, match=words):
            export_mlx_lm(model, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    refused("one rank and one scale", rank_pattern={"q_proj": 2})
    refused("embed_tokens is an embedding with DoRA", targets=("embed_tokens",), dora=True)
    refused("both uses of model.embed_tokens", True, targets=("embed_tokens",), tied="input")


def edit(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def tensor(name: str, *shape: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = str(folder / "adapters.safetensors")
        mx.save_safetensors(path, dict(mx.load(path)) | {name: mx.zeros(shape)})

    return change


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (edit(fine_tune_type="full"), "of the kind 'full'"),
        (edit(lora_parameters={"rank": 3}), "damaged: 'scale'"),
        (edit(lora_parameters={"rank": 0, "scale": 1}), "damaged: rank must be"),
        (
            tensor("model.layers.0.mlp.up_proj.weight", 2, 2),
            r"up_proj\.weight \(2, 2\), which is no",
        ),
        (tensor("model.layers.0.mlp.experts.lora_a", 4, 2, 2), "which is no plain adapter"),
        (tensor("model.layers.0.mlp.up_proj.lora_a", 32, 3), "up_proj is incomplete"),
        (tensor("model.layers.0.self_attn.q_proj.lora_a", 8, 3), "q_proj.lora_a has shape"),
        (lambda f: (f / "adapters.safetensors").write_bytes(b"x"), "no readable safetensors"),
        (lambda f: shutil.rmtree(f), "no adapter folder"),
    ],
)
def test_what_cannot_be_read_is_named_and_the_model_left_alone(
    tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    trained_by_mlx_lm(tmp_path / "a", False, ["self_attn.q_proj"])
    damage(tmp_path / "a")
    model = llama()
    before = state(model)
    with pytest.raises(AdapterError, match=words):
        import_mlx_lm(tmp_path / "a", model)
    assert state(model) == before


def test_a_dora_embedding_of_mlx_lm_is_refused(tmp_path: Path) -> None:
    trained_by_mlx_lm(tmp_path / "a", True, ["model.embed_tokens"])
    with pytest.raises(AdapterError, match="a magnitude per token"):
        import_mlx_lm(tmp_path / "a", llama())


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    trained_by_mlx_lm(tmp_path / "a", False, ["self_attn.q_proj"])
    other: Any = nn.Module()
    other.up = nn.Linear(4, 4)
    with pytest.raises(AdapterError, match=r"self_attn\.q_proj, which the model has not"):
        import_mlx_lm(tmp_path / "a", other)


@pytest.mark.parametrize("bits", [4, 8])
def test_an_adapter_of_a_float_model_goes_onto_a_quantized_one(tmp_path: Path, bits: int) -> None:
    export_peft(adapted(llama(width=128)), tmp_path / "out")
    model, expected = llama(bits=bits, width=64), llama(bits=bits, width=64)
    import_peft(tmp_path / "out", model)
    attach(expected, LoraConfig(rank=4, alpha=8.0))
    adapted_float = adapted(llama(width=128))
    load_parameters(expected, adapter_parameters(adapted_float))
    np.testing.assert_array_equal(np.array(model(TOKENS)), np.array(expected(TOKENS)))
