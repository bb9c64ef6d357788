"""The registry of style rules, and the check of a text against a profile.

A rule is a small function `(text, **parameters) -> str | None` that returns the reason when the
text breaks it. The judge of the loop runs `check` on every reply and stores each reason; a rule of
your own joins with `RULES["my_rule"] = function` and is then known to profiles::

    profile = load_profile()
    check(profile, "Sure! Here you go")   # -> [Violation("complete_sentences", "..."), ...]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlx_companion.personality import phrases, shape

if TYPE_CHECKING:
    from mlx_companion.personality.profile import Profile

Rule = Callable[..., "str | None"]

RULES: dict[str, Rule] = {
    rule.__name__: rule
    for rule in (
        shape.max_words,
        shape.min_words,
        shape.complete_sentences,
        shape.single_paragraph,
        shape.no_exclamation,
        shape.no_lists,
        shape.no_markdown,
        shape.no_emoji,
        shape.no_repetition,
        shape.no_bare_question,
        shape.readable,
        phrases.no_self_reference,
        phrases.no_flattery,
        phrases.no_canned_sympathy,
        phrases.no_filler,
        phrases.no_offers,
        phrases.no_refusal,
        phrases.no_placeholders,
        phrases.no_role_leak,
        phrases.no_prompt_echo,
        phrases.substance,
    )
}


@dataclass(frozen=True)
class Violation:
    """One broken rule.

    Attributes:
        rule: the name of the rule in `RULES`.
        reason: what broke it, with the offending piece of the text.
    """

    rule: str
    reason: str


def check(profile: Profile, text: str) -> list[Violation]:
    """Return every rule of `profile` that `text` breaks, in the profile's order.

    Args:
        profile: whose rules and parameters apply.
        text: one reply, as the person would see it.

    Returns:
        The violations; an empty list when every rule is kept.
    """
    found = []
    for name, parameters in profile.rules.items():
        reason = RULES[name](text, **parameters)
        if reason is not None:
            found.append(Violation(name, reason))
    return found
