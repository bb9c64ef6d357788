"""A sentence that gushes, said again by the model that answers, and taken only when it is faithful.

Why beside the guard: the guard has milliseconds, a model needs a second or more for a sentence. So
the guard mends every reply by rules first, and that stands. Then, in a step with a budget of its
own, the model may say each sentence of the wrong tone again; the guard puts it in when it breaks no
rule and has kept every number, name, link and code, and when it is `faithful` here. Otherwise the
sentence stays as the rules have mended it::

    rewriter = ToneRewriter(ask, seconds=4.0)
    result = PersonalityGuard(rewriter=rewriter).process(reply)
    rewriter.asked, rewriter.taken        # sentences given to the model, and those it said well

`ToneStep` is that as a step of a companion: where it is worth while, on a thread, within its time.

`faithful` cannot know what a sentence means; it knows what small models get wrong: talk about the
task, new content, lost content, another person, a lost "not", a question turned into an answer.
"""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable
from typing import Any

import mlx.nn as nn
from mlx_lm.utils import get_total_parameters

from mlx_companion.errors import LoopError
from mlx_companion.loop.trace import TraceStep
from mlx_companion.runtime.device import is_cpu
from mlx_companion.slm.config import GuardConfig
from mlx_companion.slm.lanes import Lane
from mlx_companion.slm.module import SLMModule
from mlx_companion.slm.resources import ResourceScheduler
from mlx_companion.slm.results import GuardResult

__all__ = ["Ask", "ToneRewriter", "ToneStep", "faithful", "worth_while"]

# Chat messages, the most tokens, and seconds: what the model says, or "" when it was too late.
Ask = Callable[[list[dict[str, str]], int, float], str]

_SYSTEM = (
    "You edit sentences. Say the same thing in plain, dry words: no praise, no excitement, no "
    "exclamation mark. Keep every fact, name and number. Answer with one sentence only."
)
_EXAMPLES = (
    (
        "Wow, what an amazing plan, the 9:40 train gets you to Bath in two hours!",
        "The 9:40 train gets you to Bath in two hours.",
    ),
    (
        "I'm so incredibly thrilled to help you with that stubborn printer today!",
        "I can help you with that stubborn printer today.",
    ),
    (
        "You are an absolute superstar for reading the first three chapters already!",
        "You have read the first three chapters already.",
    ),
)
_WORDS = re.compile(r"[A-Za-z]+(?:['\u2019-][A-Za-z]+)*")
_NEGATED = re.compile(r"\b(?:no|not|never|none|nothing|without|cannot|\w+n['\u2019]t)\b", re.I)
_PERSONS = (
    frozenset({"i", "me", "my", "mine", "i'm", "i've", "i'll", "i'd"}),
    frozenset({"we", "us", "our", "ours", "we're", "we've", "we'll", "we'd", "let's"}),
    frozenset({"you", "your", "yours", "you're", "you've", "you'll", "you'd"}),
)
_COUNTED = """
    one two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty
    hundred thousand million half twice both first second third last
"""
_ABOUT_THE_TASK = re.compile(
    r"\b(?:sentence|rewrit\w+|rephras\w+|tone|here is|here's|sure|certainly|as an ai|understated|"
    r"plain words)\b",
    re.I,
)
# Words that carry no content, and words that only praise: losing them loses nothing.
_EMPTY = """
    a an the and or but so that this these those it its is are was were be been being am do does
    did done have has had having will would can could may might shall should must to of in on at
    by for from with as into out up down over about than then there here what which who how when
    where why if while because just really truly absolutely totally simply very such quite super
    incredibly completely utterly literally actually definitely certainly oh wow ah yay hey well
    yes amazing awesome fantastic incredible wonderful brilliant phenomenal spectacular fabulous
    magnificent marvelous marvellous stellar superb terrific excellent outstanding epic lovely
    exciting inspiring great perfect beautiful delightful impressive insightful fascinating
    thrilled excited delighted happy glad proud love adore best ever rock star superstar legend
    genius champion hero fire nailed crushed smashed slayed go got get i me my we us our you your
    he she they them his her their i'm i've i'll i'd we're we've we'll you're you've you'll
    it's that's what's let's there's here's
"""
_COUNTED_WORDS, _EMPTY_WORDS = frozenset(_COUNTED.split()), frozenset(_EMPTY.split())
_TONE = "tone_cheerleader"
# Smaller models say hardly any sentence faithfully (docs/companion.md has the figures).
_LEAST_PARAMETERS = 1e9
# The guard's own work comes on top of the model's.
_GRACE = 2.0
_LEAST_KEPT = 0.6
_MOST_NEW = 0.25
_SHORTEST, _LONGEST = 0.3, 1.4


