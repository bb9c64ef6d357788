"""Reading a JSON Schema: which keywords it uses, what it refers to, whether branches overlap.

Nothing is ignored silently: a keyword that is neither supported nor a mere annotation is a
`ConfigError` that names it and where it stands.
"""

from __future__ import annotations

import math
from typing import Any
from urllib.parse import unquote

from mlx_companion.errors import ConfigError

Schema = dict[str, Any]

_DOCUMENT = ("$schema", "$id", "$comment", "$defs", "definitions")
_REMARKS = ("title", "description", "default", "examples", "example", "deprecated")
ANNOTATIONS = frozenset((*_DOCUMENT, *_REMARKS, "readOnly", "writeOnly"))
BY_TYPE: dict[str, frozenset[str]] = {
    "object": frozenset(("properties", "required", "additionalProperties")),
    "array": frozenset(("items", "prefixItems", "minItems", "maxItems", "uniqueItems")),
    "string": frozenset(("minLength", "maxLength", "pattern", "format")),
    "number": frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")),
}
BY_TYPE["integer"] = BY_TYPE["number"]
TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
}
BRANCHES = ("anyOf", "oneOf", "allOf")
_SUPPORTED = frozenset(("type", "enum", "const", "$ref", *BRANCHES)).union(*BY_TYPE.values())


def check_schema(schema: Any, path: str) -> None:
    """Refuse what is not a schema or uses a keyword that is not supported.

    Args:
        schema: a schema that is not a boolean.
        path: a JSON pointer to it, for messages.

    Raises:
        ConfigError: names the keyword and the path.
    """
    if not isinstance(schema, dict):
        raise ConfigError(f"{path}: a schema is an object or a boolean, not {schema!r}")
    for keyword in schema:
        if keyword not in _SUPPORTED and keyword not in ANNOTATIONS:
            raise ConfigError(
                f"{path}: the keyword {keyword!r} is not supported in a constraint; "
                f"remove it, or use: {', '.join(sorted(_SUPPORTED))}"
            )
    if schema.get("uniqueItems", False) is not False:
        raise ConfigError(f"{path}: 'uniqueItems' is not supported in a constraint; remove it")
    if "$id" in schema and path != "#":
        raise ConfigError(f"{path}: '$id' is supported at the root only; refer to '#/$defs/...'")


def types_of(schema: Schema, path: str) -> tuple[str, ...]:
    """The types that a schema allows; without `type`, those that its keywords speak of.

    Raises:
        ConfigError: an unknown type.
    """
    given = schema.get("type")
    if given is None:
        plain = [kind for kind in TYPES if kind != "integer"]
        return tuple(k for k in plain if BY_TYPE.get(k, set()) & set(schema)) or tuple(plain)
    kinds = [given] if isinstance(given, str) else given
    if not isinstance(kinds, list) or not kinds or not all(kind in TYPES for kind in kinds):
        raise ConfigError(
            f"{path}/type: {given!r} is none of {', '.join(TYPES)} nor a list of them"
        )
    return tuple(k for k in TYPES if k in kinds and not (k == "integer" and "number" in kinds))


def count(schema: Schema, keyword: str, path: str, default: int | None) -> int | None:
    """A keyword whose value is a number of things.

    Raises:
        ConfigError: it is not an integer of at least 0.
    """
    value = schema.get(keyword, default)
    if keyword not in schema:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value % 1:
        raise ConfigError(f"{path}/{keyword}: {value!r} is not an integer of at least 0")
    return int(value)


def bound(schema: Schema, keyword: str, path: str) -> int | float | None:
    """A keyword whose value is a number, or None.

    Raises:
        ConfigError: it is something else.
    """
    if keyword not in schema:
        return None
    value = schema[keyword]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{path}/{keyword}: {value!r} is not a finite number")
    return value


def resolve(root: Any, reference: Any, path: str) -> Any:
    """The schema that a `$ref` inside the same document points to.

    Raises:
        ConfigError: it points elsewhere or to nothing.
    """
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise ConfigError(
            f"{path}/$ref: {reference!r} is not in this document; copy it into '$defs' and refer "
            "to '#/$defs/...'"
        )
    found = root
    for part in unquote(reference[1:]).split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict) and key in found:
            found = found[key]
        elif isinstance(found, list) and key.isdigit() and int(key) < len(found):
            found = found[int(key)]
        else:
            raise ConfigError(f"{path}/$ref: {reference!r} points to nothing")
    if reference != "#" and not reference.startswith("#/"):
        raise ConfigError(f"{path}/$ref: {reference!r} is an anchor; use '#/$defs/...'")
    return found


def is_type(value: Any, kind: str) -> bool:
    """Whether a JSON value is of a type (1.0 is an integer, true is not)."""
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer":
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return value is None if kind == "null" else isinstance(value, _PYTHON_TYPES.get(kind, ()))


def constants(schema: Schema, path: str) -> list[Any] | None:
    """The values of `const` or `enum` that the `type` beside it allows; None without either.

    Raises:
        ConfigError: other constraints stand beside it, or `enum` is no list.
    """
    if "const" not in schema and "enum" not in schema:
        return None
    beside = set(schema) - ANNOTATIONS - {"type", "const", "enum"}
    if beside or ("const" in schema and "enum" in schema):
        others = ", ".join(repr(keyword) for keyword in sorted(beside)) or "'enum'"
        raise ConfigError(f"{path}: 'const' or 'enum' cannot be combined with {others} here")
    values = [schema["const"]] if "const" in schema else schema["enum"]
    if not isinstance(values, list):
        raise ConfigError(f"{path}/enum: a list is expected, not {values!r}")
    kinds = types_of(schema, path) if "type" in schema else TYPES
    return [value for value in values if any(is_type(value, kind) for kind in kinds)]


