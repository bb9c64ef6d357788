"""Training of byte models: flat ones, entropy models and byte latent transformers.

    text = flatten(read_documents("books/"))
    entropy_model = ByteLM(ByteLMConfig(BlockConfig(64, 2, 1, 128, window=128)))
    train_byte_model(entropy_model, text, config, "run/entropy")
    entropies = text_entropies(entropy_model, text, "run/entropies")     # once, kept on the disk
    train_byte_model(blt, text, config, "run/blt", entropies=entropies)

All of it is the one trainer (`Trainer`) with packed rows, the packed loss and a count of FLOPs: it
resumes from its checkpoints as every run does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_companion.blt.byte_lm import ByteLM
from mlx_companion.blt.config import BltConfig
from mlx_companion.blt.flops import TRAINING_FACTOR, inference_flops
from mlx_companion.blt.model import BltModel
from mlx_companion.blt.patchers import make_patching
from mlx_companion.blt.patching import Patching
from mlx_companion.errors import ConfigError
from mlx_companion.kernels.linear_cross_entropy import Head
from mlx_companion.runtime.config import config_hash
from mlx_companion.runtime.monitor import ResourceMonitor
from mlx_companion.runtime.stop import NEVER, StopSwitch
from mlx_companion.text.array_cache import cached_array
from mlx_companion.text.documents import FlatText
from mlx_companion.text.packing import PackedBatch, PackedRows
from mlx_companion.training.callbacks import Callback
from mlx_companion.training.config import TrainConfig
from mlx_companion.training.packed_loss import PackedLoss, call_with_documents
from mlx_companion.training.state import TrainSummary
from mlx_companion.training.trainer import Trainer

ENTROPIES = "entropies"
# Bytes that the entropy model reads at a time when it goes through a text.
_STRETCH = 8192


def train_byte_model(
    model: ByteLM | BltModel,
    text: FlatText,
    config: TrainConfig,
    out: str | Path,
    *,
    valid: FlatText | None = None,
    entropies: np.ndarray | None = None,
    callbacks: Iterable[Callback] = (),
    monitor: ResourceMonitor | None = None,
    stop: StopSwitch = NEVER,
    resume: bool = True,
) -> TrainSummary:
    """Train a byte model on a text; started again after a kill, it goes on from its checkpoint.

    Args:
        model: what is trained; an entropy model inside a BLT stays as it is.
        text: the documents.
        config: `batch_tokens` / the model's context rows make a micro-batch.
        out: folder of the run; checkpoints go below it.
        valid: held-out documents.
        entropies: (T,) of the text's ids, for a BLT whose patches need them (see
            `text_entropies`); without them the model's own entropy model runs in every step.
        callbacks, monitor, stop: see `Trainer`.
        resume: False starts over.

    Raises:
        ConfigError: entropies for a model that does not read them, or too few of them.
        TrainingError, CheckpointError, Stopped, DiskFullError: see `Trainer.run`.
    """
    context = model.config.context
    rows = max(1, config.batch_tokens // context)
    extra = {} if entropies is None else {ENTROPIES: entropies}
    if extra and not (isinstance(model, BltModel) and model.config.patching.needs_entropies):
        raise ConfigError("entropies were given to a model whose patches do not come from them")
    train = PackedRows(text, context=context, batch_rows=rows, seed=config.seed, extra=extra)
    held_out = None
    if valid is not None:
        held_out = PackedRows(valid, context=context, batch_rows=rows, shuffle=False)
    trainer = Trainer(
        model,
        train,
        valid=held_out,
        loss=PackedLoss(states_of_batch),
        config=config,
        callbacks=callbacks,
        monitor=monitor,
        stop=stop,
        checkpoints=Path(out) / "checkpoints",
        run_hash=_run_hash(model, text, config, entropies is not None),
        flops=training_flops(model),
    )
    return trainer.run(resume=resume)


def states_of_batch(model: nn.Module, batch: PackedBatch) -> tuple[mx.array, Head]:
    """Hidden states (B, N, D) of a packed batch, and the layer that makes logits of them."""
    if isinstance(model, BltModel):
        states = model.hidden(batch.ids, batch_patching(model, batch), batch.documents)
        return states, model.lm_head
    return call_with_documents(model, batch)


def batch_patching(model: BltModel, batch: PackedBatch) -> Patching:
    """The patches of a packed batch, from the entropies that ride along if there are any."""
    if ENTROPIES not in batch.extra:
        return model.patching(batch.ids, batch.documents, batch.lengths)
    rule = model.config.patching
    return make_patching(batch.ids, rule, batch.extra[ENTROPIES], batch.documents, batch.lengths)


def training_flops(model: ByteLM | BltModel) -> Callable[[PackedBatch], float]:
    """Counts the floating-point operations of training on a batch, the entropy model's included.

    The trained parts count three times their forward pass, the entropy model once.
    """
    config = model.config
    if not isinstance(config, BltConfig):
        each = TRAINING_FACTOR * inference_flops(config).total
        return lambda batch: each * float(batch.lengths.sum())

    def count(batch: PackedBatch) -> float:
        assert isinstance(model, BltModel)
        bytes_read = float(batch.lengths.sum())
        opened = float((batch_patching(model, batch).opens & (batch.mask > 0)).sum())
        cost = inference_flops(config, bytes_read / max(opened, 1.0))
        return bytes_read * (TRAINING_FACTOR * cost.trained + cost.entropy)

    return count


def text_entropies(
    model: ByteLM | BltModel, text: FlatText, folder: str | Path | None = None
) -> np.ndarray:
    """Entropy of the next byte at every position of a text.

    Args:
        model: an entropy model, or a BLT with one.
        text: the documents.
        folder: where the result is kept, for this text and these weights; None to keep nothing.

    Returns:
        (T,) float32, nats, as a forward pass over each whole document would give.
    """
    if folder is None:
        return _text_entropies(model, text)
    fingerprint = f"{text.sha256}-{weights_sha256(_entropy_part(model))}"
    return cached_array(folder, fingerprint, lambda: _text_entropies(model, text))


def weights_sha256(module: nn.Module) -> str:
    """Identifies the values of all parameters, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    parameters: dict[str, mx.array] = dict(tree_flatten(module.parameters()))
    for name in sorted(parameters):
        digest.update(name.encode())
        digest.update(np.array(parameters[name].astype(mx.float32)).tobytes())
    return digest.hexdigest()


