"""Regular expressions as constraints on bytes, held against Python's `re`."""

from __future__ import annotations

import pickle
import re
import sys

import blt_walks
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mlx_companion.blt.constraints import RegexConstraint, regex
from mlx_companion.blt.constraints.anchors import full_match
from mlx_companion.blt.constraints.automaton import compile_dfa
from mlx_companion.blt.constraints.products import difference, intersection
from mlx_companion.blt.constraints.syntax import parse
from mlx_companion.errors import ConfigError, GenerationError

EOS, OFFSET = 2, 4
CHARACTERS = "aAbkKsS019_- \n.\\ésſßµΣςσ\u212a\u0130ıжñ中🙂\u00a0\u2028\x00\x7f\x85\u0345]"

atoms = st.sampled_from(
    [
        *"abkKsS01_é中🙂ΣIµ",
        *[r"\.", r"\\", r"\n", r"\d", r"\w", r"\s", r"\D", r"\W", r"\S", ".", r"\x41", r"\u4e2d"],
        *["[ab]", "[^a]", "[a-z]", "[^a-z0]", r"[\w-]", r"[^\W\d]", "[é-ж]", "[\U00010000-🙂x]"],
        *[
            r"[^\s\S]",
            r"[\s_]",
            "[]a]",
            "[^]a]",
            r"[\b\n-a]",
            r"\101",
            r"\0",
            r"\N{BULLET}",
            "(?#x)b",
        ],
    ]
)
repeats = st.sampled_from(
    ["*", "+", "?", "{2}", "{1,2}", "{,2}", "{1,}", "*?", "+?", "??", "{0,3}?", "{,}", "{}", "{a}"]
)


