"""The behaviour-drift monitor: have the companion's replies changed from what they were?

In one go, over a history (its first half is the baseline unless one is given), or reply by reply::

    monitor = DriftMonitor()
    monitor.process({"responses": replies}).drift_type
    monitor.process({"text": "You're my only friend."}).user_attachment

    monitor.observe(reply, user=message)       # a DriftResult when there is something to say

What it looks for and how is in `drift_evidence`; the statistics are in `drift_statistics`. A
person is alerted after two sessions in a row, or at once by a grave reply. See docs/slm_drift.md.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from mlx_companion.errors import ConfigError, DataError
from mlx_companion.slm.attachment import SpeechHeads
from mlx_companion.slm.backbone import BaseSLMAdapter, shared_backbone, shared_encoder
from mlx_companion.slm.drift_anomaly import anomalies
from mlx_companion.slm.drift_evidence import (
    FEWEST,
    Comparison,
    Finding,
    Levels,
    Measured,
    compare,
    sudden,
)
from mlx_companion.slm.drift_metric import StyleJudge, StyleMetric
from mlx_companion.slm.drift_probes import compare_probes, record_probes
from mlx_companion.slm.drift_stream import DriftStream, Observation, shortened
from mlx_companion.slm.drift_style import FEATURES, style_matrix
from mlx_companion.slm.module import SLMModule
from mlx_companion.slm.packs import Pack, load_pack, packaged
from mlx_companion.slm.results import DriftResult, DriftType

_REPLY_HEADS = ("assistant", "boundary", "hostile")
_ADVICE: dict[DriftType, str] = {
    "tone": "The replies no longer sound as they did: compare the active version and its system "
    "prompt with the one before, and roll back if the change was not meant.",
    "over_attachment": "Replies cling to the person: roll back the last adapter, and keep such "
    "replies out of the training data.",
    "repetition": "Replies repeat themselves: look at the sampling settings and at duplicates in "
    "the training data.",
    "boundary": "Replies overstep stated limits: stop this version until its replies are reviewed.",
    "anomaly": "Replies are broken: check the model's files, the chat template and the tokenizer.",
}
_USER_ADVICE = (
    "The person leans heavily on the assistant: answer warmly, say plainly what it is, and "
    "encourage contact with people near them."
)
_NOTHING = "Nothing to do."
_TOO_FEW = f"Too few replies to compare: it takes {FEWEST} before and {FEWEST} now."


@dataclass(frozen=True)
class DriftConfig:
    """Settings of the monitor.

    Args:
        session: replies in a session, about.
        baseline: replies that a stream takes as its baseline.
        window: the latest replies that a stream compares with it.
        user_alert: attachment of the person from which it counts as drift.
        levels: from where on something counts.
    """

    session: int = 8
    baseline: int = 24
    window: int = 24
    user_alert: float = 0.5
    levels: Levels = field(default_factory=Levels)

    def __post_init__(self) -> None:
        if not 2 <= self.session <= self.window or self.baseline < 4:
            raise ConfigError(
                f"session {self.session}, window {self.window} and baseline {self.baseline}: "
                "expected 2 <= session <= window, and a baseline of 4 or more"
            )


@dataclass(frozen=True)
class _History:
    baseline: list[str]
    current: list[str]
    messages: list[str]


class DriftMonitor(SLMModule[DriftResult]):
    """Watches the assistant's replies and the person's messages.

    Args:
        pack: a pack or its folder; the one that comes with the package unless told.
        backbone: gives the shared backbone's features; the default one, loaded when first used.
            False for heads over n-grams alone.
        encoder: gives sentence embeddings; the default one, loaded when first used.
        config: settings.
        probe: answers a prompt with the active model version; see `check_probes`.
    """

    name = "drift_monitor"

    def __init__(
        self,
        *,
        pack: Pack | str | Path | None = None,
        backbone: BaseSLMAdapter | bool | None = None,
        encoder: BaseSLMAdapter | None = None,
        config: DriftConfig | None = None,
        probe: Callable[[str], str] | None = None,
    ) -> None:
        self.config = config or DriftConfig()
        if not isinstance(pack, Pack):
            pack = load_pack(pack or packaged(self.name), self.name)
        self.version = pack.version
        self._metric = StyleMetric.from_arrays(pack.arrays, len(FEATURES))
        self._judge = StyleJudge.from_settings(pack.settings.get("style", {}))
        use_models = backbone is not False
        self._heads = SpeechHeads.from_pack(
            pack,
            _source(backbone, shared_backbone) if use_models else None,
            _source(encoder, shared_encoder) if use_models else None,
        )
        self._plain = SpeechHeads.from_pack(pack)
        self._stream = DriftStream(self.config.baseline, self.config.window, self.config.session)
        self._lock = threading.RLock()
        self.probe = probe

    def process_batch(self, items: Sequence[Any]) -> list[DriftResult]:
        """Judge histories or messages.

        Args:
            items: each a list of replies; a mapping with "responses" (and "baseline"); or one
                with the person's words only, "text" or "messages", which may stand beside
                replies as well. Replies are texts or mappings with "role" and "content".

        Raises:
            DataError: an item is none of these.
        """
        histories = [_read(item) for item in items]
        return [self._judged(history, self._heads) for history in histories]

    def fallback(self, item: Any) -> DriftResult:
        """As `process`, by n-grams alone: no backbone is loaded or waited for."""
        return self._judged(_read(item), self._plain)

    def observe(self, response: str, user: str | None = None) -> DriftResult | None:
        """Take in one reply, and the message it answered.

        The first replies become the baseline. Later ones are compared with it at the end of
        each session; a grave reply or message is told at once.

        Returns:
            A result when a session has ended or something grave was said; else None.
        """
        return self.take_in(self.measure(response, user))

    def measure(self, response: str, user: str | None = None) -> Observation:
        """The slow half of `observe`: read a reply and its message, and leave the stream alone."""
        if not isinstance(response, str):
            raise DataError(f"a reply must be text, and is {type(response).__name__}")
        one = self._measure([response], self._heads)[0]
        felt = float(self._heads.scores([user], "user")[0]) if user else 0.0
        return Observation(one, felt)

    def take_in(self, seen: Observation) -> DriftResult | None:
        """The other half of `observe`, within milliseconds."""
        one = seen.reply
        with self._lock:
            stream = self._stream
            ended = stream.add(one, self._metric, seen.felt)
            if not stream.ready:
                return None
            found = sudden(stream.baseline, one, self.config.levels)
            grave = bool(found.findings)
            if not (ended or grave):
                return None
            if ended:
                found = compare(
                    stream.baseline,
                    stream.window,
                    self._metric,
                    self._judge,
                    self.config.levels,
                    session=True,
                )
                stream.end_session(bool(found.findings))
            alert = grave or stream.alarms >= 2
            found.details["stream"] = stream.summary()
            return self._result(found, alert, felt=stream.felt, clings=stream.clings)

    def state_dict(self) -> dict[str, Any]:
        """The stream's memory as JSON values; bounded in size."""
        with self._lock:
            return self._stream.state(self.version)

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave.

        Raises:
            DataError: it is no such state.
        """
        with self._lock:
            seen = (*self._stream.baseline, *self._stream.recent)
            known = {shortened(one.text): one for one in seen}

            def measure(texts: Sequence[str]) -> list[Measured]:
                new = [text for text in texts if text not in known]
                measured = dict(zip(new, self._measure(new, self._plain), strict=True))
                return [known.get(text) or measured[text] for text in texts]

            self._stream = DriftStream.from_state(state, measure, self.version)

    def reset(self) -> None:
        """Forget the stream; the next replies make a new baseline."""
        with self._lock:
            self._stream = DriftStream(
                self.config.baseline, self.config.window, self.config.session
            )

    def check_probes(self, stored: Mapping[str, str]) -> DriftResult:
        """Ask the active version the fixed questions and compare with stored answers.

        Args:
            stored: what `drift_probes.record_probes` gave when the version was accepted.

        Raises:
            ConfigError: the monitor was made without `probe`.
            SLMError: too few of the questions are among the stored ones.
        """
        if self.probe is None:
            raise ConfigError("there is no model to ask; give DriftMonitor a probe=")
        answers = record_probes(self.probe)
        told = compare_probes(stored, answers, self._places)
        before = self._measure([stored[p] for p in answers if p in stored], self._heads)
        now = self._measure([answers[p] for p in answers if p in stored], self._heads)
        found = compare(before, now, self._metric, self._judge, self.config.levels)
        findings = [one for one in found.findings if one.kind not in ("tone", "repetition")]
        if told.p_value <= self.config.levels.p_value and told.agreement < 0.9:
            shown = tuple(answers[prompt] for prompt in told.changed[:3])
            findings.append(Finding("tone", 1 - told.agreement, shown))
        found.details["probes"] = asdict(told)
        found = Comparison(tuple(findings), found.details)
        clings = _strongest([one.scores["assistant"] for one in now])
        return self._result(found, bool(findings), felt=0.0, clings=clings)

    def _places(self, texts: list[str]) -> np.ndarray:
        return self._metric.project(style_matrix(texts))

    def _judged(self, history: _History, heads: SpeechHeads) -> DriftResult:
        felt = _strongest(heads.scores(history.messages, "user"))
        baseline = self._measure(history.baseline, heads)
        current = self._measure(history.current, heads)
        if not current:
            return self._of_messages(history.messages, felt)
        levels = self.config.levels
        whole = compare(baseline, current, self._metric, self._judge, levels)
        sessions = self._sessions(baseline, current)
        alert = any(f.grave for f in whole.findings) or any(
            one and two for one, two in pairwise(sessions)
        )
        whole.details["session_alarms"] = sessions
        whole.details["backbone"] = not heads.degraded
        clings = _strongest([one.scores["assistant"] for one in current])
        result = self._result(whole, alert and bool(whole.findings), felt=felt, clings=clings)
        if result.recommendation == _NOTHING and min(len(baseline), len(current)) < FEWEST:
            return replace(result, recommendation=_TOO_FEW)
        return result

    def _sessions(self, baseline: list[Measured], current: list[Measured]) -> list[bool]:
        """Which of the sessions that the current replies are cut into raise an alarm."""
        count = max(1, round(len(current) / self.config.session))
        if count == 1 and len(current) >= 6:
            count = 2
        ends = [round(i * len(current) / count) for i in range(count + 1)]
        parts = [current[a:b] for a, b in pairwise(ends) if b > a]
        return [
            bool(
                compare(
                    baseline, part, self._metric, self._judge, self.config.levels, session=True
                ).findings
            )
            for part in parts
        ]

    def _of_messages(self, messages: list[str], felt: float) -> DriftResult:
        attached = felt >= self.config.user_alert
        return DriftResult(
            drift_detected=attached,
            drift_type="over_attachment" if attached else None,
            severity=felt if attached else 0.0,
            examples=[one[:240] for one in messages[:1]] if attached else [],
            recommendation=_USER_ADVICE if attached else _NOTHING if messages else _TOO_FEW,
            should_alert=felt >= self.config.levels.grave,
            user_attachment=felt,
        )

    def _result(self, found: Comparison, alert: bool, *, felt: float, clings: float) -> DriftResult:
        first = found.findings[0] if found.findings else None
        advice = _ADVICE[first.kind] if first else _NOTHING
        if felt >= self.config.user_alert:
            advice = f"{advice} {_USER_ADVICE}" if first else _USER_ADVICE
        found.details["also"] = [one.kind for one in found.findings[1:]]
        return DriftResult(
            drift_detected=first is not None,
            drift_type=first.kind if first else None,
            severity=first.strength if first else 0.0,
            examples=list(first.examples) if first else [],
            recommendation=advice,
            should_alert=alert,
            user_attachment=felt,
            assistant_attachment=clings,
            details=found.details,
        )

    def _measure(self, texts: Sequence[str], heads: SpeechHeads) -> list[Measured]:
        styles = style_matrix(texts)
        scores = {name: heads.scores(texts, name) for name in _REPLY_HEADS}
        return [
            Measured(
                text,
                styles[i],
                {name: float(values[i]) for name, values in scores.items()},
                anomalies(text),
            )
            for i, text in enumerate(texts)
        ]


def _source(
    given: BaseSLMAdapter | bool | None, shared: Callable[[], BaseSLMAdapter]
) -> Callable[[], BaseSLMAdapter]:
    return (lambda: given) if isinstance(given, BaseSLMAdapter) else shared


def _strongest(scores: Any) -> float:
    """The mean of the two highest scores, when there are many; else the highest."""
    ordered = sorted((float(x) for x in scores), reverse=True)
    if not ordered:
        return 0.0
    return ordered[0] if len(ordered) < 3 else sum(ordered[:2]) / 2


def _read(item: Any) -> _History:
    if isinstance(item, str):
        return _History([], [], [item])
    if isinstance(item, Mapping):
        return _from_mapping(item)
    if isinstance(item, Sequence):
        replies, messages = _split_turns(item, "responses")
        half = len(replies) // 2
        return _History(replies[:half], replies[half:], messages)
    raise DataError(
        f"the drift monitor was given {type(item).__name__}; expected a list of replies, or a "
        'mapping with "responses" or "text"'
    )


def _from_mapping(item: Mapping[str, Any]) -> _History:
    messages = _split_turns(item.get("messages") or [], "messages")
    said = [*messages[1], *messages[0]]
    if isinstance(item.get("text"), str):
        said.append(item["text"])
    if said and "responses" not in item:
        return _History([], [], said)
    if "responses" not in item:
        raise DataError('expected "responses", a list of replies, or "text"', field="responses")
    replies, asked = _split_turns(item["responses"], "responses")
    given = item.get("baseline")
    if given is None:
        half = len(replies) // 2
        return _History(replies[:half], replies[half:], [*said, *asked])
    return _History(_split_turns(given, "baseline")[0], replies, [*said, *asked])


def _split_turns(turns: Any, name: str) -> tuple[list[str], list[str]]:
    """Replies, and the person's messages among them."""
    if isinstance(turns, str) or not isinstance(turns, Sequence):
        raise DataError(f"expected a list of texts, got {type(turns).__name__}", field=name)
    replies: list[str] = []
    messages: list[str] = []
    for at, turn in enumerate(turns):
        text = turn.get("content", turn.get("text")) if isinstance(turn, Mapping) else turn
        if not isinstance(text, str):
            raise DataError(f"item {at + 1} is no text: {turn!r:.80}", field=name)
        person = isinstance(turn, Mapping) and turn.get("role") == "user"
        (messages if person else replies).append(text)
    return replies, messages
