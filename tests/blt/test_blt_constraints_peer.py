"""The masks beside those of llguidance, another engine, run on the same byte vocabulary.

On regular expressions the two must agree on every byte at every step. On JSON Schema ours writes
a part of what llguidance allows: every step that we take is one that it accepts.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from mlx_companion.blt.constraints import Constraint, json_schema, regex

llguidance = pytest.importorskip("llguidance")

EOS, OFFSET, VOCABULARY = 2, 4, 260


class ByteTokenizer:
    """What llguidance asks of a tokenizer."""

    eos_token_id = EOS
    bos_token_id = 1
    special_token_ids = (0, 1, 2, 3)
    tokens = tuple(b"\xff<%d>" % i for i in range(OFFSET)) + tuple(bytes([b]) for b in range(256))

    def __call__(self, text: bytes | str) -> list[int]:
        return [b + OFFSET for b in (text.encode() if isinstance(text, str) else text)]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(ByteTokenizer()))


def peer_mask(matcher: Any) -> np.ndarray:
    """(260,) bool: what llguidance allows next."""
    words = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
    return np.unpackbits(words, bitorder="little")[:VOCABULARY].astype(bool)


def steps(constraint: Constraint, matcher: Any, rng: np.random.Generator) -> list[Any]:
    """(our mask, the peer's mask, the id taken) along a random walk to the end."""
    assert not matcher.get_error(), matcher.get_error()
    state, found = constraint.start(), []
    budget = constraint.shortest + int(rng.integers(0, 30))
    for left in range(budget, -1, -1):
        ids = np.flatnonzero(constraint.allowed_within(state, left))
        # JSON may hold a raw DEL, and the peer will not write one.
        ids = ids[ids != 0x7F + OFFSET]
        next_id = int(rng.choice(ids))
        found.append((constraint.allowed(state), peer_mask(matcher), next_id))
        if next_id == EOS:
            break
        state = constraint.advance(state, next_id)
        matcher.consume_token(next_id)
    return found


@pytest.mark.parametrize(
    "pattern",
    [
        r"[A-Z]é+[a-z]+",
        r"(a|bc)*d?",
        r"[0-9]{2,4}(-[0-9]{2}){0,2}",
        r"[^a-z\n]{1,3}",
        r"(foo|foobar|fob)[а-я]*",
    ],
)
def test_masks_of_patterns_are_equal(pattern: str, tokenizer: Any) -> None:
    constraint = regex(pattern)
    rng = np.random.default_rng(0)
    grammar = llguidance.LLMatcher.grammar_from_regex(pattern)
    compared = 0
    for _ in range(12):
        for ours, theirs, _ in steps(constraint, llguidance.LLMatcher(tokenizer, grammar), rng):
            assert np.array_equal(ours, theirs)
            compared += 1
    assert compared > 30


def test_every_step_of_a_schema_is_one_that_the_peer_takes(tokenizer: Any) -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 6},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "kind": {"enum": ["a", "b", None]},
            "list": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    grammar = llguidance.LLMatcher.grammar_from_json_schema(
        json.dumps(schema), defaults={"whitespace_flexible": False}
    )
    constraint = json_schema(schema)
    rng = np.random.default_rng(0)
    for _ in range(12):
        for ours, theirs, next_id in steps(
            constraint, llguidance.LLMatcher(tokenizer, grammar), rng
        ):
            assert theirs[next_id]
            assert not ours[EOS] or theirs[EOS]
