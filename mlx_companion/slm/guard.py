"""The personality guard: does a reply keep to the profile, and what may be said instead?

    guard = PersonalityGuard()                            # the profile "dry_wit"
    result = guard.process("*grins* That is AMAZING!! Coffee, Sam?")
    result.violations_detected      # ["asterisk_action", "coffee_reference", ...]
    result.rewritten_response       # "That is amazing! Tea, Sam?"

Rules that can be enumerated are found by code and mended by the smallest edits of spans. Tone is
judged by patterns, a small trained head, and the lower layers of the sentence encoder where that
is on this disk (else `degraded` says so; only `prepare` fetches it). A language model, where one is
given, rewrites only the sentence at fault, and what it says counts only when it holds no violation
and loses no number, name, link or code. Otherwise the sentence is mended without it. Whatever the
level, a rewritten reply breaks no enumerable rule, and rewriting it again changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from mlx_companion.errors import ConfigError, DataError
from mlx_companion.personality.guard_settings import GuardSettings, Level
from mlx_companion.personality.profile import Profile, load_profile
from mlx_companion.slm.guard_detect import Detector
from mlx_companion.slm.guard_directions import DirectionHead
from mlx_companion.slm.guard_edits import blunt_edit, edit_for
from mlx_companion.slm.guard_revision import Revision
from mlx_companion.slm.guard_text import Draft, Finding, GuardRules
from mlx_companion.slm.guard_tone import ToneHead
from mlx_companion.slm.guard_tone_edits import mend_tone
from mlx_companion.slm.module import SLMModule
from mlx_companion.slm.packs import Pack, load_pack, packaged
from mlx_companion.slm.results import GuardResult

GUARD_PROFILE = "dry_wit"
Rewriter = Callable[[str], str]
# An edit can call for another one ("a" before a new word, a mark that a removal left over); after
# so many rounds findings are simply cut out.
_CAREFUL_ROUNDS = 6
_ROUNDS = 40


class PersonalityGuard(SLMModule[GuardResult]):
    """Checks replies against a profile and rewrites them.

    Args:
        pack: a folder, or a loaded pack; None for the one that comes with the package.
        profile: a profile, its packaged name or its file.
        level: strict, moderate or monitor; None for the profile's.
        rewriter: a language model as a function from a sentence's instruction to new text; used
            for tone, at level strict only.
        use_encoder: whether the sentence encoder judges tone as well.
    """

    name: ClassVar[str] = "personality_guard"

    def __init__(
        self,
        *,
        pack: Pack | str | Path | None = None,
        profile: Profile | str | Path = GUARD_PROFILE,
        level: Level | None = None,
        rewriter: Rewriter | None = None,
        use_encoder: bool = True,
    ) -> None:
        if not isinstance(pack, Pack):
            pack = load_pack(pack or packaged(self.name), self.name)
        self.version = pack.version
        self.profile = profile if isinstance(profile, Profile) else load_profile(profile)
        self.rewriter = rewriter
        self.settings: GuardSettings = self.profile.guard
        if level is not None:
            self.settings = replace(self.settings, level=level)
        self._rules = GuardRules(pack.rules)
        tone = ToneHead.of_pack(pack, use_encoder=use_encoder)
        self._reading = tone.reading if tone is not None else None
        self._detector = Detector(self.settings, self._rules, tone, DirectionHead.of_pack(pack))
        self._check_empty_reply()

    @property
    def degraded(self) -> str | None:
        """What is missing that the pack was made for; None when nothing is. Opens the encoder."""
        return self._reading.degraded if self._reading is not None else None

    def prepare(self) -> None:
        """Fetch the sentence encoder, so that tone is judged with it."""
        if self._reading is not None and self.settings.no_cheerleading:
            self._reading.fetch()

    def process_batch(self, items: Sequence[Any]) -> list[GuardResult]:
        """Check replies.

        Args:
            items: each a text, or a mapping with "text" and optionally "user_name" and "prompt".

        Raises:
            DataError: an item is neither.
        """
        drafts = [_read(item, index) for index, item in enumerate(items, 1)]
        return [self._examine(draft, self._detector, self.rewriter) for draft in drafts]

    def fallback(self, item: Any) -> GuardResult:
        """The enumerable rules alone: no trained head and no language model."""
        detector = Detector(self.settings, self._rules)
        return self._examine(_read(item, 1), detector, None)

    def _examine(self, draft: Draft, detector: Detector, rewriter: Rewriter | None) -> GuardResult:
        enumerable = detector.enumerable(draft)
        tonal = detector.tonal(draft, enumerable)
        found = [*enumerable, *tonal]
        revision = Revision(draft.text)
        careful = True
        if self.settings.level != "monitor" and enumerable:
            careful = self._mend(revision, draft, detector, enumerable)
        if self.settings.level == "strict" and tonal:
            mend_tone(revision, draft, detector, rewriter)
            after = _again(draft, revision.text)
            careful &= self._mend(revision, after, detector, detector.enumerable(after))
        self._fill(revision, draft)
        return GuardResult(
            draft.text,
            _names(found),
            revision.text,
            revision.changes,
            _confidence(found, careful),
            [_span(draft, one) for one in sorted(found, key=lambda one: (one.start, one.end))],
        )

    def _check_empty_reply(self) -> None:
        """What is said when nothing is left must keep the rules itself."""
        said = self.settings.empty_reply
        draft = Draft(said)
        broken = _names([*self._detector.enumerable(draft), *self._detector.tonal(draft)])
        if broken:
            raise ConfigError(
                f"guard.empty_reply is '{said}', which breaks {', '.join(broken)} itself; give a "
                "short neutral sentence"
            )

    def _mend(
        self, revision: Revision, draft: Draft, detector: Detector, found: list[Finding]
    ) -> bool:
        """Edit until nothing enumerable is found; tell whether careful edits were enough."""
        for attempt in range(_ROUNDS):
            if not found:
                return attempt <= _CAREFUL_ROUNDS
            make = edit_for if attempt < _CAREFUL_ROUNDS else blunt_edit
            revision.apply([make(draft, one) for one in found])
            draft = _again(draft, revision.text)
            found = detector.enumerable(draft)
        if found:
            revision.replace_all("", found[0].violation)
        return False

    def _fill(self, revision: Revision, draft: Draft) -> None:
        """Say something neutral when nothing is left of a reply."""
        left = any(character.isalnum() for character in revision.text)
        if not left and revision.changes and any(map(str.isalpha, draft.text)):
            last = revision.changes[-1]["violation"]
            revision.replace_all(self.settings.empty_reply, last)


def _again(draft: Draft, text: str) -> Draft:
    return Draft(text, draft.user_name, draft.prompt)


def _read(item: Any, line: int) -> Draft:
    if isinstance(item, str):
        return Draft(item)
    if not isinstance(item, Mapping) or not isinstance(item.get("text"), str):
        raise DataError(
            f"expected a text or a mapping with 'text', got {type(item).__name__}",
            line=line,
            field="text",
        )
    extra = [item.get(name) or "" for name in ("user_name", "prompt")]
    if not all(isinstance(value, str) for value in extra):
        raise DataError("'user_name' and 'prompt' are texts", line=line, field="user_name")
    return Draft(item["text"], *extra)


def _names(found: Iterable[Finding]) -> list[str]:
    return sorted({one.violation for one in found})


def _span(draft: Draft, finding: Finding) -> dict[str, Any]:
    return {
        "violation": finding.violation,
        "start": finding.start,
        "end": finding.end,
        "text": draft.text[finding.start : finding.end],
    }


def _confidence(found: Sequence[Finding], careful: bool) -> float:
    """The least sure finding's certainty; edits that had to cut cost some of it."""
    certain = min((float(one.detail.get("sure", 0.98)) for one in found), default=0.97)
    return round(certain * (1.0 if careful else 0.7), 4)
