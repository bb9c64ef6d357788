"""Search for good settings: many fine-tuning runs, each told from the last ones, with Optuna.

    study = tune("smollm2-135m", "chats.jsonl", "studies/chats", valid=0.1, trials=20,
                 space={"train.lr": Span(1e-5, 1e-3, log=True), "lora.rank": Choice((4, 8, 16))})
    study.best.settings, study.best.value

A trial is a run of `finetune`; its value is the held-out loss that it ends with (nats per target
token), and a trial that is worse than the others half-way is ended early. The study's folder holds
everything::

    study.sqlite     Optuna's own record
    trials/HASH/     the run of each setting; trials with the same settings share it
    best.json        the best settings so far

Started again, after Ctrl-C or a `kill -9`, it goes on: an interrupted trial is run again first, and
goes on from its own checkpoint. Needs `pip install "mlx-companion[tune]"`.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args

from mlx_companion.errors import ConfigError, MissingExtraError, TrainingError
from mlx_companion.lora import detach
from mlx_companion.models.load import LanguageModel, load
from mlx_companion.runtime.config import config_hash, load_config, to_dict
from mlx_companion.runtime.files import atomic_write_json
from mlx_companion.runtime.stop import NEVER, StopSwitch
from mlx_companion.training.adapter_run import TrainResult
from mlx_companion.training.callbacks import Callback
from mlx_companion.training.data import Data
from mlx_companion.training.finetune import finetune
from mlx_companion.training.settings import FinetuneConfig
from mlx_companion.training.state import RunInfo

Sampler = Literal["tpe", "random", "grid"]
Pruner = Literal["median", "hyperband", "none"]
RECORD, TRIALS, BEST = "study.sqlite", "trials", "best.json"


@dataclass(frozen=True)
class Span:
    """Numbers from `low` to `high`; whole ones if both are, in factors instead of steps if `log`.

    Raises:
        ConfigError: there is nothing between them.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.log and self.low <= 0):
            over = ", both over 0," if self.log else ""
            raise ConfigError(f"a span from {self.low} to {self.high}; expected low < high{over}")


