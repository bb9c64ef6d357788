"""Entropies against NumPy's double precision."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_companion.blt.entropy import entropies_of_hidden, entropy
from mlx_companion.kernels.byte_entropy import ByteEntropy, byte_entropy


def exact(logits: np.ndarray) -> np.ndarray:
    """-sum p ln p with p written out."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    p = shifted / shifted.sum(axis=-1, keepdims=True)
    return -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(axis=-1)


@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0, 4.0, 15.0, 100.0])
def test_exact_to_a_hundred_thousandth(scale: float) -> None:
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(3, 11, 260)) * scale + rng.normal() * 50).astype(np.float32)
    ours = np.array(entropy(mx.array(logits)))
    assert ours.shape == (3, 11)
    assert np.abs(ours - exact(logits)).max() < 1e-5


def test_certain_and_even_predictions() -> None:
    logits = np.full((3, 260), -np.inf, dtype=np.float32)
    logits[:, 65] = 3.0
    logits[1, 66] = 3.0
    logits[2] = 7.0
    ours = np.array(entropy(mx.array(logits)))
    assert np.allclose(ours, [0.0, np.log(2), np.log(260)], atol=1e-5)
    assert (ours >= 0).all()


def test_half_precision_counts_as_what_it_holds() -> None:
    logits = mx.random.normal((2, 5, 260), key=mx.random.key(1)).astype(mx.bfloat16)
    ours = entropy(logits)
    assert ours.dtype == mx.float32
    assert np.abs(np.array(ours) - exact(np.array(logits.astype(mx.float32)))).max() < 1e-5


def test_a_head_is_applied_in_pieces() -> None:
    head = nn.Linear(16, 260)
    hidden = mx.random.normal((2, 50, 16), key=mx.random.key(2))
    seen: list[int] = []

    def counted(piece: mx.array) -> mx.array:
        seen.append(piece.shape[0])
        return head(piece)

    ours = entropies_of_hidden(hidden, counted, chunk=32)
    assert seen == [32, 32, 32, 4]
    assert np.abs(np.array(ours) - exact(np.array(head(hidden)))).max() < 2e-5


def test_memory_does_not_grow_with_the_text() -> None:
    head = nn.Linear(8, 260)
    mx.eval(head.parameters())
    peaks = []
    for length in (8_192, 65_536):
        hidden = mx.zeros((1, length, 8))
        mx.eval(hidden)
        found = []
        # The least of several: work that is queued faster than it is done holds more at once.
        for _ in range(5):
            before = mx.get_active_memory()
            mx.reset_peak_memory()
            mx.eval(entropies_of_hidden(hidden, head, chunk=1024))
            found.append(mx.get_peak_memory() - before)
        peaks.append(min(found))
    # All logits of the longer text would take 68 MB, all intermediate arrays several times that.
    assert peaks[1] < 1.5 * peaks[0] < 30e6


def test_nothing_has_no_entropies() -> None:
    assert entropy(mx.zeros((2, 0, 260))).shape == (2, 0)
    assert entropies_of_hidden(mx.zeros((2, 0, 8)), nn.Linear(8, 260)).shape == (2, 0)


@pytest.mark.parametrize("chunk", [1, 7, 4096])
def test_pieces_change_nothing_but_rounding(chunk: int) -> None:
    head = nn.Linear(16, 260)
    hidden = mx.random.normal((3, 11, 16), key=mx.random.key(3)) * 4
    pieces = np.array(entropies_of_hidden(hidden, head, chunk))
    assert np.abs(pieces - exact(np.array(head(hidden)))).max() < 2e-5


def test_the_op_computes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []

    def recorded(logits: mx.array) -> ByteEntropy:
        seen.append(logits.shape)
        return byte_entropy(logits, impl="reference")

    monkeypatch.setattr("mlx_companion.blt.entropy.byte_entropy", recorded)
    entropies_of_hidden(mx.zeros((2, 3, 8)), nn.Linear(8, 260), chunk=4)
    assert seen == [(4, 260), (2, 260)]
