"""Preferences in files: pairs of replies of which one is better, and single replies judged.

- pair: ``{"prompt": ..., "chosen": ..., "rejected": ...}``;
- judged: ``{"prompt": ..., "completion": ..., "label": true}``, true where the reply is wanted.

The prompt is a text (one user message) or a list of turns, and may be called `messages`. A reply
is a text or, as in many published data sets, a list of turns that ends with the assistant's; such a
list may repeat the prompt, which then may be left out. Kinds of file are those of `readers`.

    pairs = read_pairs("preferences.jsonl")
    judged = read_judged("feedback.jsonl") + judge_pairs(pairs)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from mlx_companion.errors import DataError
from mlx_companion.text.readers import data_files, read_rows
from mlx_companion.text.records import Message, ReadReport, Sample, parse_record

_PROMPTS = ("prompt", "messages")
T = TypeVar("T")


@dataclass(frozen=True)
class PreferencePair:
    """Two replies to one prompt; `chosen` is the better one.

    Args:
        prompt: the turns before the reply; the last is not the assistant's.
        chosen, rejected: the replies.
        source: where it came from ("file:line"), for messages to people.
    """

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    source: str = ""


@dataclass(frozen=True)
class JudgedCompletion:
    """One reply and whether it is wanted.

    Args:
        prompt: the turns before the reply; the last is not the assistant's.
        completion: the reply.
        desirable: True where it is wanted.
        source: where it came from ("file:line"), for messages to people.
    """

    prompt: tuple[Message, ...]
    completion: str
    desirable: bool
    source: str = ""


def read_pairs(
    path: str | Path,
    *,
    on_error: Literal["raise", "skip"] = "raise",
    report: ReadReport | None = None,
) -> list[PreferencePair]:
    """Read the pairs of a file or folder.

    Args:
        path: a jsonl, json or csv file, or a folder of them (searched recursively, sorted).
        on_error: "raise" at the first bad row, or "skip" it and note it in `report`.
        report: filled while reading.

    Raises:
        DataError: names file, line and field of what is wrong; also when no pair is left.
    """
    return _read(Path(path), parse_pair, on_error, ReadReport() if report is None else report)


def read_judged(
    path: str | Path,
    *,
    on_error: Literal["raise", "skip"] = "raise",
    report: ReadReport | None = None,
) -> list[JudgedCompletion]:
    """Read judged replies; arguments and errors as in `read_pairs`."""
    return _read(Path(path), parse_judged, on_error, ReadReport() if report is None else report)


def judge_pairs(pairs: Sequence[PreferencePair]) -> list[JudgedCompletion]:
    """Each pair as a wanted and an unwanted reply."""
    return [
        JudgedCompletion(pair.prompt, reply, wanted, pair.source)
        for pair in pairs
        for reply, wanted in ((pair.chosen, True), (pair.rejected, False))
    ]


def conversation(prompt: Sequence[Message], reply: str, source: str = "") -> Sample:
    """Prompt and reply as one conversation."""
    return Sample(messages=(*prompt, Message("assistant", reply)), source=source)


def parse_pair(
    record: Any, *, path: str | Path | None = None, line: int | None = None
) -> PreferencePair:
    """Give one parsed row its meaning.

    Args:
        record: the row.
        path, line: where it came from, for messages.

    Raises:
        DataError: a field that is missing, empty or of the wrong type, or replies that are equal.
    """
    row = _Row(record, path, line, ("chosen", "rejected"))
    chosen, rejected = row.reply("chosen"), row.reply("rejected")
    prompt = row.prompt(chosen[0], "chosen")
    if rejected[0] and rejected[0] != prompt:
        raise row.error("its turns before the reply are not those of the prompt", "rejected")
    if chosen[1] == rejected[1]:
        raise row.error("equals 'chosen'; a pair needs two different replies", "rejected")
    return PreferencePair(prompt, chosen[1], rejected[1], row.source)


def parse_judged(
    record: Any, *, path: str | Path | None = None, line: int | None = None
) -> JudgedCompletion:
    """As `parse_pair`, of a judged reply."""
    row = _Row(record, path, line, ("completion", "label"))
    turns, reply = row.reply("completion")
    return JudgedCompletion(row.prompt(turns, "completion"), reply, row.label(), row.source)


class _Row:
    """A record and where it is."""

    def __init__(
        self, record: Any, path: str | Path | None, line: int | None, needed: tuple[str, ...]
    ) -> None:
        self.path, self.line = path, line
        if not isinstance(record, Mapping):
            raise self.error(f"expected an object with named fields, got {type(record).__name__}")
        self.record = record
        found = ", ".join(sorted(map(str, record))) or "none"
        for name in needed:
            if name not in record:
                form = f"a row holds a prompt, {' and '.join(needed)}; fields found: {found}"
                raise self.error(f"is missing; {form}", name)

    @property
    def source(self) -> str:
        return "" if self.path is None else f"{self.path}:{self.line or 1}"

    def error(self, problem: str, field: str | None = None) -> DataError:
        return DataError(problem, path=self.path, line=self.line, field=field)

    def reply(self, name: str) -> tuple[tuple[Message, ...], str]:
        """(turns before it, if the field holds any, the reply itself)."""
        value = self.record[name]
        if not isinstance(value, list):
            return (), self._text(value, name)
        last = value[-1] if value else None
        if not isinstance(last, Mapping) or last.get("role") != "assistant":
            raise self.error("expected turns that end with the assistant's", name)
        before = self._turns(value[:-1], name) if value[:-1] else ()
        return before, self._text(last.get("content"), f"{name}[{len(value) - 1}].content")

    def prompt(self, repeated: tuple[Message, ...], of: str) -> tuple[Message, ...]:
        """The prompt, from its own field or from the turns that a reply repeats."""
        names = [name for name in _PROMPTS if name in self.record]
        if len(names) > 1:
            raise self.error("prompt and messages are both given; leave one out", "messages")
        if not names and not repeated:
            raise self.error(
                f"is missing; give the prompt here, as 'messages', or in '{of}'", "prompt"
            )
        if not names:
            return self._asking(repeated, of)
        value = self.record[names[0]]
        if isinstance(value, list):
            prompt = self._turns(value, names[0])
        else:
            prompt = (Message("user", self._text(value, names[0])),)
        if repeated and repeated != prompt:
            raise self.error("its turns before the reply are not those of the prompt", of)
        return self._asking(prompt, names[0])

    def label(self) -> bool:
        value = self.record["label"]
        # A csv file holds texts only.
        value = {"true": True, "false": False}.get(str(value).lower(), value)
        if not isinstance(value, bool):
            raise self.error(f"expected true or false, got {value!r:.40}", "label")
        return value

    def _asking(self, prompt: tuple[Message, ...], field: str) -> tuple[Message, ...]:
        if not prompt or prompt[-1].role in ("assistant", "system"):
            raise self.error("must end with a turn that the reply answers", field)
        return prompt

    def _turns(self, value: list[Any], name: str) -> tuple[Message, ...]:
        # The reply of a prompt is missing here, and the parser of conversations wants one.
        closed = [*value, {"role": "assistant", "content": "."}]
        return self._parsed({"messages": closed}, "messages", name).messages[:-1]

    def _text(self, value: Any, name: str) -> str:
        text = self._parsed({"text": value}, "text", name).text
        assert text is not None
        return text

    def _parsed(self, record: dict[str, Any], inner: str, name: str) -> Sample:
        try:
            return parse_record(record)
        except DataError as error:
            field = str(error.field or inner).replace(inner, name, 1)
            problem = str(error).removeprefix(f"field '{error.field}': ")
            raise self.error(problem, field) from None


def _read(
    path: Path,
    parse: Callable[..., T],
    on_error: Literal["raise", "skip"],
    report: ReadReport,
) -> list[T]:
    found: list[T] = []
    for file in data_files(path):
        for row in read_rows(file):
            try:
                if isinstance(row.value, DataError):
                    raise row.value
                found.append(parse(row.value, path=file, line=row.line))
            except DataError as error:
                if on_error == "raise":
                    raise
                report.skipped.append(error)
    report.read += len(found)
    if not found:
        raise DataError(f"no usable row ({len(report.skipped)} were skipped)", path=path)
    return found
