"""Where mlx-lm's quantizers fail or lose, shown on mlx-lm itself, and what is done here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.llama import Model, ModelArgs
from mlx_lm.quant.awq import awq_quantize, llama_awq
from mlx_lm.quant.dwq import dwq_quantize
from mlx_lm.quant.dynamic_quant import estimate_sensitivities
from mlx_lm.quant.gptq import gptq_quantize
from mlx_lm.utils import quantize_model

from mlx_companion.errors import ConfigError
from mlx_companion.models import load
from mlx_companion.models.load import LanguageModel
from mlx_companion.models.tiny import tiny_model
from mlx_companion.quant import quantize
from mlx_companion.quant.quantize_layers import bits_per_weight, packable, packing_of

TEXTS = ["The kettle is warm and the garden is quiet. " * 8, "How do I mend a tyre? " * 12,
         "Rain fell all night long on the roof. " * 10]  # fmt: skip


@pytest.fixture
def lm(tmp_path: Path) -> LanguageModel:
    return load(tiny_model(tmp_path / "tiny"))


def narrow(width: int = 96, tied: bool = True) -> Model:
    """A llama whose width 64 does not divide, as 576 is not divided by 128."""
    mx.random.seed(0)
    return Model(
        ModelArgs.from_dict(
            {
                "model_type": "llama",
                "hidden_size": width,
                "num_hidden_layers": 1,
                "intermediate_size": 128,
                "num_attention_heads": width // 32,
                "num_key_value_heads": 1,
                "rms_norm_eps": 1e-5,
                "vocab_size": 259,
                "tie_word_embeddings": tied,
            }
        )
    )


def with_model(lm: LanguageModel, model: nn.Module) -> LanguageModel:
    return LanguageModel(model, lm.tokenizer, lm.source, lm.path, lm.base_sha256, {
        "model_type": "llama"})  # fmt: skip


def windows() -> mx.array:
    return mx.array(np.random.default_rng(0).integers(0, 259, (4, 32)))


def test_gptq_of_mlx_lm_stops_at_3_bits_and_here_it_does_not(lm: LanguageModel) -> None:
    with pytest.raises(AssertionError, match="Unsupported bits 3"):
        gptq_quantize(load(lm.path).model, windows(), 3, 64, 3, 64)
    found = quantize(lm, "q3", method="gptq", calibration=TEXTS, window=64)
    rounded = quantize(lm, "q3", method="rtn", calibration=TEXTS, window=64)
    assert found.report.bits_per_weight == pytest.approx(rounded.report.bits_per_weight)
    assert found.report.divergence < rounded.report.divergence


def test_mlx_lm_leaves_odd_widths_unpacked_and_here_they_are_packed(lm: LanguageModel) -> None:
    """Its widths are tested against one group size, whatever a layer's own is."""
    theirs, _ = quantize_model(
        narrow(), {}, 64, 4, quant_predicate=lambda path, _: {"bits": 4, "group_size": 32}
    )
    left = [path for path, layer in packable(theirs).items() if packing_of(layer) is None]
    assert "model.layers.0.self_attn.q_proj" in left
    for method in ("rtn", "auto"):
        ours = quantize(with_model(lm, narrow()), "q4", method=method, calibration=TEXTS, window=64)
        assert all(packing_of(layer) for layer in packable(ours.model).values())
        assert ours.report.bits_per_weight < bits_per_weight(theirs)


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_methods_with_one_group_size_say_so(lm: LanguageModel, method: Any) -> None:
    """mlx-lm's end in an error of shapes, somewhere inside."""
    with pytest.raises(ValueError):  # noqa: PT011 - MLX's message is about a reshape
        if method == "gptq":
            gptq_quantize(narrow(), windows(), 4, 64, 4, 64)
        else:
            awq_quantize(narrow(), windows(), llama_awq, group_size=64, bits=4)
    model = with_model(lm, narrow())
    with pytest.raises(ConfigError, match="group_size=32"):
        quantize(model, "q4", method=method, calibration=TEXTS, window=64)
    quantize(model, "q4", method=method, calibration=TEXTS, window=64, group_size=32)


