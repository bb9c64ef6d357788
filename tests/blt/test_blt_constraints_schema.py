"""JSON Schemas as constraints on bytes, held against the `jsonschema` package."""

from __future__ import annotations

import json
import pickle
from typing import Any

import blt_schemas
import blt_walks
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from mlx_companion.blt.constraints import json_schema, json_value, pushdown
from mlx_companion.errors import ConfigError, GenerationError

jsonschema = pytest.importorskip("jsonschema")

EOS, OFFSET = 2, 4
SLOW = {"deadline": None, "suppress_health_check": list(HealthCheck)}

PERSON = {
    "type": "object",
    "title": "a person",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "email": {"type": "string", "format": "email", "maxLength": 40},
        "tags": {"type": "array", "items": {"enum": ["new", "old"]}, "maxItems": 3},
        "score": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
TOOLS = {
    "oneOf": [
        {
            "type": "object",
            "properties": {"tool": {"const": "search"}, "query": {"type": "string"}},
            "required": ["tool", "query"],
        },
        {
            "type": "object",
            "properties": {
                "tool": {"const": "sum"},
                "of": {"type": "array", "items": {"type": "number"}, "minItems": 1},
            },
            "required": ["tool", "of"],
        },
    ]
}
EXPRESSION = {
    "$defs": {
        "expression": {
            "anyOf": [
                {"type": "integer"},
                {
                    "type": "array",
                    "prefixItems": [
                        {"enum": ["+", "*"]},
                        {"$ref": "#/$defs/expression"},
                        {"$ref": "#/$defs/expression"},
                    ],
                    "items": False,
                    "minItems": 3,
                },
            ]
        }
    },
    "$ref": "#/$defs/expression",
}
OPEN = {
    "type": "object",
    "properties": {"kind": {"type": "string", "pattern": "^[a-z]{2,5}$"}},
    "required": ["kind", "id"],
    "additionalProperties": {"type": ["integer", "null"]},
}
EVENT = {"type": "object", "properties": {"on": {"format": "date-time"}}, "required": ["on"]}
ANY_OF = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
    "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
}
SCHEMAS = [PERSON, TOOLS, EXPRESSION, OPEN, EVENT, ANY_OF]


def check(written: bytes, schema: Any) -> Any:
    """Parse what was written and hold it against the schema."""
    value = json.loads(written.decode("utf-8"))
    jsonschema.Draft202012Validator(
        schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    ).validate(value)
    return value


def compiled(schema: Any, **options: Any) -> pushdown.PushdownConstraint:
    """The constraint of a random schema; those without a finite value are passed over."""
    try:
        return json_schema(schema, **options)
    except ConfigError as error:
        assume("no finite text" not in str(error) and "refers to itself" not in str(error))
        raise


@settings(max_examples=50, **SLOW)
@given(blt_schemas.schemas(), st.integers(0, 40), st.integers(0, 2**32), st.integers(0, 2))
def test_every_walk_is_valid(schema: Any, spare: int, seed: int, whitespace: int) -> None:
    constraint = compiled(schema, whitespace=whitespace)
    chance = blt_walks.uniform(np.random.default_rng(seed))
    budget = constraint.shortest + spare
    for choose in (chance, blt_walks.lowest, blt_walks.highest, blt_walks.farthest):
        written = blt_walks.walk(constraint, choose, budget)
        assert len(written) <= budget
        check(written, schema)
    with pytest.raises(ConfigError, match=f"has {constraint.shortest} bytes"):
        constraint.check_budget(constraint.shortest - 1)


@settings(max_examples=50, **SLOW)
@given(blt_schemas.schemas(), st.data())
def test_valid_values_can_be_written(schema: Any, data: st.DataObject) -> None:
    constraint = compiled(schema)
    value = data.draw(blt_schemas.values(schema, schema))
    check(blt_schemas.dump(value).encode(), schema)  # the generator of values itself
    assert constraint.accepts(blt_schemas.dump(value)), blt_schemas.dump(value)


