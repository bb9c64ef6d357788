"""Patch rules against their plain-Python definitions, and against transformers' patcher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from blt_rules import (
    SCRIPTS,
    batches,
    configs,
    document_starts,
    is_space_like,
    row_patching,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_companion.blt.config import PATCH_MODES, PatchConfig
from mlx_companion.blt.patchers import (
    make_patching,
    patching_from_bytes,
    patching_from_entropies,
    space_like,
)
from mlx_companion.blt.patching import Patching
from mlx_companion.errors import ConfigError, DataError
from mlx_companion.text.byte_text import BOS, OFFSET, encode_bytes

FIXTURE = Path(__file__).parent.parent / "fixtures" / "blt_patch_lengths.npz"
CAUSAL = [mode for mode in PATCH_MODES if mode != "topk"]


def patched(*arguments: Any, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """`opens` and `closes` of `make_patching` as NumPy arrays."""
    patching = make_patching(*arguments, **options)
    return np.array(patching.opens), np.array(patching.closes)


def pieces(text: str, config: PatchConfig) -> list[bytes]:
    """The patches of a text as bytes, [BOS] left out."""
    ids = encode_bytes(text)
    starts = np.flatnonzero(patched(ids[None], config)[0][0])
    raw = [bytes((piece - OFFSET).astype(np.uint8)) for piece in np.split(ids, starts[2:])]
    return [raw[0][1:], *raw[1:]] if len(ids) > 1 else []


@given(batches(), configs())
@settings(max_examples=300, deadline=None)
def test_rows_are_divided_as_defined(batch: Any, config: PatchConfig) -> None:
    ids, entropies, documents, _ = batch
    opens, closes = patched(ids, config, entropies, documents)
    for row in range(len(ids)):
        expected = row_patching(
            ids[row].tolist(), entropies[row].tolist(), config, documents[row].tolist()
        )
        assert opens[row].tolist() == expected[0]
        assert closes[row].tolist() == expected[1]


@given(batches(), configs(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_padding_changes_nothing_and_reads_only_itself(
    batch: Any, config: PatchConfig, packed: bool
) -> None:
    ids, entropies, documents, lengths = batch
    numbers = documents if packed else None
    garbage = entropies.copy()
    garbage[np.arange(ids.shape[1]) >= lengths[:, None]] = np.nan
    patching = make_patching(ids, config, garbage, numbers, lengths)
    opens, closes = np.array(patching.opens), np.array(patching.closes)
    owners, sources = np.array(patching.patch_ids), np.array(patching.source)
    for row, n in enumerate(lengths):
        alone = patched(
            ids[row : row + 1, :n],
            config,
            entropies[row : row + 1, :n],
            None if numbers is None else numbers[row : row + 1, :n],
        )
        assert opens[row, :n].tolist() == alone[0][0].tolist()
        assert closes[row, :n].tolist() == alone[1][0].tolist()
        assert opens[row, n : n + 1].all()
        assert (sources[row, n:] == owners[row, n:]).all()
        if config.max_length is None:
            assert not opens[row, n + 1 :].any()
    assert (sources >= 0).all()


@given(batches(), configs(CAUSAL), st.integers(0, 39))
@settings(max_examples=150, deadline=None)
def test_a_prefix_is_divided_like_the_whole(batch: Any, config: PatchConfig, cut: int) -> None:
    ids, entropies, documents, _ = batch
    opens, closes = patched(ids, config, entropies, documents)
    n = min(cut, ids.shape[1])
    prefix = patched(ids[:, :n], config, entropies[:, :n], documents[:, :n])
    assert (opens[:, :n] == prefix[0]).all()
    # The last byte of a document closes by what would come, in the text by what does come.
    assert (closes[:, :n] == prefix[1]).all()


@given(batches(), configs())
@settings(max_examples=100, deadline=None)
def test_closing_is_the_next_opening(batch: Any, config: PatchConfig) -> None:
    ids, entropies, documents, _ = batch
    opens, closes = patched(ids, config, entropies, documents)
    inside = documents[:, 1:] == documents[:, :-1]
    assert (closes[:, :-1] == opens[:, 1:])[inside].all()
    assert opens[:, 1:][~inside].all()
    begins = np.append(np.ones((len(ids), 1), dtype=bool), ~inside, axis=1)
    assert closes[begins].all()
    if config.max_length is not None:
        for row in opens:
            assert np.diff(np.append(np.flatnonzero(row), len(row))).max() <= config.max_length


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("max_length", [None, 3])
def test_space_patches_of_scripts(script: str, max_length: int | None) -> None:
    ids = encode_bytes(SCRIPTS[script])
    config = PatchConfig(mode="space", max_length=max_length)
    opens, closes = patched(ids[None], config)
    expected = document_starts(ids.tolist(), [0.0] * len(ids), config)
    assert opens[0].tolist() == expected[:-1]
    assert closes[0].tolist() == expected[1:]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat sat.", [b"a ", b"cat ", b"sat."]),
        ("a,  b", [b"a,", b"  b"]),
        (" a b", [b" a ", b"b"]),
        # A first byte of several ends the patch before it, unless a space already did.
        ("né à", [b"n\xc3", b"\xa9 ", b"\xc3\xa0"]),
        ("да", [b"\xd0\xb4\xd0", b"\xb0"]),
        ("中文", [b"\xe4\xb8\xad\xe6", b"\x96\x87"]),
        ("", []),
    ],
)
def test_space_patches_by_hand(text: str, expected: list[bytes]) -> None:
    assert pieces(text, PatchConfig(mode="space")) == expected


def test_every_byte_is_space_like_or_not() -> None:
    ids = np.arange(-1, 300)
    assert space_like(ids[:261]).tolist() == [is_space_like(int(id_)) for id_ in ids[:261]]
    assert space_like(b"\xc3"[0] + OFFSET)
    assert not space_like(b"\xa9"[0] + OFFSET)


@pytest.mark.parametrize("config", [PatchConfig(mode="static", size=4), PatchConfig(mode="byte")])
def test_fixed_patches_by_hand(config: PatchConfig) -> None:
    expected = (
        [b"abcd", b"efgh", b"i"] if config.mode == "static" else list(map(bytes, zip(b"abcdefghi")))
    )
    assert pieces("abcdefghi", config) == expected


@pytest.mark.parametrize("mode", ["entropy", "monotonic", "combined"])
@pytest.mark.parametrize("length", [1, 2, 3, 50])
def test_thresholds_that_never_and_always_fire(mode: str, length: int) -> None:
    entropies = np.random.default_rng(0).random((1, length), dtype=np.float32)
    forced = 2 if mode == "entropy" else 3
    never = PatchConfig(mode=mode, threshold=1e9, rise_threshold=1e9)
    always = PatchConfig(mode=mode, threshold=-1e9, rise_threshold=-1e9)
    opens, closes = patched(np.zeros((1, length)), never, entropies)
    assert opens[0].tolist() == [t < forced for t in range(length)]
    assert closes[0, -1] == (length < forced)
    opens, _ = patched(np.zeros((1, length)), always, entropies)
    # With every position a hit, the first one (position 2) suppresses all others.
    assert opens.sum() == (min(length, 3) if mode == "combined" else length)


def test_highest_entropies_start_patches() -> None:
    entropies = np.float32([[9, 1, 5, 2, 5, 3, 0, 5, 4, 1, 2, 1]])
    config = PatchConfig(mode="topk", size=3)
    opens, closes = patched(np.zeros((1, 12)), config, entropies)
    # 12 // 3 - 2 = 2: the earlier two of three fives, at positions 2 and 4.
    assert np.flatnonzero(opens[0]).tolist() == [0, 1, 3, 5]
    assert np.flatnonzero(closes[0]).tolist() == [0, 2, 4]
    entropies[0, -1] = 8
    assert patched(np.zeros((1, 12)), config, entropies)[1][0, -1]


def test_the_released_rule_in_transformers() -> None:
    stored = np.load(FIXTURE)
    numbers = sorted(int(name[7:]) for name in stored.files if name.startswith("lengths"))
    for number in numbers:
        check_lengths(
            stored[f"entropies{number}"], stored[f"threshold{number}"], stored[f"lengths{number}"]
        )
    assert len(numbers) == 30


def test_stored_lengths_are_what_transformers_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(FIXTURE.parent))
    from build_blt_patch_lengths import cases, patch_lengths

    stored = np.load(FIXTURE)
    for number, (entropies, threshold) in enumerate(cases()):
        lengths = patch_lengths(entropies, threshold)
        assert lengths.tolist() == stored[f"lengths{number}"].tolist()
        check_lengths(entropies, threshold, lengths)


def check_lengths(entropies: np.ndarray, threshold: Any, lengths: np.ndarray) -> None:
    """Ours against transformers'; a last patch of 0 bytes is one that the unseen byte opens."""
    config = PatchConfig(threshold=float(threshold))
    patching = patching_from_entropies(entropies[None], config)
    starts = np.cumsum(lengths) - lengths
    expected = np.isin(np.arange(len(entropies) + 1), starts)
    assert np.array(patching.opens)[0].tolist() == expected[:-1].tolist()
    assert np.array(patching.closes)[0].tolist() == expected[1:].tolist()


