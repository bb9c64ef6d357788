"""JSON as a constraint on bytes: `json_schema(schema)` and `json_value()`.

Everything that is written parses with `json.loads` and is valid under the schema. The reverse is
not meant: of the many spellings of a valid value one is enough for a model, so

- properties come in the order in which the schema names them (optional ones may be left out);
- an object whose `properties` are given and that says nothing of `additionalProperties` has no
  others; say ``"additionalProperties": true`` to let the model invent names;
- a schema without `type` but with keywords of some type (`properties`) means that type;
- characters have one spelling each (`encodings`), numbers a bounded length (`numbers`), strings
  at most 4096 characters (500 beside `pattern` or `format`) where `maxLength` allows more, and
  arrays at most 4096 items where `maxItems` does;
- a `pattern` means what both ECMA-262 and Python's `re` accept (`syntax`), found anywhere in
  the string unless it is anchored;
- there is no white space between tokens unless `whitespace` allows some.

Supported: `type` (also a list), `properties`, `required`, `additionalProperties`, `items`,
`prefixItems`, `minItems`, `maxItems`, `enum`, `const`, `anyOf`, `oneOf` (branches must exclude one
another provably), `allOf` with one branch, `$ref` into the same document (recursion included),
`minLength`, `maxLength`, `pattern`, `format` (date, time, date-time, email, ipv4, uuid),
`minimum`, `maximum` and their exclusive kin, boolean schemas. Anything else but annotations is a
`ConfigError` that names the keyword and where it stands.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from mlx_companion.blt.constraints import schema_machines
from mlx_companion.blt.constraints.nodes import Node, Repeat, either, literal
from mlx_companion.blt.constraints.numbers import integer, number
from mlx_companion.blt.constraints.pushdown import END, MAX_DEPTH, Grammar, PushdownConstraint
from mlx_companion.blt.constraints.schema_keywords import (
    ANNOTATIONS,
    BRANCHES,
    TYPES,
    Schema,
    bound,
    check_schema,
    constants,
    exclusive,
    merged,
    resolve,
    types_of,
)
from mlx_companion.errors import ConfigError

_MOST_WHITESPACE = 64


def json_schema(
    schema: Schema | bool, *, whitespace: int = 0, max_depth: int = MAX_DEPTH
) -> PushdownConstraint:
    """JSON texts that are valid under a schema.

    Args:
        schema: a JSON Schema (2020-12; see the module's docstring for what is supported).
        whitespace: the most blanks, tabs and line ends between two tokens; 0 is compact JSON.
        max_depth: how many objects and arrays may be open at once, about; deeper than that only
            the shortest way to close them is allowed.

    Raises:
        ConfigError: the schema uses what is not supported, or nothing finite satisfies it.
    """
    compiler = _Compiler(schema, whitespace)
    try:
        start = compiler.reference("#", "#")
        return PushdownConstraint(compiler.grammar, start, "the schema", max_depth)
    except RecursionError:
        raise ConfigError("the schema is nested too deeply; move parts into '$defs'") from None


def json_value(*, whitespace: int = 0, max_depth: int = MAX_DEPTH) -> PushdownConstraint:
    """Any JSON text. The arguments are those of `json_schema`."""
    return json_schema(True, whitespace=whitespace, max_depth=max_depth)


class _Compiler:
    """Turns one schema into the machines of a grammar."""

    def __init__(self, root: Any, whitespace: int) -> None:
        if not 0 <= whitespace <= _MOST_WHITESPACE:
            raise ConfigError(
                f"whitespace is {whitespace}; it must be between 0 and {_MOST_WHITESPACE}"
            )
        self.root = root
        self.grammar = Grammar()
        self.gap: Node = Repeat(either((b" ", b"\t", b"\n", b"\r")), 0, whitespace)
        self.references: dict[str, int] = {}
        self.terminals: dict[Node, int] = {}
        self.strings: dict[Any, int] = {}
        self.kinds: dict[str, Callable[[Schema, str], int]] = {
            "object": partial(schema_machines.object_, self),
            "array": partial(schema_machines.array, self),
            "string": partial(schema_machines.string, self),
            "number": partial(self.number, whole=False),
            "integer": partial(self.number, whole=True),
            "boolean": lambda schema, path: self.terminal(either((b"true", b"false"))),
            "null": lambda schema, path: self.terminal(literal(b"null")),
        }

    def terminal(self, node: Node) -> int:
        """The machine of a tree, one for equal trees."""
        if node not in self.terminals:
            self.terminals[node] = self.grammar.terminal(schema_machines.compiled(node))
        return self.terminals[node]

    def value(self, schema: Any, path: str) -> int:
        """The machine of the values of a schema."""
        if schema is False:
            return self.grammar.node()
        if schema is True:
            return self.anything()
        check_schema(schema, path)
        speaking = set(schema) - ANNOTATIONS
        if not speaking:
            return self.anything()
        if "$ref" in schema:
            if len(speaking) > 1:
                beside = min(speaking - {"$ref"})
                raise ConfigError(f"{path}: '$ref' cannot be combined with {beside!r} here")
            return self.reference(schema["$ref"], path)
        for keyword in BRANCHES:
            if keyword in schema:
                return self.branches(schema, keyword, path)
        values = constants(schema, path)
        if values is not None:
            return self.terminal(either(schema_machines.spell(v, path) for v in values))
        return self.one_of_types(schema, path, types_of(schema, path))

    def one_of_types(self, schema: Schema, path: str, kinds: tuple[str, ...]) -> int:
        node = self.grammar.node()
        for kind in kinds:
            self.grammar.call(node, self.kinds[kind](schema, path), END)
        return node

    def reference(self, reference: str, path: str) -> int:
        """The machine of a `$ref`, entered before it is built so that it may call itself."""
        if reference not in self.references:
            target = resolve(self.root, reference, path)
            node = self.references[reference] = self.grammar.node(reference)
            self.grammar.call(node, self.value(target, reference), END)
        return self.references[reference]

    def anything(self) -> int:
        """The machine of any JSON value."""
        if "anything" not in self.references:
            node = self.references["anything"] = self.grammar.node()
            kinds = tuple(kind for kind in TYPES if kind != "integer")
            self.grammar.call(node, self.one_of_types({}, "#", kinds), END)
        return self.references["anything"]

    def branches(self, schema: Schema, keyword: str, path: str) -> int:
        options = schema[keyword]
        if not isinstance(options, list) or not options:
            raise ConfigError(f"{path}/{keyword}: a list of schemas is expected, not {options!r}")
        if keyword == "allOf" and len(options) > 1:
            raise ConfigError(f"{path}: 'allOf' with several branches is not supported; merge them")
        node = self.grammar.node()
        whole = []
        for number_, option in enumerate(options):
            at = f"{path}/{keyword}/{number_}"
            whole.append(merged(schema, option, keyword, at))
            self.grammar.call(node, self.value(whole[-1], at), END)
            if keyword == "oneOf":
                self.check_exclusive(whole, at)
        return node

    def check_exclusive(self, branches: list[Any], path: str) -> None:
        """Refuse a last branch that may hold together with an earlier one."""
        if not all(exclusive(self.root, branches[-1], other) for other in branches[:-1]):
            raise ConfigError(
                f"{path}: may be satisfied together with another branch of 'oneOf'; use 'anyOf', "
                "or tell them apart by a required property that is a different 'const' in each"
            )

    def number(self, schema: Schema, path: str, whole: bool) -> int:
        least, most = bound(schema, "minimum", path), bound(schema, "maximum", path)
        above = bound(schema, "exclusiveMinimum", path)
        below = bound(schema, "exclusiveMaximum", path)
        return self.terminal((integer if whole else number)(least, most, above, below))
