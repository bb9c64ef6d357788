"""Text for `benchmarks/quant.py`: what contestants calibrate on, and what they are measured on.

Both are half prose and half chat. The prose to calibrate on comes from books, that to measure on
from another book; chats are questions and remarks in the model's own template, from different rows
of their files. The folder holds `prose/train`, `prose/valid` (`.txt.gz`), `clinc150/train.jsonl`
and `val.jsonl`, and `goemotions/train.tsv`; see docs/data.md.
"""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

from benchmarks import common

_PAIRS = common.ROOT / "mlx_companion" / "loop" / "data" / "qa_pairs.jsonl"
_REMARKS = 20_000


def calibration(folder: Path, tokenizer: Any) -> list[str]:
    """About 14,000 tokens."""
    prose = excerpts(folder / "prose" / "train", 1500, 2, seed=1)
    return _mixed(prose, chats(folder, tokenizer, 30, held_out=False, seed=1))


def evaluation(folder: Path, tokenizer: Any) -> list[str]:
    """About 6,600 tokens that no contestant has seen."""
    prose = excerpts(folder / "prose" / "valid", 2500, 5, seed=5)
    return prose + chats(folder, tokenizer, 40, held_out=True, seed=5)


def excerpts(folder: Path, size: int, each: int, seed: int) -> list[str]:
    """Pieces of `size` characters, `each` of every book."""
    choose, found = random.Random(seed), []
    for file in sorted(folder.glob("*.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as book:
            text = book.read()
        for _ in range(each):
            start = choose.randrange(len(text) // 10, len(text) - size - 1)
            found.append(text[start : start + size])
    return found


def chats(folder: Path, tokenizer: Any, count: int, *, held_out: bool, seed: int) -> list[str]:
    """Short chats in the model's template."""
    choose = random.Random(seed)
    table = (folder / "goemotions" / "train.tsv").read_text(encoding="utf-8").splitlines()
    remarks = [line.split("\t")[0] for line in table]
    remarks = remarks[_REMARKS:] if held_out else remarks[:_REMARKS]
    asked = _rows(folder / "clinc150" / ("val.jsonl" if held_out else "train.jsonl"))
    pairs = _rows(_PAIRS)[int(held_out) :: 2]
    found = []
    for _ in range(count):
        pair, ask = choose.choice(pairs), choose.choice(asked)
        messages = [
            {"role": "user", "content": f"{ask.get('text') or ask['query']}"},
            {"role": "user", "content": f"{choose.choice(remarks)}\n{pair['question']}"},
            {"role": "assistant", "content": pair["answer"]},
        ]
        found.append(tokenizer.apply_chat_template(messages, tokenize=False))
    return found


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _mixed(first: list[str], second: list[str]) -> list[str]:
    return [text for pair in zip(first, second, strict=True) for text in pair]
