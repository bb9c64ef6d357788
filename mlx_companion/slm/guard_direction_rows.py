"""Replies with one marked piece and its label, to train the head of stage directions on.

Both classes are set into the same sentences and marks, so that neither is the label: actions from
patterns, and from the verbs of novels ("He unlaced his boots" gives "unlaces his boots"), so that
the verbs are open; emphasis, titles, terms, captions, imperatives, remarks in brackets and words
that are talked about on the other side. The lists are in `data/guard_training/directions.yaml`::

    rows = direction_rows(sentences, narrated(pages), count=6000, seed=7)
    rows[0].text, rows[0].start, rows[0].label, rows[0].source

`source` is the same for pieces that came from one pattern or line, for folds.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from mlx_companion.personality.lexicon import is_word
from mlx_companion.slm.guard_directions import word_class
from mlx_companion.slm.guard_text import third_person

_SLOT = re.compile(r"\{(\w+)\}")
_PASTS = """
    took take sat sit stood stand ran run shook shake held hold laid lay came come went go
    rose rise fell fall threw throw drew draw spun spin bent bend wept weep swung swing gave
    give put put drank drink knelt kneel slid slide crept creep broke break spoke speak felt
    feel caught catch sang sing bit bite woke wake hid hide made make got get left leave found
    find heard hear kept keep let let lit light met meet read read said say sent send set set
    shut shut stole steal struck strike swore swear tore tear told tell turned turn wore wear
    wrote write flew fly blew blow brought bring bought buy ate eat grew grow hung hang leapt
    leap lost lose paid pay rode ride sought seek shot shoot sprang spring stuck stick swept
    sweep swam swim trod tread
