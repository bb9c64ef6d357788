"""Random JSON Schemas of the supported kind, and random values that are valid under them."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

NAMES = ["a", "b", "name", 'q"u', "é\n", "a/b~c", ""]
# Patterns with some texts in which they are found.
PATTERNS = {
    "^[0-9+*/ -]+$": ["1+2", "7 * 3"],
    "[A-Z]{2}": ["xABy", "AB"],
    "^é|\\d$": ["é!", "x7"],
    r'^"\\?\w*"$': ['"ab"', '"\\x"'],
    "": ["", "anything"],
}
FORMATTED = {
    "date": ["2024-02-29", "1999-12-31"],
    "time": ["23:59:59Z", "00:00:00.25+01:30"],
    "date-time": ["2000-02-29T12:00:00Z"],
    "email": ["a.b+c@x-y.example.org"],
    "ipv4": ["255.0.10.1"],
    "uuid": ["123e4567-e89b-12d3-a456-426614174000"],
}

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
scalars = st.one_of(st.none(), st.booleans(), st.integers(-999, 999), st.just(1.5), text)
json_values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(NAMES), inner, max_size=3)
    ),
    max_leaves=5,
)


def dump(value: Any) -> str:
    """Compact JSON, spelled as the constraints spell it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@st.composite
def numeric(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(["integer", "number"]))
    limits = st.integers(-2000, 2000) | st.sampled_from([0.5, -0.25, 0.001, 1e6, 12.75])
    schema: dict[str, Any] = {"type": kind}
    if draw(st.booleans()):
        schema[draw(st.sampled_from(["minimum", "exclusiveMinimum"]))] = draw(limits)
    if draw(st.booleans()):
        low = schema.get("minimum", schema.get("exclusiveMinimum", -5000))
        schema[draw(st.sampled_from(["maximum", "exclusiveMaximum"]))] = low + draw(
            st.integers(2, 3000)
        )
    return schema


@st.composite
def strings(draw: st.DrawFn) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    kind = draw(st.sampled_from(["free", "free", "pattern", "format"]))
    if kind == "pattern":
        schema["pattern"] = draw(st.sampled_from(sorted(PATTERNS)))
    elif kind == "format":
        schema["format"] = draw(st.sampled_from(sorted(FORMATTED)))
    if kind != "format" and draw(st.booleans()):
        schema["minLength"] = draw(st.integers(0, 3))
    if kind != "format" and draw(st.booleans()):
        schema["maxLength"] = schema.get("minLength", 3) + draw(st.integers(0, 20))
    return schema


def arrays(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    @st.composite
    def build(draw: st.DrawFn) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "array"}
        if draw(st.booleans()):
            schema["prefixItems"] = draw(st.lists(inner, max_size=2))
        if draw(st.booleans()):
            schema["items"] = draw(inner)
        if draw(st.booleans()):
            schema["minItems"] = draw(st.integers(0, 3))
        if draw(st.booleans()):
            schema["maxItems"] = schema.get("minItems", 0) + draw(st.integers(0, 3))
        return schema

    return build()


def objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    @st.composite
    def build(draw: st.DrawFn) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "object"}
        if draw(st.integers(0, 3)):
            schema["properties"] = draw(st.dictionaries(st.sampled_from(NAMES), inner, max_size=4))
        if draw(st.booleans()):
            schema["required"] = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=2))
        if draw(st.booleans()) and "required" not in schema:
            schema["additionalProperties"] = draw(st.just(False) | inner)
        return schema

    return build()


references = st.sampled_from([{"$ref": "#/$defs/tree"}, {"$ref": "#/$defs/a~1b"}, {"$ref": "#"}])
leaves = st.one_of(
    numeric(),
    strings(),
    st.just(True),
    st.just({}),
    st.lists(json_values, min_size=1, max_size=3).map(lambda v: {"enum": v}),
    json_values.map(lambda v: {"const": v}),
    st.lists(
        st.sampled_from(["string", "integer", "null", "boolean", "number", "array", "object"]),
        min_size=1,
        unique=True,
    ).map(lambda kinds: {"type": kinds}),
    references,
)


