"""What a JSON Schema constraint refuses, and that the message says what and where."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlx_companion.blt.constraints import json_schema
from mlx_companion.blt.constraints.schema_keywords import exclusive
from mlx_companion.errors import ConfigError


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"not": {}}, "#: the keyword 'not' is not supported"),
        ({"properties": {"a": {"multipleOf": 3}}}, "#/properties/a: the keyword 'multipleOf'"),
        ({"items": {"if": True}}, "#/items: the keyword 'if'"),
        ({"anyOf": [{}, {"patternProperties": {}}]}, "#/anyOf/1: the keyword 'patternProperties'"),
        ({"$defs": {"x": {"minProperties": 1}}, "$ref": "#/$defs/x"}, "#/$defs/x: the keyword"),
        ({"type": "array", "uniqueItems": True}, "#: 'uniqueItems' is not supported"),
        ({"items": {"$id": "https://x.org/y"}}, "#/items: '$id' is supported at the root"),
        ({"type": "text"}, "#/type: 'text' is none of object, array"),
        ({"type": []}, "#/type: [] is none of"),
        ({"type": [["string"]]}, "#/type: [['string']] is none of"),
        ([], "#: a schema is an object or a boolean, not []"),
        ({"items": [{}]}, "#/items: a schema is an object or a boolean"),
        ({"properties": []}, "#/properties: an object is expected"),
        ({"type": "object", "required": "a"}, "#/required: a list of names is expected"),
        ({"prefixItems": {}}, "#/prefixItems: a list of schemas is expected"),
        ({"anyOf": []}, "#/anyOf: a list of schemas is expected, not []"),
        ({"allOf": [{}, {}]}, "#: 'allOf' with several branches"),
        ({"enum": 3}, "#/enum: a list is expected, not 3"),
        ({"const": 3, "minimum": 2}, "cannot be combined with 'minimum'"),
        ({"const": 3, "enum": [3]}, "cannot be combined with 'enum'"),
        ({"const": float("nan")}, "cannot be written as JSON"),
        ({"const": "\ud800"}, "cannot be written as JSON"),
        ({"$ref": "#/$defs/x", "type": "object", "$defs": {"x": {}}}, "'$ref' cannot be combined"),
        ({"$ref": "#/$defs/x"}, "#/$ref: '#/$defs/x' points to nothing"),
        ({"$ref": "https://x.org/s"}, "is not in this document"),
        ({"$ref": "#anchor"}, "is an anchor"),
        ({"$ref": 3}, "is not in this document"),
        ({"type": "string", "minLength": -1}, "#/minLength: -1 is not an integer of at least 0"),
        ({"type": "string", "maxLength": "3"}, "#/maxLength: '3' is not an integer"),
        ({"type": "array", "minItems": True}, "#/minItems: True is not an integer"),
        ({"type": "array", "maxItems": 1.5}, "#/maxItems: 1.5 is not an integer"),
        ({"type": "string", "minLength": 9000}, "#/minLength: 9000; at most 4096"),
        ({"pattern": "a*", "minLength": 501}, "#/minLength: 501; at most 500"),
        ({"type": "array", "minItems": 5000}, "#/minItems: 5000; at most 4096"),
        ({"type": "integer", "minimum": "0"}, "#/minimum: '0' is not a finite number"),
        ({"type": "number", "exclusiveMaximum": True}, "#/exclusiveMaximum: True is not a finite"),
        ({"type": "number", "maximum": float("inf")}, "#/maximum: inf is not a finite number"),
        ({"format": "uri"}, "#/format: 'uri' is not supported in a constraint; remove it, or use"),
        ({"pattern": r"\bx"}, "#/pattern: the word boundary"),
        ({"pattern": "("}, "#/pattern: not a valid regular expression"),
        ({"pattern": 3}, "#/pattern: a pattern is a str, not int"),
        ({"items": {"pattern": "x(?=y)"}}, "#/items/pattern: look-ahead"),
        (
            {"type": "object", "additionalProperties": False, "anyOf": [{"properties": {"a": {}}}]},
            "#/anyOf/0: cannot be combined with the 'additionalProperties' beside 'anyOf'",
        ),
        (
            {"properties": {"a": {}}, "anyOf": [{"properties": {"a": {"type": "null"}}}]},
            "cannot be combined with the 'properties' beside 'anyOf'",
        ),
        ({"minimum": 1, "anyOf": [{"minimum": 2}]}, "cannot be combined with the 'minimum'"),
        ({"minimum": 1, "anyOf": [{"const": 2}]}, "cannot be combined with the 'minimum'"),
    ],
    ids=lambda value: json.dumps(value)[:40] if not isinstance(value, str) else None,
)
def test_what_is_not_supported_is_named(schema: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        json_schema(schema)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "schema",
    [
        False,
        {"enum": []},
        {"type": "string", "enum": [1]},
        {"type": "object", "properties": {"a": False}, "required": ["a"]},
        {"type": "object", "additionalProperties": False, "required": ["a"]},
        {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]},
        {"type": "integer", "minimum": 3, "maximum": 2},
        {"type": "number", "exclusiveMinimum": 1, "exclusiveMaximum": 1},
        {"type": "string", "pattern": "^aaa$", "maxLength": 2},
        {"type": "string", "format": "uuid", "pattern": "x"},
        {"type": "array", "prefixItems": [{}], "items": False, "minItems": 2},
        {"type": "array", "minItems": 2, "maxItems": 1},
        {"type": "string", "minLength": 2, "maxLength": 1},
    ],
    ids=json.dumps,
)
def test_what_nothing_satisfies_is_refused(schema: Any) -> None:
    with pytest.raises(ConfigError, match="no finite text satisfies the schema"):
        json_schema(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"anyOf": [{"type": "null"}, {"$ref": "#"}]},
        {
            "$defs": {
                "a": {"anyOf": [{"$ref": "#/$defs/b"}, {"type": "null"}]},
                "b": {"$ref": "#/$defs/a"},
            },
            "$ref": "#/$defs/a",
        },
    ],
    ids=["itself", "branch", "circle"],
)
def test_recursion_without_a_byte_is_refused(schema: Any) -> None:
    with pytest.raises(ConfigError, match=r"refers to itself|no finite text"):
        json_schema(schema)


def test_a_schema_nested_too_deeply_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(1000):
        schema = {"items": schema}
    with pytest.raises(ConfigError, match="nested too deeply"):
        json_schema(schema)


def test_what_cannot_be_is_left_out_where_it_may_be() -> None:
    """An optional property that nothing satisfies is never begun."""
    constraint = json_schema({"properties": {"a": False, "b": {"type": "null"}}, "type": "object"})
    assert constraint.accepts('{"b":null}')
    assert constraint.accepts("{}")
    assert constraint.forced(constraint.start(), budget=3) == b"{}"


def test_annotations_say_nothing() -> None:
    remarks = {"title": "t", "description": "d", "default": 3, "$comment": "c", "examples": [1]}
    constraint = json_schema({**remarks, "$schema": "s", "$id": "i", "type": "null"})
    assert constraint.accepts("null")
    assert not constraint.accepts("3")


def test_branches_take_what_stands_beside_them() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "null"}},
        "required": ["a"],
        "anyOf": [True, {"properties": {"b": {"type": "null"}}, "required": ["b"]}, False],
    }
    constraint = json_schema(schema)
    assert constraint.accepts('{"a":null}')
    assert constraint.accepts('{"a":null,"b":null}')
    assert not constraint.accepts('{"b":null}')
    assert json_schema({"allOf": [{"$ref": "#/$defs/x"}], "$defs": {"x": {"const": 1}}}).accepts(
        "1"
    )


def kind(name: str, **more: Any) -> dict[str, Any]:
    properties = {"kind": {"const": name}}
    return {"type": "object", "properties": properties, "required": ["kind"], **more}


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({"type": "string"}, {"type": "integer"}, True),
        ({"type": "number"}, {"type": "integer"}, False),
        ({"type": ["null", "string"]}, {"type": ["string", "array"]}, False),
        ({"type": "integer", "maximum": 3}, {"type": "number", "minimum": 3}, False),
        ({"type": "integer", "exclusiveMaximum": 3}, {"type": "number", "minimum": 3}, True),
        ({"type": "integer", "minimum": 5}, {"type": "integer", "maximum": 3}, True),
        ({"const": 1}, {"const": 1.0}, False),
        ({"const": 1}, {"const": True}, True),
        ({"const": [1, {"a": 2}]}, {"const": [1, {"a": 2.0}]}, False),
        ({"const": {"a": [1]}}, {"const": {"a": [2]}}, True),
        ({"const": [1]}, {"const": [1, 2]}, True),
        ({"enum": ["a", "b"]}, {"enum": ["b"]}, False),
        ({"enum": ["a", 1]}, {"type": "null"}, True),
        ({"type": "string"}, {"const": "a"}, False),
        ({"const": 2.0}, {"type": "integer"}, False),
        (kind("a"), kind("b"), True),
        (kind("a"), kind("a"), False),
        (kind("a"), {"type": "object", "additionalProperties": False}, True),
        (kind("a"), {"type": "object", "properties": {"kind": {"const": "b"}}}, False),
        ({"type": "string", "pattern": "^a"}, {"type": "string", "pattern": "^b"}, False),
        ({"pattern": "a"}, {"type": "string"}, False),
        ({"pattern": "a"}, {"type": "null"}, False),
        ({"$ref": "#/$defs/s"}, {"type": "null"}, True),
        ({"anyOf": [{"type": "null"}, {"type": "array"}]}, {"type": "string"}, True),
        ({"type": "string"}, {"anyOf": [{"type": "null"}, {"type": "string"}]}, False),
        (True, {"type": "null"}, False),
        (False, {"type": "null"}, True),
    ],
)
def test_branches_that_exclude_one_another(one: Any, other: Any, expected: bool) -> None:
    root = {"$defs": {"s": {"type": "string"}}}
    assert exclusive(root, one, other) is expected
    assert exclusive(root, other, one) is expected
    schema = {"oneOf": [one, other], **root}
    if expected:
        json_schema(schema)
    else:
        with pytest.raises(ConfigError, match="#/oneOf/1: may be satisfied together"):
            json_schema(schema)
