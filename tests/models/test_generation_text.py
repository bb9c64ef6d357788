"""Tokens to text while they arrive: whole characters only, and never a part of a stop."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import CORPUS, tiny_llama

from mlx_companion.models.load import load
from mlx_companion.models.reply_text import ReplyText

END = -1
# Two letters only, so that stops begin, break off and straddle pieces all the time.
PIECES = st.lists(st.text("ab", max_size=4), max_size=12)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load(tiny_llama(tmp_path_factory.mktemp("llama"))).tokenizer


class FakeDetokenizer:
    """Token i is the i-th piece; the last `late` pieces are kept back until more arrive."""

    def __init__(self, pieces, late):
        self.pieces, self.late = pieces, late
        self.seen, self.offset, self.closed = "", 0, False
        self.tokens = []

    def add_token(self, token):
        self.tokens.append(token)

    def finalize(self):
        self.closed = True

    @property
    def last_segment(self):
        ready = len(self.tokens) if self.closed else max(0, len(self.tokens) - self.late)
        text = "".join(self.pieces[token] for token in self.tokens[:ready])
        segment, self.offset = text[self.offset :], len(text)
        return segment


def fake_text_out(pieces, stops, late=0):
    tokenizer = SimpleNamespace(eos_token_ids={END}, detokenizer=FakeDetokenizer(pieces, late))
    return ReplyText(SimpleNamespace(tokenizer=tokenizer), stops)


def fed(text, tokens):
    """All pieces that a text-out gives for these tokens, its last one included."""
    given_out = [text.add(token) for token in tokens]
    return [*given_out, text.close()]


def cut_by_hand(pieces, stops):
    """The text before the first stop that is complete, piece by piece, and whether there is one."""
    text = ""
    for piece in pieces:
        text += piece
        if places := [text.find(stop) for stop in stops if stop in text]:
            return text[: min(places)], True
    return text, False


@given(PIECES, STOPS, st.integers(0, 2), st.booleans())
def test_stops_that_straddle_tokens(pieces, stops, late, ended):
    text = fake_text_out(pieces, stops, late)
    out = fed(text, [*range(len(pieces)), *([END] if ended else [])])
    # Pieces that are kept back arrive with later tokens, the last of them all at once.
    kept = max(0, len(pieces) - late)
    expected, stopped = cut_by_hand([*pieces[:kept], "".join(pieces[kept:])], stops)
    assert "".join(out) == expected
    reply = text.reply(7)
    assert reply.text == expected.strip()
    assert reply.finish_reason == ("stop" if stopped or ended else "length")
    assert not any(stop in reply.text for stop in stops)


@given(PIECES, STOPS)
def test_what_is_held_back_is_no_more_than_the_beginning_of_a_stop(pieces, stops):
    text, given_out, so_far = fake_text_out(pieces, stops), "", ""
    for token, piece in enumerate(pieces):
        given_out += text.add(token)
        so_far += piece
        if text.finished:
            break
        held = so_far[len(given_out) :]
        assert so_far.startswith(given_out)
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)
        assert not any(
            given_out.endswith(stop[:n]) and stop.startswith(stop[:n] + held)
            for stop in stops
            for n in range(1, len(stop) - len(held))
        )


def test_nothing_follows_an_end():
    text = fake_text_out(["a", "b", "c"], [])
    assert [text.add(0), text.add(END), text.add(1)] == ["a", "", ""]
    assert text.close() == ""
    assert text.reply(1).tokens == (0,)


def test_what_a_detokenizer_holds_after_a_stop_is_dropped():
    text = fake_text_out(["one STOP", " two"], ["STOP"], late=1)
    assert fed(text, [0, 1]) == ["", "one ", ""]
    assert text.reply(1).text == "one"


def test_stops_with_two_ways_to_begin():
    text = fake_text_out(["a", "a", "b", "x"], ["aab", "abx"])
    assert fed(text, [0, 1, 2]) == ["", "", "", ""]
    text = fake_text_out(["a", "b", "b", "x"], ["aab", "bx"])
    assert fed(text, [0, 1, 2, 3]) == ["", "a", "b", "", ""]


# mlx-lm's decoder shows byte 0 as another character.
CHARACTERS = st.characters(codec="utf-8", exclude_characters="\0")


@given(st.text(CHARACTERS, min_size=1, max_size=12))
def test_characters_come_out_whole(tokenizer, said):
    pieces = []
    text = ReplyText(SimpleNamespace(tokenizer=tokenizer), [])
    for character in said:
        tokens = tokenizer.encode(character, add_special_tokens=False)
        pieces.append([text.add(token) for token in tokens])
    rest = text.close()
    joined = "".join(piece for row in pieces for piece in row) + rest
    # The tokenizer's decoder drops one space before a reply's first word.
    assert joined in (said, said.removeprefix(" "))
    for character, row in zip(said, pieces, strict=True):
        if len(row) > 1 and ord(character) > 127:
            assert row[:-1] == [""] * (len(row) - 1), "half a character was given out"


def test_bytes_that_are_no_text_are_replaced_once(tokenizer):
    text = ReplyText(SimpleNamespace(tokenizer=tokenizer), [])
    first_half = tokenizer.encode("\u4f60", add_special_tokens=False)[0]
    tokens = [first_half, *tokenizer.encode("warm", add_special_tokens=False), first_half]
    assert "".join(fed(text, tokens)) == "\ufffdwarm\ufffd"
    assert tokenizer.decode(tokens) == "\ufffdwarm\ufffd"


def test_a_stop_of_several_bytes_and_tokens(tokenizer):
    for stop in ("\U0001f600", "\u4f60\u597d", "river had", "\n\n"):
        said = f"{CORPUS[0]} {stop} {CORPUS[1]}"
        tokens = tokenizer.encode(said, add_special_tokens=False)
        text = ReplyText(SimpleNamespace(tokenizer=tokenizer), [stop])
        assert "".join(fed(text, tokens)) == f"{CORPUS[0]} "
        assert text.finished
        assert len(text.reply(1).tokens) < len(tokens)
