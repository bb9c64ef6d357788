"""A key-value cache of few bits: long contexts in a quarter of the memory.

Keys and values of past tokens are most of what a long conversation holds. They are packed here in
groups, each with a 16-bit scale and bias: values along the head's width, token by token; keys along
the tokens, channel by channel, because a few channels of the keys are many times larger than the
rest and would take their group's range from it (Liu et al., "KIVI", 2024). The newest tokens
stay as they are: they are read the most, and a group of keys is packed when it is full.

    for piece in stream_generate(lm, prompt, kv_bits=4): ...
    for piece in stream_generate(lm, prompt, kv_bits="k8v4"): ...

What it costs in quality is measured by `quant.kv_cost`. mlx-lm's own cache (`kv_bits` there) packs
keys token by token, takes widths that are a multiple of its group alone, keeps its scales in
the model's number type, and begins after 5,000 tokens unless told otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import KVCache, create_attention_mask, make_prompt_cache

from mlx_companion.errors import ConfigError
from mlx_companion.kernels.fast_math import softmax
from mlx_companion.models.swapped import ATTENTION, functions_of, swapped

BITS = (2, 3, 4, 5, 6, 8)
_GROUPS = (64, 32)
# MLX's CPU product with packed numbers is slower than unpacking them first from about here on.
_FEW_ROWS = 8
_NAMED = re.compile(r"k(\d+)v(\d+)")

Packed = tuple[mx.array, mx.array, mx.array]


@dataclass(frozen=True)
class KVBits:
    """How a cache is packed.

    Attributes:
        keys, values: bits per number, without scales.
        group_size: numbers that share a scale, 32 or 64; values of a width that is no multiple of
            64 are packed in groups of 32.
        recent: so many of the newest tokens at least are not packed.

    Raises:
        ConfigError: other bits or sizes.
    """

    keys: int = 4
    values: int = 4
    group_size: int = 64
    recent: int = 32

    def __post_init__(self) -> None:
        wrong = [bits for bits in (self.keys, self.values) if bits not in BITS]
        if wrong:
            raise ConfigError(f"kv bits are {wrong[0]!r}; expected one of {BITS}")
        if self.group_size not in _GROUPS or self.recent < 0:
            raise ConfigError(
                f"group_size={self.group_size}, recent={self.recent}; expected a group of 32 or 64 "
                "and 0 or more recent tokens"
            )

    @classmethod
    def of(cls, given: int | str | KVBits) -> KVBits:
        """From 4, "4" or "k8v4" (8 bits for keys, 4 for values).

        Raises:
            ConfigError: none of these.
        """
        if isinstance(given, KVBits):
            return given
        found = _NAMED.fullmatch(str(given).lower())
        if found:
            return cls(int(found[1]), int(found[2]))
        if isinstance(given, bool) or not str(given).isdigit():
            raise ConfigError(f"kv bits are {given!r}; expected a number of {BITS} or 'k8v4'")
        return cls(int(given), int(given))

    def __str__(self) -> str:
        return str(self.keys) if self.keys == self.values else f"k{self.keys}v{self.values}"

    @property
    def per_number(self) -> float:
        """Bits per packed number, scales and biases included."""
        return (self.keys + self.values) / 2 + 32 / self.group_size


class Past(NamedTuple):
    """Keys or values of one layer as attention gets them: the packed ones, then the plain ones.

    Attributes:
        packed: None when nothing is packed yet. Of keys (B, K, D, S), groups along S; of values
            (B, K, S, D'), groups along D', which is D filled up to whole groups.
        plain: (B, K, T, D).
        bits: of the packed ones.
        group_size: of their groups.
    """

    packed: Packed | None
    plain: mx.array
    bits: int
    group_size: int

    @property
    def dtype(self) -> mx.Dtype:
        """Of the plain ones, which is the model's."""
        return self.plain.dtype

    def joined(self, of_keys: bool = False) -> mx.array:
        """All of them as plain numbers, (B, K, S + T, D)."""
        full = mx.dequantize(*self.parts(), group_size=self.group_size, bits=self.bits)
        old = full.swapaxes(-1, -2) if of_keys else full[..., : self.plain.shape[-1]]
        return mx.concatenate([old, self.plain], axis=2)

    def parts(self) -> Packed:
        """The packed ones with scales and biases of the model's type."""
        assert self.packed is not None
        packed, scales, biases = self.packed
        return packed, scales.astype(self.dtype), biases.astype(self.dtype)


class QuantizedCache:
    """One layer's cache, in place of mlx-lm's `KVCache`; `attending_to_packed` reads it."""

    def __init__(self, how: KVBits) -> None:
        self.how = how
        self.offset = 0
        self._keys: mx.array | None = None
        self._values: mx.array | None = None
        self._packed_keys: Packed | None = None
        self._packed_values: Packed | None = None

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Past, Past]:
        """Add keys and values (B, K, L, D); the new ones are read as they are this time."""
        self.offset += keys.shape[2]
        if self._keys is not None and self._values is not None:
            keys = mx.concatenate([self._keys, keys], axis=2)
            values = mx.concatenate([self._values, values], axis=2)
        past = self._past(keys, values)
        self._keep(keys, values)
        return past

    def _past(self, keys: mx.array, values: mx.array) -> tuple[Past, Past]:
        how, group = self.how, self._value_group(values.shape[-1])
        old = Past(self._packed_keys, keys, how.keys, how.group_size)
        return old, Past(self._packed_values, values, how.values, group)

    def _value_group(self, width: int) -> int:
        return self.how.group_size if width % self.how.group_size == 0 else _GROUPS[-1]

    def _keep(self, keys: mx.array, values: mx.array) -> None:
        whole = max(0, keys.shape[2] - self.how.recent) // self.how.group_size * self.how.group_size
        if whole:
            new = _pack(keys[:, :, :whole].swapaxes(-1, -2), self.how.keys, self.how.group_size)
            self._packed_keys = _joined(self._packed_keys, new, 3)
            new = _pack(values[:, :, :whole], self.how.values, self._value_group(values.shape[-1]))
            self._packed_values = _joined(self._packed_values, new, 2)
        # A copy: a slice would keep the whole of what it was cut from alive.
        self._keys = mx.contiguous(keys[:, :, whole:]) if whole else keys
        self._values = mx.contiguous(values[:, :, whole:]) if whole else values

    def make_mask(self, *args: Any, **options: Any) -> Any:
        """As of mlx-lm's cache."""
        return create_attention_mask(*args, offset=self.offset, **options)

    def is_trimmable(self) -> bool:
        """Yes."""
        return True

    def trim(self, count: int) -> int:
        """Forget the newest tokens; returns how many there were to forget."""
        count = min(count, self.offset)
        self.offset -= count
        if self._keys is None or self._values is None:
            return count
        keys, values = self._keys, self._values
        if count > keys.shape[2]:
            # All of it becomes plain; what is kept is packed again with the next tokens.
            old_keys, old_values = self._past(keys, values)
            keys, values = old_keys.joined(of_keys=True), old_values.joined()
            self._packed_keys = self._packed_values = None
        left = keys.shape[2] - count
        self._keys, self._values = keys[:, :, :left], values[:, :, :left]
        return count

    @property
    def state(self) -> list[mx.array]:
        """Every array that it holds."""
        plain = [x for x in (self._keys, self._values) if x is not None]
        packed = [*(self._packed_keys or ()), *(self._packed_values or ())]
        return plain + packed

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return sum(array.nbytes for array in self.state)

    def size(self) -> int:
        """Tokens."""
        return self.offset

    def empty(self) -> bool:
        """Whether nothing was added yet."""
        return self._keys is None


