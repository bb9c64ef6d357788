"""How the companion speaks: profile, style rules and prompt builder.

`profile` holds the written profile, `rules` the registry of checkable rules (`shape` and `phrases`
define them over the text measures of `words`), `prompt` turns a profile into chat messages.
"""

from __future__ import annotations

from mlx_companion.personality.phrases import is_hedge, substantial_words
from mlx_companion.personality.profile import Profile, load_profile, packaged_profiles
from mlx_companion.personality.prompt import chat_messages, system_prompt, variant_count
from mlx_companion.personality.rules import RULES, Violation, check
from mlx_companion.personality.words import content_words, new_words

__all__ = [
    "RULES",
    "Profile",
    "Violation",
    "chat_messages",
    "check",
    "content_words",
    "is_hedge",
    "load_profile",
    "new_words",
    "packaged_profiles",
    "substantial_words",
    "system_prompt",
    "variant_count",
]