@pytest.mark.parametrize("mode", PATCH_MODES)
def test_nothing_and_one_byte(mode: str) -> None:
    config = PatchConfig(mode=mode, rise_threshold=0.1)
    empty = make_patching(np.zeros((2, 0)), config, np.zeros((2, 0)))
    assert empty.opens.shape == empty.closes.shape == (2, 0)
    one = make_patching(np.array([[BOS]]), config, np.ones((1, 1)))
    assert one.opens.tolist() == one.closes.tolist() == [[True]]
    assert one.source.tolist() == [[0]]


def test_kinds_of_arrays_are_alike() -> None:
    rng = np.random.default_rng(3)
    entropies = rng.choice(np.float32([0.25, 1.5, 3.0]), (2, 20))
    documents = np.cumsum(rng.random((2, 20)) < 0.2, axis=1)
    config = PatchConfig(threshold=1.0)
    ours = patched(np.zeros((2, 20)), config, entropies, documents, [20, 7])
    for dtype in (mx.float32, mx.bfloat16, mx.float16):
        other = patched(
            mx.zeros((2, 20), dtype=mx.int32),
            config,
            mx.array(entropies).astype(dtype),
            mx.array(documents),
            mx.array([20, 7]),
        )
        assert all((a == b).all() for a, b in zip(ours, other, strict=True))


