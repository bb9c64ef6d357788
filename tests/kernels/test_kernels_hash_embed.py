"""Hash n-gram embeddings against whole numbers of Python and NumPy in double precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx_companion  # noqa: F401  (loads a fast BLAS before MLX)

import mlx.core as mx  # isort: skip
import numpy as np  # isort: skip
import pytest  # isort: skip
from hypothesis import given, settings  # isort: skip
from hypothesis import strategies as st  # isort: skip

from mlx_companion.errors import ConfigError, HardwareError  # isort: skip
from mlx_companion.kernels.hash_embed import PRIMES, hash_embed, ngram_rows, plain  # isort: skip
from mlx_companion.kernels.matrix import Matrix  # isort: skip

ON_CPU = ["reference", "plain"]
# Roundings of the sum of six values below 5, in float32 and once to the type itself.
TOLERANCES = {mx.float32: 1e-5, mx.float16: 2e-2, mx.bfloat16: 1.3e-1}


def twin_rows(
    ids: np.ndarray,
    sizes: Sequence[int],
    primes: Sequence[int],
    vocabulary: int,
    documents: np.ndarray | None = None,
) -> np.ndarray:
    """(G, B, N), the definition with whole numbers of any size, byte by byte."""
    tables = [(prime, size) for prime in primes for size in sizes]
    out = np.zeros((len(tables), *ids.shape), dtype=np.int64)
    for table, (prime, size) in enumerate(tables):
        for row, t in np.ndindex(*ids.shape):
            begin = 0
            if documents is not None:
                begin = t
                while begin and documents[row, begin - 1] == documents[row, t]:
                    begin -= 1
            window = [int(ids[row, s]) if s >= begin else 0 for s in range(t - size + 1, t + 1)]
            total = sum(x * prime**i for i, x in enumerate(window)) % 2**64
            signed = total - 2**64 if total >= 2**63 else total
            out[table, row, t] = signed % vocabulary + table * vocabulary
    return out


class World:
    """Inputs of one size and what has to come out."""

    def __init__(
        self,
        rows: int,
        length: int,
        width: int,
        *,
        vocabulary: int = 97,
        sizes: tuple[int, ...] = (3, 4, 8),
        functions: int = 1,
        packed: bool = False,
        letters: int = 256,
    ) -> None:
        rng = np.random.default_rng(rows * 1000 + length)
        self.ids = rng.integers(4, 4 + letters, (rows, length)).astype(np.int32)
        # Numbers come again in a row: only neighbours are compared.
        starts = rng.random((rows, length)) < 0.1
        self.documents = (np.cumsum(starts, axis=1) % 3).astype(np.int32) if packed else None
        self.hashed: dict[str, Any] = {
            "group_sizes": sizes,
            "primes": PRIMES[:functions],
            "vocabulary": vocabulary,
        }
        height = functions * len(sizes) * vocabulary
        self.weight = rng.normal(size=(height, width)).astype(np.float32)
        self.slope = rng.normal(size=(rows, length, width)).astype(np.float32)

    @property
    def rows(self) -> np.ndarray:
        return twin_rows(self.ids, *self.hashed.values(), self.documents)

    def embed(self, table: Matrix, impl: str, last: int | None = None) -> mx.array:
        documents = None if self.documents is None else mx.array(self.documents)
        return hash_embed(
            mx.array(self.ids), table, **self.hashed, documents=documents, last=last, impl=impl
        )

    def value_and_gradient(
        self, impl: str, dtype: mx.Dtype = mx.float32, compiled: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        slope = mx.array(self.slope)

        def loss(weight: mx.array) -> tuple[mx.array, mx.array]:
            e = self.embed(Matrix(weight), impl)
            return (e.astype(mx.float32) * slope).sum(), e

        call = mx.value_and_grad(loss)
        (_, e), gradient = (mx.compile(call) if compiled else call)(
            mx.array(self.weight).astype(dtype)
        )
        assert e.dtype == gradient.dtype == dtype
        return np.array(e.astype(mx.float32)), np.array(gradient.astype(mx.float32))

    def expected(self, weight: np.ndarray | None = None) -> np.ndarray:
        table = self.weight if weight is None else weight
        return table.astype(np.float64)[self.rows].sum(axis=0)

    def expected_gradient(self) -> np.ndarray:
        out = np.zeros(self.weight.shape)
        np.add.at(out, self.rows, self.slope[None].astype(np.float64))
        return out

    def check(self, impl: str, dtype: mx.Dtype = mx.float32, **options: Any) -> None:
        e, gradient = self.value_and_gradient(impl, dtype, **options)
        slope, self.slope = self.slope, as_numpy(mx.array(self.slope).astype(dtype))
        weight = np.array(mx.array(self.weight).astype(dtype).astype(mx.float32))
        assert np.abs(e - self.expected(weight)).max(initial=0) < TOLERANCES[dtype]
        wrong = np.abs(gradient - self.expected_gradient()).max(initial=0)
        # A row is met several times, and in 16 bits each meeting may round.
        assert wrong < 8 * TOLERANCES[dtype]
        self.slope = slope


def quantized(weight: np.ndarray, group_size: int, bits: int, mode: str = "affine") -> Matrix:
    parts = mx.quantize(mx.array(weight), group_size, bits, mode=mode)
    return Matrix(*parts, *([None] if len(parts) == 2 else []), group_size, bits, mode)


def in_chunks(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Chunks of so many bytes."""
    for name, value in (("_WHOLE", 0), ("_SMALLEST", size), ("_LARGEST", size)):
        monkeypatch.setattr(plain, name, value)


