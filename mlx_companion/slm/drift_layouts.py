"""The same reply laid out for another occasion: a list, steps, with code, in one sentence.

What is asked decides the layout: the same voice answers a question about a program with code, one
about packing with a list, one about an hour with a line. The space of style is trained on voices
whose topics differ in layout, so that a list is not taken for a voice (`drift_train_style`)::

    laid_out("Wash it. Cut it. Fry it.", "bullets", random.Random(0))
"""

from __future__ import annotations

import random
from collections.abc import Callable

from mlx_companion.personality.words import sentences

_SNIPPETS = (
    "def total(rows):\n    return sum(row.price for row in rows)",
    "SELECT name, count(*) FROM orders GROUP BY name;",
    "for line in open(path):\n    print(line.strip())",
    "const open = items.filter((one) => !one.done);",
    "git switch -c fix\ngit push -u origin fix",
    "ls -lh logs/ | sort -k5",
    '{"name": "demo", "retries": 3}',
    "if (left > right) { swap(left, right); }",
)
_HEADS = ("Overview", "What to do", "Steps", "In short", "Notes")


def laid_out(text: str, layout: str, rng: random.Random) -> str:
    """`text` in a layout.

    Args:
        text: a reply.
        layout: one of `LAYOUTS`.
        rng: decides what the layout leaves open.
    """
    parts = sentences(text) or [text]
    return _LAYOUTS[layout](parts, rng)


def _bullets(parts: list[str], rng: random.Random) -> str:
    mark = rng.choice("-*")
    return "\n".join([parts[0], "", *(f"{mark} {part}" for part in parts[1:])]).strip()


def _steps(parts: list[str], rng: random.Random) -> str:
    return "\n\n".join(
        [parts[0], *(f"{number}. {_bold(part)}" for number, part in enumerate(parts[1:], 1))]
    )


def _bold(part: str) -> str:
    first, *rest = part.split(" ")
    return " ".join([f"**{first}**", *rest])


def _sections(parts: list[str], rng: random.Random) -> str:
    half = (len(parts) + 1) // 2
    heads = rng.sample(_HEADS, 2)
    told = [" ".join(parts[:half]), " ".join(parts[half:])]
    return "\n\n".join(f"## {head}\n\n{one}" for head, one in zip(heads, told, strict=True) if one)


def _code(parts: list[str], rng: random.Random) -> str:
    return "\n\n".join([parts[0], f"```\n{rng.choice(_SNIPPETS)}\n```", *parts[1:2]])


def _line(parts: list[str], rng: random.Random) -> str:
    return parts[0]


def _aside(parts: list[str], rng: random.Random) -> str:
    return " ".join(parts[: max(1, len(parts) // 2)])


_LAYOUTS: dict[str, Callable[[list[str], random.Random], str]] = {
    "bullets": _bullets,
    "steps": _steps,
    "sections": _sections,
    "code": _code,
    "line": _line,
    "half": _aside,
}
LAYOUTS = tuple(_LAYOUTS)
