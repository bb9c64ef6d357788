"""A model folder in the layout of the hub or of mlx-lm: checked first, then read by mlx-lm.

mlx-lm maps the weight files lazily, so a truncated one would fail late and unclearly, somewhere
in the first forward pass; `check_folder` finds it before.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.utils import dequantize_model, load_model

from mlx_companion.errors import WeightsError


def weight_files(folder: Path) -> list[Path]:
    """The files that mlx-lm reads weights from, in a fixed order."""
    return sorted(folder.glob("model*.safetensors"))


def check_folder(folder: Path) -> None:
    """Check that a folder holds a whole model.

    Raises:
        WeightsError: configuration or weights are missing, cut short or not what they should be.
    """
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise WeightsError(
            f"{folder / 'config.json'} has no 'model_type'; expected the configuration of a "
            "transformers or mlx-lm model"
        )
    files = weight_files(folder)
    if not files:
        raise WeightsError(
            f"{folder} holds no weights (model*.safetensors); convert other formats with "
            "mlx_lm.convert"
        )
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        missing = set(read_json(index).get("weight_map", {}).values()) - {f.name for f in files}
        if missing:
            raise WeightsError(
                f"{folder} lacks the weight file '{min(missing)}'; copy or download it again"
            )
    for file in files:
        check_safetensors(file)


def read_json(path: Path) -> Any:
    """A JSON file of a model folder.

    Raises:
        WeightsError: it is missing or malformed.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(f"{path.parent} is no model folder: it has no {path.name}") from None
    except ValueError as error:
        raise WeightsError(f"{path} is not valid JSON ({error}); fetch it again") from error


def check_safetensors(path: Path) -> None:
    """Compare a safetensors file's length with what its header says.

    Raises:
        WeightsError: cut short, or no safetensors file.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        try:
            header = json.loads(file.read(length) if length <= size - 8 else b"")
            ends = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"]
        except (ValueError, TypeError, KeyError, AttributeError, IndexError):
            raise WeightsError(
                f"{path} is cut short or no safetensors file ({size} bytes); fetch it again"
            ) from None
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise WeightsError(f"{path} has {size} bytes, expected {expected}; fetch it again")


def load_folder(
    folder: Path, dtype: mx.Dtype | None, dequantize: bool
) -> tuple[nn.Module, dict[str, Any]]:
    """Build the model of a checked folder; its arrays are not evaluated yet.

    Args:
        folder: see `check_folder`.
        dtype: number type of weights that are not packed; None leaves the files' own.
        dequantize: turn packed layers into plain ones.

    Raises:
        WeightsError: the architecture is unknown to mlx-lm, or the weights do not fit it.
    """
    try:
        model, config = load_model(folder, lazy=True)
    except (ValueError, RuntimeError, TypeError, KeyError) as error:
        raise WeightsError(f"{folder} cannot be loaded: {_reason(error)}") from error
    if dtype is not None:
        # Before dequantizing, so that scale times value is not rounded to the scale's type.
        model.set_dtype(dtype)
    if dequantize and ("quantization" in config or "quantization_config" in config):
        model = dequantize_model(model)
        config = {k: v for k, v in config.items() if not k.startswith("quantization")}
        if dtype is not None:
            model.set_dtype(dtype)
    model.eval()
    return model, config


def _reason(error: Exception) -> str:
    text = str(error)
    if "not supported" in text:
        return f"{text.rstrip('.')} by mlx-lm; choose another model or update mlx-lm"
    if isinstance(error, (TypeError, KeyError)):
        return f"its config.json lacks something or has it in another form ({text})"
    return f"{text[:500]}"
