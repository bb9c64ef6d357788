"""`quantize(model, level)`: smaller weights, and what they cost.

    found = quantize(load(), "4.5bpw", calibration=texts, evaluation=other_texts)
    print(found.report.text())
    found.save("runs/small")                      # mlx_lm.generate --model runs/small
    model, tokenizer = found                      # packed; trains with LoRA like any other

Works on language models, byte models (hash tables included), sentence encoders, and on models that
carry an adapter, which stays attached. The model given is not changed.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_companion.errors import ConfigError, ModelError
from mlx_companion.models.encoder import SentenceEncoder
from mlx_companion.models.hashing import content_sha256
from mlx_companion.models.load import LanguageModel
from mlx_companion.quant.levels import Level, parse_level
from mlx_companion.quant.quant_report import LayerReport, QuantReport
from mlx_companion.quant.quantize_layers import (
    base_name,
    cast,
    count_bits,
    dense,
    packable,
    packing_of,
    plain_twin,
)
from mlx_companion.quant.quantize_measure import Measure, Reference
from mlx_companion.quant.quantize_run import Outcome, Run, run_recipes
from mlx_companion.quant.quantize_save import (
    WEIGHTS,
    check_target,
    save_encoder,
    save_language_model,
)
from mlx_companion.quant.quantize_subjects import Subject, number_type, subject_of
from mlx_companion.quant.quantize_texts import Amounts, choose_texts, evenly
from mlx_companion.runtime.stop import NEVER, StopSwitch

Method = Literal["auto", "rtn", "awq", "gptq", "dwq"]
METHODS: tuple[str, ...] = ("auto", "rtn", "awq", "gptq", "dwq")
Sensitivity = Literal["measured", "gradient"]
Progress = Callable[[str, int, int], Any]


@dataclass
class Quantized:
    """What `quantize` gives; unpacks as `model, tokenizer = quantize(...)`.

    Attributes:
        lm: what was given, around a packed model: a `LanguageModel`, a byte model or a
            `SentenceEncoder`.
        report: what it cost.
    """

    lm: Any
    report: QuantReport
    _dtype: mx.Dtype = field(default=mx.float16, repr=False)

    def __iter__(self) -> Iterator[Any]:
        yield self.model
        yield getattr(self.lm, "tokenizer", None)

    @property
    def model(self) -> nn.Module:
        """The packed module."""
        found: nn.Module = self.lm if isinstance(self.lm, nn.Module) else self.lm.model
        return found

    def plain(self) -> Any:
        """The same with unpacked weights, as `load` gives on a CPU, where packed ones are slow."""
        module: Any = plain_twin(self.model)
        return module if isinstance(self.lm, nn.Module) else replace(self.lm, model=module)

    def save(self, folder: str | Path) -> Path:
        """Write the model as its loader reads it, and the report beside it.

        Language models can be read by `mlx_lm.load` and `load`, byte models by `blt.load`,
        encoders by `load_encoder`. A language model takes on the new files' path and hash, so
        that adapters trained on it fit when it is loaded again.

        Args:
            folder: new, empty, or one with a model, which is replaced as a whole.

        Raises:
            ConfigError: the folder holds something else.
            DiskFullError: no space; what was there before is untouched.
        """
        if isinstance(self.lm, LanguageModel):
            target = save_language_model(self.lm, folder, self._dtype)
            self.lm.path, self.lm.source = target, str(folder)
            self.lm.base_sha256 = content_sha256([target / WEIGHTS])
        elif isinstance(self.lm, SentenceEncoder):
            target = save_encoder(self.lm, folder, self._dtype)
        else:
            from mlx_companion.blt.save import save

            target = save(self.lm, check_target(folder), dtype=self._dtype)
        self.report.write(target)
        return target


def quantize(
    model: Any,
    level: str = "q4",
    *,
    method: Method = "auto",
    calibration: Sequence[str] | None = None,
    evaluation: Sequence[str] | None = None,
    group_size: int | None = None,
    sensitivity: Sensitivity = "measured",
    seed: int = 0,
    progress: Progress | None = None,
    window: int = 256,
    calibration_tokens: int = 8192,
    distil_tokens: int | None = None,
    distil_rate: float = Run.distil_rate,
    evaluation_tokens: int = 4096,
    switch: StopSwitch = NEVER,
) -> Quantized:
    """Pack a model's weights in fewer bits and measure what that costs.

    Args:
        model: what `load`, `blt.load` or `load_encoder` gives; it is not changed.
        level: f16, q8, q6, q5, q4, q3, q2, mxfp4, mxfp8, nvfp4, or bits per weight over the whole
            model ("4.5bpw"), spent where measuring says that they help.
        method: "rtn", "awq", "gptq" and "dwq" are mlx-lm's; "auto" takes the best of what is
            measured.
        calibration: texts like those that the model will see; by default a few pages that come
            with the package.
        evaluation: other texts, to measure on; by default the last fifth of `calibration`.
        group_size: weights that share a scale: 32, 64 or 128; by default 64, with a budget any.
        sensitivity: how a budget learns what layers mind: "measured", one at a time, or
            "gradient", mlx-lm's estimate, in one backward pass with the memory of training.
        seed: of which texts are used when there are too many, and of training.
        progress: called with a stage's name, steps done and steps in all.
        window: tokens per row of text.
        calibration_tokens: the most that are used.
        distil_tokens: the most that scales are trained on, 0 for no training; by default as many
            as `calibration_tokens`.
        distil_rate: learning rate of scales and biases, relative to their size. Small models take
            more (the few layers of a test 2e-3); much too much is noticed and not taken.
        evaluation_tokens: the most that are measured on.
        switch: consulted often; nothing is written here.

    Raises:
        ConfigError: no such level or method, or a method that this kind of model does not have.
        DataError: too little text.
        ModelError: the model has nothing to pack, or gives no finite numbers afterwards.
        Stopped: a stop was asked for.
    """
    wanted = parse_level(level, group_size)
    _check_method(method, wanted, sensitivity)
    if not distil_rate > 0:
        raise ConfigError(f"distil_rate is {distil_rate!r}; expected a positive number")
    amounts = Amounts(window, calibration_tokens, distil_tokens, evaluation_tokens)
    clock = time.monotonic(), time.process_time()
    subject = subject_of(model)
    run = Run(
        subject=subject,
        level=wanted,
        method=method,
        texts=choose_texts(subject, calibration, evaluation, amounts, seed),
        group_size=group_size,
        seed=seed,
        progress=progress or _silent,
        switch=switch,
        sensitivity=sensitivity,
        dtype=number_type(model),
        distil_rate=distil_rate,
    )
    outcome = run_recipes(run)
    _settle(outcome.model, run)
    report = _report(run, outcome, clock)
    return Quantized(_around(run, outcome.model), report, run.dtype)


def compare(
    before: Any,
    after: Any,
    texts: Sequence[str],
    *,
    window: int = 256,
    tokens: int = 4096,
    switch: StopSwitch = NEVER,
) -> Measure:
    """How a changed model differs from the one before, on some text.

    Args:
        before: a language model, byte model or encoder.
        after: the same kind with the same tokenizer, packed or not, by whatever means.
        texts: to measure on.
        window: tokens per row of text.
        tokens: the most that are measured on.
        switch: consulted between passes.

    Raises:
        DataError: too little text.
        ConfigError: something that is no model.
    """
    old, new = subject_of(before), subject_of(after)
    rows = evenly(old.windows(texts, window), tokens)
    return Reference(old, rows, switch=switch).compare(new.model)


def _settle(packed: nn.Module, run: Run) -> None:
    """Give a packed model the number types that it is used with."""
    packed.eval()
    cast(packed, run.dtype)
    if mx.default_device().type == mx.DeviceType.cpu and not run.level.plain:
        # 16-bit numbers are slow there; what they hold, 32 bits hold exactly.
        cast(packed, mx.float32)
    mx.eval(packed.parameters())


def _report(run: Run, outcome: Outcome, clock: tuple[float, float]) -> QuantReport:
    subject, packed = run.subject, outcome.model
    reference = Reference(subject, run.texts.evaluation, switch=run.switch)
    after = reference.compare(plain_twin(packed, mx.float32))
    if not math.isfinite(after.divergence):
        raise ModelError(
            f"the model gives numbers that are not finite at {run.level.name}; take more bits, or "
            "another method"
        )
    before = reference.baseline().perplexity if subject.predicts else None
    bits, numbers = count_bits(packed)
    return QuantReport(
        level=run.level.name,
        method=run.method,
        recipe=outcome.recipe,
        measure="kl" if subject.predicts else "cosine",
        bits_per_weight=bits / numbers,
        bytes=bits // 8,
        bytes_before=2 * numbers,
        divergence=after.divergence,
        agreement=after.agreement,
        perplexity=after.perplexity,
        perplexity_before=before,
        positions=after.count,
        calibration_tokens=int(run.texts.calibration.size),
        seconds=time.monotonic() - clock[0],
        cpu_seconds=time.process_time() - clock[1],
        seed=run.seed,
        layers=_layers(subject, packed, outcome.losses),
        tried=outcome.tried,
    )


def _check_method(method: str, level: Level, sensitivity: str) -> None:
    if sensitivity not in ("measured", "gradient"):
        raise ConfigError(f"sensitivity is {sensitivity!r}; expected 'measured' or 'gradient'")
    if method not in METHODS:
        raise ConfigError(f"method is {method!r}; expected one of {', '.join(METHODS)}")
    if level.plain and method not in ("auto", "rtn"):
        raise ConfigError(f"f16 packs nothing, so there is nothing for '{method}' to do")
    if level.budget is not None and method == "awq":
        raise ConfigError(
            "awq has one packing for all layers and cannot spend a budget; give a level such as "
            "q4, or use method 'auto'"
        )


def _layers(
    subject: Subject, packed: nn.Module, losses: dict[str, float]
) -> tuple[LayerReport, ...]:
    before, found = packable(subject.model), []
    for path, layer in packable(packed).items():
        packing = packing_of(layer)
        weight, now = dense(before[path]), dense(layer)
        size = float(np.square(weight).sum())
        error = float(np.square(now - weight).sum()) / size if size else 0.0
        name = "16 bits" if packing is None else packing.name
        bits = 16.0 if packing is None else packing.bits_per_weight
        loss = losses.get(path)
        found.append(LayerReport(base_name(path), name, bits, weight.size, error, loss))
    return tuple(found)


def _around(run: Run, packed: nn.Module) -> Any:
    found = run.subject.rebuilt(packed)
    if isinstance(found, LanguageModel):
        # Not the files' hash any more: an adapter of the new weights is none of the old ones.
        packings = found.config.get("quantization")
        told = f"{found.base_sha256} {run.level.name} {run.method} {run.seed} {packings}"
        found.base_sha256 = hashlib.sha256(told.encode()).hexdigest()
    return found


def _silent(stage: str, done: int, total: int) -> None:
    """Where nobody watches."""
