"""How well a byte model predicts a text: bits per byte, and what a byte costs.

    bits_per_byte(model, "book.txt")                # 1.83
    found = evaluate(model, Path("books/"))
    print(found.bits_per_byte, found.mean_patch_bytes, found.flops_per_byte)

bits per byte = -(1 / bytes) sum over bytes of log2 p(byte | bytes before it). Nothing is left out:
the first byte is predicted from BOS alone, and a text longer than the model's context is read in
overlapping windows that predict each byte once (see `windows`).

A text is given as bytes, as a `Path` (a file, `.gz` or not, or a folder of `.txt` and `.txt.gz`
files), or as a string: the file of that name where there is one, else the text itself.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_companion.blt.byte_lm import ByteLM
from mlx_companion.blt.flops import inference_flops
from mlx_companion.blt.model import BltModel
from mlx_companion.blt.windows import Windows, default_stride, window_batches, window_count
from mlx_companion.errors import DataError, ModelError
from mlx_companion.kernels.linear_cross_entropy import linear_cross_entropy
from mlx_companion.text.byte_text import BOS, decode_bytes, encode_bytes
from mlx_companion.text.documents import read_documents

TextOrPath = str | bytes | Path
Progress = Callable[[int, int], None]

_FILE_ENDINGS = (".txt", ".gz")


@dataclass(frozen=True)
class Evaluation:
    """How a text was predicted. `float(evaluation)` is its bits per byte.

    Attributes:
        bits_per_byte: the mean.
        nats: the sum over all bytes, in nats.
        bytes: of the text.
        patches: that the text was divided into.
        mean_patch_bytes: bytes per patch; 1 for a flat model.
        flops_per_byte: floating-point operations of a forward pass per byte (see `flops`), each
            byte read once.
        context, stride: positions of a window, and from one window to the next.
        windows: how many were read.
        seconds: that it took.
    """

    bits_per_byte: float
    nats: float
    bytes: int
    patches: int
    mean_patch_bytes: float
    flops_per_byte: float
    context: int
    stride: int
    windows: int
    seconds: float

    def __float__(self) -> float:
        return self.bits_per_byte

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self)


def bits_per_byte(
    model: BltModel | ByteLM,
    text: TextOrPath,
    *,
    context: int | None = None,
    stride: int | None = None,
    batch_rows: int | None = None,
) -> float:
    """Bits per byte of a text. Arguments and errors as of `evaluate`."""
    return evaluate(
        model, text, context=context, stride=stride, batch_rows=batch_rows
    ).bits_per_byte


def evaluate(
    model: BltModel | ByteLM,
    text: TextOrPath,
    *,
    context: int | None = None,
    stride: int | None = None,
    batch_rows: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Predict a text and measure how well that went.

    Args:
        model: a byte latent transformer, or a flat model over bytes.
        text: see the module; the files of a folder are texts of their own.
        context: positions of a window; default: the model's.
        stride: from one window to the next, 1 to `context`; the smaller, the more each byte has in
            front of it and the longer it takes. Default: half a context.
        batch_rows: windows at a time; default: as many as make 8,192 positions.
        progress: called with bytes done and bytes in all.

    Raises:
        DataError: the text is empty, or a file cannot be read.
        ConfigError: a context or stride out of range.
        ModelError: the model's predictions are not numbers.
    """
    began = time.perf_counter()
    documents = read_text(text)
    context = model.config.context if context is None else context
    stride = default_stride(context) if stride is None else stride
    nats, patches, done, total = 0.0, 0, 0, sum(map(len, documents))
    for document in documents:
        ids = encode_bytes(document, bos=False)
        for _, values, opened in _predictions(model, ids, BOS, context, stride, batch_rows):
            nats += float(values.sum(dtype=np.float64))
            patches += opened
            done += len(values)
            if progress is not None:
                progress(done, total)
    mean = total / patches
    return Evaluation(
        bits_per_byte=nats / math.log(2) / total,
        nats=nats,
        bytes=total,
        patches=patches,
        mean_patch_bytes=mean,
        flops_per_byte=inference_flops(model.config, mean, min(context, total)).total,
        context=context,
        stride=stride,
        windows=sum(window_count(len(document), context, stride) for document in documents),
        seconds=time.perf_counter() - began,
    )


def nats_of_ids(
    model: BltModel | ByteLM,
    ids: Any,
    *,
    bos: int = BOS,
    context: int | None = None,
    stride: int | None = None,
    batch_rows: int | None = None,
) -> np.ndarray:
    """Cross-entropy of each id of a text, for models of any vocabulary.

    Args:
        model: bytes or tokens, with `bos` in front of its texts.
        ids: (T,) int, without BOS.
        bos: the id in front.
        context, stride, batch_rows: as of `evaluate`, in ids.

    Returns:
        (T,) float32, nats.

    Raises:
        DataError: no ids.
        ConfigError: a context or stride out of range.
        ModelError: the model's predictions are not numbers.
    """
    flat = np.asarray(ids).ravel()
    if not len(flat):
        raise DataError("there are no ids to predict; give a text of one byte or more")
    context = model.config.context if context is None else context
    nats = np.empty(len(flat), dtype=np.float32)
    for places, values, _ in _predictions(model, flat, bos, context, stride, batch_rows):
        nats[places] = values
    return nats


def read_text(text: TextOrPath) -> list[bytes]:
    """The documents that a text or path stands for, as bytes; see the module.

    Raises:
        DataError: no text in it, a file cannot be read, or a string that looks like the name of a
            file that is not there.
    """
    if isinstance(text, str) and not os.path.isfile(text):
        if text.endswith(_FILE_ENDINGS) and "\n" not in text:
            raise DataError("there is no such file; for a text of that name, give bytes", path=text)
        text = decode_bytes(encode_bytes(text))
    if isinstance(text, str | Path):
        return read_documents(text)
    if not text:
        raise DataError("the text is empty; give one byte or more")
    return [bytes(text)]


def _predictions(
    model: BltModel | ByteLM,
    ids: np.ndarray,
    bos: int,
    context: int,
    stride: int | None,
    batch_rows: int | None,
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Places (M,), their cross-entropies (M,) in nats, and the patches that they open."""
    for windows in window_batches(len(ids), context=context, stride=stride, batch_rows=batch_rows):
        nats, closes = _run(model, windows, ids, bos)
        counted = windows.counted
        values = nats[counted]
        if not np.isfinite(values).all():
            raise ModelError(
                "the model's predictions are not finite numbers; its weights are damaged, so load "
                "or train it again"
            )
        opened = values.size if closes is None else int(closes[counted].sum())
        yield windows.places[counted], values, opened


def _run(
    model: BltModel | ByteLM, windows: Windows, ids: np.ndarray, bos: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Cross-entropies (B, N) in nats and, for a patching model, `Patching.closes` (B, N).

    A byte opens a patch exactly if the patches are closed after the byte before it, so over the
    predictions that count, each decision is made once.
    """
    inputs = mx.array(windows.inputs(ids, bos))
    labels = mx.array(ids[windows.places].astype(np.int32))
    closes = None
    if isinstance(model, BltModel):
        patching = model.patching(inputs)
        hidden = model.hidden(inputs, patching)
        closes = np.asarray(patching.closes)
    else:
        hidden = model.hidden(inputs)
    nats = linear_cross_entropy(
        hidden.reshape(-1, hidden.shape[-1]), model.lm_head, labels.reshape(-1), gradient=False
    )
    return np.asarray(nats).reshape(labels.shape), closes
