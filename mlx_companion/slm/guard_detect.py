"""All rules of a profile over one reply: the findings, in the order in which edits are made."""

from __future__ import annotations

from collections.abc import Sequence

from mlx_companion.personality.guard_settings import GuardSettings
from mlx_companion.slm.guard_actions import ASTERISK_ACTION, find_actions
from mlx_companion.slm.guard_capitals import find_capitals, opened
from mlx_companion.slm.guard_directions import DirectionHead
from mlx_companion.slm.guard_filler import find_filler
from mlx_companion.slm.guard_marks import find_emoji, find_exclamations
from mlx_companion.slm.guard_names import find_name_overuse
from mlx_companion.slm.guard_text import Draft, Finding, GuardRules
from mlx_companion.slm.guard_tone import ToneHead, find_tone
from mlx_companion.slm.guard_topics import find_phrases, find_topic, topic_rule


class Detector:
    """The rules of a profile, compiled.

    Args:
        settings: what the profile enforces.
        rules: the word lists.
        tone: the trained head; None judges tone by patterns alone.
        directions: the one that judges what is between marks; None leaves that to the rules.
    """

    def __init__(
        self,
        settings: GuardSettings,
        rules: GuardRules,
        tone: ToneHead | None = None,
        directions: DirectionHead | None = None,
    ) -> None:
        self.settings = settings
        self.rules = rules
        self.tone = tone
        self.directions = directions
        self._topics = {
            topic: topic_rule(topic, one, rules) for topic, one in settings.topics.items()
        }

    def enumerable(self, draft: Draft) -> list[Finding]:
        """Findings of the rules that need no judgement."""
        settings, rules = self.settings, self.rules
        found: list[Finding] = []
        if settings.no_asterisk_actions:
            found += find_actions(draft, rules, self.directions)
        found += find_phrases(draft, settings.phrases)
        if settings.no_servile_filler:
            found += find_filler(draft)
        for topic, rule in self._topics.items():
            found += find_topic(draft, topic, rule)
        if settings.max_name_uses is not None:
            found += find_name_overuse(draft, rules, settings.max_name_uses)
        if settings.no_excited_capitals:
            found += opened(draft, find_capitals(draft, rules), found)
        if settings.max_exclamations is not None:
            found += find_exclamations(draft, rules, settings.max_exclamations)
        if settings.max_emoji is not None:
            found += find_emoji(draft, settings.max_emoji)
        return found

    def tonal(self, draft: Draft, found: Sequence[Finding] = ()) -> list[Finding]:
        """Findings of tone: sentences that cheer.

        Args:
            draft: the reply.
            found: what `enumerable` found; actions are not said and have no tone.
        """
        if not self.settings.no_cheerleading:
            return []
        actions = [(one.start, one.end) for one in found if one.violation == ASTERISK_ACTION]
        return find_tone(draft, self.tone, actions)