class ToneRewriter:
    """The guard's rewriter over a model that chats; for one reply.

    Args:
        ask: the model.
        seconds: for all sentences of the reply together.

    Attributes:
        asked: sentences that the model was given.
        taken: of them, those it said faithfully.
        refused: what it said of the others, for traces and figures.
    """

    def __init__(self, ask: Ask, seconds: float) -> None:
        self._ask = ask
        self._deadline = time.monotonic() + seconds
        self._said: dict[str, str] = {}
        self.asked = 0
        self.taken = 0
        self.refused: list[tuple[str, str]] = []

    def __call__(self, instruction: str) -> str:
        """A faithful sentence in place of the one at an instruction's end, or ""."""
        sentence = instruction.rpartition("\n\n")[2].strip()
        # The guard asks again in its next round.
        if sentence not in self._said:
            self._said[sentence] = self._rewritten(sentence)
        return self._said[sentence]

    def _rewritten(self, sentence: str) -> str:
        left = self._deadline - time.monotonic()
        if left <= 0 or "\n" in sentence or not _content(sentence):
            return ""
        self.asked += 1
        most = 8 + 2 * len(sentence.split())
        said = _cleaned(self._ask(_messages(sentence), most, left))
        if not faithful(sentence, said):
            self.refused.append((sentence, said))
            return ""
        self.taken += 1
        return said


class ToneStep:
    """Rewriting as a step of a reply: whether to, and within its own budget.

    Args:
        config: `rewriter` and `rewriter_seconds` of the guard.
        scheduler: under any pressure of memory, battery or heat the rules have to do.
        lm: the model that would rewrite.
    """

    def __init__(self, config: GuardConfig, scheduler: ResourceScheduler, lm: Any) -> None:
        self._config, self._scheduler = config, scheduler
        wanted = config.adapter is not None if config.rewriter is None else config.rewriter
        self._wanted = wanted or (config.rewriter is None and worth_while(lm))
        self._lane = Lane("tone-rewriter")

    def refusal(self, guard: SLMModule[Any] | None, found: GuardResult | None) -> str | None:
        """Why nothing is to be rewritten; None when it is."""
        if found is None or _TONE not in found.violations_detected:
            return "no sentence of the wrong tone"
        if not self._wanted:
            return "switched off" if self._config.rewriter is False else "the model is too small"
        if getattr(guard, "rewriter", found) is not None:
            return "this guard takes no rewriter, or has its own"
        level = getattr(getattr(guard, "settings", None), "level", "strict")
        if level != "strict":
            return f"the guard's level is {level}"
        advice = self._scheduler.advice
        return None if advice.scale >= 1 else f"spared: {advice.reason}"

    async def run(
        self, guard: SLMModule[Any], item: Any, mended: str, ask: Ask, step: TraceStep
    ) -> str:
        """The reply with sentences that the model has rewritten; `mended` where it could not.

        Args:
            guard: that mended the reply by rules.
            item: what it was given.
            mended: what came of it.
            ask: the model.
            step: of the trace.

        Raises:
            LoopError: it took too long, or the guard failed.
        """
        rewriter = ToneRewriter(ask, self._config.rewriter_seconds)
        # The same guard, rules and weights and all, but for this.
        own: Any = copy.copy(guard)
        own.rewriter = rewriter

        def work() -> tuple[GuardResult, bool]:
            result = own.process(item)
            text = result.rewritten_response
            # Once more without the model: nothing may be left to mend.
            return result, guard.process({**item, "text": text}).rewritten_response == text

        done = await self._lane.run(work, self._config.rewriter_seconds + _GRACE)
        if done.error is not None:
            raise LoopError(f"sentences stay as the rules mended them: {done.error!r}")
        result, clean = done.value
        put_in = sum(1 for change in result.changes_made if change.get("how") == "rewritten")
        step.details = {"asked": rewriter.asked, "faithful": rewriter.taken, "put_in": put_in}
        step.made = f"{put_in} of {rewriter.asked} sentences rewritten"
        return str(result.rewritten_response) if put_in and clean else mended

    def close(self) -> None:
        """Let the thread go."""
        self._lane.close()


