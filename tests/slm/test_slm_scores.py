"""Figures of heads: against counts done by hand, and the picture."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from mlx_companion.slm.scores import (
    binary_scores,
    calibration_error,
    reliability,
    reliability_svg,
    surest_rows,
)

_P = np.array([0.95, 0.9, 0.6, 0.4, 0.2, 0.05, 0.55, 0.45])
_Y = np.array([1, 1, 0, 0, 0, 1, 1, 0])


def test_shares_are_counts() -> None:
    scores = binary_scores(_P, _Y)
    assert scores.rows == 8
    assert scores.positive == 0.5
    # Wrong: 0.6 for a 0, and 0.05 for a 1.
    assert scores.accuracy == 6 / 8
    assert scores.recall == 3 / 4
    assert scores.precision == 3 / 4
    assert scores.false_positive_rate == 1 / 4


def test_the_surest_rows_lie_farthest_from_a_half() -> None:
    assert set(surest_rows(_P, 0.5)) == {0, 1, 4, 5}
    scores = binary_scores(_P, _Y, surest=0.5)
    assert scores.surest_accuracy == 3 / 4
    assert scores.surest_false_positive_rate == 0


def test_rows_of_one_label_leave_gaps_and_not_errors() -> None:
    scores = binary_scores(np.array([0.2, 0.7]), np.array([1, 1]))
    assert math.isnan(scores.false_positive_rate)
    assert scores.to_dict()["false_positive_rate"] is None


def test_intervals_cover_the_truth() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 400)
    right = rng.random(400) < 0.8
    p = np.where((y == 1) == right, 0.8, 0.2)
    low, high = binary_scores(p, y).accuracy_range
    assert low < right.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.16 / 400), rel=0.25)


def test_calibrated_probabilities_have_a_small_error() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(20_000)
    y = (rng.random(20_000) < p).astype(int)
    assert calibration_error(p, y) < 0.015
    # Said surer than it is.
    assert calibration_error(np.where(p > 0.5, 0.99, 0.01), y) > 0.2


def test_groups_have_equally_many_rows() -> None:
    points = reliability(np.linspace(0.01, 0.99, 103), np.ones(103))
    assert len(points) == 10
    assert {point.rows for point in points} <= {10, 11}
    confidences = [point.confidence for point in points]
    assert confidences == sorted(confidences)


def test_the_picture_is_xml_with_a_mark_for_each_group() -> None:
    root = ET.fromstring(reliability_svg(np.linspace(0.01, 0.99, 50), np.ones(50), "Research"))
    assert len(root.findall("{http://www.w3.org/2000/svg}circle")) == 10