"""
_PRESENT = dict(zip(_PASTS.split()[::2], _PASTS.split()[1::2], strict=True))
_NARRATED = re.compile(
    r"(?<=[.!?\u201d] )(?:He|She|They|I|[A-Z][a-z]+) ((?:[a-z]+ly )?)([a-z]+)"
    r"((?: [a-z-]+){0,7})(?=[.,;])"
)
_SCENE = re.compile(
    r"(?<=[.!?\u201d] )((?:The|A|His|Her) (?:[a-z]+ ){1,2})([a-z]+)((?: [a-z-]+){0,5})(?=[.,;])"
)
_ALL_MARKS = (70, 8, 2, 9, 6, 5)
_PLAYED_MARKS = (64, 22, 2, 9, 2, 1)
_EMPHASIS = (70, 16, 2, 12, 0, 0)


@dataclass(frozen=True)
class Row:
    """A reply, where its marked piece starts, and whether that is an action."""

    text: str
    start: int
    label: bool
    source: str


def present(word: str) -> str | None:
    """The third person of a past form: "unlaced" -> "unlaces"; None for no past form."""
    if word in _PRESENT:
        return third_person(_PRESENT[word])
    if not word.endswith("ed") or len(word) < 5:
        return None
    doubled = [word[:-3]] if word[-3] == word[-4] else []
    stems = [word[:-3] + "y"] if word.endswith("ied") else [*doubled, word[:-1], word[:-2]]
    known = [stem for stem in stems if is_word(stem)]
    likely = [stem for stem in known if is_word(third_person(stem))]
    return third_person((likely or known)[0]) if known else None


def narrated(pages: Iterable[str]) -> list[str]:
    """What people and things do in novels, in the third person of the present."""
    found = set()
    for page in pages:
        flat = " ".join(page.split())
        for pattern in (_NARRATED, _SCENE):
            for match in pattern.finditer(flat):
                first = match[1].lower() if pattern is _SCENE else match[1]
                said = first + match[2] + _AND.sub(_joined, match[3])
                verb = present(match[2])
                if verb and not _UNLIKELY.search(said):
                    found.add(said.replace(match[2], verb, 1))
    return sorted(found)


_AND = re.compile(r" (and|then) ([a-z]+)")
_UNLIKELY = re.compile(r"\b(?:had|was|were|did|said|that|would|could|should|she|he|they)\b")


def _joined(found: re.Match[str]) -> str:
    return f" {found[1]} {present(found[2]) or found[2]}"


def direction_rows(
    sentences: Sequence[str], verbs: Sequence[str], count: int, seed: int
) -> list[Row]:
    """Rows of both classes.

    Args:
        sentences: ordinary ones, to set the pieces into.
        verbs: from `narrated`; may be empty.
        count: rows of each class.
        seed: of every choice.
    """
    kept = [one for one in map(_sentence, sentences) if one]
    maker = _Maker(kept, list(verbs), random.Random(seed))
    return [maker.action() for _ in range(count)] + [maker.other() for _ in range(count)]


def _sentence(text: str) -> str:
    """One plain sentence that marks can be put into; empty when it is none."""
    plain = " ".join(re.sub(r"\[[A-Z]+\]", "Sam", text).split())
    if re.search(r"[*_~()\[\]`<>|@{}\"\u201c\u201d]", plain) or not 12 < len(plain) < 140:
        return ""
    plain = plain[0].upper() + plain[1:]
    return plain if plain[-1] in ".!?" else plain + "."


class _Maker:
    """Draws rows; `others` are the ways to mark something that is no action."""

    def __init__(self, sentences: list[str], verbs: list[str], rng: random.Random) -> None:
        source = resources.files("mlx_companion.slm") / "data" / "guard_training"
        tree = yaml.safe_load((source / "directions.yaml").read_text(encoding="utf-8"))
        self.slots: dict[str, list[str]] = tree.pop("slots")
        self.frames: dict[str, dict[str, int]] = tree.pop("frames")
        self.lists: dict[str, list[str]] = {name: _flat(one) for name, one in tree.items()}
        self.sentences, self.verbs, self.rng = sentences, verbs, rng
        self.others: dict[Callable[[], Row], int] = {
            self._emphasis: 34, self._opening: 8, self._caption: 14, self._statement: 10,
            self._title: 7, self._term: 7, self._mention: 4, self._told: 11, self._noun: 4,
            self._imperative: 5, self._item: 4, self._aside: 9, self._whole: 3,
        }  # fmt: skip

    def action(self) -> Row:
        """An action in a place of its own, or within a sentence."""
        phrase, source = self._phrase()
        frame = self._frame("action")
        inside = any(part in frame for part in ("{c}", "{p}"))
        if inside and not phrase.split()[0].endswith(("s", "ing")):
            frame, inside = "@ {s}", False
        split = self._chance(0.11) and phrase.split()[0].endswith("s")
        if split:
            words = self._said().rstrip(".!?").split()
            at = self._gap(words)
            frame, inside = f"{' '.join(words[:at])} @ {' '.join(words[at:])}".strip(), True
        said = phrase if inside else self._cased(phrase)
        marks = (1, 0, 0, 0, 0, 0) if split else _PLAYED_MARKS if "{play}" in frame else _ALL_MARKS
        return self._row(frame, self._mark(said, marks), source)

    def _gap(self, words: list[str]) -> int:
        """Where an action may interrupt: not after what could be its subject, mostly."""
        kinds = [word_class(word.lower().strip(",;:'")) for word in words]
        gaps = [at for at, kind in enumerate(kinds, 1) if kind in _NO_SUBJECT]
        return (
            self.rng.choice(gaps) if gaps and self._chance(0.8) else self.rng.randint(1, len(words))
        )

    def _phrase(self) -> tuple[str, str]:
        kind = self.rng.random()
        if kind < 0.3 and self.verbs:
            phrase = self.rng.choice(self.verbs)
            return phrase, f"verb {phrase.split()[0]}"
        if kind < 0.7:
            pattern = self._entry("actions")
            return self._fill(pattern), f"pattern {pattern}"
        phrase = self._entry("phrases" if kind < 0.86 else "lone")
        return phrase, f"phrase {phrase}"

    def other(self) -> Row:
        """Something marked that is no action."""
        return self.rng.choices(list(self.others), list(self.others.values()))[0]()

    def _emphasis(self) -> Row:
        words = self._said().split()
        at = self.rng.randrange(min(1, len(words) - 1), len(words))
        long = self.rng.choices((1, 2, 3, 4), (70, 18, 8, 4))[0]
        piece = " ".join(words[at : at + long])
        bare = piece.rstrip(".!?,;:")
        rest = " ".join(words[at + long :])
        marked = self._mark(bare or piece, _EMPHASIS) + (piece[len(bare) :] if bare else "")
        left = f"{self._said()} " * self._chance(0.3) + " ".join([*words[:at], "@"])
        right = f" {rest}" * bool(rest) + f" {self._said()}" * self._chance(0.3)
        return self._row(left + right, marked, f"emphasis {words[at]}")

    def _opening(self) -> Row:
        if self._chance(0.5):
            first, rest = self._entry("openers"), self._small()
            comma = "," * self._chance(0.3)
        else:
            first, _, rest = self._said().partition(" ")
            comma = first[len(first.rstrip(",;:")) :]
            first = first.rstrip(",;:.!?") or "So"
        before = f"{self._said()} " * self._chance(0.4)
        return self._row(f"{before}@{comma} {rest}", self._mark(first, _EMPHASIS), f"open {first}")

    def _caption(self) -> Row:
        return self._own("captions", (40, 30, 2, 20, 8, 0), small=0.15)

    def _statement(self) -> Row:
        return self._own("statements", (45, 40, 2, 13, 0, 0), small=0.04)

    def _whole(self) -> Row:
        said = self._said()
        return self._row(self._frame("own"), self._mark(said, _EMPHASIS), f"whole {said}")

    def _own(self, name: str, marks: Sequence[float], small: float) -> Row:
        said = self._fill(self._entry(name))
        said = said[0].upper() + said[1:]
        text = said[0].lower() + said[1:] if self._chance(small) else said
        marked = self._mark(text + "." * self._chance(0.4), marks)
        return self._row(self._frame("own"), marked, f"{name} {said}")

    def _title(self) -> Row:
        title = self._entry("titles")
        return self._row(self._frame("title"), self._mark(title, _EMPHASIS), f"title {title}")

    def _term(self) -> Row:
        term = self._entry("terms")
        said = term[0].upper() + term[1:] if self._chance(0.25) else term
        return self._row(self._frame("term"), self._mark(said, _EMPHASIS), f"term {term}")

    def _mention(self) -> Row:
        said = self._entry("mentions").replace("X", "@").replace("*@*", "@")
        what = self._slot("thirds") if self._chance(0.6) or not self.verbs else self._verb()
        frame = f"{said} {self._entry('rest')}."
        return self._row(frame, self._mark(what, (80, 8, 0, 12, 0, 0)), f"mention {what}")

    def _told(self) -> Row:
        """ "The dog *barks* at night": the verb of a sentence."""
        phrase = self._verb() if self.verbs else self._fill("{verbs} {what}")
        verb, _, rest = phrase.partition(" ")
        goes, marked = (f" {rest}" if rest else ""), verb
        if self._chance(0.4):
            goes, marked = "", phrase
        before = f"{self._said()} " * self._chance(0.3) + f"{self._said()[:-1]}, " * self._chance(
            0.2
        )
        frame = f"{before}{self._entry('doers')} @{goes}. " + "{s}" * self._chance(0.4)
        return self._row(frame.strip(), self._mark(marked, _EMPHASIS), f"told {verb}")

    def _noun(self) -> Row:
        """ "*Yawning* is contagious", "*Sighs* are longer than breaths"."""
        acts = self._slot("acts") if self._chance(0.6) else self._slot("thirds")
        said = acts[0].upper() + acts[1:]
        frame = f"@ {self._entry('glosses')} {self._entry('rest')}."
        return self._row(frame, self._mark(said, _EMPHASIS), f"noun {acts}")

    def _imperative(self) -> Row:
        verb = self._slot("verb")
        said = verb[0].upper() + verb[1:]
        frame = self._frame("imperative").replace("{o}", f"@ {self._slot('base_object')}")
        marked = self._mark(verb if "then" in frame else said, _EMPHASIS)
        return self._row(frame, marked, f"do {verb}")

    def _item(self) -> Row:
        item = self._entry("lists")
        said = item if self._chance(0.4) else item[0].upper() + item[1:]
        return self._row(self._frame("item"), self._mark(said, _EMPHASIS), f"item {item}")

    def _aside(self) -> Row:
        said = self._fill(self._entry("asides"))
        if self._chance(0.4):
            said = self._small().rstrip(".!?")[:80]
        marked = self._mark(said, (0, 0, 0, 0, 85, 15))
        return self._row(self._frame("aside"), marked, f"aside {said}")

    def _row(self, frame: str, marked: str, source: str) -> Row:
        left, right = (self._placed(part) for part in frame.split("@", 1))
        second = self._mark(self._verb() if self.verbs else "smiles", (1, 0, 0, 0, 0, 0))
        right = right.replace("@@", second)
        if self._chance(0.1) and not re.search(r"[A-Z]", marked):
            left, right = left.lower(), right.lower()
        right = right.rstrip(".") if self._chance(0.1) else right
        kind = source.split()[0]
        return Row(f"{left}{marked}{right}", len(left), kind in _ACTION_KINDS, source)

    def _placed(self, part: str) -> str:
        parts = {"s": self._said(), "t": self._said(), "c": self._small()}
        parts |= {"p": self._said().rstrip(".!?"), "h": self._entry("heard")}
        parts |= {
            "play": self._slot("play"),
            "gloss": self._entry("glosses"),
            "rest": self._entry("rest"),
        }
        return part.format(**parts)

    def _frame(self, name: str) -> str:
        frames = self.frames[name]
        return self.rng.choices(list(frames), list(frames.values()))[0]

    def _mark(self, content: str, weights: Sequence[float]) -> str:
        pairs = (("*", "*"), ("**", "**"), ("***", "***"), ("*", "*"), ("(", ")"), ("[", "]"))
        opening, closing = self.rng.choices(pairs, weights)[0]
        return f"{opening}{content}{closing}"

    def _cased(self, phrase: str) -> str:
        if self._chance(0.72):
            return phrase + "." * self._chance(0.06)
        return phrase[0].upper() + phrase[1:] + "." * self._chance(0.5)

    def _said(self) -> str:
        return self.rng.choice(self.sentences)

    def _small(self) -> str:
        said = self._said()
        return said if said.startswith(("I ", "I'")) else said[0].lower() + said[1:]

    def _verb(self) -> str:
        return self.rng.choice(self.verbs)

    def _slot(self, name: str) -> str:
        return str(self.rng.choice(self.slots[name]))

    def _entry(self, name: str) -> str:
        return self.rng.choice(self.lists[name])

    def _fill(self, pattern: str) -> str:
        return _SLOT.sub(lambda found: self._slot(found[1]), pattern)

    def _chance(self, share: float) -> bool:
        return self.rng.random() < share


_NO_SUBJECT = frozenset(["verb", "verbs", "aux", "prep", "conj", "deg", "ed", "ing", "det", "adv"])
_ACTION_KINDS = ("verb", "pattern", "phrase")


def _flat(entries: list[Any]) -> list[str]:
    lines = [one if isinstance(one, list) else [one] for one in entries]
    return [str(entry) for line in lines for entry in line]
