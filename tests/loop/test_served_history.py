"""Of a conversation longer than the context the end is kept, and found without reading it all."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mlx_companion.loop import served
from mlx_companion.loop.config import ServeConfig
from mlx_companion.loop.served import ServedModel
from mlx_companion.personality import chat_messages, load_profile


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A model whose tokens are words; the lengths of what it was asked to render."""
    lengths: list[int] = []

    def render(lm: Any, messages: list[dict[str, str]]) -> list[int]:
        words = sum(len(one["content"].split()) for one in messages)
        lengths.append(words)
        return [0] * words

    monkeypatch.setattr(served, "render", render)
    monkeypatch.setattr(served, "context_length", lambda lm: 2_000)
    monkeypatch.setattr(served, "stream_generate", lambda lm, messages, **_: messages)
    return lengths


def messages(history: list[tuple[str, str]]) -> Any:
    model = ServedModel(SimpleNamespace(), load_profile(), ServeConfig(max_tokens=100))  # type: ignore[arg-type]
    return model.stream("and now?", history)


@pytest.mark.parametrize("exchanges", [0, 1, 2, 3, 7, 40, 120])
@pytest.mark.parametrize("words", [1, 9, 200, 950, 2_000])
def test_as_many_of_the_last_exchanges_as_fit(
    rendered: list[int], exchanges: int, words: int
) -> None:
    history = [(f"question {n}", "word " * words) for n in range(exchanges)]
    alone = sum(len(one["content"].split()) for one in chat_messages(load_profile(), "and now?"))
    kept = min(exchanges, (1_900 - alone) // (words + 2))
    expected = history[exchanges - kept :]
    assert messages(history) == chat_messages(load_profile(), "and now?", history=expected)


def test_what_does_not_fit_alone_goes_without_history(rendered: list[int]) -> None:
    history = [("word " * 3_000, "yes")]
    assert messages(history) == chat_messages(load_profile(), "and now?")
    assert messages([]) == chat_messages(load_profile(), "and now?")


def test_a_long_conversation_is_not_read_as_a_whole(rendered: list[int]) -> None:
    messages([(f"question {n}", "word " * 20) for n in range(20_000)])
    assert sum(rendered) < 40_000
