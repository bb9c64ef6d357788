"""What a quantization cost: the numbers, as a table for people, as JSON, and as a picture.

report = quantize(lm, "4.5bpw", calibration=texts).report
print(report.text())
report.write("out")                 # quant_report.json, quant_report.svg
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mlx_companion.runtime.files import atomic_write_json, atomic_write_text

JSON_NAME, PICTURE_NAME = "quant_report.json", "quant_report.svg"
_WORST = 8


@dataclass(frozen=True)
class LayerReport:
    """One layer.

    Attributes:
        path: as in weight files.
        packing: such as "4 bits / 64", or "16 bits".
        bits_per_weight: scales and biases included.
        weights: how many it has.
        error: squared error of its weights over their squared size.
        loss: KL divergence (nats) that packing this layer alone is expected to cost; None where
            that was not measured.
    """

    path: str
    packing: str
    bits_per_weight: float
    weights: int
    error: float
    loss: float | None = None


@dataclass(frozen=True)
class QuantReport:
    """What came of one run.

    Attributes:
        level: that was asked for.
        method: that was asked for.
        recipe: that was taken: "rtn", "awq", "gptq", "fit", "feedback", with "+dwq" where scales
            were trained.
        measure: "kl" (nats per prediction), or "cosine" (1 - cosine) for encoders.
        bits_per_weight: over all parameters, scales and biases included.
        bytes: of all weights, adapters left out.
        bytes_before: in 16 bits.
        divergence: from the model before, on the held-out text; see `measure`.
        agreement: share of positions with the same most likely token (texts with the same nearest
            neighbour).
        perplexity, perplexity_before: on the held-out text; None for encoders.
        positions: predictions (texts) that these were measured on.
        calibration_tokens: that were used.
        seconds: of the whole run.
        cpu_seconds: of the processor, which others do not change.
        seed: of the run.
        layers: each packable layer.
        tried: divergence of each recipe that was compared, on the last windows of the calibration.
    """

    level: str
    method: str
    recipe: str
    measure: str
    bits_per_weight: float
    bytes: int
    bytes_before: int
    divergence: float
    agreement: float
    perplexity: float | None
    perplexity_before: float | None
    positions: int
    calibration_tokens: int
    seconds: float
    cpu_seconds: float
    seed: int
    layers: tuple[LayerReport, ...]
    tried: Mapping[str, float] = field(default_factory=dict)

    @property
    def kl(self) -> float | None:
        """KL divergence from the model before (nats per prediction); None for encoders."""
        return self.divergence if self.measure == "kl" else None

    @property
    def worst(self) -> tuple[LayerReport, ...]:
        """The layers that cost most: by expected loss where known, else by error."""
        known = any(layer.loss is not None for layer in self.layers)
        key = (lambda own: own.loss or 0.0) if known else (lambda own: own.error)
        return tuple(sorted(self.layers, key=key, reverse=True)[:_WORST])

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        own = asdict(self)
        return own | {"kl": self.kl, "worst": [layer.path for layer in self.worst]}

    def write(self, folder: str | Path) -> list[Path]:
        """Write the numbers and the picture.

        Args:
            folder: made when missing.

        Returns:
            The two files.

        Raises:
            DiskFullError: no space; what was there before is untouched.
        """
        from mlx_companion.quant.quant_picture import report_picture

        where = Path(folder)
        atomic_write_json(where / JSON_NAME, self.to_dict())
        atomic_write_text(where / PICTURE_NAME, report_picture(self))
        return [where / JSON_NAME, where / PICTURE_NAME]

    def _repr_svg_(self) -> str:
        """The picture, where a notebook shows the report."""
        from mlx_companion.quant.quant_picture import report_picture

        return report_picture(self)

    def facts(self) -> dict[str, str]:
        """What a person wants to know, by name."""
        divergence = "KL to the original" if self.measure == "kl" else "1 - cosine to the original"
        facts = {
            "level": f"{self.level} ({self.recipe})",
            "bits per weight": f"{self.bits_per_weight:.3f}",
            "size": f"{self.bytes / 1e6:,.1f} MB (16 bits: {self.bytes_before / 1e6:,.1f} MB)",
            divergence: f"{self.divergence:.5f}",
            "same choice": f"{self.agreement:.2%} of {self.positions:,}",
        }
        if self.perplexity is not None:
            facts["perplexity"] = f"{self.perplexity:.3f} (before: {self.perplexity_before:.3f})"
        facts["time"] = f"{self.seconds:.1f} s"
        facts["worst layers"] = ", ".join(f"{own.path} ({own.packing})" for own in self.worst[:3])
        return facts

    def text(self) -> str:
        """The facts, a line each."""
        return "\n".join(f"{name}: {value}" for name, value in self.facts().items())
