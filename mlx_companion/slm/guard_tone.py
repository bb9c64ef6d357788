"""Tone: gushing praise, hype and flattery, sentence by sentence.

Set phrases ("You've got this", "What a fantastic idea") are patterns. What no pattern names is
judged by a small head, logistic regression over hashed n-grams of the sentence, and what that does
not find harmless by the lower layers of the sentence encoder as well, where that is on this disk
(`guard_tone_reader`). Both probabilities were calibrated on sentences that had not been seen.
Cheering of others (quotations, code) is none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mlx_companion.slm.guard_text import Draft, Finding
from mlx_companion.slm.guard_tone_reader import ToneReading
from mlx_companion.slm.linear import Calibration, LinearHead
from mlx_companion.slm.ngrams import NGramConfig, NGrams
from mlx_companion.slm.packs import Pack

TONE_CHEERLEADER = "tone_cheerleader"
# Emphasis and spaces say nothing about tone; neither do digits.
_NOISE = re.compile(r"[*_~#>`\s]+")
_CLOSING_MARKS = re.compile(r"[!.\uff01\u2026]+")
_LONGEST = 300
_FEWEST_WORDS = 3
_STRONG = (
    r"(?:amazing|awesome|fantastic|incredible|wonderful|brilliant|phenomenal|spectacular|fabulous|"
    r"magnificent|marvell?ous|stellar|superb|terrific|excellent|outstanding|fantabulous|epic|"
    r"mind-?blowing|extraordinary|unbelievable|stunning|lovely|exciting|inspiring|great|perfect|"
    r"beautiful|delightful|impressive|insightful|fascinating|thoughtful|profound)"
)
_VERY = (
    r"(?:(?:so|such|an?|really|truly|absolutely|totally|simply|just|very|completely|quite|pretty|"
    r"incredibly|super|utterly) ){0,3}"
)
_BAD = (
    r"(?:mess|disaster|nightmare|catastrophe|train ?wreck|shambles|waste|coincidence|lie|euphemism|"
    r"excuse|muddle|tangle|failure|tragedy|ruin|horror|pain|bug|typo|mistake|misunderstanding|"
    r"contradiction|non-?answer|heap|pile|dodge|loophole)s?"
)
_OBJECT = (
    r"(?:questions?|ideas?|points?|insights?|observations?|thinking|attitude|initiative|"
    r"perspective|instincts?|work|job|effort|progress|achievement|accomplishment|goal|mindset)"
)
_GUSHING = re.compile(
    "|".join(
        (
            r"^(?:(?:oh|wow|ah|ooh|yes|hey|well)[,! ]+)?(?:what|that's|that is|this is|it's|such)?"
            # "Great question" alone is a habit of speech.
            r"(?: |^)(?!(?:an? )?(?:great|lovely) \w+)"
            rf"{_VERY}{_STRONG},? (?:and {_STRONG} )?{_OBJECT}\b",
            # "What a beautiful mess" is irony.
            rf"\bwhat an? {_VERY}{_STRONG} (?!{_BAD}\b)\w+",
            r"\byou(?:'ve| have)? (?:totally |absolutely |so )?got this"
            r"(?=\s*(?:[!.,;\u2014]|$|and\b|champ|buddy|friend|my))",
            r"\byou can do (?:this|it)(?=\s*(?:!|$)|, (?:i|we) )",
            r"\b(?:i|we) (?:totally |truly |really |fully |always )?believe in you\b",
            r"\bbelieve in yourself\b",
            r"\b(?:i'm|i am|we're|we are|so) (?:so |very |really |incredibly |super |truly |just )+"
            r"proud of you\b",
            r"\b(?:i'm|i am) (?:so |just |absolutely |truly |beyond |really |super |totally )+"
            r"(?:excited|thrilled|delighted|pumped|stoked|psyched|impressed|honored|honoured)\b",
            r"\b(?:i'm|i am) (?:thrilled|stoked|pumped|psyched|over the moon|in awe|blown away|"
            r"obsessed)\b",
            r"\bi (?:just |absolutely |totally |really |truly )*(?:love|adore) "
            r"(?:this|that|it|your|how you|the way you)\b(?=.{0,60}!|.{0,30}(?:energy|"
            r"enthusiasm|attitude|idea|passion|"
            r"question|curiosity|for you|so much))",
            r"\b(?:absolutely|totally|just) (?:love|adore) (?:this|that|it|your|how)\b",
            r"\bkeep (?:up the (?:great|good|amazing|awesome|fantastic|excellent|incredible) work|"
            r"(?:on )?(?:shining|crushing|slaying|rocking)|being (?:awesome|amazing|you))\b",
            r"\byou(?:'re| are) (?:\w+ ){0,2}(?:amazing|awesome|incredible|unstoppable|brilliant|"
            r"fantastic|wonderful|phenomenal|inspiring|on fire|crushing it|killing it|nailing it|"
            r"slaying|the best|one of a kind|doing (?:so )?(?:great|amazing|fantastic|awesome|"
            r"incredible|wonderful)(?:ly)?)(?=\s*(?:[!.,;\u2014]|$|and\b|for\b|at\b))",
            r"\byou(?:'re| are)? (?:such |just )?(?:an? )?(?:absolute |total |complete |real |true "
            r"|coding |little )*(?:rock ?star|superstar|legend|genius|champ(?:ion)?|rock)"
            r"(?=\s*(?:[!.,]|$))",
            r"\b(?:you|you've|you have) (?:totally |absolutely |really |just )?(?:nailed|crushed|"
            r"smashed|slayed|rocked|knocked) (?:it|this|that)\b(?! out of (?:the list|order))",
            r"\b(?:crush|smash|nail|slay|rock) (?:it|this)(?=\s*(?:!|together\b))",
            r"\b(?:you're|you are) going to (?:absolutely |totally )?"
            r"(?:crush|smash|nail|rock|slay|do (?:great|amazing))\b",
            r"\b(?:the )?sky(?:'s| is) the limit\b",
            r"\b(?:how|so|super|this is so) exciting(?=\s*(?:!|$))",
            r"\bhow (?:amazing|wonderful|fantastic|incredible|awesome|exciting|thrilling|cool)"
            r"(?=\s*(?:[!.]|$|is (?:that|this)|of you))",
            r"\b(?:i )?(?:just )?(?:can't|cannot|can not) wait to "
            r"(?:see|hear|help|dive|get started|explore|share)\b",
            r"\blet's (?:do this|make (?:it|magic|some magic)|crush|rock|smash)\b(?=.{0,30}!|"
            r"\s*(?:together|$))",
            r"^(?:way to go|go you|go get 'em|amazing|awesome|"
            r"fantastic|incredible|wonderful|spectacular|phenomenal|superb)(?:,? [\w']+){0,2}!",
            r"\b(?:best|greatest|coolest|most amazing) (?:\w+ ){1,3}ever(?=\s*!)",
            r"\bgive yourself (?:a )?(?:huge |big )?(?:pat|round|credit|hug)\b.{0,40}!",
            r"\bpat yourself on the back\b",
            r"\b(?:i'm|i am) (?:always )?(?:rooting|cheering) for you\b",
            r"\b(?:you're|you are) (?:absolutely|so|totally|completely) right\b(?=.{0,3}!)",
            r"\byou(?:'re| are) (?:so|such an?|truly|incredibly) (?:smart|clever|wise|talented|"
            r"gifted|insightful|thoughtful|creative|brave|strong|kind)\b(?!er)",
            r"\byou(?:'re| are) (?:(?:simply|honestly|truly|hands down) )?the (?:very )?"
            r"(?:greatest|finest|best|most \w+) (?:[\w-]+ ){1,2}"
            r"(?:alive|ever|on (?:earth|the planet)|in the (?:world|universe)|of all time)\b",
            r"\byou should be (?:so |very |really |incredibly |super )+proud\b",
            r"\byour (?:\w+ ){1,3}(?:is|are) (?:so |truly |absolutely |just |simply |really )+"
            r"(?:amazing|inspiring|incredible|contagious|remarkable|awesome|wonderful|beautiful|"
            r"fantastic|brilliant|impressive|admirable)\b",
            # Hyperbole and the slang of fans.
            r"\b(?:humanity|the world|history|posterity|civili[sz]ation|mankind) "
            r"(?:owes|will thank|will remember|is not ready for|isn't ready for) you\b",
            r"\b(?:ya+s+|yes+),? queen\b|\bslay,? (?:queen|bestie|girl)\b|\b"
            r"ate (?:that|it)?[^.]{0,30}\bno crumbs\b",
            r"\byou were (?:born|made|built) (?:to do|for) this\b",
            r"\bno words for how (?:[\w-]+,? ){1,6}you are\b",
            r"\byou(?:'ve| have) (?:single-handedly )?redefined\b",
            r"\byou(?:'re| are| were) (?:[\w-]+, ){0,3}(?:and )?an? "
            r"(?:goddess|god|titan|queen|king|giant|genius|marvel|miracle|poet) among\b",
            r"\b(?:nothing can stop you|reach for the stars|dream big|shine on|good vibes|"
            r"you make the world|mind[- ]blown|be amazed|game[- ]changer!)",
            r"\b(?:this|that|it)(?:'s| is| sounds| looks) (?:so |just |absolutely |truly |totally "
            r"|simply |really )*(?:amazing|awesome|fantastic|incredible|wonderful|brilliant|"
            r"phenomenal|spectacular|fabulous|magnificent|marvell?ous)(?=\s*!)",
        )
    ),
    re.IGNORECASE,
)


@dataclass(frozen=True)
class ToneHead:
    """The trained part.

    Attributes:
        features: n-grams of a sentence.
        head: their weights.
        calibration: from logit to probability.
        threshold: at and above which a sentence cheers.
        reading: what the encoder says; None without one in the pack.
    """

    features: NGrams
    head: LinearHead
    calibration: Calibration
    threshold: float
    reading: ToneReading | None = None

    @classmethod
    def of_pack(cls, pack: Pack, *, use_encoder: bool = True) -> ToneHead | None:
        """The head of a pack; None when it holds rules only.

        Args:
            pack: of the guard.
            use_encoder: whether the encoder is read where it is on this disk.

        Raises:
            SLMError: its arrays do not fit.
        """
        settings = pack.settings.get("tone")
        if not settings:
            return None
        return cls(
            NGrams(NGramConfig(**settings["ngrams"])),
            LinearHead.from_arrays(pack.arrays, "tone"),
            Calibration(settings["slope"], settings["offset"]),
            float(settings["threshold"]),
            ToneReading.of_pack(pack) if use_encoder else None,
        )

    def judge(self, sentences: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """How likely each sentence of a reply cheers, and whether that is enough.

        Args:
            sentences: N of them, as `tone_text` gives them.

        Returns:
            Probabilities (N,) and verdicts (N,) bool.
        """
        texts = [head_text(one) for one in sentences]
        logits = self.head.logits([self.features.transform(texts)])[:, 0]
        chances = self.calibration(logits)
        verdicts = chances >= self.threshold
        chosen = self.reading.chosen(logits, texts) if self.reading is not None else []
        if chosen and self.reading is not None:
            read = self.reading.logits([texts[at] for at in chosen])
            if read is not None:
                both = self.reading.calibration(read + self.reading.share * logits[chosen])
                chances[chosen], verdicts[chosen] = both, both >= self.reading.threshold
        return chances, verdicts


def tone_text(sentence: str) -> str:
    """A sentence as the head reads it: no emphasis, straight apostrophes, single spaces."""
    return _NOISE.sub(" ", sentence.replace("\u2019", "'")).strip()[:_LONGEST]


def head_text(sentence: str) -> str:
    """A sentence for the head: exclamation marks have a rule of their own and say nothing here."""
    return _CLOSING_MARKS.sub(".", tone_text(sentence))


@lru_cache(maxsize=512)
def gushes(sentence: str) -> bool:
    """Tell whether a set phrase of cheering is in a sentence, as `tone_text` gives it."""
    return _GUSHING.search(sentence) is not None


def find_tone(
    draft: Draft, head: ToneHead | None, unsaid: Sequence[tuple[int, int]] = ()
) -> list[Finding]:
    """Every sentence that cheers.

    Args:
        draft: the reply.
        head: the trained head; None for patterns alone.
        unsaid: spans that have no tone, such as stage directions.
    """
    own = own_sentences(draft, unsaid)
    texts = [said for _, said in own]
    chances, cheers = _chances(texts, head)
    found = []
    for ((start, end), said), chance, cheer in zip(own, chances, cheers, strict=True):
        pattern = gushes(said)
        if pattern or cheer:
            first = start + len(draft.text[start:end]) - len(draft.text[start:end].lstrip())
            sure = 0.95 if pattern else float(chance)
            found.append(Finding(TONE_CHEERLEADER, first, end, {"sure": sure}))
    return found


def own_sentences(
    draft: Draft, unsaid: Sequence[tuple[int, int]] = ()
) -> list[tuple[tuple[int, int], str]]:
    """Spans of the sentences that are the companion's own, each as `tone_text` gives it."""
    spans = [span for span in draft.sentences() if _judged(draft, span)]
    said = _without(draft.own, unsaid)
    return [(span, tone_text(_unaddressed(draft, said[slice(*span)]))) for span in spans]


