"""Where the assistant's turns lie in a rendered conversation.

A chat template is a program: the only sure way to know what it writes for one turn is to
render the conversation up to that turn and compare. Rendering ``messages[:i]`` with the
generation prompt gives exactly the text in front of which the model will stand when it
answers, so the characters after it are what assistant turn i is trained on.

A model without a template gets its turns joined by a blank line, as generation does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlx_companion.errors import DataError
from mlx_companion.text.records import Message


def has_template(tokenizer: Any) -> bool:
    """Whether the tokenizer (mlx-lm's wrapper or a transformers one) has a chat template."""
    known = getattr(tokenizer, "has_chat_template", None)
    return bool(tokenizer.chat_template) if known is None else bool(known)


def render(messages: Sequence[Message], tokenizer: Any, *, generation_prompt: bool) -> str:
    """Render a conversation with the tokenizer's chat template.

    Raises:
        DataError: the template refuses this conversation.
    """
    if not has_template(tokenizer):
        return "\n\n".join(message.content for message in messages)
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        return tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=generation_prompt
        )
    except Exception as error:  # a template is foreign code and raises what it likes
        raise DataError(f"the chat template refuses this conversation: {error}") from error


def assistant_spans(
    messages: Sequence[Message], tokenizer: Any
) -> tuple[str, list[tuple[int, int]]]:
    """Render a conversation and find every assistant turn in it.

    Args:
        messages: the turns.
        tokenizer: mlx-lm's wrapper or a transformers tokenizer.

    Returns:
        The text and, per assistant turn, its (start, end) characters: from the end of the
        generation prompt to the end of what the template writes for the turn.

    Raises:
        DataError: the template rewrites earlier turns once later ones follow, so that no
            mask would be true to what the model sees when it generates.
    """
    text = render(messages, tokenizer, generation_prompt=False)
    spans = []
    for turn, message in enumerate(messages):
        if message.role == "assistant":
            spans.append(_turn_span(messages, turn, text, tokenizer))
    return text, spans


def _turn_span(
    messages: Sequence[Message], turn: int, text: str, tokenizer: Any
) -> tuple[int, int]:
    prompt = render(messages[:turn], tokenizer, generation_prompt=True)
    through = render(messages[: turn + 1], tokenizer, generation_prompt=False)
    if through == prompt:
        raise DataError(f"the chat template writes nothing for assistant turn {turn}; use another")
    if text.startswith(prompt):
        if text.startswith(through):
            return len(prompt), len(through)
        answer = _answer_without_preamble(messages[turn].content, through)
        if answer and text.startswith(answer, len(prompt)):
            return len(prompt), len(prompt) + len(answer)
    raise DataError(
        f"the chat template writes assistant turn {turn} differently when it is the last one and "
        "when others follow, so its tokens cannot be told apart; split the conversation so that "
        "this turn is the last, or use another template"
    )


def _answer_without_preamble(content: str, through: str) -> str:
    """The turn as rendered, less what a template puts before the content of a last turn.

    Reasoning templates (Qwen3's) write an empty thinking block in the last turn only.
    """
    start = through.rfind(content.strip())
    return through[start:] if start >= 0 else ""
