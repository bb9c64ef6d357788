"""Each kind of error does what its name says, to the rate that was asked for."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_companion.blt.noise import NOISES, RATES, Noise, corrupt, robustness
from mlx_companion.errors import ConfigError, DataError

TEXT = "Straße, Ёлка и кот; 東京の朝, e\u0301, 👩‍🚀 and so to bed.\n" * 40
LETTERS = "abcdefghijklmnopqrstuvwxyz" * 400


@settings(deadline=None)
@given(st.binary(max_size=60), st.sampled_from(NOISES), st.integers(0, 5))
def test_rate_zero_changes_nothing(data: bytes, noise: Noise, seed: int) -> None:
    assert corrupt(data, noise, 0.0, seed) == data


@settings(deadline=None)
@given(st.text(max_size=40), st.sampled_from(NOISES), st.floats(0, 1), st.integers(0, 5))
def test_text_stays_text(text: str, noise: Noise, rate: float, seed: int) -> None:
    found = corrupt(text, noise, rate, seed)
    found.decode("utf-8")
    assert found == corrupt(text.encode(), noise, rate, seed)


@settings(deadline=None)
@given(st.text(max_size=40), st.floats(0, 1), st.integers(0, 5))
def test_what_drop_and_swap_keep(text: str, rate: float, seed: int) -> None:
    rest = iter(text)
    # A subsequence: each character is found behind the one before it.
    assert all(c in rest for c in corrupt(text, "drop", rate, seed).decode())
    swapped = corrupt(text, "swap", rate, seed).decode()
    assert len(swapped) == len(text)
    at = 0
    while at < len(text):
        moved = swapped[at] != text[at]
        if moved:
            assert swapped[at : at + 2] == text[at : at + 2][::-1]
        at += 1 + moved


def test_case_is_capital_or_small_with_equal_chances() -> None:
    changed = corrupt(LETTERS, "case", 1.0, seed=3).decode()
    assert changed.lower() == LETTERS
    assert 0.47 < sum(map(str.isupper, changed)) / len(LETTERS) < 0.53
    assert corrupt("STRASSE", "case", 1.0, seed=3) != b"STRASSE"


def test_upper_and_spaced_at_full_rate() -> None:
    assert corrupt("Straße, кот", "upper", 1.0) == "STRASSE, КОТ".encode()
    assert corrupt("kot", "spaced", 1.0) == b"K O T "


def test_drop_and_repeat_have_their_rates() -> None:
    kept = len(corrupt(LETTERS, "drop", 0.1, seed=1)) / len(LETTERS)
    assert 0.88 < kept < 0.92
    # Two, three or four copies: two more on average.
    longer = len(corrupt(LETTERS, "repeat", 0.2, seed=1)) / len(LETTERS)
    assert 1.36 < longer < 1.44
    alone = corrupt("xyz", "repeat", 1.0, seed=1).decode()
    assert [alone.count(c) for c in "xyz"] == [len(run) for run in _runs(alone)]
    assert {len(run) for run in _runs(corrupt(LETTERS, "repeat", 1.0).decode())} == {2, 3, 4}


def _runs(text: str) -> list[str]:
    runs: list[str] = []
    for c in text:
        if runs and runs[-1][0] == c:
            runs[-1] += c
        else:
            runs.append(c)
    return runs


def test_swap_at_full_rate_takes_pairs() -> None:
    assert corrupt("abcdef", "swap", 1.0) == b"badcfe"
    assert corrupt("abcde", "swap", 1.0) == b"badce"


@pytest.mark.parametrize("noise", ["case", "drop", "repeat", "upper", "spaced"])
def test_a_higher_rate_adds_to_a_lower_one(noise: Noise) -> None:
    few, many = (corrupt(LETTERS, noise, rate, seed=2) for rate in (0.1, 0.3))
    if noise == "drop":
        rest = iter(few)
        assert all(c in rest for c in many)
    elif noise in ("case", "upper"):
        assert all(b == a for a, b in zip(few, many, strict=True) if a < ord("a"))
    assert few != many != LETTERS.encode()


def test_seeds_decide() -> None:
    for noise in NOISES:
        one, other = (corrupt(TEXT, noise, 0.3, seed) for seed in (1, 2))
        assert one == corrupt(TEXT, noise, 0.3, 1)
        assert one != other


def test_an_invalid_byte_is_a_character() -> None:
    assert corrupt(b"a\xffb\xe2\x82c", "upper", 1.0) == b"A\xffB\xe2\x82C"
    assert corrupt(b"\xff\xfe", "swap", 1.0) == b"\xfe\xff"


def test_robustness_counts_both_lengths() -> None:
    seen: list[bytes] = []

    def nats(data: bytes) -> float:
        seen.append(data)
        return len(data) * 3 * math.log(2)

    rows = robustness(nats, LETTERS, {"drop": (0.1, 0.2), "swap": (0.5,)}, seed=4)
    assert [(row.noise, row.rate) for row in rows] == [
        ("none", 0.0), ("drop", 0.1), ("drop", 0.2), ("swap", 0.5),
    ]  # fmt: skip
    assert seen == [
        LETTERS.encode(),
        *(corrupt(LETTERS, "drop", rate, 4) for rate in (0.1, 0.2)),
        corrupt(LETTERS, "swap", 0.5, 4),
    ]
    for row, data in zip(rows, seen, strict=True):
        assert (row.bytes, row.original_bytes) == (len(data), len(LETTERS))
        assert row.bits_per_byte == pytest.approx(3)
        assert row.bits_per_original_byte == pytest.approx(3 * len(data) / len(LETTERS))
    assert rows[1].to_dict()["noise"] == "drop"


def test_what_is_measured_by_default() -> None:
    rows = robustness(lambda data: float(len(data)), TEXT)
    assert len(rows) == 1 + sum(map(len, RATES.values()))
    assert {"case", "drop", "swap"} <= {row.noise for row in rows}


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match="noise is 'caes'; expected one of case, drop"):
        corrupt("x", "caes", 0.1)  # type: ignore[arg-type]
    for rate in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="expected a probability"):
            corrupt("x", "case", rate)
    with pytest.raises(DataError, match="the text is empty"):
        robustness(lambda data: 0.0, b"")
    with pytest.raises(DataError, match="nothing is left of 3 bytes"):
        robustness(lambda data: 0.0, "abc", {"drop": (1.0,)})
    assert corrupt("book.txt", "upper", 1.0) == b"BOOK.TXT"