@dataclass(frozen=True)
class Choice:
    """One of some values (numbers, texts, true, false or nothing)."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(self.values))
        if not self.values:
            raise ConfigError("a choice of nothing; give at least one value")


Space = Mapping[str, Span | Choice]


@dataclass(frozen=True)
class Trial:
    """One setting that was tried.

    Attributes:
        number: from 0.
        settings: by dotted key.
        state: "complete", "pruned" or "failed".
        value: held-out loss, nats per target token; None when there is none.
        folder: of its run, within the study's.
    """

    number: int
    settings: dict[str, Any]
    state: str
    value: float | None
    folder: str


@dataclass(frozen=True)
class Study:
    """What a search gave.

    Attributes:
        folder: the study's.
        trials: in the order in which they were made.
    """

    folder: Path
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial:
        """The complete trial with the lowest value. Raises TrainingError when there is none."""
        done = [t for t in self.trials if t.state == "complete" and t.value is not None]
        if not done:
            raise TrainingError(f"no trial of {self.folder} is complete; run more of them")
        return min(done, key=lambda trial: (trial.value, trial.number))


def tune(
    model: str | Path | LanguageModel,
    data: Data,
    out: str | Path,
    *,
    space: Space,
    valid: Data | float,
    trials: int = 20,
    sampler: Sampler = "tpe",
    pruner: Pruner = "median",
    base: FinetuneConfig | None = None,
    seed: int = 0,
    stop: StopSwitch = NEVER,
    progress: Callable[[Trial], None] | None = None,
) -> Study:
    """Try settings until there are `trials` trials in the study.

    Args:
        model: what `models.load` takes, or a loaded model, which carries no adapter afterwards.
        data: training data, as for `finetune`.
        out: the study's folder.
        space: what to try, by the dotted key of a setting ("train.lr", "lora.rank").
        valid: held-out data or the share of `data` to hold out: what a trial is judged by.
        trials: how many there are to be in all, those of earlier calls included.
        sampler: "tpe" learns from the trials, "random" does not, "grid" tries every combination of
            choices (and stops when all were tried).
        pruner: "median" ends a trial whose loss is above the median of the others at the same
            step, "hyperband" gives most trials little time, "none" ends none.
        base: the settings that are not searched.
        seed: decides the samples.
        stop: kill switch; the trial that is running can go on later.
        progress: called with each finished trial.

    Raises:
        ConfigError: an unknown key, a value that cannot be, or a grid over a span.
        MissingExtraError: Optuna is not installed.
        Stopped: the kill switch was thrown.
    """
    optuna = _optuna()
    base, folder = base or FinetuneConfig(), Path(out)
    _check(space, base, sampler, pruner)
    search = _Search(optuna, model, data, valid, folder, dict(space), base, stop)
    study = search.open(_sampler(optuna, sampler, seed), _pruner(optuna, pruner))
    search.requeue(study)
    if sampler == "grid":
        _enqueue_all(study, space, seed)
    try:
        while len(_ended(study)) < trials:
            if sampler == "grid" and not search.waiting(study):
                break
            trial = study.ask()
            search.run(study, trial)
            if progress is not None:
                progress(search.told(study.trials[trial.number]))
    finally:
        detach(search.model.model)
    return search.result(study)


class _Search:
    """One study: its folder, and how a trial is run."""

    def __init__(
        self,
        optuna: Any,
        model: str | Path | LanguageModel,
        data: Data,
        valid: Data | float,
        folder: Path,
        space: dict[str, Span | Choice],
        base: FinetuneConfig,
        stop: StopSwitch,
    ) -> None:
        self.optuna, self.data, self.valid = optuna, data, valid
        self.model = model if isinstance(model, LanguageModel) else load(model)
        self.folder, self.space, self.base, self.stop = folder, space, base, stop

    def open(self, sampler: Any, pruner: Any) -> Any:
        """The study of this folder, made when missing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.optuna.logging.set_verbosity(self.optuna.logging.WARNING)
        study = self.optuna.create_study(
            study_name="study",
            storage=f"sqlite:///{(self.folder / RECORD).absolute()}",
            sampler=sampler,
            pruner=pruner,
            load_if_exists=True,
        )
        identity = {"base": config_hash(self.base), "model": self.model.base_sha256}
        known = study.user_attrs.get("identity", identity)
        if known != identity:
            raise ConfigError(
                f"{self.folder} holds a study of another model or of other fixed settings; "
                "choose another folder"
            )
        study.set_user_attr("identity", identity)
        return study

    def requeue(self, study: Any) -> None:
        """Trials that a kill interrupted are put first again."""
        state = self.optuna.trial.TrialState
        for trial in study.get_trials(deepcopy=False, states=(state.RUNNING,)):
            study.tell(trial.number, state=state.FAIL)
            if trial.params:
                study.enqueue_trial(trial.params, user_attrs={"again": trial.number})

    def waiting(self, study: Any) -> bool:
        """Whether a trial is in the queue."""
        state = self.optuna.trial.TrialState
        return bool(study.get_trials(deepcopy=False, states=(state.WAITING,)))

    def run(self, study: Any, trial: Any) -> None:
        """Train with what the trial suggests, and tell the study."""
        state = self.optuna.trial.TrialState
        settings = {key: _suggest(trial, key, what) for key, what in self.space.items()}
        config = load_config(FinetuneConfig, None, _merged(self.base, settings))
        trial.set_user_attr("folder", self.place(config))
        try:
            result = self.trained(config, trial)
        except self.optuna.TrialPruned:
            study.tell(trial, state=state.PRUNED)
        except TrainingError:
            # A learning rate that diverges is an answer too.
            study.tell(trial, state=state.FAIL)
        else:
            study.tell(trial, result.valid_after)
        self.note_best(study)

    def trained(self, config: FinetuneConfig, trial: Any) -> TrainResult:
        """The run of one setting."""
        watch = _Pruning(self.optuna, trial)
        result = finetune(
            self.model,
            self.data,
            self.folder / self.place(config),
            lora=config.lora,
            train=config.train,
            valid=self.valid,
            stop=self.stop,
            callbacks=[watch],
            progress=False,
            track=(),
        )
        if result.valid_after is None or not math.isfinite(result.valid_after):
            raise TrainingError("the trial ended without a held-out loss")
        return result

    def place(self, config: FinetuneConfig) -> str:
        return f"{TRIALS}/{config_hash(config)[:12]}"

    def note_best(self, study: Any) -> None:
        """Write the best settings so far."""
        found = self.result(study)
        try:
            best = found.best
        except TrainingError:
            return
        config = load_config(FinetuneConfig, None, _merged(self.base, best.settings))
        told = {"value": best.value, "trial": best.number, "settings": best.settings}
        atomic_write_json(self.folder / BEST, told | {"config": to_dict(config)})

    def result(self, study: Any) -> Study:
        return Study(self.folder, tuple(self.told(trial) for trial in study.trials))

    def told(self, trial: Any) -> Trial:
        return Trial(
            number=trial.number,
            settings=dict(trial.params),
            state={"FAIL": "failed"}.get(trial.state.name, trial.state.name.lower()),
            value=trial.value,
            folder=trial.user_attrs.get("folder", ""),
        )