@settings(max_examples=25, **SLOW)
@given(blt_schemas.schemas(), st.integers(0, 2**32))
def test_distances_are_exact(schema: Any, seed: int) -> None:
    """From each state the nearest next one is one byte nearer, and none is more than that."""
    constraint = compiled(schema)
    rng = np.random.default_rng(seed)
    state = constraint.start()
    for _ in range(12):
        ids = np.flatnonzero(constraint.allowed(state))
        after = {int(i): constraint.advance(state, int(i)) for i in ids if i != EOS}
        distance = constraint.distance(state)
        assert (distance == 0) == (EOS in ids)
        nearest = min((constraint.distance(s) for s in after.values()), default=0)
        assert nearest >= distance - 1
        if distance:
            assert nearest == distance - 1
        fits = np.flatnonzero(constraint.allowed_within(state, distance + 2))
        expected = [i for i, s in after.items() if constraint.distance(s) <= distance + 1]
        assert [i for i in fits if i != EOS] == expected
        if not after:
            break
        state = after[int(rng.choice(list(after)))]


@pytest.mark.parametrize("schema", SCHEMAS, ids=["person", "tools", "tree", "open", "event", "any"])
def test_schemas_that_people_write(schema: Any) -> None:
    constraint = json_schema(schema)
    rng = np.random.default_rng(0)
    lengths = set()
    for number in range(15):
        budget = constraint.shortest + int(rng.integers(0, 120))
        written = blt_walks.walk(constraint, blt_walks.uniform(rng), budget)
        check(written, schema)
        lengths.add(len(written))
        assert number or len(blt_walks.walk(constraint, blt_walks.lowest, constraint.shortest))
    assert len(lengths) > 3


def test_a_recursive_schema_nests() -> None:
    constraint = json_schema(EXPRESSION)
    assert constraint.accepts('["+",1,["*",-2,["+",3,4]]]')
    assert not constraint.accepts('["+",1]')
    assert not constraint.accepts('["+",1,2,3]')
    assert constraint.shortest == 1


def test_properties_keep_their_order_and_their_names() -> None:
    constraint = json_schema(PERSON)
    assert constraint.forced(constraint.start()) == b'{"name":"'
    assert constraint.accepts('{"name":"Ada","age":36,"score":0.5}')
    for wrong in (
        '{"age":36,"name":"Ada"}',
        '{"name":"Ada"}',
        '{"name":"","age":1}',
        '{"name":"Ada","age":151}',
        '{"name":"Ada","age":36,"score":0}',
        '{"name":"Ada","age":36,"more":1}',
        '{"name":"Ada","age":36,}',
        '{"name":"Ada", "age":36}',
    ):
        assert not constraint.accepts(wrong), wrong


def test_other_properties_never_repeat_a_described_one() -> None:
    constraint = json_schema(OPEN)
    assert constraint.accepts('{"kind":"ab","id":7,"kin":1,"kinds":2,"":3}')
    assert not constraint.accepts('{"kind":"ab","id":7,"kind":1}')
    assert not constraint.accepts('{"kind":"ab","id":7,"id":1}')
    assert not constraint.accepts('{"id":7,"kind":"ab"}')


def test_an_object_is_open_only_where_the_schema_says_so() -> None:
    assert json_schema({"type": "object"}).accepts('{"x":[{}]}')
    assert not json_schema({"properties": {"a": True}}).accepts('{"x":1}')
    opened = json_schema({"properties": {"a": True}, "additionalProperties": True})
    assert opened.accepts('{"a":1,"x":1}')
    assert opened.accepts('{"x":1}')


def test_white_space_is_allowed_where_it_is_asked_for() -> None:
    value = {"name": "Ada", "age": 36, "tags": ["new", "old"]}
    pretty = json.dumps(value, indent=1)
    assert json_schema(PERSON, whitespace=3).accepts(pretty)
    assert not json_schema(PERSON).accepts(pretty)
    assert not json_schema(PERSON, whitespace=1).accepts(json.dumps(value, indent=2))
    assert json_value(whitespace=2).accepts("[ ]")
    with pytest.raises(ConfigError, match="whitespace is 65"):
        json_value(whitespace=65)


