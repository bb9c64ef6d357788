"""`load(x)`: a language model and its tokenizer, whatever `x` names.

A thin layer over mlx-lm's loader. What it adds: aliases, GGUF files, one set of clear errors, a
content hash of the weights (an adapter is tied to the base it was trained on), every token that
ends a turn, and the right number type for the machine: bfloat16 and 4-bit weights are far slower
than float32 on MLX's CPU backend, so there everything becomes float32.

    model, tokenizer = load("smollm2-135m")
    base = load("path/to/folder"); base.model(tokens)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_companion.errors import ModelNotFoundError
from mlx_companion.models.as_read import AsRead
from mlx_companion.models.fetch import fetch
from mlx_companion.models.folder import check_folder, load_folder, weight_files
from mlx_companion.models.gguf import load_gguf
from mlx_companion.models.gguf_header import is_gguf, read_header
from mlx_companion.models.hashing import content_sha256
from mlx_companion.models.registry import ALIASES, DEFAULT_MODEL
from mlx_companion.models.tokenizer import wrap_folder_tokenizer, wrap_gguf_tokenizer

# Containers that later layers read, by name: imports go one way. Called as load's own readers are.
READERS = {".sou": "mlx_companion.quant.sou_model:load_companion"}


@dataclass
class LanguageModel:
    """A loaded model. Unpacks as `model, tokenizer = load(...)`.

    Attributes:
        model: the mlx-lm module; `model(tokens (B, L)) -> logits (B, L, V)`.
        tokenizer: mlx-lm's wrapper around a transformers fast tokenizer; its `eos_token_ids`
            hold every token that ends a reply.
        source: what was asked for (alias, hub id or path).
        path: the folder or GGUF file that the weights came from.
        base_sha256: content hash of the weight files, hex; the same wherever they lie.
        config: the model's configuration, in the terms of its `config.json`.
        as_read: what `would_load` compares with; None where that cannot be told.
    """

    model: nn.Module
    tokenizer: TokenizerWrapper
    source: str
    path: Path
    base_sha256: str
    config: dict[str, Any] = field(default_factory=dict)
    as_read: AsRead | None = field(default=None, repr=False, compare=False)

    def __iter__(self) -> Iterator[Any]:
        yield self.model
        yield self.tokenizer


def load(
    x: str | Path = DEFAULT_MODEL,
    *,
    dtype: mx.Dtype | None = None,
    dequantize: bool | None = None,
    lazy: bool = False,
) -> LanguageModel:
    """Load a model and its tokenizer.

    Args:
        x: an alias (`smollm2-135m`), a hub id (`owner/name`), a folder in the layout of the hub
            or of mlx-lm, a GGUF file, or a `.sou` file.
        dtype: number type of weights that are not packed. Default: float32 on the CPU backend;
            elsewhere that of the files.
        dequantize: turn packed weights into plain ones. Default: only on the CPU backend.
        lazy: leave the weights on the disk until they are first used.

    Returns:
        The model in evaluation mode, its tokenizer and what is known about them.

    Raises:
        ModelNotFoundError: `x` names nothing.
        DownloadError: the model could not be fetched.
        WeightsError: weights or configuration are missing, damaged or of an unsupported kind.
        SouError: a `.sou` file is damaged or hostile.
    """
    reader = _reader(x)
    if reader is not None:
        return reader(x, dtype=dtype, dequantize=dequantize)
    path = find_model(x)
    dtype, dequantize = _suitable(dtype, dequantize)
    loader = _load_gguf_file if path.is_file() else _load_model_folder
    result = loader(path, str(x), dtype, dequantize)
    if not lazy:
        mx.eval(result.model.parameters())
        result.as_read = AsRead.of(result.model, dtype, dequantize)
    return result


def would_load(x: str | Path, lm: LanguageModel) -> bool | None:
    """Whether `load(x)` would give the weights that a model has, told without reading them.

    Args:
        x: as in `load`; fetched when need be.
        lm: a model, without adapters.

    Returns:
        None where only reading tells: of folders, whose configuration lies beside the weights, of
        `.sou` files, and of models that were made otherwise.

    Raises:
        ModelNotFoundError, DownloadError: as in `load`.
    """
    if lm.as_read is None or _reader(x) is not None:
        return None
    path = find_model(x)
    if not (path.is_file() and lm.path.is_file()):
        return None
    if content_sha256([path]) != lm.base_sha256:
        return False
    asked = (lm.as_read.dtype, lm.as_read.dequantize)
    return asked == _suitable(None, None) and lm.as_read.holds(lm.model)


def gguf_tokenizer(x: str | Path) -> TokenizerWrapper:
    """The tokenizer of a GGUF file, without its weights. Raises as `load`."""
    return wrap_gguf_tokenizer(read_header(find_model(x)).metadata)


def _suitable(dtype: mx.Dtype | None, dequantize: bool | None) -> tuple[mx.Dtype | None, bool]:
    """What was asked for, and for the rest what suits the machine."""
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    wanted = mx.float32 if dtype is None and on_cpu else dtype
    return wanted, on_cpu if dequantize is None else dequantize


def _reader(x: str | Path) -> Callable[..., LanguageModel] | None:
    """The function that reads files of this kind, where it is not one of this module's."""
    target = READERS.get(Path(x).suffix.lower())
    if target is None or not Path(x).expanduser().is_file():
        return None
    module, _, name = target.partition(":")
    reader: Callable[..., LanguageModel] = getattr(import_module(module), name)
    return reader


def find_model(x: str | Path) -> Path:
    """The folder or GGUF file that `x` names, fetched when need be.

    Raises:
        ModelNotFoundError: `x` is no alias, hub id, folder or file.
        DownloadError: the model could not be fetched.
    """
    name, path = str(x), Path(x).expanduser()
    if name.lower() not in ALIASES and not path.exists():
        if isinstance(x, Path) or path.is_absolute() or name.startswith(("./", "../", "~")):
            raise ModelNotFoundError(f"there is no folder or file '{x}'; check the path")
        if name.endswith((".gguf", ".safetensors", ".sou")):
            raise ModelNotFoundError(f"there is no file '{x}'; check the path")
    if name.lower() in ALIASES or not path.exists():
        path = fetch(name)
    if path.is_file():
        if not is_gguf(path):
            raise ModelNotFoundError(
                f"'{x}' is a file but neither GGUF nor .sou; give the model's folder"
            )
        return path
    ggufs = sorted(path.glob("*.gguf"))
    return ggufs[0] if len(ggufs) == 1 and not weight_files(path) else path


def _load_gguf_file(
    path: Path, source: str, dtype: mx.Dtype | None, dequantize: bool
) -> LanguageModel:
    # Scales are stored as float16; bfloat16 would round them.
    model, header, config = load_gguf(path, dequantize, dtype or mx.float16)
    tokenizer = wrap_gguf_tokenizer(header.metadata)
    return LanguageModel(model, tokenizer, source, path, content_sha256([path]), config)


def _load_model_folder(
    path: Path, source: str, dtype: mx.Dtype | None, dequantize: bool
) -> LanguageModel:
    check_folder(path)
    model, config = load_folder(path, dtype, dequantize)
    tokenizer = wrap_folder_tokenizer(path, config)
    digest = content_sha256(weight_files(path))
    return LanguageModel(model, tokenizer, source, path, digest, config)
