"""Measures of a text's style: sentiment, grade level, formality, and rates of what stands out.

They show whether replies follow what was learned ("shorter", "more formal"), and how a style moves
over time. Code, links and mathematics are left out first; texts longer than `LONGEST` characters
are measured on their beginning::

    text_metrics("Perhaps we should wait.").hedges       # 25.0 per 100 words

Sentiment is VADER's compound score (Hutto and Gilbert, 2014; `vaderSentiment`), the grade is
Flesch-Kincaid's (Kincaid et al., 1975; `textstat`, syllables from the CMU dictionary that ships
with it). Formality follows the F-score of Heylighen and Dewaele (1999), F = (nouns + adjectives +
prepositions + articles - pronouns - verbs - adverbs - interjections + 100) / 2, with word lists and
endings in place of a tagger: words of the closed classes are counted exactly, nouns and adverbs by
their endings, so it ranks texts and is no F-score itself.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mlx_companion.personality.emoji import EMOJI, is_sign
from mlx_companion.personality.markup import scan
from mlx_companion.personality.words import fold, sentences, words

LONGEST = 20_000
_HEDGES = re.compile(
    r"\b(?:maybe|perhaps|possibly|probably|presumably|might|could|may|seems?|seemed|appears?|likely"
    r"|somewhat|roughly|arguably|apparently|sort of|kind of|i (?:think|guess|suppose|believe)"
    r"|as far as i know|in my opinion|more or less|tends? to|not sure)\b"
)
_ARTICLES = frozenset(["a", "an", "the"])
_PREPOSITION_LIST = """
    of in to for with on at from by about into through after over between against during without
    before under around among upon within according regarding concerning despite toward towards via
    per throughout beyond across behind above below
"""
_PREPOSITIONS = frozenset(_PREPOSITION_LIST.split())
_PRONOUN_LIST = """
    i you he she it we they me him her us them my your his its our their mine yours hers ours theirs
    myself yourself himself herself itself ourselves themselves this that these those who what
    someone something anyone anything everyone everything nobody nothing
"""
_PRONOUNS = frozenset(_PRONOUN_LIST.split())
_VERB_LIST = """
    is are was were be been am do does did have has had will would can could shall should may might
    must go goes got get gets make makes made know think want like let say says said gonna wanna
    gotta see look come take
"""
_VERBS = frozenset(_VERB_LIST.split())
_ADVERB_LIST = """
    very really just so too also then now here there again still never always often well only even
    already maybe perhaps pretty quite almost
"""
_ADVERBS = frozenset(_ADVERB_LIST.split())
_INTERJECTION_LIST = """
    oh ah wow hey hi hello yeah yep nope lol omg haha ugh oops yay hmm ok okay btw idk tbh bruh dude
    yo sup
"""
_INTERJECTIONS = frozenset(_INTERJECTION_LIST.split())
_NOMINAL = re.compile(r"(?:tion|sion|ment|ness|ity|ance|ence|ship|ism|ure|al|ive|ous|ary|ic)s?$")
_CAPITALS = re.compile(r"\b[A-Z]{2,}\b")
_MARKS = re.compile(r"[!\uff01]")


@dataclass(frozen=True)
class TextMetrics:
    """Measures of one text.

    Attributes:
        words: number of words.
        sentences: number of sentences.
        sentiment: VADER compound, -1 (negative) to 1 (positive).
        grade: Flesch-Kincaid grade level, in years of school.
        formality: 0 (casual) to 1 (formal).
        sentence_length: mean words per sentence.
        word_length: mean characters per word.
        emoji: emoji per 100 words.
        exclamations: exclamation marks per 100 words.
        capitals: words in capitals per 100 words.
        hedges: hedging words and phrases per 100 words.
        questions: share of sentences that ask, 0 to 1.
        contractions: contracted words per 100 words.
        diversity: distinct words over words, 0 to 1.
    """

    words: int = 0
    sentences: int = 0
    sentiment: float = 0.0
    grade: float = 0.0
    formality: float = 0.5
    sentence_length: float = 0.0
    word_length: float = 0.0
    emoji: float = 0.0
    exclamations: float = 0.0
    capitals: float = 0.0
    hedges: float = 0.0
    questions: float = 0.0
    contractions: float = 0.0
    diversity: float = 0.0


def text_metrics(text: str) -> TextMetrics:
    """Measure a text.

    Args:
        text: any; Markdown is understood.

    Returns:
        Its measures; all 0 (formality 0.5) for a text without words.
    """
    prose = scan(text[:LONGEST]).prose()
    spoken, said = words(prose), sentences(prose)
    if not spoken:
        return TextMetrics()
    per_hundred = 100 / len(spoken)
    pictures = [found for found in EMOJI.finditer(prose) if not is_sign(found.group())]
    return TextMetrics(
        words=len(spoken),
        sentences=len(said),
        sentiment=sentiment(prose),
        grade=grade_level(prose),
        formality=formality(spoken),
        sentence_length=len(spoken) / max(1, len(said)),
        word_length=sum(map(len, spoken)) / len(spoken),
        emoji=per_hundred * len(pictures),
        exclamations=per_hundred * len(_MARKS.findall(prose)),
        capitals=per_hundred * len(_CAPITALS.findall(prose)),
        hedges=per_hundred * len(_HEDGES.findall(fold(prose).lower())),
        questions=sum(one.rstrip("\"')").endswith("?") for one in said) / max(1, len(said)),
        contractions=per_hundred * sum(map(_contracted, spoken)),
        diversity=len(set(spoken)) / len(spoken),
    )


def formality(spoken: list[str]) -> float:
    """Formality of words in lower case, 0 to 1; 0.5 for none. See the module for the source."""
    if not spoken:
        return 0.5
    balance = sum(_weight(word) for word in spoken)
    return min(1.0, max(0.0, (100 * balance / len(spoken) + 100) / 200))


def _weight(word: str) -> float:
    if word in _ARTICLES or word in _PREPOSITIONS:
        return 1.0
    if _contracted(word) or word in _INTERJECTIONS:
        return -2.0
    if word in _PRONOUNS or word in _VERBS or word in _ADVERBS:
        return -1.0
    if len(word) > 5 and _NOMINAL.search(word):
        return 1.0
    if len(word) > 4 and word.endswith("ly"):
        return -0.5
    return 0.3 if len(word) > 7 else 0.0


def _contracted(word: str) -> bool:
    # "The committee's" is an owner; "it's" and "what's" are contractions.
    stem, apostrophe, ending = word.rpartition("'")
    return bool(apostrophe) and (ending != "s" or stem in _PRONOUNS or stem in _BEFORE_IS)


_BEFORE_IS = frozenset(["there", "here", "where", "how", "when", "why", "let"])


def sentiment(text: str) -> float:
    """VADER's compound score of a text, -1 to 1."""
    return float(_vader().polarity_scores(text)["compound"])


def grade_level(text: str) -> float:
    """Flesch-Kincaid grade of a text; 0 for one without words."""
    if not words(text):
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import textstat

        return float(textstat.flesch_kincaid_grade(text))


@lru_cache(maxsize=1)
def _vader() -> Any:
    with warnings.catch_warnings():
        # Its way of opening its own word list is deprecated from Python 3.14 on.
        warnings.simplefilter("ignore")
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

        return SentimentIntensityAnalyzer()
