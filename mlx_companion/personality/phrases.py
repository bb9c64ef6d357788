"""Style rules about set phrases: flattery, canned sympathy, filler, offers, leaks, empty talk.

The same convention as `shape`: `(text, **parameters) -> str | None`. A phrase counts where it does
its work: openers at the start of the first two sentences, offers and self-reference anywhere.
Patterns demand the phrase and not merely its first word: "Sure-footed goats climb." is no filler.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from mlx_companion.personality.shape import clip
from mlx_companion.personality.words import content_words, fold, sentences, words


def _any_of(*alternatives: str, flags: int = 0) -> re.Pattern[str]:
    return re.compile("|".join(alternatives), flags)


# Ends a set phrase: punctuation, a spaced dash or the end, but not the hyphen of "sure-footed".
_END = r"(?=\s?[,.;:!?\u2013\u2014]|\s-|$)"
_VERY = r"(?:(?:really|very|truly|such|quite|so|absolutely|deeply|terribly|incredibly) ){0,2}"
_STRONG = (
    "(?:great|wonderful|excellent|fantastic|amazing|awesome|brilliant|lovely|perfect|beautiful|"
    "fascinating|thoughtful|insightful|terrific|superb|delightful|incredible|impressive)"
)
_PRAISE = rf"(?:{_STRONG}|good|interesting|important|nice|valid)"
_THIS_IS = "(?:that's|that is|this is|it's|it is|what)"
_QUESTION = "(?:question|point|observation)"
_GREETING = "(?:ah|oh|wow|hi|hello|hey|hm+|yes|no|well|honestly|my friend|dear|there)"
_INTERJECTION = re.compile(rf"(?:{_GREETING}\b[,.!]{{0,2}} ?){{1,3}}")

_FLATTERY = _any_of(
    rf"(?:(?:{_THIS_IS}|you have|you've asked)\s)?(?:an?\s)?{_VERY}{_PRAISE}\s{_QUESTION}{_END}",
    rf"{_THIS_IS}\san?\s{_VERY}{_PRAISE}\s{_QUESTION}\b",
    rf"{_THIS_IS}\san?\s{_VERY}{_STRONG}\s"
    r"(?:idea|choice|goal|plan|thought|topic|request|example|attitude|way|start|decision|story)\b",
    rf"what\san?\s{_VERY}{_STRONG}\b",
    rf"how (?:wonderful|lovely|fantastic|exciting|thoughtful|interesting){_END}",
    r"how (?:wonderful|lovely|thoughtful|interesting) (?:that|of you)\b",
    r"(?:i'm|i am) (?:so |very |really )?(?:glad|happy|pleased|delighted|thrilled|excited) "
    r"(?:that )?(?:you|to hear|to see)\b",
    r"i (?:love|like|admire|appreciate) (?:that you|how you|your)\b",
    r"(?:thank you|thanks)(?: so much| very much)? for "
    r"(?:asking|sharing|reaching|your|the|bring)",
    r"(?:you're|you are) (?:absolutely|completely|totally|so) right\b",
    r"(?:great|good|excellent) (?:thinking|job|work) (?:on|for|with)\b",
)
_SYMPATHY = _any_of(
    rf"(?:(?:i'm|i am|we're) )?{_VERY}sorry (?:to|that|for|about|you|if)\b",
    r"i (?:do |can |totally |completely |fully |truly |really )?(?:understand|appreciate) "
    r"(?:how|that|your|you|the|what|why|this|it)\b",
    r"i can (?:only |just )?imagine\b",
    r"i can (?:see|tell) (?:how|that|why|you)\b",
    r"i know (?:how|that) (?:you|it|this|hard|difficult)\b",
    r"i (?:feel|hear) (?:for )?you\b",
    r"i (?:empathize|sympathize)\b",
    r"my (?:heart goes|thoughts are|condolences|sympathies|deepest)\b",
    r"(?:that|this|it) must (?:be|feel|have been) (?:so |very |really |incredibly )?(?:a )?"
    r"(?:hard|difficult|tough|frustrating|painful|stressful|exhausting|scary|awful|upsetting|rough|"
    r"challenging|overwhelming|disappointing|confusing|tiring|lonely|terrible|heartbreaking)\b",
    r"it sounds like you(?:'re|'ve| are| have| feel| might| may)?\b",
    r"(?:it's|it is|that's|that is) (?:completely|totally|perfectly|absolutely|entirely) "
    r"(?:normal|natural|understandable|okay|ok|valid) (?:to feel|to be|to have|that you|for you)\b",
    r"(?:it's|that's) (?:completely|totally|perfectly) (?:normal|understandable)(?=[.,;])",
    r"your feelings are (?:\w+ )?valid\b",
    r"you(?:'re| are) not alone\b",
)
_FILLER = _any_of(
    r"(?:sure|certainly|of course|absolutely|definitely|okay|ok|alright|all right|no problem|"
    rf"gladly|understood|got it|indeed|sure thing|no worries){_END}",
    r"(?:sure|certainly|of course|absolutely|okay|ok) "
    r"(?:i|i'd|i'll|i'm|i can|here|here's|let|thing)\b",
    r"(?:i'd|i would|i'll|i will|i'm|i am) (?:be )?(?:more than )?(?:happy|glad|delighted) to "
    r"(?:help|assist|answer|provide|share|explain|give|offer|tell|do)\b",
    r"(?:i'd|i would) love to (?:help|assist)\b",
    r"happy to (?:help|assist)\b",
    r"let me (?:help|assist|explain|give you|provide|tell you)\b",
)
_OFFER = _any_of(
    r"\blet me know (?:if|how|what|when|whether|which|your)\b",
    r"\bfeel free to (?:ask|reach|contact|share|message|let|tell|talk)\b",
    r"\b(?:i'm|i am|i'll be|i will be|we're) (?:always |just |right )?here "
    r"(?:to|for you|if|when)\b",
    r"\b(?:how|what) (?:can|may|could|else can) (?:i|we) (?:help|assist|do for|do to help)\b",
    r"\bis there (?:anything|something) (?:else|specific|i can|in particular|you)\b",
    r"\b(?:would you like|do you want) me to\b",
    r"\bdo you (?:need|have) any (?:help|other|more)\b",
    r"\b(?:i|we) can (?:help|assist) you\b",
    r"\bhope (?:this|that|it) helps\b",
    r"\b(?:don't|do not) hesitate to\b",
    r"\bready to (?:help|assist)\b",
    r"\b(?:happy|glad) to (?:help|assist|answer)\b",
    r"\bany (?:other|more|further) questions\b",
)
_AI = (
    r"(?:ai|a\.i\.|artificial intelligence|language model|llm|chatbot|bot|computer program|"
    r"machine learning model|(?:virtual|digital|helpful|intelligent|personal|online) assistant)"
)
_SELF = _any_of(
    r"\b(?:as|being|i am|i'm|i was|since i'm|me,) (?:just |only |merely |simply )?"
    rf"(?:an?|your|the|this) (?:[a-z\-]{{1,20}} ){{0,3}}?{_AI}(?![-\w])",
    r"\bi (?:don't|do not|can't|cannot) (?:really |actually )?(?:have|possess|experience|feel) "
    r"(?:any |a |the |real |human |ability to )?(?:personal|feelings?|emotions?|physical|body|"
    r"consciousness|opinions?|preferences?|experiences?|beliefs?|memories|human|have)\b",
    r"\bmy (?:training data|programming|training|knowledge cutoff|developers?|creators?)\b",
    r"\bi(?: was| am|'m| have been) (?:trained|programmed|designed|developed|created) "
    r"(?:by|to|on|as)\b",
    r"\bhugging ?face\b",
    r"\bsmollm\d?\b",
)
_REFUSAL = _any_of(
    r"\b(?:i'm|i am) sorry,? but (?:i|as|this|that|your)\b",
    r"\b(?:i'm|i am) (?:unable|not able) to (?:provide|answer|assist|help|respond|give|share|do|"
    r"fulfill|offer|understand)\b",
    r"\bi (?:can't|cannot|can not|won't) (?:provide|assist|answer|fulfill|comply|respond|help)\b",
    r"\bplease (?:refer to|rephrase|clarify)\b",
)
_PLACEHOLDER = _any_of(
    r"\[(?=[^\[\]\n]{0,60}[A-Za-z])[^\[\]\n]{1,60}\]",
    r"\{(?=[^{}\n]{0,60}[A-Za-z])[^{}\n]{1,60}\}",
    r"<(?:your|insert|name|date|time|place|city|company|email|recipient)\b[^<>\n]{0,40}>",
    r"(?<!_)_{3,}+",
    r"\blorem ipsum\b",
    r"\b(?:your|company) name here\b",
    r"\bX{3,}+\b",
    flags=re.IGNORECASE,
)
_ROLE = _any_of(
    r"<\|[^|<>\n]{1,30}\|>",
    r"\[/?(?i:INST)\]|<</?(?i:SYS)>>|</?s>|</?think>|<(?:start|end)_of_turn>",
    r"^[ \t]{0,4}#{0,4} ?(?i:user|assistant|system|human|ai|chatbot|bot|companion|q|a|instruction|"
    r"response)\s?:(?:\s|$)",
    r"(?<=[.?!\"'] )(?:User|Assistant|System|Human|AI|Companion|USER|ASSISTANT) ?:",
    flags=re.MULTILINE,
)
_THAT = "(?: (?:that|this|it))?"
_HEDGE = _any_of(
    r"\b(?:i'm|i am|we're) (?:just |still |really |honestly )?(?:not |un)"
    r"(?:quite |entirely |really |completely |too |100% )?(?:sure|certain)"
    r"(?: (?:about|of|what|where|how|why|if|which) "
    r"(?:that|this|it|you mean|to say|to answer|to begin|to start|to do|i can help))?\b",
    r"\bi (?:really |honestly |just )?(?:don't|do not|can't|cannot) (?:really |quite |actually )?"
    r"(?:know|say|tell|understand|answer|remember)\b"
    r"(?: (?:that|this|the answer|what you mean|much|anything|your question)\b)?",
    r"\bi (?:don't|do not) have (?:enough |any |an |that |much |the )?"
    r"(?:information|answer|idea)\b",
    r"\b(?:it|that|this|which) (?:all |really |just |simply )?(?:depends|varies)\b"
    r"(?: (?:on|by|from) (?:many|several|various|a lot of|a number of|different|your|the|"
    r"you|what|who|person)\b"
    r"(?: (?:different )?(?:factors|things|situation|person|to person|case|context|preferences|"
    r"you want|you ask)\b)?)?",
    r"\b(?:that's|that is|this is|it's|it is) (?:a|an) (?:\w{1,20} ){1,3}?"
    r"(?:question|topic|one)\b",
    rf"\bi can (?:definitely |certainly )?(?:help|assist|do)\b(?: you)?(?: with)?{_THAT}",
    r"\bthere (?:are|is|can be|could be) (?:many|several|various|a lot of|lots of|different|"
    r"numerous|some|a few|plenty of|no one)(?: \w{1,20})? "
    r"(?:ways?|options?|reasons?|factors?|things?|answers?|possibilities|approaches)\b"
    r"(?: (?:to|you can|that you can) (?:do|go about|approach|consider|answer|think about|try|"
    rf"choose from){_THAT})?",
    r"\b(?:it's|it is) (?:hard|difficult|tricky|impossible|tough) to (?:say|tell|know|answer)\b",
    r"\b(?:everyone|everybody|(?:each|every) (?:person|situation)) is (?:different|unique)\b",
    r"\b(?:it's|it is|that's) (?:all |entirely )?up to you\b",
    r"\b(?:can|could|would|will) you (?:please )?(?:provide|give|share|tell|explain|clarify|help)"
    r"(?: me)?(?: with)?(?: some| a little| a bit)?(?: more| additional| further)?"
    rf"(?: details?| information| context| about)?{_THAT}",
    r"\b(?:please )?(?:tell me|provide|give me) (?:some )?(?:more|additional|further)\b"
    r"(?: details?| information| context)?",
    r"\bwhat do you mean\b",
    r"\bi(?: will|'ll) (?:do|try) my best\b",
    r"\b(?:that's|that is|it's|it is) (?:great|good|nice|interesting|fine|okay|true)\b"
    r"(?: to (?:hear|know))?",
    r"\bi (?:see|understand|agree|think so|hope so|guess so)\b",
    r"\bgood luck\b|\blet me think\b|\bi need more\b",
    r"\byou can (?:do|try|achieve) (?:it|this|that|anything)\b",
)
_OPENING_LENGTH = 160


def _plain(text: str) -> str:
    return " ".join(fold(text).lower().split())


def _openings(text: str) -> list[str]:
    # Two sentences: the set phrase often hides behind a greeting or a one-word answer.
    first = sentences(text[:2000])[:2]
    starts = [_plain(one)[:_OPENING_LENGTH].lstrip("\"'(*_ ") for one in first]
    bare = [_INTERJECTION.sub("", start, count=1) for start in starts if _INTERJECTION.match(start)]
    return [start for start in (*starts, *bare) if start]


def _opener(pattern: re.Pattern[str], text: str, kind: str) -> str | None:
    for start in _openings(text):
        found = pattern.match(start)
        if found:
            return f"{kind} '{clip(found.group())}'"
    return None


def _anywhere(pattern: re.Pattern[str], text: str, kind: str) -> str | None:
    found = pattern.search(text)
    return f"{kind} '{clip(found.group())}'" if found else None


def no_flattery(text: str) -> str | None:
    """Do not open by praising the question or the person."""
    return _opener(_FLATTERY, text, "flattery opener")


def no_canned_sympathy(text: str) -> str | None:
    """Do not open with a ready-made phrase of sympathy."""
    return _opener(_SYMPATHY, text, "canned sympathy opener")


def no_filler(text: str) -> str | None:
    """Do not open with a word that only says that an answer follows."""
    return _opener(_FILLER, text, "filler opener")


def no_offers(text: str) -> str | None:
    """Do not offer help or sign off; answer."""
    return _anywhere(_OFFER, _plain(text), "offer")


def no_refusal(text: str) -> str | None:
    """Do not refuse or put the question off; a profile for risky subjects leaves this rule out."""
    return _anywhere(_REFUSAL, _plain(text), "refusal")


def no_self_reference(text: str) -> str | None:
    """Do not speak of oneself as an AI or a language model; speaking about AI is allowed."""
    return _anywhere(_SELF, _plain(text), "self-reference")


def no_placeholders(text: str) -> str | None:
    """Leave no blanks of a template, such as `[Your Name]`."""
    return _anywhere(_PLACEHOLDER, fold(text), "placeholder")


def no_role_leak(text: str) -> str | None:
    """Write only one's own turn: no role names, no special tokens of a chat template."""
    return _anywhere(_ROLE, fold(text), "role marker")


