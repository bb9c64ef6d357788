"""Train the heads over messages and replies that the drift monitor ships.

    made = train_head("user", HeadTraining(), backbone=backbone, encoder=encoder, comments=[...])
    made.arrays, made.settings, made.metrics

They learn from the sentences in `data/drift_training` (hand-written lines with choices, both
labels in the same words and moods) and from the texts in `data/written`, with Reddit comments
(GoEmotions) and generated replies as further harmless ones where they are given. Folds are cut by
line; an expert's worth in the sum, and how sure that may be, come from rows that it has not seen.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlx_companion.errors import ConfigError
from mlx_companion.runtime.stop import NEVER, StopSwitch
from mlx_companion.slm.attachment import NETWORK, NGRAM_SIZES, NGRAMS, TUNED, readable
from mlx_companion.slm.backbone import BaseSLMAdapter, EncoderAdapter
from mlx_companion.slm.blend import Blend, fit_blend
from mlx_companion.slm.drift_templates import read_slots, read_templates, variants
from mlx_companion.slm.drift_train_style import read_replies, read_voices
from mlx_companion.slm.linear import fit_logistic
from mlx_companion.slm.network import Network, NetworkConfig, fit_network
from mlx_companion.slm.ngrams import NGrams
from mlx_companion.slm.tuned_encoder import TuneConfig, Tuned, published, tune
from mlx_companion.slm.written import Written, written

# Head -> files of sentences that it looks for, and of those that it must let pass.
FILES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "user": (("user_attached",), ("user_plain",)),
    "assistant": (("assistant_attached",), ("assistant_plain", "boundary_kept", "polite")),
    "boundary": (("boundary_broken",), ("boundary_kept", "assistant_plain", "polite")),
    "hostile": (("hostile",), ("polite", "boundary_kept", "assistant_plain")),
}
# Head -> files of `data/written`; the harmless texts of the others are harmless for it, too.
WRITTEN: dict[str, tuple[str, ...]] = {
    "user": (
        "attached_user",
        "attached_user_pairs",
        "attached_user_mixed",
        "attached_user_everyday",
        "attached_user_long",
        "attached_user_about",
        "attached_user_quiet",
    ),
    "assistant": (
        "attached_assistant",
        "attached_assistant_pairs",
        "attached_assistant_mixed",
        "attached_assistant_everyday",
        "attached_assistant_long",
        "attached_assistant_answers",
        "attached_assistant_quiet",
    ),
    "boundary": ("boundary",),
}
# Heads that read replies of the assistant, for which generated replies are harmless examples.
_OF_REPLIES = ("assistant", "boundary", "hostile")
# Half of the rows are what a head looks for. In life few messages cling, and fewer replies cling,
# overstep or are rude: the log odds are lowered by so much, which costs little on unseen lines and
# spares ordinary texts.
_RARER = 0.5
# Messages are single and worth a forward pass; of many replies only the suspicious are.
_FLOORS = {"user": 0.0}
_FLOOR = 0.04
_FOLDS = 4
_STEPS = 120
_BATCH = 64
_Expert = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class HeadTraining:
    """Settings of the heads' training.

    Args:
        readings: variants made of each hand-written line.
        comments: Reddit comments taken as harmless ones.
        every_reply: one in so many of the generated replies is taken as a harmless one; all of
            the written voices are.
        comment_weight: how much a comment or a reply of a voice counts beside a written line.
        ngram_penalty: of the n-grams' weights.
        network: of the expert over hidden states and embeddings.
        tuned: heads for which the encoder is tuned.
        tuning: how.
        drawn: shares of texts written one by one, of readings, and of others that are part of an
            epoch of tuning.
        seed: of every choice made by chance.

    Raises:
        ConfigError: less than one reading.
    """

    readings: int = 5
    comments: int = 1200
    every_reply: int = 2
    comment_weight: float = 1.0
    ngram_penalty: float = 3e-5
    network: NetworkConfig = field(
        default_factory=lambda: NetworkConfig(members=2, hidden=96, epochs=15)
    )
    tuned: tuple[str, ...] = ("user", "assistant")
    tuning: TuneConfig = field(default_factory=lambda: TuneConfig(rate=3e-4, epochs=3))
    drawn: tuple[float, float, float] = (0.5, 0.3, 0.3)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.readings < 1:
            raise ConfigError(f"readings is {self.readings}; expected 1 or more")


@dataclass(frozen=True)
class HeadRows:
    """What a head is trained on.

    Attributes:
        texts: N of them.
        labels: (N,) 1 for what the head looks for.
        lines: (N,) texts with the same number belong together.
        weights: (N,) how much each counts.
        written: so many of the first are lines written for the head.
        lone: (N,) whether a text was written by itself, in `data/written`.
    """

    texts: list[str]
    labels: np.ndarray
    lines: np.ndarray
    weights: np.ndarray
    written: int
    lone: np.ndarray


@dataclass(frozen=True)
class TrainedHead:
    """A head for a pack: arrays by name, settings as JSON, held-out figures."""

    arrays: dict[str, np.ndarray]
    settings: dict[str, Any]
    metrics: dict[str, Any]


def train_head(
    name: str,
    config: HeadTraining,
    *,
    backbone: BaseSLMAdapter,
    encoder: BaseSLMAdapter | None = None,
    comments: Sequence[str] = (),
    stop: StopSwitch = NEVER,
) -> TrainedHead:
    """Train the experts of a head, and weigh them by what they say of lines they have not seen.

    Args:
        name: of the head.
        config: settings.
        backbone, encoder: whose features it reads; only an `EncoderAdapter` can be tuned.
        comments: further harmless texts.
        stop: consulted within.

    Raises:
        Stopped: the switch was thrown.
    """
    rows = head_rows(name, config, comments)
    fits = _fits(name, rows, config, [backbone, *([encoder] if encoder else [])], stop)
    every = np.arange(len(rows.texts))
    held_out = {}
    for kind, fit in fits.items():
        found = np.zeros(len(every))
        for fold in range(_FOLDS):
            out = rows.lines % _FOLDS == fold
            found[out] = fit(every[~out])[0](every[out])
        held_out[kind] = found
    arrays: dict[str, np.ndarray] = {}
    for fit in fits.values():
        arrays |= fit(every)[1]
    settings: dict[str, Any] = {"floor": _FLOORS.get(name, _FLOOR)}
    metrics: dict[str, Any] = {"rows": len(every)}
    for kind, experts in {"full": tuple(fits), "plain": (NGRAMS,)}.items():
        logits = {one: held_out[one] for one in experts}
        blend = fit_blend(logits, rows.labels, rows.weights).lowered(_RARER)
        settings[kind] = blend.to_settings()
        metrics[kind] = _measured(blend, logits, rows)
    return TrainedHead(arrays, settings, metrics)


def head_rows(name: str, config: HeadTraining, comments: Sequence[str] = ()) -> HeadRows:
    """The rows that a head is trained on."""
    slots = read_slots()
    texts: list[str] = []
    labels: list[int] = []
    lines: list[int] = []
    for label, files in zip((1, 0), FILES[name], strict=True):
        for line in (line for file in files for line in read_templates(file)):
            number = lines[-1] + 1 if lines else 0
            rng = random.Random(f"{config.seed} {line}")
            for text in variants(line, slots, count=config.readings, seed=config.seed):
                texts.append(_as_typed(text, rng))
                labels.append(label)
                lines.append(number)
    made = len(texts)
    for one, first in _written(name, lines[-1] + 1):
        for text in (one.text, _as_typed(one.text, random.Random(f"{config.seed} {one.text}"))):
            texts.append(text)
            labels.append(int(one.label))
            lines.append(first + one.pair)
    own = len(texts)
    others = list(comments[: config.comments])
    if name in _OF_REPLIES:
        spoken = [*read_replies()[:: config.every_reply], *read_voices()]
        others += [reply.text for reply in spoken]
    texts += others
    labels += [0] * len(others)
    last = max(lines)
    lines += range(last + 1, last + 1 + len(others))
    places = np.arange(len(texts))
    return HeadRows(
        [readable(text) for text in texts],
        np.array(labels),
        np.array(lines),
        _weights(np.array(labels), own, config.comment_weight),
        own,
        (places >= made) & (places < own),
    )


def _written(name: str, first: int) -> Iterator[tuple[Written, int]]:
    """Texts for a head, each with the number that its file's lines begin with."""
    for head in ("user",) if name == "user" else ("assistant", "boundary"):
        for file in WRITTEN[head]:
            found = written(file)
            yield from ((one, first) for one in found if head == name or not one.label)
            first += found[-1].pair + 1