def as_numpy(x: mx.array) -> np.ndarray:
    return np.array(x.astype(mx.float32))


# --- rows ----------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(-5, 300), min_size=1, max_size=10),
    st.lists(st.integers(1, 9), min_size=1, max_size=3),
    st.lists(st.integers(1, 2**70), min_size=1, max_size=3),
    st.integers(1, 2**33),
    st.randoms(use_true_random=False),
)
@settings(max_examples=150, deadline=None)
def test_rows_are_those_of_whole_numbers(
    row: list[int], sizes: list[int], primes: list[int], vocabulary: int, random: Any
) -> None:
    ids = np.array([row, row[::-1]])
    documents = np.cumsum([[random.random() < 0.3 for _ in row] for _ in ids], axis=1)
    for packed in (None, documents):
        expected = twin_rows(ids, sizes, primes, vocabulary, packed)
        given_ = None if packed is None else mx.array(packed)
        for last in {None, 0, 1, len(row), len(row) // 2}:
            ours = ngram_rows(mx.array(ids), sizes, primes, vocabulary, given_, last=last)
            start = 0 if last is None else len(row) - last
            assert np.array_equal(np.array(ours), expected[:, :, start:])


def test_rows_of_unsigned_and_small_integers() -> None:
    ids = np.random.default_rng(3).integers(0, 256, (2, 40))
    expected = twin_rows(ids, (3, 8), PRIMES[:2], 500002)
    for dtype in (mx.uint8, mx.uint32, mx.int16, mx.int64):
        ours = ngram_rows(mx.array(ids).astype(dtype), (3, 8), PRIMES[:2], 500002)
        assert ours.dtype == mx.int32
        assert np.array_equal(np.array(ours), expected)


def test_many_rows_need_64_bits() -> None:
    ids = np.array([[7, 250, 19, 33]])
    ours = ngram_rows(mx.array(ids), (3, 4), PRIMES[:1], 2**31)
    assert ours.dtype == mx.int64
    assert np.array_equal(np.array(ours), twin_rows(ids, (3, 4), PRIMES[:1], 2**31))


# --- values and gradients ------------------------------------------------------------------------


@pytest.mark.parametrize("impl", ON_CPU)
@pytest.mark.parametrize("packed", [False, True], ids=["alone", "packed"])
@pytest.mark.parametrize(
    ("rows", "length", "width"), [(1, 1, 6), (2, 2, 7), (3, 63, 10), (2, 1000, 5)]
)
def test_values_and_gradients(impl: str, packed: bool, rows: int, length: int, width: int) -> None:
    World(rows, length, width, packed=packed, functions=2).check(impl)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("impl", ON_CPU)
def test_16_bits(impl: str, dtype: mx.Dtype) -> None:
    World(2, 63, 10).check(impl, dtype)


@pytest.mark.parametrize("width", [7, 8])
def test_a_row_that_many_positions_share(width: int) -> None:
    World(3, 200, width, vocabulary=5, letters=2).check("plain")


def test_cotangents_that_are_not_contiguous() -> None:
    world = World(2, 30, 6)
    slope = mx.array(np.ascontiguousarray(world.slope.transpose(2, 1, 0)))
    for part in (slice(None), slice(1, 5)):

        def loss(weight: mx.array, part: slice = part) -> mx.array:
            e = world.embed(Matrix(weight), "plain")
            return (e.T[part] * slope[part]).sum() + e[:, 3, 2].sum()

        gradient = mx.grad(loss)(mx.array(world.weight))
        kept, world.slope = world.slope, np.zeros_like(world.slope)
        world.slope[:, :, part] = kept[:, :, part]
        world.slope[:, 3, 2] += 1
        assert np.allclose(np.array(gradient), world.expected_gradient(), atol=1e-4)
        world.slope = kept


@pytest.mark.parametrize("chunk", [1, 500, 1700])
def test_chunks_of_any_size(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # 72 bytes per position: 1, 6 and 23 positions at a time.
    in_chunks(monkeypatch, chunk)
    World(3, 63, 6).check("plain")


@pytest.mark.parametrize("impl", ON_CPU)
@pytest.mark.parametrize("last", [1, 2, 9, 20])
def test_the_last_positions(impl: str, last: int) -> None:
    for packed in (False, True):
        world = World(2, 20, 6, packed=packed)
        ours = world.embed(Matrix(mx.array(world.weight)), impl, last)
        assert np.allclose(np.array(ours), world.expected()[:, -last:], atol=1e-5)


@pytest.mark.parametrize("impl", ON_CPU)
def test_nothing_to_do(impl: str) -> None:
    for rows, length, sizes, functions in ((0, 5, (3,), 1), (2, 0, (3,), 1), (2, 5, (), 1)):
        World(rows, length, 4, sizes=sizes, functions=functions).check(impl)
    world = World(2, 5, 4, functions=0)
    world.check(impl)
    assert world.embed(Matrix(mx.zeros((0, 4))), impl, last=0).shape == (2, 0, 4)


def test_inside_of_compile() -> None:
    World(2, 300, 96).check("plain", compiled=True)


def test_the_default_is_the_plain_form_on_a_cpu() -> None:
    with mx.stream(mx.cpu):
        World(2, 9, 4).check("auto")


# --- quantized tables ----------------------------------------------------------------------------


@pytest.mark.parametrize("impl", ON_CPU)
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_quantized_tables(impl: str, bits: int, group_size: int) -> None:
    world = World(2, 63, 128, packed=True)
    table = quantized(world.weight, group_size, bits)
    ours = world.embed(table, impl)
    assert ours.dtype == mx.float32
    assert np.allclose(np.array(ours), world.expected(np.array(table.dense())), atol=1e-5)


def test_quantized_tables_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    in_chunks(monkeypatch, 5000)
    world = World(2, 63, 64)
    table = quantized(world.weight, 32, 4)
    ours = np.array(world.embed(table, "plain"))
    assert np.allclose(ours, world.expected(np.array(table.dense())), atol=1e-5)


@pytest.mark.parametrize("impl", ON_CPU)
@pytest.mark.parametrize(("mode", "group_size", "bits"), [("mxfp8", 32, 8), ("nvfp4", 16, 4)])
def test_modes_without_biases(impl: str, mode: str, group_size: int, bits: int) -> None:
    world = World(2, 30, 64)
    table = quantized(world.weight, group_size, bits, mode)
    expected = world.expected(as_numpy(table.dense()))
    ours = world.embed(table, impl)
    # These dequantize to bfloat16, as the sums are rounded to.
    assert ours.dtype == mx.bfloat16
    assert np.abs(as_numpy(ours) - expected).max() < TOLERANCES[mx.bfloat16]
    assert world.embed(table, impl, last=0).dtype == mx.bfloat16


@pytest.mark.parametrize("impl", ON_CPU)
def test_scales_in_16_bits(impl: str) -> None:
    world = World(2, 30, 64)
    parts = mx.quantize(mx.array(world.weight).astype(mx.bfloat16), 32, 8)
    table = Matrix(*parts, group_size=32, bits=8)
    ours = world.embed(table, impl)
    assert ours.dtype == mx.bfloat16
    expected = world.expected(as_numpy(table.dense()))
    assert np.abs(as_numpy(ours) - expected).max() < TOLERANCES[mx.bfloat16]


@pytest.mark.parametrize("impl", ON_CPU)
def test_a_quantized_table_gets_no_gradient(impl: str) -> None:
    world = World(1, 9, 32)
    table = quantized(world.weight, 32, 8)

    def loss(scales: mx.array) -> mx.array:
        return (world.embed(table._replace(scales=scales), impl) ** 2).sum()

    assert loss(table.scales).item() > 0
    assert not np.array(mx.grad(loss)(table.scales)).any()


# --- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [None, 4, 8])
def test_memory_is_a_third_of_gathering_everything(bits: int | None) -> None:
    world = World(1, 16384, 256, vocabulary=500, sizes=(3, 4, 5, 6, 7, 8))
    weight = mx.array(world.weight)
    table = Matrix(weight) if bits is None else quantized(world.weight, 32, bits)
    ids = mx.array(world.ids)
    mx.eval(table.arrays, ids)

    def peak(call: Any) -> float:
        mx.clear_cache()
        held = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(call())
        return mx.get_peak_memory() - held

    rows = ngram_rows(ids, *world.hashed.values())
    mx.eval(rows)
    whole = peak(lambda: table.rows(rows).sum(axis=0))
    assert peak(lambda: hash_embed(ids, table, **world.hashed, impl="plain")) < whole / 3


# --- bodies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True], ids=["alone", "packed"])
def test_body_values_and_gradients(on_metal: str, packed: bool) -> None:
    for rows, length, width in ((1, 1, 6), (2, 63, 10), (1, 30, 300)):
        World(rows, length, width, packed=packed, functions=2).check("metal")


def test_body_long_rows_and_collisions(on_metal: str) -> None:
    World(1, 1000, 3).check("metal")
    World(2, 40, 7, vocabulary=5, letters=2).check("metal")


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=["float16", "bfloat16"])
def test_body_16_bits(on_metal: str, dtype: mx.Dtype) -> None:
    World(2, 9, 10).check("metal", dtype)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_body_quantized_tables(on_metal: str, bits: int) -> None:
    world = World(2, 11, 128)
    for group_size in (32, 128):
        table = quantized(world.weight, group_size, bits)
        expected = world.expected(np.array(table.dense()))
        assert np.allclose(np.array(world.embed(table, "metal")), expected, atol=1e-5)
    parts = mx.quantize(mx.array(world.weight).astype(mx.bfloat16), 32, bits)
    table = Matrix(*parts, group_size=32, bits=bits)
    ours = world.embed(table, "metal")
    assert ours.dtype == mx.bfloat16
    wrong = np.abs(as_numpy(ours) - world.expected(as_numpy(table.dense())))
    assert wrong.max() < TOLERANCES[mx.bfloat16]


def test_body_last_positions_and_numbers(on_metal: str) -> None:
    for packed in (False, True):
        world = World(2, 20, 6, packed=packed, vocabulary=1009, functions=2)
        world.ids[:, ::5] = -1
        for last in (1, 7):
            ours = world.embed(Matrix(mx.array(world.weight)), "metal", last)
            assert np.allclose(np.array(ours), world.expected()[:, -last:], atol=1e-5)


def test_body_many_tables(on_metal: str) -> None:
    # More primes than fit MLX's constant memory, more tables than threads.
    world = World(1, 5, 2, sizes=(1, 2, 3, 12), functions=0, vocabulary=3)
    world.hashed["primes"] = [2**64 - 59 + 2 * i for i in range(75)]
    world.weight = np.random.default_rng(0).normal(size=(900, 2)).astype(np.float32)
    ours = world.embed(Matrix(mx.array(world.weight)), "metal")
    assert np.allclose(np.array(ours), world.expected(), atol=1e-4)


def test_body_nothing_to_do(on_metal: str) -> None:
    for rows, length, sizes in ((0, 5, (3,)), (2, 0, (3,)), (2, 5, ())):
        World(rows, length, 4, sizes=sizes).check("metal")
    world = World(2, 5, 32)
    assert world.embed(quantized(world.weight, 32, 4), "metal", last=0).shape == (2, 0, 32)


def test_body_refuses_what_it_cannot_read(on_metal: str) -> None:
    world = World(1, 4, 32)
    for table, reason in (
        (quantized(world.weight, 32, 3), '3 bits in mode "affine"'),
        (quantized(world.weight, 32, 8, "mxfp8"), '8 bits in mode "mxfp8"'),
        (Matrix(mx.zeros(world.weight.shape, dtype=mx.int32)), "int32"),
    ):
        with pytest.raises(ConfigError, match=f"cannot read a table of .*{reason}"):
            world.embed(table, "metal")
    world = World(1, 4, 2, sizes=(1,) * 2049, vocabulary=1)
    with pytest.raises(ConfigError, match="cannot read 2049 tables at once"):
        world.embed(Matrix(mx.array(world.weight)), "metal")


# --- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": mx.zeros((5,), dtype=mx.int32)}, r"int32 of shape \(5,\); expected integers"),
        ({"ids": mx.zeros((1, 5))}, "float32 of shape"),
        ({"documents": mx.zeros((1, 4), dtype=mx.int32)}, r"shape \(1, 4\); expected integers"),
        ({"documents": mx.zeros((1, 5))}, "documents are mlx.core.float32"),
        ({"last": 6}, "last is 6, but a row has 5 ids"),
        ({"last": -1}, "last is -1"),
        ({"group_sizes": (3, 0)}, r"group_sizes is \(3, 0\)"),
        ({"vocabulary": 0}, "vocabulary is 0"),
        ({"vocabulary": 11}, "20 rows; 1 functions x 2 group sizes x vocabulary 11 need 22"),
        ({"primes": PRIMES[:2]}, "20 rows; 2 functions"),
        ({"table": Matrix(mx.zeros((20,)))}, r"shape \(20,\); expected \(rows, D\)"),
        ({"impl": "fast"}, "no implementation 'fast'"),
    ],
)
def test_arguments_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "ids": mx.zeros((1, 5), dtype=mx.int32),
        "table": Matrix(mx.zeros((20, 4))),
        "group_sizes": (3, 4),
        "primes": PRIMES[:1],
        "vocabulary": 10,
    }
    assert hash_embed(**arguments).shape == (1, 5, 4)
    with pytest.raises(ConfigError, match=message):
        hash_embed(**{**arguments, **change})


def test_a_quantized_table_of_another_form() -> None:
    world = World(1, 5, 64)
    table = quantized(world.weight, 32, 8)
    for wrong in ({"bits": 4}, {"group_size": 64}):
        with pytest.raises(ConfigError, match="pass the group_size and bits"):
            world.embed(table._replace(**wrong), "plain")
    biases = table.biases[:, :1]
    with pytest.raises(ConfigError, match="has biases"):
        world.embed(table._replace(biases=biases), "plain")


@pytest.mark.parametrize("impl", ["metal", "cuda"])
def test_a_kernel_that_the_machine_lacks(impl: str) -> None:
    if getattr(mx, impl).is_available():
        pytest.skip(f"this machine has {impl}")
    world = World(1, 5, 4)
    with pytest.raises(HardwareError, match=f"the {impl} backend"):
        world.embed(Matrix(mx.array(world.weight)), impl)
