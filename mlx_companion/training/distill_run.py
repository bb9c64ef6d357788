"""Distillation from logits, end to end: a local teacher, a data file and a student in, an adapter
out.

    result = distill_logits(student, load("qwen2.5-3b"), "chats.jsonl", "runs/student")

The teacher reads the data once; its likeliest tokens are kept in the run's folder, and it can be
dropped before the student trains. Distillation from texts needs no more than `ask_teacher` and
`finetune`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlx_companion.errors import ConfigError
from mlx_companion.models.load import LanguageModel
from mlx_companion.training.adapter_run import TrainResult, digest_of, train_adapter
from mlx_companion.training.config import TrainConfig
from mlx_companion.training.data import Data, TrainingData, check_packing, prepare_data
from mlx_companion.training.distill import DistillLoss, Kind, vocabulary_of
from mlx_companion.training.teacher_cache import TaughtRows, teacher_cache

TEACHER = "teacher"


def distill_logits(
    student: LanguageModel,
    teacher: LanguageModel | Callable[[], LanguageModel],
    data: Data,
    out: str | Path,
    *,
    valid: Data | float | None = None,
    kind: Kind = "forward",
    temperature: float = 1.0,
    k: int = 32,
    ce_weight: float = 0.0,
    train: TrainConfig | None = None,
    **options: Any,
) -> TrainResult:
    """Train an adapter towards a teacher's next-token distributions.

    Args:
        student: it carries the adapter afterwards.
        teacher: a model of the same tokenizer, or a function that loads it; what a function loads
            is dropped as soon as it has read the data.
        data, valid: as for `finetune`; their replies are what the teacher is asked about.
        out: the run's folder.
        kind, temperature, ce_weight: see `DistillLoss`.
        k: of the teacher's likeliest tokens at each position, see `teacher_cache`.
        train: how it is trained.
        options: those of `train_adapter` (lora, stop, monitor, ...).

    Raises:
        ConfigError: the two models have different vocabularies.
        as `finetune`.
    """
    train, out = train or TrainConfig(), Path(out)
    loss = DistillLoss(kind=kind, temperature=temperature, ce_weight=ce_weight)
    check_packing(train, loss)
    prepared = prepare_data(data, valid, student.tokenizer, train, train.pad_to or 1)
    owned = not isinstance(teacher, LanguageModel)
    lm = teacher if isinstance(teacher, LanguageModel) else teacher()
    _check_tokens(student, lm)
    rows, held_out = _taught(prepared, lm, out / TEACHER, k=k, temperature=temperature)
    digest = digest_of(
        prepared.sha256, lm.base_sha256, [kind, temperature, ce_weight, k], type(loss).__name__
    )
    about = prepared.report.to_json() | {"teacher": lm.source, "kind": kind}
    if owned:
        del lm
    return train_adapter(
        student,
        rows,
        out,
        loss=loss,
        data_sha256=digest,
        train=train,
        valid=held_out,
        about=about,
        **options,
    )


def _taught(
    prepared: TrainingData, teacher: LanguageModel, folder: Path, **options: Any
) -> tuple[TaughtRows, TaughtRows | None]:
    def taught(part: str) -> TaughtRows | None:
        rows = getattr(prepared, part)
        if rows is None:
            return None
        name = f"{teacher.base_sha256}/{prepared.sha256}/{part}"
        cache = teacher_cache(teacher.model, rows, folder / part, fingerprint=name, **options)
        return TaughtRows(rows, cache)

    train = taught("train")
    assert train is not None
    return train, taught("valid")


def _check_tokens(student: LanguageModel, teacher: LanguageModel) -> None:
    """Equal numbers must mean equal tokens: the sizes alone would let two tokenizers pass."""
    own, others = student.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    sizes = vocabulary_of(student.model), vocabulary_of(teacher.model)
    if own != others or sizes[0] != sizes[1]:
        raise ConfigError(
            f"{student.source} and {teacher.source} have different vocabularies ({sizes[0]:,} and "
            f"{sizes[1]:,} logits); distil from logits between models of one tokenizer, or from "
            "texts that the teacher wrote"
        )
