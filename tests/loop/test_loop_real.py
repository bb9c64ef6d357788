"""One small round with the real default model: sixteen prompts to learn from, sixteen to test on.

Too small to find an improvement; it must finish, answer in real sentences, and report figures
that agree with the replies that are stored.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from mlx_companion.loop import LoopConfig, ServedModel, improve
from mlx_companion.loop.gate import OBJECTIVE, SECOND_OPINION
from mlx_companion.loop.judges import normalized
from mlx_companion.loop.statistics import mcnemar_greater
from mlx_companion.personality import check, load_profile
from mlx_companion.runtime.config import load_config
from mlx_companion.store import Store

pytestmark = pytest.mark.real_model

SMALL = {
    "collect.max_prompts": 16,
    "collect.gate_items": 16,
    "generate.samples_per_prompt": 2,
    "train.epochs": 1,
    "replay.max_rows": 24,
    # Most of the time goes into replies and into reading the general texts.
    "serve.max_tokens": 40,
    "gate.scale_steps": 0,
    "gate.general_chars": 2000,
}


def test_small_real_round(real_cache: Path, tmp_path: Path) -> None:
    config = load_config(LoopConfig, overrides=SMALL)
    began = time.monotonic()
    with Store(tmp_path / "companion.db") as store:
        for prompt, reply in (
            ("How do I keep bread fresh?", "In a linen bag, away from the window."),
            ("Is it too late to sow peas?", "No, a late sort can still go in until July."),
        ):
            told = store.interactions.add(prompt, "I do not know.")
            store.feedback.add(told.id, "edit", reply)
        result = improve(config, store=store)[0]
        report = result.report
        seconds = time.monotonic() - began
        assert report["seconds"] <= seconds
        assert json.loads(result.json.read_text(encoding="utf-8"))["before"] == report["before"]
        (done,) = store.rounds.all()

        samples = store.examples.for_round(done.id, purpose="train")
        made = [example for example in samples if example.source == "generated"]
        assert len(made) == report["data"]["generated"] == 2 * report["data"]["prompts"]
        assert all(example.verdict in ("good", "bad") for example in made)
        good = [example for example in made if example.verdict == "good"]
        assert len(good) == report["data"]["accepted"]
        dropped = sum(count for _, count in report["data"]["dropped"])
        assert dropped == len(made) - len(good)
        profile = load_profile()
        assert not any(check(profile, example.response) for example in good)
        # Real sentences: mostly letters, and another one for nearly every prompt.
        letters = [sum(c.isalpha() or c.isspace() for c in e.response) for e in made]
        assert np.mean([n / len(e.response) for n, e in zip(letters, made, strict=True)]) > 0.9
        assert len({normalized(example.response) for example in made}) > len(made) / 2

        arms = {}
        for arm, label in (("before", "v0001"), ("after", f"candidate@{report['scale']:g}")):
            rows = store.examples.for_round(done.id, purpose="gate", model_version=label)
            assert len(rows) == report["items"] == 16
            passed = [
                all(row.scores[judge]["passed"] for judge in OBJECTIVE if judge in row.scores)
                for row in rows
            ]
            assert passed == [row.verdict == "good" for row in rows]
            assert report[arm] == pytest.approx(np.mean(passed))
            second = [
                all(row.scores.get(judge, {}).get("passed", False) for judge in SECOND_OPINION)
                for row in rows
            ]
            assert report[f"likelihood_{arm}"] == pytest.approx(np.mean(second))
            assert report[f"distinct_{arm}"] == len({normalized(row.response) for row in rows})
            relevance = [row.scores["relevance"]["value"] for row in rows]
            assert report[f"relevance_{arm}"] == pytest.approx(np.mean(relevance))
            arms[arm] = {row.prompt: verdict for row, verdict in zip(rows, passed, strict=True)}
        pairs = [(arms["before"][prompt], arms["after"][prompt]) for prompt in arms["before"]]
        assert report["p"] == pytest.approx(mcnemar_greater(*zip(*pairs, strict=True)))
        assert report["alpha"] == pytest.approx(0.05 * 6 / np.pi**2)
        # SmolLM2-135M reads English: a broken model is far above this.
        assert 5 < report["perplexity_before"] < 60

        versions = store.versions.all()
        assert versions[0].adapter_path is None
        assert len(versions) == (2 if report["deployed"] else 1)
        assert report["version"] == store.versions.active().id
        assert store.versions.verify(report["version"])
        companion = ServedModel.open(store, config)
        pieces = companion.stream("How do I mend a bicycle tyre?", seed=0)
        assert len("".join(pieces).split()) > 3
