"""Packed rows against each document alone, for the architecture of every alias and others."""

from __future__ import annotations

from itertools import pairwise

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from architectures import OF_ALIAS, OTHERS, VOCABULARY, build, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models import llama

import mlx_companion  # noqa: F401
from mlx_companion.errors import ConfigError, ModelError
from mlx_companion.models import fast_cpu as fast
from mlx_companion.models.heads import split_head
from mlx_companion.models.pack_layout import PackLayout
from mlx_companion.models.packed import (
    PackedCache,
    check_packable,
    packed_attention,
    run_packed,
    why_not_packed,
)
from mlx_companion.models.packed_attention import PackedAttention
from mlx_companion.models.registry import ALIASES
from mlx_companion.models.swapped import ATTENTION, Place

LENGTHS = (7, 1, 12, 7, 30, 2)


def random_tokens(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, count).astype(np.int32)


def bounds(layout: PackLayout) -> list[tuple[int, int]]:
    return list(pairwise([*layout.starts.tolist(), layout.tokens]))


def alone(model: nn.Module, tokens: np.ndarray, layout: PackLayout) -> np.ndarray:
    """Each document by itself behind the shared beginning, in the order of the row."""
    backbone, _ = split_head(model)
    shared = tokens[: layout.shared]
    found = [np.array(backbone(mx.array(shared)[None])[0])] if layout.shared else []
    for start, end in bounds(layout):
        whole = mx.array(np.concatenate([shared, tokens[start:end]]))[None]
        found.append(np.array(backbone(whole)[0, layout.shared :]))
    return np.concatenate(found)


def close(got: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> bool:
    return float(np.abs(got - expected).max()) <= tolerance * max(
        1.0, float(np.abs(expected).max())
    )


def test_every_alias_is_among_the_architectures() -> None:
    assert set(OF_ALIAS) == {name for name, spec in ALIASES.items() if spec.kind == "language"}


@pytest.mark.parametrize("shared", [0, 9])
@pytest.mark.parametrize("name", [*OF_ALIAS, *OTHERS])
def test_documents_come_out_as_alone(name: str, shared: int) -> None:
    model = tiny_model(name)
    assert why_not_packed(model) is None
    layout = PackLayout(LENGTHS, shared)
    tokens = random_tokens(layout.tokens)
    with fast.fast_cpu(model):
        found = np.array(run_packed(model, mx.array(tokens), layout))
    assert close(found, alone(model, tokens, layout))


@pytest.mark.parametrize("name", ["smollm2-135m", "windows", "gemma3_text"])
def test_with_attention_of_mlx(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "wanted", lambda: False)
    model, layout = tiny_model(name), PackLayout(LENGTHS, 5)
    tokens = random_tokens(layout.tokens)
    assert close(
        np.array(run_packed(model, mx.array(tokens), layout)), alone(model, tokens, layout)
    )


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    shared=st.sampled_from([0, 1, 17]),
)
def test_any_lengths(lengths: list[int], shared: int) -> None:
    model, layout = tiny_model("qwen2.5-0.5b"), PackLayout(tuple(lengths), shared)
    tokens = random_tokens(layout.tokens, seed=len(lengths))
    assert close(
        np.array(run_packed(model, mx.array(tokens), layout)), alone(model, tokens, layout)
    )


@pytest.mark.parametrize("name", list(OF_ALIAS))
def test_documents_do_not_see_each_other(name: str) -> None:
    model, layout = tiny_model(name), PackLayout(LENGTHS)
    tokens = random_tokens(layout.tokens)
    before = np.array(run_packed(model, mx.array(tokens), layout))
    for start, end in bounds(layout):
        changed = tokens.copy()
        changed[start:end] = (changed[start:end] + 5) % VOCABULARY
        after = np.array(run_packed(model, mx.array(changed), layout))
        differs = (before != after).any(axis=1)
        assert differs[start:end].any()
        assert not differs[:start].any()
        assert not differs[end:].any()


def test_bfloat16() -> None:
    model, layout = tiny_model("llama3-1b"), PackLayout(LENGTHS)
    model.set_dtype(mx.bfloat16)
    assert why_not_packed(model) is None
    tokens = random_tokens(layout.tokens)
    found = run_packed(model, mx.array(tokens), layout)
    assert found.dtype == mx.bfloat16
    backbone, _ = split_head(model)
    for start, end in bounds(layout):
        expected = np.array(backbone(mx.array(tokens[start:end])[None])[0].astype(mx.float32))
        assert close(np.array(found[start:end].astype(mx.float32)), expected, 0.03)


UNABLE = {
    "mamba": (
        {"state_size": 8, "conv_kernel": 4, "use_bias": False, "use_conv_bias": True}
        | {"time_step_rank": 4},
        "more than keys and values",
    ),
    "lfm2": (
        {"norm_eps": 1e-5, "conv_bias": False, "conv_L_cache": 3, "block_dim": 32}
        | {"block_ff_dim": 48, "block_multiple_of": 8, "block_ffn_dim_multiplier": 1.0}
        | {"block_auto_adjust_ff_dim": False, "rope_theta": 1e4}
        | {"layer_types": ["conv", "full_attention"], "full_attn_idxs": [1]},
        "more than keys and values",
    ),
    "gemma2": ({"head_dim": 8, "query_pre_attn_scalar": 8}, "its attention is not mlx-lm's"),
    "llama": ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "packed positions"),
}


@pytest.mark.parametrize("name", list(UNABLE))
def test_others_are_refused_by_name(name: str) -> None:
    options, why = UNABLE[name]
    model = build(name, **options)
    with pytest.raises(ModelError, match=f"'{name}' cannot run packed rows: .*{why}") as refused:
        check_packable(model)
    assert "set packing to false" in str(refused.value)
    assert model.training == build(name, **options).training


