"""The byte latent transformer against transformers', on stored answers and, with PyTorch, live."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from blt_fixtures import CASES, GRADIENT_CASE, STEP, Case, read, torch_answers, torch_model
from mlx.utils import tree_flatten

from mlx_companion.blt.config import BlockConfig, BltConfig, HashConfig, PatchConfig
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
    case = read(name)
    check_export(load(case.write_hf(tmp_path / "in")), case.ids, tmp_path / "out")


STACK = BlockConfig(32, 2, 2, 48, window=5)
TINY = BltConfig(
    encoder=STACK,
    latent=BlockConfig(48, 2, 4, 20),
    decoder=STACK,
    entropy=BlockConfig(24, 1, 2, 20, window=4),
    hash=HashConfig((3, 4), 1, 31),
    patching=PatchConfig(threshold=5.3),
)


@needs_torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "changes",
    [
        {"entropy": None, "patching": PatchConfig("byte")},
        {"hash": HashConfig((3,), 0, 7)},
        {"hash": HashConfig((), 1, 7)},
        {"patching": PatchConfig("byte", max_length=3)},
        {"patching": PatchConfig(threshold=float("inf"))},
        {"patching": PatchConfig(threshold=-1.0)},
        {
            "encoder": replace(STACK, rope_theta=77.0, norm_eps=1e-2),
            "latent": BlockConfig(48, 1, 4, 20, rope_theta=5.0, norm_eps=0.1),
            "entropy": BlockConfig(24, 1, 2, 20, window=3, rope_theta=33.0, norm_eps=0.05),
        },
    ],
    ids=["alone", "no functions", "no groups", "limit", "never", "always", "rope and norms"],
)
def test_transformers_loads_unusual_exports(changes: dict[str, Any], tmp_path: Path) -> None:
    mx.random.seed(7)
    ids = np.random.default_rng(0).integers(4, 260, (2, 40)).astype(np.int32)
    ids[:, 0] = 1
    check_export(BltModel(replace(TINY, **changes)), ids, tmp_path)


def check_export(model: BltModel, ids: np.ndarray, folder: Path) -> None:
    """transformers finds every tensor in an export, no other, and computes the same logits."""
    pytest.importorskip("transformers.models.blt")
    import torch
    from transformers import BltForCausalLM

    theirs, info = BltForCausalLM.from_pretrained(
        export_hf(model, folder), output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        expected = theirs.eval()(torch.from_numpy(ids).long(), use_cache=False).logits
    np.testing.assert_allclose(logits(model, ids), expected.numpy(), atol=1e-5)