def _pack(x: mx.array, bits: int, group: int) -> Packed:
    """Packed along the last axis, zeros behind a width that is no multiple of the group."""
    missing = -x.shape[-1] % group
    if missing:
        x = mx.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])
    # Scales take the type of what is packed: 16 bits are enough for them.
    half = x if x.dtype in (mx.float16, mx.bfloat16) else x.astype(mx.float16)
    return mx.quantize(half, group_size=group, bits=bits)


def _joined(before: Packed | None, new: Packed, axis: int) -> Packed:
    if before is None:
        return new
    pairs = zip(before, new, strict=True)
    one, two, three = (mx.concatenate(list(pair), axis=axis) for pair in pairs)
    return one, two, three


def quantized_cache(model: nn.Module, how: int | str | KVBits) -> list[Any]:
    """A prompt cache for a model whose layers with full attention are packed.

    Layers that keep a window or a state of fixed size stay as mlx-lm makes them.

    Raises:
        ConfigError: bits that there are not, or a model without full attention.
    """
    how = KVBits.of(how)
    parts = make_prompt_cache(model)
    made = [QuantizedCache(how) if type(part) is KVCache else part for part in parts]
    if not any(isinstance(part, QuantizedCache) for part in made):
        kinds = ", ".join(sorted({type(part).__name__ for part in parts}))
        raise ConfigError(
            f"no layer of this model keeps all keys and values (its caches are {kinds}): "
            "nothing to pack; leave kv_bits out"
        )
    return made


