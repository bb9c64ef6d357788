"""The research classifier: does a query need looking things up, or does the model know?

A query needs research when its answer is live, local or commercial, changes faster than a model
is trained, or is to be verified. Three experts speak: a small network over hidden states of the
backbone half way up and the factors of `research_factors`, a sentence encoder tuned for the
question, and a linear one over hashed n-grams and factors. A head is a weighted sum of their
logits, fitted on queries that they had not seen, so its sigmoid is a probability::

    classifier = ResearchClassifier()
    classifier.process("who is the mayor of oslo").needs_research          # True
    classifier.process({"query": "who won in 2025", "cutoff": "2026-01"})   # read against a cutoff

Where the encoder or the backbone cannot be loaded, or is another than the experts were trained
for, a head without it answers; `degraded` and each result's `head` say so.
"""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from mlx_companion.errors import CompanionError, ConfigError, DataError
from mlx_companion.runtime.logs import get_logger
from mlx_companion.slm.backbone import (
    BaseSLMAdapter,
    EncoderAdapter,
    cut_text,
    shared_backbone,
    shared_encoder,
)
from mlx_companion.slm.blend import Blend
from mlx_companion.slm.linear import LinearHead
from mlx_companion.slm.module import SLMModule
from mlx_companion.slm.network import Network
from mlx_companion.slm.ngrams import NGramConfig, NGrams
from mlx_companion.slm.packs import Pack, load_pack, packaged
from mlx_companion.slm.research_factors import Factors, Rules, load_rules
from mlx_companion.slm.results import ResearchResult
from mlx_companion.slm.tuned_encoder import TunedEncoder

Uncertain = Literal["keep", "research", "answer"] | Callable[[str, ResearchResult], bool]
DateLike = datetime.date | str | int

# Heads, by what they need besides factors; the best that can be had answers.
FULL, BACKBONE, LIGHT, TABLE = "backbone+encoder", "backbone", "ngrams", "table"
# What they are sums of; the first two read factors as well.
NGRAMS, NETWORK, TUNED = "ngrams", "network", "tuned"
EXPERTS = {FULL: (NGRAMS, NETWORK, TUNED), BACKBONE: (NGRAMS, NETWORK), LIGHT: (NGRAMS,)}
_FORMS = {4: "%Y", 7: "%Y-%m", 10: "%Y-%m-%d"}
# No calibration is surer than its data.
_SUREST = 0.995

_log = get_logger(__name__)


@dataclass(frozen=True)
class _Asked:
    query: str
    factors: Factors

    @property
    def says_something(self) -> bool:
        """There is a letter, a digit or a sign in it, not only spaces and invisible ones."""
        return any(sign.isprintable() and not sign.isspace() for sign in self.query)


