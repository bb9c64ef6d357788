"""Sentence embeddings: texts in, unit vectors out.

Reads a folder in the layout of sentence-transformers whose transformer is a BERT (MiniLM, BGE,
E5, GTE and their kin) and computes what that library computes, in MLX. Always float32: vectors
are compared with each other over years, and the models are small.

    encoder = load_encoder()
    vectors = encoder.encode(["a warm day", "sunny weather"])    # (2, 384)
    similarity = vectors[0] @ vectors[1]

Source: Reimers and Gurevych, "Sentence-BERT", 2019.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import numpy as np
from tokenizers import Tokenizer

from mlx_companion.errors import ModelNotFoundError, WeightsError
from mlx_companion.models.bert import Bert, BertConfig, mlx_name
from mlx_companion.models.fetch import fetch
from mlx_companion.models.folder import check_folder, read_json, weight_files
from mlx_companion.models.hashing import content_sha256
from mlx_companion.models.registry import ALIASES, DEFAULT_ENCODER

Pooling = Literal["mean", "cls"]


@dataclass(frozen=True)
class SentenceEncoder:
    """A loaded sentence encoder.

    Attributes:
        model: the transformer.
        tokenizer: its tokenizer, cutting texts at the model's own limit.
        pooling: how a text's hidden states (L, D) become one vector: their mean, or the first.
        path: where it came from.
        sha256: content hash of its weights, hex; vectors of different encoders do not compare.
    """

    model: Bert
    tokenizer: Tokenizer
    pooling: Pooling
    path: Path
    sha256: str

    @property
    def dimensions(self) -> int:
        """Length D of a vector."""
        return self.model.config.hidden_size

    def encode(self, texts: Sequence[str], batch_size: int = 64) -> np.ndarray:
        """Embed texts.

        Args:
            texts: any number; each is cut at the model's limit (256 tokens for MiniLM).
            batch_size: texts per forward pass. Texts of like length go together.

        Returns:
            (N, D) float32, rows of length 1, in the order of `texts`.
        """
        if isinstance(texts, str):
            raise TypeError("encode takes a list of texts, and was given one text")
        vectors = np.zeros((len(texts), self.dimensions), dtype=np.float32)
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]
        for batch in _batches([len(row) for row in rows], batch_size):
            vectors[batch] = self._forward([rows[i] for i in batch])
        return vectors

    def _forward(self, rows: list[list[int]]) -> np.ndarray:
        tokens = np.zeros((len(rows), max(map(len, rows))), dtype=np.int32)
        mask = np.zeros(tokens.shape, dtype=bool)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = row
            mask[i, : len(row)] = True
        return np.array(self._embed(mx.array(tokens), mx.array(mask)))

    def _embed(self, tokens: mx.array, mask: mx.array) -> mx.array:
        hidden = self.model(tokens, mask)
        if self.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            weights = mask[..., None].astype(hidden.dtype)
            pooled = (hidden * weights).sum(axis=1) / weights.sum(axis=1)
        return pooled / mx.maximum(mx.linalg.norm(pooled, axis=-1, keepdims=True), 1e-12)


def _batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices of rows that go together, shortest first.

    A batch ends when it is full, or when the next row is so much longer than its first that
    padding would cost more than half of the work.
    """
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) == batch_size or lengths[i] > 2 * lengths[batch[0]] + 16):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def load_encoder(x: str | Path = DEFAULT_ENCODER) -> SentenceEncoder:
    """Load a sentence encoder.

    Args:
        x: an alias (`minilm-l6`), a hub id, or a folder in sentence-transformers' layout.

    Raises:
        ModelNotFoundError: `x` names nothing.
        DownloadError: it could not be fetched.
        WeightsError: not a BERT, a pooling other than mean or cls, or damaged files.
    """
    folder = _find(x)
    check_folder(folder)
    config = _read_config(folder)
    model = Bert(config)
    packed = read_json(folder / "config.json").get("quantization")
    _load_weights(model, folder, packed)
    tokenizer = _read_tokenizer(folder, config)
    digest = content_sha256(weight_files(folder))
    return SentenceEncoder(model, tokenizer, _read_pooling(folder), folder, digest)


