"""Patches of a text are those that the model itself would use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_companion.blt.byte_lm import ByteLM
from mlx_companion.blt.config import BlockConfig, BltConfig, ByteLMConfig, HashConfig, PatchConfig
from mlx_companion.blt.model import BltModel
from mlx_companion.blt.text_patches import patches
from mlx_companion.errors import ConfigError, DataError
from mlx_companion.text.byte_text import encode_bytes

BLOCK = BlockConfig(16, 1, 2, 24, window=8)
CONFIG = BltConfig(
    BLOCK,
    BlockConfig(32, 1, 2, 32),
    BLOCK,
    replace(BLOCK, rope_theta=1e4),
    hash=HashConfig((3,), 1, 101),
    patching=PatchConfig(threshold=5.2, max_length=6),
    context=40,
)
TEXT = "Gestern im Café: zwölf".encode()


@pytest.fixture(scope="module")
def model() -> BltModel:
    mx.random.seed(0)
    return BltModel(CONFIG)


def test_boundaries_and_entropies_are_the_model_s(model: BltModel) -> None:
    found = patches(model, TEXT)
    ids = mx.array(encode_bytes(TEXT)[None])
    opens = np.asarray(model.patching(ids).opens)[0]
    assert found.starts.tolist() == np.flatnonzero(opens[1:]).tolist()
    assert found.entropies == pytest.approx(np.asarray(model.entropies(ids))[0, :-1], rel=1e-5)
    assert found.next_starts == bool(model.patching(ids).closes[0, -1])
    assert b"".join(found.pieces) == TEXT
    assert [len(piece) for piece in found.pieces] == found.lengths.tolist()
    assert found.owners.tolist() == (np.cumsum(opens[1:]) - 1).tolist()
    assert found.mean_patch_bytes == len(TEXT) / len(found.pieces)


def test_plain_values_for_json(model: BltModel) -> None:
    found = patches(model, b"a\xc3", rule=PatchConfig(mode="byte"))
    assert found.to_dict() == {
        "bytes": 2,
        "patches": ["a", "\ufffd"],
        "mean_patch_bytes": 1.0,
        "boundaries": [0, 1],
        "lengths": [1, 1],
        "entropies": None,
        "next_starts": True,
        "mode": "byte",
        "threshold": None,
    }
    told = patches(model, TEXT).to_dict()
    assert told["threshold"] == 5.2
    assert len(told["entropies"]) == told["bytes"] == len(TEXT)


def test_a_long_text_goes_in_windows(model: BltModel) -> None:
    text = TEXT * 10
    found = patches(model, text)
    assert found.entropies is not None
    whole = np.asarray(model.entropies(mx.array(encode_bytes(text)[None])))[0, :-1]
    # One layer of window 8: half a context in front of a byte is all that it could ever see.
    assert found.entropies == pytest.approx(whole, rel=1e-5)


@settings(deadline=None, max_examples=30)
@given(st.binary(min_size=1, max_size=90), st.sampled_from(["space", "static", "byte", "topk"]))
def test_any_bytes(data: bytes, mode: str) -> None:
    mx.random.seed(0)
    lm = ByteLM(ByteLMConfig(BLOCK, context=40))
    found = patches(lm, data, rule=PatchConfig(mode=mode))  # type: ignore[arg-type]
    assert b"".join(found.pieces) == data
    assert found.starts[0] == 0
    assert (found.lengths > 0).all()


def test_texts_from_files(model: BltModel, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(TEXT)
    assert patches(model, tmp_path / "a.txt").data == TEXT
    (tmp_path / "b.txt").write_bytes(TEXT)
    with pytest.raises(DataError, match="there are 2 texts in"):
        patches(model, tmp_path)


def test_bad_input(model: BltModel) -> None:
    with pytest.raises(DataError, match="the text is empty"):
        patches(model, "")
    without = BltModel(replace(CONFIG, entropy=None))
    with pytest.raises(ConfigError, match="needs an entropy model"):
        patches(without, "a")
