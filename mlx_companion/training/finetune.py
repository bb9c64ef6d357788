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

from collections.abc import Iterable
from pathlib import Path

import mlx.core as mx

from mlx_companion.lora import LoraConfig
from mlx_companion.models.load import LanguageModel, load
from mlx_companion.runtime.monitor import ResourceMonitor
from mlx_companion.runtime.stop import NEVER, StopSwitch
from mlx_companion.training.adapter_run import TrainResult, train_adapter
from mlx_companion.training.callbacks import Callback
from mlx_companion.training.config import TrainConfig
from mlx_companion.training.data import Data, check_packing, prepare_data
from mlx_companion.training.distributed import Ranks, join
from mlx_companion.training.losses import Loss
from mlx_companion.training.progress import RichProgress

_COMPILED_PAD = 32


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
    console = RichProgress().console if progress and ranks.first else None
    if console is not None:
        console.print(str(prepared.report), highlight=False)
    result = train_adapter(
        lm,
        prepared.train,
        out,
        loss=loss,
        data_sha256=prepared.sha256,
        lora=lora,
        train=train,
        valid=prepared.valid,
        about=prepared.report.to_json(),
        resume=resume,
        stop=stop,
        monitor=monitor,
        callbacks=callbacks,
        progress=progress,
        track=track,
        # A model that nobody has asked for afterwards need not come together again.
        restore=lm is model,
    )
    if result.finished_before and console is not None:
        console.print(f"The run in {out} is finished already.", highlight=False)
    return result


def _load(model: str | Path, config: TrainConfig, ranks: Ranks) -> LanguageModel:
    # Read as it is cut up: shards are smaller than what they are cut from.
    lazy = config.sharding == "full" and not ranks.alone
    return load(model, dtype=_dtype(config), lazy=lazy)


def _dtype(config: TrainConfig) -> mx.Dtype | None:
    return None if config.dtype == "auto" else getattr(mx, config.dtype)