def _entropy_part(model: ByteLM | BltModel) -> nn.Module:
    if isinstance(model, ByteLM):
        return model.model
    model.entropies(mx.array([[1]]))  # says so when there is none
    return model.model.patcher


def _text_entropies(model: ByteLM | BltModel, text: FlatText) -> np.ndarray:
    part = _entropy_part(model)
    # What a layer sees reaches one window further back than what the layer below it sees.
    window = part.block.window
    reach = part.block.layers * (window - 1) if window is not None else None
    found = np.empty(len(text.ids), dtype=np.float32)
    ends = [*text.starts[1:].tolist(), len(text.ids)]
    for start, end in zip(text.starts.tolist(), ends, strict=True):
        step = end - start if reach is None else _STRETCH
        for at in range(start, end, step):
            begin = start if reach is None else max(start, at - reach)
            ids = mx.array(text.ids[begin : min(at + step, end)].astype(np.int32))[None]
            found[at : at + step][: end - at] = np.array(part.entropies(ids))[0, at - begin :]
    return found


def _run_hash(model: ByteLM | BltModel, text: FlatText, config: TrainConfig, given: bool) -> str:
    parts = [config_hash(model.config), text.sha256, config_hash(config), str(given)]
    if isinstance(model, BltModel) and "patcher" in model.model:
        parts.append(weights_sha256(model.model.patcher))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
