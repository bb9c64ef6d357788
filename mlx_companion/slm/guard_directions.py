"""Is a marked piece a stage direction? A small trained head over its grammar and its place.

No list holds every verb, and none is needed: "*zips the tent shut* Good night." is an action by
where it stands and how it is built, "It *zips* shut." is none. The head is logistic regression
over hashed features of both: the classes and endings of the words, the marks, what stands on
either side, and what the rules of `guard_stage` say of it::

    head = DirectionHead.of_pack(pack)
    head.decides(piece, stage, ruled=False)       # True: an action that no rule knows

`ruled` is the verdict of the rules. The head has to be surer to overrule a "no" than to keep a
"yes". The same piece always gets the same verdict.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

from mlx_companion.personality.lexicon import is_word
from mlx_companion.slm.guard_marked import INTERJECTIONS, Piece
from mlx_companion.slm.guard_stage import Stage, is_adverb, verb_form
from mlx_companion.slm.linear import LinearHead
from mlx_companion.slm.ngrams import NGramConfig, NGrams
from mlx_companion.slm.packs import Pack

ARRAYS = "direction"
_CLASSES = {
    "det": "the a an this that these those some another each every no any",
    "own": "my your his her its our their",
    "pron": "i you he she it we they me him us them everyone someone nobody everybody",
    "prep": "in on at of to into onto over under from with without by for through across against "
    "around behind beside between towards toward past off down up out back away along like as",
    "conj": "and or but nor so yet because while when if although though before after until",
    "wh": "what why how who where which whose",
    "aux": "is are was were be been am has have had do does did can could will would shall should "
    "may might must isn't aren't don't doesn't can't won't it's that's i'm you're i'll i've",
    "deg": "not never always only very too so really just even still almost also again now then "
    "more most less much",
    "num": "one two three four five six seven eight nine ten twelve twenty hundred",
}
_CLASS_OF = {word: name for name, words in _CLASSES.items() for word in words.split()}
# A game is played: what is told beside it is a scene, whatever its marks.
_PLAYED = re.compile(
    r"\b(?:what (?:do|will) you do|what now|who moves|roll (?:for|a|an|initiative)"
    r"|your (?:move|turn)|\d* ?HP|DC \d|d20|make an? \w+ (?:check|save)"
    r"|(?-i:You) (?:hear|see|hold|step|enter|wake|stand|reach|find yourself))\b"
    r"|\b(?:left|right|north|south|up|down|stairs?|doors?|fight|stay|follow|in|first|ledger|map)"
    r",? or [^.?!\n]{2,20}\?",
    re.IGNORECASE,
)
_LONGEST = 12
_CLIP = 4
_BRACKETED = 1.5
# So many features are remembered with their weights.
_KEPT = 20_000
_BRACKETED_MOVE = 0.0


@dataclass(frozen=True)
class DirectionHead:
    """The trained part.

    Attributes:
        features: hashes the names of features.
        head: their weights.
        keep: logit at and above which a piece that the rules call an action stays one.
        overrule: logit at and above which a piece is one that they do not.
    """

    features: NGrams
    head: LinearHead
    keep: float
    overrule: float
    _known: dict[str, tuple[int, float]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of_pack(cls, pack: Pack) -> DirectionHead | None:
        """The head of a pack; None when it holds none.

        Raises:
            SLMError: its arrays do not fit.
        """
        settings = pack.settings.get(ARRAYS)
        if not settings:
            return None
        return cls(
            NGrams(NGramConfig(**settings["ngrams"])),
            LinearHead.from_arrays(pack.arrays, ARRAYS),
            float(settings["keep"]),
            float(settings["overrule"]),
        )

    def logit(self, piece: Piece, stage: Stage, ruled: bool) -> float:
        """How much speaks for an action."""
        counts = Counter(map(self._weighed, features_text(piece, stage, ruled).split()))
        # What `NGrams.row` gives, name by name: most names come again and again.
        values = [(1 + math.log(count), weight) for (_, weight), count in counts.items()]
        length = math.sqrt(sum(value * value for value, _ in values))
        said = sum(value * weight for value, weight in values)
        return said / length + float(self.head.bias[0])

    def _weighed(self, name: str) -> tuple[int, float]:
        """The column of a feature and its weight there."""
        known = self._known.get(name)
        if known is None:
            column = int(self.features.row(name)[0][0])
            known = column, float(self.head.weights[0][column, 0])
            if len(self._known) < _KEPT:
                self._known[name] = known
        return known

    def decides(self, piece: Piece, stage: Stage, ruled: bool, surer: float = 0.0) -> bool:
        """Tell whether a piece is an action.

        Args:
            piece: with at least one word.
            stage: its words.
            ruled: what the rules say.
            surer: how much more has to speak for it, in logits.
        """
        least = surer + (self.keep if ruled else self.overrule)
        # Brackets hold remarks far more often than actions.
        if piece.mark in ("(", "["):
            # "(leans closer)" is too short for a remark.
            plain = ruled and len(stage.words) < 4 and stage.complement()
            least += _BRACKETED_MOVE if plain else _BRACKETED
        return self.logit(piece, stage, ruled) >= least


def features_text(piece: Piece, stage: Stage, ruled: bool) -> str:
    """The names of the features of a piece, as words of one text, for `NGrams`."""
    return " ".join(_names(piece, stage, ruled)).replace("-", "q").casefold()


def _names(piece: Piece, stage: Stage, ruled: bool) -> Iterator[str]:
    words = [word.replace("'", "") for word in piece.words[:_LONGEST]]
    kinds = [word_class(word) for word in piece.words[:_LONGEST]]
    place = _place_names(piece)
    case = _case(piece)
    long = _length(len(piece.words))
    rule = "ruled" if ruled else "unruled"
    yield from _of_words(words, kinds)
    yield from (f"long{long}", f"case{case}", f"mark{_MARKS.get(piece.mark, 'x')}", *place)
    ends = piece.content.rstrip("*_ ")[-1:]
    yield from (f"end{'ask' if ends == '?' else _sign(ends)}", rule)
    left, right = place[:2]
    head = word_class(stage.head[0])
    second = kinds[1] if len(kinds) > 1 else "none"
    told = [name for name, test in _TESTS.items() if test(stage)]
    yield from told
    if piece.draft.holds_near(_PLAYED, 0, len(piece.draft.text)):
        yield from ("played", f"played{case}", f"played{_MARKS.get(piece.mark, 'x')}")
    yield f"{place[-1]}{head}"
    yield from (f"{left}{right}{one}" for one in (case, kinds[0], f"long{long}", rule, *told))
    yield from (f"{left}{right}{case}{one}" for one in (kinds[0], head, place[2], f"long{long}"))
    yield from (f"{head}{second}{case}", f"{head}{second}{right}", f"{head}{long}{right}{case}")
    yield from (f"{head}{rule}{right}", f"mark{_MARKS.get(piece.mark, 'x')}{case}{right}")


def _of_words(words: list[str], kinds: list[str]) -> Iterator[str]:
    first, last = words[0], words[-1]
    yield from (f"first{first}", f"last{last}", f"ends{first[-2:]}", f"ends{first[-3:]}")
    yield from (f"word{word}" for word in words)
    yield from (f"two{a}q{b}" for a, b in pairwise(words))
    yield f"shape{'q'.join(kinds[:_CLIP])}"
    yield f"shape{'q'.join(kinds[:3])}of"
    yield from (f"at{at}{kind}" for at, kind in enumerate(kinds[:_CLIP]))
    yield f"lastkind{kinds[-1]}"
    if len(set(words)) < len(words) and len(words[0]) > 2 and words.count(words[0]) > 1:
        yield "repeats"


_MARKS = {"*": "one", "**": "two", "***": "three", "(": "round"}
_MARKS |= {"[": "square", "\\*": "one", "~": "wave", "* ": "apart"}
_TESTS = {
    "narrates": lambda stage: stage.narrates(),
    "captions": lambda stage: stage.captions(),
    "bodily": lambda stage: stage.touches_body(),
    "complements": lambda stage: stage.complement(),
    "expressive": lambda stage: stage.head[0] in stage.rules.forms["expressive"],
    "sounds": lambda stage: stage.sound(),
    "digits": lambda stage: not stage.bare,
}
_SIGNS = {"": "nothing", ",": "comma", ";": "semi", ":": "colon", ")": "closed", "(": "opened"}
_SIGNS |= dict.fromkeys('"\u201d\u201c', "quote") | dict.fromkeys("\u2014\u2013-", "dash")
_SIGNS |= dict.fromkeys(".!?\u2026", "stop") | dict.fromkeys("*_~", "mark")


def _sign(character: str) -> str:
    if character.isalpha():
        return "big" if character.isupper() else "small"
    return "digit" if character.isdigit() else _SIGNS.get(character, "other")


def _place_names(piece: Piece) -> tuple[str, ...]:
    place = piece.place
    left = _sign(place.left[-1:])
    left = "heard" if left in ("small", "big") and place.previous in INTERJECTIONS else left
    left = "small" if left == "big" else left
    right = _sign(place.right[:1])
    alone = piece.draft.starts_at(piece.start) and piece.draft.ends_at(piece.end)
    previous, following = word_class(place.previous), word_class(place.following)
    return (
        f"l{left}",
        f"r{right}",
        f"n{following}",
        f"p{previous}",
        f"listed{int(place.listed)}",
        f"alone{int(alone)}",
        f"before{place.previous.replace(chr(39), '')}",
        f"next{place.following.replace(chr(39), '')}",
        f"l{left}p{previous}",
        f"r{right}n{following}",
        f"q{_before_that(piece)}p{previous}",
    )


def _before_that(piece: Piece) -> str:
    """The class of the word before the last one: "the" of "the cyclist *nods*"."""
    words = piece.draft.words_before(piece.start, 2)
    return word_class(words[0]) if len(words) > 1 else "none"


def _case(piece: Piece) -> str:
    letters = [one for one in piece.content if one.isalpha()]
    if not letters[0].isupper():
        return "low"
    words = piece.content.split()
    big = [word for word in words if word.lstrip("'\"([")[:1].isupper()]
    if len(words) > 1 and all(one.isupper() for one in letters):
        return "shout"
    return "title" if len(words) > 1 and 3 * len(big) > 2 * len(words) else "cap"


def _length(count: int) -> str:
    return (
        ("zero", "one", "two", "few", "few", "some", "some", "some")[count] if count < 8 else "many"
    )


@lru_cache(maxsize=4096)
def word_class(word: str) -> str:
    """A rough part of speech of a word in lower case, by lists of small words and by its ending."""
    if not word:
        return "none"
    if word in _CLASS_OF:
        return _CLASS_OF[word]
    last = word.rpartition("-")[2] or word
    if is_adverb(last):
        return "adv"
    known = is_word(last)
    if last.endswith("s") and not last.endswith(("ss", "us", "is")):
        return "verbs" if verb_form(last) else ("words" if known else "newsq")
    for ending, name in (("ing", "ing"), ("ed", "ed")):
        if last.endswith(ending) and len(last) > 4:
            return name
    stem = last.removesuffix("e")
    if known and is_word(stem + "ing"):
        return "verb"
    return "word" if known else "new"
