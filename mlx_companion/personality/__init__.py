"""How the companion speaks: profile, style rules, prompt builder, measures, post-processing.

`profile` holds the written profile with its `guard_settings`, `rules` the registry of checkable
rules (`shape` and `phrases` define them over the text measures of `words`). `prompt` turns a
profile into chat messages, `prompt_builder` adds what was learned of the person, `postprocess`
applies it to a reply, and `metrics` shows whether it did. `markup` (what is code, what is quoted)
and `lexicon` (what is a word, and in what case) serve them all.
"""

from __future__ import annotations

from mlx_companion.personality.guard_settings import GuardSettings, TopicSettings
from mlx_companion.personality.markup import Markup, scan
from mlx_companion.personality.metrics import TextMetrics, text_metrics
from mlx_companion.personality.phrases import is_hedge, substantial_words
from mlx_companion.personality.postprocess import Learned, Processed, postprocess
from mlx_companion.personality.profile import Profile, load_profile, packaged_profiles
from mlx_companion.personality.prompt import chat_messages, system_prompt, variant_count
from mlx_companion.personality.prompt_builder import BuiltPrompt, Preference, build_prompt
from mlx_companion.personality.rules import RULES, Violation, check
from mlx_companion.personality.words import content_words, new_words

__all__ = [
    "RULES",
    "BuiltPrompt",
    "GuardSettings",
    "Learned",
    "Markup",
    "Preference",
    "Processed",
    "Profile",
    "TextMetrics",
    "TopicSettings",
    "Violation",
    "build_prompt",
    "chat_messages",
    "check",
    "content_words",
    "is_hedge",
    "load_profile",
    "new_words",
    "packaged_profiles",
    "postprocess",
    "scan",
    "substantial_words",
    "system_prompt",
    "text_metrics",
    "variant_count",
]