def test_what_depends_on_the_neighbour_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("tinyllama")
    call = llama.MLP.__call__

    def shifted(self: nn.Module, x: mx.array) -> mx.array:
        flat = x.reshape(-1, x.shape[-1])
        before = mx.concatenate([mx.zeros_like(flat[:1]), flat[:-1]]).reshape(x.shape)
        return call(self, x + before)

    monkeypatch.setattr(llama.MLP, "__call__", shifted)
    assert why_not_packed(model) == "its documents come out differently than alone"


def test_attention_is_put_back() -> None:
    model = tiny_model("tinyllama")
    place = Place(llama, ATTENTION)
    before = getattr(*place)
    with packed_attention(model):
        assert getattr(*place) is not before
    assert getattr(*place) is before
    with pytest.raises(ZeroDivisionError), packed_attention(model):
        raise ZeroDivisionError
    assert getattr(*place) is before


def test_a_mask_of_ones_own_is_refused() -> None:
    cache = PackedCache(PackLayout((2, 3)))
    x = mx.zeros((5, 2, 1, 4))
    with pytest.raises(ModelError, match="mask"):
        cache.attend(x, x, x, 1.0, mask=None)
    with pytest.raises(ModelError, match="mask"):
        cache.make_mask(1, return_array=True)


# --- attention and layout --------------------------------------------------------------------


def reference(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    layout: PackLayout,
    window: int | None = None,
    sinks: mx.array | None = None,
) -> mx.array:
    """One dense mask over the whole row."""
    owner = np.concatenate(
        [np.full(layout.shared, -1), np.repeat(np.arange(len(layout.lengths)), layout.lengths)]
    )
    places = layout.host_positions
    behind = places[:, None] - places[None]
    free = (behind >= 0) & ((owner[:, None] == owner) | (owner == -1)[None])
    if window is not None:
        free &= behind < window
    rows = [x[None].swapaxes(1, 2) for x in (q, k, v)]
    return mx.fast.scaled_dot_product_attention(*rows, scale=0.3, mask=mx.array(free), sinks=sinks)[
        0
    ].swapaxes(0, 1)


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("shared", [0, 6])
@pytest.mark.parametrize("lengths", [LENGTHS, (1,), (63,), (9, 9, 9), (40, 3)])
def test_attention_and_its_gradients(
    lengths: tuple[int, ...],
    shared: int,
    window: int | None,
    ours: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fast, "wanted", lambda: ours)
    layout = PackLayout(lengths, shared)
    keys = mx.random.split(mx.random.key(1), 4)
    q, k, v, cotangent = (
        mx.random.normal((layout.tokens, heads, 8), key=key)
        for heads, key in zip((6, 2, 2, 6), keys, strict=True)
    )
    attention = PackedAttention(layout)
    outputs, gradients = mx.vjp(
        lambda *x: attention(*x, scale=0.3, window=window), (q, k, v), (cotangent,)
    )
    expected, wanted = mx.vjp(lambda *x: reference(*x, layout, window), (q, k, v), (cotangent,))
    assert close(np.array(outputs[0]), np.array(expected[0]))
    for got, right in zip(gradients, wanted, strict=True):
        assert close(np.array(got), np.array(right))


def test_attention_sinks() -> None:
    layout = PackLayout(LENGTHS, 3)
    keys = mx.random.split(mx.random.key(1), 5)
    x = [mx.random.normal((layout.tokens, 4, 8), key=key) for key in keys[:4]]
    sinks = mx.random.normal((4,), key=keys[4])
    attention = PackedAttention(layout)
    outputs, gradients = mx.vjp(
        lambda q, k, v, s: attention(q, k, v, 0.3, sinks=s), (*x[:3], sinks), (x[3],)
    )
    expected, wanted = mx.vjp(
        lambda q, k, v, s: reference(q, k, v, layout, sinks=s), (*x[:3], sinks), (x[3],)
    )
    assert close(np.array(outputs[0]), np.array(expected[0]))
    for got, right in zip(gradients, wanted, strict=True):
        assert close(np.array(got), np.array(right))


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 700), min_size=1, max_size=60), shared=st.sampled_from([0, 19])
)
def test_layout(lengths: list[int], shared: int) -> None:
    layout = PackLayout(tuple(lengths), shared)
    assert layout.tokens == shared + sum(lengths)
    assert sum(group.rows for group in layout.groups) == len(lengths)
    # Every token has a slot, and what is in a slot comes from its own document.
    own = np.arange(shared, layout.tokens)
    assert np.array_equal(layout.slots[layout.places], own)
    assert layout.real.sum() == len(own)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    for group in layout.groups:
        owners = owner[layout.slots[group.start : group.end] - shared]
        assert (owners.reshape(group.rows, group.width) == owners[:: group.width, None]).all()
    expected = np.concatenate([np.arange(shared), *(shared + np.arange(n) for n in lengths)])
    assert np.array_equal(np.array(layout.positions), expected)


def test_groups_are_the_cheapest() -> None:
    assert [(g.rows, g.width) for g in PackLayout((1000, 10, 9, 990)).groups] == [
        (2, 1000),
        (2, 10),
    ]
    assert len(PackLayout((8, 9, 10)).groups) == 1
    assert len(PackLayout((900, 500)).groups) == 2


@pytest.mark.parametrize("lengths", [(), (3, 0), (-1,)])
def test_bad_layouts(lengths: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="one token or more"):
        PackLayout(lengths)
