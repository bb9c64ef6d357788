"""The style of a reply as numbers that say how it is written and little of what it is about.

Why these: an embedding moves when the topic moves, and so does any count of content words. Here
only function words, punctuation, layout, affixes, set phrases and lengths are counted. Rates are
per word and drawn towards the usual rate when the reply is short (`_PRIOR_WORDS`), so that one
comma in a reply of four words is not a style; square roots and logarithms even out the spreads::

    style_matrix(["Sure! It's easy.", "The answer is no."])    # (2, len(FEATURES)) float64

Which features follow the topic all the same, and how strongly, is learned in training
(`drift_metric`), not guessed here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from mlx_companion.personality.words import fold, sentences

_PRIOR_WORDS = 12.0
_MAX_CHARS = 6000

_WORDS = {
    "articles": "a an the",
    "i": "i me my mine myself i'm i've i'd i'll im ive",
    "we": "we us our ours ourselves we're we've we'll let's lets",
    "you": "you your yours yourself you're you've you'd you'll ya u ur yer ye",
    "third": "he she they him her them his their it its it's they're he's she's",
    "this_that": "this that these those here there that's there's here's",
    "be": "is are was were be been being am",
    "do_have": "do does did have has had having",
    "modals": "can could may might must shall should will would",
    "and": "and & plus also",
    "but": "but however yet though although still nevertheless",
    "or": "or either nor",
    "because": "because since so therefore thus hence consequently",
    "if": "if unless whether when while",
    "of": "of",
    "to": "to",
    "in_on_at": "in on at into onto",
    "for_with": "for with by from as",
    "relative": "which who whom whose what",
    "negation": "not no never none nothing don't can't won't isn't doesn't cannot didn't "
    "aren't dont cant wont",
    "hedges": "maybe perhaps possibly probably likely might seems seem appears somewhat fairly "
    "rather generally usually often typically sometimes arguably relatively roughly",
    "boosters": "very really so absolutely definitely totally completely truly super incredibly "
    "extremely certainly always simply literally",
    "praise": "great wonderful amazing awesome fantastic excellent brilliant lovely perfect good "
    "love exciting beautiful incredible",
    "politeness": "please thanks thank sorry welcome kindly appreciate glad happy",
    "slang": "gonna wanna gotta yeah yep nope lol haha hey ok okay kinda sorta dude bro mate guys "
    "tbh imo ngl btw cuz stuff lots yo nah",
    "discourse": "well now first then next finally additionally moreover furthermore overall "
    "actually basically essentially indeed ultimately anyway",
    "formal": "regarding concerning upon thereby whereby herein therein one's shall moreover "
    "furthermore consequently nevertheless notably whilst thus",
    "archaic": "ye arr aye matey thee thou thy me hearties ahoy lad lass yer tis twas hath",
    "address": "friend buddy pal dear darling honey sweetie love sir madam boss champ kid folks",
    "instruct": "try make use keep take start remember consider ensure avoid think let don't check",
}
_RATE_WORDS = {name: frozenset(text.split()) for name, text in _WORDS.items()}
_WORD_GROUPS: dict[str, list[str]] = {}
for _name, _group in _RATE_WORDS.items():
    for _word in _group:
        _WORD_GROUPS.setdefault(_word, []).append(_name)

_EMOJI = "\U0001f000-\U0001faff\u2600-\u27bf\u2b00-\u2bff"
_MARKS = {
    "comma": r",",
    "stop": r"(?<!\.)\.(?!\.|\d)",
    "exclamation": r"!",
    "question": r"\?",
    "colon": r":(?!\w)",
    "semicolon": r";",
    "dash": r"[\u2013\u2014]|\s--?\s|--",
    "hyphen": r"(?<=\w)-(?=\w)",
    "bracket": r"\(",
    "quote": r"[\"\u201c\u201d]",
    "ellipsis": r"\.\.\.|\u2026",
    "contraction": r"(?<=[a-zA-Z])['\u2019](?=[a-z]{1,2}\b)",
    "emoji": f"[{_EMOJI}]",
    "emoticon": r"(?<!\w)[:;=]-?[)(DPp](?!\w)|<3",
    "action": r"\*[a-z][^*\n]{2,60}\*",
    "bold": r"\*\*[^*\n]+\*\*",
    "code": r"`",
    "bullet": r"(?m)^\s*[-*\u2022]\s",
    "numbered": r"(?m)^\s*\d{1,2}[.)]\s",
    "heading": r"(?m)^#{1,6}\s",
    "shout": r"\b(?!(?:AI|API|SQL|USA|UK|EU|TV|DNA|NASA|JSON|CPU|PDF|HTML)\b)[A-Z]{3,}\b",
    "small_start": r"(?:^|[.!?]\s+)[a-z]",
    "small_i": r"\bi\b",
    "ly": r"(?i)\b\w{3,}ly\b",
    "ing": r"(?i)\b\w{3,}ing\b",
    "tion": r"(?i)\b\w{3,}(?:tion|ment|ness|ity|ance|ence)s?\b",
    "dropped_g": r"(?i)\b\w{2,}in'",
    "numbers": r"\d+",
    "stretched": r"(?i)([a-z])\1\1|[!?]{2,}",
}
_MARK_PATTERNS = {name: re.compile(pattern) for name, pattern in _MARKS.items()}

_SHAPES = {
    "opens_filler": r"(?:sure|certainly|of course|absolutely|definitely|okay|ok|great|good|no "
    r"problem|alright|yes|yeah|well|oh|ah|hey|hi|hello|wow|so)\b",
    "opens_praise": r"(?:what an?|that's an?|that is an?|great|good|excellent|wonderful) "
    r"(?:\w+ )?(?:question|idea|point|choice|topic)|i(?:'m| am) (?:so |very )?(?:glad|happy)",
    "opens_i": r"i(?:'m|'d|'ll|'ve)?\b",
    "opens_the": r"(?:the|an?|this|these|it|there)\b",
    "opens_you": r"(?:you|your|if you|when you)\b",
    "opens_verb": r"(?:try|make|use|keep|take|start|remember|think|get|go|let|put|add|check|do|"
    r"don't|be|begin|first)\b",
    "opens_as": r"as an?\b",
}
_SHAPE_PATTERNS = {name: re.compile(pattern) for name, pattern in _SHAPES.items()}
_ENDS = {
    "ends_question": r"\?[\"')\s]*$",
    "ends_exclamation": r"![\"')\s]*$",
    "ends_bare": r"[^.!?\"')*\s:]\s*$",
    "ends_offer": r"(?:let me know|feel free|happy to help|hope (?:this|that|it) helps|"
    r"any (?:other|more|further) questions|here (?:to|if|for)|would you like|want me to|"
    r"anything else)[^.!?\n]{0,80}[.!?]?\s*$",
}
_END_PATTERNS = {name: re.compile(pattern) for name, pattern in _ENDS.items()}
_MEASURES = (
    "length",
    "sentences",
    "sentence_length",
    "sentence_spread",
    "word_length",
    "paragraphs",
    "long_words",
)

FEATURES: tuple[str, ...] = (
    *_MEASURES,
    *(f"words.{name}" for name in _RATE_WORDS),
    *(f"marks.{name}" for name in _MARKS),
    *_SHAPES,
    *_ENDS,
)
_TOKEN = re.compile(r"[a-z]+(?:'[a-z]+)*|&|\d+")
_STRIPPED = re.compile(r"^[\s*_#>\-\"'(\u201c]+")


def style_matrix(texts: Sequence[str]) -> np.ndarray:
    """Style features of replies.

    Args:
        texts: any number of replies.

    Returns:
        (N, F) float64, columns as in `FEATURES`.
    """
    return np.array([style_row(text) for text in texts], dtype=np.float64).reshape(
        len(texts), len(FEATURES)
    )


def style_row(text: str) -> list[float]:
    """Style features of one reply; only its first 6,000 characters count."""
    text = text[:_MAX_CHARS].strip()
    folded = fold(text)
    lower = folded.lower()
    words = _TOKEN.findall(lower)
    scale = 1.0 / (len(words) + _PRIOR_WORDS)
    groups: Counter[str] = Counter()
    for word, count in Counter(words).items():
        for group in _WORD_GROUPS.get(word, ()):
            groups[group] += count
    rates = [(groups[name] * scale) ** 0.5 for name in _RATE_WORDS]
    marks = [
        (sum(1 for _ in pattern.finditer(text)) * scale) ** 0.5
        for pattern in _MARK_PATTERNS.values()
    ]
    start = _STRIPPED.sub("", lower)[:120]
    shapes = [float(bool(pattern.match(start))) for pattern in _SHAPE_PATTERNS.values()]
    end = lower[-160:]
    ends = [float(bool(pattern.search(end))) for pattern in _END_PATTERNS.values()]
    return [*_measures(text, folded, words), *rates, *marks, *shapes, *ends]


def _measures(text: str, folded: str, words: Sequence[str]) -> list[float]:
    parts = [len(_TOKEN.findall(one.lower())) for one in sentences(folded)] or [0]
    lengths = np.array(parts, dtype=np.float64)
    letters = sum(map(len, words)) / max(len(words), 1)
    long_words = sum(len(word) > 7 for word in words) / (len(words) + _PRIOR_WORDS)
    return [
        float(np.log1p(len(words))),
        float(np.log1p(len(parts))),
        float(np.log1p(lengths.mean())),
        float(np.log1p(lengths.std())),
        letters if words else 4.0,
        float(np.log1p(text.count("\n"))),
        long_words**0.5,
    ]