def _weights(labels: np.ndarray, written: int, others: float) -> np.ndarray:
    """Written lines of both labels weigh the same in sum; the others little."""
    weights = np.full(len(labels), others)
    for label in (0, 1):
        own = np.flatnonzero(labels[:written] == label)
        weights[own] = written / (2 * len(own))
    return weights


_Fit = Callable[[np.ndarray], tuple[_Expert, dict[str, np.ndarray]]]


def _fits(
    name: str,
    rows: HeadRows,
    config: HeadTraining,
    readers: Sequence[BaseSLMAdapter],
    stop: StopSwitch,
) -> Mapping[str, _Fit]:
    """For each expert: from the rows it may see to its logits of rows, and its arrays."""
    grams = NGrams(NGRAM_SIZES).transform(rows.texts)
    dense = np.concatenate([_features(reader, rows.texts) for reader in readers], axis=1)

    def by_ngrams(seen: np.ndarray) -> tuple[_Expert, dict[str, np.ndarray]]:
        stop.check()
        head = fit_logistic(
            [grams[seen]],
            rows.labels[seen],
            row_weights=rows.weights[seen],
            penalties=config.ngram_penalty,
            classes=2,
            max_steps=_STEPS,
        )
        arrays = head.to_arrays(f"{name}.{NGRAMS}", "int8")
        return lambda out: head.logits([grams[out]])[:, 0], arrays

    def by_network(seen: np.ndarray) -> tuple[_Expert, dict[str, np.ndarray]]:
        network = fit_network(
            dense[seen],
            rows.labels[seen],
            row_weights=rows.weights[seen],
            config=config.network,
            stop=stop,
        )
        stored = network.to_arrays(f"{name}.{NETWORK}")
        network = Network.from_arrays(stored, f"{name}.{NETWORK}")
        return lambda out: network.logits(dense[out]), stored

    fits: dict[str, _Fit] = {NGRAMS: by_ngrams, NETWORK: by_network}
    encoder = readers[-1]
    if name in config.tuned and isinstance(encoder, EncoderAdapter):
        base = published(encoder)

        def by_tuning(seen: np.ndarray) -> tuple[_Expert, dict[str, np.ndarray]]:
            found = tune(
                base,
                [rows.texts[i] for i in seen],
                rows.labels[seen],
                row_weights=rows.weights[seen],
                drawn=_drawn(rows, config)[seen],
                config=config.tuning,
                stop=stop,
            )
            stored = found.to_arrays()
            found = Tuned.from_arrays(base, stored)
            named = {f"{name}.{key}": array for key, array in stored.items()}
            return lambda out: found.logits([rows.texts[i] for i in out]), named

        fits[TUNED] = by_tuning
    return fits


