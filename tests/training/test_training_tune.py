"""Searches: they find what is there to be found, prune, go on after a kill, and refuse nonsense."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_llama

from mlx_companion.errors import ConfigError, MissingExtraError, Stopped, TrainingError
from mlx_companion.lora import LoraConfig, is_attached
from mlx_companion.models.load import LanguageModel, load
from mlx_companion.runtime.config import load_config
from mlx_companion.runtime.stop import StopSwitch
from mlx_companion.text import Message, Sample
from mlx_companion.training import TrainConfig
from mlx_companion.training.run_book import RunBook
from mlx_companion.training.settings import FinetuneConfig
from mlx_companion.training.tune import Choice, Span, Study, Trial, space_from, tune

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:sqlalchemy")
SAMPLES = [
    Sample((Message("user", f"say {i}"), Message("assistant", f"the river {i} times")))
    for i in range(16)
]
BASE = FinetuneConfig(
    LoraConfig(rank=2), TrainConfig(epochs=2, batch_tokens=128, lr=1e-3, save_every=2)
)


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return load(tiny_llama(tmp_path_factory.mktemp("model")))


def search(lm: LanguageModel, out: Path, **options: Any) -> Study:
    given = {"valid": SAMPLES[:3], "base": BASE, "pruner": "none"} | options
    return tune(lm, SAMPLES[3:], out, **given)


def test_a_grid_tries_every_combination_once_and_finds_the_best(
    lm: LanguageModel, tmp_path: Path
) -> None:
    space = {"train.lr": Choice((1e-6, 3e-3, 2e-2)), "lora.rank": Choice((1, 2))}
    seen: list[Trial] = []
    study = search(lm, tmp_path, space=space, sampler="grid", trials=50, progress=seen.append)
    tried = [(t.settings["train.lr"], t.settings["lora.rank"]) for t in study.trials]
    assert sorted(tried) == [(lr, r) for lr in (1e-6, 3e-3, 2e-2) for r in (1, 2)]
    assert seen == list(study.trials)
    # A rate that hardly moves anything cannot be the best.
    assert study.best.settings["train.lr"] > 1e-6
    values = [t.value for t in study.trials if t.value is not None]
    assert study.best.value == min(values)
    told = json.loads((tmp_path / "best.json").read_text())
    assert told["config"]["train"]["lr"] == study.best.settings["train.lr"]
    assert load_config(FinetuneConfig, overrides=told["config"]).lora.rank in (1, 2)
    result = json.loads((tmp_path / study.best.folder / "result.json").read_text())
    assert result["valid_after"] == study.best.value
    assert not is_attached(lm.model)
    assert RunBook().all() == []


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_samples_repeat_with_the_seed_and_stay_in_their_spans(
    sampler: Any, lm: LanguageModel, tmp_path: Path
) -> None:
    space = {"train.lr": Span(1e-5, 1e-2, log=True), "lora.rank": Span(1, 3)}
    base = FinetuneConfig(BASE.lora, TrainConfig(max_steps=1, batch_tokens=128))
    runs = [
        search(lm, tmp_path / str(i), space=space, sampler=sampler, trials=3, base=base, seed=seed)
        for i, seed in enumerate((1, 1, 2))
    ]
    settings = [[t.settings for t in run.trials] for run in runs]
    assert settings[0] == settings[1] != settings[2]
    for one in settings[0]:
        assert 1e-5 <= one["train.lr"] <= 1e-2
        assert one["lora.rank"] in (1, 2, 3)


def test_a_study_goes_on_where_a_stop_interrupted_it(lm: LanguageModel, tmp_path: Path) -> None:
    space = {"train.lr": Choice((1e-4, 1e-3, 1e-2))}
    straight = search(lm, tmp_path / "a", space=space, sampler="grid", trials=3)
    switch = StopSwitch(tmp_path / "stop")
    count = 0

    def stop_after_one(_: Trial) -> None:
        nonlocal count
        count += 1
        switch.request("enough")

    with pytest.raises(Stopped):
        search(
            lm, tmp_path / "b", space=space, sampler="grid", trials=3,
            stop=switch, progress=stop_after_one,
        )  # fmt: skip
    assert count == 1
    study = search(lm, tmp_path / "b", space=space, sampler="grid", trials=3)
    done = {t.settings["train.lr"]: t.value for t in study.trials if t.state == "complete"}
    assert done == {t.settings["train.lr"]: t.value for t in straight.trials}
    more = search(lm, tmp_path / "b", space=space, sampler="grid", trials=3)
    assert more == study


def test_hopeless_trials_are_pruned(lm: LanguageModel, tmp_path: Path) -> None:
    base = FinetuneConfig(BASE.lora, TrainConfig(epochs=4, batch_tokens=128, eval_every=2))
    space = {"train.lr": Choice((1e-2, 8e-3, 9e-3, 7e-3, 1e-6))}
    study = search(
        lm, tmp_path, space=space, sampler="grid", trials=5, base=base, pruner="median", seed=3
    )
    worst = next(t for t in study.trials if t.settings["train.lr"] == 1e-6)
    if worst.number < 4:  # the first ones are never pruned
        assert worst.state == "complete"
    else:
        assert worst.state == "pruned"
    assert study.best.settings["train.lr"] > 1e-3


def test_a_trial_that_diverges_fails_and_the_search_goes_on(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_companion.training import tune as module

    real = module.finetune

    def broken(*arguments: Any, **options: Any) -> Any:
        if options["lora"].rank == 2:
            raise TrainingError("loss is not finite")
        return real(*arguments, **options)

    monkeypatch.setattr(module, "finetune", broken)
    study = search(lm, tmp_path, space={"lora.rank": Choice((1, 2))}, sampler="grid", trials=4)
    assert {t.settings["lora.rank"]: t.state for t in study.trials} == {1: "complete", 2: "failed"}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"space": {}}, "nothing to search"),
        ({"space": {"train.learning_rate": Choice((1,))}}, "unknown key"),
        ({"space": {"train.lr": Span(0.1, 2.0)}}, "lr"),
        ({"space": {"lora.rank": Span(1, 4)}, "sampler": "grid"}, "grid needs choices"),
        ({"space": {"lora.rank": Span(1, 4)}, "sampler": "best"}, "sampler"),
        ({"space": {"lora.rank": Span(1, 4)}, "pruner": "all"}, "pruner"),
    ],
)
def test_searches_that_cannot_be_are_refused_before_anything_is_written(
    options: dict[str, Any], problem: str, lm: LanguageModel, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=problem):
        search(lm, tmp_path / "study", **options)
    assert not (tmp_path / "study").exists()


def test_a_folder_of_another_study_is_refused(lm: LanguageModel, tmp_path: Path) -> None:
    space = {"lora.rank": Choice((1,))}
    search(lm, tmp_path, space=space, sampler="grid", trials=1)
    other = FinetuneConfig(BASE.lora, TrainConfig(epochs=1))
    with pytest.raises(ConfigError, match="another model or of other fixed settings"):
        search(lm, tmp_path, space=space, sampler="grid", trials=1, base=other)


def test_spaces_are_read_from_files() -> None:
    got = space_from(
        {"train.lr": {"low": 1e-5, "high": 1e-3, "log": True}, "lora.rank": {"low": 2, "high": 8},
         "train.schedule": ["cosine", "linear"]}
    )  # fmt: skip
    assert got == {
        "train.lr": Span(1e-5, 1e-3, log=True),
        "lora.rank": Span(2, 8),
        "train.schedule": Choice(("cosine", "linear")),
    }
    assert isinstance(got["lora.rank"].low, int)
    for wrong in ({"a": 3}, {"a": {"low": 1}}, {"a": []}, {"a": {"low": 2, "high": 1}}):
        with pytest.raises((ConfigError, TypeError)):
            space_from(wrong)


def test_without_optuna_the_command_to_install_it_is_told(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"mlx-companion\[tune\]"):
        search(lm, tmp_path, space={"lora.rank": Choice((1,))})
