"""Trains what hears cheer: n-grams, and the lower layers of the sentence encoder.

Every figure is for another writer's sentences: each file of `data/written` was written apart from
the others and makes a fold; the variants of one pattern, and the replies of one voice, share one.
What is held out is judged by heads that saw the other folds only, and on that the calibrations and
thresholds are set: of neutral sentences at most `FALSE_ALARMS` may be taken for cheer, as a false
alarm costs a reply its sentence::

    rows = tone_rows(calm=calm_sentences(data))
    arrays, settings, figures = train_tone(rows, load_encoder())
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from mlx_companion.errors import ConfigError
from mlx_companion.runtime.stop import NEVER, StopSwitch
from mlx_companion.slm.guard_text import Draft
from mlx_companion.slm.guard_tone import gushes, head_text, own_sentences
from mlx_companion.slm.linear import LinearHead, fit_logistic, fit_platt
from mlx_companion.slm.ngrams import NGramConfig, NGrams
from mlx_companion.slm.tuned_encoder import TuneConfig, Tuned, tune
from mlx_companion.slm.written import written

if TYPE_CHECKING:
    from mlx_companion.models.encoder import SentenceEncoder

# Each by another writer.
FILES = ("tone", "tone_more", "tone_pairs")
# Of neutral sentences in an assistant's voice; and of those from elsewhere, comments and novels,
# among which people do cheer.
FALSE_ALARMS, FALSE_ALARMS_ELSEWHERE = 0.003, 0.015
PATTERN, WRITTEN, VOICE, ELSEWHERE = range(4)
# Sentences written one by one are of more kinds than those from patterns.
_WEIGHTS = {PATTERN: 1.0, WRITTEN: 3.0, VOICE: 1.0}
# Share of the rows of a kind in each epoch of tuning.
_DRAWN = {PATTERN: 0.15, WRITTEN: 1.0, VOICE: 0.4, ELSEWHERE: 0.15}
_NGRAMS = NGramConfig(char=(2, 5), words=(1, 3), char_columns=1 << 15, word_columns=1 << 14)
_PENALTY = 3e-5
LAYERS = 4
# With adapters that learn faster, or in the lowest layer too, the states of all sentences became
# one in half of the runs, and nothing was learned.
TUNING = TuneConfig(rank=16, layers=LAYERS - 1, rate=6e-4, scale=0.25, epochs=3)
# Folds that are judged; each costs a training of its own.
HELD_OUT = (2,)
# The n-grams' logit beside the encoder's; and so many of the cheering sentences that the n-grams
# would not let through to the encoder.
_SHARE, _LOST = 0.5, 0.05
_PER_PATTERN = 8
_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class ToneRows:
    """Sentences to learn tone from.

    Attributes:
        texts: N of them.
        labels: (N,) 1 for those that cheer.
        folds: (N,) 0 to `len(FILES)` - 1.
        kinds: (N,) `PATTERN`, `WRITTEN`, `VOICE` or `ELSEWHERE`.
    """

    texts: list[str]
    labels: np.ndarray
    folds: np.ndarray
    kinds: np.ndarray

    @property
    def weights(self) -> np.ndarray:
        """(N,) how much each counts; those from elsewhere together a third of what is our own."""
        weights = np.array([_WEIGHTS.get(int(kind), 0.0) for kind in self.kinds])
        elsewhere = self.kinds == ELSEWHERE
        weights[elsewhere] = (~elsewhere).sum() / 3 / max(1, elsewhere.sum())
        return weights


def tone_rows(seed: int = 7, calm: Sequence[str] = ()) -> ToneRows:
    """The rows of the package, and sentences from elsewhere that do not cheer.

    Args:
        seed: of the slots that are filled.
        calm: the sentences from elsewhere.
    """
    rows = [*_patterns(seed), *_voices()]
    for fold, name in enumerate(FILES):
        rows += [(one.text, int(one.label), fold, WRITTEN) for one in written(name)]
    rows += [(text, 0, at, ELSEWHERE) for at, text in enumerate(calm)]
    # A sentence that two had would be seen in training and held out; the first one's stays.
    once = {row[0]: row for row in reversed(rows)}
    texts, labels, folds, kinds = zip(*(row for row in rows if once[row[0]] is row), strict=True)
    return ToneRows(list(texts), np.array(labels), np.array(folds) % len(FILES), np.array(kinds))


def _patterns(seed: int) -> list[tuple[str, int, int, int]]:
    source = resources.files("mlx_companion.slm") / "data" / "guard_training" / "tone.yaml"
    tree = yaml.safe_load(source.read_text(encoding="utf-8"))
    rng = random.Random(seed)
    rows = []
    for label, kind in enumerate(("calm", "cheer")):
        for number, pattern in enumerate(tree[kind]):
            filled = {_fill(pattern, tree["slots"], rng) for _ in range(_PER_PATTERN)}
            rows += [(text, label, number, PATTERN) for text in sorted(filled)]
    return rows


def _fill(pattern: str, slots: dict[str, list[str]], rng: random.Random) -> str:
    said = _SLOT.sub(lambda found: rng.choice(slots[found[1]]), pattern)
    return said[:1].upper() + said[1:]


def _voices() -> list[tuple[str, int, int, int]]:
    """Sentences of assistants with other manners, none of whom gushes."""
    source = resources.files("mlx_companion.slm") / "data" / "drift_training" / "voices.jsonl"
    replies = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    names = sorted({reply["voice"] for reply in replies})
    return [
        (said, 0, names.index(reply["voice"]), VOICE)
        for reply in replies
        for _, said in own_sentences(Draft(reply["text"]))
        # "You've got this" slips out now and then.
        if not gushes(said)
    ]


def train_tone(
    rows: ToneRows,
    encoder: SentenceEncoder | None = None,
    *,
    tuning: TuneConfig = TUNING,
    layers: int = LAYERS,
    held_out: Sequence[int] = HELD_OUT,
    stop: StopSwitch = NEVER,
) -> tuple[dict[str, np.ndarray], dict[str, Any], dict[str, float]]:
    """Train both heads.

    Args:
        rows: what to learn from.
        encoder: whose lower layers are tuned; without one there are n-grams alone.
        tuning: how.
        layers: so many of them.
        held_out: folds that are judged by heads that did not see them; the others are only
            learned from.
        stop: consulted before each step.

    Returns:
        Arrays and settings for the pack, and the held-out figures.

    Raises:
        Stopped: the switch was thrown.
    """
    texts = [head_text(text) for text in rows.texts]
    grams = NGrams(_NGRAMS).transform(texts)

    def by_ngrams(seen: np.ndarray) -> LinearHead:
        return fit_logistic(
            [grams[seen]], rows.labels[seen], row_weights=rows.weights[seen], penalties=_PENALTY
        )

    whole = np.ones(len(texts), dtype=bool)
    judged = np.isin(rows.folds, held_out)
    alone = _judged(rows, held_out, lambda seen, rest: by_ngrams(seen).logits([grams[rest]])[:, 0])
    found, figures = _settled(alone, rows, judged, "tone")
    settings: dict[str, Any] = {"ngrams": asdict(_NGRAMS), **found}
    arrays = by_ngrams(whole).to_arrays("tone", "int8")
    if encoder is None:
        return arrays, settings, figures
    lower = lower_layers(encoder, layers)
    drawn = np.array([_DRAWN[int(kind)] for kind in rows.kinds])

    def tuned(seen: np.ndarray) -> Tuned:
        some = np.flatnonzero(seen)
        return tune(
            lower,
            [texts[i] for i in some],
            rows.labels[some],
            row_weights=rows.weights[some],
            drawn=drawn[some],
            config=tuning,
            stop=stop,
        )

    read = _judged(
        rows,
        held_out,
        lambda seen, rest: tuned(seen).logits([texts[i] for i in np.flatnonzero(rest)]),
    )
    cheering = judged & (rows.labels == 1) & (rows.kinds == WRITTEN)
    gate = round(float(np.quantile(alone[cheering], _LOST)), 4)
    passed = judged & (alone >= gate)
    found, more = _settled(read + _SHARE * alone, rows, judged, "tone_read", passed)
    settings["encoder"] = {
        "sha256": encoder.sha256,
        "layers": layers,
        "gate": gate,
        "share": _SHARE,
        **found,
    }
    figures |= more | {"tone_read_share": _share(passed[judged & (rows.kinds == VOICE)])}
    return arrays | tuned(whole).to_arrays(), settings, figures


def lower_layers(encoder: SentenceEncoder, layers: int) -> SentenceEncoder:
    """An encoder of the first layers of another; the weights are shared.

    Raises:
        ConfigError: it has fewer.
    """
    from mlx.utils import tree_flatten

    from mlx_companion.models.bert import Bert

    config = encoder.model.config
    if not 1 <= layers <= config.num_hidden_layers:
        raise ConfigError(f"layers is {layers}; expected 1 to {config.num_hidden_layers}")
    model = Bert(replace(config, num_hidden_layers=layers))
    arrays: Any = tree_flatten(encoder.model.parameters())
    names = dict(tree_flatten(model.parameters()))
    model.load_weights([(name, array) for name, array in arrays if name in names])
    model.eval()
    return replace(encoder, model=model)


def _judged(
    rows: ToneRows,
    held_out: Sequence[int],
    logits_of: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    found = np.zeros(len(rows.texts))
    for fold in held_out:
        rest = rows.folds == fold
        found[rest] = logits_of(~rest, rest)
    return found


def _settled(
    logits: np.ndarray,
    rows: ToneRows,
    judged: np.ndarray,
    name: str,
    passed: np.ndarray | None = None,
) -> tuple[dict[str, float], dict[str, float]]:
    """Calibration and threshold of held-out logits, and the figures at that threshold."""
    passed = judged if passed is None else passed
    calibration = fit_platt(logits[passed], rows.labels[passed], rows.weights[passed])
    chances = (calibration(logits) * passed)[judged]
    rows = ToneRows(
        [text for text, one in zip(rows.texts, judged, strict=True) if one],
        rows.labels[judged],
        rows.folds[judged],
        rows.kinds[judged],
    )
    neutral = rows.labels == 0
    voiced = neutral & np.isin(rows.kinds, (WRITTEN, VOICE))
    elsewhere = rows.kinds == ELSEWHERE
    threshold = 0.99
    for one in np.arange(0.3, 0.99, 0.01):
        fired = chances >= one
        if _share(fired[voiced]) > FALSE_ALARMS:
            continue
        if _share(fired[elsewhere]) <= FALSE_ALARMS_ELSEWHERE:
            threshold = float(round(one, 2))
            break
    fired = chances >= threshold
    lone = rows.kinds == WRITTEN
    figures = {
        f"{name}_recall": _share(fired[lone & ~neutral]),
        f"{name}_precision": _share(~neutral[lone & fired]),
        f"{name}_accuracy": _share(fired[lone] == (rows.labels == 1)[lone]),
        f"{name}_false_alarms": _share(fired[voiced]),
        f"{name}_false_alarms_elsewhere": _share(fired[elsewhere]),
    }
    found = {"slope": calibration.slope, "offset": calibration.offset, "threshold": threshold}
    return found, figures


def _share(hits: np.ndarray) -> float:
    return round(float(hits.mean()), 4) if len(hits) else 0.0
