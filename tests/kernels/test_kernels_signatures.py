"""Every launch of every op has the signature that MLX itself generates around its body.

MLX records a graph with a Metal kernel without having Metal; the source that it would compile is in
the record.
"""

from __future__ import annotations

import mlx_companion  # noqa: F401  (loads a fast BLAS before MLX)

import pytest  # isort: skip
from kernel_launches import Call, calls  # isort: skip

from mlx_companion.kernels import testing  # isort: skip


@pytest.mark.usefixtures("kernel_bench")
@pytest.mark.parametrize("call", calls(), ids=lambda call: f"{call.label} {call.dtype}")
def test_the_signature_is_mlxs(call: Call) -> None:
    assert testing.check_signatures(lambda: call.run("metal")) >= 1
