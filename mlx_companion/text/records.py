"""Training samples and the forms in which files may hold them.

Three forms become one `Sample` type, so that nothing after this module knows of files:

- chat: ``{"messages": [{"role": ..., "content": ...}, ...]}``, also ShareGPT's
  ``{"conversations": [{"from": ..., "value": ...}, ...]}``;
- pair: ``{"prompt": ..., "completion": ...}``, also Alpaca's
  ``{"instruction": ..., "input": ..., "output": ...}``; it becomes a two-turn chat;
- text: ``{"text": ...}``, trained on from end to end.

Kinds of file: jsonl (one record a line), json (a list of records, or one), csv (the header
names the fields), txt (ONE document a file) and folders of these. Forms may be mixed.

    samples = read_samples("data/")                       # raises at the first bad row
    report = ReadReport()
    samples = read_samples("data/", on_error="skip", report=report)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mlx_companion.errors import DataError
from mlx_companion.text.readers import data_files, read_rows

ROLES = ("system", "user", "assistant", "tool")
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"} | {role: role for role in ROLES}


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; `role` is one of `ROLES`."""

    role: str
    content: str


@dataclass(frozen=True)
class Sample:
    """One training sample: a conversation or a plain text, never both.

    Args:
        messages: the turns; at least one is the assistant's, and none of those is first.
        text: a document to train on from end to end.
        source: where it came from ("file:line"), for messages to people.

    Raises:
        DataError: both or neither of `messages` and `text` were given.
    """

    messages: tuple[Message, ...] = ()
    text: str | None = None
    source: str = ""

    def __post_init__(self) -> None:
        if bool(self.messages) == (self.text is not None):
            raise DataError("a sample holds either messages or a text; give exactly one")


@dataclass
class ReadReport:
    """What reading found: how many samples were read and every row that was skipped."""

    read: int = 0
    skipped: list[DataError] = field(default_factory=list)


def read_samples(
    path: str | Path,
    *,
    on_error: Literal["raise", "skip"] = "raise",
    report: ReadReport | None = None,
) -> list[Sample]:
    """Read every sample of a file or folder; see `iter_samples` for arguments and errors."""
    return list(iter_samples(path, on_error=on_error, report=report))


def iter_samples(
    path: str | Path,
    *,
    on_error: Literal["raise", "skip"] = "raise",
    report: ReadReport | None = None,
) -> Iterator[Sample]:
    """Yield the samples of a file or folder in a fixed order, in constant memory for jsonl and csv.

    Args:
        path: a txt, jsonl, json or csv file, or a folder of them (searched recursively, sorted).
        on_error: "raise" at the first bad row, or "skip" it and note it in `report`.
        report: filled while reading.

    Raises:
        DataError: names file, line and field of what is wrong; also when no sample is left.
    """
    report = ReadReport() if report is None else report
    path = Path(path)
    for file in data_files(path):
        for sample in _file_samples(file):
            if isinstance(sample, Sample):
                report.read += 1
                yield sample
            elif on_error == "raise":
                raise sample
            else:
                report.skipped.append(sample)
    if report.read == 0:
        raise DataError(f"no usable sample ({len(report.skipped)} rows were skipped)", path=path)


def parse_record(record: Any, *, path: str | Path | None = None, line: int | None = None) -> Sample:
    """Give one parsed row its meaning.

    Args:
        record: the row, a mapping in one of this module's forms.
        path, line: where it came from, for messages.

    Raises:
        DataError: no known form, or a field that is missing, empty or of the wrong type.
    """
    where = _Where(path, line)
    if not isinstance(record, Mapping):
        raise where.error(f"expected an object with named fields, got {_kind(record)}")
    for marker, form in _FORMS.items():
        if marker in record:
            return form(record, where)
    found = ", ".join(sorted(map(str, record))) or "none"
    raise where.error(
        f"none of the known forms (messages | conversations | prompt + completion | "
        f"instruction + output | text); fields found: {found}"
    )


