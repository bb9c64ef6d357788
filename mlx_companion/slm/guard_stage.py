"""What reads like a stage direction: "leans back", "I nod", "a long pause", "eyes wide".

`guard_actions` finds what is marked and where it stands; here only the words count::

    stage = Stage(words, "slowly closes the laptop", rules)
    stage.narrates()         # True: in a place of its own that is an action

Each way to write one is a small test over the first words: a verb of the third person, a
participle, the narrator's "I", a name and its verb, the scene, the body, a sound, a cue.
"""

from __future__ import annotations

import re
from functools import cached_property
from itertools import pairwise

from mlx_companion.personality.lexicon import is_word
from mlx_companion.slm.guard_text import GuardRules

_SUBJECTS = frozenset(["he", "she", "they", "we", "it", "and", "then", "also", "just", "both"])
_DETERMINERS = frozenset(
    ["the", "a", "an", "my", "your", "his", "her", "their", "our", "somewhere", "outside"]
)
_MANNER = frozenset(["still", "suddenly", "almost", "once", "again", "even", "now", "mentally"])
_AFTER_VERB = """
    a an the my your his her their our its up down over back forward forwards backward away out
    off around about at into in on onto to toward towards with through from for by some another
    closer nearer tea water hat one both two three along beside not yet
    dramatically and against across behind under near high low still aside again twice together
    desk book notes page cards you me him them us hard open shut very left right past nose-first
"""
_OBJECTS = frozenset(_AFTER_VERB.split())
_VERBAL_WORDS = """
    a an the my your his her their its you me him them up down over back forward away out off
    around about into onto against across behind along aside
"""
_VERBAL = frozenset(_VERBAL_WORDS.split())
_RECKONING = frozenset(
    [
        "counting",
        "including",
        "considering",
        "excluding",
        "mentioning",
        "knowing",
        "being",
        "having",
    ]
)
_TIMED = frozenset(["from", "at", "in", "on", "for", "by", "to", "after", "before"])
_AUXILIARIES = frozenset(["is", "are", "was", "were", "has", "have", "had", "been", "being"])
_OPENINGS = frozenset(["without", "not", "while", "still", "before", "after", "by", "nearly"])
_PERCEIVED = re.compile(
    r"you(?: can| could| might| almost| faintly| distantly| suddenly)* "
    r"(?:hear|feel|notice|smell|sense|spot|see) "
    r"(?:a|an|the|my|his|her|something|someone|footsteps|faint|soft|distant|muffled)\b"
    r"|you (?:find yourself|enter|awaken|wake up|step (?:in|out|on|through|over)|arrive|walk)\b"
)
_ELSEWHEN = re.compile(
    r"(?:[\w-]+ ){0,3}(?:seconds?|minutes?|hours?|days?|weeks?|months?|years?|eternity|eternities|"
    r"moments?|beats?|time) (?:later|pass(?:es)?|goes by|go by)"
    r"|(?:[\w-]+ ){0,3}(?:has )?(?:left|entered|joined) the (?:chat|room|building|call)"
)
_CUE = re.compile(r"(?:insert|cue|enter|exit|exeunt|queue|fade|cut|end|begin) [a-z]+")
_SOUND_OF = re.compile(r"(?:(?:the|a|an) )?(?:[a-z]+ ){0,2}(?:sounds?|noises?|scent|smell) of ")
_MAKES = re.compile(
    r"(?:makes|states|says|writes|draws|starts|begins|runs) (?:an?|my|the|some|to) "
    r"(?!dozen|batch|loaf|large|small|big|good|great|difference)"
)
_MANNERS = frozenset(["accent", "flourish", "nod", "shrug", "whisper", "bow", "frown", "twinkle"])
_HELPLESS = re.compile(
    r"i (?:can't|cannot|can not|couldn't) (?:help but|help|resist|stop)|i try (?:not|hard) to"
)


