"""Servile fillers: "Certainly!" before the answer and "Let me know if..." after it.

The set phrases are those of the loop's style rules (`personality.phrases`); here they are only
placed, sentence by sentence, because a rule says that there is one and the guard must say where.
"""

from __future__ import annotations

from mlx_companion.personality.phrases import no_filler, no_offers
from mlx_companion.slm.guard_text import Draft, Finding

SERVILE_FILLER = "servile_filler"
_LONGEST = 400


def find_filler(draft: Draft) -> list[Finding]:
    """Sentences that open with a filler at the head of the reply, or offer help anywhere."""
    found = []
    for index, (start, end) in enumerate(draft.sentences()):
        said = draft.own[start : min(end, start + _LONGEST)].strip()
        opens = index < 2 and no_filler(said) is not None
        if said and (opens or no_offers(said) is not None):
            found.append(Finding(SERVILE_FILLER, start, end))
    return found
