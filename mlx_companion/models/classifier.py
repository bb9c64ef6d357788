"""Texts to labels: a small head over the hidden states of a language model.

    classifier = make_classifier(lm, ["greeting", "question"], pooling="last")
    ...train...                                 # `training.classifier_loss`
    classifier.save("runs/intents")
    classifier = load_classifier("runs/intents", lm)
    classifier.predict(["hello there"])[0].label

One vector of a text, the last token's hidden state or the mean over all, goes through one linear
layer. It may be taken after layer k of the model; the layers above then do not run at all. Against
generating the label it is one forward pass, gives a probability for every label, and never an
answer that is none.

A folder holds `head.safetensors` and `classifier.json`; nothing in it is executed when it is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_companion.errors import ConfigError, WeightsError
from mlx_companion.kernels import fast_math
from mlx_companion.models.fast_cpu import fast_cpu
from mlx_companion.models.heads import split_head
from mlx_companion.models.load import LanguageModel
from mlx_companion.runtime.files import atomic_dir
from mlx_companion.runtime.stop import NEVER, StopSwitch

FORMAT, FORMAT_VERSION = "mlx-companion-classifier", 1
WEIGHTS_FILE, CONFIG_FILE = "head.safetensors", "classifier.json"
_TEXT = "{text}"


@dataclass(frozen=True)
class ClassifierConfig:
    """What a classifier is, apart from its weights.

    Args:
        labels: in the order of the logits.
        pooling: "last" or "mean".
        layer: hidden states after so many layers; None for all of them.
        template: what a model reads; `{text}` stands for the text.
        max_tokens: texts are cut to so many tokens (those of the template come on top).
        dropout: of the vector, while training.
        odds: how many times likelier labels are in use than they were in the training data;
            probabilities are multiplied by them and made to sum to 1 again. A label for texts that
            belong to none is rare in data sets and common in life.

    Raises:
        ConfigError: fewer than two labels, one twice, or a value out of range.
    """

    labels: tuple[str, ...]
    pooling: Literal["last", "mean"] = "last"
    layer: int | None = None
    template: str = _TEXT
    max_tokens: int = 256
    dropout: float = 0.0
    odds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))
        if len(self.labels) < 2 or len(set(self.labels)) < len(self.labels):
            raise ConfigError(f"labels are {self.labels!r:.200}; expected two or more different")
        if self.pooling not in ("last", "mean"):
            raise ConfigError(f"pooling is {self.pooling!r}; expected 'last' or 'mean'")
        if self.layer is not None and self.layer < 1:
            raise ConfigError(f"layer is {self.layer}; expected 1 or more, or None")
        if self.template.count(_TEXT) != 1:
            raise ConfigError(f"template is {self.template!r}; expected {_TEXT} in it, once")
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens is {self.max_tokens}; expected 1 or more")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}; expected 0 up to, not including, 1")
        for label, times in self.odds.items():
            if label not in self.labels or not 0 < times < float("inf"):
                raise ConfigError(
                    f"odds of '{label}' are {times!r}; expected a label and a number over 0"
                )


@dataclass(frozen=True)
class Prediction:
    """A text's likeliest label, its probability, and those of all labels (C,) in their order."""

    label: str
    probability: float
    probabilities: np.ndarray = field(repr=False)


