"""Training of the drift monitor's pack, small: it is repeatable, and what it writes works."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_companion.errors import ConfigError, DataError
from mlx_companion.slm import drift_train_heads
from mlx_companion.slm.attachment import readable
from mlx_companion.slm.drift import DriftMonitor
from mlx_companion.slm.drift_layouts import LAYOUTS, laid_out
from mlx_companion.slm.drift_train import DriftTraining, train_drift
from mlx_companion.slm.drift_train_heads import WRITTEN, HeadTraining, head_rows
from mlx_companion.slm.drift_train_style import StyleTraining, read_replies, train_style
from mlx_companion.slm.network import NetworkConfig
from mlx_companion.slm.written import written

SMALL = DriftTraining(
    heads=HeadTraining(
        readings=1, every_reply=60, network=NetworkConfig(members=1, hidden=8, epochs=2)
    ),
    style=StyleTraining(voices=12, replies=24, pairs=30, dimensions=4),
)


class _Backbone:
    identity = "lengths"

    def features(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([[len(text), text.count("you")] for text in texts], dtype=np.float32)


def test_a_small_pack_works_and_is_repeatable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift_train_heads, "_STEPS", 20)
    monkeypatch.setattr(drift_train_heads, "_FOLDS", 2)
    models: Any = {"backbone": _Backbone(), "encoder": _Backbone()}
    pack = train_drift(tmp_path / "a", SMALL, **models)
    assert pack.settings["encoder"] == "lengths"
    assert pack.arrays["user.network.into"].shape == (4, 8)
    again = train_style(SMALL.style)
    assert again.judge.to_settings() == pack.settings["style"]
    assert (again.metric.to_arrays()["style.turn"] == pack.arrays["style.turn"]).all()
    assert pack.metrics["user"]["full"]["accuracy_on_unseen_lines"] > 0.6
    assert "GoEmotions" in (tmp_path / "a" / "README.md").read_text("utf-8")
    monitor = DriftMonitor(pack=pack, backbone=False)
    assert monitor.process({"text": "You're my only friend in this world."}).user_attachment > 0.4


def test_variants_of_a_line_share_a_fold_and_labels_weigh_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(drift_train_heads, "_written", lambda name, first: iter(()))
    rows = head_rows("user", HeadTraining(readings=3, every_reply=60), ["a comment"] * 9)
    assert len(rows.texts) == len(rows.labels) == len(rows.lines) == len(rows.weights)
    assert rows.written == len(rows.texts) - 9
    for line in np.unique(rows.lines[: rows.written]):
        assert len(set(rows.labels[rows.lines == line])) == 1
    first = slice(0, rows.written)
    sums = [rows.weights[first][rows.labels[first] == label].sum() for label in (0, 1)]
    assert sums[0] == pytest.approx(sums[1])


@pytest.mark.parametrize("name", ["user", "assistant", "boundary", "hostile"])
def test_written_neighbours_share_a_fold(name: str) -> None:
    rows = head_rows(name, HeadTraining(readings=1, every_reply=60))
    line = dict(zip(rows.texts, rows.lines.tolist(), strict=True))
    heads = ("user",) if name == "user" else ("assistant", "boundary")
    files = [file for head in heads for file in WRITTEN[head]]
    numbers: set[int] = set()
    for file in files:
        pairs: dict[int, set[int]] = {}
        for one in written(file):
            if readable(one.text) in line:
                pairs.setdefault(one.pair, set()).add(line[readable(one.text)])
        assert all(len(found) == 1 for found in pairs.values())
        assert len(pairs) > 50
        found = set.union(*pairs.values())
        assert not numbers & found
        numbers |= found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_says_what_the_reply_says(layout: str) -> None:
    reply = "Wash the rice. Boil the water. Wait for ten minutes. Then stir."
    told = laid_out(reply, layout, random.Random(1))
    assert told == laid_out(reply, layout, random.Random(1))
    assert told != reply
    assert "Wash the rice." in told.replace("**", "")
    for text in ("Yes.", "", "no end mark"):
        assert text.strip(".") in laid_out(text, layout, random.Random(1)).replace("**", "")


def test_replies_of_the_package_have_voices_and_topics() -> None:
    replies = read_replies()
    assert len(replies) > 500
    assert len({one.voice for one in replies}) >= 8
    assert len({one.topic for one in replies}) == 12


def test_wrong_settings_and_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="readings"):
        HeadTraining(readings=0)
    with pytest.raises(ConfigError, match="too few comparisons"):
        train_style(StyleTraining(voices=2, replies=4, pairs=2))
    with pytest.raises(DataError, match="goemotions"):
        train_drift(tmp_path / "x", SMALL, backbone=_Backbone(), data=tmp_path)  # type: ignore[arg-type]
