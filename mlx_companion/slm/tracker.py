"""The context tracker: what a message shows of the person's language, situation and wishes.

    tracker = ContextTracker()
    result = tracker.process("ngl this song is fire, call me Max")
    result.slang_detected        # [{"term": "ngl", ...}, {"term": "fire", ...}]
    result.formality_level       # 0.03
    result.updates               # [ContextUpdate("person.name", "Max", ...)]

A message is a text, a list of turns, or a dict with `text` or `turns`, and may have `now` (ISO
8601: what "tomorrow" counts from), `known` (what is known of the person, by key) and
`conversation`: with such a name the tone is compared with what was said before in it, and new
terms are counted. Without it `process` keeps nothing. No language model is loaded; where a word
may be slang or not, the lower layers of the sentence encoder read it, if that is on this disk.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlx_companion.errors import DataError, SLMError
from mlx_companion.runtime.logs import get_logger
from mlx_companion.slm.encoder_files import fetch_encoder
from mlx_companion.slm.formality import FormalityScorer, rule_score
from mlx_companion.slm.module import SLMModule
from mlx_companion.slm.packs import Pack, load_pack, packaged
from mlx_companion.slm.results import ContextResult, ContextUpdate
from mlx_companion.slm.slang import SlangDetector
from mlx_companion.slm.slang_learn import TermLearner
from mlx_companion.slm.slang_lexicon import Lexicon
from mlx_companion.slm.tracker_heads import UNCLEAR, ContextHeads, ContextRead, rule_depth
from mlx_companion.slm.tracker_texts import written
from mlx_companion.slm.tracker_time import part_of_day, time_markers
from mlx_companion.slm.tracker_tone import ToneState, tone_shift, warmth
from mlx_companion.slm.tracker_updates import find_updates

_log = get_logger(__name__)
_MOST_CONVERSATIONS = 256
_LONGEST = 20_000


@dataclass(frozen=True)
class Message:
    """One input, read.

    Attributes:
        turns: what the person said, oldest first; never empty.
        now: the moment of the last turn; None when it was not told.
        known: facts by key.
        conversation: its name, if the tracker is to remember.
    """

    turns: tuple[str, ...]
    now: datetime | None = None
    known: Mapping[str, Any] = field(default_factory=dict)
    conversation: str | None = None


@dataclass(frozen=True)
class _Parts:
    slang: SlangDetector
    formality: FormalityScorer
    heads: ContextHeads
    lexicon: Lexicon
    learner: TermLearner


class ContextTracker(SLMModule[ContextResult]):
    """Reads messages. May be used from any thread; loads its pack at the first use.

    Args:
        pack: a pack, its folder, or None for the one that comes with the package.
        learned: state of `learned_state`, to go on from.
        use_encoder: whether ambiguous slang is read with the sentence encoder, where that is on
            this disk; it is opened at the first ambiguous word, and never fetched for this.
    """

    name = "context_tracker"

    def __init__(
        self,
        pack: Pack | str | Path | None = None,
        *,
        learned: Mapping[str, Any] | None = None,
        use_encoder: bool = True,
    ) -> None:
        self._pack = pack
        self._learned, self._use_encoder = learned, use_encoder
        self._parts: _Parts | None = None
        self._tones: OrderedDict[str, ToneState] = OrderedDict()
        self._lock = threading.RLock()

    @property
    def version(self) -> str:  # type: ignore[override]
        """Version of the pack."""
        return self._checked_pack().version

    def load(self) -> None:
        """Load the pack now.

        Raises:
            SLMError: it is missing or damaged.
        """
        self._loaded()

    def prepare(self) -> None:
        """Fetch the sentence encoder, so that ambiguous slang is read with it."""
        if self._use_encoder:
            fetch_encoder("the sense check goes")

    def process_batch(self, items: Sequence[Any]) -> list[ContextResult]:
        """Read messages, in order.

        Raises:
            DataError: an item is no message.
            SLMError: the pack is missing or damaged.
        """
        messages = [read_message(item, at) for at, item in enumerate(items)]
        parts = self._loaded()
        return [self._read(message, parts) for message in messages]

    def fallback(self, item: Any) -> ContextResult:
        """What rules alone see: unambiguous slang, style counts, times, statements.

        Raises:
            DataError: the item is no message.
        """
        message = read_message(item)
        detector = SlangDetector(_packaged_lexicon())
        slang = _slang_of(message.turns, detector, {})
        counts = _counts(slang, message.turns, detector)
        levels = [rule_score(text, n) for text, n in zip(message.turns, counts, strict=True)]
        unread = _unread(message.turns[-1])
        return _result(message, slang, levels, unread, tone_shift(message.turns, levels), [])

    def forget(self, term: str) -> None:
        """Undo a learned term; it is not learned again."""
        self._loaded().learner.forget(term)

    def learned_state(self) -> dict[str, Any]:
        """Terms learned and counted so far, JSON values."""
        return self._loaded().learner.to_dict()

    def share_learned(self, state: Mapping[str, Any] | None) -> dict[str, Any]:
        """Terms counted here and by others; see `TermLearner.share`."""
        return self._loaded().learner.share(state)

    def learned_kept(self) -> None:
        """What `share_learned` gave last has been kept."""
        self._loaded().learner.kept()

    def close(self) -> None:
        """Forget the running state of conversations; learned terms stay."""
        with self._lock:
            self._tones.clear()

    def _read(self, message: Message, parts: _Parts) -> ContextResult:
        slang = _slang_of(message.turns, parts.slang, parts.learner.learned)
        counts = _counts(slang, message.turns, parts.slang)
        levels = [float(level) for level in parts.formality.scores(message.turns, counts)]
        last = message.turns[-1]
        read = parts.heads.read([last])[0] if _is_said(last) else _unread(last)
        learned: list[ContextUpdate] = []
        shift = tone_shift(message.turns, levels)
        if message.conversation is not None:
            shift = self._remembered(message, levels) or shift
            for text in message.turns:
                learned += parts.learner.observe(text, _stamp(message.now))
        return _result(message, slang, levels, read, shift, learned)

    def _remembered(self, message: Message, levels: Sequence[float]) -> dict[str, Any]:
        with self._lock:
            state = self._tones.pop(message.conversation or "", None) or ToneState()
            shift: dict[str, Any] = {}
            for text, level in zip(message.turns, levels, strict=True):
                shift = state.add(level, warmth(text), len(text.split()))
            self._tones[message.conversation or ""] = state
            while len(self._tones) > _MOST_CONVERSATIONS:
                self._tones.popitem(last=False)
            return shift

    def _checked_pack(self) -> Pack:
        with self._lock:
            if not isinstance(self._pack, Pack):
                self._pack = load_pack(self._pack or packaged(self.name), self.name)
            return self._pack

    def _loaded(self) -> _Parts:
        with self._lock:
            if self._parts is None:
                pack = self._checked_pack()
                slang = SlangDetector.from_pack(pack, use_encoder=self._use_encoder)
                table = slang.table
                if table is None:
                    raise SLMError("the pack has no words; restore it or train it again")
                learner = TermLearner(table, slang.lexicon, state=self._learned)
                scorer, heads = FormalityScorer.from_pack(pack), ContextHeads.from_pack(pack)
                self._parts = _Parts(slang, scorer, heads, slang.lexicon, learner)
            return self._parts


def read_message(item: Any, line: int | None = None) -> Message:
    """Read one input.

    Raises:
        DataError: it is neither a text, nor turns, nor a dict with one of them, or has no turns.
    """
    fields: Mapping[str, Any] = item if isinstance(item, Mapping) else {}
    given = fields.get("turns", fields.get("text")) if fields else item
    place = None if line is None else line + 1
    turns = _turns(given)
    if turns is None and isinstance(given, Sequence) and not given:
        raise DataError("there is no turn; give what was said, oldest first", line=place)
    if turns is None:
        raise DataError(
            "a message is a text, a list of turns, or a dict with 'text' or 'turns'; "
            f"got {str(item)[:80]!r}",
            line=place,
        )
    known = fields.get("known") or {}
    if not isinstance(known, Mapping):
        raise DataError("what is known is given by key", field="known")
    name = fields.get("conversation")
    return Message(
        tuple(turns), _moment(fields.get("now")), known, None if name is None else str(name)
    )


def _turns(given: Any) -> list[str] | None:
    if isinstance(given, str):
        return [given[:_LONGEST]]
    if not isinstance(given, Sequence) or isinstance(given, bytes) or not given:
        return None
    said: list[str] = []
    for turn in given:
        if isinstance(turn, Mapping):
            text, role = turn.get("content", turn.get("text")), turn.get("role", "user")
        else:
            text, role = turn, "user"
        if not isinstance(text, str):
            return None
        if role == "user":
            said.append(text[:_LONGEST])
    # Turns of others alone say nothing about the person.
    return said or [""]


def _moment(given: Any) -> datetime | None:
    if given is None or isinstance(given, datetime):
        return given
    try:
        return datetime.fromisoformat(str(given))
    except ValueError as error:
        raise DataError(f"'now' is {given!r}; expected ISO 8601", field="now") from error


@functools.cache
def _packaged_lexicon() -> Lexicon:
    # Not from the pack: this is what is left when the pack cannot be read.
    return Lexicon.parse(written("lexicon"))


def _slang_of(
    turns: Sequence[str], detector: SlangDetector, learned: Mapping[str, float]
) -> list[dict[str, Any]]:
    several = len(turns) > 1
    return [
        item | ({"turn": at} if several else {})
        for at, text in enumerate(turns)
        for item in detector.detect(text, learned)
    ]


def _counts(
    slang: Sequence[Mapping[str, Any]], turns: Sequence[str], detector: SlangDetector
) -> list[int]:
    """Slang and reduced spellings of each turn."""
    counts = [detector.spellings(text) for text in turns]
    for item in slang:
        counts[item.get("turn", 0)] += 1
    return counts


def _is_said(text: str) -> bool:
    """There is something to read: a letter, a sign, an emoji."""
    return any(sign.isprintable() and not sign.isspace() for sign in text)


def _unread(text: str) -> ContextRead:
    return ContextRead(UNCLEAR, 0.0, UNCLEAR, 0.0, rule_depth(text))


def _stamp(now: datetime | None) -> str | None:
    return None if now is None else now.astimezone(UTC).isoformat(timespec="seconds")


def _result(
    message: Message,
    slang: list[dict[str, Any]],
    levels: Sequence[float],
    read: ContextRead,
    shift: dict[str, Any],
    learned: Sequence[ContextUpdate],
) -> ContextResult:
    last, now = message.turns[-1], message.now or datetime.now()
    updates: dict[str, ContextUpdate] = {}
    for text in message.turns:
        for update in find_updates(text, message.known, _stamp(message.now)):
            updates[update.key] = update
    markers = {
        "time": time_markers(last, now.replace(tzinfo=None)),
        "part_of_day": None if message.now is None else part_of_day(now),
        "topic": read.topic,
        "topic_confidence": read.topic_confidence,
        "mood": read.mood,
        "mood_confidence": read.mood_confidence,
    }
    return ContextResult(
        slang, shift, markers, levels[-1], read.depth, [*updates.values(), *learned]
    )


__all__ = ["ContextTracker", "Message", "read_message"]
