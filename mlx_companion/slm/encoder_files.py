"""The default sentence encoder as files: is it on this disk, and its weights mapped into memory.

Modules that can do without an encoder read it where it is and never fetch it; mapped, it is not
loaded, and all that read it share the pages of one file::

    folder = cached_encoder(sha256)                    # None: not here, or another one
    tokenizer, rows = open_encoder(folder, layers=5)   # rows: see `bert_rows`
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlx_companion.errors import CompanionError, SLMError
from mlx_companion.runtime.logs import get_logger
from mlx_companion.slm.bert_rows import BertRows, Update

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_KINDS = {"F32": "<f4", "F16": "<f2"}

_log = get_logger(__name__)


def open_encoder(
    folder: Path, layers: int | None = None, update: Update | None = None
) -> tuple[Tokenizer, BertRows]:
    """The tokenizer of a published encoder, without padding, and the reading of its mapped file.

    Args:
        folder: of `model.safetensors`, `tokenizer.json`, `config.json`.
        layers, update: see `BertRows`.

    Raises:
        SLMError: it is no such encoder, or the update does not fit it.
    """
    from tokenizers import Tokenizer

    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        heads, epsilon = int(config["num_attention_heads"]), float(config["layer_norm_eps"])
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        weights = mapped_weights(folder / "model.safetensors")
        rows = BertRows(weights, heads, epsilon, layers=layers, update=update)
    except (OSError, KeyError, ValueError, TypeError, SLMError) as error:
        raise SLMError(f"no encoder that can be read in {folder} ({error})") from error
    except Exception as error:
        raise SLMError(f"the tokenizer in {folder} cannot be read ({error})") from error
    tokenizer.no_padding()
    return tokenizer, rows


def cached_encoder(sha256: str | None = None) -> Path | None:
    """The folder of the default encoder; None when it is not on this disk. It is not fetched.

    Args:
        sha256: the one that is wanted; of another there is none.
    """
    from mlx_companion.models import hub, wheel
    from mlx_companion.models.registry import DEFAULT_ENCODER, spec_for

    try:
        spec = spec_for(DEFAULT_ENCODER)
        folder = wheel.cached(spec) or hub.cached(spec)
        if folder is None or (sha256 is not None and encoder_sha256(folder) != sha256):
            return None
    except (CompanionError, OSError) as error:
        _log.warning("the encoder on this disk is not used: %s", error)
        return None
    return folder


def fetch_encoder(what: str) -> None:
    """Fetch the default encoder where it is not on this disk; when that fails, say so and go on.

    Args:
        what: goes on without it.
    """
    from mlx_companion.models.fetch import fetch
    from mlx_companion.models.registry import DEFAULT_ENCODER

    try:
        fetch(DEFAULT_ENCODER)
    except CompanionError as error:
        _log.warning("%s without the encoder: %s", what, error)


def encoder_sha256(folder: Path) -> str:
    """Content hash of an encoder's weights, hex."""
    from mlx_companion.models.folder import weight_files
    from mlx_companion.models.hashing import content_sha256

    return content_sha256(weight_files(folder))


def mapped_weights(path: Path) -> dict[str, np.ndarray]:
    """Floating-point tensors of a published BERT, mapped into memory and not read.

    Args:
        path: a safetensors file.

    Returns:
        Arrays under the names of `mlx_companion.models.bert.Bert`.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is cut off, or no safetensors file.
    """
    from mlx_companion.models.bert import mlx_name

    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(size))
    data = np.memmap(path, dtype=np.uint8, mode="r", offset=8 + size)
    arrays = {}
    for name, told in header.items():
        here = None if name == "__metadata__" else mlx_name(name)
        if here is not None and told["dtype"] in _KINDS:
            first, last = told["data_offsets"]
            array = data[first:last].view(np.ndarray).view(_KINDS[told["dtype"]])
            arrays[here] = array.reshape(told["shape"])
    return arrays