def merged(schema: Schema, branch: Any, keyword: str, path: str) -> Any:
    """A branch of `anyOf` with what stands beside it: both must hold.

    Args:
        schema: the schema that has the branches.
        branch: one of them.
        keyword: "anyOf", "oneOf" or "allOf".
        path: of the branch.

    Raises:
        ConfigError: the two cannot be put together without changing what they mean.
    """
    outer = {k: v for k, v in schema.items() if k != keyword and k not in ANNOTATIONS}
    if not outer or branch is False:
        return branch
    if branch is True:
        return outer
    check_schema(branch, path)
    inner = {k: v for k, v in branch.items() if k not in ANNOTATIONS}
    both = {**outer, **inner}
    if "required" in outer and "required" in inner:
        both["required"] = [*outer["required"], *inner["required"]]
    if "properties" in outer and "properties" in inner:
        both["properties"] = {**outer["properties"], **inner["properties"]}
    clash = _clash(outer, inner)
    if clash:
        raise ConfigError(
            f"{path}: cannot be combined with the {clash!r} beside {keyword!r}; "
            f"write the whole schema into each branch"
        )
    return both


def _clash(outer: Schema, inner: Schema) -> str | None:
    """The keyword of `outer` that would mean something else in one schema with `inner`."""
    shared = set(outer) & set(inner) - {"required", "properties"}
    unequal = sorted(k for k in shared if k != "type" or outer[k] != inner[k])
    if unequal:
        return unequal[0]
    names = set(outer.get("properties", ())) & set(inner.get("properties", ()))
    if names:
        return "properties"
    # These speak of what their own schema does not name.
    for rest, named in (("additionalProperties", "properties"), ("items", "prefixItems")):
        for one, other in ((outer, inner), (inner, outer)):
            if rest in one and named in other:
                return rest if one is outer else named
    whole = {"$ref", "const", "enum", *BRANCHES}
    return next((k for k in sorted(outer) if whole & (set(inner) | {k}) and k != "type"), None)


def exclusive(root: Any, one: Any, other: Any, depth: int = 0) -> bool:
    """Whether no value can satisfy both schemas, as far as can be told.

    Told apart are: different types, different constants, numbers in separate ranges, and objects
    by a property that both require and whose schemas exclude one another (a discriminator), or
    that one requires and the other, closed, does not have.
    """
    one, other = _followed(root, one), _followed(root, other)
    if one is False or other is False:
        return True
    if not isinstance(one, dict) or not isinstance(other, dict) or depth > 8:
        return False
    for first, second in ((one, other), (other, one)):
        for keyword in BRANCHES[:2]:
            if keyword in first:
                return all(exclusive(root, b, second, depth + 1) for b in first[keyword])
    values, others = constants(one, "#"), constants(other, "#")
    if values is not None and others is not None:
        return not any(_same(a, b) for a in values for b in others)
    for listed, schema in ((values, other), (others, one)):
        if listed is not None:
            kinds = _kinds(schema)
            return not any(is_type(value, kind) for value in listed for kind in kinds)
    return _exclusive_types(root, one, other, depth)


def _followed(root: Any, schema: Any) -> Any:
    for _ in range(32):
        if not isinstance(schema, dict) or "$ref" not in schema:
            break
        schema = resolve(root, schema["$ref"], "#")
    return schema


def _kinds(schema: Schema) -> set[str]:
    """The types of the valid values: without `type`, keywords say nothing of other types."""
    kinds = set(types_of(schema, "#")) if "type" in schema else set(TYPES)
    return kinds | {"integer"} if "number" in kinds else kinds


def _exclusive_types(root: Any, one: Schema, other: Schema, depth: int) -> bool:
    for kind in _kinds(one) & _kinds(other):
        if kind == "object" and _exclusive_objects(root, one, other, depth):
            continue
        if kind in ("number", "integer") and (_below(one, other) or _below(other, one)):
            continue
        return False
    return True


def _exclusive_objects(root: Any, one: Schema, other: Schema, depth: int) -> bool:
    for first, second in ((one, other), (other, one)):
        known = second.get("properties", {})
        for name in first.get("required", ()):
            if name not in known and second.get("additionalProperties") is False:
                return True
            here = first.get("properties", {}).get(name, True)
            there = known.get(name, True)
            if name in second.get("required", ()) and exclusive(root, here, there, depth + 1):
                return True
    return False


def _below(one: Schema, other: Schema) -> bool:
    """Whether every number of the first schema is less than every number of the second."""
    top, strict = one.get("maximum"), one.get("exclusiveMaximum")
    low, above = other.get("minimum"), other.get("exclusiveMinimum")
    tops = [value for value in (top, strict) if value is not None]
    lows = [value for value in (low, above) if value is not None]
    if not tops or not lows:
        return False
    end, begin = min(tops), max(lows)
    return bool(end < begin or (end == begin and (end == strict or begin == above)))


def _same(one: Any, other: Any) -> bool:
    """Equality of JSON values: 1 is 1.0, and true is not 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
