"""Markup that cannot be injected into: whatever is not markup already is escaped.

`Html` is text that is known to be markup, and only `tag` and `join` make it. Everything
else, in children and in attributes, is escaped on its way in, so a section cannot forget to.
What is made is also well-formed XML: elements are closed and attributes quoted::

    tag("p", "1 < 2, says ", tag("b", "he"), class_="note")
    # <p class="note">1 &lt; 2, says <b>he</b></p>
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import Any, TypeAlias

__all__ = ["Content", "Html", "escape", "join", "tag"]


class Html(str):
    """Text that is markup, to be used as it is."""


Content: TypeAlias = "str | Html | Iterable[Content] | None"

# Control characters and lone surrogates, which neither HTML nor UTF-8 may hold.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_EMPTY = {"br", "circle", "col", "input", "line", "meta", "path", "rect"}


def escape(value: Any) -> Html:
    """Any value's text with markup made harmless.

    Carriage returns become line feeds; other control characters and lone surrogates become
    U+FFFD, the replacement character.
    """
    text = str(value).replace("\r\n", "\n").replace("\r", "\n")
    return Html(html.escape(_UNPRINTABLE.sub("\ufffd", text), quote=True))


def join(*contents: Content) -> Html:
    """Contents one after another; None is left out, iterables are opened."""
    return Html("".join(_pieces(contents)))


def tag(name: str, /, *children: Content, **attributes: Any) -> Html:
    """One element.

    Args:
        name: the element's name.
        children: markup, text to be escaped, iterables of those, or None.
        attributes: an underscore stands for a hyphen, one at the end is dropped (`class_`);
            an attribute that is None is left out; numbers are rounded to 3 decimals.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_plain(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _EMPTY and not children:
        return Html(f"<{name}{given}/>")
    return Html(f"<{name}{given}>{join(*children)}</{name}>")


def _pieces(content: Content) -> Iterable[str]:
    if content is None:
        return
    if isinstance(content, str):
        yield content if isinstance(content, Html) else escape(content)
        return
    for child in content:
        yield from _pieces(child)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        # Adding zero turns -0.0 into 0.0.
        return f"{round(value, 3) + 0.0:.3f}".rstrip("0").rstrip(".")
    return value
