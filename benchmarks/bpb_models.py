"""The four models of `blt_bpb`, and how one of them is trained: shapes and settings in one place.

All of them are made of the same layers and trained by the same trainer with the same optimizer on
the same books in rows of the same length in bytes; they differ in what a position is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mlx_companion.blt import (
    BlockConfig,
    BltModel,
    ByteLM,
    ByteLMConfig,
    PatchConfig,
    blt_preset,
    calibrate_threshold,
    entropy_preset,
    flat_preset,
    load,
    save,
)
from mlx_companion.runtime.files import atomic_path, atomic_write_json
from mlx_companion.runtime.seeds import seed_everything
from mlx_companion.text.documents import FlatText, flatten, read_documents
from mlx_companion.training.byte_models import text_entropies, train_byte_model
from mlx_companion.training.byte_runs import byte_settings
from mlx_companion.training.callbacks import Callback, MetricsLog

MODELS = ("flat", "token", "blt-space", "blt-entropy")
CONTEXT = 1024  # bytes per row, of the small presets
VOCABULARY = 4096
TOKEN_CONTEXT = 256  # tokens per row, of about 4 bytes
PATCH_BYTES = 6.0
# The entropy model's training counts as training of the model that it serves.
ENTROPY_FLOPS = 1e13

TOKEN = BlockConfig(256, 4, 4, 640, rope_theta=1e4)
SETTINGS = byte_settings()
BATCH_BYTES = 8192


@dataclass(frozen=True)
class Workplace:
    """Where things lie.

    Attributes:
        data: folder with `train/` and `valid/`, text files in each.
        out: what the runs write.
    """

    data: Path
    out: Path

    def training(self) -> list[bytes]:
        """The documents to train on."""
        return read_documents(self.data / "train")

    def held_out(self) -> bytes:
        """The book to measure on."""
        return b"".join(read_documents(self.data / "valid"))


def train(name: str, place: Workplace, flops: float, watch: Callback, batch_bytes: int) -> None:
    """Train one model to its end; started again, it goes on where it was.

    Args:
        name: of `MODELS`.
        place: where data and results lie.
        flops: of training, the entropy model's share included.
        watch: told of the progress.
        batch_bytes: bytes per step.
    """
    folder = place.out / name
    if (folder / "model").is_dir():
        return
    seed_everything(SETTINGS.seed)
    settings = replace(SETTINGS, max_flops=flops, batch_tokens=batch_bytes)
    extra: dict = {"callbacks": [MetricsLog(folder / "metrics.jsonl"), watch]}
    folder.mkdir(parents=True, exist_ok=True)
    if name == "token":
        text, _ = token_text(place)
        settings = replace(settings, batch_tokens=batch_bytes // CONTEXT * TOKEN_CONTEXT)
    else:
        text = flatten(place.training())
    model = build(name, place)
    if name == "blt-entropy":
        settings = replace(settings, max_flops=flops - ENTROPY_FLOPS)
        extra["entropies"] = entropies(place, text)
    train_byte_model(model, text, settings, folder, **extra)
    save(model, folder / "model")


def build(name: str, place: Workplace) -> BltModel | ByteLM:
    """A model with the weights that its training starts from."""
    if name == "flat":
        return ByteLM(flat_preset("small"))
    if name == "token":
        return ByteLM(ByteLMConfig(TOKEN, vocabulary=VOCABULARY, context=TOKEN_CONTEXT))
    if name == "blt-space":
        return BltModel(blt_preset("small", PatchConfig("space")))
    rule = PatchConfig("entropy", threshold=threshold(place))
    model = BltModel(blt_preset("small", rule))
    entropy_model = load(place.out / "entropy" / "model")
    model.model.patcher.update(entropy_model.model.parameters())
    model.model.patcher.freeze()
    return model


def train_entropy_model(place: Workplace, watch: Callback) -> None:
    """The model that places the boundaries of "blt-entropy"."""
    folder = place.out / "entropy"
    if (folder / "model").is_dir():
        return
    folder.mkdir(parents=True, exist_ok=True)
    seed_everything(SETTINGS.seed)
    settings = replace(SETTINGS, lr=0.015, max_flops=ENTROPY_FLOPS, batch_tokens=4096)
    model = ByteLM(entropy_preset("small"))
    log = MetricsLog(folder / "metrics.jsonl")
    text = flatten(place.training())
    train_byte_model(model, text, settings, folder, callbacks=[log, watch])
    save(model, folder / "model")


def entropies(place: Workplace, text: FlatText) -> np.ndarray:
    """Entropies of the training text, computed once."""
    return text_entropies(load(place.out / "entropy" / "model"), text, place.out / "entropies")


def threshold(place: Workplace) -> float:
    """The entropy above which a patch begins, for `PATCH_BYTES` bytes per patch."""
    found = place.out / "threshold.json"
    if not found.exists():
        some = entropies(place, flatten(place.training()))[:2_000_000]
        value = calibrate_threshold(np.asarray(some), PATCH_BYTES, PatchConfig("entropy"))
        atomic_write_json(found, value)
    return json.loads(found.read_text())


def tokenizer(place: Workplace) -> Callable[[bytes], list[int]]:
    """A BPE tokenizer over `VOCABULARY` pieces of the training text; it keeps every byte."""
    import sentencepiece

    path = place.out / "tokenizer.model"
    if not path.exists():
        place.out.mkdir(parents=True, exist_ok=True)
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(place.training()),
            model_prefix=str(path.with_suffix("")),
            model_type="bpe",
            vocab_size=VOCABULARY,
            byte_fallback=True,
            character_coverage=0.9995,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            user_defined_symbols=["\n"],
            minloglevel=2,
        )
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return lambda document: processor.encode(document.decode("utf-8", "replace"))


def token_text(place: Workplace) -> tuple[FlatText, float]:
    """The training text as tokens, encoded once, and its bytes per token."""
    documents = place.training()
    kept = place.out / "tokens.npz"
    if not kept.exists():
        encode = tokenizer(place)
        with atomic_path(kept) as temporary, open(temporary, "wb") as file:
            np.savez(file, *[np.array(encode(document), np.uint16) for document in documents])
    with np.load(kept) as stored:
        pieces = iter([stored[f"arr_{i}"] for i in range(len(documents))])
    text = flatten(documents, lambda _: next(pieces))
    return text, text.bytes / (len(text.ids) - len(documents))


def _lines(documents: list[bytes]) -> Iterator[str]:
    for document in documents:
        yield from document.decode("utf-8").split("\n")
