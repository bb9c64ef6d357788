"""Trackers: callbacks that note a run where it can be looked at later.

"local" is the book of runs on this machine (`run_book`); the others are programs that a person has
installed and asks for, and nothing is sent anywhere unless they do so::

    finetune("smollm2-135m", "chats.jsonl", "runs/chats", track=("local", "mlflow"))

A tracker that fails does not end the run, except for want of space: what it watches is worth more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from mlx_companion.errors import ConfigError, DiskFullError, MissingExtraError
from mlx_companion.runtime.config import nearest
from mlx_companion.runtime.logs import get_logger
from mlx_companion.training.callbacks import Callback
from mlx_companion.training.run_book import FINISHED, STOPPED, Reading, RunBook, run_id
from mlx_companion.training.state import RunInfo, SaveInfo, StepInfo, TrainSummary

# From the fields of a step and of an evaluation to the names of series.
STEP = {
    "loss": "loss",
    "lr": "lr",
    "norm": "gradient_norm",
    "targets": "targets",
    "seconds": "seconds",
    "peak_mb": "peak_mb",
}
EVAL = {"loss": "valid_loss"}
_SECONDS_BETWEEN_NOTES = 2.0
_log = get_logger(__name__)


class Tracker(Callback):
    """Gathers readings and passes them on every few seconds.

    Args:
        folder: the run's.
        run_hash: its identity.
        settings: nested settings ("lora", "train").
        about: what else `run.json` holds.
    """

    def __init__(
        self,
        folder: str | Path,
        run_hash: str,
        settings: Mapping[str, Any],
        about: Mapping[str, Any],
    ) -> None:
        self.folder = Path(folder)
        self.id = run_id(folder, run_hash)
        self.settings, self.about = settings, about
        self._readings: list[Reading] = []
        self._step = 0
        self._next = 0.0
        self._ended = self._begun = False

    def begin(self, run: RunInfo) -> None:
        """The run starts or goes on."""

    def write(self, readings: list[Reading], step: int) -> None:
        """Readings (name, step, value) up to `step`."""

    def end(self, status: str, summary: Mapping[str, Any] | None) -> None:
        """The run ended: "finished" with a summary, or "stopped"."""

    def on_start(self, run: RunInfo) -> None:
        """Begin."""
        self._step, self._begun = run.step, True
        self._guarded(self.begin, run)

    def on_step(self, step: StepInfo) -> None:
        """Note a step."""
        values = asdict(step)
        self._step = step.step
        self._readings += [(new, step.step, values[old]) for old, new in STEP.items()]
        self._flush()

    def on_eval(self, step: int, loss: float) -> None:
        """Note an evaluation."""
        self._readings.append((EVAL["loss"], step, loss))
        self._flush()

    def on_save(self, save: SaveInfo) -> None:
        """Write what was noted: a resumed run goes on from here."""
        self._flush(now=True)

    def on_end(self, summary: TrainSummary) -> None:
        """Write the rest and the summary."""
        self._flush(now=True)
        self._ended = True
        self._guarded(self.end, FINISHED, asdict(summary))

    def on_close(self) -> None:
        """A run that did not end was stopped, or failed."""
        if self._begun and not self._ended:
            self._flush(now=True)
            self._guarded(self.end, STOPPED, None)

    def _flush(self, now: bool = False) -> None:
        if not self._readings or (not now and time.monotonic() < self._next):
            return
        self._next = time.monotonic() + _SECONDS_BETWEEN_NOTES
        readings, self._readings = self._readings, []
        self._guarded(self.write, readings, self._step)

    def _guarded(self, action: Callable[..., None], *arguments: Any) -> None:
        try:
            action(*arguments)
        except DiskFullError:
            raise
        except Exception as error:
            _log.warning("tracking failed", extra={"by": type(self).__name__, "why": str(error)})


class LocalTracker(Tracker):
    """Into the book of runs on this machine."""

    def begin(self, run: RunInfo) -> None:
        """An entry, or the one there is."""
        self.book = RunBook()
        self.book.begin(
            self.id,
            self.folder,
            step=run.step,
            total_steps=run.total_steps,
            settings=self.settings,
            about=self.about,
        )

    def write(self, readings: list[Reading], step: int) -> None:
        """Into the book."""
        self.book.note(self.id, readings, step)

    def end(self, status: str, summary: Mapping[str, Any] | None) -> None:
        """Into the book."""
        self.book.end(self.id, status, summary)


class MlflowTracker(Tracker):
    """To MLflow, where its own settings (`MLFLOW_TRACKING_URI`) say; a folder by default."""

    def begin(self, run: RunInfo) -> None:
        """A run of MLflow's, named after the folder."""
        self.mlflow = import_module("mlflow")
        tags = {"run_id": self.id, "resumed_from_step": str(run.step)}
        self.mlflow.start_run(run_name=self.folder.name, tags=tags)
        # Values have a limit there.
        self.mlflow.log_params({k: str(v)[:500] for k, v in flattened(self.settings).items()})

    def write(self, readings: list[Reading], step: int) -> None:
        """Metrics of each step together."""
        for at, values in by_step(readings).items():
            self.mlflow.log_metrics(values, step=at)

    def end(self, status: str, summary: Mapping[str, Any] | None) -> None:
        """Close it."""
        figures = {k: v for k, v in (summary or {}).items() if _is_number(v)}
        self.mlflow.log_metrics({f"final_{name}": value for name, value in figures.items()})
        self.mlflow.end_run("FINISHED" if status == FINISHED else "KILLED")


