"""The operations that decide how fast byte models, adapters and losses run, one folder each.

Every op is one public function with `impl="auto" | "reference" | "plain" | "metal" | "cuda"`
(`dispatch`): a reference that is slow and obvious, the best form in plain MLX, and a kernel body
that Metal and CUDA share. `testing` runs the Metal bodies on a CPU, under several schedules, and
finds races, divergence and accesses out of bounds.
"""

from __future__ import annotations

__all__: list[str] = []