class Stage:
    """Words between marks, read as a direction to an actor.

    Args:
        words: them in lower case.
        content: as written.
        rules: the verbs and nouns.
    """

    def __init__(self, words: list[str], content: str, rules: GuardRules) -> None:
        self.words = words
        self.rules = rules
        self.lists = rules.actions
        self.plain = " ".join(words)
        self.content = content
        self.small = next((one for one in content if one.isalpha()), "A").islower()
        self.bare = not any(character.isdigit() for character in content)

    @cached_property
    def head(self) -> list[str]:
        """The words from the verb on: without a subject and adverbs before it."""
        words, at = self.words, 0
        leading = {*_SUBJECTS, *_MANNER, "i"}
        while at < min(4, len(words) - 1) and (words[at] in leading or is_adverb(words[at])):
            at += 1
        return words[at:]

    @cached_property
    def form(self) -> str:
        """The form of the head among the known verbs: "s", "ing", "ed", "base" or nothing."""
        return self._known(self.head[0])

    def _known(self, word: str) -> str:
        forms = self.rules.forms
        plain = forms["expressive"].get(word) or forms["physical"].get(word, "")
        return "ed" if not plain and word in self.lists["pasts"] else plain

    def complement(self) -> bool:
        """Tell whether the verb goes on as bodies move: "up", "my head", "slowly"."""
        return len(self.head) > 1 and (
            self.head[1] in _OBJECTS or is_adverb(self.head[1]) or self.touches_body()
        )

    def touches_body(self) -> bool:
        """Tell whether what is moved is a part of the body or at hand: "scratches (my) beard"."""
        near = [word for word in self.head[1:4] if not is_adverb(word)]
        things = self.lists["body"] | self.lists["props"]
        return any(word in things for word in near)

    def rolls_eyes(self) -> bool:
        """Tell whether a verb of the third person moves a part of the body."""
        return self.form == "s" and self.touches_body()

    def captions(self) -> bool:
        """Tell whether it begins like a note: "serves four", "based on", "makes twelve"."""
        first = self.head[0]
        listed = self.lists["captions"]
        if self.touches_body() or (self.small and _MAKES.match(self.plain)):
            return False
        return first in listed or first.removesuffix("s") in listed

    def narrates(self) -> bool:
        """Tell whether the words, in a place of their own, are an action."""
        return (
            self._acts()
            or self._participle()
            or self._first_person()
            or self._somebody_acts()
            or self.perceived()
            or self._scene()
            or self._body()
            or self._past()
            or self.sound()
            or self._set_phrase()
        )

    def _acts(self) -> bool:
        """ "leans in", "double-checks the sum": the third person."""
        verb = self.head[0]
        if self.captions() or not (self.bare or (self.complement() and verb != "takes")):
            return False
        if not self.bare and self.head[1] in _TIMED:
            return False
        if self.form == "s":
            return len(self.words) > 1 or self.small or verb in self.rules.forms["expressive"]
        last = verb.rpartition("-")[2]
        known = self._known(last) == "s" or verb_form(last) == "s" or verb_form(verb) == "s"
        known = known or verb in self.lists["happenings"] or verb in self.lists["moves"]
        known = known or self._unknown_verb()
        return known and self.small and (len(self.head) > 1 or "-" in verb)

    def _unknown_verb(self) -> bool:
        """ "swivels around", "mimes zipping": no word of the lexicon, used as a verb is."""
        verb, rest = self.head[0], self.head[1:2]
        shape = len(verb) > 4 and verb.endswith("s") and not verb.endswith(("ss", "us", "is"))
        follows = rest and (rest[0] in _VERBAL or rest[0].endswith("ing") or is_adverb(rest[0]))
        return shape and not is_word(verb) and (bool(follows) or self.touches_body())

    def _participle(self) -> bool:
        """ "tilting my head", "without looking up", "feeling sheepish"."""
        head = self.head
        if self.words[0] in _OPENINGS and len(self.words) > 1:
            known = self._known(self.words[1]) == "ing"
            return self.small and (known or self._refrains())
        if self.form != "ing" or not self.bare:
            return False
        return self.small or head[0] in self.rules.forms["expressive"] or self.complement()

    def _refrains(self) -> bool:
        """ "not meeting your eyes", and no "not counting weekends"."""
        if self.words[0] not in ("not", "without", "still") or len(self.words) < 3 or not self.bare:
            return False
        verb = self.words[1]
        return verb.endswith("ing") and len(verb) > 5 and verb not in _RECKONING

    def telegraphic(self) -> bool:
        """ "scratches head", "checks watch": a verb and what is at hand without "his" or "a"."""
        things = self.lists["body"] | self.lists["props"]
        return self.form == "s" and len(self.head) > 1 and self.head[1] in things

    def _first_person(self) -> bool:
        words = self.words
        if words[0] == "i'm" or self.plain.startswith("i am "):
            at = 1 if words[0] == "i'm" else 2
            return any(self._known(word) == "ing" for word in words[at : at + 2])
        if "i" not in words[: len(words) - len(self.head)]:
            return False
        if _HELPLESS.match(self.plain):
            return True
        verb = self.head[0]
        if verb in self.lists["minds"] and not self.touches_body():
            return self.head[1:2] in (["down"], ["up"], ["aside"], ["back"])
        expressive = self.rules.forms["expressive"].get(verb) in ("base", "ed")
        return expressive or (self.form in ("base", "ed") and len(self.head) > 1)

    def _somebody_acts(self) -> bool:
        """ "Alex looks up": a name, then a verb."""
        name = self.content.lstrip("\"'(")[:1].isupper() and len(self.words) > 1
        stranger = not is_word(self.words[0]) or self.words[0] in self.rules.first_names
        at = 2 if len(self.words) > 2 and is_adverb(self.words[1]) else 1
        return name and stranger and self._known(self.words[at]) == "s" and self.bare

    def perceived(self) -> bool:
        """ "you hear footsteps"."""
        return _PERCEIVED.match(self.plain) is not None

    def _scene(self) -> bool:
        """ "your phone buzzes", "the rain taps against the window", "as you enter, ..."."""
        words = self.words
        if words[0] == "as" and len(words) > 3 and words[1] in {*_DETERMINERS, *_SUBJECTS, "you"}:
            return any(self._known(word) for word in words[2:5])
        if words[0] not in _DETERMINERS or not self.bare:
            return False
        return any(self._moves(at) for at in range(1, min(7, len(words))))

    def _moves(self, at: int) -> bool:
        word = self.words[at]
        if self._known(word) != "s" and word not in self.lists["happenings"]:
            return False
        nounly = at == 1 or self.words[at - 1] in _DETERMINERS
        rest = self.words[at + 1 : at + 2]
        return not nounly and (not rest or rest[0] in _OBJECTS or is_adverb(rest[0]) or at < 5)

    def _body(self) -> bool:
        """ "eyes wide", "hand on heart", "ears perk up", "footsteps echo"."""
        words, parts = self.words, self.lists["body"]
        at = next((i for i, word in enumerate(words[:4]) if word in parts), -1)
        if at < 0 or at + 1 >= len(words) or not self.bare or is_adverb(words[at]):
            return False
        rest = words[at + 1 : at + 4]
        states = self.lists["states"]
        if any(self._known(word) or verb_form(word) for word in rest):
            return True
        return self.small and len(words) < 9 and any(word in states for word in rest)

    def _past(self) -> bool:
        """ "smiled softly", "is intrigued", "had been waiting"."""
        if not self.small or not self.bare or (self.captions() and self.words[0] != "is"):
            return False
        if self.words[0] in _AUXILIARIES:
            told = [word for word in self.words[1:4] if word not in _AUXILIARIES]
            waiting = self.words[1:2] == ["been"] and any(one.endswith("ing") for one in told)
            felt = waiting or any(self._known(word) in ("ing", "ed") for word in told[:2])
            return felt or any(word in self.lists["states"] for word in told[:2])
        return self.form == "ed" and (
            self.complement() or self.head[0] in self.rules.forms["expressive"]
        )

    def sound(self) -> bool:
        """ "a long pause", "soft laughter", "typing noises", "the sound of rain"."""
        if not self.bare or len(self.words) > 6:
            return bool(_SOUND_OF.match(self.plain)) and self.bare
        last = self.words[-1] if self.words[-1] != "please" else self.words[-2:][0]
        short = len(self.words) > 1 or self.small
        listed = last in self.lists["sounds"] and short
        somewhere = any(
            one in self.lists["sounds"] and two in ("at", "from", "outside", "nearby", "behind")
            for one, two in pairwise(self.words[:4])
        )
        return bool(listed or somewhere or _SOUND_OF.match(self.plain))

    def _set_phrase(self) -> bool:
        words = self.words
        if words[0] in ("in", "with") and len(words) < 9:
            return words[-1] in _MANNERS or words[-1] in self.lists["body"] | self.lists["sounds"]
        if self.small and len(words) < 3 and words[-1] in self.lists["feelings"]:
            return True
        if self.small and self.plain.endswith(("in the background", "in the distance")):
            return True
        told = _ELSEWHEN.fullmatch(self.plain) or (self.small and _CUE.match(self.plain))
        return bool(told) and self.bare and len(words) < 9


def is_adverb(word: str) -> bool:
    """Tell whether a word looks like an adverb of manner."""
    return len(word) > 4 and word.endswith("ly") and word not in ("reply", "family", "belly")


def verb_form(word: str) -> str:
    """ "s" for what looks like a verb of the third person: its other forms are words, too."""
    if not word.endswith("s") or len(word) < 4:
        return ""
    for stem in {word[:-1], word[:-2], word[:-2].removesuffix("i") + "y"}:
        soft = stem.removesuffix("e")
        if is_word(stem) and is_word(soft + "ing") and is_word(soft + "ed"):
            return "s"
    return ""
