"""Mending tone: the sentence that cheers is rewritten, toned down or left out.

In this order: a language model's sentence, where there is a model and its sentence passes every
check; the sentence without its superlatives; no sentence, where nothing is lost with it. A sentence
that can be none of these stays as it is, reported.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

from mlx_companion.personality.lexicon import is_word
from mlx_companion.personality.markup import PROTECTED
from mlx_companion.slm.guard_detect import Detector
from mlx_companion.slm.guard_edits import Edit, removable, removal_of_sentence
from mlx_companion.slm.guard_revision import Revision
from mlx_companion.slm.guard_text import Draft, Finding
from mlx_companion.slm.guard_tone import TONE_CHEERLEADER

PROMPT = (
    "Rewrite this one sentence in a dry, understated tone. Keep its meaning, every name and every "
    "number. No praise, no exclamation mark. Answer with the sentence only.\n\n{sentence}"
)
# Neighbours that share a space go one after the other.
_ROUNDS = 12
_LONGER = 1.6
# Space at an end, several empty lines, several spaces.
_GAPS = re.compile(r"\A\s+|\s+\Z|\n\n\n+|(?<=\S) {2,}(?=\S)")
# Praise in fewer words than this says nothing else.
_SHORT = 6
_TONED_DOWN: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), calm)
    for pattern, calm in (
        (r"\b(?:i'm|i am) (?:so |very |really |just )*(?:excited|thrilled|stoked) to\b", "I will"),
        (r"\b(?:i'd be|i would be) (?:absolutely )?(?:delighted|thrilled) to\b", "I can"),
        (r"\b(?:i )(?:absolutely |just |really )?(?:love|adore) \b", "I like "),
        (r"^(?:wow|yay|woo ?hoo|hooray|amazing|awesome)[,!] ?", ""),
        (
            r"\b(?:so|absolutely|totally|truly|simply|just|really|super|incredibly|utterly) "
            r"(?=amazing|awesome|fantastic|incredible|wonderful|brilliant|phenomenal|proud|"
            r"excited|inspiring|great|stunning|spectacular)",
            "",
        ),
        (
            r"\ban? (?=amazing|awesome|fantastic|incredible|wonderful|brilliant|phenomenal|"
            r"spectacular|extraordinary|outstanding|magnificent|fabulous|stunning)",
            "a ",
        ),
        (
            r"\b(?:amazing|awesome|fantastic|incredible|wonderful|brilliant|phenomenal|stellar|"
            r"spectacular|extraordinary|outstanding|magnificent|fabulous|mind-blowing|stunning)\b",
            "decent",
        ),
    )
)

_DECENT_TWICE = re.compile(
    r"\b(decent)(?:(?:,| and|, and|,? yet| or) (?:an? )?decent\b)+", re.IGNORECASE
)


def mend_tone(
    revision: Revision, draft: Draft, detector: Detector, rewriter: Callable[[str], str] | None
) -> None:
    """Mend every sentence that cheers, as far as it can be.

    Args:
        revision: what is edited.
        draft: the reply as it was given, for the person's name.
        detector: the rules.
        rewriter: a language model, from instruction to sentence.
    """
    for _ in range(_ROUNDS):
        current = Draft(revision.text, draft.user_name, draft.prompt)
        edits = [
            edit
            for finding in detector.tonal(current)
            if (edit := _mended(current, finding, detector, rewriter)) is not None
        ]
        leaving = [edit for edit in edits if edit.how == "removed"]
        if not _something_stays(revision.text, leaving):
            leaving.pop()
        if not revision.apply([edit for edit in edits if edit.how != "removed"] or leaving):
            return
        # At once: a line that begins with four spaces would be code.
        _tidy(revision)


def _tidy(revision: Revision) -> None:
    """Take out the spaces and empty lines that are left where sentences went."""
    edits = []
    for found in _GAPS.finditer(revision.text):
        first, last = not found.start(), found.end() == len(revision.text)
        start, end = revision.origin(*found.span())
        gone = revision.original[0 if first else start : None if last else end]
        if any(map(str.isalpha, gone)):
            kept = "" if first or last else "\n\n" if "\n" in found[0] else " "
            edits.append(Edit(*found.span(), kept, TONE_CHEERLEADER, "removed"))
    revision.apply(edits)


def _something_stays(text: str, leaving: list[Edit]) -> bool:
    """Whether words are left where these sentences go: the last one must not go as well."""
    blank = list(text)
    for edit in leaving:
        blank[edit.start : edit.end] = " " * (edit.end - edit.start)
    return not leaving or any(map(str.isalpha, blank))


def _mended(
    draft: Draft, finding: Finding, detector: Detector, rewriter: Callable[[str], str] | None
) -> Edit | None:
    start, end = finding.start, finding.end
    end = start + len(draft.text[start:end].rstrip())
    said = draft.text[start:end]
    if rewriter is not None:
        written = _asked(rewriter, said)
        if written and _sound(draft, said, written, detector):
            return Edit(start, end, written, finding.violation, "rewritten")
    short = len(said.split()) < _SHORT
    if short and removable(draft, finding.start, finding.end):
        return removal_of_sentence(draft, finding.start, finding.end, finding.violation)
    calm = _toned_down(said)
    plain = not draft.markup.touches(start, end, (*PROTECTED, "quote"))
    if calm != said and plain and _sound(draft, said, calm, detector):
        return Edit(start, end, calm, finding.violation, "softened")
    if removable(draft, finding.start, finding.end):
        return removal_of_sentence(draft, finding.start, finding.end, finding.violation)
    if draft.text.strip() == said.strip() and _holds_nothing(draft, said):
        empty = detector.settings.empty_reply
        return Edit(start, end, empty, finding.violation, "replaced")
    return None


def _asked(rewriter: Callable[[str], str], sentence: str) -> str:
    try:
        written = rewriter(PROMPT.format(sentence=sentence))
    # Whatever a model or its server does, the deterministic edit is there.
    except Exception:
        return ""
    return " ".join(written.split()) if isinstance(written, str) else ""


def _sound(draft: Draft, before: str, after: str, detector: Detector) -> bool:
    """Tell whether a new sentence breaks no rule and has kept the old one's substance."""
    if not after or len(after) > _LONGER * len(before) + 20 or after == before:
        return False
    fresh = Draft(after, draft.user_name)
    marks = [one for one in "!\uff01" if after.count(one) > before.count(one)]
    if marks or detector.enumerable(fresh) or detector.tonal(fresh):
        return False
    return substance(before) == substance(after)


def substance(sentence: str) -> Counter[str]:
    """What must survive a rewrite: numbers, protected pieces and names, counted."""
    draft = Draft(sentence)
    kept = [sentence[start:end] for start, end in draft.markup.spans(PROTECTED)]
    kept += re.findall(r"\d+(?:[.,:/]\d+)*", draft.prose)
    words = re.findall(r"(?<![.!?]\s)(?<!^)\b[A-Z][\w'\u2019-]*", draft.prose)
    kept += [word for word in words if not is_word(word)]
    return Counter(kept)


def _toned_down(sentence: str) -> str:
    calm = sentence
    for pattern, after in _TONED_DOWN:
        calm = pattern.sub(after, calm)
    if calm == sentence:
        return sentence
    # Two words of praise for one thing have become the same.
    calm = _DECENT_TWICE.sub(r"\1", calm.replace("!", ".")).strip()
    return calm[:1].upper() + calm[1:]


def _holds_nothing(draft: Draft, said: str) -> bool:
    return not substance(said) and not draft.markup.touches(0, len(draft.text), PROTECTED)
