"""How formal a text is, from 0 (casual) to 1 (formal).

Character and word n-grams with case and punctuation kept, beside counts of style: contractions,
small letters where capitals belong, missing or repeated marks, slang, words that a careful writer
would use. A calibrated linear head reads both; 0.5 is where casual and careful sentences part::

    scorer = FormalityScorer.from_pack(pack)
    scorer.scores(["hey can u send it", "Please send it at your earliest convenience."])

`rule_score` needs no weights: it is the form that is left when the pack cannot be read.

Source: the features follow Pavlick and Tetreault, "An Empirical Analysis of Formality in Online
Communication", TACL 2016.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from mlx_companion.slm.linear import Calibration, LinearHead, sigmoid
from mlx_companion.slm.ngrams import NGramConfig, NGrams
from mlx_companion.slm.packs import Pack
from mlx_companion.slm.tracker_words import WordTable, tokens

GRAMS = NGramConfig(
    char=(2, 4),
    words=(1, 2),
    char_columns=1 << 15,
    word_columns=1 << 14,
    casefold=False,
    max_chars=600,
)
_CASUAL_TEXT = """
    gonna wanna gotta kinda sorta dunno lemme gimme cuz coz cause yeah yep yup nope nah hey hi
    wow haha hehe lol omg huh hmm um uh ok okay stuff guy guys kid kids dude man pretty really
    just totally super awesome crazy dumb stupid suck sucks damn hell crap shit fuck fucking
    ass lots bunch ton tons anyway anyways basically actually literally like u ur r y n ya
    yall y'all ain't aint mom dad mum buddy folks cool nice mad weird gross oh well so maybe
    thanks bye plus tho bout em cant dont wont didnt isnt im ive thats whats lets id
"""
_CASUAL = frozenset(_CASUAL_TEXT.split())
_FORMAL_TEXT = """
    therefore however furthermore moreover consequently nevertheless thus hence regarding
    concerning pursuant sincerely respectfully dear sir madam kindly please shall may would
    could upon whom whose which although whereas whether provided require requires required
    obtain purchase assist assistance inquire commence terminate sufficient numerous
    additional prior subsequent subsequently approximately believe recommend appreciate
    apologize apologise regret inform advise request individual individuals children mother
    father very quite rather perhaps certain certainly indeed possess demonstrate indicate
    attempt receive received unable ensure convenience grateful gratitude not cannot one most
    significant evidence
"""
_FORMAL = frozenset(_FORMAL_TEXT.split())
_CONTRACTION = re.compile(r"\b\w+(?:n['’]t|['’](?:s|re|ve|ll|d|m))\b", re.IGNORECASE)
_BARE = re.compile(
    r"\b(?:dont|cant|wont|didnt|doesnt|isnt|wasnt|arent|couldnt|wouldnt|shouldnt|havent|hasnt|im|"
    r"ive|id|ill|youre|youve|theyre|thats|whats|hes|shes|lets|theres)\b"
)
_EMOTICON = re.compile(r"[:;=8][-o']?[)(DPp/\\|*]|<3|[\U0001F300-\U0001FAFF\u2600-\u27BF]")
STYLE = 22


def style_features(text: str, table: WordTable | None = None, slang: int = 0) -> np.ndarray:
    """(STYLE,) float32: counts of style, most of them per word.

    Args:
        text: the text.
        table: known words; without one no word counts as unknown.
        slang: how many slang terms were found in it.
    """
    found = tokens(text)
    low = [token.low for token in found if token.is_word]
    count = max(len(low), 1)
    sentences = [s.strip() for s in re.split(r"(?<=[.!?])\s+|\n+", text) if s.strip()]
    sentences = sentences or [""]
    letters = [c for c in text if c.isalpha()]
    unknown = 0 if table is None else sum(w.isalpha() and w not in table for w in low)
    values = [
        len(_CONTRACTION.findall(text)) / count,
        float(bool(_CONTRACTION.search(text))),
        len(_BARE.findall(text)) / count,
        float(bool(_BARE.search(text))),
        sum(w in _CASUAL for w in low) / count,
        sum(w in _FORMAL for w in low) / count,
        float(text[:1].islower()),
        sum(s[0].islower() for s in sentences if s) / len(sentences),
        float(text.rstrip()[-1:] not in ".?!:;\")”'"),
        text.count("!") / len(sentences),
        float(bool(re.search(r"[!?]{2,}", text))),
        float(bool(re.search(r"\.\.+|…", text))),
        float(bool(_EMOTICON.search(text))),
        sum(c.isupper() for c in letters) / max(len(letters), 1),
        float(any(t.text.isupper() and len(t.text) > 3 for t in found)),
        float(bool(re.search(r"\bi\b", text))),
        sum(map(len, low)) / count / 10,
        min(len(low) / len(sentences), 40) / 40,
        unknown / count,
        min(slang, 4) / 4,
        float(bool(re.search(r" [,.!?]|,(?=[a-z])", text))),
        sum(w in ("i", "you", "me", "my", "your", "u") for w in low) / count,
    ]
    return np.array(values, dtype=np.float32)


class FormalityScorer:
    """The calibrated head.

    Args:
        head: over n-grams and style.
        calibration: of its logits.
        table: known words.
    """

    def __init__(self, head: LinearHead, calibration: Calibration, table: WordTable) -> None:
        self.head, self.calibration, self.table = head, calibration, table
        self._grams = NGrams(GRAMS)

    @classmethod
    def from_pack(cls, pack: Pack) -> FormalityScorer:
        """The scorer of a pack.

        Raises:
            SLMError: the pack has none.
        """
        settings = pack.settings.get("formality", {})
        calibration = Calibration(settings.get("slope", 1.0), settings.get("offset", 0.0))
        head = LinearHead.from_arrays(pack.arrays, "formality")
        return cls(head, calibration, WordTable.from_arrays(pack.arrays))

    def scores(self, texts: Sequence[str], slang: Sequence[int] | None = None) -> np.ndarray:
        """Formality (N,), 0 to 1; 0.5 for a text without a word.

        Args:
            texts: the texts.
            slang: slang terms found in each.
        """
        blocks = formality_blocks(texts, self.table, slang, self._grams)
        shares = self.calibration(self.head.logits(blocks)[:, 0])
        empty = np.array([not any(c.isalnum() for c in text) for text in texts], dtype=bool)
        return np.where(empty, 0.5, shares)


def formality_blocks(
    texts: Sequence[str],
    table: WordTable,
    slang: Sequence[int] | None = None,
    grams: NGrams | None = None,
) -> list[Any]:
    """Feature blocks: n-grams (N, columns) and style (N, STYLE)."""
    counts = [0] * len(texts) if slang is None else slang
    styles = [style_features(t, table, n) for t, n in zip(texts, counts, strict=True)]
    dense = np.stack(styles) if styles else np.zeros((0, STYLE), dtype=np.float32)
    return [(grams or NGrams(GRAMS)).transform(texts), dense]


def rule_score(text: str, slang: int = 0) -> float:
    """Formality by rules alone: a weighted sum of style features through a sigmoid."""
    if not any(c.isalnum() for c in text):
        return 0.5
    f = style_features(text, slang=slang)
    casual = 1.5 * f[1] + 2 * f[3] + 8 * f[4] + 1.2 * f[6] + 0.8 * f[8] + 0.6 * f[9] + f[10]
    casual += 0.7 * f[11] + 2 * f[12] + f[14] + f[15] + 4 * f[19]
    formal = 8 * f[5] + 4 * max(f[16] - 0.4, 0) + 1.5
    return float(sigmoid(np.array(1.2 * (formal - casual))))
