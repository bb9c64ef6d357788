"""A rehearsal of a fine-tuning run: a few of its real steps, and what the whole of it will take.

    print(rehearse("smollm2-135m", "chats.jsonl", valid=0.1))

Memory is that of the largest micro-batch, which is run first; time is that of micro-batches of
typical length, times the token slots of all epochs. Nothing is written and the model is as before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import get_total_parameters

from mlx_companion.lora import LoraConfig, attach, detach
from mlx_companion.models.load import LanguageModel
from mlx_companion.runtime.memory import peak_memory_mb
from mlx_companion.text.sources import RowSource
from mlx_companion.training.callbacks import Callback
from mlx_companion.training.config import TrainConfig
from mlx_companion.training.data import Data, DataReport, prepare_data
from mlx_companion.training.plan import Plan
from mlx_companion.training.settings import load_for
from mlx_companion.training.state import StepInfo
from mlx_companion.training.trainer import Trainer

_TYPICAL = 3


@dataclass(frozen=True)
class Rehearsal:
    """What a run will take.

    Attributes:
        parameters, trainable: of the model, and those that are trained.
        state_mb: what gradients and optimizer hold for the trained ones (MB).
        steps: optimizer steps of the whole run.
        tokens, targets: of one epoch.
        slots: token slots of the whole run, padding included.
        peak_mb: highest memory of this process (MB), the largest micro-batch included.
        targets_per_second: target tokens a second, at typical lengths.
        seconds: estimate for the whole run, evaluations left out.
        data: the data report.
    """

    parameters: int
    trainable: int
    state_mb: float
    steps: int
    tokens: int
    targets: int
    slots: int
    peak_mb: float
    targets_per_second: float
    seconds: float
    data: DataReport

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"data": self.data.to_json()}

    def __str__(self) -> str:
        share = self.trainable / self.parameters
        return "\n".join(
            [
                str(self.data),
                f"{self.parameters / 1e6:.1f} M parameters, {self.trainable / 1e6:.2f} M "
                f"({share:.2%}) trained; {self.state_mb:.0f} MB for gradients and optimizer",
                f"{self.steps} steps over {self.slots} token slots, at about "
                f"{self.targets_per_second:.0f} target tokens a second: "
                f"{_duration(self.seconds)}",
                f"peak memory {self.peak_mb:.0f} MB, with the largest micro-batch",
            ]
        )


def rehearse(
    model: str | Path | LanguageModel,
    data: Data,
    *,
    lora: LoraConfig | None = None,
    train: TrainConfig | None = None,
    valid: Data | float | None = None,
) -> Rehearsal:
    """Run a few steps of what `finetune` would do with the same arguments.

    Args:
        model: as for `finetune`; a loaded model carries no adapter afterwards.
        data, lora, train, valid: as for `finetune`.

    Raises:
        as `finetune`.
    """
    lora, train = lora or LoraConfig(), train or TrainConfig()
    lm = model if isinstance(model, LanguageModel) else load_for(model, train)
    prepared = prepare_data(data, valid, lm.tokenizer, train, train.pad_to or 1, lm.model)
    detach(lm.model)
    # Packed words of quantized layers count as the numbers that they stand for.
    parameters = round(get_total_parameters(lm.model))
    attach(lm.model, lora, seed=train.seed)
    try:
        source = prepared.train
        batches = sorted(source.epoch(0), key=source.slots)
        chosen = [batches[-1], *_around_middle(batches, _TYPICAL)]
        once = replace(train, epochs=1, accumulate=1, max_steps=None)
        clock = _Clock()
        trainer = Trainer(lm.model, _Chosen(source, chosen), config=once, callbacks=[clock])
        trainable = _total(lm.model.trainable_parameters(), "size")
        trainer.run()
        state = _total(trainer.optimizer.state, "nbytes")
    finally:
        detach(lm.model)
        mx.clear_cache()
    slots = _slots_of_run(source, train)
    per_slot = clock.seconds / max(1, sum(map(source.slots, chosen[1:])))
    report = prepared.report
    seconds = slots * per_slot
    epochs = slots / max(1, sum(map(source.slots, batches)))
    return Rehearsal(
        parameters=parameters,
        trainable=trainable,
        state_mb=(state + 4 * trainable) / 1e6,
        steps=Plan(source, train).total_steps or 0,
        tokens=report.tokens,
        targets=report.targets,
        slots=slots,
        peak_mb=peak_memory_mb(),
        targets_per_second=report.targets * epochs / max(seconds, 1e-9),
        seconds=seconds,
        data=report,
    )


class _Chosen:
    """Some batches of a source, as a source of one epoch."""

    def __init__(self, source: RowSource, batches: Sequence[tuple[int, ...]]) -> None:
        self.batches = list(batches)
        self.batch, self.tokens, self.slots = source.batch, source.tokens, source.slots
        self.rows, self.target_count = source.rows, source.target_count

    def epoch(self, number: int) -> list[tuple[int, ...]]:
        return self.batches


class _Clock(Callback):
    """Time of all steps but the first, which compiles and allocates (seconds)."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def on_step(self, step: StepInfo) -> None:
        self.seconds += step.seconds if step.step > 1 else 0.0


def _total(tree: Any, what: str) -> int:
    leaves: Any = tree_flatten(tree)
    return sum(getattr(value, what) for _, value in leaves)


def _around_middle(batches: list[tuple[int, ...]], count: int) -> list[tuple[int, ...]]:
    middle = max(0, len(batches) // 2 - count // 2)
    return batches[middle : middle + count]


def _slots_of_run(source: RowSource, train: TrainConfig) -> int:
    """Token slots of all micro-batches, those behind `max_steps` left out."""
    total, steps = 0, Plan(source, train).total_steps
    for epoch in range(train.epochs):
        batches = source.epoch(epoch)
        if steps is not None:
            batches = batches[: steps * train.accumulate]
            steps -= -(-len(batches) // train.accumulate)
        total += sum(map(source.slots, batches))
    return total


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"about {hours} h {minutes} min"
    return f"about {minutes} min {rest} s" if minutes else f"about {rest} s"
