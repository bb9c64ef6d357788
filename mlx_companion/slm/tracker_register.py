"""Rewrites a sentence into a more careful or a more casual register, by rules.

The formality head must learn register and not topic or length, so its training pairs have the same
content: `careful` undoes contractions, slang spellings, missing capitals and marks, and says plain
words the careful way; `casual` does the reverse, in one of many mixtures of habits::

    careful("i dont know but its kinda weird")   # "I do not know, but it is somewhat strange."
    casual("I do not know.", random.Random(0))   # "i dont know"

They are rough: what matters is that each keeps most words of the other.
"""

from __future__ import annotations

import functools
import random
import re

_FULL = {
    "dont": "do not", "don't": "do not", "cant": "cannot", "can't": "cannot", "wont": "will not",
    "won't": "will not", "didnt": "did not", "didn't": "did not", "doesnt": "does not",
    "doesn't": "does not", "isnt": "is not", "isn't": "is not", "wasnt": "was not",
    "wasn't": "was not", "arent": "are not", "aren't": "are not", "couldn't": "could not",
    "couldnt": "could not", "wouldn't": "would not", "wouldnt": "would not",
    "shouldn't": "should not", "shouldnt": "should not", "haven't": "have not",
    "havent": "have not", "hasn't": "has not", "hadn't": "had not", "weren't": "were not",
    "ain't": "is not", "aint": "is not", "i'm": "I am", "im": "I am", "i've": "I have",
    "ive": "I have", "i'll": "I will", "i'd": "I would", "you're": "you are",
    "youre": "you are", "you've": "you have", "you'll": "you will", "you'd": "you would",
    "he's": "he is", "hes": "he is", "she's": "she is", "shes": "she is", "it's": "it is",
    "they're": "they are", "theyre": "they are", "they've": "they have", "we're": "we are",
    "we've": "we have", "we'll": "we will", "that's": "that is", "thats": "that is",
    "what's": "what is", "whats": "what is", "there's": "there is", "theres": "there is",
    "who's": "who is", "where's": "where is", "how's": "how is", "let's": "let us",
    "they'll": "they will", "it'll": "it will", "he'll": "he will", "she'll": "she will",
    "that'll": "that will", "would've": "would have", "could've": "could have",
    "should've": "should have", "here's": "here is",
}  # fmt: skip
_PLAIN = {
    "u": "you", "ur": "your", "r": "are", "y": "why", "n": "and", "thx": "thank you",
    "pls": "please", "plz": "please", "ppl": "people", "cuz": "because", "coz": "because",
    "cause": "because", "bc": "because", "tho": "although", "gonna": "going to",
    "wanna": "want to", "gotta": "have to", "kinda": "somewhat", "sorta": "somewhat",
    "dunno": "do not know", "lemme": "let me", "gimme": "give me", "idk": "I do not know",
    "imo": "in my opinion", "yeah": "yes", "yep": "yes", "yup": "yes", "nope": "no", "nah": "no",
    "ya": "you", "em": "them", "bout": "about", "abt": "about", "kid": "child",
    "kids": "children", "guy": "man", "guys": "people", "dude": "man", "mom": "mother",
    "dad": "father", "awesome": "excellent", "cool": "pleasant", "crazy": "unusual",
    "weird": "strange", "dumb": "unwise", "stuff": "things", "lots": "a great deal",
    "thanks": "thank you", "sorry": "I apologize", "anyways": "in any case", "maybe": "perhaps",
    "pretty": "rather", "really": "very", "super": "very", "totally": "entirely",
    "tons": "many", "get": "obtain", "got": "received", "big": "large", "buy": "purchase",
    "help": "assist", "show": "demonstrate", "start": "begin", "movie": "film", "tv": "television",
    "phone": "telephone", "job": "position", "boss": "supervisor", "okay": "acceptable",
    "ok": "acceptable", "hate": "dislike", "nuts": "unreasonable", "w/": "with", "b4": "before",
    "luv": "love", "gr8": "great", "2moro": "tomorrow", "tmrw": "tomorrow", "msg": "message",
}  # fmt: skip
# Content words change the sentence's topic words, so they are only sometimes replaced.
_SOFT_TEXT = """
    get got big buy help show start movie tv phone job boss kid kids guy guys mom dad crazy
    pretty really cool
"""
_SOFT = frozenset(_SOFT_TEXT.split())
_NOISE_TEXT = """
    lol lmao rofl haha hahaha hehe omg wow ugh hmm um uh huh smh tbh btw ngl bruh bro man oh
    lmfao xd welp oof meh damn hell like literally just
"""
_NOISE = frozenset(_NOISE_TEXT.split())
_OPEN = ("I believe that", "In my opinion,", "It appears that", "I would suggest that", "Indeed,")
_CASUAL_WORDS = {
    "because": "cuz", "you": "u", "your": "ur", "are": "r", "please": "pls", "people": "ppl",
    "going to": "gonna", "want to": "wanna", "have to": "gotta", "yes": "yeah", "no": "nah",
    "very": "really", "mother": "mom", "father": "dad", "children": "kids", "man": "guy",
    "perhaps": "maybe", "excellent": "awesome", "thank you": "thanks", "about": "bout",
    "strange": "weird", "though": "tho", "okay": "ok", "before": "b4", "many": "lots of",
    "somewhat": "kinda", "rather": "kinda", "things": "stuff", "do not know": "dunno",
    "however": "but", "purchase": "buy", "large": "big", "film": "movie", "obtain": "get",
    "receive": "get", "assist": "help", "begin": "start", "therefore": "so", "upon": "on",
}  # fmt: skip
_LEAD = ("lol ", "well ", "yeah ", "omg ", "hey ", "oh ", "dude ", "idk ", "so ", "haha ", "um ")
_TAIL = (" lol", "...", "!!", " haha", " :)", "!!!", " tbh", " i guess", " you know", " tho", " :(")
_PROPER = frozenset(
    ["i", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday", "english"]
)


def careful(text: str, rng: random.Random | None = None) -> str:
    """The text in a careful register.

    Args:
        text: anything; emoticons and emoji are dropped.
        rng: without one the result is the same every time and no opening is put before it.
    """
    rng = rng or random.Random(0)
    openings = 0.0 if rng is None else 0.12
    text = re.sub(r"[:;=][-o']?[)(DPp/\\|]|<3|[\U0001F300-\U0001FAFF\u2600-\u27BF]", " ", text)
    text = re.sub(r"\(?\*+\)?|[\"“”>^#~]", " ", text).replace("’", "'")
    parts = [p for p in re.split(r"(?<=[.!?])\s+|\n+|\.\.+|…", text) if any(map(str.isalpha, p))]
    done = [_careful_sentence(part, rng) for part in parts]
    joined = " ".join(part for part in done if part)
    if joined and not joined.endswith("?") and rng.random() < openings:
        first = joined if joined.startswith("I ") else joined[0].lower() + joined[1:]
        joined = f"{rng.choice(_OPEN)} {first}"
    return joined


def _careful_sentence(part: str, rng: random.Random) -> str:
    question = "?" in part or bool(
        re.match(
            r"(?:what|who|how|why|when|where|which|can|could|is|are|do|does|did)\b", part, re.I
        )
        and not re.search(r"[.!]$", part)
    )
    words = []
    for raw in re.findall(r"[\w'/\-$%.,;:]+", part.strip(" .,!?-")):
        core = raw.strip(".,;:")
        tail = raw[len(raw.rstrip(",;:")) :] if raw else ""
        low = re.sub(r"(.)\1{2,}", r"\1", core.lower())
        if low in _NOISE or not core:
            continue
        plain = _FULL.get(low)
        if plain is None and low in _PLAIN and (low not in _SOFT or rng.random() < 0.4):
            plain = _PLAIN[low]
        if plain is None:
            shouting = core.isupper() and len(core) > 3 and part.isupper()
            plain = core.lower() if shouting else re.sub(r"([a-z])\1{2,}", r"\1", core)
        words.append(("I" if plain == "i" else plain.title() if low in _PROPER else plain) + tail)
    if not words:
        return ""
    sentence = re.sub(r"\s+", " ", " ".join(words)).strip(" ,;:")
    sentence = re.sub(r"(?<=\w) (but|so) (?=i |I |he|she|it|we|they|you)", r", \1 ", sentence)
    return sentence[:1].upper() + sentence[1:] + ("?" if question else ".")


def casual(text: str, rng: random.Random) -> str:
    """The text in a casual register: at least one habit of casual writing is put in."""
    for _ in range(6):
        done = _casual_once(text, rng)
        if done != text:
            return done
    return text.lower().rstrip(".")


def _casual_once(text: str, rng: random.Random) -> str:
    heavy = rng.random()
    if rng.random() < 0.85:
        for short, full in _SHORT:
            if rng.random() < 0.85:
                text = full.sub(functools.partial(_like, short), text)
    if heavy < 0.6:
        for careful_word, loose in _CASUAL_WORDS.items():
            texting = len(loose) <= 2 or loose in ("cuz", "pls", "ppl", "bout")
            if rng.random() < (0.35 if texting else 0.75):
                text = re.sub(rf"\b{careful_word}\b", loose, text)
    if heavy < 0.45:
        text = text.lower()
    elif rng.random() < 0.2:
        text = text[:1].lower() + text[1:]
    if heavy < 0.4 and rng.random() < 0.6:
        text = text.replace("'", "")
    text = _marks(text, heavy, rng)
    if rng.random() < 0.25:
        lead = rng.choice(_LEAD)
        rest = text[:1].lower() + text[1:]
        text = lead + rest if heavy < 0.5 else lead.capitalize() + rest
    return text


def _marks(text: str, heavy: float, rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.3 or (heavy < 0.3 and kind < 0.7):
        text = text.rstrip(".")
    elif kind < 0.55:
        text = text.rstrip(".") + rng.choice(_TAIL)
    elif kind < 0.68 and text.endswith("."):
        text = text[:-1] + "!"
    if heavy < 0.3:
        text = text.replace(",", "")
    return text


def _like(short: str, found: re.Match[str]) -> str:
    return short[:1].upper() + short[1:] if found.group()[:1].isupper() else short


_SHORT = [
    (short, re.compile(rf"\b{full}\b", re.IGNORECASE))
    for short, full in _FULL.items()
    if "'" in short and short not in ("ain't", "i'd", "he'd")
]
