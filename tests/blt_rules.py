"""The definitions of patches in plain Python, one document and one position at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from mlx_companion.blt.config import PATCH_MODES, PatchConfig
from mlx_companion.text.byte_text import BOS, OFFSET, encode_bytes

# Words and sentences of many scripts, with their spaces, punctuation and digits.
SCRIPTS = {
    "latin": "Zwölf Boxkämpfer jagen Viktor quer über den Deich.",
    "cyrillic": "Съешь же ещё этих мягких французских булок, да выпей чаю!",
    "greek": "Ξεσκεπάζω τὴν ψυχοφθόρα βδελυγμία.",
    "arabic": "صِف خَلقَ خَودِ كَمِثلِ الشَمسِ",
    "hebrew": "דג סקרן שט בים מאוכזב, ולפתע מצא חברה.",
    "devanagari": "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा",
    "thai": "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า",
    "chinese": "天地玄黃，宇宙洪荒。日月盈昃",
    "japanese": "いろはにほへと ちりぬるを、カタカナ",
    "korean": "키스의 고유조건은 입술끼리 만나야 하고",
    "georgian": "გთხოვთ ახლავე გაიაროთ რეგისტრაცია",
    "amharic": "ሰማይ አይታረስ ንጉሥ አይከሰስ።",
    "emoji": "👩‍🚀 goes to 🌕, back by 18:00 ✅",
    "code": "for (i=0; i<n; ++i) {\n\tx[i] += 0.5;\n}",
}
# Few values, so that thresholds fall between and onto them and equal neighbours are common.
LEVELS = (0.0, 0.25, 0.5, 1.0, 1.75, 3.0)
THRESHOLDS = (-2.0, -0.6, -0.1, 0.1, 0.25, 0.3, 0.5, 0.8, 1.4, 9.0)


def is_space_like(id_: int) -> bool:
    """Not a Latin letter, not a digit, not a UTF-8 continuation byte."""
    byte = id_ - OFFSET
    if byte < 0:
        return True
    if 0x80 <= byte <= 0xBF:
        return False
    return not (byte < 0x80 and chr(byte).isalnum())


def document_starts(
    ids: Sequence[int], entropies: Sequence[float], config: PatchConfig
) -> list[bool]:
    """Whether positions 0 .. n of a document of n bytes start a patch; the last is not seen yet."""
    n = len(ids)
    raw = [t < 2 or rule_starts(t, ids, entropies, config) for t in range(n + 1)]
    starts, since = [], 0
    for decided in raw:
        since = 0 if decided else since + 1
        split = config.max_length is not None and since % config.max_length == 0
        starts.append(decided or split)
    return starts


def rule_starts(
    t: int, ids: Sequence[int], entropies: Sequence[float], config: PatchConfig
) -> bool:
    """The rule at position t >= 2."""
    before = entropies[t - 1]
    if config.mode == "entropy":
        return before > config.threshold
    if config.mode == "monotonic":
        return t == 2 or before - entropies[t - 2] > config.threshold
    if config.mode == "combined":
        if t == 2:
            return True
        return raw_hit(t, entropies, config) and not raw_hit(t - 1, entropies, config)
    if config.mode == "space":
        return is_space_like(ids[t - 1]) and not is_space_like(ids[t - 2])
    if config.mode == "static":
        return (t - 1) % config.size == 0
    if config.mode == "byte":
        return True
    count = max(len(ids) // config.size - 2, 0)
    ranked = sorted(range(1, len(ids)), key=lambda i: (-entropies[i], i))
    return t - 1 in ranked[:count]


def raw_hit(t: int, entropies: Sequence[float], config: PatchConfig) -> bool:
    """Mode "combined": high and risen, or position 2."""
    if t <= 2:
        return t == 2
    assert config.rise_threshold is not None
    rise = entropies[t - 1] - entropies[t - 2]
    return rise > config.rise_threshold and entropies[t - 1] > config.threshold


def row_patching(
    ids: Sequence[int],
    entropies: Sequence[float],
    config: PatchConfig,
    documents: Sequence[int] | None = None,
) -> tuple[list[bool], list[bool]]:
    """`opens` and `closes` of a row of documents."""
    opens: list[bool] = []
    closes: list[bool] = []
    numbers = list(documents) if documents is not None else [0] * len(ids)
    begin = 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or numbers[end] != numbers[begin]:
            starts = document_starts(ids[begin:end], entropies[begin:end], config)
            opens += starts[:-1]
            closes += starts[1:]
            begin = end
    return opens, closes


@st.composite
def configs(draw: st.DrawFn, modes: Sequence[str] = PATCH_MODES) -> PatchConfig:
    """Any rule."""
    return PatchConfig(
        mode=draw(st.sampled_from(list(modes))),
        threshold=draw(st.sampled_from(THRESHOLDS)),
        rise_threshold=draw(st.sampled_from(THRESHOLDS)),
        size=draw(st.integers(1, 6)),
        max_length=draw(st.none() | st.integers(1, 7)),
    )


@st.composite
def batches(
    draw: st.DrawFn, max_rows: int = 4, max_bytes: int = 40
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """ids, entropies, documents (B, N) and lengths (B,); text of all scripts and any bytes."""
    B, N = draw(st.integers(1, max_rows)), draw(st.integers(1, max_bytes))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    text = encode_bytes(" ".join(rng.permutation(list(SCRIPTS.values()))))
    at = rng.integers(0, len(text), B)
    ids = np.stack([np.roll(text, -place)[:N] for place in at])
    noise = rng.random((B, N)) < draw(st.sampled_from((0.0, 0.2, 1.0)))
    ids = np.where(noise, rng.integers(0, 260, (B, N)), ids)
    documents = np.cumsum(rng.random((B, N)) < draw(st.sampled_from((0.0, 0.1, 0.6))), axis=1)
    ids[:, 0] = BOS
    entropies = rng.choice(np.float32(LEVELS), (B, N))
    lengths = rng.integers(0, N + 1, B)
    if draw(st.booleans()):
        lengths[:] = N
    return ids, entropies, documents, lengths
