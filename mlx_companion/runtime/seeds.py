"""Seeds: one number per run, and stable numbers derived from it for each part.

`derive_seed(run_seed, "generate", round, prompt)` gives every sampler its own stream, so that
adding a step or reordering prompts does not change what the others draw.
"""

from __future__ import annotations

import hashlib
import random

_BOUND = 2**32  # numpy's legacy generator takes no more, so every consumer can take this


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and MLX's global generators.

    Args:
        seed: any integer; taken modulo 2^32.
    """
    import mlx.core as mx
    import numpy as np

    value = seed % _BOUND
    random.seed(value)
    np.random.seed(value)
    mx.random.seed(value)


def derive_seed(seed: int, *names: str | int) -> int:
    """A seed that depends only on `seed` and `names`, the same on every machine and version.

    Args:
        seed: the parent seed.
        names: what the seed is for, e.g. `"shuffle", epoch`. `1` and `"1"` differ.

    Returns:
        An integer in [0, 2^32).
    """
    parts = [f"{type(part).__name__}:{len(str(part))}:{part}" for part in (seed, *names)]
    digest = hashlib.sha256("|".join(parts).encode("utf-8")).digest()
    return int.from_bytes(digest[:4], "big")
