"""The report of a quantization: numbers, JSON, picture, and the command line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from xml.etree import ElementTree as ET

import mlx.core as mx
import numpy as np
import pytest
from typer.testing import CliRunner

from mlx_companion.cli import app
from mlx_companion.models import load
from mlx_companion.models.load import LanguageModel
from mlx_companion.models.scoring import perplexity
from mlx_companion.models.tiny import tiny_model
from mlx_companion.quant import quantize
from mlx_companion.quant.quantize_layers import (
    count_bits,
    dense_layer,
    packable,
    place,
    twin,
    watched,
)
from mlx_companion.quant.quantize_measure import Reference
from mlx_companion.quant.quantize_sensitivity import layer_losses
from mlx_companion.quant.quantize_subjects import subject_of

TEXTS = ["The kettle is warm and the garden is quiet. " * 8, "How do I mend a tyre? " * 12,
         "Rain fell all night long on the roof. " * 10]  # fmt: skip


@pytest.fixture
def lm(tmp_path: Path) -> LanguageModel:
    return load(tiny_model(tmp_path / "tiny"))


def test_the_numbers_are_those_of_the_definitions(lm: LanguageModel) -> None:
    """Against NumPy, on full logits, in float64."""
    text = TEXTS[1][:128]
    tokens = lm.tokenizer.encode(text)
    assert len(tokens) == 128
    found = quantize(lm, "q3", method="rtn", calibration=TEXTS, evaluation=[text], window=64,
                     evaluation_tokens=128)  # fmt: skip
    old, new = (
        np.concatenate([_log_probabilities(m, tokens[i : i + 64])[:-1] for i in (0, 64)])
        for m in (lm.model, found.plain().model)
    )
    targets = np.array(tokens[1:64] + tokens[65:128])
    report = found.report
    assert report.positions == 126
    assert report.kl == pytest.approx((np.exp(old) * (old - new)).sum(axis=1).mean(), rel=1e-3)
    assert report.agreement == pytest.approx((old.argmax(1) == new.argmax(1)).mean())
    nll = -new[np.arange(126), targets].mean()
    assert report.perplexity == pytest.approx(math.exp(nll), rel=1e-4)
    first = lm.tokenizer.decode(tokens[:64])
    assert quantize(lm, "f16", calibration=TEXTS, evaluation=[first], window=64).report.perplexity \
        == pytest.approx(perplexity(lm, first, window=64), rel=1e-3)  # fmt: skip


def _log_probabilities(model: object, tokens: list[int]) -> np.ndarray:
    logits = np.array(model(mx.array([tokens])))[0].astype(np.float64)  # type: ignore[operator]
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def test_the_losses_of_single_layers_are_those_of_whole_runs(lm: LanguageModel) -> None:
    """Starting at a layer's block changes nothing."""
    subject = subject_of(lm)
    rows = subject.windows(TEXTS, 64)[:2]
    path = "model.layers.1.mlp.up_proj"
    weight = np.array(packable(subject.model)[path].weight) * 1.5
    found = layer_losses(subject, rows, [(path, weight)])
    model = twin(subject.model)
    place(model, path, dense_layer(packable(model)[path], weight))
    assert found[path] == pytest.approx(
        Reference(subject, rows).compare(model).divergence, rel=1e-3
    )
    assert found[path] > 0


def test_inputs_are_seen_as_they_are(lm: LanguageModel) -> None:
    layer, tokens = lm.model.model.layers[0], mx.arange(5, 25)[None]
    with watched(lm.model) as seen:
        mx.eval(lm.model(tokens))
        seen.settle()
    x = np.array(layer.input_layernorm(lm.model.model.embed_tokens(tokens)))[0]
    for name in ("q_proj", "k_proj", "v_proj"):
        found = seen.moment(f"model.layers.0.self_attn.{name}")
        assert found is not None
        assert np.allclose(found, x.T @ x / 20, atol=1e-5)
    assert len({seen.key_of[f"model.layers.0.self_attn.{n}_proj"] for n in "qkv"}) == 1
    assert type(layer.self_attn.q_proj).__name__ == "Linear"


def test_bits_are_those_of_the_file(lm: LanguageModel, tmp_path: Path) -> None:
    found = quantize(lm, "4.2bpw", calibration=TEXTS, window=64, distil_tokens=0)
    folder = found.save(tmp_path / "out")
    stored = mx.load(str(folder / "model.safetensors"))
    total = sum(8 * value.nbytes for value in stored.values())  # type: ignore[union-attr]
    assert count_bits(found.model)[0] == total == 8 * found.report.bytes
    assert found.report.bits_per_weight == total / sum(
        value.size for value in dict(_parameters(lm)).values()
    )


def _parameters(lm: LanguageModel) -> list[tuple[str, mx.array]]:
    from mlx.utils import tree_flatten

    return list(tree_flatten(lm.model.parameters()))


def test_the_files_of_a_report(lm: LanguageModel, tmp_path: Path) -> None:
    report = quantize(lm, "3.5bpw", calibration=TEXTS, window=64, distil_tokens=0).report
    numbers, picture = report.write(tmp_path / "report")
    read = json.loads(numbers.read_text())
    assert read == json.loads(json.dumps(report.to_dict()))
    assert read["kl"] == report.divergence
    assert read["worst"][0] == report.worst[0].path
    assert len(read["layers"]) == len(packable(lm.model))
    root = ET.fromstring(picture.read_text())
    titles = [own.text for own in root.iter("{http://www.w3.org/2000/svg}title")]
    assert len(titles) == 1 + 2 * len(report.layers)
    assert report.worst[0].loss == max(own.loss for own in report.layers)  # type: ignore[type-var]
    assert "bits per weight: 3.4" in report.text()


def test_the_command_line(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "tiny")
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(TEXTS), encoding="utf-8")
    arguments = ["quantize", str(folder), "--level", "4.5bpw", "--calibration", str(text),
                 "--out", str(tmp_path / "out")]  # fmt: skip
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["bits_per_weight"] <= 4.5
    assert (tmp_path / "out" / "quant_report.svg").is_file()
    assert load(tmp_path / "out").config["model_type"] == "llama"
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0
    assert "bits per weight" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--level", "q7"], 2, "q7"),
        (["--calibration", "missing.txt"], 1, "missing.txt"),
        (["--blt", "--encoder"], 2, "not both"),
        (["--method", "magic"], 2, "magic"),
    ],
)
def test_a_wrong_command_line_writes_nothing(
    arguments: list[str], code: int, told: str, tmp_path: Path
) -> None:
    folder = tiny_model(tmp_path / "tiny")
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["quantize", str(folder), "--out", str(out), *arguments])
    assert done.exit_code == code, done.output
    assert told in done.output
    assert not out.exists()
