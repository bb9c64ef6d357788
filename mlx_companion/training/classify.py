"""Training a text classifier from a file, and using it: an adapter and a head over one model.

    result = train_classifier("smollm2-135m", "train.jsonl", "runs/intents", valid="val.jsonl")
    classifier = load_tuned(result.folder)
    classifier.predict(["book me a flight to rome"])[0].label

The output folder belongs to one run, which goes on where it was interrupted:

    run.json, metrics.jsonl, checkpoints/    as of `finetune`
    classifier/                              the result: `adapter/`, the head, and its model's name
    result.json                              written last
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mlx_companion.errors import CheckpointError, DataError
from mlx_companion.lora import LoraConfig, attach, detach
from mlx_companion.models.classifier import Classifier, ClassifierConfig, read_classifier
from mlx_companion.models.load import LanguageModel, load
from mlx_companion.runtime.config import to_dict
from mlx_companion.runtime.device import environment
from mlx_companion.runtime.files import atomic_write_json
from mlx_companion.runtime.monitor import ResourceMonitor
from mlx_companion.runtime.seeds import seed_everything
from mlx_companion.runtime.stop import NEVER, StopSwitch
from mlx_companion.text.labelled_records import Labelled, read_labelled
from mlx_companion.training.callbacks import Callback, MetricsLog
from mlx_companion.training.classifier_files import RESULT_FOLDER, load_tuned, save_tuned
from mlx_companion.training.classifier_loss import ClassifierLoss, labelled_rows
from mlx_companion.training.classifier_scores import Scores, score
from mlx_companion.training.config import TrainConfig
from mlx_companion.training.distributed import Ranks, join
from mlx_companion.training.joint_runs import joint_run, share_adapter, shared_result, watching
from mlx_companion.training.progress import RichProgress
from mlx_companion.training.run_folder import CHECKPOINTS, METRICS, RESULT, RUN, run_hash
from mlx_companion.training.tracking import trackers_for
from mlx_companion.training.trainer import Trainer

LabelledData = str | Path | Labelled


def classifier_settings() -> TrainConfig:
    """Settings that suit short texts and a new head: its learning rate is above the adapter's."""
    return TrainConfig(
        epochs=3,
        batch_tokens=640,
        max_rows=48,
        lr=6e-4,
        lr_ratios={"head.*": 4.0},
        warmup_ratio=0.06,
        final_lr_ratio=0.02,
        save_every=200,
    )


@dataclass(frozen=True)
class ClassifyConfig:
    """Settings of a run, for a YAML file and for command lines.

    Args:
        lora: the adapter's shape.
        train: how it is trained.
        pooling, layer, template, max_tokens, dropout, odds: see `ClassifierConfig`.
        label_smoothing: share of the target that is spread over all labels.
    """

    lora: LoraConfig = field(default_factory=lambda: LoraConfig(rank=16, alpha=32.0))
    train: TrainConfig = field(default_factory=classifier_settings)
    pooling: str = "mean"
    layer: int | None = None
    template: str = "{text}"
    max_tokens: int = 256
    dropout: float = 0.1
    odds: dict[str, float] = field(default_factory=dict)
    label_smoothing: float = 0.05


@dataclass(frozen=True)
class ClassifyResult:
    """What training gave.

    Attributes:
        folder: of the classifier, for `load_tuned`.
        labels: how many.
        steps, seconds: of the run.
        valid: how well it does on the held-out texts; None without them.
        run_hash: identifies model, data and settings.
    """

    folder: Path
    labels: int
    steps: int
    seconds: float
    valid: Scores | None
    run_hash: str


def train_classifier(
    model: str | Path | LanguageModel,
    data: LabelledData,
    out: str | Path,
    *,
    valid: LabelledData | None = None,
    config: ClassifyConfig | None = None,
    resume: bool = True,
    stop: StopSwitch = NEVER,
    monitor: ResourceMonitor | None = None,
    callbacks: Iterable[Callback] = (),
    progress: bool = True,
    track: Iterable[str] = ("local",),
) -> ClassifyResult:
    """Train an adapter and a head.

    Args:
        model: as for `finetune`; a loaded one carries the new adapter afterwards.
        data: labelled texts, or a file of them (`text.labelled_records`).
        out: the run's folder.
        valid: held-out ones; the weights with the lowest loss on them are kept.
        config: settings.
        resume: go on where an interrupted run was; False starts over.
        stop, monitor, callbacks, progress, track: as for `finetune`.

    Raises:
        DataError: malformed data, or a held-out label that no training text has.
        CheckpointError: `out` holds another run.
        Stopped, DiskFullError, TrainingError: as for `finetune`.
    """
    config, out, ranks = config or ClassifyConfig(), Path(out), join()
    train, held_out = _labelled(data), None if valid is None else _labelled(valid)
    lm = model if isinstance(model, LanguageModel) else load(model)
    detach(lm.model)
    seed_everything(config.train.seed)
    attach(lm.model, config.lora, seed=config.train.seed)
    try:
        classifier = Classifier(lm, _shape(train, config))
        run = _Run(out, classifier, lm, config, train, held_out, ranks)
        with joint_run(ranks, nullcontext):
            return run.train(resume, stop, monitor, callbacks, progress, track)
    except BaseException:
        detach(lm.model)
        raise