class ResearchClassifier(SLMModule[ResearchResult]):
    """See the module's docstring.

    Args:
        pack: a pack or its folder; the one that comes with the package unless told.
        backbone: where hidden states come from; the shared default model unless told.
        encoder: the sentence encoder as published; the shared default one unless told.
        use_backbone: False to answer by n-grams and factors alone, in a millisecond.
        confidence_threshold: answers less sure than this are uncertain; up to 0.5 none is.
        on_uncertain: what becomes of them: "keep" the likelier answer, always "research", always
            "answer" directly, or a function of the query and the result that returns whether to
            research.
        today: what explicit years are read against; the day of the call unless told.
        cutoff: end of the answering model's knowledge; the pack's unless told.

    Raises:
        SLMError: the pack is damaged or another module's.
        ConfigError: a threshold outside of [0, 1], or a date that is none.
    """

    name: ClassVar[str] = "research_classifier"

    def __init__(
        self,
        *,
        pack: Pack | str | Path | None = None,
        backbone: BaseSLMAdapter | None = None,
        encoder: EncoderAdapter | None = None,
        use_backbone: bool = True,
        confidence_threshold: float = 0.6,
        on_uncertain: Uncertain = "keep",
        today: DateLike | None = None,
        cutoff: DateLike | None = None,
    ) -> None:
        if not isinstance(pack, Pack):
            pack = load_pack(pack or packaged(self.name), self.name)
        if not 0 <= confidence_threshold <= 1:
            raise ConfigError(
                f"confidence_threshold is {confidence_threshold}; expected 0 to 1 (up to 0.5 "
                "never uncertain)"
            )
        if not callable(on_uncertain) and on_uncertain not in ("keep", "research", "answer"):
            raise ConfigError(
                f"on_uncertain is '{on_uncertain}'; expected keep, research, answer or a function"
            )
        self.pack, self.version = pack, pack.version
        self.rules: Rules = load_rules(pack.rules)
        self._threshold, self._on_uncertain = confidence_threshold, on_uncertain
        self._today = None if today is None else as_date(today)
        self._cutoff = as_date(cutoff if cutoff is not None else pack.settings["cutoff"])
        self._ngrams = NGrams(NGramConfig(**pack.settings["ngrams"]))
        self._heads: dict[str, Blend] = {}
        # What is left of a damaged pack has no arrays, and answers by `fallback` only.
        if pack.arrays:
            heads = pack.settings.get("heads", {})
            self._heads = {name: Blend.from_settings(own) for name, own in heads.items()}
            self._linear = LinearHead.from_arrays(pack.arrays, NGRAMS)
            self._network = Network.from_arrays(pack.arrays, NETWORK)
        self._backbone, self._encoder = backbone, encoder
        self._tuned: TunedEncoder | None = None
        self._lock = threading.Lock()
        self._head: str | None = None if use_backbone else LIGHT
        self.degraded: str | None = None

    def process_batch(self, items: Sequence[Any]) -> list[ResearchResult]:
        """Answer queries, in order.

        Args:
            items: texts, or mappings with "query" and, where wanted, "today" and "cutoff".

        Raises:
            DataError: an item is neither, or a date is none.
        """
        asked = [self._read(item) for item in items]
        legible = [one for one in asked if one.says_something]
        if not legible:
            return [self._unread() for _ in asked]
        head = self._ready()
        chances = iter(self._chances(legible, head))
        return [
            self._result(one, float(next(chances)), head) if one.says_something else self._unread()
            for one in asked
        ]

    def fallback(self, item: Any) -> ResearchResult:
        """The keyword rule: the decision table alone, without any weights."""
        asked = self._read(item)
        if not asked.says_something:
            return self._unread()
        ruling = self.rules.decide(asked.factors)
        key = "none" if ruling.row is None else "research" if ruling.research else "answer"
        return ResearchResult(
            ruling.research,
            float(self.pack.settings["table_precision"][key]),
            self._reasoning(asked.factors, ruling.research),
            ruling.category,
            dict(asked.factors.strengths),
            head=TABLE,
        )

    def _read(self, item: Any) -> _Asked:
        given = item if isinstance(item, Mapping) else {"query": item}
        query = given.get("query")
        if not isinstance(query, str):
            raise DataError(
                f"a research query is text, and was given {type(query).__name__}", field="query"
            )
        try:
            today = as_date(given.get("today") or self._today or datetime.date.today())
            cutoff = as_date(given.get("cutoff") or self._cutoff)
        except ConfigError as error:
            wrong = "today" if _is_no_date(given.get("today")) else "cutoff"
            raise DataError(str(error), field=wrong) from error
        # Long ones are cut: some patterns take time beyond a text's length.
        query = cut_text(query)
        return _Asked(query, self.rules.read(query, today, cutoff))

    def _ready(self) -> str:
        """Which head answers; found out at the first call."""
        with self._lock:
            if self._head is None:
                self._head = self._best_head()
                if self.degraded:
                    _log.warning("%s; the head '%s' answers", self.degraded, self._head)
            return self._head

    def _best_head(self) -> str:
        self._backbone = self._backbone or shared_backbone()
        if (problem := self._unfit(self._backbone, "backbone")) is not None:
            self.degraded = problem
            return LIGHT
        if FULL not in self._heads:
            return BACKBONE
        self._encoder = self._encoder or shared_encoder()
        self.degraded = self._unfit(self._encoder, "encoder")
        if self.degraded is not None:
            return BACKBONE
        self._tuned = TunedEncoder(self._encoder, self.pack.arrays)
        return FULL

    def _unfit(self, adapter: BaseSLMAdapter, kind: str) -> str | None:
        try:
            found, wanted = adapter.identity, self.pack.settings[kind]
        except (CompanionError, OSError) as error:
            return f"the {kind} '{adapter.name}' cannot be loaded ({error})"
        if found != wanted:
            return f"the head was trained for another {kind} than '{adapter.name}'"
        return None

    def _chances(self, asked: Sequence[_Asked], head: str) -> np.ndarray:
        """Probabilities (N,) that queries need research."""
        texts = [one.query for one in asked]
        backbone = self._backbone if NETWORK in EXPERTS[head] else None
        tuned = self._tuned if TUNED in EXPERTS[head] else None
        for adapter in (backbone, tuned):
            if adapter is not None:
                # Asked first: what follows goes on meanwhile.
                adapter.prefetch(texts)
        factors = np.stack([self.rules.vector(one.factors) for one in asked])
        pairs = self.rules.pairs([one.factors for one in asked])
        blocks = [self._ngrams.transform(texts), factors, pairs]
        logits = {NGRAMS: self._linear.logits(blocks)[:, 0]}
        if backbone is not None:
            rows = np.concatenate([backbone.features(texts), factors], axis=1)
            logits[NETWORK] = self._network.logits(rows)
        if tuned is not None:
            logits[TUNED] = tuned.features(texts)[:, 0]
        return self._heads[head](logits)

    def _result(self, asked: _Asked, chance: float, head: str) -> ResearchResult:
        research = chance >= 0.5
        sure = min(max(chance, 1 - chance), _SUREST)
        result = ResearchResult(
            research,
            sure,
            self._reasoning(asked.factors, research),
            self.rules.category(asked.factors, research),
            dict(asked.factors.strengths),
            uncertain=sure < self._threshold,
            head=head,
        )
        return self._settled(asked, result) if result.uncertain else result

    def _unread(self) -> ResearchResult:
        """The answer to a query without anything to read; no rule for uncertain ones holds."""
        told = "can be answered directly: there is nothing to read in it"
        return ResearchResult(False, 0.5, told, "other", {}, self._threshold > 0.5, TABLE)

    def _settled(self, asked: _Asked, result: ResearchResult) -> ResearchResult:
        rule = self._on_uncertain
        if callable(rule):
            research = bool(rule(asked.query, result))
        else:
            research = result.needs_research if rule == "keep" else rule == "research"
        if research == result.needs_research:
            return result
        return replace(
            result,
            needs_research=research,
            confidence=1 - result.confidence,
            reasoning=self._reasoning(asked.factors, research)
            + "; uncertain, so the set rule held",
            category=self.rules.category(asked.factors, research),
        )

    def _reasoning(self, factors: Factors, research: bool) -> str:
        speaking, against = self.rules.reasons(factors, research)
        opening = "needs research" if research else "can be answered directly"
        if not speaking:
            words = "no factor speaks for it, its wording as a whole does"
        else:
            words = "it " + ", ".join(speaking)
        if against:
            words += f" (against that: {', '.join(against)})"
        return f"{opening}: {words}"


def _is_no_date(value: DateLike | None) -> bool:
    try:
        return value is not None and as_date(value) is None
    except ConfigError:
        return True


def as_date(value: DateLike) -> datetime.date:
    """A date of a date, "2024-06-30", "2024-06", "2024" or 2024 (a span counts to its end).

    Raises:
        ConfigError: it is none of them.
    """
    if isinstance(value, datetime.datetime):
        return value.date()
    if isinstance(value, datetime.date):
        return value
    text = str(value).strip()[:10]
    try:
        start = datetime.datetime.strptime(text, _FORMS[len(text)]).date()
    except (KeyError, ValueError) as error:
        raise ConfigError(f"'{value}' is no date; write it as 2024-06-30 or 2024-06") from error
    if len(text) == 10:
        return start
    if len(text) == 4:
        return start.replace(month=12, day=31)
    following = (start + datetime.timedelta(days=31)).replace(day=1)
    return following - datetime.timedelta(days=1)
