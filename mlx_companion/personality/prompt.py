"""From a profile to what the model is given: the system prompt and the messages of a chat.

Serving always uses the profile's own system prompt (variant 0), because the adapter is trained on
it. While samples are generated the other variants are used too: the same wish in other words gives
other replies. The prompt is short on purpose: every chat pays for its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from mlx_companion.errors import ConfigError
from mlx_companion.personality.profile import Profile


def variant_count(profile: Profile) -> int:
    """Return how many system prompts `profile` has, the served one included."""
    return 1 + len(profile.prompt_variants)


def system_prompt(profile: Profile, variant: int = 0) -> str:
    """Return the system prompt of `profile`.

    Args:
        profile: whose prompt.
        variant: 0 for the one that is served, 1 to `variant_count(profile) - 1` for the others.

    Raises:
        ConfigError: there is no such variant.
    """
    if not 0 <= variant < variant_count(profile):
        raise ConfigError(
            f"profile '{profile.name}' has no system prompt variant {variant}; "
            f"expected 0 to {variant_count(profile) - 1}."
        )
    return (profile.system_prompt, *profile.prompt_variants)[variant]


def chat_messages(
    profile: Profile,
    prompt: str,
    variant: int = 0,
    history: Sequence[tuple[str, str]] = (),
) -> list[dict[str, str]]:
    """Return the messages of a chat, ready for a tokenizer's chat template.

    Args:
        profile: how the companion speaks.
        prompt: what the person says now.
        variant: which system prompt, as in `system_prompt`.
        history: earlier turns, oldest first, as (what the person said, what was replied).

    Returns:
        Dictionaries with "role" and "content": system, the earlier turns, then the prompt.
    """
    messages = [{"role": "system", "content": system_prompt(profile, variant)}]
    for said, replied in history:
        messages.append({"role": "user", "content": said})
        messages.append({"role": "assistant", "content": replied})
    return [*messages, {"role": "user", "content": prompt}]