@dataclass(frozen=True)
class _Where:
    """Where a record is; makes errors and the `source` that name it."""

    path: str | Path | None
    line: int | None

    def error(self, problem: str, name: str | None = None) -> DataError:
        return DataError(problem, path=self.path, line=self.line, field=name)

    @property
    def source(self) -> str:
        return "" if self.path is None else f"{self.path}:{self.line or 1}"


def _file_samples(file: Path) -> Iterator[Sample | DataError]:
    empty = True
    for row in read_rows(file):
        empty = False
        if isinstance(row.value, DataError):
            yield row.value
            continue
        try:
            yield parse_record(row.value, path=file, line=row.line)
        except DataError as error:
            yield error
    if empty:
        yield DataError("the file is empty; it should hold at least one sample", path=file)


def _chat(record: Mapping[str, Any], where: _Where) -> Sample:
    return _conversation(record, where, "messages", ("role", "content"), {r: r for r in ROLES})


def _sharegpt(record: Mapping[str, Any], where: _Where) -> Sample:
    return _conversation(record, where, "conversations", ("from", "value"), _SHAREGPT_ROLES)


def _conversation(
    record: Mapping[str, Any],
    where: _Where,
    name: str,
    keys: tuple[str, str],
    roles: Mapping[str, str],
) -> Sample:
    turns = record[name]
    if not isinstance(turns, list) or not turns:
        raise where.error(f"expected a list of turns, got {_kind(turns)}", name)
    messages = []
    for number, turn in enumerate(turns):
        at = f"{name}[{number}]"
        if not isinstance(turn, Mapping):
            raise where.error(f"expected an object, got {_kind(turn)}", at)
        role = _text(turn, keys[0], where, at)
        if role not in roles:
            known = ", ".join(roles)
            raise where.error(f"unknown role '{role}'; use one of {known}", f"{at}.{keys[0]}")
        messages.append(Message(roles[role], _text(turn, keys[1], where, at)))
    _check_turns(messages, where, name)
    return Sample(messages=tuple(messages), source=where.source)


def _check_turns(messages: list[Message], where: _Where, name: str) -> None:
    if all(message.role != "assistant" for message in messages):
        raise where.error("no assistant turn, so there is nothing to train on", name)
    first = next(message.role for message in messages if message.role != "system")
    if first == "assistant":
        raise where.error("the assistant speaks first; a user turn must come before", name)


def _pair(record: Mapping[str, Any], where: _Where) -> Sample:
    return _exchange(_text(record, "prompt", where), _text(record, "completion", where), where)


def _alpaca(record: Mapping[str, Any], where: _Where) -> Sample:
    prompt = _text(record, "instruction", where)
    if record.get("input"):
        prompt += "\n\n" + _text(record, "input", where)
    return _exchange(prompt, _text(record, "output", where), where)


def _exchange(prompt: str, completion: str, where: _Where) -> Sample:
    messages = (Message("user", prompt), Message("assistant", completion))
    return Sample(messages=messages, source=where.source)


def _plain(record: Mapping[str, Any], where: _Where) -> Sample:
    return Sample(text=_text(record, "text", where), source=where.source)


def _text(record: Mapping[str, Any], name: str, where: _Where, parent: str = "") -> str:
    """A field that must hold text which a tokenizer can take."""
    full = f"{parent}.{name}" if parent else name
    if name not in record:
        raise where.error("is missing", full)
    value = record[name]
    if not isinstance(value, str):
        raise where.error(f"expected text, got {_kind(value)}", full)
    if not value.strip():
        raise where.error("is empty", full)
    if "\0" in value:
        raise where.error("holds a NUL character; remove it", full)
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise where.error("holds half of a surrogate pair, which is not Unicode text", full)
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    if value is None:
        return "null"
    if isinstance(value, list) and not value:
        return "an empty list"
    return names.get(type(value), "a number")


_FORMS: dict[str, Callable[[Mapping[str, Any], _Where], Sample]] = {
    "messages": _chat,
    "conversations": _sharegpt,
    "prompt": _pair,
    "completion": _pair,
    "instruction": _alpaca,
    "text": _plain,
}