@given(blt_schemas.json_values)
@settings(max_examples=60, deadline=None)
def test_any_json_value_can_be_written(value: Any) -> None:
    assert ANY.accepts(blt_schemas.dump(value))


ANY = json_value()


@given(blt_schemas.json_values, st.integers(0, 10**6), st.sampled_from('{}[]",:0-.eE \\tn\x01é'))
@settings(max_examples=150, deadline=None)
def test_what_is_not_json_is_refused(value: Any, at: int, character: str) -> None:
    text = blt_schemas.dump(value)
    broken = text[: at % (len(text) + 1)] + character + text[at % (len(text) + 1) + at % 2 :]
    if ANY.accepts(broken):
        json.loads(broken)


def depth(value: Any) -> int:
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


def test_nesting_comes_to_an_end() -> None:
    bracket, quote = ord("[") + OFFSET, ord('"') + OFFSET

    def deepest(ids: np.ndarray, constraint: Any, state: Any) -> int:
        outside = ids[ids != quote]
        return bracket if bracket in ids else blt_walks.lowest(outside, constraint, state)

    written = blt_walks.walk(json_value(max_depth=9), deepest, 500)
    assert 9 <= depth(json.loads(written)) <= 10
    assert len(written) > 400
    assert depth(json.loads(blt_walks.walk(json_value(), deepest, 500))) in (64, 65)
    with pytest.raises(ConfigError, match="max_depth is 0"):
        json_value(max_depth=0)


def test_many_open_ways_are_cut_without_losing_validity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pushdown, "_MOST_WAYS", 3)
    item = {"$ref": "#"}
    schema = {
        "anyOf": [
            {"type": "array", "items": item},
            {"type": "array", "items": item, "maxItems": 2},
            {"type": "array", "prefixItems": [item], "minItems": 1},
            {"type": "integer"},
        ]
    }
    constraint = json_schema(schema)
    rng = np.random.default_rng(3)
    for budget in range(1, 40):
        check(blt_walks.walk(constraint, blt_walks.uniform(rng), budget), schema)


def test_states_are_values() -> None:
    constraint = pickle.loads(pickle.dumps(json_schema(TOOLS)))
    state = constraint.start()
    for byte in b'{"tool":"s':
        state = constraint.advance(state, byte + OFFSET)
    kept = pickle.loads(pickle.dumps(state))
    ids = np.flatnonzero(constraint.allowed(kept))
    assert [chr(i - OFFSET) for i in ids] == ["e", "u"]
    one = constraint.advance(state, ord("u") + OFFSET)
    constraint.advance(state, ord("e") + OFFSET)
    assert constraint.advance(kept, ord("u") + OFFSET) == one
    assert hash(kept) == hash(state)
    with pytest.raises(GenerationError, match="byte 0x78 is not allowed"):
        constraint.advance(state, ord("x") + OFFSET)


def test_after_the_end_only_the_end_follows() -> None:
    constraint = json_schema({"const": 1})
    state = constraint.advance(constraint.start(), ord("1") + OFFSET)
    ended = constraint.advance(state, EOS)
    assert np.flatnonzero(constraint.allowed(ended)).tolist() == [EOS]
    assert constraint.advance(ended, EOS) == ended
    with pytest.raises(GenerationError, match="id 2 is not allowed"):
        constraint.advance(constraint.start(), EOS)


def test_masks_in_a_batch_are_those_of_single_states() -> None:
    constraint = json_schema(PERSON)
    states = [constraint.start()]
    for byte in b'{"name":"A","age":3}':
        states.append(constraint.advance(states[-1], byte + OFFSET))
    states.append(constraint.advance(states[-1], EOS))
    budgets = [None if i % 3 == 0 else constraint.distance(s) + i for i, s in enumerate(states)]
    batch = constraint.allowed_batch(states, budgets)
    alone = [constraint.allowed_within(s, b) for s, b in zip(states, budgets, strict=True)]
    assert np.array_equal(batch, np.stack(alone))
    with pytest.raises(ConfigError, match="row 1 may write 3 more bytes and needs at least"):
        constraint.allowed_batch(states[:2], [None, 3])
