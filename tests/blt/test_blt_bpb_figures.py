"""Figures of the benchmark of four models that need no model: curves, errors, aims."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blt_bpb_world import STRETCH

from benchmarks import bpb_report
from benchmarks.bpb_measure import Reading, read_training


def test_a_curve_is_of_means_over_equal_parts(tmp_path: Path) -> None:
    def line(step: int, loss: float | None) -> str:
        values = {"targets": 10 + step % 3, "seconds": 0.5, "lr": step / 1e4, "peak_mb": 7.0}
        skipped = {"loss": loss, "skipped": loss is None, "flops": 100.0 * step}
        return json.dumps({"event": "step", "step": step, **values, **skipped})

    losses: list[float | None] = [5 / step for step in range(1, 801)]
    losses[399] = None
    lines = [line(step, loss) for step, loss in enumerate(losses, 1)]
    lines.insert(100, '{"event": "eval", "step": 100, "loss": 9.9}')
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"event": "st')
    found = read_training(tmp_path, bytes_per_target=4.0, spent=1000.0)
    assert found is not None
    assert (found.steps, found.skipped, found.flops) == (800, 1, 81000.0)
    assert (found.seconds, found.peak_lr) == (400.0, 0.08)
    assert len(found.curve) == 80
    # Part 40 is steps 400 to 409, the first of them skipped.
    weights = [10 + step % 3 for step in range(401, 410)]
    bits = np.average([5 / step / math.log(2) / 4 for step in range(401, 410)], weights=weights)
    assert found.curve[40][1] == pytest.approx(bits, abs=1e-5)
    assert read_training(tmp_path / "nothing") is None


def reading(stretches: list[float], size: int) -> Reading:
    return Reading(sum(stretches), size, {1: size}, stretches, 0.0)


def test_standard_error_of_a_difference() -> None:
    # Over 300 bytes each, the second and third 1 bit per byte apart; the last stretch is cut.
    bit = STRETCH * math.log(2)
    a = reading([5 * bit, 3 * bit, 2 * bit, 99.0], 3 * STRETCH + 7)
    b = reading([4 * bit, 3 * bit, 3 * bit, 1.0], 3 * STRETCH + 7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpb_report, "STRETCH", STRETCH)
        # Differences of 1, 0 and -1: deviation 1, over the square root of 3.
        assert bpb_report.standard_error(a, b) == pytest.approx(3**-0.5)
        assert bpb_report.standard_error(reading([1.0], 300), reading([2.0], 300)) is None


@pytest.mark.parametrize(
    ("bits", "share", "flat", "patch", "flops", "expected"),
    [
        (0.0, 0.6, -0.02, 4.5, 2e14, [True] * 5),
        (0.001, 0.601, -0.019, 4.49, 1.99e14, [False] * 5),
        (-0.1, 0.7, 0.3, 9.0, 3e14, [True, False, False, True, True]),
    ],
)
def test_aims(
    bits: float, share: float, flat: float, patch: float, flops: float, expected: list[bool]
) -> None:
    def beside(difference: float) -> dict[str, Any]:
        row = {"bits_difference": difference, "standard_error": 0.01, "flops_share": share}
        return {"blt-entropy": row}

    model = {"training": {"flops": flops}, "position_bytes": {"mean": patch}}
    found = bpb_report.aims(
        {
            "models": {"blt-entropy": model},
            "missing": {},
            "against_token": beside(bits),
            "against_flat": beside(flat),
        }
    )
    assert [row["met"] for row in found] == expected
