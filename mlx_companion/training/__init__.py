"""The one trainer: losses, schedules, checkpoints, callbacks; and `finetune` around it.

config       settings of a run, with their defaults
losses       what a step minimizes, at target positions only
trainer      steps, evaluations, checkpoints
finetune     files and a model's name in, an adapter out; goes on where it was interrupted
"""

from mlx_companion.training.adapter_run import TrainResult, read_result, train_adapter
from mlx_companion.training.callbacks import Callback, MetricsLog
from mlx_companion.training.config import TrainConfig
from mlx_companion.training.data import DataReport
from mlx_companion.training.finetune import finetune
from mlx_companion.training.losses import Loss, SftLoss, sft_loss
from mlx_companion.training.progress import RichProgress
from mlx_companion.training.rehearsal import Rehearsal, rehearse
from mlx_companion.training.state import RunInfo, SaveInfo, StepInfo, TrainSummary
from mlx_companion.training.trainer import Trainer

__all__ = [
    "Callback",
    "DataReport",
    "Loss",
    "MetricsLog",
    "Rehearsal",
    "RichProgress",
    "RunInfo",
    "SaveInfo",
    "SftLoss",
    "StepInfo",
    "TrainConfig",
    "TrainResult",
    "TrainSummary",
    "Trainer",
    "finetune",
    "read_result",
    "rehearse",
    "sft_loss",
    "train_adapter",
]
