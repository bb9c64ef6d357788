"""Data files and a plain tokenizer for the tests of streaming; also run as a program.

python streamed_files.py encode FILE FOLDER [SECONDS]   sleeping so long per sample
python streamed_files.py train FILE CACHE               prints the peak memory (MB) of an epoch
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

WORDS = ("kettle", "garden", "river", "letter", "window", "market", "lamp", "morning", "table")


class Words:
    """A tokenizer whose tokens are bytes; it has no template and knows no offsets."""

    eos_token_id = 256
    all_special_ids = (256,)
    chat_template = None

    def encode(self, text: str, **_: Any) -> list[int]:
        return list(text.encode("utf-8"))

    def decode(self, tokens: list[int]) -> str:
        return bytes(token for token in tokens if token < 256).decode("utf-8", "replace")

    def get_vocab(self) -> dict[str, int]:
        return {str(number): number for number in range(257)}


class Slow(Words):
    """The same, at so many seconds a text."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def encode(self, text: str, **options: Any) -> list[int]:
        time.sleep(self.seconds)
        return super().encode(text, **options)


def sentence(rng: np.random.Generator, words: int) -> str:
    return " ".join(WORDS[i] for i in rng.integers(0, len(WORDS), words))


def records(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs and texts of any length, some too long, some of them twice."""
    rng = np.random.default_rng(seed)
    made: list[dict[str, Any]] = []
    for number in range(count):
        if made and rng.random() < 0.1:
            made.append(made[int(rng.integers(len(made)))])
        elif number % 3 == 2:
            made.append({"text": sentence(rng, int(rng.integers(1, 40)))})
        else:
            prompt = sentence(rng, int(rng.integers(1, 25)))
            made.append({"prompt": prompt, "completion": sentence(rng, int(rng.integers(1, 25)))})
    return made


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def main() -> None:
    what, file, folder, *rest = sys.argv[1:]
    if what == "encode":
        from mlx_companion.text import streaming

        streaming._PART_TOKENS = 500
        streaming.store_samples(file, Slow(float(rest[0]) if rest else 0.0), 128, folder=folder)
        return
    import os

    os.environ["MLX_COMPANION_CACHE"] = folder
    from mlx_companion.runtime.memory import peak_memory_mb
    from mlx_companion.training import TrainConfig
    from mlx_companion.training.data import prepare_data

    config = TrainConfig(stream=True, max_tokens=512, batch_tokens=2048, packing=rest == ["packed"])
    data = prepare_data(file, 0.1, Words(), config)
    for indices in data.train.epoch(0):
        data.train.batch(indices)
    print(json.dumps({"peak_mb": peak_memory_mb(), "tokens": data.report.tokens}))


if __name__ == "__main__":
    main()
