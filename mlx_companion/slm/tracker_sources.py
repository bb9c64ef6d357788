"""Where the context tracker's training texts come from.

    texts = read_texts(Sources(Path("data"), encoder_vectors("minilm")))
    texts.comments, texts.queries, texts.narration, texts.moods

Public texts lie in a data folder that is not part of the package: Reddit comments (GoEmotions),
commands (CLINC150), books. Books give only narration as formal text: dialogue is not formal.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from mlx_companion.errors import DataError
from mlx_companion.slm.slang_reader import TermReader
from mlx_companion.slm.tracker_texts import written
from mlx_companion.slm.tracker_words import DIMENSIONS, tokens

Row = TypeVar("Row")
# Stand in for the comments in a smoke run.
_GLAD = "happy glad pleased cheerful merry content thrilled delighted great lucky"
_LOW = "sad low blue gloomy unhappy lonely terrible miserable down hurt"
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_MOODS = {
    "happy": "admiration excitement joy pride relief optimism",
    "grateful": "gratitude",
    "amused": "amusement",
    "loving": "love caring",
    "sad": "sadness grief remorse disappointment embarrassment",
    "annoyed": "anger annoyance disapproval disgust",
    "anxious": "fear nervousness",
    "surprised": "surprise",
    "curious": "curiosity confusion",
    "neutral": "neutral",
}


@dataclass(frozen=True)
class Sources:
    """Where training texts are, and how many are taken.

    Attributes:
        data: folder with `goemotions`, `clinc150` and `prose`; None trains on the packaged
            sentences alone (a smoke run).
        vectors: word -> vector (64,), such as `encoder_vectors` gives.
        per_source: rows that are taken of each public source.
        seed: of every draw.
        max_steps: of every head.
        every: of so many written terms one is trained on; more than 1 only to try things out.
        reader: of the encoder; without one the sense check gets its light head alone.
    """

    data: Path | None
    vectors: dict[str, np.ndarray]
    per_source: int = 6000
    seed: int = 0
    max_steps: int = 200
    every: int = 1
    reader: TermReader | None = None


def encoder_vectors(folder: str | Path, dimensions: int = 64) -> dict[str, np.ndarray]:
    """Principal components of an encoder's input embeddings, by word.

    Args:
        folder: with `model.safetensors` and `tokenizer.json` of a BERT-like encoder.
        dimensions: components that are kept.

    Raises:
        DataError: there are no such files.
    """
    from safetensors.numpy import load_file

    folder = Path(folder)
    try:
        arrays = load_file(folder / "model.safetensors")
        words = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    except (OSError, KeyError, ValueError) as error:
        raise DataError(
            f"no encoder there ({error}); give a folder of MiniLM", path=folder
        ) from error
    table = arrays["embeddings.word_embeddings.weight"].astype(np.float32)
    kept = {word: at for word, at in words.items() if re.fullmatch(r"[a-z]+", word)}
    rows = table[list(kept.values())]
    rows = rows - rows.mean(axis=0)
    _, _, axes = np.linalg.svd(rows, full_matrices=False)
    return dict(zip(kept, rows @ axes[:dimensions].T, strict=True))


@dataclass
class Texts:
    """What the sources hold.

    Attributes:
        comments: of Reddit.
        queries: commands and their intents.
        narration: sentences of books without dialogue.
        moods: comments and their mood.
        known: words that are known.
        max_steps: of every head.
        rng: every later draw comes from it.
        every: of so many written terms one is used.
        reader: of the encoder.
    """

    comments: list[str]
    queries: list[tuple[str, str]]
    narration: list[str]
    moods: list[tuple[str, str]]
    known: set[str]
    max_steps: int
    rng: random.Random
    every: int = 1
    reader: TermReader | None = None

    @classmethod
    def read(cls, sources: Sources) -> Texts:
        """Read them.

        Raises:
            DataError: one is missing.
        """
        rng = random.Random(sources.seed)
        found = cls([], [], [], [], _own_words(), sources.max_steps, rng)
        found.every, found.reader = sources.every, sources.reader
        if sources.data is None:
            found.moods = [(f"so {w} today", "happy") for w in _GLAD.split()]
            found.moods += [(f"i feel {w}", "sad") for w in _LOW.split()]
            return found
        comments = _comments(sources.data)
        found.queries = _queries(sources.data)
        prose = [text for book in _books(sources.data) for text in sample(book, 900, rng)]
        found.known |= _common([t for t, _ in comments] + prose + [t for t, _ in found.queries])
        found.moods = sample([(t, m) for t, m in comments if m], 3 * sources.per_source, rng)
        found.comments = sample([t for t, _ in comments], 2 * sources.per_source, rng)
        found.narration = sample([t for t in prose if _is_formal(t)], sources.per_source, rng)
        return found


def smoke_vectors() -> dict[str, np.ndarray]:
    """Vectors drawn by chance for the words of the packaged texts: for smoke runs only."""
    rng = np.random.default_rng(0)
    return {word: rng.standard_normal(DIMENSIONS) for word in sorted(_own_words())}


def sample(rows: list[Row], most: int, rng: random.Random) -> list[Row]:
    """All rows, or so many of them."""
    return rows if len(rows) <= most else rng.sample(rows, most)


def _lines(path: Path) -> Iterator[str]:
    try:
        with contextlib.ExitStack() as stack:
            opened = gzip.open if path.suffix == ".gz" else open
            yield from stack.enter_context(opened(path, "rt", encoding="utf-8"))
    except OSError as error:
        raise DataError(f"a training source cannot be read ({error})", path=path) from error


def _comments(data: Path) -> list[tuple[str, str | None]]:
    """Reddit comments, and the mood of those with one emotion."""
    labels = "".join(_lines(data / "goemotions" / "labels.txt")).split()
    mood_of = {emotion: mood for mood, those in _MOODS.items() for emotion in those.split()}
    rows: list[tuple[str, str | None]] = []
    for line in _lines(data / "goemotions" / "train.tsv"):
        text, given, _ = line.rstrip("\n").split("\t")
        moods = {mood_of.get(labels[int(one)]) for one in given.split(",")}
        text = text.replace("[NAME]", "Alex").replace("[RELIGION]", "religious").strip()
        rows.append((text, next(iter(moods)) if len(moods) == 1 else None))
    return rows


def _queries(data: Path) -> list[tuple[str, str]]:
    rows = [json.loads(line) for line in _lines(data / "clinc150" / "train.jsonl")]
    return [(row["text"], row["intent"]) for row in rows]


def _books(data: Path) -> Iterator[list[str]]:
    paths = sorted((data / "prose" / "train").glob("*.txt.gz"))
    if not paths:
        raise DataError("no books there", path=data / "prose" / "train")
    for path in paths:
        yield [s.strip() for s in _SENTENCE.split(" ".join(_lines(path))) if 25 < len(s) < 200]


def _is_formal(sentence: str) -> bool:
    """Narration: no quotation, contraction, address or exclamation."""
    spoken = re.search(r"[“”\"‘’'!—]|\b(?:you|your|thou|thee|ye)\b", sentence, re.IGNORECASE)
    return spoken is None and sentence[0].isupper() and sentence[-1] in ".?"


def _common(texts: Sequence[str], least: int = 4) -> set[str]:
    counts: dict[str, int] = defaultdict(int)
    for text in texts:
        for token in tokens(text):
            counts[token.low] += 1
    return {word for word, count in counts.items() if count >= least and word.isalpha()}


def _own_words() -> set[str]:
    texts = " ".join(written(name) for name in ("senses", "pairs", "depth", "topics"))
    return {token.low for token in tokens(texts) if token.low.isalpha()}
