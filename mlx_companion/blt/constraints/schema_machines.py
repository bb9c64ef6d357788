"""The machines of JSON's strings, objects and arrays, for the compiler in `schema`.

A string with a maximal length is one structure node per character, each calling the automaton of
one character, instead of that many copies of the automaton. An object is a chain through its
properties in order; an array one node per item as far as its bounds say, then a loop.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache, reduce
from typing import Any, Protocol

from mlx_companion.blt.constraints.anchors import full_match, search
from mlx_companion.blt.constraints.automaton import Dfa, compile_dfa
from mlx_companion.blt.constraints.charsets import EVERY
from mlx_companion.blt.constraints.formats import FORMATS
from mlx_companion.blt.constraints.nodes import (
    ANY_TEXT,
    Cat,
    Chars,
    Node,
    Repeat,
    either,
    literal,
)
from mlx_companion.blt.constraints.products import difference, intersection
from mlx_companion.blt.constraints.pushdown import END, Grammar
from mlx_companion.blt.constraints.schema_keywords import Schema, count
from mlx_companion.blt.constraints.syntax import parse
from mlx_companion.errors import ConfigError

LONGEST_STRING = 4096
LONGEST_PATTERN = 500
LONGEST_ARRAY = 4096

_QUOTE = literal(b'"')
_STRING = Cat((_QUOTE, ANY_TEXT, _QUOTE))


class Compiler(Protocol):
    """What the machines below ask of the compiler."""

    grammar: Grammar
    gap: Node  # the white space between two tokens
    strings: dict[Any, int]  # machines of strings, which many properties share

    def terminal(self, node: Node) -> int:
        """The machine of a tree."""

    def value(self, schema: Any, path: str) -> int:
        """The machine of the values of a schema."""


@lru_cache(maxsize=512)
def compiled(node: Node) -> Dfa:
    """The automaton of a tree inside JSON, kept between schemas."""
    return compile_dfa(node, "json")


def spell(value: Any, path: str) -> bytes:
    """A constant as the automata spell it, compactly.

    Raises:
        ConfigError: JSON or UTF-8 cannot write it.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return text.encode()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {value!r} cannot be written as JSON: {error}") from error


def string(compiler: Compiler, schema: Schema, path: str) -> int:
    """The machine of strings."""
    least = count(schema, "minLength", path, 0) or 0
    most = count(schema, "maxLength", path, None)
    contents = _contents(schema, path)
    longest = LONGEST_PATTERN if contents else LONGEST_STRING
    if least > longest:
        raise ConfigError(f"{path}/minLength: {least}; at most {longest} is supported here")
    most = None if most is None else min(most, longest)
    key = (contents, least, most)
    if key not in compiler.strings:
        if contents:
            compiler.strings[key] = compiler.grammar.terminal(_matching(*key))
        else:
            compiler.strings[key] = _counted(compiler, least, most)
    return compiler.strings[key]


@lru_cache(maxsize=512)
def _matching(contents: tuple[Node, ...], least: int, most: int | None) -> Dfa:
    """Strings that match each of the trees and have `least` to `most` characters."""
    length = (Repeat(Chars(EVERY), least, most),) if least or most is not None else ()
    dfas = [compiled(Cat((_QUOTE, node, _QUOTE))) for node in (*contents, *length)]
    return reduce(intersection, dfas)


def _contents(schema: Schema, path: str) -> tuple[Node, ...]:
    """Trees that the text between the quotes must match, each of them."""
    found: list[Node] = []
    if "format" in schema:
        name = schema["format"]
        if name not in FORMATS:
            raise ConfigError(
                f"{path}/format: {name!r} is not supported in a constraint; "
                f"remove it, or use: {', '.join(FORMATS)}"
            )
        found.append(full_match(parse(FORMATS[name]), FORMATS[name]))
    if "pattern" in schema:
        pattern = schema["pattern"]
        try:
            found.append(search(parse(pattern, "json"), pattern, ANY_TEXT))
        except ConfigError as error:
            raise ConfigError(f"{path}/pattern: {error}") from error
    return tuple(found)


def _counted(compiler: Compiler, least: int, most: int | None) -> int:
    if not least and most is None:
        return compiler.terminal(_STRING)
    grammar = compiler.grammar
    character, quote = compiler.terminal(Chars(EVERY)), compiler.terminal(_QUOTE)
    start, at = grammar.node(), grammar.node()
    grammar.call(start, quote, at)
    last = least if most is None else most
    for number in range(last):
        after = grammar.node()
        grammar.call(at, character, after)
        if number >= least:
            grammar.call(at, quote, END)
        at = after
    if most is None:
        grammar.call(at, compiler.terminal(Cat((ANY_TEXT, _QUOTE))), END)
    elif last >= least:
        grammar.call(at, quote, END)
    return start


