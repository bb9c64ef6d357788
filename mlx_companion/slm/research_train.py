"""Training of the research classifier: labelled queries in, a checked pack out.

    queries = read_queries("train.jsonl") + generate_queries()
    made = train_research_classifier(queries, "runs/research")
    made.scores["unseen sources"].accuracy
    ResearchClassifier(pack=made.pack)

Sources count by their shares and not by their rows, and within a source both labels count the
same: otherwise the head learns which collection a query resembles. Figures and calibration come
from two kinds of held-out answers: by a head that has not seen the query's family (its template,
or the query itself), and by one that has not seen the whole source.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlx_companion.errors import ConfigError
from mlx_companion.runtime.stop import NEVER, StopSwitch
from mlx_companion.slm.backbone import BaseSLMAdapter, shared_backbone
from mlx_companion.slm.linear import (
    Calibration,
    LinearHead,
    Storage,
    fit_logistic,
    fit_platt,
    out_of_fold,
)
from mlx_companion.slm.ngrams import NGramConfig, NGrams
from mlx_companion.slm.packs import RULES, Pack, packaged, save_pack
from mlx_companion.slm.research import BACKBONE, FULL, LIGHT, ResearchClassifier, as_date
from mlx_companion.slm.research_card import card
from mlx_companion.slm.research_factors import CUTOFF, Rules, load_rules
from mlx_companion.slm.research_queries import Query
from mlx_companion.slm.scores import BinaryScores, binary_scores

KNOWN, UNSEEN = "known sources", "unseen sources"
GENERATED = "generated"
# Fewer rows than this say little about a source.
_FEWEST_ROWS = 100


@dataclass(frozen=True)
class ResearchTrainConfig:
    """How the heads are trained.

    Args:
        hidden_penalty, encoder_penalty, ngram_penalty, factor_penalty, pair_penalty: of the
            blocks of features.
        folds: of families.
        shares: how much each source counts; others count 1.
        cutoff, today: what years are read against in queries that do not say.
        ngrams: see `NGramConfig`.
        relatives: sources left out together, as they are of one collection.
        max_steps: of the solver.

    Raises:
        ConfigError: fewer than two folds, or a negative share.
    """

    hidden_penalty: float = 0.03
    encoder_penalty: float = 0.01
    ngram_penalty: float = 3e-5
    factor_penalty: float = 1e-3
    pair_penalty: float = 1e-3
    folds: int = 5
    shares: dict[str, float] = field(
        default_factory=lambda: {
            "generated": 3.0,
            "nq_open": 3.5,
            "clinc": 2.0,
            "hwu64": 1.5,
            "clinc_more": 0.5,
            "gsm8k": 0.2,
            "remarks": 0.3,
        }
    )
    cutoff: str = CUTOFF
    today: str = "2026-01-01"
    ngrams: NGramConfig = field(default_factory=NGramConfig)
    relatives: tuple[tuple[str, ...], ...] = (("clinc", "clinc_more", "clinc_outside"),)
    max_steps: int = 120

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise ConfigError(f"folds is {self.folds}; expected 2 or more")
        if min(self.shares.values(), default=0) < 0:
            raise ConfigError(f"shares are {self.shares}; expected none below 0")


@dataclass(frozen=True)
class ResearchTraining:
    """What a training made.

    Attributes:
        pack: as written and read back.
        scores: figures by head and source: "known sources", "unseen sources", and each source
            when its head had not seen it; those of the best head, and of the others with their
            names before.
        held_out: probabilities and labels of unseen sources, for a plot.
    """

    pack: Pack
    scores: dict[str, BinaryScores]
    held_out: tuple[np.ndarray, np.ndarray] = field(repr=False)


def train_research_classifier(
    queries: Sequence[Query],
    folder: str | Path,
    *,
    backbone: BaseSLMAdapter | None = None,
    encoder: BaseSLMAdapter | None = None,
    rules: str | None = None,
    config: ResearchTrainConfig | None = None,
    version: str = "1",
    stop: StopSwitch = NEVER,
) -> ResearchTraining:
    """Train all heads, measure them, and write a pack.

    Args:
        queries: labelled ones, of several sources if possible.
        folder: where the pack goes; an older one is replaced as a whole.
        backbone: hidden states come from it; the shared default model unless told.
        encoder: sentence embeddings come from it; without one there is no head for it.
        rules: text of the factors and decision table; those of the package unless told.
        config: see `ResearchTrainConfig`.
        version: of the pack.
        stop: consulted between the parts of the work.

    Raises:
        ConfigError: no queries, or all of one label.
        ModelError: the backbone cannot be loaded.
        Stopped: the switch was thrown; no pack was written.
    """
    config, backbone = config or ResearchTrainConfig(), backbone or shared_backbone()
    text = rules if rules is not None else (packaged("research_classifier") / RULES).read_text()
    table = _Table(queries, load_rules(text), config)
    hidden = [_hidden(backbone, queries, stop)]
    blocks = {BACKBONE: [*hidden, *table.light], LIGHT: table.light}
    if encoder is not None:
        blocks = {FULL: [*hidden, _hidden(encoder, queries, stop), *table.light], **blocks}
    best = next(iter(blocks))
    arrays: dict[str, np.ndarray] = {}
    calibration: dict[str, Any] = {}
    scores: dict[str, BinaryScores] = {}
    plotted: tuple[np.ndarray, np.ndarray] = (np.zeros(0), np.zeros(0))
    for head in blocks:
        stop.check()
        options = _options(head, config)
        held_out = _held_out(table, blocks[head], options, config, stop)
        calibrated = _calibration(held_out, table)
        calibration[head] = {"slope": calibrated.slope, "offset": calibrated.offset}
        before = "" if head == best else f"{head}: "
        scores |= {before + k: v for k, v in _scores(held_out, calibrated, table).items()}
        if head == best:
            plotted = _unseen(held_out, calibrated, table)
        final = _fit(table, blocks[head], np.arange(len(queries)), options)
        dense = len(blocks[head]) - len(table.light)
        kinds: list[Storage] = ["float16"] * dense
        kinds += ["int8", "float32", "float32"]
        arrays |= final.to_arrays(head, kinds)
    settings = {
        "backbone": backbone.identity,
        "encoder": None if encoder is None else encoder.identity,
        "cutoff": config.cutoff,
        "ngrams": asdict(config.ngrams),
        "calibration": calibration,
        "table_precision": table.rules_precision(),
    }
    metrics = {name: found.to_dict() for name, found in scores.items()}
    pack = save_pack(
        folder,
        ResearchClassifier.name,
        version,
        arrays=arrays,
        settings=settings,
        rules=text,
        metrics=metrics,
        card=card(metrics, settings, queries, asdict(config)),
    )
    return ResearchTraining(pack, scores, plotted)


class _Table:
    """Queries as arrays."""

    def __init__(self, queries: Sequence[Query], rules: Rules, config: ResearchTrainConfig) -> None:
        if len({query.needs_research for query in queries}) < 2:
            raise ConfigError("the queries are of one label only, or there are none; give both")
        self.labels = np.array([query.needs_research for query in queries], dtype=np.int64)
        self.sources = np.array([query.source for query in queries])
        families = [query.family or query.text for query in queries]
        # A stable hash: the same queries fall into the same folds everywhere.
        self.folds = np.array([zlib.crc32(f.encode()) % config.folds for f in families])
        today, cutoff = as_date(config.today), as_date(config.cutoff)
        found = [rules.read(q.text, q.today or today, q.cutoff or cutoff) for q in queries]
        self.rulings = [rules.decide(one) for one in found]
        self.light = [
            NGrams(config.ngrams).transform([query.text for query in queries]),
            np.stack([rules.vector(one) for one in found]),
            rules.pairs(found),
        ]
        self.weights = _weights(self.sources, self.labels, config.shares)
        self.source_weights = _weights(self.sources, 0 * self.labels, config.shares)

    def rules_precision(self) -> dict[str, float]:
        """How often the decision table is right: where it says research, answer, or nothing."""
        says = np.array(
            [
                "none" if r.row is None else "research" if r.research else "answer"
                for r in self.rulings
            ]
        )
        right = np.array([r.research for r in self.rulings]) == self.labels
        return {
            name: round(float(np.average(right[k], weights=self.weights[k])), 3) if k.any() else 0.5
            for name in ("research", "answer", "none")
            for k in [says == name]
        }


def _weights(sources: np.ndarray, labels: np.ndarray, shares: Mapping[str, float]) -> np.ndarray:
    weights = np.zeros(len(labels))
    for source in np.unique(sources):
        here = sources == source
        both = len(np.unique(labels[here])) == 2
        for label in (0, 1):
            rows = here & (labels == label)
            if rows.any():
                part = shares.get(str(source), 1.0) * (0.5 if both else 1.0)
                weights[rows] = part / rows.sum()
    return weights / weights.sum()


def _hidden(backbone: BaseSLMAdapter, queries: Sequence[Query], stop: StopSwitch) -> np.ndarray:
    parts = []
    for first in range(0, len(queries), 256):
        stop.check()
        parts.append(backbone.features([query.text for query in queries[first : first + 256]]))
    # As heads see them later, stored and read in half precision or not, differs by rounding only.
    return np.concatenate(parts)


def _fit(
    table: _Table, blocks: Sequence[Any], rows: np.ndarray, options: dict[str, Any]
) -> LinearHead:
    return fit_logistic(
        [block[rows] for block in blocks],
        table.labels[rows],
        row_weights=table.weights[rows],
        **options,
    )


def _options(head: str, config: ResearchTrainConfig) -> dict[str, Any]:
    dense = {FULL: [config.hidden_penalty, config.encoder_penalty], LIGHT: []}
    light = [config.ngram_penalty, config.factor_penalty, config.pair_penalty]
    return {
        "penalties": [*dense.get(head, [config.hidden_penalty]), *light],
        "classes": 2,
        "max_steps": config.max_steps,
    }


def _held_out(
    table: _Table,
    blocks: Sequence[Any],
    options: dict[str, Any],
    config: ResearchTrainConfig,
    stop: StopSwitch,
) -> dict[str, np.ndarray]:
    """Logits (N,) of every row: by heads without its family, and without its source."""
    known = out_of_fold(blocks, table.labels, table.folds, row_weights=table.weights, **options)[
        :, 0
    ]
    unseen = np.full(len(known), np.nan)
    for source in _measurable(table):
        stop.check()
        here = table.sources == source
        kin = {s for group in config.relatives if source in group for s in group} | {source}
        rest = np.flatnonzero(~np.isin(table.sources, list(kin)))
        if len(np.unique(table.labels[rest])) == 2:
            unseen[here] = _fit(table, blocks, rest, options).logits([b[here] for b in blocks])[
                :, 0
            ]
    return {KNOWN: known, UNSEEN: unseen}


def _measurable(table: _Table) -> list[str]:
    found = []
    for source in np.unique(table.sources):
        if (table.sources == source).sum() >= _FEWEST_ROWS:
            found.append(str(source))
    return found


def _calibration(held_out: Mapping[str, np.ndarray], table: _Table) -> Calibration:
    """One sigmoid through both kinds of held-out logits: queries to come are of either kind.

    Labels count as often as they occur in their source: training balanced them.
    """
    rows = [np.arange(len(table.labels)), _unseen_rows(held_out, table)]
    logits = np.concatenate([held_out[k][r] for k, r in zip((KNOWN, UNSEEN), rows, strict=True)])
    both = np.concatenate(rows)
    return fit_platt(logits, table.labels[both], table.source_weights[both])


def _unseen(
    held_out: Mapping[str, np.ndarray], calibration: Calibration, table: _Table
) -> tuple[np.ndarray, np.ndarray]:
    rows = _unseen_rows(held_out, table)
    return calibration(held_out[UNSEEN][rows]), table.labels[rows]


def _unseen_rows(held_out: Mapping[str, np.ndarray], table: _Table) -> np.ndarray:
    """Rows of real sources that a head answered without their source.

    A head without the made-up queries is weaker than the one that is shipped; it is measured for
    itself, and no part of the whole.
    """
    return np.flatnonzero(~np.isnan(held_out[UNSEEN]) & (table.sources != GENERATED))


def _scores(
    held_out: Mapping[str, np.ndarray], calibration: Calibration, table: _Table
) -> dict[str, BinaryScores]:
    found = {KNOWN: binary_scores(calibration(held_out[KNOWN]), table.labels)}
    probabilities, labels = _unseen(held_out, calibration, table)
    if len(labels):
        found[UNSEEN] = binary_scores(probabilities, labels)
    for kind, before in ((KNOWN, "known "), (UNSEEN, "unseen ")):
        for source in _measurable(table):
            here = (table.sources == source) & ~np.isnan(held_out[kind])
            if here.any():
                p = calibration(held_out[kind][here])
                found[before + source] = binary_scores(p, table.labels[here])
    return found
