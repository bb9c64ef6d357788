"""What an encoder sees in a word where it stands: hidden states at its place, in NumPy.

Whether "fire" is praise or a fire shows in the lower layers of a sentence encoder better than in
the words beside it: compared with its state when it stands alone, a word in its slang sense has
moved further and elsewhere, and in the same direction for words that were never seen in
training::

    reader = find_reader()                       # None where the encoder is not on this disk
    reader.rows([("this song is fire", (13, 17), "fire")])     # (1, columns)

Only the lower layers run, on a window around the word, with the weights left in their file and
mapped into memory, so that there is nothing to load and nothing is held twice. Never downloads.

The encoder is all-MiniLM-L6-v2 (Apache-2.0), read by `bert_rows`.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mlx_companion.errors import SLMError
from mlx_companion.runtime.logs import get_logger
from mlx_companion.slm.encoder_files import cached_encoder, encoder_sha256, open_encoder

LAYERS = (3, 4, 5)
# Characters to each side of a word that are read.
_REACH = 200
_MOST_TOKENS = 160
_MOST_TERMS = 2048

_log = get_logger(__name__)
Asked = tuple[str, tuple[int, int], str]


class TermReader:
    """Reads words in their sentences. Safe between threads.

    Args:
        folder: of the encoder: `model.safetensors`, `tokenizer.json`, `config.json`.

    Attributes:
        columns: features of a word.
        sha256: content hash of the encoder's weights.

    Raises:
        SLMError: it is no such encoder.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        self._tokenizer, self._read = open_encoder(folder, LAYERS[-1])
        self.columns = (1 + len(LAYERS)) * self._read.width + 2 * LAYERS[-1]
        self.sha256 = encoder_sha256(folder)
        self._tokenizer.enable_truncation(max_length=min(_MOST_TOKENS, self._read.places))
        self._terms: OrderedDict[str, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def rows(self, asked: Sequence[Asked]) -> np.ndarray:
        """Features of words where they stand.

        Args:
            asked: text, place [start, end) in it, and the word's dictionary form.

        Returns:
            (N, columns) float32: the state in the middle layer, its difference from the word
            alone in each of `LAYERS`, and per layer the likeness to it and the distance.
        """
        windows = [_window(text, span) for text, span, _ in asked]
        here = self._states(windows)
        rows = [_row(here[at], self._alone(term)) for at, (_, _, term) in enumerate(asked)]
        return np.stack(rows) if rows else np.zeros((0, self.columns), dtype=np.float32)

    def _alone(self, term: str) -> np.ndarray:
        """States of a term that stands by itself."""
        with self._lock:
            if term in self._terms:
                self._terms.move_to_end(term)
                return self._terms[term]
        states = self._states([(term, (0, len(term)))])[0]
        with self._lock:
            self._terms[term] = states
            if len(self._terms) > _MOST_TERMS:
                self._terms.popitem(last=False)
        return states

    def _states(self, windows: Sequence[tuple[str, tuple[int, int]]]) -> list[np.ndarray]:
        """States (1 + layers, D) of each place in its text, its tokens on average."""
        texts = list(dict.fromkeys(text for text, _ in windows))
        read = dict(zip(texts, self._tokenizer.encode_batch(texts), strict=True))
        states = self._read.every_layer([read[text].ids for text in texts])
        hidden = dict(zip(texts, states, strict=True))
        found = []
        for text, (start, end) in windows:
            offsets = read[text].offsets
            at = [i for i, (a, b) in enumerate(offsets) if a < end and b > max(start, a)]
            found.append(hidden[text][:, at or [0]].mean(axis=1))
        return found


@functools.lru_cache(maxsize=4)
def _reader_at(folder: Path) -> TermReader | None:
    try:
        return TermReader(folder)
    except SLMError as error:
        _log.warning("the sense check goes without the encoder: %s", error)
        return None


def find_reader(sha256: str | None = None) -> TermReader | None:
    """The reader of the default encoder; one in a process.

    Args:
        sha256: of the encoder that the head was trained with; of another there is none.

    Returns:
        None when the encoder is not on this disk (it is not fetched for this) or cannot be read.
    """
    folder = cached_encoder(sha256)
    return None if folder is None else _reader_at(folder)


def _window(text: str, span: tuple[int, int]) -> tuple[str, tuple[int, int]]:
    """What is read of a text, and the place in it."""
    start, end = span
    if len(text) <= 2 * _REACH:
        return text, span
    first = max(start - _REACH, 0)
    return text[first : end + _REACH], (start - first, end - first)


def _row(here: np.ndarray, alone: np.ndarray) -> np.ndarray:
    change = here - alone
    lengths = np.linalg.norm(here, axis=1) * np.linalg.norm(alone, axis=1)
    likeness = (here * alone).sum(axis=1) / np.maximum(lengths, 1e-6)
    middle = LAYERS[len(LAYERS) // 2]
    parts = [here[middle], *(change[at] for at in LAYERS), likeness[1:]]
    return np.concatenate([*parts, np.linalg.norm(change, axis=1)[1:]]).astype(np.float32)
