"""The byte latent transformer against transformers', on stored answers and, with PyTorch, live."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from blt_fixtures import CASES, GRADIENT_CASE, STEP, Case, read, torch_answers, torch_model
from mlx.utils import tree_flatten

from mlx_companion.blt.load import load
from mlx_companion.blt.model import BltModel
from mlx_companion.blt.patching import Patching
from mlx_companion.blt.save import export_hf

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="the extra 'reference' is not installed"
)


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """A stored case and our model of it."""
    case = read(request.param)
    return case, load(case.write_hf(tmp_path_factory.mktemp("hf")))


def logits(model: BltModel, ids: np.ndarray, patching: Patching | None = None) -> np.ndarray:
    return np.array(model(mx.array(ids), patching))


def test_patches_are_those_of_transformers(pair: tuple[Case, BltModel]) -> None:
    case, model = pair
    patching = model.patching(mx.array(case.ids))
    np.testing.assert_array_equal(np.array(patching.opens), case.opens)
    np.testing.assert_array_equal(np.array(patching.closes), case.closes)


def test_entropies_are_those_of_transformers(pair: tuple[Case, BltModel]) -> None:
    case, model = pair
    entropies = np.array(model.entropies(mx.array(case.ids)))
    np.testing.assert_allclose(entropies, case.entropies, atol=5e-5)


def test_logits_are_those_of_transformers(pair: tuple[Case, BltModel]) -> None:
    case, model = pair
    found = logits(model, case.ids).astype(np.float64)
    np.testing.assert_allclose(found[..., ::STEP], case.logits, atol=1e-5)
    np.testing.assert_allclose(np.log(np.exp(found).sum(-1)), case.normalizer, atol=1e-5)


def test_patches_from_outside_give_the_same_logits(pair: tuple[Case, BltModel]) -> None:
    case, model = pair
    patching = Patching(mx.array(case.opens), mx.array(case.closes))
    found = logits(model, case.ids, patching)
    np.testing.assert_allclose(found[..., ::STEP], case.logits, atol=1e-5)


@pytest.mark.parametrize("name", ["k2_window", "k4_projected"])
def test_the_stored_cases_can_tell_a_difference(name: str, tmp_path: Path) -> None:
    """Each setting that a case is about changes its logits by more than the tolerance."""
    case = read(name)
    wrong: list[dict] = [
        {"local_attention_window_len": 7},
        {"patching_threshold": case.config["patching_threshold"] + 0.3},
        {"encoder_hash_byte_group_size": case.config["encoder_hash_byte_group_size"][::-1]},
    ]
    for i, change in enumerate(wrong):
        case.config = read(name).config | change
        model = load(case.write_hf(tmp_path / str(i)))
        difference = np.abs(logits(model, case.ids)[..., ::STEP] - case.logits).max()
        assert difference > 1e-2, change


def test_gradients_are_those_of_torch(tmp_path: Path) -> None:
    case = read(GRADIENT_CASE)
    model = load(case.write_hf(tmp_path))
    ids = mx.array(case.ids)

    def loss(model: BltModel) -> mx.array:
        return nn.losses.cross_entropy(model(ids)[:, :-1], ids[:, 1:], reduction="mean")

    value, gradients = nn.value_and_grad(model, loss)(model)
    found = dict(tree_flatten(gradients))
    assert value.item() == pytest.approx(case.loss, abs=1e-5)
    assert found.keys() == case.gradients.keys()
    for name, expected in case.gradients.items():
        scale = max(np.abs(expected).max(), 1e-3)
        np.testing.assert_allclose(
            np.array(found[name]) / scale, expected / scale, atol=1e-4, err_msg=name
        )


@needs_torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_stored_answers_are_those_of_the_installed_transformers(name: str) -> None:
    pytest.importorskip("transformers.models.blt")
    case = read(name)
    answers = torch_answers(torch_model(case.config, name), case.ids)
    np.testing.assert_array_equal(answers["patch_lengths"], case.patch_lengths)
    for key in ("entropies", "logits", "normalizer"):
        np.testing.assert_allclose(answers[key], getattr(case, key), atol=1e-5, err_msg=key)


@needs_torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_transformers_loads_what_is_exported(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers.models.blt")
    import torch
    from transformers import BltForCausalLM

    case = read(name)
    model = load(case.write_hf(tmp_path / "in"))
    theirs, info = BltForCausalLM.from_pretrained(
        export_hf(model, tmp_path / "out"), output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        expected = theirs.eval()(torch.from_numpy(case.ids).long(), use_cache=False).logits
    np.testing.assert_allclose(logits(model, case.ids), expected.numpy(), atol=1e-5)
