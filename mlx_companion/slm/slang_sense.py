"""Which sense an ambiguous word has here: "the house is on fire" against "this song is fire".

A linear head reads the neighbours of the word: which words, of which class (a copula before, the
end of a clause after), alone and together with the term, so that what holds for all terms is
learned once and what holds for one is learned besides. Dense features say what the sentence is
about, by word vectors, and how near that is to the word's own everyday meaning::

    place = Place(tokens(text), 3, 4, "fire")
    columns = sparse_row(place)              # hashed columns
    dense = dense_row(place, table)          # (D,)

The hashing is a CRC, the same everywhere.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mlx_companion.slm.tracker_words import DIMENSIONS, Token, WordTable

COLUMNS = 1 << 15
_DENSE = 14
DENSE = _DENSE + 2 * DIMENSIONS
_CLASSES = {
    "be": "is are was were am be been being 's 're 'm i'm im it's its that's thats he's she's "
    "they're you're we're ur this's who's what's",
    "look": "look looks looked looking sound sounds sounded seems seem felt feel feels get got "
    "getting gets gotta stay smells tastes",
    "very": "so very really pretty kinda super too straight absolutely totally fucking af hella "
    "lowkey actually literally proper well freaking damn just such pure mad all quite",
    "the": "the a an this that these those some any every no another",
    "my": "my your his her our their its ya yo",
    "who": "i you he she we they it y'all yall u who bro dude everyone someone somebody people",
    "me": "me him us them",
    "prep": "of in on at for with from by about over under into onto to through during after "
    "before against between without near per",
    "and": "and or but cause because so then if when while though tho",
    "will": "will would can could should must may might gonna gon wanna do does did don't dont "
    "doesn't didn't can't cant won't i'd i'll let's lets about finna bout tryna",
    "num": "one two three four five six seven eight nine ten hundred thousand couple few",
    "call": "bro bruh dude man fam sis girl mate homie queen lol lmao haha omg",
}
_CLASS_OF = {word: kind for kind, words in _CLASSES.items() for word in words.split()}


class Place(NamedTuple):
    """A word or phrase in a text: tokens [first, last), whose dictionary form is `term`."""

    found: Sequence[Token]
    first: int
    last: int
    term: str
    text: str = ""

    @property
    def span(self) -> tuple[int, int]:
        """Its characters [start, end)."""
        return self.found[self.first].start, self.found[self.last - 1].end


def sparse_row(place: Place) -> np.ndarray:
    """Distinct hashed columns (K,) int32, ascending, of the neighbours."""
    names = {zlib.crc32(name.encode()) % COLUMNS for name in _names(place)}
    return np.array(sorted(names), dtype=np.int32)


def _names(place: Place) -> Iterator[str]:
    left, right = _side(place, -1), _side(place, 1)
    surface = "_".join(t.low for t in place.found[place.first : place.last])
    kinds = [_kind(word) for word in (left[1], left[0], right[0], right[1])]
    local = [
        f"l1={left[0]}",
        f"r1={right[0]}",
        f"l2={left[1]} {left[0]}",
        f"r2={right[0]} {right[1]}",
        f"lc={kinds[1]}",
        f"rc={kinds[2]}",
        f"llc={kinds[0]} {kinds[1]}",
        f"rrc={kinds[2]} {kinds[3]}",
        f"c2={kinds[1]}_{kinds[2]}",
        f"c3={kinds[0]} {kinds[1]}_{kinds[2]}",
    ]
    nearby = {w for w in (*left[:5], *right[:5]) if w[0] not in "<,"}
    for name in (*local, *(f"b={word}" for word in nearby), f"f={surface[-3:]}"):
        yield name
        yield f"{place.term}|{name}"
    yield f"t={place.term}"
    yield f"s={surface}"


def _side(place: Place, step: int) -> list[str]:
    """Six tokens to one side, nearest first, "<" beyond the text."""
    at = place.first - 1 if step < 0 else place.last
    found: list[str] = []
    while 0 <= at < len(place.found) and len(found) < 6:
        token = place.found[at]
        found.append(token.low if token.is_word else _mark(token.text))
        at += step
    return [*found, *["<"] * (6 - len(found))]


def _mark(text: str) -> str:
    return ",stop" if text in ".!?" else ",comma" if text in ",;:-" else ",mark"


def _kind(word: str) -> str:
    if word[0] in "<,":
        return word if word == ",comma" else "end"
    if word.isdigit() or word[0] in "$£€":
        return "num"
    return _CLASS_OF.get(word, "ly" if word.endswith("ly") else "w")


def dense_row(place: Place, table: WordTable) -> np.ndarray:
    """(DENSE,) float32: shape of the message, what it is about, likeness to the plain meaning."""
    around = [t.low for i, t in enumerate(place.found) if not place.first <= i < place.last]
    content = [w for w in around if len(w) > 2 and w not in _CLASS_OF]
    own, mean = table.vector(place.term), table.mean(content)
    near = [w for w in (*_side(place, -1)[:3], *_side(place, 1)[:3]) if w in content]
    likeness = [
        float(own @ v) for v in map(table.vector, content) if v is not None and own is not None
    ]
    target = place.found[place.first]
    left, right = _side(place, -1)[0], _side(place, 1)[0]
    shape = [
        max(likeness, default=0.0),
        float(np.mean(likeness)) if likeness else 0.0,
        float(len(likeness) > 0),
        float(own is not None),
        float(left[0] in "<," and right[0] in "<,"),
        float(left[0] in "<,"),
        float(right[0] in "<,"),
        float(target.text[:1].isupper() and left[0] not in "<,"),
        min(len(around), 30) / 30,
        float(any(t.text in "😂🤣💀😭🔥💯😤👀🙏✨💅" for t in place.found)),
        float(_CLASS_OF.get(left) == "be"),
        float(_CLASS_OF.get(left) == "very"),
        float(any(w in _CLASS_OF and _CLASS_OF[w] == "call" for w in around)),
        float(len(content)) / 10,
    ]
    return np.concatenate([shape, mean, table.mean(near)]).astype(np.float32)
