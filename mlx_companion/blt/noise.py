"""Text with typing errors of a known kind and rate, and how much worse a model predicts it.

    corrupt("Gestern im Café", "case", rate=0.5, seed=1)            # b"geSTern iM Caf\\xc3\\xa9"
    rows = robustness(lambda data: evaluate(model, data).nats, Path("book.txt").read_bytes())

========= =========================================================================================
case      a letter becomes a capital or a small one, either with probability 1/2
drop      a character is left out
swap      a character and the next change places; no character takes part twice
repeat    a character is written twice, three or four times
upper     a letter becomes a capital
spaced    a character becomes a capital with a space behind it
========= =========================================================================================

Each happens to a character with probability `rate`. Characters are Unicode code points, so that no
UTF-8 sequence is torn; a byte that is no UTF-8 counts as a character and stays as it is. The same
seed takes the same random numbers at every rate, so that a higher rate adds errors to those of a
lower one (but for "swap", where one may take the place of another).

Source of the kinds but "swap": Pagnoni et al. 2024, arXiv 2412.09871, section 6.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np

from mlx_companion.errors import ConfigError, DataError
from mlx_companion.runtime.seeds import derive_seed
from mlx_companion.text.byte_text import decode_bytes, encode_bytes

Noise = Literal["case", "drop", "swap", "repeat", "upper", "spaced"]
NOISES: tuple[Noise, ...] = get_args(Noise)
# What `robustness` measures by default.
RATES: Mapping[Noise, tuple[float, ...]] = MappingProxyType(
    {"case": (0.1, 0.5, 1.0), "drop": (0.05, 0.1), "swap": (0.05, 0.1), "repeat": (0.2,)}
)

_MOST_COPIES = 4


@dataclass(frozen=True)
class NoiseResult:
    """How a corrupted text was predicted.

    Attributes:
        noise: its kind; "none" for the text as it is.
        rate: of the errors.
        nats: the sum over all bytes of the corrupted text.
        bytes: of the corrupted text.
        original_bytes: of the text as it was.
        bits_per_byte: bits per byte of the corrupted text.
        bits_per_original_byte: bits per byte of the text as it was, which holds when errors change
            its length: characters left out are no gain.
    """

    noise: str
    rate: float
    nats: float
    bytes: int
    original_bytes: int
    bits_per_byte: float
    bits_per_original_byte: float

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self)


def corrupt(text: str | bytes, noise: Noise, rate: float, seed: int = 0) -> bytes:
    """A text with errors.

    Args:
        text: a string, or bytes of UTF-8 (invalid bytes are kept).
        noise: their kind, see the module.
        rate: probability that a character is hit, 0 to 1.
        seed: which ones.

    Returns:
        UTF-8; at rate 0 the text as it was.

    Raises:
        ConfigError: an unknown kind, or a rate outside 0 to 1.
        DataError: a string with a lone surrogate.
    """
    if noise not in NOISES:
        raise ConfigError(f"noise is {noise!r}; expected one of {', '.join(NOISES)}")
    if not 0 <= rate <= 1:
        raise ConfigError(f"rate is {rate}; expected a probability from 0 to 1")
    characters = _characters(text)
    rng = np.random.default_rng(derive_seed(seed, "noise", noise))
    hit = rng.random(len(characters)) < rate
    return "".join(_CHANGES[noise](characters, hit, rng)).encode("utf-8", "surrogateescape")


def robustness(
    evaluate_nats: Callable[[bytes], float],
    text: str | bytes,
    rates: Mapping[Noise, Sequence[float]] = RATES,
    seed: int = 0,
) -> list[NoiseResult]:
    """How a model predicts a text with errors of several kinds and rates.

    Args:
        evaluate_nats: from the bytes of a text to the sum of its cross-entropies in nats; of a byte
            model or a token model.
        text: a string, or bytes.
        rates: what to measure.
        seed: of the errors; the same for models to be compared.

    Returns:
        The text as it is, and then a row for each kind and rate.

    Raises:
        ConfigError: an unknown kind, or a rate outside 0 to 1.
        DataError: the text is empty, or nothing is left of it.
    """
    original = _utf8(text)
    if not original:
        raise DataError("the text is empty; give one byte or more")
    rows = [_result("none", 0.0, original, original, evaluate_nats)]
    for noise, several in rates.items():
        for rate in several:
            damaged = corrupt(original, noise, rate, seed)
            if not damaged:
                raise DataError(
                    f'with noise "{noise}" at rate {rate} nothing is left of {len(original)} '
                    "bytes; give a lower rate or a longer text"
                )
            rows.append(_result(noise, rate, damaged, original, evaluate_nats))
    return rows


def _result(
    noise: str,
    rate: float,
    damaged: bytes,
    original: bytes,
    evaluate_nats: Callable[[bytes], float],
) -> NoiseResult:
    nats = float(evaluate_nats(damaged))
    bits = nats / math.log(2)
    return NoiseResult(
        noise=noise,
        rate=rate,
        nats=nats,
        bytes=len(damaged),
        original_bytes=len(original),
        bits_per_byte=bits / len(damaged),
        bits_per_original_byte=bits / len(original),
    )


def _utf8(text: str | bytes) -> bytes:
    return bytes(text) if isinstance(text, bytes) else decode_bytes(encode_bytes(text))


def _characters(text: str | bytes) -> list[str]:
    """Code points; each invalid byte is a lone surrogate, which is encoded as that byte again."""
    return list(_utf8(text).decode("utf-8", "surrogateescape"))


def _case(characters: list[str], hit: np.ndarray, rng: np.random.Generator) -> list[str]:
    capital = rng.random(len(characters)) < 0.5
    return [
        (c.upper() if up else c.lower()) if changed else c
        for c, changed, up in zip(characters, hit.tolist(), capital.tolist(), strict=True)
    ]


def _drop(characters: list[str], hit: np.ndarray, rng: np.random.Generator) -> list[str]:
    return [c for c, dropped in zip(characters, hit.tolist(), strict=True) if not dropped]


def _swap(characters: list[str], hit: np.ndarray, rng: np.random.Generator) -> list[str]:
    order = np.arange(len(characters))
    place = np.arange(len(characters))
    # In a run of hits every other one begins a swap.
    run_start = np.maximum.accumulate(np.where(hit & ~np.append(False, hit)[:-1], place, 0))
    first = np.flatnonzero(hit & ((place - run_start) % 2 == 0) & (place < len(place) - 1))
    order[first], order[first + 1] = first + 1, first
    return [characters[at] for at in order.tolist()]


def _repeat(characters: list[str], hit: np.ndarray, rng: np.random.Generator) -> list[str]:
    copies = np.where(hit, rng.integers(2, _MOST_COPIES + 1, len(characters)), 1)
    return [c * many for c, many in zip(characters, copies.tolist(), strict=True)]


def _upper(characters: list[str], hit: np.ndarray, rng: np.random.Generator) -> list[str]:
    return [c.upper() if up else c for c, up in zip(characters, hit.tolist(), strict=True)]


def _spaced(characters: list[str], hit: np.ndarray, rng: np.random.Generator) -> list[str]:
    return [f"{c.upper()} " if out else c for c, out in zip(characters, hit.tolist(), strict=True)]


_CHANGES: dict[str, Callable[[list[str], np.ndarray, np.random.Generator], list[str]]] = {
    "case": _case,
    "drop": _drop,
    "swap": _swap,
    "repeat": _repeat,
    "upper": _upper,
    "spaced": _spaced,
}