def test_mlx_lm_only_rounds_a_tied_embedding(lm: LanguageModel) -> None:
    """With feedback its logits are closer, at the same size."""
    model = narrow(128)
    model.model.embed_tokens.weight = 0.1 * mx.random.normal((259, 128), key=mx.random.key(1))
    given = with_model(lm, model)
    wide = {"calibration": TEXTS, "window": 64, "distil_tokens": 0}
    theirs = quantize(given, "q3", method="gptq", **wide)
    ours = quantize(given, "q3", method="auto", **wide)
    assert ours.report.bits_per_weight == pytest.approx(theirs.report.bits_per_weight)
    assert ours.report.divergence < theirs.report.divergence


def test_dwq_of_mlx_lm_trains_what_is_not_packed_and_here_nothing_else_moves(
    lm: LanguageModel,
) -> None:
    theirs, _ = quantize_model(load(lm.path).model, {}, 32, 3)
    before = np.array(theirs.model.norm.weight)
    rows: list[Any] = [(row, 0) for row in windows().tolist()]
    dwq_quantize(
        theirs,
        lambda batch, number, split: lm.model(batch),
        optimizers.Adam(learning_rate=1e-3, bias_correction=True),
        rows,
        rows[:2],
        batch_size=2,
        max_seq_length=33,
        seed=0,
    )
    assert np.abs(np.array(theirs.model.norm.weight.astype(mx.float32)) - before).max() > 1e-4
    assert theirs.model.layers[0].mlp.up_proj.scales.dtype == mx.bfloat16
    ours = quantize(lm, "q3", method="dwq", calibration=TEXTS, window=64, distil_rate=2e-3)
    kept = dict(tree_flatten(lm.model.parameters()))
    for name, value in tree_flatten(ours.model.parameters()):
        if "norm" in name:
            assert np.abs(np.array(value) - np.array(kept[name])).max() < 1e-3
    assert ours.report.recipe == "fit+dwq"
    assert ours.report.tried["fit+dwq"] < ours.report.tried["fit"]


def test_dwq_of_mlx_lm_trains_no_8_bits_and_here_it_does(lm: LanguageModel) -> None:
    """Its error is "Must specify at least one argument"; norms frozen, as after LoRA."""
    theirs, _ = quantize_model(load(lm.path).model, {}, 64, 8)
    theirs.freeze()
    rows: list[Any] = [(row, 0) for row in windows().tolist()]
    adam = optimizers.Adam(learning_rate=1e-3)
    with pytest.raises(ValueError, match="at least one argument"):
        dwq_quantize(theirs, lambda x, *_, **__: lm.model(x), adam, rows, rows[:2], 2, 33, 0)
    found = quantize(lm, "q8", method="dwq", calibration=TEXTS, window=64).report
    assert "fit+dwq" in found.tried


def test_sensitivities_of_mlx_lm_can_be_used(lm: LanguageModel) -> None:
    """They are a forecast; what is measured ranks the same layers first."""
    found = {}
    for way in ("measured", "gradient"):
        report = quantize(
            lm, "3.5bpw", sensitivity=way, calibration=TEXTS, window=64, distil_tokens=0
        ).report
        found[way] = report.divergence
        assert report.bits_per_weight <= 3.5
    assert found["measured"] < 1.5 * found["gradient"] < 6 * found["measured"]


def test_sensitivities_of_mlx_lm_need_widths_that_groups_divide(lm: LanguageModel) -> None:
    with pytest.raises(ValueError, match="needs to be divisible by"):
        estimate_sensitivities(narrow(), windows(), 3, 64, 8, 64)
    given = with_model(lm, narrow())
    quantize(given, "4bpw", sensitivity="gradient", calibration=TEXTS, window=64, distil_tokens=0)


def test_the_best_recipe_beats_each_of_mlx_lms(lm: LanguageModel) -> None:
    found = {
        method: quantize(
            lm, "q3", method=method, calibration=TEXTS * 2, window=64, distil_rate=2e-3
        ).report.divergence
        for method in ("rtn", "awq", "gptq", "auto")
    }
    assert found["auto"] < 0.9 * min(found["rtn"], found["awq"], found["gptq"])