class ClassifierHead(nn.Module):
    """Pooled hidden states (B, D) to logits (B, C) float32, which start at zero.

    Args:
        width: D.
        labels: C.
        dropout: while training.
    """

    def __init__(self, width: int, labels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.weight = mx.zeros((labels, width))
        self.bias = mx.zeros((labels,))

    def __call__(self, pooled: mx.array) -> mx.array:
        """See the class."""
        return self.dropout(pooled.astype(mx.float32)) @ self.weight.T + self.bias


class Classifier(nn.Module):
    """A language model with a classification head; an MLX module that the trainer can train.

    Args:
        lm: the model, used as it is: with its adapters, frozen where it is frozen.
        config: see `ClassifierConfig`.

    Raises:
        ConfigError: the model has fewer layers than asked for, or cannot be cut before its head.
    """

    def __init__(self, lm: LanguageModel, config: ClassifierConfig) -> None:
        super().__init__()
        self.model = lm.model
        # Names with an underscore are no part of what is trained or saved.
        self._lm, self._config = lm, config
        _check_model(lm.model, config)
        width = hidden_states(lm.model, mx.zeros((1, 1), dtype=mx.int32), config.layer).shape[-1]
        self.head = ClassifierHead(width, len(config.labels), config.dropout)

    @property
    def config(self) -> ClassifierConfig:
        """What it is, apart from its weights."""
        return self._config

    @property
    def language_model(self) -> LanguageModel:
        """The model below the head."""
        return self._lm

    @property
    def layers(self) -> list[nn.Module]:
        """The model's layers, for gradient checkpointing."""
        return self.model.layers

    def __call__(self, tokens: mx.array, lengths: mx.array) -> mx.array:
        """Logits (B, C) float32 of rows of tokens (B, L), padded at the end, of lengths (B,)."""
        # Entered here: the trainer looks for the model's own module, and this one wraps it.
        with fast_cpu(self.model):
            hidden = hidden_states(self.model, tokens, self._config.layer)
        return self.head(pool(hidden, lengths, self._config.pooling))

    def encode(self, text: str) -> list[int]:
        """Tokens of a text in the template."""
        encode = self._lm.tokenizer.encode
        before, after = self._config.template.split(_TEXT)
        tokens = list(encode(before + text, verbose=False))
        room = self._config.max_tokens + (len(encode(before)) if before else 0)
        tail = list(encode(after, add_special_tokens=False)) if after else []
        return (tokens[:room] + tail) or [0]

    def predict(
        self, texts: Sequence[str], *, batch_tokens: int = 4096, switch: StopSwitch = NEVER
    ) -> list[Prediction]:
        """The likeliest label of each text.

        Args:
            texts: any number.
            batch_tokens: most tokens in a forward pass, rows x padded length; texts of like length
                go together.
            switch: consulted between batches.

        Raises:
            Stopped: the switch was thrown.
        """
        if isinstance(texts, str):
            raise TypeError("predict takes a list of texts, and was given one text")
        rows = [self.encode(text) for text in texts]
        shift = mx.log(
            mx.array([self._config.odds.get(label, 1.0) for label in self._config.labels])
        )
        was_training = self.training
        self.eval()
        found: dict[int, Prediction] = {}
        try:
            for batch in _batches([len(row) for row in rows], batch_tokens):
                switch.check()
                logits = self(*_padded([rows[i] for i in batch]))
                shares = np.array(fast_math.softmax(logits + shift))
                for i, row in zip(batch, shares, strict=True):
                    best = int(row.argmax())
                    found[i] = Prediction(self._config.labels[best], float(row[best]), row)
        finally:
            self.train(was_training)
        return [found[i] for i in range(len(rows))]

    def save(self, folder: str | Path, extra: Mapping[str, Any] | None = None) -> str:
        """Write the head, replacing an older one in one step; the model is not part of it.

        Args:
            folder: where to.
            extra: JSON values to keep with it.

        Returns:
            SHA-256 of its weights file.

        Raises:
            DiskFullError: no space; an older one is untouched.
        """
        with atomic_dir(folder) as temporary:
            return self.write(temporary, extra)

    def write(self, folder: Path, extra: Mapping[str, Any] | None = None) -> str:
        """As `save`, into a folder that is there, file by file: for folders that hold more."""
        from safetensors.numpy import save

        data = save({"weight": np.array(self.head.weight), "bias": np.array(self.head.bias)})
        sha256 = hashlib.sha256(data).hexdigest()
        about = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "classifier": asdict(self._config),
            "base_sha256": self._lm.base_sha256,
            "weights_sha256": sha256,
            "extra": dict(extra or {}),
        }
        (folder / WEIGHTS_FILE).write_bytes(data)
        text = json.dumps(about, ensure_ascii=False, indent=2) + "\n"
        (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
        return sha256


def make_classifier(lm: LanguageModel, labels: Sequence[str], **options: Any) -> Classifier:
    """A classifier that is not trained yet; options as in `ClassifierConfig`."""
    return Classifier(lm, ClassifierConfig(tuple(labels), **options))


def load_classifier(folder: str | Path, lm: LanguageModel) -> Classifier:
    """Read what `Classifier.save` wrote.

    Args:
        folder: where it is.
        lm: the model that it was trained on, with its adapter where it had one.

    Raises:
        WeightsError: missing, damaged, of an unknown format, or made for another model.
    """
    folder = Path(folder)
    about = read_classifier(folder)
    if about["base_sha256"] != lm.base_sha256:
        raise WeightsError(
            f"the classifier in {folder} was made for the model {about['base_sha256'][:12]}, this "
            f"one is {lm.base_sha256[:12]}; load the model it was trained on"
        )
    classifier = Classifier(lm, ClassifierConfig(**about["classifier"]))
    head = classifier.head
    weights = _read_weights(folder / WEIGHTS_FILE, about["weights_sha256"])
    for name, value in weights.items():
        if name not in ("weight", "bias") or value.shape != head[name].shape:
            raise WeightsError(f"{folder / WEIGHTS_FILE} does not fit the model: {name}")
    head.load_weights([(name, mx.array(value)) for name, value in weights.items()])
    classifier.eval()
    return classifier


def read_classifier(folder: str | Path) -> dict[str, Any]:
    """What `classifier.json` says: `classifier`, `base_sha256`, `weights_sha256`, `extra`.

    Raises:
        WeightsError: missing, damaged or of an unknown format.
    """
    path = Path(folder) / CONFIG_FILE
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if (about["format"], about["format_version"]) != (FORMAT, FORMAT_VERSION):
            raise WeightsError(f"{path} is of another format or version; update mlx-companion")
        ClassifierConfig(**about["classifier"])
        str(about["base_sha256"] + about["weights_sha256"])
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}); check the path") from error
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    return about


