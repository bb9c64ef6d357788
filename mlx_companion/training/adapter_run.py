"""An adapter trained with any loss on any rows, in a folder that a killed run goes on from.

`finetune` reads files of replies. This is the same for what else can be trained on: preferences,
a teacher's logits, rollouts:

    result = train_adapter(lm, rows, "runs/dpo", loss=PreferenceLoss("dpo"), data_sha256=digest)

The folder is that of `finetune`: run.json, metrics.jsonl, loss.jsonl (the loss's own figures),
checkpoints/, adapter/, and result.json, written last.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mlx_companion.errors import AdapterError, CheckpointError
from mlx_companion.lora import LoraConfig, attach, detach, load_adapter, save_adapter
from mlx_companion.models.load import LanguageModel
from mlx_companion.runtime.config import to_dict
from mlx_companion.runtime.device import environment
from mlx_companion.runtime.files import atomic_write_json
from mlx_companion.runtime.logs import get_logger
from mlx_companion.runtime.monitor import ResourceMonitor
from mlx_companion.runtime.stop import NEVER, StopSwitch
from mlx_companion.training.callbacks import Callback, MetricsLog
from mlx_companion.training.config import TrainConfig
from mlx_companion.training.distributed import Ranks, join
from mlx_companion.training.joint_runs import joint_run, share_adapter, shared_result, watching
from mlx_companion.training.loss_metrics import LossMetricsLog
from mlx_companion.training.losses import Loss
from mlx_companion.training.progress import RichProgress
from mlx_companion.training.run_folder import (
    ADAPTER,
    CHECKPOINTS,
    METRICS,
    RESULT,
    RUN,
    held,
    run_hash,
)
from mlx_companion.training.state import TrainSummary
from mlx_companion.training.tracking import trackers_for
from mlx_companion.training.trainer import Trainer

LOSS_METRICS = "loss.jsonl"
_log = get_logger(__name__)


@dataclass(frozen=True)
class TrainResult(TrainSummary):
    """What a run gave; see `TrainSummary` for the figures.

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


def train_adapter(
    lm: LanguageModel,
    rows: Any,
    out: str | Path,
    *,
    loss: Loss | None,
    data_sha256: str,
    lora: LoraConfig | None = None,
    train: TrainConfig | None = None,
    valid: Any = None,
    about: Mapping[str, Any] | None = None,
    resume: bool = True,
    stop: StopSwitch = NEVER,
    monitor: ResourceMonitor | None = None,
    callbacks: Iterable[Callback] = (),
    progress: bool = True,
    track: Iterable[str] = ("local",),
    restore: bool = True,
) -> TrainResult:
    """Train an adapter, or go on with one.

    Args:
        lm: the base model; adapters on it are taken off, and it carries the new one afterwards.
        rows: a row source (`text.sources`), such as `PreferenceRows`.
        out: the run's folder.
        loss: what is minimized, cross-entropy of the targets if None; `metrics` of it, if it has
            any, go into loss.jsonl.
        data_sha256: identifies the rows and all that the loss was made with (`digest_of`).
        lora, train: the adapter's shape, and how it is trained.
        valid: held-out rows; the weights with the lowest loss on them are kept.
        about: JSON values that say what was trained on, for run.json and the result.
        resume, stop, monitor, callbacks, progress, track: as for `finetune`.
        restore: see `Trainer`; of fully sharded models.

    Raises:
        as `finetune`.
    """
    lora, train, out = lora or LoraConfig(), train or TrainConfig(), Path(out)
    ranks = join()
    run = _Run(lm, out, lora, train, data_sha256, dict(about or {}), ranks)
    with joint_run(ranks, lambda: held(out)):
        finished = run.finished() if resume else None
        if finished is not None:
            return finished
        noting = watching(ranks, lambda: run.watching(loss, track, progress))
        detach(lm.model)
        attach(lm.model, lora, seed=train.seed)
        try:
            trainer = Trainer(
                lm.model,
                rows,
                valid=valid,
                loss=loss,
                config=train,
                callbacks=[*noting, *callbacks],
                monitor=monitor,
                stop=stop,
                checkpoints=out / CHECKPOINTS,
                run_hash=run.hash,
                ranks=ranks,
                restore=restore,
            )
            ranks.on_first(lambda: run.prepare(resume, trainer), "prepare the folder")
            return run.write(trainer.run())
        except BaseException:
            detach(lm.model)
            raise