class _Run:
    """One run and its folder."""

    def __init__(
        self,
        out: Path,
        classifier: Classifier,
        lm: LanguageModel,
        config: ClassifyConfig,
        train: Labelled,
        valid: Labelled | None,
        ranks: Ranks,
    ) -> None:
        self.ranks = ranks
        self.out, self.classifier, self.lm, self.config = out, classifier, lm, config
        self.data, self.valid = train, valid
        settings = {name: v for name, v in to_dict(config).items() if name not in ("lora", "train")}
        self.data_sha256 = _digest(train, valid, settings)
        self.hash = run_hash(lm.base_sha256, self.data_sha256, config.lora, config.train)

    def train(
        self,
        resume: bool,
        stop: StopSwitch,
        monitor: ResourceMonitor | None,
        callbacks: Iterable[Callback],
        progress: bool,
        track: Iterable[str],
    ) -> ClassifyResult:
        finished = self.finished() if resume else None
        if finished is not None:
            return finished
        about = self.about()
        noting = watching(self.ranks, lambda: self.watching(about, track, progress))
        trainer = Trainer(
            self.classifier,
            self.rows(self.data),
            valid=None if self.valid is None else self.rows(self.valid),
            loss=ClassifierLoss(label_smoothing=self.config.label_smoothing),
            config=self.config.train,
            callbacks=[*noting, *callbacks],
            monitor=monitor,
            stop=stop,
            checkpoints=self.out / CHECKPOINTS,
            run_hash=self.hash,
            ranks=self.ranks,
        )
        self.ranks.on_first(lambda: atomic_write_json(self.out / RUN, about), "write run.json")
        summary = trainer.run(resume=resume)
        result = self.ranks.on_first(
            lambda: self.write(summary.steps, summary.seconds, stop), "write the classifier"
        )
        shared = self.shared(result)
        assert shared is not None
        return shared

    def watching(
        self, about: dict[str, Any], track: Iterable[str], progress: bool
    ) -> list[Callback]:
        self.out.mkdir(parents=True, exist_ok=True)
        settings = {"lora": about["lora"], "train": about["train"]}
        return [
            MetricsLog(self.out / METRICS),
            *trackers_for(track, self.out, self.hash, settings, about),
            *([RichProgress(unit="nats per text")] if progress else []),
        ]

    def shared(self, result: ClassifyResult | None) -> ClassifyResult | None:
        """Rank 0's result on every rank."""
        found = shared_result(self.ranks, ClassifyResult, result)
        if found is None or not isinstance(found.valid, dict):
            return found
        return replace(found, valid=Scores(**found.valid))

    def rows(self, data: Labelled) -> Any:
        train = self.config.train
        return labelled_rows(
            self.classifier,
            data.texts,
            data.labels,
            batch_tokens=train.batch_tokens,
            max_rows=train.max_rows,
            pad_to=train.pad_to or 1,
            seed=train.seed,
        )

    def write(self, steps: int, seconds: float, stop: StopSwitch) -> ClassifyResult:
        """Score the classifier and write it."""
        scores = None if self.valid is None else score(self.classifier, self.valid, stop)
        folder = self.out / RESULT_FOLDER
        told = None if scores is None else asdict(scores)
        save_tuned(folder, self.classifier, {"run_hash": self.hash, "valid": told})
        labels = len(self.classifier.config.labels)
        result = ClassifyResult(folder, labels, steps, seconds, scores, self.hash)
        atomic_write_json(self.out / RESULT, asdict(result) | {"folder": RESULT_FOLDER})
        return result

    def finished(self) -> ClassifyResult | None:
        """The result of this run, if it is finished; the model then carries its adapter.

        Raises:
            CheckpointError: the folder holds the result of another run.
        """
        found = self.shared(self.ranks.on_first(self._finished, "use the result that is there"))
        if found is not None:
            share_adapter(self.ranks, self.lm.model, self.config.lora)
        return found

    def _finished(self) -> ClassifyResult | None:
        try:
            values = json.loads((self.out / RESULT).read_text(encoding="utf-8"))
            scores = values["valid"] and Scores(**values["valid"])
            result = ClassifyResult(
                **{**values, "folder": self.out / RESULT_FOLDER, "valid": scores}
            )
            read_classifier(result.folder)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if result.run_hash != self.hash:
            raise CheckpointError(
                f"{self.out} holds the result of another run: its model, data or settings are not "
                "those given; choose another output folder, or start over with resume=False"
            )
        load_tuned(result.folder, self.lm)
        return result

    def about(self) -> dict[str, Any]:
        return {
            "run_hash": self.hash,
            "model": self.lm.source,
            "base_sha256": self.lm.base_sha256,
            "data_sha256": self.data_sha256,
            **to_dict(self.config),
            "data": {"texts": len(self.data.texts), "labels": len(set(self.data.labels))},
            "environment": environment(),
        }


def _labelled(data: LabelledData) -> Labelled:
    return data if isinstance(data, Labelled) else read_labelled(data)


def _shape(data: Labelled, config: ClassifyConfig) -> ClassifierConfig:
    labels = sorted(set(data.labels))
    if len(labels) < 2:
        raise DataError(f"all {len(data.texts)} texts have the label '{labels[0]}'; give others")
    return ClassifierConfig(
        tuple(labels),
        pooling=config.pooling,  # type: ignore[arg-type]
        layer=config.layer,
        template=config.template,
        max_tokens=config.max_tokens,
        dropout=config.dropout,
        odds=config.odds,
    )


def _digest(*parts: Any) -> str:
    def plain(part: Any) -> Sequence[Any]:
        return [part.texts, part.labels] if isinstance(part, Labelled) else part

    text = json.dumps([plain(part) for part in parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
