"""The state of the random generators, as numbers that can be stored and set again.

MLX shows its state as a key of two 32-bit words and has no setter; but seeding it with those words
as one 64-bit number gives that very key.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np


def get_random_state() -> int:
    """The state of MLX's global generator."""
    high, low = mx.random.state[0].tolist()  # type: ignore[index]
    return (high << 32) | low


def set_random_state(state: int) -> None:
    """Put MLX's global generator in a state that `get_random_state` gave."""
    mx.random.seed(state)


def export_random_states() -> dict[str, Any]:
    """MLX's and NumPy's global states, as JSON values."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    numpy_state = [str(name), np.asarray(keys).tolist(), position, has_gauss, gauss]
    return {"mlx": get_random_state(), "numpy": numpy_state}


def restore_random_states(states: dict[str, Any]) -> None:
    """Set what `export_random_states` gave."""
    name, keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
    set_random_state(states["mlx"])
