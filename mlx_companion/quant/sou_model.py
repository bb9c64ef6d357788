"""A language model out of a `.sou` file: `load_companion`.

mlx-lm builds it, as from a folder; the weights reach it from the mapped file, one tensor at a
time, and no file of them is written. Configuration and tokenizer come from a stranger, so what
would make a loader run code, ask for code or build without end is refused first.

    lm = load_companion("mine.sou")
    with SouFile("mine.sou") as sou, adapter_folder(sou, "tone") as folder:
        load_adapter(folder, lm.model, lm.base_sha256)
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.utils import _get_classes, dequantize_model, load_model

from mlx_companion.errors import SouError
from mlx_companion.models.load import LanguageModel
from mlx_companion.models.tokenizer import wrap_folder_tokenizer
from mlx_companion.quant.sou_layout import Kind, Section
from mlx_companion.quant.sou_names import check_json_depth, parse_json
from mlx_companion.quant.sou_reader import MODEL, SouFile

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# What mlx-lm would import; what transformers would ask about, on the terminal, is only taken out.
_CODE_KEYS = ("model_file", "trust_remote_code")
_REMOTE_KEYS = ("auto_map", "custom_pipelines")
_MODULE_KEYS = ("chat_template_type", "tool_parser_type")
_DEPTHS = re.compile(r"layers|blocks|depth|experts", re.IGNORECASE)


def load_companion(
    path: str | Path,
    *,
    dtype: mx.Dtype | None = None,
    dequantize: bool | None = None,
    check: bool = True,
) -> LanguageModel:
    """Load the language model of a file, as `load` does from a folder.

    Args:
        path: the `.sou` file.
        dtype: number type of weights that are not packed. Default: float32 on the CPU backend;
            elsewhere that of the file.
        dequantize: turn packed weights into plain ones. Default: only on the CPU backend.
        check: compare every tensor with its SHA-256 (about 0.6 s for each 1000 MB).

    Returns:
        The model in evaluation mode. Its `base_sha256` is that of the weights it was packed
        from, so that adapters of that base fit.

    Raises:
        ModelNotFoundError: there is no such file.
        SouError: damaged, hostile, or without a language model.
        WeightsError: the tokenizer cannot be read.
    """
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    with SouFile(path) as sou, sou.named():
        config = _checked_config(sou)
        facts = sou.json(Kind.PROVENANCE) or {}
        if dtype is None:
            # Scales in GGUF files are float16; see `models.load`.
            plain = mx.float16 if facts.get("source") == "gguf" else None
            dtype = mx.float32 if on_cpu else plain
        weights = {name: sou.tensor(name, check=check) for name in sou.index()}
        with _texts(sou) as folder:
            tokenizer = wrap_folder_tokenizer(folder, config)
            model, config = _build(
                folder, weights, dtype, on_cpu if dequantize is None else dequantize
            )
        base = facts.get("base_sha256")
    if not isinstance(base, str) or not _SHA256.fullmatch(base):
        base = sou.header.digest.hex()
    mx.eval(model.parameters())
    return LanguageModel(model, tokenizer, str(path), Path(path), base, config)


@contextmanager
def adapter_folder(sou: SouFile, name: str) -> Iterator[Path]:
    """A temporary folder with one adapter, for `lora.load_adapter`.

    Raises:
        SouError: there is no such adapter, or it is damaged.
    """
    sections = [s for s in sou.all(Kind.ADAPTER) if s.name.split("/")[0] == name]
    if not sections:
        known = ", ".join(adapter_names(sou)) or "none"
        raise SouError(f"{sou.path}: there is no adapter '{name}'; there are: {known}")
    with tempfile.TemporaryDirectory(prefix="sou-") as folder:
        for section in sections:
            sou.copy(section, Path(folder) / section.name.split("/")[1])
        yield Path(folder)


def adapter_names(sou: SouFile) -> list[str]:
    """The adapters of a file, in alphabetical order."""
    return sorted({section.name.split("/")[0] for section in sou.all(Kind.ADAPTER)})


def _checked_config(sou: SouFile) -> dict[str, Any]:
    config = sou.json(Kind.CONFIG)
    if config is None or MODEL not in sou.tensor_sets:
        raise SouError("it holds no language model (configuration and weights)")
    _check_code(config, "its configuration")
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not _PLAIN_NAME.fullmatch(model_type):
        raise SouError(f"its configuration has the model_type {str(model_type)[:80]!r}")
    _check_depths(config, len(sou.index()))
    return config


def _check_code(config: Mapping[str, Any], what: str) -> None:
    for key in _CODE_KEYS:
        if config.get(key):
            raise SouError(f"{what} asks for code to be run ('{key}'); that is never done")
    for key in _MODULE_KEYS:
        value = config.get(key)
        if value is not None and not (isinstance(value, str) and _PLAIN_NAME.fullmatch(value)):
            raise SouError(f"{what} has a '{key}' that is no plain name")


def _check_depths(config: Mapping[str, Any], tensors: int) -> None:
    """A layer has at least one tensor: a configuration cannot ask for more layers than tensors."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            _check_depths(value, tensors)
        elif isinstance(value, int) and _DEPTHS.search(key) and value > max(tensors, 1024):
            raise SouError(f"its configuration has {key} = {value}, but {tensors} tensors")


