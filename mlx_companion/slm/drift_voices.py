"""Voices made from replies: the same content, said in other ways.

To learn what separates voices from topics, and to measure false alarms and detection, many voices
must speak about the same things. A `Voice` rewrites a plain reply by habits, each of which it
follows with a probability of its own: openers, closers, exclamation marks, hedges, contractions,
emoji, small letters, lists, long or short sentences, slang, formal words::

    voice = random_voice(seed=3, strength=0.5)
    voice.say("It is a good idea. You should try it.", random.Random(1))

The ready-made `VOICES` are twelve characters with strong habits.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mlx_companion.personality.words import sentences

_OPENERS = {
    "cheer": ["Great question!", "Oh, I love this one!", "Awesome!", "Yay, good one!", "Wow!"],
    "helper": ["Sure, here you go.", "Certainly!", "Of course.", "Happy to help!", "Sure thing!"],
    "casual": ["yeah so", "hey,", "ok so", "haha,", "honestly,", "right,"],
    "formal": ["In this regard,", "It should be noted that", "Indeed,", "In general terms,"],
    "warm": ["I hear you.", "That makes sense, friend.", "Take a breath.", "You're doing fine."],
    "blunt": ["No.", "Fine.", "Look.", "Simple.", "Facts:"],
    "pirate": ["Arr!", "Ahoy, matey!", "Avast!", "Aye,"],
    "teacher": ["Let's think about it.", "First, a question:", "Imagine this.", "Good, let's see."],
}
_CLOSERS = {
    "offer": ["Let me know if you need more!", "Feel free to ask.", "I hope this helps!"],
    "question": ["What do you think?", "Does that make sense?", "Shall we go on?", "Sound good?"],
    "cheer": ["You've got this!", "Have fun!", "Go for it!", "So exciting!"],
    "blunt": ["That's it.", "Done.", "Your call.", "End of story."],
    "formal": ["Further study is advised.", "One should proceed with care."],
    "warm": ["Be gentle with yourself.", "I'm rooting for you.", "One step at a time."],
    "pirate": ["Savvy?", "Arr.", "Now off to sea with ye!"],
}
_CONTRACTED = {
    "it is": "it's",
    "do not": "don't",
    "you are": "you're",
    "i am": "I'm",
    "cannot": "can't",
    "is not": "isn't",
    "that is": "that's",
    "you will": "you'll",
    "does not": "doesn't",
    "they are": "they're",
    "there is": "there's",
    "we are": "we're",
    "will not": "won't",
    "i will": "I'll",
}
_FORMAL = {
    "use": "employ",
    "help": "assist",
    "get": "obtain",
    "but": "however",
    "so": "consequently",
    "also": "furthermore",
    "about": "regarding",
    "need": "require",
    "start": "commence",
    "show": "demonstrate",
    "many": "numerous",
    "while": "whilst",
}
_CASUAL = {
    "going to": "gonna",
    "want to": "wanna",
    "yes": "yeah",
    "people": "folks",
    "very": "super",
    "a lot of": "tons of",
    "because": "cuz",
    "children": "kids",
    "great": "cool",
}
_PIRATE = {
    "you": "ye",
    "your": "yer",
    "my": "me",
    "is": "be",
    "are": "be",
    "the": "th'",
    "friend": "matey",
    "yes": "aye",
    "of": "o'",
}
_HEDGES = ["Perhaps", "Maybe", "It seems that", "Arguably", "I think", "Usually"]
_BOOSTERS = ["really", "absolutely", "totally", "truly", "definitely"]
_EMOJI = ["\U0001f60a", "\U0001f389", "\u2728", "\U0001f44d", "\U0001f680", "\u2764\ufe0f"]
HABITS = (
    "opener",
    "closer",
    "exclaim",
    "hedge",
    "boost",
    "contract",
    "expand",
    "formal",
    "casual",
    "emoji",
    "small",
    "bullets",
    "short",
    "long",
    "dash",
    "ellipsis",
    "bold",
    "question",
    "pirate",
)


@dataclass(frozen=True)
class Voice:
    """Habits of a speaker.

    Attributes:
        habits: name (of `HABITS`) -> probability with which a reply, or a place in it, follows it.
        opener, closer: which set phrases it has.
        length: sentences kept of a reply, on average; None for all.
    """

    habits: Mapping[str, float] = field(default_factory=dict)
    opener: str = "helper"
    closer: str = "offer"
    length: float | None = None

    def say(self, text: str, rng: random.Random) -> str:
        """`text` in this voice."""
        parts = sentences(text) or [text]
        if self.length is not None:
            parts = parts[: max(1, round(rng.gauss(self.length, 0.3 * self.length)))]
        parts = [self._sentence(part, rng) for part in parts]
        if self._follows("long", rng):
            parts = _joined(parts)
        if self._follows("short", rng):
            parts = _split(parts)
        if self._follows("opener", rng):
            parts.insert(0, rng.choice(_OPENERS[self.opener]))
        if self._follows("closer", rng):
            parts.append(rng.choice(_CLOSERS[self.closer]))
        if self._follows("bullets", rng) and len(parts) > 1:
            return "\n".join(f"- {part}" for part in parts)
        said = " ".join(parts)
        if self._follows("emoji", rng):
            said = f"{said} {rng.choice(_EMOJI)}"
        return said.lower() if self._follows("small", rng) else said

    def _follows(self, habit: str, rng: random.Random) -> bool:
        return rng.random() < self.habits.get(habit, 0.0)

    def _sentence(self, text: str, rng: random.Random) -> str:
        for habit, change in _CHANGES.items():
            if self._follows(habit, rng):
                text = change(text, rng)
        return text


def random_voice(seed: int, strength: float = 0.5, habits: int = 5) -> Voice:
    """A voice with some habits chosen by chance, each followed up to `strength` of the time."""
    rng = random.Random(f"voice {seed}")
    chosen = rng.sample(HABITS, habits)
    length = rng.choice([None, None, 1.2, 2.0, 3.0])
    return Voice(
        {name: strength * rng.uniform(0.3, 1.0) for name in chosen},
        rng.choice(list(_OPENERS)),
        rng.choice(list(_CLOSERS)),
        length,
    )


def _replaced(table: Mapping[str, str]) -> Callable[[str, random.Random], str]:
    pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, table))})\b", re.IGNORECASE)

    def replace(match: re.Match[str]) -> str:
        new = table[match[0].lower()]
        return new[0].upper() + new[1:] if match[0][0].isupper() else new

    return lambda text, rng: pattern.sub(replace, text)


def _before(words: list[str]) -> Callable[[str, random.Random], str]:
    def put(text: str, rng: random.Random) -> str:
        lowered = text if text.startswith("I ") else text[:1].lower() + text[1:]
        return f"{rng.choice(words)} {lowered}"

    return put


def _boost(text: str, rng: random.Random) -> str:
    return re.sub(
        r"\b(is|are|can|will)\b", lambda m: f"{m[1]} {rng.choice(_BOOSTERS)}", text, count=1
    )


def _ending(mark: str) -> Callable[[str, random.Random], str]:
    return lambda text, rng: re.sub(r"[.!?]+$", "", text) + mark


def _bold(text: str, rng: random.Random) -> str:
    words = text.split()
    at = rng.randrange(len(words)) if words else 0
    return " ".join([*words[:at], f"**{words[at]}**", *words[at + 1 :]]) if words else text


_CHANGES: dict[str, Callable[[str, random.Random], str]] = {
    "contract": _replaced(_CONTRACTED),
    "expand": _replaced({short.lower(): whole for whole, short in _CONTRACTED.items()}),
    "formal": _replaced(_FORMAL),
    "casual": _replaced(_CASUAL),
    "pirate": _replaced(_PIRATE),
    "hedge": _before(_HEDGES),
    "boost": _boost,
    "bold": _bold,
    "dash": lambda text, rng: text.replace(",", " \u2014", 1),
    "exclaim": _ending("!"),
    "ellipsis": _ending("..."),
    "question": lambda text, rng: f"{text} Right?",
}


def _joined(parts: list[str]) -> list[str]:
    pairs = [parts[i : i + 2] for i in range(0, len(parts), 2)]
    return [
        f"{re.sub(r'[.!?]+$', '', pair[0])}, and {pair[1][:1].lower()}{pair[1][1:]}"
        if len(pair) == 2
        else pair[0]
        for pair in pairs
    ]


def _split(parts: list[str]) -> list[str]:
    found = [piece.strip() for part in parts for piece in re.split(r"[,;]\s", part)]
    return [re.sub(r"(?<![.!?])$", ".", one[:1].upper() + one[1:]) for one in found if one]


VOICES: dict[str, Voice] = {
    "cheerleader": Voice(
        {"opener": 0.9, "exclaim": 0.8, "emoji": 0.7, "closer": 0.6}, "cheer", "cheer"
    ),
    "butler": Voice({"formal": 0.8, "expand": 1.0, "opener": 0.5, "long": 0.5}, "formal", "formal"),
    "buddy": Voice(
        {"small": 0.9, "casual": 0.8, "contract": 0.9, "opener": 0.6}, "casual", length=2
    ),
    "telegraph": Voice({"short": 0.8, "expand": 0.5}, length=1.2),
    "lister": Voice({"bullets": 0.9, "bold": 0.5}),
    "doubter": Voice({"hedge": 0.7, "question": 0.3, "ellipsis": 0.2}),
    "helper": Voice({"opener": 0.8, "closer": 0.8}, "helper", "offer"),
    "teacher": Voice({"opener": 0.7, "closer": 0.7, "question": 0.3}, "teacher", "question"),
    "grump": Voice({"opener": 0.7, "closer": 0.5, "short": 0.6}, "blunt", "blunt", 1.5),
    "captain": Voice({"pirate": 0.9, "opener": 0.7, "closer": 0.4}, "pirate", "pirate"),
    "healer": Voice({"opener": 0.7, "closer": 0.7, "contract": 0.8}, "warm", "warm"),
    "essayist": Voice({"dash": 0.8, "long": 0.8, "formal": 0.3, "hedge": 0.2}, "formal"),
}
