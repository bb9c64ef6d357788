"""Terms that would become the same word: "an espresso or a latte" must not read "a tea or a tea".

Where several terms of a topic have one substitute in a sentence, a table or a list, those that are
joined become one, and of the others the second is "another tea", the third "a third tea"::

    found = find_topic(draft, "coffee", rule)    # details have "joined" or "nth"
    distinct("tea", 2, article=True, determined=False)     # "another tea"
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mlx_companion.slm.guard_text import Draft, Finding

_JOINT = re.compile(r"(?:, | or |, or | and |, and |/| / )(?:an? |the |some )?")
_PLURAL_VERB = re.compile(r" (?:are|were|have|both|differ|do|don't)\b")
_ITEM = re.compile(r"[\s>|]*(?:[-*+\u2022]|\d{1,3}[.)])\s[\s*_]*")
# A longer line is no row of a table that a person reads.
_WIDEST = 2000
_ORDINALS = ("other", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")


def tell_apart(draft: Draft, topic: str, found: Sequence[Finding]) -> None:
    """Write into the details of findings how they are kept apart.

    Args:
        draft: the reply.
        topic: its name; the term of this name stands for all others and is told from none.
        found: the findings of a topic in order, with "after" and "term".
    """
    previous: Finding | None = None
    said: dict[str, list[str]] = {}
    place: tuple[object, ...] = ()
    for one in found:
        same = previous is not None and _same_block(draft, previous.end, one.start)
        here = _place(draft, one.start, place if same else ())
        said = said if here == place else {}
        place = here
        term, after = _singular(one.detail["term"]), _singular(one.detail["after"])
        terms = said.setdefault(after, [])
        if after and previous is not None and _joined(draft, previous, one):
            one.detail["joined"] = previous.end
        elif after and term != topic and topic not in term.split():
            terms += [] if term in terms else [term]
            one.detail["nth"] = terms.index(term) + 1
        previous = one


def _singular(word: str) -> str:
    return word.removesuffix("s")


def _same_block(draft: Draft, start: int, end: int) -> bool:
    return end - start < 1000 and "\n\n" not in draft.text[start:end]


def _place(draft: Draft, start: int, before: tuple[object, ...]) -> tuple[object, ...]:
    """The sentence, or the column of a table or list that goes on from `before`."""
    line = draft.line(start)[0]
    left = draft.text[line : min(start, line + 100)]
    if start - line < _WIDEST and draft.markup.inside(start, "table"):
        kind = ("table", draft.text.count("|", line, start))
    elif _ITEM.fullmatch(left) and start - line < 100:
        kind = ("list", 0)
    else:
        return ("sentence", draft.sentence(start))
    number = before[2] if len(before) == 3 and before[:2] == kind else line
    return (*kind, number)


def _joined(draft: Draft, first: Finding, second: Finding) -> bool:
    if draft.text[first.end : second.start] == " ":
        # "Starbucks Coffee"
        return True
    same = _singular(first.detail["after"]) == _singular(second.detail["after"])
    if not same or draft.markup.inside(second.start, "table"):
        return False
    joint = _JOINT.fullmatch(draft.text[first.end : second.start][:12]) is not None
    return joint and not _PLURAL_VERB.match(draft.text, second.end)


def distinct(after: str, nth: int, *, article: bool, determined: bool) -> str:
    """The substitute for the `nth` term of one substitute, with its article.

    Args:
        after: the substitute.
        nth: 2 or more.
        article: "a" or "an" stood before the term.
        determined: "the", "my" or the like does.
    """
    ordinal = _ORDINALS[nth - 2] if nth - 2 < len(_ORDINALS) else "further"
    if nth == 2 and not determined and (article or not after.endswith("s")):
        return f"another {after}"
    return f"a {ordinal} {after}" if article else f"{ordinal} {after}"
