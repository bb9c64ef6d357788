"""PEFT's adapters: what it saved gives its logits here, and what is exported is what it saved.

The stored answers are PyTorch's (make_peft_fixtures.py); with the extra `reference` installed they
are made again.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from lora_models import state
from peft_world import CASES, FOLDER, TOKENS, base_value, mlx_llama
from safetensors.numpy import load_file, save_file

from mlx_companion.errors import AdapterError
from mlx_companion.lora import (
    LoraConfig,
    attach,
    attached_config,
    export_peft,
    import_peft,
    load_adapter,
    save_adapter,
    set_multiplier,
)

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
with_torch = pytest.mark.skipif(
    not (importlib.util.find_spec("torch") and importlib.util.find_spec("peft")),
    reason="torch and peft are not installed",
)


def logits(model: nn.Module) -> np.ndarray:
    return np.array(model(mx.array(TOKENS)))


def imported(case: str) -> Any:
    model = mlx_llama(CASES[case][0])
    import_peft(FOLDER / case, model)
    return model.eval()


def stored_logits(case: str) -> np.ndarray:
    with np.load(FOLDER / "logits.npz") as stored:
        return stored[case]


@pytest.mark.parametrize("case", CASES)
def test_what_peft_saved_gives_its_logits(case: str) -> None:
    model = mlx_llama(CASES[case][0])
    base = logits(model)
    import_peft(FOLDER / case, model)
    expected = stored_logits(case)
    assert abs(expected - base).max() > 0.02
    np.testing.assert_allclose(logits(model), expected, **CLOSE)


@pytest.mark.parametrize("case", CASES)
def test_what_is_exported_is_what_peft_saved(case: str, tmp_path: Path) -> None:
    assert export_peft(imported(case), tmp_path / "out", base_model="a/b") == tmp_path / "out"
    theirs, ours = load_file(FOLDER / case / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS)
    assert sorted(ours) == sorted(theirs)
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)
    head = json.loads((tmp_path / "out" / CONFIG).read_text())
    their_head = json.loads((FOLDER / case / CONFIG).read_text())
    different = {"target_modules", "base_model_name_or_path"}
    assert {k: v for k, v in head.items() if k not in different} == {
        k: their_head[k] for k in head if k not in different
    }
    assert {k for k, v in their_head.items() if v is True} <= set(head)
    again = mlx_llama(CASES[case][0])
    import_peft(tmp_path / "out", again)
    np.testing.assert_array_equal(logits(again), logits(imported(case)))


@pytest.mark.parametrize("case", CASES)
def test_an_imported_adapter_is_one_of_ours(case: str, tmp_path: Path) -> None:
    model = imported(case)
    config = attached_config(model)
    assert config is not None
    save_adapter(tmp_path / "a", model, config, "ab" * 32)
    other = mlx_llama(CASES[case][0])
    assert load_adapter(tmp_path / "a", other) == config
    assert state(other) == state(model)
    tied = {"tied_input": "input", "tied_output": "output"}
    assert config.tied == tied.get(case, "both")
    assert (config.dora, config.scaling == "rslora") == ("dora" in case, case == "rslora")


def test_configs_stay_short() -> None:
    assert attached_config(imported("lora")) == LoraConfig(
        rank=4, alpha=6, targets=("down_proj", "o_proj", "q_proj", "up_proj", "v_proj")
    )
    config = attached_config(imported("rslora"))
    assert config is not None
    assert config.targets == ("down_proj", "q_proj")
    assert config.rank_pattern == CASES["rslora"][1]["rank_pattern"]
    assert config.alpha_pattern == CASES["rslora"][1]["alpha_pattern"]


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("scaling", ["standard", "rslora"])
def test_pissa_is_exported_for_the_base_as_it_was(tmp_path: Path, dora: bool, scaling: Any) -> None:
    model = mlx_llama(False)
    config = LoraConfig(
        rank=2, alpha=3, init="pissa", dora=dora, scaling=scaling, rank_pattern={"q_proj": 3}
    )
    attach(model, config)
    for layer in (model.layers[0].mlp.up_proj, model.layers[1].self_attn.q_proj):
        layer.lora_a = layer.lora_a * 1.3
        layer.lora_b = layer.lora_b - 0.1
    if not dora:
        set_multiplier(model, 0.5)
    expected = logits(model)
    export_peft(model, tmp_path / "out")
    head = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert (head["r"], head["rank_pattern"]) == (4, {"q_proj": 6})
    assert head["init_lora_weights"] is True
    other = mlx_llama(False)
    import_peft(tmp_path / "out", other)
    np.testing.assert_allclose(logits(other), expected, **CLOSE)


def test_a_multiplier_goes_into_alpha_where_it_can(tmp_path: Path) -> None:
    model = imported("rslora")
    set_multiplier(model, 0.25)
    export_peft(model, tmp_path / "out")
    head = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert head["lora_alpha"] == 1.5
    assert head["alpha_pattern"] == {r"layers\.0\.self_attn\.q_proj": 2.25}
    other = mlx_llama(False)
    import_peft(tmp_path / "out", other)
    np.testing.assert_allclose(logits(other), logits(model), rtol=1e-5, atol=1e-6)
    model.layers[0].mlp.down_proj.multiplier = 3.0
    export_peft(model, tmp_path / "out")
    import_peft(tmp_path / "out", other)
    np.testing.assert_allclose(logits(other), logits(model), rtol=1e-5, atol=1e-6)
    for off in (0, -1):
        set_multiplier(model, off)
        with pytest.raises(AdapterError, match=r"down_proj is not over 0.*set_multiplier"):
            export_peft(model, tmp_path / "off")
    weighted = imported("dora")
    set_multiplier(weighted, 0.5)
    with pytest.raises(AdapterError, match=r"multiplier is 0\.5.*DoRA"):
        export_peft(weighted, tmp_path / "out")


def test_dora_of_a_tied_head_has_no_form_in_peft(tmp_path: Path) -> None:
    model = mlx_llama(True)
    attach(model, LoraConfig(rank=2, targets=("embed_tokens",), dora=True))
    with pytest.raises(AdapterError, match="PEFT has no DoRA for a head that is tied"):
        export_peft(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "vocab_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "rms_norm_eps": 1e-5,
    "layer_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "max_position_embeddings": 64,
    "partial_rotary_factor": 0.5,
    "n_ctx": 64,
    "n_embd": 16,
    "n_head": 4,
    "n_layer": 2,
    "n_positions": 64,
    "layer_norm_epsilon": 1e-5,
}


def mlx_model(architecture: str) -> nn.Module:
    module = importlib.import_module(
        f"mlx_lm.models.{'llama' if architecture == 'mistral' else architecture}"
    )
    args = module.ModelArgs.from_dict(TINY | {"model_type": architecture})
    return module.Model(args)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "phi", "phi3", "gpt2"])
def test_names_of_transformers_are_found_in_every_architecture(
    architecture: str, tmp_path: Path
) -> None:
    """Every linear layer of transformers' model, by its name there, lands on one of ours."""
    from mlx_companion.lora.exchange import locate
    from mlx_companion.lora.targets import base_layers, tied_embedding

    names = json.loads((FOLDER / "module_names.json").read_text())[architecture]
    model = mlx_model(architecture)
    layers = base_layers(model)
    tied = tied_embedding(model)
    found = [locate(name, layers) for name in names if not (tied and name == "lm_head")]
    assert sorted(found) == sorted(layers)
    attention = [n for n in names if n.endswith(("o_proj", "dense", "attn.c_proj"))]
    tensors = {}
    for name in attention:
        path = f"base_model.model.{name}"
        tensors[f"{path}.lora_A.weight"] = base_value(name, (2, 16))
        tensors[f"{path}.lora_B.weight"] = base_value(name, (16, 2))
    save_file(tensors, tmp_path / WEIGHTS)
    head = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "fan_in_fan_out": architecture == "gpt2"}
    (tmp_path / CONFIG).write_text(json.dumps(head))
    import_peft(tmp_path, model)
    layer = dict(model.named_modules())[locate(attention[1], layers)]
    np.testing.assert_array_equal(np.array(layer.lora_a), base_value(attention[1], (2, 16)).T)