def worth_while(lm: Any) -> bool:
    """Whether a model is large enough, and the machine quick enough, for rewriting by default."""
    model = getattr(lm, "model", None)
    if not isinstance(model, nn.Module) or is_cpu():
        return False
    return bool(get_total_parameters(model) >= _LEAST_PARAMETERS)


def faithful(before: str, after: str) -> bool:
    """Whether a sentence may stand for another one; see the module for what that can mean.

    Args:
        before: the sentence as it was.
        after: what a model made of it.
    """
    old, new = _content(before), _content(after)
    lengths = [len(one.split()) for one in (before, after)]
    if not new or not _SHORTEST <= lengths[1] / max(lengths[0], 1) <= _LONGEST:
        return False
    if _ABOUT_THE_TASK.search(after) and not _ABOUT_THE_TASK.search(before):
        return False
    asks = [one.rstrip(" \"'!)").endswith("?") for one in (before, after)]
    negated = [len(_NEGATED.findall(one)) for one in (before, after)]
    if asks[0] != asks[1] or negated[0] != negated[1] or _counts(before) != _counts(after):
        return False
    if _capitals(after) != _capitals(before):
        return False
    # Only the one who speaks may go: "I love that you sing" may become "You sing".
    if not _persons(before) - {0} <= _persons(after) <= _persons(before):
        return False
    kept = len(old & new) / len(old) if old else 0.0
    return kept >= _LEAST_KEPT and len(new - old) / len(new) <= _MOST_NEW


def _messages(sentence: str) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": _SYSTEM}]
    for gushing, plain in _EXAMPLES:
        messages.append({"role": "user", "content": gushing})
        messages.append({"role": "assistant", "content": plain})
    return [*messages, {"role": "user", "content": sentence}]


def _cleaned(said: str) -> str:
    """The first line, without quotation marks around it."""
    line = next((one.strip() for one in said.splitlines() if one.strip()), "")
    for first, last in (('"', '"'), ("\u201c", "\u201d"), ("'", "'")):
        if len(line) > 2 and line.startswith(first) and line.endswith(last):
            line = line[1:-1].strip()
    return line


def _words(text: str) -> list[str]:
    return [word.lower().replace("\u2019", "'") for word in _WORDS.findall(text)]


def _content(text: str) -> set[str]:
    """Stems of the words that say something."""
    return {_stem(word) for word in _words(text) if word not in _EMPTY_WORDS and len(word) > 1}


def _stem(word: str) -> str:
    for ending in ("ing", "ed", "es", "s", "ly"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word.removesuffix(ending)
    return word


def _counts(text: str) -> list[str]:
    return sorted(word for word in _words(text) if word in _COUNTED_WORDS)


def _capitals(text: str) -> set[str]:
    """Words with a capital that is not a sentence's first: names, languages, days."""
    found = set(re.findall(r"(?<![.!?]\s)(?<!^)\b[A-Z][\w-]*", text))
    return {word for word in found if word.lower() not in _EMPTY_WORDS}


def _persons(text: str) -> set[int]:
    words = set(_words(text))
    return {number for number, person in enumerate(_PERSONS) if words & person}
