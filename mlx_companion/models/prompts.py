"""From what a person writes to the tokens a model reads.

A prompt is a string (one user message), a chat (a list of messages), or token ids.
Strings and chats go through the model's own chat template; a model without one gets
the plain text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from mlx_companion.errors import GenerationError

if TYPE_CHECKING:
    from mlx_companion.models.load import LanguageModel
    from mlx_companion.text import Message

Chat: TypeAlias = "Sequence[Mapping[str, str] | Message]"
Prompt: TypeAlias = "str | Chat | Sequence[int]"

__all__ = ["Chat", "Prompt", "context_length", "render"]


def render(lm: LanguageModel, prompt: Prompt, *, system: str | None = None) -> list[int]:
    """Token ids of `prompt`, ready to be continued by the assistant.

    Args:
        lm: the loaded model.
        prompt: text, chat messages or token ids.
        system: a system message put before a text prompt or a chat that has none.

    Raises:
        GenerationError: the prompt is empty, of an unknown kind, or holds an unknown token.
    """
    if _is_tokens(prompt):
        return _known_tokens(lm, [int(token) for token in prompt])  # type: ignore[arg-type]
    messages = as_messages(prompt, system)
    if not lm.tokenizer.has_chat_template:
        text = "\n\n".join(message["content"] for message in messages)
        return list(lm.tokenizer.encode(text))
    return list(
        lm.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)
    )


def as_messages(prompt: Prompt, system: str | None = None) -> list[dict[str, str]]:
    """The chat messages that `prompt` stands for.

    Raises:
        GenerationError: the prompt is empty or of an unknown kind.
    """
    if isinstance(prompt, str):
        messages = [{"role": "user", "content": prompt}]
    else:
        messages = [_message(item) for item in prompt]
    if not messages or not messages[-1]["content"].strip():
        raise GenerationError("the prompt is empty: give at least one visible character")
    if system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return messages


def context_length(lm: LanguageModel) -> int:
    """The longest sequence (tokens) that the model was made for."""
    return int(lm.config.get("max_position_embeddings") or 1_000_000)


def _known_tokens(lm: LanguageModel, tokens: list[int]) -> list[int]:
    # MLX reads whatever memory lies at the row of a token that does not exist.
    size = int(lm.config.get("vocab_size") or 0)
    unknown = [token for token in tokens if size and not 0 <= token < size]
    if unknown:
        raise GenerationError(
            f"token {unknown[0]} does not exist: {lm.source} knows 0 to {size - 1}; "
            "encode the text with this model's tokenizer"
        )
    return tokens


def _message(item: object) -> dict[str, str]:
    if isinstance(item, Mapping):
        role, content = item.get("role"), item.get("content")
    else:
        role, content = getattr(item, "role", None), getattr(item, "content", None)
    if not isinstance(role, str) or not isinstance(content, str):
        raise GenerationError(
            f"a chat message must have a text 'role' and 'content', got {item!r:.120}"
        )
    return {"role": role, "content": content}


def _is_tokens(prompt: Prompt) -> bool:
    if isinstance(prompt, str):
        return False
    if not isinstance(prompt, Sequence):
        raise GenerationError(
            f"a prompt is text, a list of chat messages or a list of token ids, "
            f"not {type(prompt).__name__}"
        )
    if len(prompt) == 0:
        raise GenerationError("the prompt is empty: give at least one token or message")
    return all(isinstance(item, int) for item in prompt)