@contextmanager
def attending_to_packed(model: nn.Module, cache: Sequence[Any] | None = None) -> Iterator[None]:
    """Let a model's attention read `QuantizedCache` inside the block; others it reads as before.

    Args:
        model: an mlx-lm model.
        cache: the one that is read, where that is known: without a packed part nothing is done.
    """
    if cache is not None and not any(isinstance(part, QuantizedCache) for part in cache):
        yield
        return
    now = {place: f for place, f in functions_of(model).items() if place.name == ATTENTION}
    with swapped({place: _reading_packed(function) for place, function in now.items()}):
        yield


def _reading_packed(original: Callable[..., mx.array]) -> Callable[..., mx.array]:
    def scaled_dot_product_attention(
        queries: mx.array, keys: Any, values: Any, cache: Any, scale: float, mask: Any,
        sinks: mx.array | None = None,
    ) -> mx.array:  # fmt: skip
        if not isinstance(keys, Past):
            return original(queries, keys, values, cache, scale, mask, sinks)
        if keys.packed is None:
            return original(queries, keys.plain, values.plain, None, scale, mask, sinks)
        few = mx.default_device().type == mx.DeviceType.gpu
        few = few or queries.shape[1] // keys.plain.shape[1] * queries.shape[2] <= _FEW_ROWS
        if few and sinks is None and (mask is None or isinstance(mask, str)):
            return _attend_packed(queries, keys, values, scale, mask)
        full = keys.joined(of_keys=True), values.joined()
        return original(queries, *full, None, scale, mask, sinks)

    return scaled_dot_product_attention


def _attend_packed(
    queries: mx.array, keys: Past, values: Past, scale: float, mask: str | None
) -> mx.array:
    """Attention over both parts with nothing unpacked: (B, H, L, D) to (B, H, L, E)."""
    B, H, L, D = queries.shape
    heads = keys.plain.shape[1]
    q = (queries * scale).reshape(B, heads, H // heads * L, D)
    old = _times(q, keys)
    new = q @ keys.plain.swapaxes(-1, -2)
    if mask is not None:
        behind = mx.arange(-L, 0)[:, None] + new.shape[-1] >= mx.arange(new.shape[-1])[None]
        new = mx.where(mx.tile(behind, (H // heads, 1)), new, mx.finfo(new.dtype).min)
    weights = softmax(mx.concatenate([old, new], axis=-1))
    packed = old.shape[-1]
    width = values.plain.shape[-1]
    out = _times(weights[..., :packed], values)[..., :width]
    out = out + weights[..., packed:] @ values.plain
    return out.reshape(B, H, L, width)


def _times(x: mx.array, past: Past) -> mx.array:
    """x (B, K, R, n) times packed (B, K, n, m), in the number type of x."""
    return mx.quantized_matmul(
        x, *past.parts(), transpose=False, group_size=past.group_size, bits=past.bits
    )
