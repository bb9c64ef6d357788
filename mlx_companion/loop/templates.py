"""How a prompt is put to the model while training samples are made.

Samples of one prompt differ by template: the system prompt is worded in the profile's other
ways, and the request may carry a reminder. Chat and gate use the served wording alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlx_companion.models import LanguageModel
from mlx_companion.models.prompts import context_length, render
from mlx_companion.personality import Profile, chat_messages, variant_count

__all__ = ["REMINDERS", "Template", "prompt_room", "templates"]

REMINDERS = ("{prompt}", "{prompt} Answer in one or two short sentences.")


@dataclass(frozen=True)
class Template:
    """One wording.

    Args:
        name: stored with each sample.
        variant: which of the profile's system prompts.
        wording: the request, with `{prompt}` where the prompt goes.
    """

    name: str
    variant: int
    wording: str

    def messages(self, profile: Profile, prompt: str) -> list[dict[str, str]]:
        """The chat that asks for a sample."""
        return chat_messages(profile, self.wording.replace("{prompt}", prompt), self.variant)


def templates(profile: Profile) -> list[Template]:
    """All templates of a profile: reminders in turn, other wordings of its system prompt first."""
    variants = [*range(1, variant_count(profile)), 0]
    return [
        Template(f"system-{variant}/reminder-{k}", variant, wording)
        for k, wording in reversed(list(enumerate(REMINDERS)))
        for variant in variants
    ]


def prompt_room(lm: LanguageModel, profile: Profile, max_tokens: int) -> int:
    """The longest prompt (tokens) that the model can read in every wording, and then answer.

    Args:
        lm: the model.
        profile: its system prompts take room.
        max_tokens: so much is kept free for the reply.
    """
    wordings = [render(lm, each.messages(profile, ".")) for each in templates(profile)]
    return context_length(lm) - max_tokens - max(map(len, wordings))
