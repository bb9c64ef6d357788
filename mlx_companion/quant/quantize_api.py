"""`quantize(model, level)`: smaller weights, and what they cost.

    found = quantize(load(), "4.5bpw", calibration=texts, evaluation=other_texts)
    print(found.report.text())
    found.save("runs/small")                      # mlx_lm.generate --model runs/small
    model, tokenizer = found                      # packed; trains with LoRA like any other

Works on language models, byte models (hash tables included), sentence encoders, and on models that
carry an adapter, which stays attached. The model given is not changed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_companion.errors import ConfigError, DataError, ModelError
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
from mlx_companion.quant.quantize_run import Run, Texts, run_recipes
from mlx_companion.quant.quantize_save import (
    WEIGHTS,
    check_target,
    save_encoder,
    save_language_model,
)
from mlx_companion.quant.quantize_subjects import Subject, subject_of
from mlx_companion.runtime.stop import NEVER, StopSwitch

Method = Literal["auto", "rtn", "awq", "gptq", "dwq"]
METHODS: tuple[str, ...] = ("auto", "rtn", "awq", "gptq", "dwq")
Sensitivity = Literal["measured", "gradient"]
Progress = Callable[[str, int, int], Any]

_EXAMPLE_TEXT = Path(__file__).parent.parent / "loop" / "data" / "general_text.txt"
_EVALUATION_SHARE = 5
_CHOOSING_ROWS = 4


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
        evaluation_tokens: the most that are measured on.
        switch: consulted often; nothing is written here.

    Raises:
        ConfigError: no such level or method, or a method that this kind of model does not have.
        DataError: too little text.
        ModelError: the model has nothing to pack, or gives no finite numbers afterwards.
        Stopped: a stop was asked for.
    """
    wanted = parse_level(level, group_size)
    _check_method(method, wanted)
    if sensitivity not in ("measured", "gradient"):
        raise ConfigError(f"sensitivity is {sensitivity!r}; expected 'measured' or 'gradient'")
    cpu, start = time.process_time(), time.monotonic()
    subject = subject_of(model)
    texts = _texts(subject, calibration, evaluation, seed,
                   (window, calibration_tokens, distil_tokens, evaluation_tokens))  # fmt: skip
    run = Run(subject, wanted, method, texts, group_size, seed, progress or _silent, switch,
              sensitivity)  # fmt: skip
    outcome = run_recipes(run)
    packed = outcome.model
    packed.eval()
    dtype = _number_type(model)
    if mx.default_device().type == mx.DeviceType.cpu and not wanted.plain:
        # 16-bit numbers are slow there; what they hold, 32 bits hold exactly.
        cast(packed, dtype)
        cast(packed, mx.float32)
    else:
        cast(packed, dtype)
    mx.eval(packed.parameters())
    reference = Reference(subject, texts.evaluation, switch=switch)
    after = reference.compare(plain_twin(packed, mx.float32))
    if not math.isfinite(after.divergence):
        raise ModelError(
            f"the model gives numbers that are not finite at {wanted.name}; take more bits, or "
            "another method"
        )
    before = reference.baseline().perplexity if subject.predicts else None
    bits, numbers = count_bits(packed)
    report = QuantReport(
        level=wanted.name,
        method=method,
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
        calibration_tokens=int(texts.calibration.size),
        seconds=time.monotonic() - start,
        cpu_seconds=time.process_time() - cpu,
        seed=seed,
        layers=_layers(subject, packed, outcome.losses),
        tried=outcome.tried,
    )
    return Quantized(_around(subject, packed, wanted, seed), report, dtype)


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
    rows = _first(old.windows(texts, window), tokens)
    return Reference(old, rows, switch=switch).compare(new.model)


def _check_method(method: str, level: Level) -> None:
    if method not in METHODS:
        raise ConfigError(f"method is {method!r}; expected one of {', '.join(METHODS)}")
    if level.plain and method not in ("auto", "rtn"):
        raise ConfigError(f"f16 packs nothing, so there is nothing for '{method}' to do")
    if level.budget is not None and method == "awq":
        raise ConfigError(
            "awq has one packing for all layers and cannot spend a budget; give a level such as "
            "q4, or use method 'auto'"
        )


def _texts(
    subject: Subject,
    calibration: Sequence[str] | None,
    evaluation: Sequence[str] | None,
    seed: int,
    limits: tuple[int, int, int | None, int],
) -> Texts:
    window, most, distil, measured = limits
    for name, value in (("calibration", calibration), ("evaluation", evaluation)):
        if isinstance(value, str) or (value is not None and not len(value)):
            raise DataError(f"{name} has to be a list of texts, with at least one")
    if min(window, most, measured) < 2 or (distil is not None and distil < 0):
        raise ConfigError("window and numbers of tokens have to be positive, a window at least 2")
    given = list(calibration) if calibration is not None else _example_texts()
    if evaluation is None:
        given, evaluation = _split(given)
    training = most if distil is None else distil
    rows = subject.windows(given, window)
    order = np.random.default_rng(seed).permutation(len(rows))
    per_row = rows.shape[1]
    rows = rows[mx.array(order[: max(1, max(most, training) // per_row)])]
    held = min(_CHOOSING_ROWS, len(rows) // 4)
    seen, choosing = (rows[:-held], rows[-held:]) if held else (rows, rows)
    return Texts(
        seen[: max(1, most // per_row)],
        seen[: training // per_row],
        choosing,
        _first(subject.windows(evaluation, window), measured),
    )


def _first(rows: mx.array, tokens: int) -> mx.array:
    """So many tokens, taken evenly from all rows."""
    count = min(len(rows), max(1, tokens // rows.shape[1]))
    return rows[mx.array(np.linspace(0, len(rows) - 1, count).astype(int))]


def _example_texts() -> list[str]:
    return _EXAMPLE_TEXT.read_text(encoding="utf-8").split("\n\n")


def _split(texts: list[str]) -> tuple[list[str], list[str]]:
    """Four fifths and the last fifth; a text on its own is cut."""
    if len(texts) == 1:
        cut = len(texts[0]) * (_EVALUATION_SHARE - 1) // _EVALUATION_SHARE
        return [texts[0][:cut]], [texts[0][cut:]]
    held = max(1, len(texts) // _EVALUATION_SHARE)
    if len(texts) > 3:
        held = max(2, held)
    return texts[:-held], texts[-held:]


def _number_type(model: Any) -> mx.Dtype:
    """float16, or bfloat16 where the model has it (whose range float16 may not have)."""
    module = model if isinstance(model, nn.Module) else model.model
    kinds = {layer.weight.dtype for layer in packable(module).values()}
    kinds |= {layer.scales.dtype for layer in packable(module).values() if "scales" in layer}
    return mx.bfloat16 if mx.bfloat16 in kinds else mx.float16


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


def _around(subject: Subject, packed: nn.Module, level: Level, seed: int) -> Any:
    found = subject.rebuilt(packed)
    if isinstance(found, LanguageModel):
        # Not the files' hash any more: an adapter of the new weights is none of the old ones.
        import hashlib

        told = f"{found.base_sha256} {level.name} {seed} {found.config.get('quantization')}"
        found.base_sha256 = hashlib.sha256(told.encode()).hexdigest()
    return found


def _silent(stage: str, done: int, total: int) -> None:
    """Where nobody watches."""