def hidden_states(model: nn.Module, tokens: mx.array, layer: int | None = None) -> mx.array:
    """Hidden states (B, L, D) after `layer` layers and the final norm; None for all layers."""
    with _first_layers(model, layer) if layer is not None else nullcontext():
        return split_head(model).backbone(tokens)


def pool(hidden: mx.array, lengths: mx.array, pooling: Literal["last", "mean"]) -> mx.array:
    """One vector (B, D) of each row of hidden states (B, L, D), of lengths (B,)."""
    if pooling == "last":
        return mx.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1).squeeze(1)
    inside = (mx.arange(hidden.shape[1])[None] < lengths[:, None]).astype(hidden.dtype)
    return (hidden * inside[..., None]).sum(axis=1) / lengths[:, None].astype(hidden.dtype)


@contextmanager
def _first_layers(model: nn.Module, count: int) -> Iterator[None]:
    inner = model.model
    whole = inner.layers
    inner.layers = whole[:count]
    try:
        yield
    finally:
        inner.layers = whole


def _check_model(model: nn.Module, config: ClassifierConfig) -> None:
    split_head(model)
    if getattr(model, "_companion_cut", "none") == "none":
        raise ConfigError(
            f"{type(model).__name__} cannot be cut before its output layer, so there are no hidden "
            "states to classify; use another model"
        )
    count = len(model.layers)
    if config.layer is not None and config.layer > count:
        raise ConfigError(f"layer is {config.layer}; the model has {count}")


def _read_weights(path: Path, expected: str) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != expected:
        raise WeightsError(f"{path} is corrupt or was replaced; its SHA-256 is not the one noted")
    try:
        return load(data)
    except (SafetensorError, ValueError) as error:
        raise WeightsError(f"{path} is not a readable safetensors file: {error}") from error


def _padded(rows: Sequence[Sequence[int]]) -> tuple[mx.array, mx.array]:
    lengths = [len(row) for row in rows]
    tokens = np.zeros((len(rows), max(lengths)), dtype=np.int32)
    for at, row in enumerate(rows):
        tokens[at, : len(row)] = row
    return mx.array(tokens), mx.array(lengths)


def _batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of rows that go together, shortest first."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[i] > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
