"""The machine under the companion: paths, files, configuration, BLAS, hardware, limits, logs.

Nothing here knows about models. Import from the modules themselves
(`from mlx_companion.runtime.files import atomic_path`); this file stays empty so that importing
one of them costs only that one.
"""

from __future__ import annotations

__all__: list[str] = []
