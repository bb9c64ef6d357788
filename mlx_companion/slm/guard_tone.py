"""Tone: gushing praise, hype and flattery, sentence by sentence."""

from __future__ import annotations

from mlx_companion.slm.guard_text import Draft, Finding

TONE_CHEERLEADER = "tone_cheerleader"


class ToneHead:
    @classmethod
    def of_pack(cls, pack):
        return None


def find_tone(draft: Draft, head: ToneHead | None) -> list[Finding]:
    return []
