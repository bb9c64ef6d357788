"""rsLoRA, DoRA, PiSSA, embeddings, dtypes and LoRA+ against their formulas in numpy."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_models import TOKENS, llama, state
from mlx.utils import tree_flatten
from mlx_lm.tuner.dora import DoRALinear as MlxLmDoRALinear

from mlx_companion.errors import AdapterError, ConfigError
from mlx_companion.lora import (
    LoraConfig,
    LoRAEmbedding,
    LoRALinear,
    adapter_parameters,
    attach,
    detach,
    load_adapter,
    lora_plus,
    save_adapter,
    set_multiplier,
)
from mlx_companion.lora.layers import dense_weight
from mlx_companion.lora.principal import principal_factors
from mlx_companion.training.config import TrainConfig
from mlx_companion.training.optimizers import optimizer_for

ALL = ("q_proj", "down_proj", "embed_tokens", "lm_head")
BASES = ["float", 4, 8]


def normal(*shape: int, seed: int = 0, dtype: mx.Dtype = mx.float32) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed)).astype(dtype)


def f64(array: mx.array) -> np.ndarray:
    return np.array(array.astype(mx.float32), dtype=np.float64)


def linear(kind: str | int, bias: bool = True, out: int = 40, width: int = 64) -> nn.Module:
    base = nn.Linear(width, out, bias=bias)
    base.weight = normal(out, width, seed=5) * 0.1
    if bias:
        base.bias = normal(out, seed=6)
    return base if kind == "float" else nn.QuantizedLinear.from_linear(base, 32, int(kind))


def embedding(kind: str | int, rows: int = 50, width: int = 64) -> nn.Module:
    base = nn.Embedding(rows, width)
    base.weight = normal(rows, width, seed=5) * 0.1
    return base if kind == "float" else nn.QuantizedEmbedding.from_embedding(base, 32, int(kind))


def filled(layer: Any, magnitude: float = 1.1) -> Any:
    """A layer whose trained values are not what it started with."""
    layer.lora_a = layer.lora_a + 0.2 * normal(*layer.lora_a.shape, seed=1)
    layer.lora_b = layer.lora_b + 0.2 * normal(*layer.lora_b.shape, seed=2)
    if layer.dora:
        layer.lora_m = layer.lora_m * magnitude + 0.01 * normal(*layer.lora_m.shape, seed=3)
    return layer.eval()


def made(kind: type, base: nn.Module, dora: bool = False, pissa: bool = False, **more: Any) -> Any:
    options = {"rank": 4, "scale": 1.7, "dropout": 0.0, "key": mx.random.key(9)} | more
    layer = kind(base, dora=dora, **options)
    if pissa:
        weight = dense_weight(base)
        matrix = weight if kind is LoRAEmbedding else weight.T
        layer.start_from(*principal_factors(matrix, 4, 1.7, mx.random.key(1)))
    return layer


def merged(layer: Any, multiplier: float = 1.0) -> np.ndarray:
    """The adapted weight in the layout of a linear layer, (outputs, inputs), by the papers."""
    flip = isinstance(layer, LoRAEmbedding)
    weight = f64(dense_weight(layer.base))
    weight = weight.T if flip else weight
    a, b = f64(layer.lora_a), f64(layer.lora_b)
    update = (a @ b).T
    if "start_a" in layer:
        update = update - (f64(layer.start_a) @ f64(layer.start_b)).T
    new = weight + layer.scale * update
    if layer.dora:
        norm = np.linalg.norm(new, axis=1, keepdims=True)
        new = f64(layer.lora_m)[:, None] * new / norm
    return weight + multiplier * (new - weight)


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("pissa", [False, True])
@pytest.mark.parametrize("multiplier", [1.0, 0.4])
def test_a_linear_layer_is_its_formula(
    kind: str | int, dora: bool, pissa: bool, multiplier: float
) -> None:
    layer = filled(made(LoRALinear, linear(kind), dora, pissa))
    layer.multiplier = multiplier
    x, new = normal(3, 64, seed=8), merged(layer, multiplier)
    expected = f64(x) @ new.T + f64(layer.base.bias)
    np.testing.assert_allclose(f64(layer(x)), expected, rtol=1e-4, atol=1e-4)
    weight = f64(dense_weight(layer.base))
    np.testing.assert_allclose(f64(layer.delta()), new - weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("pissa", [False, True])
@pytest.mark.parametrize("use", ["both", "input", "output"])
def test_an_embedding_is_its_formula_both_ways(
    kind: str | int, dora: bool, pissa: bool, use: str
) -> None:
    layer = filled(made(LoRAEmbedding, embedding(kind), dora, pissa))
    layer.multiplier, layer.use = 0.6, use
    ids, x = mx.array([[0, 49, 7], [7, 7, 1]]), normal(2, 5, 64, seed=8)
    new, old = merged(layer, 0.6).T, f64(dense_weight(layer.base))
    looked, head = new if use != "output" else old, new if use != "input" else old
    close = {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose(f64(layer(ids)), looked[np.array(ids)], **close)
    np.testing.assert_allclose(f64(layer.as_linear(x)), f64(x) @ head.T, **close)
    np.testing.assert_allclose(f64(layer.delta()), new - old, **close)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.floats(0.01, 8))
def test_dora_at_odd_sizes(in_dims: int, out_dims: int, rank: int, scale: float) -> None:
    layer = made(LoRALinear, nn.Linear(in_dims, out_dims), True, rank=rank, scale=scale)
    layer = filled(layer)
    x, new = normal(2, in_dims, seed=8), merged(layer)
    expected = f64(x) @ new.T + f64(layer.base.bias)
    np.testing.assert_allclose(f64(layer(x)), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("of", [LoRALinear, LoRAEmbedding])
@pytest.mark.parametrize("pissa", [False, True])
def test_a_new_adapter_changes_nothing_bit_for_bit(kind: str | int, of: type, pissa: bool) -> None:
    base = embedding(kind) if of is LoRAEmbedding else linear(kind)
    layer = made(of, base, True, pissa)
    x = mx.array([3, 1]) if of is LoRAEmbedding else normal(3, 64)
    assert mx.array_equal(layer(x), base(x))
    if of is LoRAEmbedding:
        assert mx.array_equal(layer.as_linear(normal(2, 64)), base.as_linear(normal(2, 64)))


def test_the_gradient_of_dora_is_that_of_a_constant_norm() -> None:
    """Section 4.3 of the paper, by hand: y = m / n * (x (W^T + s A B)) with n a constant."""
    layer = filled(made(LoRALinear, linear("float", bias=False), True))
    x, pull = normal(3, 64, seed=8), normal(3, 40, seed=9)

    def loss(a: mx.array, b: mx.array, m: mx.array) -> mx.array:
        layer.lora_a, layer.lora_b, layer.lora_m = a, b, m
        return (layer(x) * pull).sum()

    a, b, m = layer.lora_a, layer.lora_b, layer.lora_m
    found = mx.grad(loss, argnums=(0, 1, 2))(a, b, m)
    layer.lora_a, layer.lora_b, layer.lora_m = a, b, m
    a64, b64, x64, pull64 = f64(a), f64(b), f64(x), f64(pull)
    inner = f64(dense_weight(layer.base)) + 1.7 * (a64 @ b64).T
    gain = f64(m) / np.linalg.norm(inner, axis=1)
    expected = (
        1.7 * x64.T @ (pull64 * gain) @ b64.T,
        1.7 * (x64 @ a64).T @ (pull64 * gain),
        ((x64 @ inner.T) * pull64).sum(axis=0) / np.linalg.norm(inner, axis=1),
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(f64(one), other, rtol=1e-3, atol=1e-3)


def test_dora_never_makes_a_matrix_of_the_size_of_the_weight() -> None:
    """mlx-lm merges the whole weight at every call, and multiplies a dequantized one."""

    def largest(layer: nn.Module, x: mx.array) -> int:
        steps: list[dict] = []
        mx.eval(layer.parameters())
        mx.export_function(steps.append, layer, x)
        sizes = [np.prod(o[1]) for s in steps if s["type"] == "primitive" for o in s["outputs"]]
        return int(max(sizes))

    base = linear(4, out=512, width=256)
    x = normal(2, 256)
    ours = made(LoRALinear, base, True).train()
    assert largest(MlxLmDoRALinear.from_base(base, r=4), x) >= 512 * 256
    assert largest(ours, x) <= 512 * 8


def test_the_norm_is_kept_while_nothing_changes_and_only_then() -> None:
    layer = filled(made(LoRALinear, linear("float"), True))
    x = normal(3, 64)
    first = layer(x)
    calls: list[int] = []
    through = layer._through_base
    layer._through_base = lambda a: (calls.append(1), through(a))[1]
    assert mx.array_equal(layer(x), first)
    assert calls == []
    layer.lora_b = layer.lora_b * 2
    np.testing.assert_allclose(
        f64(layer(x)), f64(x) @ merged(layer).T + f64(layer.base.bias), rtol=1e-4, atol=1e-4
    )
    compiled = mx.compile(lambda a, b, x: (layer.update({"lora_a": a, "lora_b": b}), layer(x))[1])
    kept = layer.lora_a, layer.lora_b
    inside = compiled(*kept, x)
    layer.lora_a, layer.lora_b = kept
    np.testing.assert_allclose(f64(inside), f64(layer(x)), rtol=1e-5, atol=1e-5)
    assert len(calls) >= 2


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize("of", [LoRALinear, LoRAEmbedding])
@pytest.mark.parametrize("adapter_dtype", [mx.float32, mx.bfloat16])
def test_half_precision_comes_out_as_it_went_in(
    dtype: mx.Dtype, of: type, adapter_dtype: mx.Dtype
) -> None:
    base = embedding("float") if of is LoRAEmbedding else linear("float")
    base.set_dtype(dtype)
    layer = made(of, base, True, True, dtype=adapter_dtype)
    assert {layer[n].dtype for n in ("lora_a", "lora_b", "start_a")} == {adapter_dtype}
    layer = filled(layer)
    x = mx.array([1, 2]) if of is LoRAEmbedding else normal(3, 64, dtype=dtype)
    assert layer(x).dtype == dtype
    if of is LoRAEmbedding:
        x = normal(3, 64, dtype=dtype)
        assert layer.as_linear(x).dtype == dtype
    else:
        expected = f64(x) @ merged(layer).T + f64(base.bias)
        np.testing.assert_allclose(f64(layer(x)), expected, rtol=0.03, atol=0.05)


def test_mlx_lm_gives_float32_out_of_a_bfloat16_dora_embedding() -> None:
    from mlx_lm.tuner.dora import DoRAEmbedding

    base = embedding("float")
    base.set_dtype(mx.bfloat16)
    theirs = DoRAEmbedding.from_base(base, r=4)
    theirs.m = theirs.m.astype(mx.float32)
    assert theirs(mx.array([1, 2])).dtype == mx.float32
    assert made(LoRAEmbedding, base, True)(mx.array([1, 2])).dtype == mx.bfloat16


def test_a_small_magnitude_survives_bfloat16() -> None:
    """A gain of 1.001 is 1 in bfloat16; what it adds is not."""
    base = linear("float", bias=False)
    base.set_dtype(mx.bfloat16)
    layer = made(LoRALinear, base, True).eval()
    layer.lora_m = layer.lora_m * 1.001
    change = layer._change(
        mx.ones((1, 40), mx.bfloat16), mx.ones((1, 40), mx.bfloat16), mx.zeros(1)
    )
    np.testing.assert_allclose(f64(change), 0.001, rtol=0.02)


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (700, 300), (3, 50)])
def test_principal_factors_are_the_best_of_their_rank(shape: tuple[int, int]) -> None:
    n, m = shape
    rng = np.random.default_rng(0)
    left, _ = np.linalg.qr(rng.normal(size=(n, min(n, m))))
    right, _ = np.linalg.qr(rng.normal(size=(m, min(n, m))))
    values = 0.9 ** np.arange(min(n, m))
    matrix = (left * values) @ right.T
    a, b = principal_factors(mx.array(matrix.astype(np.float32)), 5, 2.0, mx.random.key(3))
    assert (a.shape, b.shape) == ((n, 5), (5, m))
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    best = (u[:, :5] * s[:5]) @ vt[:5]
    np.testing.assert_allclose(2.0 * f64(a) @ f64(b), best, atol=2e-5)
    norms = np.linalg.norm(f64(a), axis=0), np.linalg.norm(f64(b), axis=1)
    np.testing.assert_allclose(norms[0], norms[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("bits", [None, 4, 8])
def test_pissa_trains_the_principal_part_and_leaves_the_base_exact(bits: int | None) -> None:
    model = llama(bits=bits)
    before, logits = state(model), model(TOKENS)
    attach(model, LoraConfig(rank=4, init="pissa", targets=ALL))
    assert mx.array_equal(model(TOKENS), logits)
    layer = model.layers[0].mlp.down_proj
    weight = f64(dense_weight(layer.base))
    u, s, vt = np.linalg.svd(weight)
    taken = layer.scale * (f64(layer.lora_a) @ f64(layer.lora_b)).T
    np.testing.assert_allclose(taken, (u[:, :4] * s[:4]) @ vt[:4], atol=1e-4)
    trained = sorted(dict(tree_flatten(model.trainable_parameters())))
    assert trained == sorted(adapter_parameters(model))
    assert not any("start" in name for name in trained)
    detach(model)
    assert state(model) == before


def trained(model: nn.Module, steps: int = 2) -> list[float]:
    """A few steps of Adam on the next token of fixed rows."""

    def loss(model: nn.Module) -> mx.array:
        return nn.losses.cross_entropy(model(TOKENS[:, :-1]), TOKENS[:, 1:]).mean()

    optimizer, losses = optim.Adam(1e-2), []
    for _ in range(steps):
        value, gradients = nn.value_and_grad(model, loss)(model)
        optimizer.update(model, gradients)
        losses.append(value.item())
    return [*losses, loss(model).item()]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("init", ["kaiming", "pissa"])
def test_qlora_learns_over_an_untouched_base(bits: int, dora: bool, init: Any) -> None:
    model = llama(bits=bits)
    base = {n: bytes(memoryview(w)) for n, w in tree_flatten(model.parameters())}
    attach(model, LoraConfig(rank=4, targets=ALL, dora=dora, init=init))
    start = adapter_parameters(model)
    losses = trained(model, 4)
    assert losses[-1] < losses[0] - 0.05
    moved = {n for n, w in adapter_parameters(model).items() if not mx.array_equal(w, start[n])}
    assert moved == set(start)
    detach(model)
    assert {n: bytes(memoryview(w)) for n, w in tree_flatten(model.parameters())} == base


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("multiplier", [1.0, 0.5])
def test_every_method_survives_the_disk(tmp_path: Any, bits: int | None, multiplier: float) -> None:
    config = LoraConfig(
        rank=4,
        targets=ALL,
        dora=True,
        init="pissa",
        scaling="rslora",
        rank_pattern={"down_proj": 6, r"layers\.0\.self_attn\..*": 2},
        alpha_pattern={"lm_head": 3},
        dtype="bfloat16",
    )
    model = llama(bits=bits)
    attach(model, config)
    trained(model)
    set_multiplier(model, multiplier)
    save_adapter(tmp_path / "a", model, config, "ab" * 32)
    other = llama(bits=bits)
    assert load_adapter(tmp_path / "a", other) == config
    assert state(other) == state(model)
    assert mx.array_equal(other(TOKENS), model(TOKENS))
    # Training goes on from there as it would have.
    assert trained(other) == trained(model)


def test_embeddings_are_adapted_when_they_are_named() -> None:
    for targets in (("*",), ("model.*",), ("*.mlp.*",)):
        model = llama()
        assert not any("embed" in path for path in attach(model, LoraConfig(targets=targets)))
    for targets in (("embed_tokens",), ("model.embed*",)):
        model = llama()
        assert attach(model, LoraConfig(targets=targets)) == ["model.embed_tokens"]
    assert isinstance(model.model.embed_tokens, LoRAEmbedding)


@pytest.mark.parametrize("bits", [None, 4])
def test_a_tied_head_is_the_embedding(bits: int | None) -> None:
    model = llama(bits=bits, tied=True)
    assert attach(model, LoraConfig(targets=("q_proj", "lm_head")))[0] == "model.embed_tokens"
    layer = filled(model.model.embed_tokens)
    hidden, new = model.model(TOKENS), merged(layer).T
    np.testing.assert_allclose(f64(model(TOKENS)), f64(hidden) @ new.T, rtol=1e-4, atol=1e-4)
    with pytest.raises(AdapterError, match="no linear layer matches"):
        attach(llama(tied=True), LoraConfig(targets=("lm_haed",)))


@pytest.mark.parametrize(("use", "looks_up"), [("input", True), ("output", False)])
def test_one_use_of_a_tied_embedding_can_be_adapted_alone(use: Any, looks_up: bool) -> None:
    model = llama(tied=True)
    attach(model, LoraConfig(targets=("embed_tokens",), tied=use))
    layer = filled(model.model.embed_tokens)
    x = normal(2, 32)
    assert looks_up != mx.array_equal(layer(TOKENS), layer.base(TOKENS))
    assert looks_up == mx.array_equal(layer.as_linear(x), layer.base.as_linear(x))
    untied = llama()
    attach(untied, LoraConfig(targets=("embed_tokens",), tied=use))
    assert untied.model.embed_tokens.use == "both"


def test_lora_plus_gives_b_the_higher_rate() -> None:
    """Adam's first step is the learning rate, whatever the gradient."""
    model = llama()
    attach(model, LoraConfig(rank=2, targets=ALL, dora=True))
    config = TrainConfig(lr=1e-3, lr_ratios=lora_plus(16), weight_decay=0.0, eps=1e-30)
    optimizer = optimizer_for(config, model)
    optimizer.init(model.trainable_parameters())
    before = adapter_parameters(model)
    ones = nn.utils.tree_map(mx.ones_like, model.trainable_parameters())
    optimizer.update(model, ones)
    for name, weight in adapter_parameters(model).items():
        fast = name.endswith("lora_a" if "embed" in name else "lora_b")
        step = np.array(before[name] - weight)
        np.testing.assert_allclose(step, 16e-3 if fast else 1e-3, rtol=1e-3, err_msg=name)
    with pytest.raises(ConfigError, match="ratio"):
        lora_plus(0)