class _Pruning(Callback):
    """Reports held-out losses to a trial, and ends it when its pruner says so."""

    def __init__(self, optuna: Any, trial: Any) -> None:
        self.optuna, self.trial = optuna, trial
        self.last = 0

    def on_start(self, run: RunInfo) -> None:
        """The last evaluation decides nothing: the trial is over anyway."""
        self.last = run.total_steps

    def on_eval(self, step: int, loss: float) -> None:
        """Report; the loss before training is the same for all."""
        if step == 0 or not math.isfinite(loss):
            return
        self.trial.report(loss, step)
        if step < self.last and self.trial.should_prune():
            raise self.optuna.TrialPruned


def space_from(values: Mapping[str, Any]) -> dict[str, Span | Choice]:
    """A space as it stands in a YAML file.

    Args:
        values: {"train.lr": {"low": 1e-5, "high": 1e-3, "log": true}, "lora.rank": [4, 8]}.

    Raises:
        ConfigError: an entry that is neither.
    """
    space: dict[str, Span | Choice] = {}
    for key, value in values.items():
        if isinstance(value, list | tuple):
            space[key] = Choice(tuple(_number(item) for item in value))
        elif isinstance(value, Mapping):
            span = load_config(Span, None, dict(value))
            whole = all(isinstance(value.get(n), int) for n in ("low", "high"))
            space[key] = Span(int(span.low), int(span.high), span.log) if whole else span
        else:
            raise ConfigError(
                f"'{key}' is {value!r}; expected a list of values, or low, high and perhaps log"
            )
    return space


def _number(value: Any) -> Any:
    """YAML 1.1 reads `1e-4` as a text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _check(space: Space, base: FinetuneConfig, sampler: str, pruner: str) -> None:
    if not space:
        raise ConfigError("there is nothing to search; give at least one setting")
    for name, given, known in (("sampler", sampler, Sampler), ("pruner", pruner, Pruner)):
        if given not in get_args(known):
            raise ConfigError(f"{name} is '{given}'; expected one of {', '.join(get_args(known))}")
    for key, what in space.items():
        if sampler == "grid" and isinstance(what, Span):
            raise ConfigError(f"a grid needs choices, and '{key}' is a span; list its values")
        ends = what.values if isinstance(what, Choice) else (what.low, what.high)
        for value in ends:
            load_config(FinetuneConfig, None, _merged(base, {key: value}))


def _suggest(trial: Any, key: str, what: Span | Choice) -> Any:
    if isinstance(what, Choice):
        return trial.suggest_categorical(key, list(what.values))
    if isinstance(what.low, int) and isinstance(what.high, int):
        return trial.suggest_int(key, what.low, what.high, log=what.log)
    return trial.suggest_float(key, what.low, what.high, log=what.log)


def _merged(base: FinetuneConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
    """`base` as overrides, with some settings on top."""
    tree: dict[str, Any] = {
        f"{part}.{name}": value
        for part, values in to_dict(base).items()
        for name, value in values.items()
    }
    return tree | dict(settings)


def _ended(study: Any) -> list[Any]:
    """Trials that count: those that a kill interrupted are made again."""
    again = {trial.user_attrs.get("again") for trial in study.trials}
    waiting = ("RUNNING", "WAITING")
    return [t for t in study.trials if t.state.name not in waiting and t.number not in again]


def _enqueue_all(study: Any, space: Space, seed: int) -> None:
    """Every combination that is not in the study yet, in random order.

    Optuna's own GridSampler works inside of its loop only, and this one asks for trials itself.
    """
    choices = [what.values for what in space.values() if isinstance(what, Choice)]
    combinations = list(itertools.product(*choices))
    random.Random(seed).shuffle(combinations)
    for values in combinations:
        study.enqueue_trial(dict(zip(space, values, strict=True)), skip_if_exists=True)


def _sampler(optuna: Any, name: str, seed: int) -> Any:
    if name == "tpe":
        return optuna.samplers.TPESampler(seed=seed)
    return optuna.samplers.RandomSampler(seed=seed)


def _pruner(optuna: Any, name: str) -> Any:
    if name == "none":
        return optuna.pruners.NopPruner()
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner()
    return optuna.pruners.MedianPruner(n_startup_trials=4)


def _optuna() -> Any:
    try:
        return import_module("optuna")
    except ImportError as error:
        raise MissingExtraError("optuna", "tune") from error
