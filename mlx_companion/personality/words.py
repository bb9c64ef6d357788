"""Plain text measures that the style rules stand on: words, sentences, what carries content.

A rule such as "at most 40 words" is only as good as its idea of a word, so that idea lives here
once. Text is first folded (`fold`) to plain quotes, dashes and ASCII punctuation, because a model
writes the curly and the full-width forms as well and every pattern would otherwise need them all.
Everything here is linear in the length of the text: replies come from a model and may be
anything, 100 000 spaces included::

    words("It costs 1.5 dollars.")        -> ["it", "costs", "1.5", "dollars"]
    sentences("Dr. Smith left. Why?")     -> ["Dr. Smith left.", "Why?"]
    content_words("It is a warm blanket") -> ["warm", "blanket"]
"""

from __future__ import annotations

import re

_FOLD = {
    **{full: full - 0xFEE0 for full in range(0xFF01, 0xFF5F)},
    **dict.fromkeys(map(ord, "\u2018\u2019\u201a\u201b\u2032\u02bc\u00b4"), "'"),
    **dict.fromkeys(map(ord, "\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb"), '"'),
    **dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2212"), "-"),
    **dict.fromkeys(map(ord, "\u00a0\u2000\u2001\u2002\u2003\u2007\u2009\u200a\u202f\u3000"), " "),
    **dict.fromkeys(map(ord, "\u200b\u200c\u200e\u200f\u2060\ufeff\u00ad"), None),
    ord("\u2026"): "...",
    ord("\u3002"): ".",
}
_CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
# Scripts written without spaces count one word per character, else any length passes as one word.
_WORD = re.compile(
    rf"[{_CJK}]|[^\W_{_CJK}]++(?:(?:['.\-]|(?<=\d),(?=\d))[^\W_{_CJK}]++)*+", re.UNICODE
)
# The lookbehind starts a match only at the head of a run of dots: without it a long run that is
# followed by a letter is retried from each of its dots, which is quadratic.
_STOP = re.compile(r"(?<![.!?])[.!?]++[\"')\]]*+(?=\s|$)")
_ABBREVIATED = (
    "dr mr mrs ms prof st vs etc e.g i.e a.m p.m approx no fig jr sr mt ft inc ltd u.s u.k"
)
_ABBREVIATIONS = frozenset(_ABBREVIATED.split())
# The last seven lines are not grammar: they fit any reply, so they say nothing about this one.
_EMPTY = """
    a about above after again against all almost along already also although always am among an and
    any anyone anything are aren't around as at away be became because become been before being
    below between both but by came can can't cannot could couldn't did didn't do does doesn't doing
    don't done down during each either else enough even ever every everyone everything for from get
    gets getting give given gives go goes going got had has hasn't have haven't having he he's her
    here here's hers herself him himself his how however i i'd i'll i'm i've if in into is isn't it
    it'll it's its itself just keep know let let's like made make makes making many may maybe me
    might mine more most much must my myself need needs neither never no nor not nothing now of off
    often oh ok okay on once one ones only onto or other others our ours out over own perhaps please
    put quite rather really same say says see seem seems shall she she's should shouldn't since so
    some someone something sometimes soon still such take takes tell than that that's the their
    theirs them themselves then there there's these they they'll they're they've thing things think
    this those though through to together too toward towards try under unless until up upon us
    use used using usually very want wants was wasn't way ways we we'd we'll we're we've well were
    weren't what what's whatever when where whether which while who whom whose why will with within
    without won't would wouldn't yes yet you you'd you'll you're you've your yours yourself
    able actually answer asked asking ask aspect aspects bit certain certainly clear consider
    context course depend depending depends detail details different difficult factor factors feel
    glad good great happy help helpful helping helps hope idea important information interesting
    kind lot lots matter mean means nice number okay option options part particular person
    point possible provide question questions reason reasons right several situation sort specific
    stuff sure thank thanks understand understood various
"""
_STOP_WORDS = frozenset(_EMPTY.split())


def fold(text: str) -> str:
    """Return `text` with plain quotes, hyphens, spaces and ASCII forms of full-width marks.

    Invisible format characters are dropped and `…` becomes three dots; letters stay as they are
    (no case folding, no decomposition, whose cost is not linear on long runs of accents).
    """
    return text.translate(_FOLD)


def words(text: str) -> list[str]:
    """Return the words of `text` in lower case.

    Numbers with a decimal point or thousands comma, hyphenated words and contractions are one
    word; an em dash separates; each CJK character is a word of its own.
    """
    return _WORD.findall(fold(text).lower())


def word_count(text: str) -> int:
    """Return the number of words in `text`, as `words` counts them."""
    return len(words(text))


def sentences(text: str) -> list[str]:
    """Split `text` into sentences, each with its closing punctuation, without outer spaces.

    A full stop does not end a sentence after a known abbreviation, after a single capital letter
    (an initial) or before a lower-case letter.
    """
    folded = fold(text).strip()
    found: list[str] = []
    start = 0
    for match in _STOP.finditer(folded):
        if _ends_sentence(folded, start, match):
            found.append(folded[start : match.end()].strip())
            start = match.end()
    rest = folded[start:].strip()
    return [*found, rest] if rest else found


def _ends_sentence(text: str, start: int, match: re.Match[str]) -> bool:
    if match.end() == len(text) or match.group()[0] != ".":
        return True
    follows = text[match.end() : match.end() + 8].lstrip()[:1]
    # 24 characters are enough for any abbreviation, and keep this constant in time.
    before = text[max(start, match.start() - 24) : match.start()].split()[-1:] or [""]
    last = before[0].strip("\"'([")
    if follows.islower():
        return False
    initial = len(last) == 1 and last.isupper() and last not in "AI"
    return not (initial or last.lower() in _ABBREVIATIONS)


def content_words(text: str) -> list[str]:
    """Return the words of `text` that carry content, in order, repetitions included.

    Left out are grammatical words and words so general that they fit any reply ("thing", "help",
    "important", "factors").
    """
    return [word for word in words(text) if word not in _STOP_WORDS]


def new_words(prompt: str, reply: str) -> list[str]:
    """Return the distinct content words of `reply` that `prompt` does not have, in order.

    A reply that only says its question again is close to it in every embedding; how few new words
    it brings gives it away.
    """
    asked = set(words(prompt))
    return list(dict.fromkeys(word for word in content_words(reply) if word not in asked))
