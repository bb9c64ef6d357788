"""Fine-tuning from end to end: a model and a data file in, an adapter folder out.

    result = finetune("smollm2-135m", "chats.jsonl", "runs/chats", valid=0.1)

The output folder belongs to one run:

    run.json         settings, versions, machine, hashes of model and data
    metrics.jsonl    one line per step and evaluation
    checkpoints/     see `checkpoint`; what an interrupted run goes on from
    adapter/         the result, for `lora.load_adapter`
    result.json      written last: the run is finished

Started again with the same arguments, after Ctrl-C, a `kill -9` or a power cut, it goes on from
the last checkpoint; a finished run returns its result. Other arguments are refused, unless
`resume=False` says to start over.

Started by `mlx.launch` (`training.distributed`), all ranks train the one adapter; rank 0 writes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_companion.errors import AdapterError, CheckpointError, TrainingError
from mlx_companion.lora import LoraConfig, attach, detach, load_adapter, save_adapter
from mlx_companion.models.load import LanguageModel, load
from mlx_companion.runtime.config import to_dict
from mlx_companion.runtime.device import environment
from mlx_companion.runtime.files import atomic_write_json
from mlx_companion.runtime.logs import get_logger
from mlx_companion.runtime.monitor import ResourceMonitor
from mlx_companion.runtime.stop import NEVER, StopSwitch
from mlx_companion.training.callbacks import Callback, MetricsLog
from mlx_companion.training.config import TrainConfig
from mlx_companion.training.data import Data, TrainingData, check_packing, prepare_data
from mlx_companion.training.distributed import Ranks, join
from mlx_companion.training.joint_runs import joint_run, share_adapter, shared_result, watching
from mlx_companion.training.losses import Loss
from mlx_companion.training.progress import RichProgress
from mlx_companion.training.state import TrainSummary
from mlx_companion.training.tracking import Tracker, trackers_for
from mlx_companion.training.trainer import Trainer

ADAPTER = "adapter"
CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
RESULT = "result.json"
RUN = "run.json"

# Settings that say when to write, or who holds what; not what to compute.
_NOT_IDENTITY = {"save_every", "keep_last", "sharding", "stream"}
_COMPILED_PAD = 32
_log = get_logger(__name__)


@dataclass(frozen=True)
class TrainResult(TrainSummary):
    """What fine-tuning gave; see `TrainSummary` for the figures.

    Attributes:
        adapter: the adapter's folder.
        adapter_sha256: hash of its weights file.
        base_sha256: hash of the model it was trained on.
        run_hash: identifies model, data and settings.
        data: the data report, as JSON values.
        finished_before: the run was finished already; nothing was trained now.
    """

    adapter: Path
    adapter_sha256: str
    base_sha256: str
    run_hash: str
    data: dict[str, Any]
    finished_before: bool = False


def finetune(
    model: str | Path | LanguageModel,
    data: Data,
    out: str | Path,
    *,
    lora: LoraConfig | None = None,
    train: TrainConfig | None = None,
    valid: Data | float | None = None,
    loss: Loss | None = None,
    resume: bool = True,
    stop: StopSwitch = NEVER,
    monitor: ResourceMonitor | None = None,
    callbacks: Iterable[Callback] = (),
    progress: bool = True,
    track: Iterable[str] = ("local",),
) -> TrainResult:
    """Train an adapter.

    Args:
        model: what `models.load` takes, or a loaded model. A loaded model is used as it is, any
            adapter on it is taken off first, and it carries the new one afterwards.
        data: a file or folder in one of the forms of `text.records`, or samples.
        out: the run's folder.
        lora: the adapter's shape.
        train: settings of the run.
        valid: held-out data, or the share of `data` to hold out; without it the last weights are
            the result.
        loss: see `losses.Loss`; default: cross-entropy of the assistant's tokens.
        resume: go on where an interrupted run in `out` was; False starts over.
        stop: kill switch; the run ends after a checkpoint.
        monitor: battery, memory and CPU ceilings, looked at between steps.
        callbacks: more to watch the run with, on every rank.
        progress: show the data report and a live line on standard error.
        track: where the run is noted, see `training.tracking`: "local" (the book that
            `mlx-companion runs` shows), "mlflow", "wandb", "trackio".

    Returns:
        The result; also in `out/result.json`.

    Raises:
        ModelError: the model cannot be loaded.
        ConfigError: settings that do not go together, such as packing with a loss over pairs.
        DataError: a data file is malformed or nothing is left of it.
        AdapterError: no layer of the model matches the adapter's targets.
        CheckpointError: `out` holds another run.
        TrainingError: another process is training into `out`, or the loss is not finite.
        DiskFullError: no space; the last checkpoint is intact.
        MissingExtraError: a tracker was asked for that is not installed.
        Stopped: the kill switch was thrown.
    """
    lora, train = lora or LoraConfig(), train or TrainConfig()
    check_packing(train, loss)
    # First of all: the ranks look for each other for half a minute only.
    ranks = join()
    lm = model if isinstance(model, LanguageModel) else _load(model, train, ranks)
    pad_to = train.pad_to or (_COMPILED_PAD if train.compile else 1)
    prepared = prepare_data(data, valid, lm.tokenizer, train, pad_to, lm.model)
    # A model that nobody has asked for afterwards need not come together again.
    run = _Run(Path(out), lm, lora, train, prepared, ranks, restore=lm is model)
    shown = RichProgress() if progress and ranks.first else None
    if shown is not None:
        shown.console.print(str(prepared.report), highlight=False)
    with joint_run(ranks, lambda: _alone(run.out)):
        finished = run.finished() if resume else None
        if finished is not None:
            if shown is not None:
                shown.console.print(f"The run in {run.out} is finished already.", highlight=False)
            return finished
        noting = watching(ranks, lambda: [MetricsLog(run.out / METRICS), *run.trackers(track)])
        watchers = [*noting, *callbacks, *([shown] if shown else [])]
        return run.train(resume, loss=loss, callbacks=watchers, monitor=monitor, stop=stop)


class _Run:
    """One run and its folder."""

    def __init__(
        self,
        out: Path,
        lm: LanguageModel,
        lora: LoraConfig,
        train: TrainConfig,
        data: TrainingData,
        ranks: Ranks,
        restore: bool,
    ) -> None:
        self.ranks, self.restore = ranks, restore
        self.out, self.lm, self.lora, self.config, self.data = out, lm, lora, train, data
        self.hash = run_hash(lm.base_sha256, data.sha256, lora, train)

    def trackers(self, names: Iterable[str]) -> list[Tracker]:
        """What notes this run elsewhere."""
        about = self._about()
        settings = {name: about.pop(name) for name in ("lora", "train")}
        return trackers_for(names, self.out, self.hash, settings, about)

    def finished(self) -> TrainResult | None:
        """The result of the run if it is finished and sound; the model then carries its adapter.

        Raises:
            CheckpointError: the folder holds the result of another run.
        """
        found = self.ranks.on_first(self._finished, "use the result that is there")
        found = shared_result(self.ranks, TrainResult, found)
        if found is not None:
            share_adapter(self.ranks, self.lm.model, self.lora)
        return found

    def _finished(self) -> TrainResult | None:
        result = read_result(self.out)
        if result is None:
            return None
        if result.run_hash != self.hash:
            raise CheckpointError(
                f"{self.out} holds the result of another run: its model, data or settings "
                f"({result.run_hash[:12]}) are not those given ({self.hash[:12]}); choose another "
                "output folder, or start over in this one with resume=False"
            )
        try:
            load_adapter(result.adapter, self.lm.model, self.lm.base_sha256, result.adapter_sha256)
        except AdapterError as error:
            _log.warning("adapter is damaged, made again", extra={"damage": str(error)})
            return None
        return result

    def train(
        self,
        resume: bool,
        *,
        loss: Loss | None,
        callbacks: Iterable[Callback],
        monitor: ResourceMonitor | None,
        stop: StopSwitch,
    ) -> TrainResult:
        """Train from the start or from the last checkpoint, and write the result."""
        model = self.lm.model
        detach(model)
        attach(model, self.lora, seed=self.config.seed)
        try:
            trainer = Trainer(
                model,
                self.data.train,
                valid=self.data.valid,
                loss=loss,
                config=self.config,
                callbacks=callbacks,
                monitor=monitor,
                stop=stop,
                checkpoints=self.out / CHECKPOINTS,
                run_hash=self.hash,
                ranks=self.ranks,
                restore=self.restore,
            )
            self.ranks.on_first(lambda: self._prepare_folder(resume, trainer), "clear the folder")
            summary = trainer.run()
            result = self.ranks.on_first(lambda: self._write(summary), "write the adapter")
            return self._shared(result)
        except BaseException:
            detach(model)
            raise

    def _shared(self, result: TrainResult | None) -> TrainResult:
        shared = shared_result(self.ranks, TrainResult, result)
        assert shared is not None
        return shared

    def _prepare_folder(self, resume: bool, trainer: Trainer) -> None:
        if not resume and trainer.folder is not None:
            trainer.folder.clear()
            for name in (RESULT, METRICS):
                (self.out / name).unlink(missing_ok=True)
            shutil.rmtree(self.out / ADAPTER, ignore_errors=True)
        if not (self.out / RUN).exists() or trainer.folder is None or not trainer.folder.steps():
            atomic_write_json(self.out / RUN, self._about())

    def _about(self) -> dict[str, Any]:
        return {
            "run_hash": self.hash,
            "model": self.lm.source,
            "base_sha256": self.lm.base_sha256,
            "data_sha256": self.data.sha256,
            "lora": to_dict(self.lora),
            "train": to_dict(self.config),
            "data": self.data.report.to_json(),
            "environment": environment(),
        }

    def _write(self, summary: TrainSummary) -> TrainResult:
        folder = self.out / ADAPTER
        extra = {"run_hash": self.hash, "steps": summary.steps, "train_loss": summary.train_loss}
        sha256 = save_adapter(folder, self.lm.model, self.lora, self.lm.base_sha256, extra)
        result = TrainResult(
            **asdict(summary),
            adapter=folder,
            adapter_sha256=sha256,
            base_sha256=self.lm.base_sha256,
            run_hash=self.hash,
            data=self.data.report.to_json(),
        )
        # The folder may be moved as a whole, so no path goes into it.
        atomic_write_json(self.out / RESULT, asdict(result) | {"adapter": ADAPTER})
        return result


def run_hash(base_sha256: str, data_sha256: str, lora: LoraConfig, train: TrainConfig) -> str:
    """SHA-256 over model, data and settings: equal ones make the same adapter."""
    settings = {k: v for k, v in to_dict(train).items() if k not in _NOT_IDENTITY}
    parts = [base_sha256, data_sha256, to_dict(lora), settings]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read_result(out: str | Path) -> TrainResult | None:
    """The result of a finished run; None when there is none or it cannot be read."""
    path = Path(out) / RESULT
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        values |= {"adapter": Path(out) / values["adapter"], "finished_before": True}
        return TrainResult(**{field.name: values[field.name] for field in fields(TrainResult)})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _log.warning("result is damaged, made again", extra={"path": str(path), "why": str(error)})
        return None


def _load(model: str | Path, config: TrainConfig, ranks: Ranks) -> LanguageModel:
    # Read as it is cut up: shards are smaller than what they are cut from.
    lazy = config.sharding == "full" and not ranks.alone
    return load(model, dtype=_dtype(config), lazy=lazy)


def _dtype(config: TrainConfig) -> mx.Dtype | None:
    return None if config.dtype == "auto" else getattr(mx, config.dtype)


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keep a second process from training into the same folder."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise TrainingError(
                f"another process is training into {out}; wait for it or choose another folder"
            ) from error
        yield
