"""Training of the research classifier: labelled queries in, a checked pack out.

    queries = read_queries("train.jsonl") + generate_queries()
    made = train_research_classifier(queries, "runs/research")
    made.scores["unseen sources"].accuracy
    ResearchClassifier(pack=made.pack)

Three experts are trained apart (see `research`), and a head is a weighted sum of some of them.
Figures come from two kinds of held-out answers: by experts that have not seen the query's family
(its template, or the query itself), and by ones that have not seen its whole source, nor those that
are left out together with it. The weights of the sum are fitted on the second kind.

Sources count by their shares and not by their rows, and within a source both labels count the
same: otherwise an expert learns which collection a query resembles.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlx_companion.errors import ConfigError
from mlx_companion.runtime.stop import NEVER, StopSwitch
from mlx_companion.slm.backbone import BaseSLMAdapter, EncoderAdapter, shared_backbone
from mlx_companion.slm.blend import Blend, fit_blend
from mlx_companion.slm.linear import LinearHead, Storage, fit_logistic
from mlx_companion.slm.network import Network, NetworkConfig, fit_network
from mlx_companion.slm.ngrams import NGramConfig, NGrams
from mlx_companion.slm.packs import RULES, Pack, packaged, save_pack
from mlx_companion.slm.research import (
    EXPERTS,
    NETWORK,
    NGRAMS,
    TUNED,
    ResearchClassifier,
    as_date,
)
from mlx_companion.slm.research_card import card
from mlx_companion.slm.research_factors import CUTOFF, Rules, load_rules
from mlx_companion.slm.research_queries import Query
from mlx_companion.slm.scores import BinaryScores, binary_scores
from mlx_companion.slm.tuned_encoder import TuneConfig, Tuned, published, tune

KNOWN, UNSEEN = "known sources", "unseen sources"
GENERATED = "generated"
# Fewer rows than this say little about a source.
_FEWEST_ROWS = 100


@dataclass(frozen=True)
class ResearchTrainConfig:
    """How the experts are trained.

    Args:
        ngram_penalty, factor_penalty, pair_penalty: of the linear expert's blocks of features.
        max_steps: of the linear expert's solver.
        network: see `NetworkConfig`.
        tuning: see `TuneConfig`.
        samples: so many queries of a source are part of an epoch of the tuning; others wholly.
        tempering: power of the rows' weights in the tuning, which a few heavy rows would upset.
        caution: how much more a query without need counts in the weights of the sum: a false alarm
            costs a search and seconds.
        folds: of families.
        shares: how much each source counts; others count 1.
        cutoff, today: what years are read against in queries that do not say.
        ngrams: see `NGramConfig`.
        together: sources left out together: as they are of one collection, or to save trainings.

    Raises:
        ConfigError: fewer than two folds, or a negative share.
    """

    ngram_penalty: float = 3e-5
    factor_penalty: float = 1e-3
    pair_penalty: float = 1e-3
    max_steps: int = 120
    network: NetworkConfig = field(default_factory=NetworkConfig)
    tuning: TuneConfig = field(default_factory=TuneConfig)
    samples: dict[str, int] = field(
        default_factory=lambda: {"generated": 4000, "gsm8k": 80, "remarks": 300}
    )
    tempering: float = 0.75
    caution: float = 1.15
    folds: int = 3
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
    together: tuple[tuple[str, ...], ...] = (
        ("clinc", "clinc_more", "clinc_outside", "written_chatty"),
        ("nq_open", "written_subtle", "gsm8k"),
        ("hwu64", "written_mixed", "written_everyday", "remarks"),
        ("written_timely", "written_short", "written_plain"),
    )

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
    encoder: EncoderAdapter | None = None,
    rules: str | None = None,
    config: ResearchTrainConfig | None = None,
    version: str = "1",
    stop: StopSwitch = NEVER,
) -> ResearchTraining:
    """Train all experts, measure the heads made of them, and write a pack.

    Args:
        queries: labelled ones, of several sources if possible.
        folder: where the pack goes; an older one is replaced as a whole.
        backbone: hidden states come from it; the shared default model unless told.
        encoder: the one to be tuned; without one there is no head with it.
        rules: text of the factors and decision table; those of the package unless told.
        config: see `ResearchTrainConfig`.
        version: of the pack.
        stop: consulted between the parts of the work.

    Raises:
        ConfigError: no queries, or all of one label.
        ModelError: the backbone or the encoder cannot be loaded.
        Stopped: the switch was thrown; no pack was written.
    """
    config, backbone = config or ResearchTrainConfig(), backbone or shared_backbone()
    text = rules if rules is not None else (packaged("research_classifier") / RULES).read_text()
    table = _Table(queries, load_rules(text), config)
    table.read_hidden(backbone, stop)
    names = (NGRAMS, NETWORK) if encoder is None else (NGRAMS, NETWORK, TUNED)
    fits = {NGRAMS: _fit_ngrams, NETWORK: _fit_network, TUNED: _tuner(encoder)}
    held_out = {name: _held_out(table, fits[name], config, stop) for name in names}
    arrays: dict[str, np.ndarray] = {}
    for name in names:
        arrays |= fits[name](table, np.arange(len(queries)), config, stop).arrays
    heads = {
        head: _blend(held_out, experts, table, config.caution)
        for head, experts in EXPERTS.items()
        if set(experts) <= set(names)
    }
    scores: dict[str, BinaryScores] = {}
    best = next(iter(heads))
    for head, blend in heads.items():
        before = "" if head == best else f"{head}: "
        chances = {kind: _chances(held_out, blend, kind) for kind in (KNOWN, UNSEEN)}
        scores |= {before + k: v for k, v in _scores(chances, table).items()}
    settings = {
        "backbone": backbone.identity,
        "encoder": None if encoder is None else encoder.identity,
        "cutoff": config.cutoff,
        "ngrams": asdict(config.ngrams),
        "heads": {head: blend.to_settings() for head, blend in heads.items()},
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
    plotted = _chances(held_out, heads[best], UNSEEN)
    rows = _unseen_rows(plotted, table)
    return ResearchTraining(pack, scores, (plotted[rows], table.labels[rows]))


class _Table:
    """Queries as arrays."""

    def __init__(self, queries: Sequence[Query], rules: Rules, config: ResearchTrainConfig) -> None:
        if len({query.needs_research for query in queries}) < 2:
            raise ConfigError("the queries are of one label only, or there are none; give both")
        self.texts = [query.text for query in queries]
        self.labels = np.array([query.needs_research for query in queries], dtype=np.int64)
        self.sources = np.array([query.source for query in queries])
        families = [query.family or query.text for query in queries]
        # A stable hash: the same queries fall into the same folds everywhere.
        self.folds = np.array([zlib.crc32(f.encode()) % config.folds for f in families])
        today, cutoff = as_date(config.today), as_date(config.cutoff)
        found = [rules.read(q.text, q.today or today, q.cutoff or cutoff) for q in queries]
        self.rulings = [rules.decide(one) for one in found]
        self.light = [
            NGrams(config.ngrams).transform(self.texts),
            np.stack([rules.vector(one) for one in found]),
            rules.pairs(found),
        ]
        self.dense = np.zeros((len(self.texts), 0), dtype=np.float32)
        self.weights = _weights(self.sources, self.labels, config.shares)

    def read_hidden(self, backbone: BaseSLMAdapter, stop: StopSwitch) -> None:
        """Dense features (N, F): hidden states beside the factors."""
        parts = []
        for first in range(0, len(self.texts), 256):
            stop.check()
            parts.append(backbone.features(self.texts[first : first + 256]))
        self.dense = np.concatenate([np.concatenate(parts), self.light[1]], axis=1)

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


class _Expert(NamedTuple):
    """A trained expert: logits of rows of the table, and what a pack keeps of it."""

    logits: Callable[[np.ndarray], np.ndarray]
    arrays: dict[str, np.ndarray]


_Fit = Callable[["_Table", np.ndarray, ResearchTrainConfig, StopSwitch], _Expert]


def _fit_ngrams(
    table: _Table, rows: np.ndarray, config: ResearchTrainConfig, stop: StopSwitch
) -> _Expert:
    stop.check()
    head = fit_logistic(
        [block[rows] for block in table.light],
        table.labels[rows],
        row_weights=table.weights[rows],
        penalties=[config.ngram_penalty, config.factor_penalty, config.pair_penalty],
        classes=2,
        max_steps=config.max_steps,
    )
    kinds: list[Storage] = ["int8", "float32", "float32"]
    arrays = head.to_arrays(NGRAMS, kinds)
    stored = LinearHead.from_arrays(arrays, NGRAMS)
    return _Expert(lambda out: stored.logits([b[out] for b in table.light])[:, 0], arrays)


def _fit_network(
    table: _Table, rows: np.ndarray, config: ResearchTrainConfig, stop: StopSwitch
) -> _Expert:
    network = fit_network(
        table.dense[rows],
        table.labels[rows],
        row_weights=table.weights[rows],
        config=config.network,
        stop=stop,
    )
    arrays = network.to_arrays(NETWORK)
    stored = Network.from_arrays(arrays, NETWORK)
    return _Expert(lambda out: stored.logits(table.dense[out]), arrays)


def _tuner(encoder: EncoderAdapter | None) -> _Fit:
    def fit(
        table: _Table, rows: np.ndarray, config: ResearchTrainConfig, stop: StopSwitch
    ) -> _Expert:
        assert encoder is not None
        base = published(encoder)
        sources = table.sources[rows]
        drawn = np.ones(len(rows))
        for source, count in config.samples.items():
            here = sources == source
            drawn[here] = min(1.0, count / max(here.sum(), 1))
        tuned = tune(
            base,
            [table.texts[i] for i in rows],
            table.labels[rows],
            row_weights=(table.weights[rows] / drawn) ** config.tempering,
            drawn=drawn,
            config=config.tuning,
            stop=stop,
        )
        arrays = tuned.to_arrays()
        stored = Tuned.from_arrays(base, arrays)
        return _Expert(lambda out: stored.logits([table.texts[i] for i in out]), arrays)

    return fit


def _held_out(
    table: _Table, fit: _Fit, config: ResearchTrainConfig, stop: StopSwitch
) -> dict[str, np.ndarray]:
    """Logits (N,) of every row by experts that have not seen its family, and its source."""
    found = {KNOWN: np.zeros(len(table.labels)), UNSEEN: np.full(len(table.labels), np.nan)}
    for kind, out in _parts(table, config):
        kept = np.flatnonzero(~out)
        if len(np.unique(table.labels[kept])) == 2:
            rows = np.flatnonzero(out)
            found[kind][rows] = fit(table, kept, config, stop).logits(rows)
    return found


def _parts(table: _Table, config: ResearchTrainConfig) -> list[tuple[str, np.ndarray]]:
    """What is left out at a time: the kind of the answers, and which rows."""
    parts = [(KNOWN, table.folds == fold) for fold in np.unique(table.folds)]
    named = {source for group in config.together for source in group}
    alone = [(source,) for source in _measurable(table) if source not in named]
    for group in (*config.together, *alone):
        if (out := np.isin(table.sources, list(group))).any():
            parts.append((UNSEEN, out))
    return parts


def _measurable(table: _Table) -> list[str]:
    names, counts = np.unique(table.sources, return_counts=True)
    return [str(n) for n, count in zip(names, counts, strict=True) if count >= _FEWEST_ROWS]


def _blend(
    held_out: Mapping[str, Mapping[str, np.ndarray]],
    experts: Sequence[str],
    table: _Table,
    caution: float,
) -> Blend:
    """The experts' sum.

    Fitted on answers of experts that had not seen the source, if there are any, as queries to come
    are of none of these; through the others it would be too sure. Every row counts the same, so
    labels as often as they occur, where the experts' training balanced them.
    """
    unseen = sum(held_out[name][UNSEEN] for name in experts)
    rows, kind = _unseen_rows(np.asarray(unseen), table), UNSEEN
    if len(np.unique(table.labels[rows])) < 2:
        rows, kind = np.arange(len(table.labels)), KNOWN
    labels = table.labels[rows]
    counts = np.where(labels == 1, 1.0, caution)
    return fit_blend({name: held_out[name][kind][rows] for name in experts}, labels, counts)


def _chances(
    held_out: Mapping[str, Mapping[str, np.ndarray]], blend: Blend, kind: str
) -> np.ndarray:
    return blend({name: held_out[name][kind] for name in blend.weights})


def _unseen_rows(values: np.ndarray, table: _Table) -> np.ndarray:
    """Rows of real sources that were answered without their source.

    Experts without the made-up queries are weaker than those that are shipped; they are measured
    for themselves, and are no part of the whole.
    """
    return np.flatnonzero(~np.isnan(values) & (table.sources != GENERATED))


def _scores(chances: Mapping[str, np.ndarray], table: _Table) -> dict[str, BinaryScores]:
    found = {KNOWN: binary_scores(chances[KNOWN], table.labels)}
    if len(rows := _unseen_rows(chances[UNSEEN], table)):
        found[UNSEEN] = binary_scores(chances[UNSEEN][rows], table.labels[rows])
    for kind, before in ((KNOWN, "known "), (UNSEEN, "unseen ")):
        for source in _measurable(table):
            here = (table.sources == source) & ~np.isnan(chances[kind])
            if here.any():
                found[before + source] = binary_scores(chances[kind][here], table.labels[here])
    return found
