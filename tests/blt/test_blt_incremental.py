"""Byte by byte equals the whole forward, whichever way bytes reach the cache."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from blt_writing import closes, flat, full_logits, patched, texts

from mlx_companion.blt import rolling
from mlx_companion.blt.cache import Cache, make_cache
from mlx_companion.blt.chunks import extend
from mlx_companion.blt.config import BlockConfig, HashConfig
from mlx_companion.blt.hash_table import MappedHashEmbedding
from mlx_companion.blt.model import BltModel
from mlx_companion.blt.prefill import prefill
from mlx_companion.blt.stepping import advance
from mlx_companion.errors import ConfigError, GenerationError

CLOSE = 2e-5
MODES = ["entropy", "monotonic", "combined", "space", "static", "byte"]


@pytest.fixture(autouse=True)
def uncompiled(request: pytest.FixtureRequest) -> Iterator[None]:
    """Without `mx.compile`, which on Linux runs a C++ compiler for each new expression."""
    if request.node.name.startswith("test_compiled"):
        yield
        return
    mx.disable_compile()
    yield
    mx.enable_compile()


def stepped(model: Any, cache: Cache, ids: np.ndarray) -> np.ndarray:
    """Logits (B, N, V) of bytes that are added one by one."""
    return np.stack([np.array(advance(model, cache, ids[:, t])) for t in range(ids.shape[1])], 1)


def from_prompts(model: Any, ids: np.ndarray, lengths: list[int], count: int) -> float:
    """Largest error of logits after prompts of unequal lengths and `count` bytes more."""
    full = full_logits(model, ids)
    cache = make_cache(model, len(ids))
    # What stands behind a prompt must not matter.
    padded = np.where(
        np.arange(max(lengths)) < np.array(lengths)[:, None], ids[:, : max(lengths)], 7
    )
    rows, at = np.arange(len(ids)), np.array(lengths) - 1
    errors = [np.abs(np.array(prefill(model, cache, padded, lengths)) - full[rows, at]).max()]
    for _ in range(count):
        at = at + 1
        logits = advance(model, cache, ids[rows, at])
        errors.append(np.abs(np.array(logits) - full[rows, at]).max())
    return max(errors)


@pytest.mark.parametrize("max_length", [None, 4])
@pytest.mark.parametrize("mode", MODES)
def test_unequal_prompts_and_steps_equal_the_whole_forward(mode: Any, max_length: Any) -> None:
    model = patched(mode, max_length=max_length)
    assert from_prompts(model, texts(3, 60), [1, 33, 18], 26) < CLOSE


@pytest.mark.parametrize(
    "options",
    [
        {"k": 4, "latent": 64},
        {"k": 4, "latent": 24},
        {"k": 2, "latent": 24, "window": None},
        {"window": 1},
        {"cross_all_decoder": False},
        {"hash": HashConfig(group_sizes=())},
        {"latent": 32, "max_length": 3},
    ],
    ids=str,
)
def test_shapes_of_models(options: dict[str, Any]) -> None:
    assert from_prompts(patched(**options), texts(2, 50), [21, 4], 24) < CLOSE


def test_grouped_heads_and_a_window_over_patches() -> None:
    local = BlockConfig(16, 1, 4, 24, window=9, kv_heads=2)
    latent = BlockConfig(32, 2, 4, 40, window=5, kv_heads=1)
    config = replace(patched("static").config, encoder=local, decoder=local)
    model = BltModel(replace(config, latent=latent))
    assert from_prompts(model, texts(2, 150), [40, 2], 105) < CLOSE


@pytest.mark.parametrize("mode", MODES)
def test_stepping_from_nothing(mode: Any) -> None:
    model, ids = patched(mode), texts(2, 40)
    cache = make_cache(model, 2)
    assert np.abs(stepped(model, cache, ids) - full_logits(model, ids)).max() < CLOSE
    assert cache.latent_rows == closes(model, ids).sum()
    assert cache.patches is not None
    assert cache.patches.closed.tolist() == closes(model, ids).sum(axis=1).tolist()


def test_two_thousand_bytes() -> None:
    model, ids = patched(window=40), texts(1, 2000)
    full = full_logits(model, ids)
    cache = make_cache(model)
    prefill(model, cache, ids[:, :700])
    logits = extend(model, cache, ids[:, 700:1900])
    assert np.abs(np.array(logits) - full[:, 700:1900]).max() < 5 * CLOSE
    assert np.abs(stepped(model, cache, ids[:, 1900:]) - full[:, 1900:]).max() < 5 * CLOSE


@pytest.mark.parametrize("mode", ["entropy", "combined", "space"])
def test_several_bytes_at_once(mode: Any) -> None:
    model, ids = patched(mode, max_length=5), texts(1, 90)
    full = full_logits(model, ids)
    cache = make_cache(model, margin=16)
    prefill(model, cache, ids[:, :7])
    logits = extend(model, cache, ids[:, 7:])
    assert np.abs(np.array(logits) - full[:, 7:]).max() < CLOSE
    assert cache.latent_rows == closes(model, ids)[:, 7:].sum()
    assert cache.positions.tolist() == [90]


def test_extending_several_rows_goes_byte_by_byte() -> None:
    model, ids = patched(), texts(2, 20)
    cache = make_cache(model, 2)
    logits = extend(model, cache, ids)
    assert np.abs(np.array(logits) - full_logits(model, ids)).max() < CLOSE


def test_a_prefix_gives_the_same_logits() -> None:
    model, ids = patched(), texts(1, 64)
    full = full_logits(model, ids)
    for length in (1, 2, 3, 17, 40):
        cache = make_cache(model)
        logits = prefill(model, cache, ids[:, :length])
        assert np.abs(np.array(logits) - full[:, length - 1]).max() < CLOSE


def test_a_row_of_a_batch_equals_the_row_alone() -> None:
    model, ids = patched(), texts(9, 30)
    cache = make_cache(model, 9)
    together = stepped(model, cache, ids)
    for row in (0, 4, 8):
        alone = stepped(model, make_cache(model), ids[row : row + 1])
        assert np.abs(together[row] - alone[0]).max() < CLOSE


def test_many_rows_that_close_at_different_times() -> None:
    # More closing rows than are computed as they are: filled up, some repeated.
    model, ids = patched(), texts(20, 24)
    cache = make_cache(model, 20)
    assert np.abs(stepped(model, cache, ids) - full_logits(model, ids)).max() < CLOSE
    assert cache.latent_rows == closes(model, ids).sum()


@pytest.mark.parametrize("window", [None, 7])
def test_flat_models(window: int | None) -> None:
    model = flat(window)
    assert from_prompts(model, texts(3, 60), [20, 1, 9], 35) < CLOSE
    ids = texts(1, 80)
    cache = make_cache(model)
    prefill(model, cache, ids[:, :5])
    logits = np.array(extend(model, cache, ids[:, 5:]))
    assert np.abs(logits - full_logits(model, ids)[:, 5:]).max() < CLOSE


@pytest.mark.parametrize("kind", ["patched", "flat"])
def test_no_window_grows_past_its_first_slots(kind: str) -> None:
    model: Any = patched("static", window=None) if kind == "patched" else flat(None)
    ids = texts(2, 150)
    cache = make_cache(model, 2)
    assert np.abs(stepped(model, cache, ids) - full_logits(model, ids)).max() < CLOSE


@pytest.mark.parametrize("threshold", [-1.0, 99.0])
def test_thresholds_that_always_or_never_fire(threshold: float) -> None:
    model = patched()
    rule = replace(model.config.patching, threshold=threshold)
    model.config = replace(model.config, patching=rule)
    ids = texts(1, 100)
    cache = make_cache(model)
    assert np.abs(stepped(model, cache, ids) - full_logits(model, ids)).max() < CLOSE
    assert cache.latent_rows == (100 if threshold < 0 else 1)


def test_no_two_bytes_alike_nul_and_specials() -> None:
    ids = np.array([[1, 4, 4, 2, 0, 3, 259, 4, 1, 4]], dtype=np.int32)
    model = patched("space")
    cache = make_cache(model)
    assert np.abs(stepped(model, cache, ids) - full_logits(model, ids)).max() < CLOSE


def test_rotations_of_the_fast_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rolling, "wanted", lambda: False)
    assert from_prompts(patched(), texts(2, 40), [20, 3], 18) < CLOSE
    ids = texts(1, 30)
    cache = make_cache(model := patched())
    prefill(model, cache, ids[:, :5])
    assert (
        np.abs(np.array(extend(model, cache, ids[:, 5:])) - full_logits(model, ids)[:, 5:]).max()
        < CLOSE
    )


def test_packed_weights_and_a_table_on_the_disk(tmp_path: Path) -> None:
    model = patched("space", hash=HashConfig(vocabulary=64))
    file = tmp_path / "table.safetensors"
    mx.save_safetensors(str(file), {"table": model.model.encoder_hash_tok_embedding.weight})
    ids = texts(1, 30)
    before = full_logits(model, ids)
    assert np.abs(stepped(model, make_cache(model), ids) - before).max() < CLOSE
    model.model.encoder_hash_tok_embedding = MappedHashEmbedding(file, "table")
    assert np.abs(stepped(model, make_cache(model), ids) - before).max() < CLOSE
    decoder = model.model.local_decoder
    decoder.patch_embedding_projection = decoder.patch_embedding_projection.to_quantized(32, 8)
    packed = full_logits(model, ids)
    assert np.abs(packed - before).max() > CLOSE
    assert np.abs(stepped(model, make_cache(model), ids) - packed).max() < CLOSE


def test_compiled_and_trained_between_two_bytes() -> None:
    model, ids = patched(), texts(2, 40)
    cache = make_cache(model, 2)
    assert np.abs(stepped(model, cache, ids) - full_logits(model, ids)).max() < CLOSE
    cache = make_cache(model)
    prefill(model, cache, ids[:1, :9])
    assert (
        np.abs(
            np.array(extend(model, cache, ids[:1, 9:])) - full_logits(model, ids[:1])[:, 9:]
        ).max()
        < CLOSE
    )
    # Compiled functions read the weights of the moment.
    layer = model.model.global_transformer.layers[0].mlp.up_proj
    layer.weight = layer.weight * 3
    again = full_logits(model, ids)
    assert np.abs(stepped(model, make_cache(model, 2), ids) - again).max() < CLOSE


def test_ids_that_are_not_computed_yet() -> None:
    model, ids = patched(), texts(1, 12)
    cache = make_cache(model)
    full = full_logits(model, ids)
    for t in range(12):
        logits = advance(model, cache, mx.array(ids[:, t]) + mx.array(0))
        assert cache.ids.tolist() == [ids[0, t]]
    assert np.abs(np.array(logits) - full[:, -1]).max() < CLOSE


def test_a_copy_of_a_model_goes_its_own_way() -> None:
    model, ids = patched("space"), texts(1, 12)
    before = stepped(model, make_cache(model), ids)
    other = copy.deepcopy(model)
    other.lm_head.weight = -other.lm_head.weight
    assert np.abs(stepped(other, make_cache(other), ids) + before).max() < CLOSE
    assert np.array_equal(stepped(model, make_cache(model), ids), before)


@pytest.mark.parametrize(
    ("given", "lengths", "message"),
    [
        (np.ones((3, 4)), None, r"shape \(3, 4\)"),
        (np.ones(4), None, r"shape \(4,\)"),
        (np.ones((2, 4)), [0, 4], "from 1 to 4"),
        (np.ones((2, 4)), [5, 4], "from 1 to 4"),
        (np.ones((2, 4)), [4], "expected 2"),
        (np.full((2, 4), 260), None, "outside the vocabulary of 260"),
    ],
)
def test_prompts_that_do_not_fit(given: Any, lengths: Any, message: str) -> None:
    model = patched("space")
    with pytest.raises(GenerationError, match=message):
        prefill(model, make_cache(model, 2), given, lengths)


def test_ids_that_do_not_fit() -> None:
    model = patched("space")
    cache = make_cache(model, 2)
    for ids in (np.ones(3), np.ones((2, 1)), np.array([1, 260]), np.array([-1, 4])):
        with pytest.raises(GenerationError, match=r"ids have shape|outside the vocabulary"):
            advance(model, cache, ids)
    with pytest.raises(GenerationError, match="at least one"):
        extend(model, cache, np.ones((2, 0)))
    prefill(model, cache, texts(2, 3))
    with pytest.raises(GenerationError, match="holds a text already"):
        prefill(model, cache, texts(2, 3))


def test_models_that_cannot_go_byte_by_byte() -> None:
    model = patched("space")
    topk = replace(model.config, patching=replace(model.config.patching, mode="topk"))
    model.config = topk
    with pytest.raises(ConfigError, match="topk"):
        make_cache(model)
    model.config = replace(topk, entropy=None, patching=replace(topk.patching, mode="entropy"))
    with pytest.raises(ConfigError, match="needs an entropy model"):
        make_cache(model)
    for rows, margin in ((0, 1), (1, 0)):
        with pytest.raises(ConfigError, match="1 or more"):
            make_cache(model, rows, margin)