def grow(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    group = inner.map(lambda p: f"(?:{p})")
    return st.one_of(
        st.lists(st.one_of(inner, group), min_size=1, max_size=3).map("".join),
        st.tuples(group, repeats).map("".join),
        st.tuples(inner, inner).map("|".join),
        inner.map(lambda p: f"({p})"),
        st.tuples(st.sampled_from("ias"), inner).map(lambda p: f"(?{p[0]}:{p[1]})"),
        inner.map(lambda p: f"(?P<n>{p})".replace("(?P<n>", "(?:", p.count("(?P<n>"))),
    )


patterns = st.recursive(
    st.one_of(atoms, st.tuples(atoms, repeats).map("".join)), grow, max_leaves=6
)
flags = st.sampled_from(["", "(?i)", "(?a)", "(?s)", "(?ai)", "(?is)"])
texts = st.one_of(st.text(st.sampled_from(CHARACTERS), max_size=6), st.text(max_size=4))


def valid(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def compiled(pattern: str) -> RegexConstraint | None:
    """The constraint; None for a pattern that nothing matches."""
    try:
        return regex(pattern)
    except ConfigError as error:
        if "no text at all" in str(error):
            return None
        raise


@settings(max_examples=250, deadline=None)
@given(st.tuples(flags, patterns).map("".join), st.lists(texts, min_size=1, max_size=12))
def test_it_accepts_what_re_accepts(pattern: str, samples: list[str]) -> None:
    assume(valid(pattern))
    constraint = compiled(pattern)
    for text in samples:
        accepted = constraint is not None and constraint.accepts(text)
        assert accepted == bool(re.fullmatch(pattern, text)), (pattern, text)


@settings(max_examples=100, deadline=None)
@given(st.tuples(flags, patterns).map("".join), st.integers(0, 12), st.integers(0, 2**32))
def test_every_walk_ends_in_a_match(pattern: str, spare: int, seed: int) -> None:
    assume(valid(pattern))
    constraint = compiled(pattern)
    assume(constraint is not None)
    chance = blt_walks.uniform(np.random.default_rng(seed))
    budget = constraint.shortest + spare
    for choose in (chance, blt_walks.lowest, blt_walks.highest, blt_walks.farthest):
        written = blt_walks.walk(constraint, choose, budget)
        assert len(written) <= budget
        assert re.fullmatch(pattern, written.decode("utf-8")), (pattern, written)
    with pytest.raises(ConfigError, match=f"has {constraint.shortest} bytes"):
        constraint.check_budget(constraint.shortest - 1)


def test_every_character_falls_in_the_right_class() -> None:
    everything = [chr(c) for c in range(sys.maxunicode + 1) if not 0xD800 <= c <= 0xDFFF]
    sample = everything[:0x500] + everything[0x500::97]
    for pattern in (r"\w", r"\d", r"\s", ".", r"(?i)[a-zµσ]", r"(?a)\W", r"(?i)[^k]", r"(?i)[\W]"):
        constraint = regex(pattern)
        wrong = [c for c in sample if constraint.accepts(c) != bool(re.fullmatch(pattern, c))]
        assert wrong == [], pattern


def test_every_cased_character_matches_the_same_others() -> None:
    cased = [chr(c) for c in range(sys.maxunicode + 1) if chr(c).lower() != chr(c).upper()]
    together = "".join(c for c in cased if not "\ud800" <= c <= "\udfff")
    for character in together[::23] + "sSkKµÅςσiIİıſtﬆ":
        constraint = regex(f"(?i){re.escape(character)}")
        expected = re.findall(re.escape(character), together, re.IGNORECASE)
        assert [c for c in together if constraint.accepts(c)] == expected


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("^ab$", ["ab"], ["a", "ab\n", "xab"]),
        (r"\Aab\Z", ["ab"], ["ab\n"]),
        ("^a|b$", ["a", "b"], ["ab"]),
        ("(^a|b)c", ["ac", "bc"], ["c"]),
        ("a(?:b|$)", ["a", "ab"], ["b"]),
        ("(?i:a)b", ["ab", "Ab"], ["aB"]),
        ("(?P<year>[0-9]{4})", ["2024"], ["24"]),
        ("a{2}(?#twice)", ["aa"], ["a"]),
        ("a(?#one)*", ["", "aa"], ["b"]),
        ("", [""], ["a"]),
        ("(?:(?:){1000000000}){1000000000}b", ["b"], ["a"]),
        ("x{}", ["x{}"], ["x"]),
        (r"\/\-\é", ["/-é"], ["-"]),
    ],
)
def test_syntax(pattern: str, yes: list[str], no: list[str]) -> None:
    constraint = regex(pattern)
    assert [constraint.accepts(text) for text in yes] == [True] * len(yes)
    assert [constraint.accepts(text) for text in no] == [False] * len(no)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        (r"\bword", r"word boundary \\b"),
        (r"a\B", r"word boundary \\B"),
        (r"(a)\1", "back-reference"),
        (r"(?P<n>a)(?P=n)", "back-references"),
        ("(?=a)a", "look-ahead"),
        ("(?!a)b", "negative look-ahead"),
        ("(?<=a)b", "look-behind"),
        ("(?<!a)b", "negative look-behind"),
        ("(a)?(?(1)b|c)", "conditional"),
        ("(?>a)b", "atomic"),
        ("a++", "possessive"),
        ("(?m)^a", r"flag \(\?m\)"),
        ("(?x)a b", r"flag \(\?x\)"),
        ("a^b", r"\^ can only stand at the ends"),
        ("(?:a$)*", r"\$ can only stand at the ends"),
        ("(?:^)*a", "a repeated anchor"),
        ("[", "not a valid regular expression"),
        (r"\p{L}", "not a valid regular expression"),
        (r"[^\s\S]", "no text at all matches"),
        ("(a|b)*a(a|b){20}", "more than 10000 states"),
        ("(?:(?:a{1000}){1000}){1000}", "too large"),
        ("(" * 2000 + "a" + ")" * 2000, "nested too deeply|not a valid"),
    ],
)
def test_what_is_refused_is_named(pattern: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        regex(pattern)


def test_a_pattern_must_be_text() -> None:
    with pytest.raises(ConfigError, match="a pattern is a str, not bytes"):
        regex(b"a")  # type: ignore[arg-type]


def test_the_automaton_is_minimal() -> None:
    """Known sizes: a trie and a loop per state that no two texts could share."""
    assert len(regex("(a|b)*abb").table) == 4
    assert len(regex("abc|abd|bbc|bbd").table) == 4
    assert len(regex("[a-z]{0,1000}").table) == 1001
    assert len(regex("a{3}|a{5}").table) == 6
    assert len(regex("(?:a*)*").table) == 1
    # One character in UTF-8: the start, the match and six places inside two to four bytes.
    assert len(regex("(?s).").table) == 9


def test_masks_in_a_batch_are_those_of_single_states() -> None:
    constraint = regex(r"(?:ab|é)+c?")
    states = [constraint.start()]
    for byte in "abécab".encode():
        try:
            states.append(constraint.advance(states[-1], byte + OFFSET))
        except GenerationError:
            break
    batch = constraint.allowed_batch(states, [9, None, 4, 5, 1, 7][: len(states)])
    alone = [
        constraint.allowed_within(s, b) for s, b in zip(states, [9, None, 4, 5, 1, 7], strict=False)
    ]
    assert np.array_equal(batch, np.stack(alone))
    assert constraint.allowed(0).nonzero()[0].tolist() == [ord("a") + 4, 0xC3 + 4]


def test_the_budget_closes_ways_that_are_too_long() -> None:
    constraint = regex("a|bcd|bcdefg")
    start = constraint.start()
    assert [chr(i - 4) for i in np.flatnonzero(constraint.allowed_within(start, 1))] == ["a"]
    assert [chr(i - 4) for i in np.flatnonzero(constraint.allowed_within(start, 3))] == ["a", "b"]
    after = constraint.advance(start, ord("b") + OFFSET)
    with pytest.raises(ConfigError, match="row 0 may write 1 more bytes and needs at least 2"):
        constraint.allowed_within(after, 1)


def test_states_and_constraints_are_values() -> None:
    constraint = pickle.loads(pickle.dumps(regex("[a-c]+é")))
    first = constraint.advance(constraint.start(), ord("a") + OFFSET)
    constraint.advance(first, ord("b") + OFFSET)
    again = constraint.advance(pickle.loads(pickle.dumps(constraint.start())), ord("a") + OFFSET)
    assert first == again
    assert hash(first) == hash(again)


def test_after_the_end_only_the_end_follows() -> None:
    constraint = regex("a*")
    ended = constraint.advance(constraint.start(), EOS)
    assert np.flatnonzero(constraint.allowed(ended)).tolist() == [EOS]
    assert constraint.advance(ended, EOS) == ended
    with pytest.raises(GenerationError, match="byte 0x61 is not allowed"):
        constraint.advance(ended, ord("a") + OFFSET)


@pytest.mark.parametrize("next_id", [0, 1, 3, EOS, 260, -1, ord("b") + OFFSET])
def test_an_id_that_is_not_allowed_is_refused(next_id: int) -> None:
    constraint = regex("a")
    with pytest.raises(GenerationError, match="not allowed"):
        constraint.advance(constraint.start(), next_id)


def test_forced_bytes_are_those_without_a_choice() -> None:
    constraint = regex("name: (?:Ada|Alan)!")
    assert constraint.forced(constraint.start()) == b"name: A"
    assert constraint.forced(constraint.start(), budget=10) == b"name: Ada!"
    assert constraint.forced(constraint.start(), limit=3) == b"nam"


@settings(max_examples=60, deadline=None)
@given(patterns, patterns, st.lists(texts, min_size=1, max_size=12))
def test_products_are_both_and_only_the_first(one: str, other: str, samples: list[str]) -> None:
    assume(valid(one) and valid(other))
    left, right = (compile_dfa(full_match(parse(p), p)) for p in (one, other))
    both, first = intersection(left, right), difference(left, right)
    for text in samples:
        here, there = bool(re.fullmatch(one, text)), bool(re.fullmatch(other, text))
        assert both.matches(text.encode()) == (here and there)
        assert first.matches(text.encode()) == (here and not there)
    assert difference(left, left).empty
    with pytest.raises(ConfigError, match="more than 3 states"):
        intersection(*[compile_dfa(full_match(parse("a{9}"), ""))] * 2, limit=3)