class WandbTracker(Tracker):
    """To Weights & Biases, or to trackio, which has the same functions.

    Args:
        module: "wandb" or "trackio".
        arguments: as for `Tracker`.
    """

    def __init__(self, module: str, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.module = import_module(module)

    def begin(self, run: RunInfo) -> None:
        """A run of theirs in the project "mlx-companion"."""
        self.module.init(
            project="mlx-companion", name=self.folder.name, config=flattened(self.settings)
        )

    def write(self, readings: list[Reading], step: int) -> None:
        """Metrics of each step together."""
        for at, values in by_step(readings).items():
            self.module.log(values, step=at)

    def end(self, status: str, summary: Mapping[str, Any] | None) -> None:
        """Close it."""
        self.module.finish()


# Programs that a person may ask for, each with the module to import.
MODULES = {"mlflow": "mlflow", "wandb": "wandb", "trackio": "trackio"}
NAMES = ("local", *MODULES)


def trackers_for(
    names: Iterable[str],
    folder: str | Path,
    run_hash: str,
    settings: Mapping[str, Any],
    about: Mapping[str, Any],
) -> list[Tracker]:
    """The trackers that were asked for.

    Args:
        names: of "local", "mlflow", "wandb" and "trackio".
        folder, run_hash, settings, about: see `Tracker`.

    Raises:
        ConfigError: there is no tracker of such a name.
        MissingExtraError: its program is not installed.
    """
    return [_tracker(name, folder, run_hash, settings, about) for name in dict.fromkeys(names)]


def _tracker(name: str, *arguments: Any) -> Tracker:
    if name not in NAMES:
        raise ConfigError(f"there is no tracker '{name}'{nearest(name, NAMES)}")
    if name == "local":
        return LocalTracker(*arguments)
    try:
        import_module(MODULES[name])
    except ImportError as error:
        raise MissingExtraError(MODULES[name], name) from error
    return MlflowTracker(*arguments) if name == "mlflow" else WandbTracker(name, *arguments)


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def by_step(readings: Iterable[Reading]) -> dict[int, dict[str, float]]:
    """Readings that are numbers, gathered by step."""
    steps: dict[int, dict[str, float]] = {}
    for name, step, value in readings:
        if value is not None:
            steps.setdefault(step, {})[name] = value
    return steps


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
