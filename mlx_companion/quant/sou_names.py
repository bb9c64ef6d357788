"""Which names and which JSON a `.sou` file may hold.

A name becomes a path on the disk of a person who unpacks a stranger's file, perhaps on a file
system that folds case or under Windows; so what could mean something there is refused: absolute
paths, `..`, backslashes, drive letters, device names, control characters, kinds of file that hold
code. JSON is looked at before it is parsed, because parsers recurse.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Any

from mlx_companion.errors import SouError

MAX_NAME = 512
MAX_PART = 128
MAX_DEPTH = 8
MAX_JSON = 4 << 20
MAX_JSON_DEPTH = 64

# What may be in a companion; everything else (code, pickles, archives) stays out.
TEXT_SUFFIXES = (
    ".json", ".jsonl", ".jinja", ".txt", ".md", ".yaml", ".yml", ".toml", ".csv",
)  # fmt: skip
ALLOWED_SUFFIXES = frozenset(
    (*TEXT_SUFFIXES, ".model", ".tiktoken", ".safetensors", ".png", ".svg")
)
ALLOWED_BARE = frozenset(("license", "licence", "notice", "copying", "readme"))

_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\]')
_CATEGORIES = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])(\..*)?", re.IGNORECASE)
# A string that never ends matches up to the end of the text, so that the search stays linear.
_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)


def check_section_name(data: bytes) -> str:
    """The name of a section, checked.

    Args:
        data: as in the file.

    Raises:
        SouError: empty, too long, not UTF-8, or not a plain relative path with `/`.
    """
    name = _decoded(data, MAX_NAME, "a section's name")
    parts = name.split("/")
    if len(parts) > MAX_DEPTH:
        raise SouError(f"the name {name!r} has {len(parts)} parts; at most {MAX_DEPTH} are allowed")
    for part in parts:
        _check_part(part, name)
    return name


def _decoded(data: bytes, most: int, what: str) -> str:
    if not 0 < len(data) <= most:
        raise SouError(f"{what} has {len(data)} bytes; expected 1 to {most}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise SouError(f"{what} is not UTF-8: {data[:40]!r}") from None
    if not text.isascii() and (
        unicodedata.normalize("NFC", text) != text
        or any(unicodedata.category(letter) in _CATEGORIES for letter in text)
    ):
        raise SouError(f"{what} holds invisible or not normalized characters: {text[:40]!r}")
    return text


def _check_part(part: str, name: str) -> None:
    if part in ("", ".", ".."):
        raise SouError(f"the name {name!r} is no plain relative path; it could leave its folder")
    if len(part.encode()) > MAX_PART:
        raise SouError(f"a part of the name {name[:40]!r}... has more than {MAX_PART} bytes")
    if _FORBIDDEN.search(part) or part != part.strip() or part.endswith("."):
        raise SouError(f"the name {name!r} holds characters that not every system can store")
    if _DEVICES.fullmatch(part):
        raise SouError(f"the name {name!r} means a device on some systems")


def check_file_kind(name: str) -> None:
    """Refuse files of kinds that do not belong into a companion, such as code and pickles.

    Raises:
        SouError: names the file.
    """
    base = name.rsplit("/", 1)[-1].lower()
    dot = base.rfind(".")
    if base[dot:] in ALLOWED_SUFFIXES if dot > 0 else base in ALLOWED_BARE:
        return
    raise SouError(
        f"'{name}' is of a kind that a .sou file must not hold; allowed are "
        f"{', '.join(sorted(ALLOWED_SUFFIXES))}"
    )


def check_tensor_name(data: bytes) -> str:
    """The name of a tensor, checked.

    Raises:
        SouError: empty, longer than 512 bytes, not UTF-8, or with control characters.
    """
    name = _decoded(data, MAX_NAME, "a tensor's name")
    if not name.isprintable():
        raise SouError(f"a tensor's name holds control characters: {name[:40]!r}")
    return name


def check_paths(names: Iterable[str]) -> None:
    """Check that files of these names can lie side by side on every file system.

    Raises:
        SouError: two names are the same but for case, or one is a folder of another.
    """
    files: dict[str, str] = {}
    folders: dict[str, str] = {}
    for name in names:
        key = folded(name)
        if key in files:
            raise SouError(f"the names {files[key]!r} and {name!r} are the same on some systems")
        files[key] = name
        parts = key.split("/")
        for length in range(1, len(parts)):
            folders["/".join(parts[:length])] = name
    for key in files.keys() & folders.keys():
        raise SouError(f"{files[key]!r} is a file, but {folders[key]!r} needs a folder there")


def folded(name: str) -> str:
    """What file systems that fold case make of a name."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def parse_json(data: bytes, what: str, most: int = MAX_JSON) -> Any:
    """Parse JSON of a stranger.

    Args:
        data: UTF-8, at most 64 levels deep.
        what: for the message.
        most: bytes that are allowed, 4 MiB unless told.

    Raises:
        SouError: too large, too deep, not UTF-8, not JSON, NaN, or a key twice.
    """
    if len(data) > most:
        raise SouError(f"{what} has {len(data)} bytes of JSON; at most {most} are allowed")
    check_json_depth(data, what)
    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_once_each,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except (ValueError, RecursionError) as error:
        raise SouError(f"{what} is not valid JSON: {str(error)[:200]}") from None


def check_json_depth(data: bytes, what: str) -> None:
    """Refuse JSON that nests more than 64 levels deep, without recursion.

    Raises:
        SouError: it does.
    """
    depth = 0
    for match in _TOKENS.finditer(data):
        token = match[0]
        if token in (b"[", b"{"):
            depth += 1
            if depth > MAX_JSON_DEPTH:
                raise SouError(f"{what} nests deeper than {MAX_JSON_DEPTH} levels")
        elif token in (b"]", b"}"):
            depth -= 1


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice[:80]!r} comes twice")
    return result


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:40]} is too large")
    return number


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")