def edit(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        head = json.loads((folder / CONFIG).read_text()) | changes
        (folder / CONFIG).write_text(json.dumps(head))

    return change


def tensors(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        values = load_file(folder / WEIGHTS) | {
            f"base_model.model.{k.replace('__', '.')}": v for k, v in changes.items()
        }
        save_file({k: v for k, v in values.items() if v is not None}, folder / WEIGHTS)

    return change


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


Q = "model__layers__0__self_attn__q_proj__"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (edit(peft_type="IA3"), "kind 'IA3'; only PEFT's LORA"),
        (edit(modules_to_save=["lm_head"]), "whole trained modules.*modules_to_save"),
        (edit(bias="lora_only"), "trained biases"),
        (edit(lora_bias=True), "its B has biases"),
        (edit(init_lora_weights="pissa_niter_4"), "pissa_niter_4.*path_initial_model_for_weight"),
        (edit(trainable_token_indices=[1]), "trained rows of the embedding"),
        (edit(r=5), "has rank 4, but adapter_config.json says 5"),
        (edit(r="four"), "adapter_config.json is damaged"),
        (edit(rank_pattern={"(": 2}), "damaged.*regular expression"),
        (edit(use_dora=True), "incomplete: there is no magnitude"),
        (lambda f: (f / CONFIG).unlink(), "adapter_config.json is missing"),
        (lambda f: (f / CONFIG).write_text("["), "cannot be read"),
        (lambda f: (f / WEIGHTS).unlink(), "adapter_model.safetensors is missing$"),
        (pickled, "missing; save it again with safe_serialization"),
        (lambda f: (f / WEIGHTS).write_bytes(b"abc"), "not a readable safetensors"),
        (tensors(**{f"{Q}lora_B__weight": None}), "q_proj is incomplete: there is no b"),
        (tensors(**{f"{Q}lora_B__weight": np.zeros((16, 3), np.float32)}), "do not fit each other"),
        (
            tensors(**{f"{Q}lora_B__weight": np.zeros((9, 4), np.float32)}),
            "q_proj.lora_b has shape",
        ),
        (
            tensors(classifier__weight=np.zeros((2, 2), np.float32)),
            "holds base_model.model.classif",
        ),
        (
            tensors(model__embed_tokens__base_layer__weight=np.zeros((40, 16), np.float32)),
            "a vocabulary of 40, the model's is 32",
        ),
        (
            tensors(model__layers__7__self_attn__q_proj__lora_A__weight=np.zeros((4, 16), "f")),
            r"layers\.7\.self_attn\.q_proj is not in this model",
        ),
    ],
)
def test_what_cannot_be_read_is_named_and_the_model_left_alone(
    tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    shutil.copytree(FOLDER / "lora", tmp_path / "a")
    damage(tmp_path / "a")
    model = mlx_llama(False)
    before = state(model)
    with pytest.raises(AdapterError, match=words):
        import_peft(tmp_path / "a", model)
    assert state(model) == before


def test_two_adapters_of_one_tied_matrix_are_refused(tmp_path: Path) -> None:
    shutil.copytree(FOLDER / "tied", tmp_path / "a")
    tensors(lm_head__lora_B__weight=np.ones((32, 2), np.float32))(tmp_path / "a")
    with pytest.raises(AdapterError, match=r"the output head differently.*ensure_weight_tying"):
        import_peft(tmp_path / "a", mlx_llama(True))
    model = mlx_llama(True)
    with pytest.raises(AdapterError, match="magnitude per token for a tied head"):
        import_peft(FOLDER / "dora_embeddings", model)


def test_a_copy_of_the_embedding_in_the_file_is_passed_over(tmp_path: Path) -> None:
    shutil.copytree(FOLDER / "embeddings", tmp_path / "a")
    copy = base_value("model.embed_tokens.weight", (32, 16))
    tensors(model__embed_tokens__base_layer__weight=copy)(tmp_path / "a")
    model = mlx_llama(False)
    import_peft(tmp_path / "a", model)
    np.testing.assert_allclose(logits(model), stored_logits("embeddings"), **CLOSE)


@with_torch
@pytest.mark.parametrize("case", CASES)
def test_peft_reads_what_is_exported(case: str, tmp_path: Path) -> None:
    from peft_world import peft_adapter, peft_logits

    fresh = peft_adapter(case, tmp_path / "theirs")
    np.testing.assert_allclose(fresh, stored_logits(case), **CLOSE)
    model = mlx_llama(CASES[case][0])
    import_peft(tmp_path / "theirs", model)
    export_peft(model, tmp_path / "ours")
    found = peft_logits(case, tmp_path / "ours")
    np.testing.assert_allclose(found, logits(model), **CLOSE)
    np.testing.assert_allclose(found, fresh, **CLOSE)


@with_torch
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"rank": 3, "alpha": 5, "targets": ("q_proj", "embed_tokens", "lm_head")},
        {"rank": 2, "init": "pissa", "scaling": "rslora", "rank_pattern": {"q_proj": 4}},
        {"rank": 2, "dora": True, "init": "pissa"},
        {"rank": 2, "layers": 1, "targets": ("mlp.*",)},
    ],
)
def test_peft_reads_adapters_that_were_trained_here(
    tied: bool, options: dict[str, Any], tmp_path: Path
) -> None:
    from peft_world import peft_logits

    model = mlx_llama(tied)
    attach(model, LoraConfig(**options))
    for path, layer in model.named_modules():
        if "lora_a" in layer:
            key = mx.random.key(len(path))
            layer.lora_a = layer.lora_a + 0.2 * mx.random.normal(layer.lora_a.shape, key=key)
            layer.lora_b = layer.lora_b + 0.2 * mx.random.normal(layer.lora_b.shape, key=key)
    export_peft(model, tmp_path / "out")
    found = peft_logits("tied" if tied else "lora", tmp_path / "out")
    np.testing.assert_allclose(found, logits(model), **CLOSE)
