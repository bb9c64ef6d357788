"""What was written: bytes put together, cut at stops, given out as whole characters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from mlx_companion.errors import GenerationError
from mlx_companion.text.byte_text import EOS, OFFSET, Utf8Stream

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Drafts:
    """How self-speculation went.

    Args:
        rounds: passes in which drafts were checked.
        drafted: bytes that were drafted, the first of each round aside (it is known to be right).
        accepted: those that greedy decoding would have written.
    """

    rounds: int = 0
    drafted: int = 0
    accepted: int = 0

    @property
    def rate(self) -> float:
        """Accepted / drafted; 0 without drafts."""
        return self.accepted / self.drafted if self.drafted else 0.0


@dataclass(frozen=True)
class ByteReply:
    """What a byte model wrote. `str(reply)` is the text.

    Args:
        text: the bytes as UTF-8, U+FFFD in place of what is none.
        data: the bytes, without the stop that ended them.
        finish_reason: "stop" (EOS, a stop, or a complete constraint) or "length" (cut at
            max_bytes).
        prompt_bytes: bytes of the prompt.
        drafts: of self-speculation, where it was used.
    """

    text: str
    data: bytes = field(repr=False)
    finish_reason: FinishReason
    prompt_bytes: int
    drafts: Drafts | None = None

    def __str__(self) -> str:
        return self.text


class ByteOut:
    """One row's bytes on their way out; what may begin a stop is held back.

    Args:
        stops: byte strings that end the text.
    """

    def __init__(self, stops: Sequence[bytes]) -> None:
        self._stops = stops
        self._data = bytearray()
        self._given = 0
        self._stream = Utf8Stream()
        self._text: list[str] = []
        self.finished = False

    @property
    def data(self) -> bytes:
        """All bytes so far, the stop aside."""
        return bytes(self._data)

    @property
    def text(self) -> str:
        """All that was given out."""
        return "".join(self._text)

    def add(self, value: int) -> str:
        """Take an id, and return the text that is now certain."""
        if value == EOS:
            self.finished = True
            return ""
        self._data.append(value - OFFSET)
        ended = [stop for stop in self._stops if self._data.endswith(stop)]
        if ended:
            # Of stops that end together the longest begins first.
            del self._data[-max(map(len, ended)) :]
            self.finished = True
            return ""
        return self._release(len(self._data) - self._held())

    def close(self) -> str:
        """The end: what was held back, and what an unfinished character becomes."""
        last = self._release(len(self._data))
        rest = self._stream.finish()
        self._text.append(rest)
        return last + rest

    def _held(self) -> int:
        # The longest end of the data that some stop begins with.
        longest = 0
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(self._data)), longest, -1):
                if self._data.endswith(stop[:size]):
                    longest = size
                    break
        return longest

    def _release(self, end: int) -> str:
        piece = "".join(self._stream.push(byte) for byte in self._data[self._given : end])
        self._given = max(self._given, end)
        self._text.append(piece)
        return piece


def stop_bytes(stop: Sequence[str | bytes]) -> tuple[bytes, ...]:
    """Stops as bytes.

    Raises:
        GenerationError: not a list of non-empty strings.
    """
    listed = isinstance(stop, Sequence) and not isinstance(stop, (str, bytes))
    if not listed or not all(isinstance(text, (str, bytes)) and text for text in stop):
        raise GenerationError(f"stop={stop!r} must be a list of non-empty strings")
    return tuple(text.encode() if isinstance(text, str) else bytes(text) for text in stop)
