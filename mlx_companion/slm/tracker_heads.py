"""Mood, topic and technical depth: three small heads that read the same features.

Features of a message are hashed n-grams, the mean of its word vectors, and counts that betray
technical writing (identifiers, code marks, acronyms, units, long and rare words)::

    heads = ContextHeads.from_pack(pack)
    heads.read(["my pod is in CrashLoopBackOff"])[0]
    # ContextRead(mood="neutral", mood_confidence=..., topic="technology", ..., depth=0.9)

A mood or topic below its threshold is "unclear". `rule_depth` needs no weights.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlx_companion.slm.linear import LinearHead, sigmoid, softmax
from mlx_companion.slm.ngrams import NGramConfig, NGrams
from mlx_companion.slm.packs import Pack
from mlx_companion.slm.tracker_words import DIMENSIONS, WordTable, tokens

GRAMS = NGramConfig(
    char=(3, 5), words=(1, 2), char_columns=1 << 14, word_columns=1 << 14, max_chars=800
)
UNCLEAR = "unclear"
# Depth of the three classes of the head, of which the expected value is taken.
DEPTHS = (0.05, 0.45, 0.95)
_COUNTS = 10
DENSE = DIMENSIONS + _COUNTS
_IDENTIFIER = re.compile(
    r"\b(?:\w+_\w+|[a-z]+[A-Z]\w*|\w+\(\)|\w+\.(?:py|js|ts|json|yaml|cpp|rs|c|h|go|sh|sql))"
)
_CODE = re.compile(r"`|\{|\}|=>|->|==|::|<\w+>|--\w|\bO\([^)]*\)|[=<>]=|\w\[\w*\]|#include|//")
_UNIT = re.compile(
    r"\d+(?:\.\d+)?\s?(?:ms|mg|kg|nm|mm|khz|mhz|ghz|hz|gb|mb|kb|db|nf|kw|mmol|bit)\b", re.I
)
_JARGON_TEXT = """
    algorithm api async backend binary boolean buffer bug byte cache client cluster code
    compile compiler container cpu css data database debug deploy deployment docker encryption
    endpoint exception firmware framework frontend function git gpu hash html http index
    integer interface javascript json kernel kubernetes latency linux loop memory method
    module network parameter parser pointer protocol python query queue recursion regex
    repository runtime rust schema script server sql stack string struct syntax thread token
    tuple variable vector virtual xml derivative eigenvalue equation gradient integral matrix
    polynomial theorem variance regression hypothesis coefficient molecule enzyme protein
    genome quantum entropy thermodynamic voltage circuit capacitor transistor diagnosis dosage
    clinical amortization derivatives liquidity statute litigation tort jurisprudence
    epistemology router firewall bandwidth browser
"""
_JARGON = frozenset(_JARGON_TEXT.split())


@dataclass(frozen=True)
class ContextRead:
    """What the heads say of one message; confidences are calibrated probabilities."""

    mood: str
    mood_confidence: float
    topic: str
    topic_confidence: float
    depth: float


class ContextHeads:
    """The three heads.

    Args:
        heads: "mood", "topic" and "depth".
        settings: for mood and topic "labels", "temperature" and "threshold"; for depth
            "temperature".
        table: known words and vectors.
    """

    def __init__(
        self, heads: dict[str, LinearHead], settings: dict[str, Any], table: WordTable
    ) -> None:
        self.heads, self.settings, self.table = heads, settings, table
        self._grams = NGrams(GRAMS)

    @classmethod
    def from_pack(cls, pack: Pack) -> ContextHeads:
        """The heads of a pack.

        Raises:
            SLMError: one is missing.
        """
        heads = {n: LinearHead.from_arrays(pack.arrays, n) for n in ("mood", "topic", "depth")}
        return cls(heads, pack.settings, WordTable.from_arrays(pack.arrays))

    def read(self, texts: Sequence[str]) -> list[ContextRead]:
        """Read messages, in order."""
        blocks = context_blocks(texts, self.table, self._grams)
        shares = {
            name: softmax(head.logits(blocks) / self.settings[name].get("temperature", 1.0))
            for name, head in self.heads.items()
        }
        return [
            ContextRead(
                *self._label("mood", shares["mood"][at]),
                *self._label("topic", shares["topic"][at]),
                float(shares["depth"][at] @ np.array(DEPTHS)),
            )
            for at in range(len(texts))
        ]

    def _label(self, name: str, shares: np.ndarray) -> tuple[str, float]:
        best = int(shares.argmax())
        sure = shares[best] >= self.settings[name]["threshold"]
        return self.settings[name]["labels"][best] if sure else UNCLEAR, float(shares[best])


def context_blocks(
    texts: Sequence[str], table: WordTable, grams: NGrams | None = None
) -> list[Any]:
    """Feature blocks: n-grams (N, columns) and dense (N, DENSE)."""
    rows = [_dense(text, table) for text in texts]
    dense = np.stack(rows) if rows else np.zeros((0, DENSE), dtype=np.float32)
    return [(grams or NGrams(GRAMS)).transform(texts), dense]


def rule_depth(text: str) -> float:
    """Technical depth by counts alone."""
    counts = technical_counts(text)
    weights = np.array([2.0, 1.5, 1.5, 1.0, 6.0, 4.0, 2.0, 0.0, 0.0, 1.0])
    return float(sigmoid(counts @ weights - 2.5))


def technical_counts(text: str, table: WordTable | None = None) -> np.ndarray:
    """(10,) float32 of marks of technical writing."""
    found = [t for t in tokens(text) if t.is_word]
    low, count = [t.low for t in found], max(len(found), 1)
    acronyms = sum(t.text.isupper() and 2 <= len(t.text) <= 5 for t in found)
    shouting = text.isupper()
    unknown = (
        0 if table is None else sum(w.isalpha() and len(w) > 4 and w not in table for w in low)
    )
    values = [
        min(len(_IDENTIFIER.findall(text)), 3),
        min(len(_CODE.findall(text)), 3),
        min(len(_UNIT.findall(text)), 2),
        0 if shouting else min(acronyms, 3),
        sum(w in _JARGON or w.rstrip("s") in _JARGON for w in low) / count,
        sum(len(w) > 9 for w in low) / count,
        float(bool(re.search(r"\w(?:Error|Exception)\b|stack ?trace|segfault", text))),
        sum(map(len, low)) / count / 10,
        min(count, 40) / 40,
        unknown / count,
    ]
    return np.array(values, dtype=np.float32)


def _dense(text: str, table: WordTable) -> np.ndarray:
    content = [t.low for t in tokens(text) if t.is_word and len(t.low) > 2]
    return np.concatenate([table.mean(content), technical_counts(text, table)]).astype(np.float32)
