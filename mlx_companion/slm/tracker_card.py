"""The model card of a context tracker's pack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlx_companion.slm.tracker_sources import Sources

_CARD = """# Context tracker

Reads messages of a person: slang in its sense, formality, technical depth, mood, topic. Made by
`recipes/train_tracker.py --per-source {per_source} --seed {seed}`; the same texts give the same
pack. The heads are logistic regressions over hashed n-grams, counts of style and word vectors of
{dimensions} numbers; `sense_full` reads hidden states of all-MiniLM-L6-v2 besides, which is not in
the pack.

- `sense`: is an ambiguous word slang here, by the words around; `sense_full`: with the encoder's
  layers 3 to 5 at the word, where that encoder is at hand. `formality`: casual to formal. `mood`,
  `topic`, `depth`.
- `words`: vectors (input embeddings of all-MiniLM-L6-v2, principal components, int8) and the words
  known besides, by hash. `rules.yaml`: the slang lexicon, whose head says what counts as slang.
- Not for: languages other than English; judging people. A mood is of the words, not of the person.

## Training data

GoEmotions (Apache-2.0, Demszky et al., 2020); CLINC150 (CC BY 3.0, Larson et al., 2019); novels
from Standard Ebooks (public domain), narration only; sentences written for this project
(`data/tracker_training`). The pack holds weights, hashes and the lexicon; no training text.

## Held-out figures

The head had not seen the sentence, the term, the content or the generator, as the name says.

| what | figure |
|---|---|
{figures}
"""


def tracker_card(metrics: Mapping[str, Any], sources: Sources) -> str:
    """The card, in Markdown."""
    dimensions = len(next(iter(sources.vectors.values())))
    rows = "\n".join(f"| {name} | {value} |" for name, value in _flat(metrics))
    return _CARD.format(
        per_source=sources.per_source, seed=sources.seed, dimensions=dimensions, figures=rows
    )


def _flat(metrics: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in metrics.items():
        full = f"{before}{name}".replace("_", " ")
        found += _flat(value, f"{full}: ") if isinstance(value, Mapping) else [(full, value)]
    return found
