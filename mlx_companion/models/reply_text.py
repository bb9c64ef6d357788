"""The text of one reply as its tokens come: held back where a stop may begin, cut where one is.

text = ReplyText(lm, stop=["\n\n"])
for token in tokens:
    print(text.add(token), end="")
print(text.close())
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from mlx_companion.models.load import LanguageModel

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Reply:
    """What a model answered. `str(reply)` is the text.

    Args:
        text: the text, without the stop that ended it.
        tokens: the sampled token ids, end token excluded.
        finish_reason: "stop" (end token or text stop) or "length" (cut at max_tokens).
        prompt_tokens: length of the prompt (tokens).
    """

    text: str
    tokens: tuple[int, ...] = field(repr=False)
    finish_reason: FinishReason
    prompt_tokens: int

    def __str__(self) -> str:
        return self.text


class ReplyText:
    """One row's tokens and text; `finished` once an end token or a stop has come."""

    """Collects one row's tokens and gives out text, holding back what may begin a stop."""

    def __init__(self, lm: LanguageModel, stop: Sequence[str]) -> None:
        self._end_tokens = lm.tokenizer.eos_token_ids
        self._detokenizer = lm.tokenizer.detokenizer
        self._stop = tuple(stop)
        self._tokens: list[int] = []
        self._text = ""
        self._given = 0
        self._cut = False
        self.finished = False

    def add(self, token: int) -> str:
        """Take a token in; the text that is certain by now and was not given yet."""
        if self.finished:
            return ""
        if token in self._end_tokens:
            self.finished = True
            return ""
        self._tokens.append(token)
        self._detokenizer.add_token(token)
        self._text += self._detokenizer.last_segment
        return self._release(held=self._held())

    def close(self) -> str:
        """No more tokens: the rest of the text."""
        self._detokenizer.finalize()
        # What a detokenizer still holds comes after the stop, when there was one.
        if not self._cut:
            self._text += self._detokenizer.last_segment
            self._cut_at_stop()
        return self._release(held=0)

    def reply(self, prompt_tokens: int) -> Reply:
        """All of it, after `close`."""
        reason: FinishReason = "stop" if self.finished else "length"
        return Reply(self._text.strip(), tuple(self._tokens), reason, prompt_tokens)

    def _held(self) -> int:
        if self._cut_at_stop():
            return 0
        longest = 0
        for text in self._stop:
            for size in range(min(len(text) - 1, len(self._text)), longest, -1):
                if self._text.endswith(text[:size]):
                    longest = size
                    break
        return longest

    def _cut_at_stop(self) -> bool:
        found = [self._text.find(text) for text in self._stop if text in self._text]
        if found:
            self._text = self._text[: min(found)]
            self._cut = self.finished = True
        return bool(found)

    def _release(self, held: int) -> str:
        piece = self._text[self._given : len(self._text) - held]
        self._given += len(piece)
        return piece
