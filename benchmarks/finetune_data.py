"""The rows of `finetune.py`: three shapes of data from one small grammar, the same for a seed.

    chat            a question behind a little context, a reply of any length: log-normal lengths
    classification  a short sentence and the name of its class: few useful tokens, much template
    documents       whole texts of 500 to 900 tokens, all of them trained on

The sentences are readable and mean nothing; what counts are the lengths.
"""

from __future__ import annotations

import math
import random
from typing import Any, Literal

Shape = Literal["chat", "classification", "documents"]
SHAPES: tuple[Shape, ...] = ("chat", "classification", "documents")

SUBJECTS = "kettle garden neighbor river teacher engine letter window market bicycle lamp orchard"
VERBS = "warms carries follows keeps mends moves answers paints crosses remembers lifts measures"
PLACES = (
    "the station,the old mill,a quiet street,the harbor,the library,a long table,the north wall"
)
TIMES = "in the morning,before dinner,after the rain,on Sundays,every spring,at the end of the week"
QUESTIONS = "What does the {} do|Why is it that the {} changes|Tell me about the {}|Describe the {}"
# Tokens of a sentence of the grammar, about.
_SENTENCE = 14


def made(shape: Shape, count: int, seed: int) -> list[dict[str, Any]]:
    """Rows as a data file has them: {"messages": ...} or {"text": ...}."""
    rng = random.Random(f"{shape} {seed}")
    make = {"chat": _chat, "classification": _classified, "documents": _document}[shape]
    return [make(rng) for _ in range(count)]


def _chat(rng: random.Random) -> dict[str, Any]:
    subject = rng.choice(SUBJECTS.split())
    question = rng.choice(QUESTIONS.split("|")).format(subject) + "?"
    context = [_sentence(rng) for _ in range(_log_normal(rng, 1.5, 0.8) - 1)]
    reply = [_sentence(rng, subject) for _ in range(_log_normal(rng, 4.0, 0.8))]
    return _turn(" ".join([*context, question]), " ".join(reply))


def _classified(rng: random.Random) -> dict[str, Any]:
    verb = rng.choice(VERBS.split())
    what, place = rng.choice(SUBJECTS.split()), rng.choice(PLACES.split(","))
    when = f" {rng.choice(TIMES.split(','))}" if rng.random() < 0.4 else ""
    return _turn(f"someone {verb} the {what} near {place}{when}", f"{verb} {what}")


def _document(rng: random.Random) -> dict[str, Any]:
    return {"text": " ".join(_sentence(rng) for _ in range(rng.randint(500, 850) // _SENTENCE))}


def _turn(prompt: str, reply: str) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": reply},
        ]
    }


def _sentence(rng: random.Random, subject: str | None = None) -> str:
    subject = subject or rng.choice(SUBJECTS.split())
    verb, what = rng.choice(VERBS.split()), rng.choice(SUBJECTS.split())
    where, when = rng.choice(PLACES.split(",")), rng.choice(TIMES.split(","))
    return f"The {subject} {verb} the {what} near {where} {when}."


def _log_normal(rng: random.Random, middle: float, sigma: float) -> int:
    """A whole number of at least 1 with about this median."""
    return max(1, min(24, round(rng.lognormvariate(math.log(middle), sigma))))
