"""`tune` and `classify`: learning from a person's files; see `cli` for the conventions."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from mlx_companion.cli_parts import (
    ClearStop,
    ConfigFile,
    DataDir,
    Seed,
    Set,
    given,
    make_console,
    option,
    path_or_share,
    read_settings,
)
from mlx_companion.errors import ConfigError

if TYPE_CHECKING:
    from mlx_companion.models.classifier import Classifier
    from mlx_companion.training.tune import Trial


def tune(
    data: Annotated[Path, option("PATH", "File or folder of txt, jsonl, json or csv.", "--data")],
    space: Annotated[Path, option("FILE", "YAML: for each setting a list, or low, high, log.")],
    model: Annotated[str | None, option("NAME", "Alias, hub id, folder or GGUF file.")] = None,
    valid: Annotated[str, option("PATH|SHARE", "Held-out data, or a share of --data.")] = "0.1",
    out: Annotated[Path | None, option("FOLDER", "The study's folder (studies/NAME).")] = None,
    trials: Annotated[int | None, option("N", "Trials in all.")] = None,
    sampler: Annotated[str | None, option("NAME", "tpe, random or grid.")] = None,
    pruner: Annotated[str | None, option("NAME", "median, hyperband or none.")] = None,
    seed: Seed = None,
    config: ConfigFile = None,
    set_: Set = None,
    clear_stop: ClearStop = False,
    data_dir: DataDir = None,
) -> None:
    """Search good settings for fine-tuning on your file; an interrupted search goes on.

    The file of --space has lines like `train.lr: {low: 1e-5, high: 1e-3, log: true}` and
    `lora.rank: [4, 8, 16]`. The last line printed is the best settings as JSON.
    """
    from mlx_companion.cli_parts import print_json
    from mlx_companion.loop.switch import long_work
    from mlx_companion.models import DEFAULT_MODEL
    from mlx_companion.training.settings import FinetuneConfig
    from mlx_companion.training.tune import space_from
    from mlx_companion.training.tune import tune as search

    settings = read_settings(FinetuneConfig, config, set_)
    with long_work(clear_stop=clear_stop, say=partial(typer.echo, err=True)) as switch:
        study = search(
            model or DEFAULT_MODEL,
            data,
            out or Path("studies") / data.resolve().stem,
            space=space_from(_read_mapping(space)),
            valid=cast("str | float", path_or_share(valid)),
            base=settings,
            stop=switch,
            progress=_say,
            **given(trials=trials, sampler=sampler, pruner=pruner, seed=seed),
        )
    print_json({"value": study.best.value, **study.best.settings})


def _say(trial: Trial) -> None:
    value = "" if trial.value is None else f"{trial.value:.4f} nats per token"
    tried = ", ".join(f"{name} {setting:.3g}" if isinstance(setting, float) else f"{name} {setting}"
                      for name, setting in trial.settings.items())  # fmt: skip
    make_console(stderr=True).print(f"trial {trial.number}: {trial.state} {value}  {tried}")


def _read_mapping(path: Path) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected key: value lines, got a {type(values).__name__}")
    return values


def classify(
    classifier: Annotated[
        str, typer.Argument(help="A trained classifier's folder, its run's, or intents.")
    ],
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; none with --jsonl.")] = None,
    jsonl: Annotated[Path | None, option("FILE", "Texts in rows, labels where known.")] = None,
    model: Annotated[str | None, option("NAME", "The model, where it is not found.")] = None,
    top: Annotated[int, option("N", "Labels to show of each text.")] = 1,
    data_dir: DataDir = None,
) -> None:
    """Label texts, one JSON line each; with known labels, say how many are right.

    `intents` comes with the package: 150 things that people ask of an assistant, or none of them.
    Rows hold "text" and perhaps "label"; "query" and "intent" mean the same.
    """
    from mlx_companion.models import load
    from mlx_companion.training.classifier_files import load_tuned

    if (jsonl is None) == (not texts):
        raise ConfigError("give texts, or a file of them with --jsonl, and not both")
    with make_console(stderr=True).status("loading the model"):
        lm = None if model is None else load(model)
        found = load_tuned(classifier, lm)
    _classify(found, jsonl, texts or [], top)


def _classify(classifier: Classifier, jsonl: Path | None, texts: list[str], top: int) -> None:
    from mlx_companion.cli_parts import print_json
    from mlx_companion.text.labelled_records import read_texts

    labels: list[str | None] = [None] * len(texts)
    if jsonl is not None:
        texts, labels = read_texts(jsonl)
    found = classifier.predict(texts)
    for text, label, prediction in zip(texts, labels, found, strict=True):
        order = prediction.probabilities.argsort()[::-1][:top]
        best = [(classifier.config.labels[i], float(prediction.probabilities[i])) for i in order]
        shown: dict[str, Any] = {
            "text": text,
            "label": best[0][0],
            "probability": round(best[0][1], 4),
        }
        if top > 1:
            shown["labels"] = {name: round(share, 4) for name, share in best}
        print_json(shown | ({} if label is None else {"expected": label}))
    right = [p.label == label for p, label in zip(found, labels, strict=True) if label is not None]
    if right:
        told = f"{sum(right):,} of {len(right):,} right ({sum(right) / len(right):.2%})"
        make_console(stderr=True).print(told)