def _drawn(rows: HeadRows, config: HeadTraining) -> np.ndarray:
    lone, readings, others = config.drawn
    ours = np.arange(len(rows.texts)) < rows.written
    drawn: np.ndarray = np.where(rows.lone, lone, np.where(ours, readings, others))
    return drawn


def _measured(blend: Blend, logits: Mapping[str, np.ndarray], rows: HeadRows) -> dict[str, float]:
    called = blend(logits) >= 0.5
    ours = np.arange(len(rows.texts)) < rows.written
    right = called == (rows.labels == 1)
    figures = {"accuracy_on_unseen_lines": ours, "accuracy_on_unseen_texts": rows.lone}
    found = {key: _share(right[which]) for key, which in figures.items()}
    return found | {"false_positives_elsewhere": _share(called[~ours])}


def _share(hits: np.ndarray) -> float:
    return round(float(hits.mean()), 4) if len(hits) else 0.0


def _features(reader: BaseSLMAdapter, texts: Sequence[str]) -> np.ndarray:
    parts = [reader.features(texts[i : i + _BATCH]) for i in range(0, len(texts), _BATCH)]
    return np.concatenate(parts)


_EARLY = ("Honestly, ", "hey, ", "ok so ", "lol ", "You know what? ", "I have to say, ", "so ")
_LATE = (" lol", " :)", "...", " haha", " you know?", " just saying", " <3", " ugh")


def _as_typed(text: str, rng: random.Random) -> str:
    """Capitals, apostrophes and end marks as people type them, or do not."""
    way = rng.random()
    if way < 0.5:
        text = re.sub(r"(^|[.!?] )([a-z])", lambda m: m[1] + m[2].upper(), text)
        text = re.sub(r"\bi\b", "I", text)
    elif way < 0.62:
        text = text.replace("'", "")
    if rng.random() < 0.2:
        text = text.rstrip(".!")
    if rng.random() < 0.12:
        text = rng.choice(_EARLY) + text
    return text + rng.choice(_LATE) if rng.random() < 0.12 else text
