"""Replies that are broken rather than different: empty, leaked tokens, loops, gibberish, errors.

Deterministic rules, since each such fault has a plain sign. What is usual for a companion is no
fault of it: a language other than English, or a script, counts only when the baseline is without
it, which the caller decides from the names that come back::

    anomalies("<|im_start|>user")        -> {"template_token": "<|im_start|>"}
    anomalies("")                        -> {"empty": ""}
"""

from __future__ import annotations

import re
import zlib
from collections import Counter

_TEMPLATE = re.compile(
    r"<\|[\w ]{2,30}\|>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>|<unk>|<pad>|"
    r"^(?:###\s*)?(?:Human|User|Instruction|Assistant|System)\s*:\s|\{\{\s*\w+\s*\}\}|\[MASK\]",
    re.MULTILINE,
)
_ERROR = re.compile(
    r"Traceback \(most recent call last\)|\[object Object\]|Segmentation fault|"
    r"(?:Internal Server|Runtime|Type|Value|Key|Connection)\s?Error\b\s*[:(]|"
    r"CUDA out of memory|\bHTTP/?\d?\.?\d? 5\d\d\b",
)
_MOJIBAKE = re.compile("\ufffd|\u00c3[\u0080-\u00bf]|\u00e2\u20ac[\u2122\u0153\u201c\u009d]")
_SCRIPTS = {
    "cjk": "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af",
    "cyrillic": "\u0400-\u04ff",
    "arabic": "\u0600-\u06ff",
    "hebrew": "\u0590-\u05ff",
    "greek": "\u0370-\u03ff",
    "devanagari": "\u0900-\u097f",
    "thai": "\u0e00-\u0e7f",
}
_SCRIPT_PATTERNS = {name: re.compile(f"[{span}]") for name, span in _SCRIPTS.items()}
_LANGUAGES = {
    "en": "the and is of to in that it you for with are this be on have not was but a can your if "
    "i my me we they he she its or an at as by from so do will would could should may what when "
    "more than then there no some all which one has had just get up out about how them their",
    "es": "el la los las que de y en un una por para con es no se lo como pero más su está",
    "fr": "le la les des et est que qui dans un une pour pas vous je il elle ce sur avec du au",
    "de": "der die das und ist nicht ich sie es ein eine zu mit den auf für von dem sich auch",
    "it": "il lo gli che di e è un una per con non si sono della come ma più questo nel",
    "pt": "o os as que de e em um uma para com não é se por mais mas como você do da",
    "nl": "de het een en van is dat niet ik je op te zijn met voor er maar ook aan",
    "sv": "och att det en är som på för av med den till inte jag du om ett har",
    "pl": "i w nie na się jest to że z do jak ale co za od po tak",
}
_LANGUAGE_WORDS = {name: frozenset(text.split()) for name, text in _LANGUAGES.items()}
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)?")
_CODE = re.compile(r"```.*?(?:```|$)|`[^`\n]*`|https?://\S+", re.DOTALL)
_MASH = re.compile(r"[bcdfghjklmnpqrstvwxz]{5,}|^[bcdfghjklmnpqrstvwxz]{4,}$", re.IGNORECASE)
# Clusters of consonants that English does have.
_SAYABLE = re.compile(r"ngths?|tch|ght|sch|phr|chr|thr|rhy|my[a-z]|[bcdfghjklmnpqrstvwxz]y")
_RULER = re.compile(r"([-=_*#~.])\1{3,}")
_MAX_CHARS = 8000
_LOOP_WORDS = 24


def anomalies(text: str) -> dict[str, str]:
    """Faults of a reply.

    Args:
        text: the reply; its first 8,000 characters are looked at.

    Returns:
        Name of the fault -> what shows it. Names: empty, template_token, error, mojibake, loop,
        gibberish, and `language.xx` or `script.xx` for a reply that is not in English.
    """
    text = text[:_MAX_CHARS]
    if not text.strip(" \t\r\n.\u200b"):
        return {"empty": text[:20]}
    found: dict[str, str] = {}
    plain = _CODE.sub(" ", text)
    for name, pattern in (
        ("template_token", _TEMPLATE),
        ("error", _ERROR),
        ("mojibake", _MOJIBAKE),
    ):
        if match := pattern.search(plain):
            found[name] = match[0].strip()
    words = [word.lower() for word in _WORD.findall(plain)]
    if loop := _loop(plain, words):
        found["loop"] = loop
    elif odd := _gibberish(plain, words):
        found["gibberish"] = odd
    if "gibberish" not in found and (other := _language(plain, words)):
        found[other] = " ".join(words[:6])
    return found


def _loop(text: str, words: list[str]) -> str:
    """A run of words said again and again, at least four times in a row, or hardly any news."""
    if match := re.search(r"(\S)\1{24,}", text):
        return match[0][:24] if match[1] not in "-=_*#.~" else ""
    for size in range(1, 9):
        times, need = 1, 5 if size == 1 else 4
        for at in range(size, len(words) - size + 1, size):
            times = times + 1 if words[at : at + size] == words[at - size : at] else 1
            if times >= need:
                return " ".join(words[at : at + size])
    said = Counter(one.strip().lower() for one in re.split(r"[.!?\n]+", text) if one.strip())
    most = said.most_common(1)
    if most and most[0][1] >= 4 and len(most[0][0].split()) >= 3:
        return most[0][0][:60]
    if len(words) >= _LOOP_WORDS * 2:
        raw = text.encode()
        if len(zlib.compress(raw, 6)) / len(raw) < 0.12:
            return " ".join(words[-8:])
    return ""


def _gibberish(text: str, words: list[str]) -> str:
    """Mostly signs, or words that cannot be said."""
    text = _RULER.sub(" ", text)
    letters = sum(map(str.isalpha, text))
    solid = sum(not one.isspace() for one in text)
    # Sums, tables and emoji have few letters and are no gibberish while they are short.
    if solid >= 30 and letters / solid < 0.35 and not re.search(r"\d|\|", text):
        return text.strip()[:40]
    odd = [word for word in words if len(word) > 3 and _MASH.search(_SAYABLE.sub("a", word))]
    if len(odd) >= 2 and len(odd) > 0.25 * len(words):
        return " ".join(odd[:5])
    latin = [word for word in words if word.isascii()]
    if len(words) >= 24 and len(latin) == len(words):
        common = sum(word in _LANGUAGE_WORDS["en"] for word in words)
        known = max(sum(w in group for w in words) for group in _LANGUAGE_WORDS.values())
        spread = len(set(words)) / len(words)
        prose = "\n" not in text and text.count(",") * 4 < len(words)
        if prose and common <= 0.04 * len(words) and known <= 0.06 * len(words) and spread > 0.5:
            return " ".join(words[:6])
    return ""


def _language(text: str, words: list[str]) -> str:
    letters = max(sum(map(str.isalpha, text)), 1)
    for name, pattern in _SCRIPT_PATTERNS.items():
        if len(pattern.findall(text)) > 0.3 * letters:
            return f"script.{name}"
    if len(words) < 5:
        return ""
    counts = {name: sum(w in group for w in words) for name, group in _LANGUAGE_WORDS.items()}
    best = max(counts, key=lambda name: counts[name])
    clear = counts[best] >= max(3, 0.15 * len(words)) and counts[best] > 2 * counts["en"] + 1
    return f"language.{best}" if best != "en" and clear else ""