def digest_of(*parts: Any) -> str:
    """SHA-256 of JSON values, of dataclasses, and of lists of them."""

    def plain(value: Any) -> Any:
        return asdict(value) if hasattr(value, "__dataclass_fields__") else str(value)

    text = json.dumps(parts, sort_keys=True, default=plain)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class _Run:
    """One run and its folder."""

    lm: LanguageModel
    out: Path
    lora: LoraConfig
    train: TrainConfig
    data_sha256: str
    about: dict[str, Any]
    ranks: Ranks

    @property
    def hash(self) -> str:
        return run_hash(self.lm.base_sha256, self.data_sha256, self.lora, self.train)

    def described(self) -> dict[str, Any]:
        return {
            "run_hash": self.hash,
            "model": self.lm.source,
            "base_sha256": self.lm.base_sha256,
            "data_sha256": self.data_sha256,
            "lora": to_dict(self.lora),
            "train": to_dict(self.train),
            "data": self.about,
            "environment": environment(),
        }

    def trackers(self, names: Iterable[str]) -> list[Any]:
        about = self.described()
        settings = {name: about.pop(name) for name in ("lora", "train")}
        return trackers_for(names, self.out, self.hash, settings, about)

    def prepare(self, resume: bool, trainer: Trainer) -> None:
        """Clear the folder if the run starts over, and say what it is if it has not begun."""
        if not resume and trainer.folder is not None:
            trainer.folder.clear()
            for name in (RESULT, METRICS):
                (self.out / name).unlink(missing_ok=True)
            shutil.rmtree(self.out / ADAPTER, ignore_errors=True)
        begun = trainer.folder is not None and bool(trainer.folder.steps())
        if not ((self.out / RUN).exists() and begun):
            atomic_write_json(self.out / RUN, self.described())

    def watching(self, loss: Loss | None, track: Iterable[str], progress: bool) -> list[Callback]:
        """What writes and shows."""
        found: list[Callback] = [MetricsLog(self.out / METRICS), *self.trackers(track)]
        figures = getattr(loss, "metrics", None)
        if figures is not None:
            found.append(LossMetricsLog(figures, self.out / LOSS_METRICS))
        return found + ([RichProgress()] if progress else [])

    def finished(self) -> TrainResult | None:
        """The result of this run, if it is finished and sound."""
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

    def write(self, summary: TrainSummary) -> TrainResult:
        """Write the adapter and the result, on rank 0; every rank gets the result."""
        result = self.ranks.on_first(lambda: self._write(summary), "write the adapter")
        shared = shared_result(self.ranks, TrainResult, result)
        assert shared is not None
        return shared

    def _write(self, summary: TrainSummary) -> TrainResult:
        extra = {"run_hash": self.hash, "steps": summary.steps, "train_loss": summary.train_loss}
        sha256 = save_adapter(
            self.out / ADAPTER, self.lm.model, self.lora, self.lm.base_sha256, extra
        )
        result = TrainResult(
            **asdict(summary),
            adapter=self.out / ADAPTER,
            adapter_sha256=sha256,
            base_sha256=self.lm.base_sha256,
            run_hash=self.hash,
            data=self.about,
        )
        # The folder may be moved as a whole, so no path goes into it.
        atomic_write_json(self.out / RESULT, asdict(result) | {"adapter": ADAPTER})
        return result


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