def _unaddressed(draft: Draft, sentence: str) -> str:
    """A sentence without the person's name where it only calls: "Mop it, Sam, and dry it."."""
    name = draft.user_name.strip()
    if not name or name not in sentence:
        return sentence
    called = rf"(?<=\w), {re.escape(name)}(?=[,.!?;:]|\s*$)|^(\s*){re.escape(name)}, "
    return re.sub(called, lambda found: found[1] or "", sentence)


def _without(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """The text with spaces in place of `spans`; offsets stay."""
    pieces, last = [], 0
    for start, end in sorted(spans):
        if start >= last:
            pieces += [text[last:start], " " * (end - start)]
            last = end
    return "".join([*pieces, text[last:]])


def _chances(texts: list[str], head: ToneHead | None) -> tuple[np.ndarray, np.ndarray]:
    chances, cheers = np.zeros(len(texts)), np.zeros(len(texts), dtype=bool)
    # "Ever." tells the head nothing.
    told = [at for at, one in enumerate(texts) if len(one.split()) >= _FEWEST_WORDS]
    if head is not None and told:
        chances[told], cheers[told] = head.judge([texts[at] for at in told])
    return chances, cheers


def _judged(draft: Draft, span: tuple[int, int]) -> bool:
    said = draft.own[span[0] : span[1]]
    own = sum(character.isalpha() for character in said)
    every = sum(character.isalpha() for character in draft.text[span[0] : span[1]])
    return own > 2 and 2 * own > every and not draft.markup.inside(span[0], "heading")