def no_prompt_echo(text: str, *, ngram: int = 5, prompts: Iterable[str] = ()) -> str | None:
    """Repeat no `ngram` words of the system prompts (a profile fills `prompts` in itself)."""
    own = {gram for prompt in prompts for gram in _grams(words(prompt), ngram)}
    for gram in _grams(words(text), ngram) if own else ():
        if gram in own:
            return f"repeats the instructions: '{clip(' '.join(gram))}'"
    return None


def _grams(spoken: list[str], size: int) -> Iterable[tuple[str, ...]]:
    return zip(*(spoken[offset:] for offset in range(size)), strict=False)


def substantial_words(text: str) -> list[str]:
    """Return the distinct content words of `text` outside of its hedging phrases, in order."""
    return list(dict.fromkeys(content_words(_HEDGE.sub(" ", _plain(text)))))


def is_hedge(text: str) -> bool:
    """Tell whether `text` hedges ("It depends.") and says next to nothing besides.

    True when at least one hedging phrase is there and fewer than two content words are outside of
    all of them, so "I'm not sure, but oak is harder than pine." is not a hedge.
    """
    return bool(_HEDGE.search(_plain(text))) and len(substantial_words(text)) < 2


def substance(text: str, *, least: int = 2) -> str | None:
    """Say something: at least `least` distinct content words outside of hedging phrases."""
    if is_hedge(text):
        return f"empty talk: '{clip(text)}'"
    found = substantial_words(text)
    return f"{len(found)} words of substance, at least {least}" if len(found) < least else None
