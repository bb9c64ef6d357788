"""What one emoji is: a pictograph with all that joins it, a flag, a keycap.

`len("👩‍👩‍👧")` is five; a person sees one. Counting and removing need the whole::

    [found.group() for found in EMOJI.finditer("Hi 👋🏽")]     # ["👋🏽"]

Source: Unicode Technical Standard 51, the sequences of section 1.4.
"""

from __future__ import annotations

import re

_PICTURE = (
    "[\U0001f000-\U0001f1e5\U0001f200-\U0001faff\u2600-\u26ff\u2728\u2764\u2763\u270a-\u270d\u2705"
    "\u2b50\u2b55\u2b1b\u2b1c\u2753-\u2755\u2757]"
)
_TONE = "\ufe0f?[\U0001f3fb-\U0001f3ff]?"
_JOINED = "\u200d[\U0001f000-\U0001faff\u2600-\u27bf]" + _TONE
EMOJI = re.compile(
    f"(?:[\U0001f1e6-\U0001f1ff]{{2}}|[0-9#*]\ufe0f?\u20e3|{_PICTURE}{_TONE}(?:{_JOINED}){{0,6}})"
)
_SIGNS = frozenset(
    "\u2611\u2610\u2612\u2605\u2606\u2660\u2663\u2665\u2666\u2600\u26a0\u2640\u2642\u267b"
    "\u2705\u274c\u2714\u2716\u27a1\U0001f534\U0001f7e2\U0001f7e1"
)


def is_sign(emoji: str) -> bool:
    """Tell whether an emoji is a sign of typography or state, such as a check box."""
    return emoji[0] in _SIGNS
