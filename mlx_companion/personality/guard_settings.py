"""What the personality guard enforces for a profile: the section `guard:` of its YAML file.

Every limit has a value that switches it off (null or false), and every list may be extended::

    guard:
      level: strict
      max_exclamations: 0
      topics:
        coffee: {}                                    # comes with the guard
        alcohol: {terms: [wine, beer], substitute: juice}
      phrases: {"circle back": "return", "I hope this helps": ""}
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, get_args

from mlx_companion.errors import ConfigError

# Topics whose terms come with the guard's pack.
KNOWN_TOPICS = ("coffee",)
Level = Literal["strict", "moderate", "monitor"]


@dataclass(frozen=True)
class TopicSettings:
    """A topic that the companion does not bring up.

    Attributes:
        terms: words and phrases of it, besides those that come with the guard for a topic of
            this name; a plural in -s is found as well.
        substitute: what to say instead; None takes the guard's own for a topic that it knows. An
            empty text, or None for a topic of your own, leaves the sentence out where it can.
        exceptions: phrases that hold a term and are no matter of the topic.
    """

    terms: tuple[str, ...] = ()
    substitute: str | None = None
    exceptions: tuple[str, ...] = ()


@dataclass(frozen=True)
class GuardSettings:
    """Rules of style that a reply must keep, and how far the guard goes.

    Attributes:
        level: strict rewrites everything, moderate what can be enumerated (tone is reported),
            monitor only reports.
        no_asterisk_actions: no *smiles*, no *sips tea*.
        no_excited_capitals: no AMAZING; acronyms, code, headings and quotations may have capitals.
        max_exclamations: exclamation marks in one reply; None for any number.
        max_name_uses: how often a reply says the person's name; None for any number.
        max_emoji: emoji in one reply; None for any number.
        no_cheerleading: no gushing praise, hype or flattery.
        no_servile_filler: no offers of help, no "Certainly!" before the answer.
        topics: topic -> its settings; a topic's violation is called `<topic>_reference`.
        phrases: prohibited phrase -> what to say instead; an empty text leaves it out.
        empty_reply: what is said when nothing of a reply is left.

    Raises:
        ConfigError: a level, limit, topic or phrase that cannot be used.
    """

    level: Level = "moderate"
    no_asterisk_actions: bool = True
    no_excited_capitals: bool = True
    max_exclamations: int | None = 1
    max_name_uses: int | None = 1
    max_emoji: int | None = 2
    no_cheerleading: bool = True
    no_servile_filler: bool = False
    topics: dict[str, TopicSettings] = field(default_factory=lambda: {"coffee": TopicSettings()})
    phrases: dict[str, str] = field(default_factory=dict)
    empty_reply: str = "Noted."

    def __post_init__(self) -> None:
        if self.level not in get_args(Level):
            known = ", ".join(get_args(Level))
            raise ConfigError(f"guard.level is {self.level!r}; expected one of {known}")
        for name in ("max_exclamations", "max_name_uses", "max_emoji"):
            limit = getattr(self, name)
            if limit is not None and (isinstance(limit, bool) or limit < 0):
                raise ConfigError(f"guard.{name} is {limit!r}; expected 0 or more, or null")
        for topic in self.topics:
            if not topic.isidentifier():
                raise ConfigError(
                    f"guard.topics has '{topic}'; a topic is letters, digits and underscores"
                )
        if not all(phrase.strip() for phrase in self.phrases):
            raise ConfigError("guard.phrases has an empty phrase; remove it")
        if not self.empty_reply.strip():
            raise ConfigError("guard.empty_reply is empty; give a short neutral sentence")
        for topic, one in self.topics.items():
            if not one.terms and topic not in KNOWN_TOPICS:
                raise ConfigError(
                    f"guard.topics.{topic} has no terms, and the guard knows none for it; give "
                    f"terms, or one of {', '.join(KNOWN_TOPICS)}"
                )
            if not all(term.strip() for term in one.terms):
                raise ConfigError(f"guard.topics.{topic} has an empty term; remove it")
        self._refuse_circles()

    def _refuse_circles(self) -> None:
        """What is said instead may hold nothing prohibited: it would be replaced for ever."""
        instead = [
            (f"guard.phrases replaces '{phrase}' by", words)
            for phrase, words in self.phrases.items()
        ]
        instead += [
            (f"guard.topics.{topic}.substitute is", one.substitute)
            for topic, one in self.topics.items()
            if one.substitute
        ]
        instead.append(("guard.empty_reply is", self.empty_reply))
        prohibited = [*self.phrases, *(term for t in self.topics.values() for term in t.terms)]
        prohibited += [topic for topic in self.topics if topic in KNOWN_TOPICS]
        for where, words in instead:
            for term in prohibited:
                if re.search(rf"(?<!\w){re.escape(term.strip())}s?(?!\w)", words, re.IGNORECASE):
                    raise ConfigError(
                        f"{where} '{words}', which holds the prohibited '{term}'; say it without"
                    )
        limit = self.max_exclamations
        if limit is not None and self.empty_reply.count("!") > limit:
            raise ConfigError(
                f"guard.empty_reply is '{self.empty_reply}', with more exclamation marks than "
                f"max_exclamations ({limit}); say it with fewer"
            )
