"""What a cache holds: the right positions, no more with longer texts, back and forth, on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from blt_writing import flat, full_logits, patched, texts
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_companion.blt.cache import Cache, make_cache
from mlx_companion.blt.cache_file import load_cache, save_cache
from mlx_companion.blt.chunks import extend
from mlx_companion.blt.config import BlockConfig
from mlx_companion.blt.prefill import prefill
from mlx_companion.blt.rolling import RollingKV, write
from mlx_companion.blt.stepping import advance
from mlx_companion.errors import ConfigError, GenerationError, ModelNotFoundError, WeightsError

CLOSE = 2e-5


pytestmark = pytest.mark.usefixtures("uncompiled")


def read(model: Any, ids: np.ndarray, rows: int = 1, margin: int = 64) -> Cache:
    """A cache with a prompt, all rows of `ids` (B, N)."""
    cache = make_cache(model, rows, margin)
    prefill(model, cache, ids)
    return cache


def follow(model: Any, cache: Cache, ids: np.ndarray) -> np.ndarray:
    """The last logits after bytes (B, N) that are added one by one."""
    for t in range(ids.shape[1]):
        logits = advance(model, cache, ids[:, t])
    return np.array(logits)


@settings(max_examples=40, deadline=None)
@given(
    window=st.sampled_from([None, 1, 2, 7, 70]),
    margin=st.integers(1, 20),
    starts=st.lists(st.integers(0, 200), min_size=1, max_size=3),
    pieces=st.lists(st.integers(1, 20), max_size=12),
    back=st.integers(0, 20),
)
def test_visible_slots_hold_the_positions_of_the_window(
    window: int | None, margin: int, starts: list[int], pieces: list[int], back: int
) -> None:
    kv = RollingKV(BlockConfig(4, 1, 1, 4, window=window), len(starts), margin)
    positions = np.array(starts)
    longest = max(1, max(starts))
    # Each position's key is its own number, counted from 1.
    numbers = mx.broadcast_to(
        mx.arange(1, longest + 1)[None, None, :, None], (len(starts), 1, longest, 4)
    )
    kv.fill([(numbers.astype(mx.float32), numbers.astype(mx.float32))], positions)
    for piece in pieces:
        count = min(piece, margin)
        kv.reserve(positions, count)
        view = kv.view(positions, count)
        new = mx.array((positions[:, None] + np.arange(1, count + 1)).astype(np.float32))
        new = mx.broadcast_to(new[:, None, :, None], (len(starts), 1, count, 4))
        kv.layers = [(write(k, new, view.slots), v) for k, v in kv.layers]
        held = np.array(kv.layers[0][0])[:, 0, :, 0]
        bias = np.array(view.bias).reshape(len(starts), count, kv.slots)
        for row, start in enumerate(positions):
            for at in range(count):
                t = start + at
                first = 0 if window is None else max(0, t - window + 1)
                expected = list(range(first + 1, t + 2))
                assert sorted(held[row][bias[row, at] == 0]) == expected
        # Some are taken back again, and their slots used by others.
        positions = positions + count - min(back, count)
    if window is not None:
        assert kv.slots <= window + margin


def test_local_memory_does_not_grow_with_the_text() -> None:
    model = patched("static", window=12)
    sizes = []
    for length in (100, 400):
        cache = read(model, texts(1, length))
        sizes.append([cache.stacks[name].slots for name in ("encoder", "decoder")])
        assert cache.patches is not None
        assert sum(block.shape[1] for block in cache.patches.states) < 4
    assert sizes == [[76, 76], [76, 76]]


def test_open_patches_are_all_that_is_kept_of_bytes() -> None:
    model, ids = patched("static"), texts(1, 120)
    cache = make_cache(model, margin=5)
    for t in range(120):
        advance(model, cache, ids[:, t])
        assert cache.patches is not None
        # Three bytes per patch, and those that can be taken back.
        assert sum(block.shape[1] for block in cache.patches.states) <= 5 + 3


@pytest.mark.parametrize("mode", ["entropy", "combined", "static", "flat"])
def test_bytes_that_are_taken_back_leave_no_trace(mode: Any) -> None:
    model: Any = flat() if mode == "flat" else patched(mode, max_length=4)
    ids, other = texts(1, 90), texts(1, 90, seed=5)
    cache = read(model, ids[:, :20], margin=16)
    follow(model, cache, ids[:, 20:45])
    for count in (16, 7, 1):
        extend(model, cache, other[:, 1 : 1 + count])
        assert cache.trimmable >= count
        cache.trim(count)
        assert cache.positions.tolist() == [45]
    expected = full_logits(model, ids[:, :45])[:, -1]
    assert np.abs(np.array(cache.logits) - expected).max() < CLOSE
    last = follow(model, cache, ids[:, 45:])
    assert np.abs(last - full_logits(model, ids)[:, -1]).max() < CLOSE


def test_taking_back_further_than_the_last_close() -> None:
    model, ids = patched("byte"), texts(2, 40)
    cache = read(model, ids[:, :10], rows=2)
    follow(model, cache, ids[:, 10:30])
    cache.trim(20)
    assert cache.patches is not None
    assert cache.patches.closed.tolist() == [10, 10]
    last = follow(model, cache, ids[:, 10:])
    assert np.abs(last - full_logits(model, ids)[:, -1]).max() < CLOSE


def test_how_much_can_be_taken_back_is_told() -> None:
    model, ids = patched("space"), texts(1, 30)
    cache = read(model, ids[:, :20], margin=6)
    with pytest.raises(GenerationError, match="1 bytes cannot be taken back, 0 can"):
        cache.trim(1)
    follow(model, cache, ids[:, 20:])
    assert cache.trimmable == 6
    with pytest.raises(GenerationError, match="7 bytes cannot be taken back, 6 can"):
        cache.trim(7)
    with pytest.raises(GenerationError, match="-1 bytes"):
        cache.trim(-1)
    cache.trim(0)
    assert cache.positions.tolist() == [30]


def test_copies_go_their_own_ways() -> None:
    model, ids, other = patched(), texts(1, 40), texts(1, 40, seed=3)
    other[:, :20] = ids[:, :20]
    cache = read(model, ids[:, :12])
    follow(model, cache, ids[:, 12:20])
    second = cache.copy()
    one = follow(model, cache, ids[:, 20:])
    two = follow(model, second, other[:, 20:])
    assert np.abs(one - full_logits(model, ids)[:, -1]).max() < CLOSE
    assert np.abs(two - full_logits(model, other)[:, -1]).max() < CLOSE
    second.trim(25)
    assert cache.positions.tolist() == [40]
    assert second.positions.tolist() == [15]


@pytest.mark.parametrize("kind", ["patched", "flat"])
def test_rows_are_taken_in_any_order(kind: str) -> None:
    model: Any = patched() if kind == "patched" else flat()
    ids = texts(4, 40)
    cache = read(model, ids[:, :25], rows=4).take(np.array([3, 1]))
    last = follow(model, cache, ids[[3, 1], 25:])
    assert np.abs(last - full_logits(model, ids)[[3, 1], -1]).max() < CLOSE
    assert cache.rows == 2


@pytest.mark.parametrize("kind", ["entropy", "static", "flat"])
def test_a_saved_cache_goes_on_where_it_was(kind: Any, tmp_path: Path) -> None:
    model: Any = flat() if kind == "flat" else patched(kind)
    ids = texts(2, 60)
    cache = read(model, ids[:, :30], rows=2)
    follow(model, cache, ids[:, 30:40])
    path = save_cache(cache, tmp_path / "deep" / "prompt.safetensors", model)
    loaded = load_cache(path, model)
    assert loaded.nbytes <= cache.nbytes
    assert loaded.latent_rows == cache.latent_rows
    assert loaded.ids.tolist() == cache.ids.tolist()
    assert loaded.trimmable == 0
    last = follow(model, loaded, ids[:, 40:])
    assert np.array_equal(last, follow(model, cache, ids[:, 40:]))
    loaded.trim(20)
    assert np.array_equal(np.array(loaded.logits), full_step(model, ids[:, :40]))


def full_step(model: Any, ids: np.ndarray) -> np.ndarray:
    """Logits behind ids (B, N), as the stepped cache has them."""
    cache = read(model, ids[:, :30], rows=len(ids))
    return follow(model, cache, ids[:, 30:])


def test_a_cache_belongs_to_its_model(tmp_path: Path) -> None:
    model = patched("space")
    path = save_cache(read(model, texts(1, 9)), tmp_path / "a.safetensors", model)
    with pytest.raises(ConfigError, match="config"):
        load_cache(path, patched("static"))
    with pytest.raises(ConfigError, match="weights"):
        load_cache(path, patched("space", seed=1))


def test_files_that_are_no_caches(tmp_path: Path) -> None:
    model = patched("space")
    cache = read(model, texts(1, 9))
    with pytest.raises(ConfigError, match="empty"):
        save_cache(make_cache(model), tmp_path / "a.safetensors", model)
    with pytest.raises(ConfigError, match=r"end in \.safetensors"):
        save_cache(cache, tmp_path / "a.bin", model)
    with pytest.raises(ModelNotFoundError, match="no file"):
        load_cache(tmp_path / "none.safetensors", model)
    path = save_cache(cache, tmp_path / "a.safetensors", model)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError):
        load_cache(path, model)
    mx.save_safetensors(str(path), {"x": mx.zeros(3)})
    with pytest.raises(WeightsError, match="no cache"):
        load_cache(path, model)
