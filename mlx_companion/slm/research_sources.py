"""Labelled queries of public collections, as the research classifier's training reads them.

    queries = read_collections("data")                    # a folder with all of the following
    queries = read_queries("research/train.jsonl")        # {"query", "needs_research", "source"}
    queries += read_clinc("clinc150")                     # further intents, and out-of-scope rows
    queries += read_remarks("goemotions/train.tsv", 500)  # small talk: no research

The texts are not part of this package. What is: which of CLINC150's intents need research, and
labels by hand for its out-of-scope rows, kept by the SHA-256 of each text; and queries that were
written one by one for it, in styles that the collections lack (`read_written`).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from importlib import resources
from pathlib import Path
from typing import Any

from mlx_companion.errors import DataError
from mlx_companion.slm.research import as_date
from mlx_companion.slm.research_queries import Query
from mlx_companion.slm.written import written

# Intents beyond those of the labelled file: label, and how many rows of each.
_INTENTS = {
    "international_visa": (True, 60),
    "vaccines": (True, 60),
    "carry_on": (True, 60),
    "calories": (False, 40),
    "nutrition_info": (False, 40),
    "meal_suggestion": (False, 40),
    "gas": (False, 30),
}
_OUTSIDE = "oos"


# Files of `data/written`: of many kinds; messages that tell a story first; short questions; need
# that no word gives away; live and changing facts asked plainly; facts that time moves, beside
# settled ones; everyday requests.
WRITTEN = (
    "research_mixed",
    "research_chatty",
    "research_short",
    "research_subtle",
    "research_plain",
    "research_timely",
    "research_everyday",
)


def read_written() -> list[Query]:
    """Queries that were written for this package, each file a source of its own."""
    return [
        Query(one.text, one.label, "", name.replace("research", "written"), f"{name}:{one.pair}")
        for name in WRITTEN
        for one in written(name)
    ]


def read_collections(folder: str | Path) -> list[Query]:
    """What a folder holds of `research/*.jsonl`, `clinc150` and `goemotions/train.tsv`.

    Raises:
        DataError: it holds none of them, or one is malformed.
    """
    folder = Path(folder)
    found = [
        query for path in sorted(folder.glob("research/*.jsonl")) for query in read_queries(path)
    ]
    if (folder / "clinc150").is_dir():
        found += read_clinc(folder / "clinc150")
    if (folder / "goemotions").is_dir():
        found += read_remarks(folder / "goemotions" / "train.tsv")
    if not found:
        raise DataError(
            "expected a folder with research/*.jsonl, clinc150 or goemotions in it", path=folder
        )
    return found


def read_queries(path: str | Path) -> list[Query]:
    """Rows of a JSONL file: "query", "needs_research", and optionally source, today, cutoff.

    Raises:
        DataError: a line that is not such a row, by its number.
    """
    found = []
    for at, row in _rows(Path(path)):
        query, label = row.get("query"), row.get("needs_research")
        if not isinstance(query, str) or not isinstance(label, bool):
            raise DataError(
                'expected {"query": text, "needs_research": true or false}', path=path, line=at
            )
        source = str(row.get("source", Path(path).stem))
        dates = [None if row.get(k) is None else as_date(row[k]) for k in ("today", "cutoff")]
        category = str(row.get("category", ""))
        family = f"{source}:{query.lower()}"
        found.append(Query(query, label, category, source, family, dates[0], dates[1]))
    return found


def read_clinc(folder: str | Path) -> list[Query]:
    """CLINC150's `train.jsonl` and `val.jsonl`: some intents, and out-of-scope rows labelled here.

    Raises:
        DataError: a file is missing or malformed.
    """
    labels = _outside_labels()
    taken: Counter[str] = Counter()
    found = []
    for name in ("train.jsonl", "val.jsonl"):
        for _, row in _rows(Path(folder) / name):
            text, intent = str(row.get("text")), str(row.get("intent"))
            taken[intent] += 1
            if intent == _OUTSIDE and (label := labels.get(_key(text))) is not None:
                found.append(Query(text, label, "", "clinc_outside", f"outside:{text.lower()}"))
            elif taken[intent] <= _INTENTS.get(intent, (False, 0))[1]:
                label = _INTENTS[intent][0]
                found.append(Query(text, label, "", "clinc_more", f"more:{text.lower()}"))
    return found


def read_remarks(path: str | Path, count: int = 500, seed: int = 0) -> list[Query]:
    """Some texts of a file with one text per line (up to a tab): small talk that asks nothing.

    Raises:
        DataError: the file cannot be read.
    """
    texts = [line.split("\t")[0].strip() for line in _lines(Path(path))]
    texts = sorted({text for text in texts if text})
    random.Random(seed).shuffle(texts)
    return [
        Query(text, False, "chitchat", "remarks", f"remark:{text.lower()}")
        for text in texts[:count]
    ]


def _outside_labels() -> dict[str, bool]:
    file = resources.files("mlx_companion.slm") / "data" / "research_outside.json"
    labels: dict[str, bool] = json.loads(file.read_text(encoding="utf-8"))["labels"]
    return labels


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    rows = []
    for at, line in enumerate(_lines(path), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"not JSON ({error})", path=path, line=at) from error
        if not isinstance(row, dict):
            raise DataError("expected a JSON object", path=path, line=at)
        rows.append((at, row))
    return rows


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read ({error}); check the path", path=path) from error