def test_a_large_text_is_divided_at_once() -> None:
    ids = encode_bytes("Schöne neue Welt. " * 60_000)[None]
    patching = make_patching(ids, PatchConfig(mode="space"))
    assert isinstance(patching, Patching)
    # [BOS], then "Sch\xc3" "\xb6ne " "neue " "Welt." (later " Sch\xc3"), and the last space.
    assert patching.count == 1 + 4 * 60_000 + 1


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ConfigError, match='"entropy" needs the entropies'):
        make_patching(np.zeros((1, 3)), PatchConfig())
    with pytest.raises(ConfigError, match="goes by bytes"):
        patching_from_entropies(np.zeros((1, 3)), PatchConfig(mode="byte"))
    with pytest.raises(ConfigError, match="needs entropies"):
        patching_from_bytes(np.zeros((1, 3)), PatchConfig())
    with pytest.raises(ConfigError, match=r"shape \(3,\); expected \(rows, bytes\)"):
        make_patching(np.zeros(3), PatchConfig(mode="byte"))
    with pytest.raises(ConfigError, match=r"documents are \(1, 2\)"):
        make_patching(np.zeros((1, 3)), PatchConfig(mode="byte"), documents=np.zeros((1, 2)))
    for lengths in ([4], [-1], [1, 1]):
        with pytest.raises(ConfigError, match="expected 1 numbers from 0 to 3"):
            make_patching(np.zeros((1, 3)), PatchConfig(mode="byte"), lengths=lengths)
    with pytest.raises(DataError, match="not numbers"):
        make_patching(np.zeros((1, 3)), PatchConfig(), np.float32([[0, np.nan, 1]]))
