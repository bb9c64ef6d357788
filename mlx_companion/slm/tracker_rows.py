"""Training rows of the context tracker: places of senses, pairs of registers, topics, depths.

    sense_rows(lexicon, rng, around)      # places of ambiguous words, labelled
    formality_rows(texts)                 # the same contents in two registers

What the label is not must not tell it: senses come in any dress, and every content of the
formality rows comes in both registers, so that neither topic nor length is the label.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

from mlx_companion.slm.slang_lexicon import Lexicon
from mlx_companion.slm.slang_sense import Place
from mlx_companion.slm.tracker_register import careful, casual
from mlx_companion.slm.tracker_sources import Texts, sample
from mlx_companion.slm.tracker_texts import written
from mlx_companion.slm.tracker_words import tokens

FormalRow = tuple[str, int, str, str]
SenseRow = tuple[Place, int, str, str]
_TOPICS = {
    "money": "balance bill_balance bill_due credit_limit credit_score pay_bill transfer taxes "
    "interest_rate card_declined transactions spending_history min_payment freeze_account "
    "improve_credit_score income rollover_401k report_fraud account_blocked apr",
    "food": "recipe cook_time calories ingredients_list ingredient_substitution meal_suggestion "
    "food_last nutrition_info restaurant_suggestion restaurant_reviews restaurant_reservation",
    "travel": "book_flight book_hotel flight_status carry_on lost_luggage travel_suggestion "
    "international_visa plug_type car_rental travel_alert vaccines translate",
    "home": "smart_home shopping_list order order_status",
    "work": "pto_balance pto_request direct_deposit payday schedule_meeting w2",
    "planning": "alarm reminder calendar calendar_update timer todo_list time date next_holiday "
    "todo_list_update reminder_update timezone",
    "driving": "gas gas_type oil_change_how oil_change_when tire_change tire_pressure traffic mpg "
    "jump_start directions distance schedule_maintenance",
    "weather": "weather",
    "entertainment": "play_music what_song next_song update_playlist",
    "chat": "greeting goodbye thank_you tell_joke yes no maybe are_you_a_bot what_is_your_name "
    "how_old_are_you meaning_of_life fun_fact",
}


def sense_rows(
    lexicon: Lexicon, rng: random.Random, around: Sequence[str] = (), every: int = 1
) -> list[SenseRow]:
    """Places of the written sentences: place, slang or not, term, sentence.

    Each sentence comes plain, dressed differently, and, where there are any, beside another
    message, so that neither marks nor length tell the sense.
    """
    rows = []
    for term, label, sentence in _written_senses(every):
        for text, first in _dressed(sentence, rng, around):
            place = _place_of(lexicon, text, term, first)
            if place is not None:
                rows.append((place, label, term, sentence))
    return rows


def _written_senses(every: int) -> Iterator[tuple[str, int, str]]:
    """Term, slang or not, sentence."""
    for line in written("senses").splitlines()[::every]:
        if line.startswith("#") or " + " not in line:
            continue
        term, rest = line.split(" + ", 1)
        for label, part in zip((1, 0), rest.split(" - ", 1), strict=True):
            yield from ((term, label, sentence.strip()) for sentence in part.split(" / "))


def _dressed(sentence: str, rng: random.Random, around: Sequence[str]) -> Iterator[tuple[str, int]]:
    yield sentence, 0
    proper = sentence[0].upper() + sentence[1:]
    proper += rng.choice([".", ".", "!", "?"]) if sentence[-1].isalnum() else ""
    yield rng.choice([sentence.lower(), proper, proper]), 0
    if around and rng.random() < 0.5:
        other = rng.choice(around)
        before = rng.random() < 0.5
        mark = "" if other[-1:] in ".!?" else rng.choice([".", ",", "..."])
        yield (f"{other}{mark} {proper}", len(other)) if before else (f"{proper} {other}", 0)


def _place_of(lexicon: Lexicon, text: str, term: str, first: int) -> Place | None:
    found = tokens(text)
    for match in lexicon.matches(found):
        said = " ".join(token.low for token in found[match.first : match.last])
        mine = term in (match.entry.term, said, said.removesuffix("'s"))
        if match.entry.ambiguous and mine and found[match.first].start >= first:
            return Place(found, match.first, match.last, match.entry.term, text)
    return None


def plain_senses(texts: Texts, lexicon: Lexicon, most: int = 10) -> list[SenseRow]:
    """Ambiguous words of books and commands, where they are hardly ever slang."""
    rows = []
    counts: dict[str, int] = defaultdict(int)
    for text in [*texts.narration, *(query for query, _ in texts.queries)]:
        found = tokens(text)
        for match in lexicon.matches(found):
            term = match.entry.term
            if match.entry.ambiguous and counts[term] < most:
                counts[term] += 1
                rows.append((Place(found, match.first, match.last, term, text), 0, term, text))
    return rows


def formality_rows(texts: Texts) -> list[FormalRow]:
    """Text, formal or not, generator, and the content that both registers share.

    Some casual texts are given a capital and a full stop, and some careful ones lose theirs:
    otherwise marks alone would tell the register.
    """
    rng, rows = texts.rng, list(written_pairs())
    for comment in texts.comments:
        fixed = careful(comment, rng)
        if _changed(comment, fixed) and 8 < len(fixed) < 300:
            rows += _pair(comment, fixed, "comments", comment, rng)
    for query, _ in texts.queries[:: max(1, len(texts.queries) // 2500)]:
        fixed = careful(query, rng)
        loose = query if rng.random() < 0.5 else casual(fixed, rng)
        rows += _pair(loose, fixed, "queries", query, rng)
    for sentence in texts.narration:
        rows += _pair(casual(sentence, rng), sentence, "narration", sentence, rng)
    return rows + list(everyday_rows(texts.every))


def everyday_rows(every: int = 1) -> Iterator[FormalRow]:
    """Plain sentences of everyday talk with capitals and marks: casual, though nothing shows it.

    They are the sense check's, so most hold no slang. Without them whatever is neat looks formal.
    """
    for _, _, sentence in _written_senses(every):
        yield neatly(sentence), 0, "everyday", sentence


def _pair(
    loose: str, fixed: str, generator: str, content: str, rng: random.Random
) -> Iterator[FormalRow]:
    neat = neatly(loose)
    # Without its marks a casual text is casual only if its words are.
    if rng.random() < 0.4 and _letters(neat) != _letters(fixed):
        loose = neat
    if rng.random() < 0.12:
        fixed = fixed.rstrip(".")
    yield loose, 0, generator, content
    yield fixed, 1, generator, content


def neatly(text: str) -> str:
    """The text with a capital and one mark at its end; its words stay."""
    text = re.sub(r"\s*[.!?,]*$", "", text.strip()) + ("?" if text.rstrip().endswith("?") else ".")
    return text[:1].upper() + re.sub(r"\bi\b", "I", text[1:])


def _letters(text: str) -> str:
    return re.sub(r"[^a-z]", "", text.lower())


def written_pairs() -> Iterator[FormalRow]:
    """The written pairs, and mechanical variants of both sides."""
    rng = random.Random(1)
    for line in written("pairs").splitlines():
        if "||" not in line:
            continue
        loose, fixed = (side.strip() for side in line.split("||"))
        rows = [(loose, 0), (fixed, 1), (casual(fixed, rng), 0)]
        yield from ((text, label, "pairs", loose) for text, label in rows)


def _changed(comment: str, fixed: str) -> bool:
    """The rules found enough to mend, and left nothing casual that they can see."""
    plain, mended = _letters(comment), _letters(fixed)
    left = re.search(r"[’']|\b(?:fuck|shit|damn|ass|hell|crap)\w*|\d\w|/", fixed, re.IGNORECASE)
    marks = comment[:1].islower() or comment[-1:] not in ".?" or "!" in comment or "..." in comment
    return left is None and (plain != mended or marks)


def _sections(name: str) -> Iterator[tuple[str, str]]:
    label = ""
    for line in written(name).splitlines():
        if line.startswith("["):
            label = line.strip("[]")
        elif line and not line.startswith("#"):
            yield from ((text.strip(), label) for text in line.split(" / "))


def topic_rows(texts: Texts) -> list[tuple[str, str]]:
    """Texts and their everyday topics."""
    topic_of = {intent: topic for topic, those in _TOPICS.items() for intent in those.split()}
    rows = [(text, topic_of[i]) for text, i in texts.queries if i in topic_of]
    by_topic: dict[str, list[str]] = defaultdict(list)
    for text, topic in rows:
        by_topic[topic].append(text)
    few = [(t, topic) for topic, those in by_topic.items() for t in sample(those, 250, texts.rng)]
    # The written rows are few and of the kind that people say to a companion.
    return few + [row for row in _sections("topics") for _ in range(4)]


def depth_rows(texts: Texts) -> list[tuple[str, str]]:
    """Texts and how technical they are: everyday, user, specialist."""
    rows = [row for row in _sections("depth") for _ in range(4)]
    plain = [text for text in texts.comments[:400] if len(text) > 15]
    return rows + [(text, "everyday") for text in plain]
