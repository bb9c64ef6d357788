"""Intent classification, by a head over the model or by letting it write the intent's name.

    python recipes/classify_intents.py --data train.jsonl --valid val.jsonl --out runs/intents
    python recipes/classify_intents.py --data train.jsonl --valid val.jsonl --by generation \\
        --out runs/written
    python recipes/classify_intents.py --smoke --by generation
    mlx-companion classify runs/intents "set a timer for ten minutes"

Data: rows of {"text", "intent"}, or "query" and "label", in jsonl, json or csv; texts that are for
no intent have the label "oos" (another with `--outside`). A head costs one forward pass and gives a
probability for every intent; writing costs as many steps as the name has tokens, needs no new
parameters beyond the adapter, and can be asked for a label that is new.

Settings are those of `ClassifyConfig` by a head, and of `FinetuneConfig` by generation.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import mlx_companion as mc
from mlx_companion.models import DEFAULT_MODEL, LanguageModel
from mlx_companion.models.tiny import tiny_model
from mlx_companion.runtime.files import atomic_write_json, atomic_write_text
from mlx_companion.runtime.monitor import ResourceMonitor
from mlx_companion.runtime.script import needed, script_options, script_settings, script_work
from mlx_companion.text import Message, Sample
from mlx_companion.text.labelled_records import Labelled, read_labelled
from mlx_companion.training.classifier_files import load_tuned
from mlx_companion.training.classify import ClassifyConfig, train_classifier
from mlx_companion.training.scope_scores import match_label, scope_scores
from mlx_companion.training.settings import FinetuneConfig, load_for

SMOKE_DATA = Path(__file__).parent.parent / "examples" / "data"
SMOKE = {"train.max_steps": 3, "train.batch_tokens": 512, "lora.rank": 4}
ASK = "What is the intent of this message? Answer with its name only.\n\n{text}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, label the held-out texts, and report."""
    options = _options().parse_args(arguments)
    with script_work(options.out) as stop:
        data = _some(needed(options, "data", SMOKE_DATA / "intents.jsonl"), options.per_intent)
        held_out = needed(options, "valid", SMOKE_DATA / "intents-valid.jsonl")
        valid = _some(held_out, options.valid_per_intent)
        tiny = options.smoke and options.model is None
        model = tiny_model(options.out / "tiny") if tiny else options.model or DEFAULT_MODEL
        by = _by_head if options.by == "head" else _by_generation
        given = by(options, str(model), data, valid, stop)
    scores = scope_scores(valid.labels, given, outside=options.outside)
    rows = zip(valid.texts, valid.labels, given, strict=True)
    lines = [json.dumps({"text": t, "intent": i, "given": g}) + "\n" for t, i, g in rows]
    atomic_write_text(options.out / "predictions.jsonl", "".join(lines))
    atomic_write_json(options.out / "report.json", scores.to_json() | {"by": options.by})
    print(
        f"by {options.by}, {len(set(data.labels))} intents, {len(data.texts):,} texts\n{scores}\n"
        f"predictions            {options.out / 'predictions.jsonl'}\n"
        f"report                 {options.out / 'report.json'}"
    )


def _by_head(
    options: argparse.Namespace, model: str, data: Labelled, valid: Labelled, stop: mc.StopSwitch
) -> list[str | None]:
    config = script_settings(ClassifyConfig, options, SMOKE)
    lm = load_for(model, config.train)
    result = train_classifier(lm, data, options.out, valid=valid, config=config, stop=stop)
    print(f"classifier             {result.folder}, {result.steps} steps, {result.seconds:.0f} s")
    return [
        found.label for found in load_tuned(result.folder, lm).predict(valid.texts, switch=stop)
    ]


def _by_generation(
    options: argparse.Namespace, model: str, data: Labelled, valid: Labelled, stop: mc.StopSwitch
) -> list[str | None]:
    settings = script_settings(FinetuneConfig, options, SMOKE)
    lm = load_for(model, settings.train)
    result = mc.finetune(
        lm,
        _samples(data),
        options.out,
        lora=settings.lora,
        train=settings.train,
        valid=_samples(valid),
        stop=stop,
        monitor=ResourceMonitor(settings.limits),
    )
    print(f"adapter                {result.adapter}, {result.steps} steps, {result.seconds:.0f} s")
    labels = sorted(set(data.labels))
    longest = _longest(lm, labels)
    asked = [ASK.format(text=text) for text in valid.texts]
    replies = mc.batch_generate(lm, asked, max_tokens=longest, switch=stop)
    return [match_label(reply.text, labels) for reply in replies]


def _samples(data: Labelled) -> list[Sample]:
    return [
        Sample((Message("user", ASK.format(text=text)), Message("assistant", label)))
        for text, label in zip(data.texts, data.labels, strict=True)
    ]


def _longest(lm: LanguageModel, labels: Sequence[str]) -> int:
    """Tokens that the longest name and its end may take."""
    return 1 + max(len(lm.tokenizer.encode(label)) for label in labels)


def _some(path: Path, most: int | None) -> Labelled:
    """The texts of a file, or the first few of every intent."""
    data, seen = read_labelled(path), Counter[str]()
    if most is None:
        return data
    kept = Labelled([], [])
    for text, label in zip(*data, strict=True):
        seen[label] += 1
        if seen[label] <= most:
            kept.texts.append(text)
            kept.labels.append(label)
    return kept


def _options() -> argparse.ArgumentParser:
    parser = script_options(__doc__, out="runs/intents")
    parser.add_argument("--by", choices=["head", "generation"], default="head")
    parser.add_argument("--model", help=f"alias, hub id, folder or GGUF file ({DEFAULT_MODEL})")
    parser.add_argument("--data", type=Path, help="labelled texts: jsonl, json or csv")
    parser.add_argument("--valid", type=Path, help="held-out ones")
    parser.add_argument("--outside", default="oos", help="label of texts out of scope (oos)")
    parser.add_argument("--per-intent", type=int, help="train on the first so many of each")
    parser.add_argument("--valid-per-intent", type=int, help="test on the first so many of each")
    return parser


if __name__ == "__main__":
    main()
