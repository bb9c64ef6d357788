"""Preference tuning from end to end: pairs in, an adapter and before/after figures out.

    result = tune_preferences(lm, pairs, "runs/dpo", objective="dpo", valid=held_out)
    result.before.likelier, result.after.likelier, result.after.reward_accuracy

What is measured on held-out pairs is the same for every objective, so that runs can be compared:
how often the chosen reply is the likelier one, and how often it gained more than the rejected one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.nn as nn
import numpy as np

from mlx_companion.errors import DataError
from mlx_companion.models.fast_cpu import fast_cpu
from mlx_companion.models.load import LanguageModel
from mlx_companion.runtime.seeds import derive_seed
from mlx_companion.text.preference_records import PreferencePair, judge_pairs
from mlx_companion.training.adapter_run import TrainResult, digest_of, train_adapter
from mlx_companion.training.config import TrainConfig
from mlx_companion.training.preference_data import PreferenceRows, encode_judged, encode_pairs
from mlx_companion.training.preference_loss import PreferenceLoss, pair_logprobs, reference_logprobs
from mlx_companion.training.preference_objectives import Objective

REFERENCE = "reference"


@dataclass(frozen=True)
class PreferenceScores:
    """What a model thinks of held-out pairs.

    Attributes:
        pairs: how many.
        likelier: share whose chosen reply has the higher mean log-probability per token, 0-1.
        reward_accuracy: share whose chosen reply gained more log-probability over the base model
            than the rejected one (DPO's implicit reward); None for the base model itself.
        margin: mean of that difference (nats); None for the base model.
    """

    pairs: int
    likelier: float
    reward_accuracy: float | None = None
    margin: float | None = None


@dataclass(frozen=True)
class PreferenceResult:
    """The run's result, and held-out figures of the base model and of the tuned one."""

    run: TrainResult
    before: PreferenceScores | None
    after: PreferenceScores | None


def split_pairs(
    pairs: Sequence[PreferencePair], share: float, seed: int
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Hold out a share of the prompts with all of their pairs; (to train on, held out).

    Raises:
        DataError: the share is not between 0 and 1, or fewer than two prompts were given.
    """
    if not 0 < share < 1:
        raise DataError(f"the held-out share is {share}; expected more than 0 and less than 1")
    prompts = list(dict.fromkeys(pair.prompt for pair in pairs))
    if len(prompts) < 2:
        raise DataError(f"{len(prompts)} prompts cannot be split; give more, or held-out pairs")
    order = np.random.default_rng(derive_seed(seed, "hold-out")).permutation(len(prompts))
    count = min(len(prompts) - 1, int(np.ceil(share * len(prompts))))
    chosen = {prompts[at] for at in order[:count].tolist()}
    return (
        [pair for pair in pairs if pair.prompt not in chosen],
        [pair for pair in pairs if pair.prompt in chosen],
    )


def tune_preferences(
    lm: LanguageModel,
    pairs: Sequence[PreferencePair],
    out: str | Path,
    *,
    objective: Objective | str = "dpo",
    valid: Sequence[PreferencePair] = (),
    train: TrainConfig | None = None,
    **options: Any,
) -> PreferenceResult:
    """Train an adapter on preferences.

    The reference's log-probabilities are computed once, where the objective needs them, and kept
    in the run's folder.

    Args:
        lm: the base model, which is also the reference; it carries the adapter afterwards.
        pairs: to train on; an objective of judged replies takes each as two.
        out: the run's folder.
        objective: see `PreferenceLoss`.
        valid: held-out pairs.
        train: how it is trained; both rows of a pair count for `batch_tokens`.
        options: those of `train_adapter` (lora, stop, monitor, ...).

    Raises:
        DataError: no pair is left after encoding.
        ConfigError: no objective has that name.
        as `finetune`.
    """
    train, loss = train or TrainConfig(), PreferenceLoss(objective)
    rows = _rows(lm, pairs, loss, train, "training")
    held_out = _rows(lm, valid, loss, train, "held-out") if valid else None
    measured = _plain_rows(lm, valid, train) if valid else None
    digest = digest_of(str(loss.objective), _content(pairs), _content(valid))
    name = f"{lm.base_sha256}/{digest}/{train.max_tokens}/{train.seed}"

    def reference(of: PreferenceRows, part: str) -> np.ndarray:
        return reference_logprobs(lm.model, of, Path(out) / REFERENCE / part, name)

    base = None if measured is None else reference(measured, "pairs")
    if loss.objective.needs_reference:
        rows = rows.with_reference(reference(rows, "train"))
        if held_out is not None:
            held_out = held_out.with_reference(reference(held_out, "valid"))
    told = {"pairs": len(pairs), "rows": rows.rows, "valid_pairs": len(valid)}
    result = train_adapter(
        lm,
        rows,
        out,
        loss=loss,
        data_sha256=digest,
        train=train,
        valid=held_out,
        about=told | {"objective": str(loss.objective)},
        **options,
    )
    if measured is None or base is None:
        return PreferenceResult(result, None, None)
    after = _scores(measured, reply_logprobs(lm.model, measured), base)
    return PreferenceResult(result, _scores(measured, base), after)


def reply_logprobs(model: nn.Module, rows: PreferenceRows) -> np.ndarray:
    """Summed log-probabilities (2, rows), nats, of both replies under the model as it is now."""
    # Any objective of pairs would do: only its preparation of rows is used.
    loss = PreferenceLoss("simpo")
    found = np.zeros((2, rows.rows), dtype=np.float32)
    was_training = model.training
    model.eval()
    loss.ready(model)
    try:
        with fast_cpu(model):
            for indices in rows.epoch(0):
                given = loss.prepare(rows.batch(indices))
                found[:, list(indices)] = np.array(pair_logprobs(model, given, gradient=False))
    finally:
        model.train(was_training)
    return found


def _rows(
    lm: LanguageModel,
    pairs: Sequence[PreferencePair],
    loss: PreferenceLoss,
    train: TrainConfig,
    kind: str,
) -> PreferenceRows:
    if not loss.objective.judged:
        return _plain_rows(lm, pairs, train, kind)
    judged = judge_pairs(pairs)
    rows, report = encode_judged(judged, lm.tokenizer, train.max_tokens, seed=train.seed)
    return _source(rows, report, train, kind)


def _plain_rows(
    lm: LanguageModel, pairs: Sequence[PreferencePair], train: TrainConfig, kind: str = "held-out"
) -> PreferenceRows:
    return _source(*encode_pairs(pairs, lm.tokenizer, train.max_tokens), train, kind)


def _source(rows: Any, report: Any, train: TrainConfig, kind: str) -> PreferenceRows:
    if not rows:
        reasons = "; ".join(drop.reason for drop in report.dropped[:3]) or "none was given"
        raise DataError(f"no {kind} pair is left: {reasons}")
    return PreferenceRows(
        rows,
        batch_tokens=train.batch_tokens,
        max_pairs=train.max_rows,
        seed=train.seed,
        pad_to=train.pad_to or 1,
    )


def _content(pairs: Sequence[PreferencePair]) -> list[Any]:
    """What identifies pairs, wherever they came from."""
    return [[pair.prompt, pair.chosen, pair.rejected] for pair in pairs]


def _scores(
    rows: PreferenceRows, logprobs: np.ndarray, base: np.ndarray | None = None
) -> PreferenceScores:
    both = [(pair.first, pair.second) for pair in rows.pairs]
    mean = logprobs / np.array([[row.target_count for row in pair] for pair in both]).T
    scores = PreferenceScores(rows.rows, float((mean[0] > mean[1]).mean()))
    if base is None:
        return scores
    gained = logprobs - base
    return replace(
        scores,
        reward_accuracy=float((gained[0] > gained[1]).mean()),
        margin=float((gained[0] - gained[1]).mean()),
    )