def grow(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    branches = st.lists(inner, min_size=1, max_size=3)
    return st.one_of(arrays(inner), objects(inner), branches.map(lambda b: {"anyOf": b}))


DEFINITIONS = {
    "tree": {
        "type": "object",
        "properties": {
            "v": {"type": "integer"},
            "kids": {"type": "array", "items": {"$ref": "#/$defs/tree"}},
        },
        "required": ["v"],
    },
    "a/b": {"type": "string", "maxLength": 4},
}


@st.composite
def schemas(draw: st.DrawFn) -> dict[str, Any]:
    """A schema of the supported kind; it may have no finite value."""
    schema = draw(st.recursive(leaves, grow, max_leaves=5))
    return {**({} if schema is True else schema), "$defs": DEFINITIONS}


def values(schema: Any, root: Any, depth: int = 0) -> st.SearchStrategy[Any]:
    """Values of a schema within the sub-language that is written.

    Properties come in the schema's order, and open objects are only those whose schema says so.
    """
    if schema is True or not set(schema) - {"$defs"}:
        return json_values
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/$defs/").replace("~1", "/")
        return st.deferred(lambda: values(root if name == "#" else DEFINITIONS[name], root, depth))
    if "anyOf" in schema:
        return st.one_of([values(option, root, depth) for option in schema["anyOf"]])
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum", [schema.get("const")]))
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return st.one_of([_of_kind(kind, schema, root, depth + 1) for kind in kinds])


def _of_kind(kind: str, schema: dict[str, Any], root: Any, depth: int) -> st.SearchStrategy[Any]:
    if kind in ("boolean", "null"):
        return st.booleans() if kind == "boolean" else st.none()
    if kind in ("integer", "number"):
        low = schema.get("minimum", schema.get("exclusiveMinimum", -9999))
        high = schema.get("maximum", schema.get("exclusiveMaximum", low + 9999))
        whole = st.integers(int(-(-low // 1)), int(high // 1))
        inside = whole if kind == "integer" else whole | _decimals(low, high)
        return inside.filter(
            lambda v: v != schema.get("exclusiveMinimum") and v != schema.get("exclusiveMaximum")
        )
    if kind == "string":
        return _text(schema)
    return (_array if kind == "array" else _object)(schema, root, depth)


def _decimals(low: float, high: float) -> st.SearchStrategy[float]:
    steps = st.integers(int(-(-low * 1000 // 1)) + 1, int(high * 1000 // 1) - 1)
    return steps.map(lambda step: step / 1000).filter(lambda v: "e" not in repr(v))


def _text(schema: dict[str, Any]) -> st.SearchStrategy[str]:
    if "format" in schema:
        return st.sampled_from(FORMATTED[schema["format"]])
    if "pattern" in schema:
        found = st.sampled_from(PATTERNS[schema["pattern"]])
        least, most = schema.get("minLength", 0), schema.get("maxLength", 500)
        return found.filter(lambda v: least <= len(v) <= most)
    letters = st.characters(exclude_categories=["Cs"])
    return st.text(
        letters, min_size=schema.get("minLength", 0), max_size=schema.get("maxLength", 9)
    )


def _array(schema: dict[str, Any], root: Any, depth: int) -> st.SearchStrategy[list[Any]]:
    prefix = [values(one, root, depth) for one in schema.get("prefixItems", [])]
    rest = values(schema.get("items", True), root, depth)
    least = schema.get("minItems", 0)
    most = min(schema.get("maxItems", least + (2 if depth < 4 else 0)), least + 2)

    def of_length(length: int) -> st.SearchStrategy[list[Any]]:
        items = [prefix[i] if i < len(prefix) else rest for i in range(length)]
        return st.tuples(*items).map(list)

    return st.integers(least, most).flatmap(of_length)


def _object(schema: dict[str, Any], root: Any, depth: int) -> st.SearchStrategy[dict[str, Any]]:
    rest = schema.get("additionalProperties", "properties" not in schema)
    known = dict(schema.get("properties", {}))
    required = schema.get("required", [])
    known.update({name: rest or True for name in required if name not in known})
    fields = {name: values(one, root, depth) for name, one in known.items()}

    @st.composite
    def build(draw: st.DrawFn) -> dict[str, Any]:
        found = {
            name: draw(fields[name])
            for name in known
            if name in required or (depth < 4 and draw(st.booleans()))
        }
        if rest is not False and depth < 4:
            others = st.text("xyz", min_size=1, max_size=3)
            found.update(draw(st.dictionaries(others, values(rest, root, depth + 1), max_size=2)))
        return found

    return build()