@contextmanager
def _texts(sou: SouFile) -> Iterator[Path]:
    """A temporary folder with configuration and tokenizer, and no weights."""
    with tempfile.TemporaryDirectory(prefix="sou-") as name:
        folder = Path(name)
        for section in sou.sections:
            if section.kind in (Kind.CONFIG, Kind.TOKENIZER, Kind.GENERATION):
                target = folder / section.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(_harmless(section, sou.read(section)))
        # mlx-lm looks for a file of weights; those that count are handed over in `_build`.
        mx.save_safetensors(str(folder / "model.safetensors"), {})
        yield folder


def _harmless(section: Section, data: bytes) -> bytes:
    """A text as loaders may see it: checked, and without pointers to code."""
    if section.name.endswith(".json"):
        check_json_depth(data, str(section))
    if section.name not in ("config.json", "tokenizer_config.json"):
        return data
    value = parse_json(data, str(section))
    if not isinstance(value, dict):
        raise SouError(f"{section} is not a JSON object")
    _check_code(value, str(section))
    return json.dumps({k: v for k, v in value.items() if k not in _REMOTE_KEYS}).encode()


def _build(
    folder: Path, weights: dict[str, mx.array], dtype: mx.Dtype | None, dequantize: bool
) -> tuple[nn.Module, dict[str, Any]]:
    """The model that mlx-lm makes of a configuration and these weights."""
    try:
        model, config = load_model(folder, lazy=True, get_model_classes=_handing(weights))
        if dtype is not None:
            # Before dequantizing, so that scale times value is not rounded to the scale's type.
            model.set_dtype(dtype)
        if dequantize and ("quantization" in config or "quantization_config" in config):
            model = dequantize_model(model)
            config = {k: v for k, v in config.items() if not k.startswith("quantization")}
            if dtype is not None:
                model.set_dtype(dtype)
    except Exception as error:
        # A configuration can be wrong in as many ways as there are architectures.
        raise SouError(
            f"its model cannot be built by mlx-lm: {type(error).__name__}: {str(error)[:300]}"
        ) from error
    model.eval()
    return model, config


def _handing(weights: dict[str, mx.array]) -> Callable[[dict], tuple[Callable, type]]:
    """mlx-lm's choice of classes, but with a model that finds its weights when it cleans them."""

    def classes(config: dict) -> tuple[Callable, type]:
        model_class, args_class = _get_classes(config)

        def make(args: Any) -> nn.Module:
            model = model_class(args)
            clean = getattr(model, "sanitize", dict)

            def sanitize(_: dict) -> dict:
                # Only for this one load; afterwards the class's own is found again.
                del model.sanitize
                found = clean(dict(weights))
                weights.clear()
                return found

            model.sanitize = sanitize
            return model

        return make, args_class

    return classes