def object_(compiler: Compiler, schema: Schema, path: str) -> int:
    """The machine of objects."""
    grammar, gap = compiler.grammar, compiler.gap
    properties, required = _properties(schema, path)
    names = list(properties)
    start, fresh = grammar.node(), grammar.node()
    grammar.call(start, compiler.terminal(literal(b"{")), fresh)
    # at[i]: something is written, and the properties before number i have had their turn.
    at = [grammar.node() for _ in range(len(names) + 1)]
    turns: list[tuple[int, int, Node]] = [(fresh, 0, Cat())]
    turns += [(node, i, _comma(gap)) for i, node in enumerate(at) if i]
    then = [grammar.node() for _ in names]
    for number, name in enumerate(names):
        machine = compiler.value(properties[name], f"{path}/properties/{name}")
        grammar.call(then[number], machine, at[number + 1])
    keys = [literal(spell(name, path)) for name in names]
    later = [compiler.terminal(_head(gap, _comma(gap), key)) for key in keys]
    for node, first, lead in turns:
        for number in _reachable(names, required, first):
            begins = node == fresh
            head = compiler.terminal(_head(gap, lead, keys[number])) if begins else later[number]
            grammar.call(node, head, then[number])
    ready = [turn for turn in turns if not required & set(names[turn[1] :])]
    extra = schema.get("additionalProperties", "properties" not in schema)
    _endings(compiler, [(node, lead) for node, _, lead in ready], names, extra, path)
    return start


def _comma(gap: Node) -> Node:
    return Cat((gap, literal(b",")))


def _head(gap: Node, lead: Node, key: Node) -> Node:
    return Cat((lead, gap, key, gap, literal(b":"), gap))


def _reachable(names: Sequence[str], required: set[str], first: int) -> list[int]:
    """The properties that may come next: up to the first one that may not be left out."""
    found = []
    for number in range(first, len(names)):
        found.append(number)
        if names[number] in required:
            break
    return found


def _properties(schema: Schema, path: str) -> tuple[dict[str, Any], set[str]]:
    """Schemas by name, the required ones that are not described included; required names."""
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, dict):
        raise ConfigError(f"{path}/properties: an object is expected, not {properties!r}")
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise ConfigError(f"{path}/required: a list of names is expected, not {required!r}")
    rest = schema.get("additionalProperties", True)
    missing = {name: rest for name in required if name not in properties}
    return {**properties, **missing}, set(required)


def _endings(
    compiler: Compiler,
    ready: list[tuple[int, Node]],
    names: Sequence[str],
    extra: Any,
    path: str,
) -> None:
    """Where nothing more is required: other properties, if there may be any, and the brace.

    Args:
        compiler: the compiler.
        ready: nodes, each with what comes before a further property.
        names: the properties that are described, which the others must differ from.
        extra: the schema of the others.
        path: of the object, for messages.
    """
    grammar, gap = compiler.grammar, compiler.gap
    close = compiler.terminal(Cat((gap, literal(b"}"))))
    for node, _ in ready:
        grammar.call(node, close, END)
    if extra is False or not ready:
        return
    written, then = grammar.node(), grammar.node()
    grammar.call(written, close, END)
    grammar.call(then, compiler.value(extra, f"{path}/additionalProperties"), written)
    taken = either(spell(name, path) for name in names)
    heads: dict[Node, int] = {}
    for node, lead in [*ready, (written, _comma(gap))]:
        if lead not in heads:
            every, known = (compiled(_head(gap, lead, key)) for key in (_STRING, taken))
            heads[lead] = grammar.terminal(difference(every, known) if names else every)
        grammar.call(node, heads[lead], then)


def array(compiler: Compiler, schema: Schema, path: str) -> int:
    """The machine of arrays."""
    grammar, gap = compiler.grammar, compiler.gap
    least = count(schema, "minItems", path, 0) or 0
    most = count(schema, "maxItems", path, None)
    if least > LONGEST_ARRAY:
        raise ConfigError(f"{path}/minItems: {least}; at most {LONGEST_ARRAY} is supported")
    start, at = grammar.node(), grammar.node()
    grammar.call(start, compiler.terminal(literal(b"[")), at)
    machines, rest = _items(compiler, schema, path)
    length = max(len(machines), least, 1) if most is None else min(most, LONGEST_ARRAY)
    if rest is None:
        length = min(length, len(machines))
    close = compiler.terminal(Cat((gap, literal(b"]"))))
    comma = compiler.terminal(Cat((_comma(gap), gap)))
    for number in range(length):
        machine = machines[number] if number < len(machines) else rest
        assert machine is not None  # no longer than the prefix without a rest
        then, after = grammar.node(), grammar.node()
        if number >= least:
            grammar.call(at, close, END)
        grammar.call(at, comma if number else compiler.terminal(gap), then)
        grammar.call(then, machine, after)
        at = after
    if length >= least:
        grammar.call(at, close, END)
    if most is None and rest is not None:
        again = grammar.node()
        grammar.call(at, comma, again)
        grammar.call(again, rest, at)
    return start


def _items(compiler: Compiler, schema: Schema, path: str) -> tuple[list[int], int | None]:
    """The machines of the first items, and that of all further ones (None: there are none)."""
    prefix, items = schema.get("prefixItems", []), schema.get("items", True)
    if not isinstance(prefix, list):
        raise ConfigError(f"{path}/prefixItems: a list of schemas is expected, not {prefix!r}")
    machines = [compiler.value(s, f"{path}/prefixItems/{i}") for i, s in enumerate(prefix)]
    return machines, None if items is False else compiler.value(items, f"{path}/items")
