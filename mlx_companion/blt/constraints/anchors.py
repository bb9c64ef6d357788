"""Anchors: a parsed pattern as the whole text, or as something found in it.

`^` and `$` say where a match may lie in a text, and an automaton always reads a whole text: they
are dropped where they stand at its ends and refused everywhere else.
"""

from __future__ import annotations

from dataclasses import replace

from mlx_companion.blt.constraints.nodes import Alt, Anchor, Bytes, Cat, Chars, Node, Repeat
from mlx_companion.errors import ConfigError


def full_match(node: Node, pattern: str) -> Node:
    """The tree without the anchors at its ends, which a full match does not need."""
    return _strip(node, pattern, at_start=True, at_end=True)


def search(node: Node, pattern: str, anything: Node) -> Node:
    """The texts in which the pattern is found somewhere.

    Args:
        node: the parsed pattern, with anchors.
        pattern: for messages.
        anything: any text at all.
    """
    if isinstance(node, Alt):
        return Alt(tuple(search(option, pattern, anything) for option in node.options))
    parts = list(node.parts) if isinstance(node, Cat) else [node]
    before, after = anything, anything
    if parts and parts[0] == Anchor(end=False):
        before = parts.pop(0)
    if parts and parts[-1] == Anchor(end=True):
        after = parts.pop()
    inner = _strip(Cat(tuple(parts)), pattern, at_start=False, at_end=False)
    return full_match(Cat((before, inner, after)), pattern)


def _strip(node: Node, pattern: str, at_start: bool, at_end: bool) -> Node:
    """Drop anchors that stand at the ends of the text; refuse all others."""
    if isinstance(node, Anchor):
        if at_end if node.end else at_start:
            return Cat()
        raise ConfigError(
            f"{'$' if node.end else '^'} can only stand at the ends of a constraint: {pattern!r}"
        )
    if isinstance(node, Alt):
        return Alt(tuple(_strip(option, pattern, at_start, at_end) for option in node.options))
    if isinstance(node, Cat):
        last = len(node.parts) - 1
        return Cat(
            tuple(
                _strip(part, pattern, at_start and i == 0, at_end and i == last)
                for i, part in enumerate(node.parts)
            )
        )
    if isinstance(node, Repeat):
        return replace(node, inner=_strip(node.inner, pattern, False, False))
    assert isinstance(node, Chars | Bytes)
    return node
