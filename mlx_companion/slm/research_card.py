"""The model card of a research classifier's pack: what it is made of and how good it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mlx_companion.slm.research_queries import Query

_CARD = """# Research classifier

Says whether a query needs research: whether its answer is live, local, commercial, changes faster
than a model is trained, or is to be verified. Made by `recipes/train_research.py`; the same queries
and settings give the same pack.

- Three experts: `network`, one hidden layer over hidden states of the model `{backbone}` (last token
  and mean, normalized) and factors; `tuned`, the sentence encoder `{encoder}` with
  low-rank updates in its upper layers and a linear head over its last states; `ngrams`, linear over
  hashed n-grams and factors. Heads are weighted sums: `backbone+encoder` of all three; `backbone` and
  `ngrams` do without the encoder, and without either, and are used where those are not at hand.
  `rules.yaml`: factors and decision table.
- Years are read against today's date and a cutoff; without another one it is {cutoff}.
- Not for: languages other than English, questions whose answer lies in a conversation or a file.

## Training data

| source | queries | need research |
|---|---|---|
{data}

Licences: CLINC150 CC BY 3.0 (Larson et al., 2019); HWU64 CC BY 4.0 (Liu et al., 2019); GSM8K MIT
(Cobbe et al., 2021); Natural Questions, open version, CC BY-SA 3.0 (Kwiatkowski et al., 2019);
GoEmotions Apache-2.0 (Demszky et al., 2020); generated queries by this package's templates, and
`written_*` one by one for it (`slm/data/written`, Apache-2.0). The pack holds weights only.

## Held-out figures

"Known": the experts had not seen the query's template or the query. "Unseen": they had not seen the
whole source, nor those left out together with it: {together}. "Surest": the 85 % with the surest answers. In brackets 95 % bootstrap intervals.

| rows | number | accuracy | recall | false positives | calibration error | surest: accuracy | surest: false positives |
|---|---|---|---|---|---|---|---|
{figures}

## Settings

```
{settings}
```
"""  # noqa: E501 - a table's row


def card(
    metrics: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Any],
    queries: Sequence[Query],
    config: Mapping[str, Any],
) -> str:
    """The card, in Markdown.

    Args:
        metrics: name -> `BinaryScores.to_dict()`.
        settings: of the pack.
        queries: that it was trained on.
        config: of the training.
    """
    rows, needing = Counter(q.source for q in queries), Counter()  # type: Counter[str], Counter[str]
    needing.update(query.source for query in queries if query.needs_research)
    data = "\n".join(f"| {s} | {n:,} | {needing[s]:,} |" for s, n in sorted(rows.items()))
    figures = "\n".join(figure_row(name, found) for name, found in metrics.items())
    lines = "\n".join(f"{key}: {value}" for key, value in config.items())
    return _CARD.format(
        backbone=settings["backbone"],
        encoder=settings["encoder"],
        cutoff=settings["cutoff"],
        data=data,
        figures=figures,
        settings=lines,
        together="; ".join(", ".join(group) for group in config["together"]),
    )


def figure_row(name: str, found: Mapping[str, Any]) -> str:
    """A row of the table of figures, in percent."""
    cells = [
        name,
        f"{found['rows']:,}",
        f"{_percent(found['accuracy'])} {_range(found['accuracy_range'])}",
        _percent(found["recall"]),
        _percent(found["false_positive_rate"]),
        _percent(found["calibration_error"]),
        f"{_percent(found['surest_accuracy'])} {_range(found['surest_accuracy_range'])}",
        f"{_percent(found['surest_false_positive_rate'])} "
        f"{_range(found['surest_false_positive_range'])}",
    ]
    return f"| {' | '.join(cells)} |"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _range(ends: Sequence[float | None]) -> str:
    low, high = ends
    return "" if low is None or high is None else f"({100 * low:.1f}–{100 * high:.1f})"