def _find(x: str | Path) -> Path:
    path = Path(x).expanduser()
    if str(x).lower() in ALIASES or not path.exists():
        if isinstance(x, Path):
            raise ModelNotFoundError(f"there is no folder '{x}'; check the path")
        path = fetch(str(x))
    if not path.is_dir():
        raise ModelNotFoundError(f"'{x}' is not a sentence encoder; give its folder or an alias")
    return path


def _read_config(folder: Path) -> BertConfig:
    data = read_json(folder / "config.json")
    expected = {
        "model_type": "bert",
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
    }
    for key, value in expected.items():
        if data.get(key, value) != value:
            raise WeightsError(
                f"{folder} has {key} '{data[key]}'; sentence encoders with '{value}' can be read"
            )
    missing = [f.name for f in fields(BertConfig) if f.name not in data]
    if missing:
        raise WeightsError(f"{folder / 'config.json'} lacks '{missing[0]}'; fetch it again")
    return BertConfig(**{f.name: data[f.name] for f in fields(BertConfig)})


def _load_weights(model: Bert, folder: Path, packed: dict[str, Any] | None = None) -> None:
    """Read the weights; packed layers (see `quant`) become plain ones.

    A small encoder reads texts of many tokens, where packed products are no faster.
    """
    weights: dict[str, mx.array] = {}
    for file in weight_files(folder):
        arrays: Any = mx.load(str(file))
        for name, value in arrays.items():
            if (here := mlx_name(name)) is not None:
                floating = mx.issubdtype(value.dtype, mx.floating)
                weights[here] = value.astype(mx.float32) if floating else value
    if packed is not None:
        weights = _unpacked(weights, packed, folder)
    try:
        model.load_weights(list(weights.items()), strict=True)
    except ValueError as error:
        raise WeightsError(f"the weights in {folder} are not those of a BERT: {error}") from error
    model.eval()
    mx.eval(model.parameters())


def _unpacked(
    weights: dict[str, mx.array], packed: dict[str, Any], folder: Path
) -> dict[str, mx.array]:
    plain = {}
    for name, value in weights.items():
        stem, _, leaf = name.rpartition(".")
        if leaf in ("scales", "biases"):
            continue
        if f"{stem}.scales" in weights and leaf == "weight":
            own = packed.get(stem, packed)
            try:
                how = {key: own[key] for key in ("group_size", "bits")} | {
                    "mode": own.get("mode", "affine")
                }
                value = mx.dequantize(
                    value, weights[f"{stem}.scales"], weights.get(f"{stem}.biases"), **how
                ).astype(mx.float32)
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                raise WeightsError(
                    f"{folder} says that {stem} is packed in a way that does not fit: {error}"
                ) from error
        plain[name] = value
    return plain


def _read_tokenizer(folder: Path, config: BertConfig) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:
        raise WeightsError(f"the tokenizer in {folder} cannot be read ({error})") from error
    limit = config.max_position_embeddings
    settings = folder / "sentence_bert_config.json"
    if settings.is_file():
        limit = min(limit, read_json(settings).get("max_seq_length") or limit)
    # The file may carry limits of its own (128 for MiniLM, where the model's setting is 256).
    tokenizer.enable_truncation(max_length=limit)
    tokenizer.no_padding()
    return tokenizer


def _read_pooling(folder: Path) -> Pooling:
    settings = folder / "1_Pooling" / "config.json"
    if not settings.is_file():
        return "mean"
    modes = {
        key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
        for key, value in read_json(settings).items()
        if key.startswith("pooling_mode_") and value is True
    }
    if modes == {"mean"}:
        return "mean"
    if modes == {"cls"}:
        return "cls"
    raise WeightsError(
        f"{settings} asks for pooling by {sorted(modes)}; mean alone or cls alone can be done"
    )
