"""mlx-lm's quantizers with some of their functions replaced, and without what they print.

    with mended(gptq, model, {"quantize": packed_words}):
        gptq.gptq_quantize(model, ...)

One such block runs at a time: what is printed is kept quiet for the whole process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from types import ModuleType
from typing import Any

import mlx.nn as nn

from mlx_companion.models.fast_cpu import fast_cpu
from mlx_companion.models.swapped import Place, swapped

_ONE_AT_A_TIME = threading.RLock()


class _Quiet:
    """In place of tqdm."""

    def __init__(self, iterable: Any = (), **_: Any) -> None:
        self.iterable = iterable

    def __iter__(self) -> Any:
        return iter(self.iterable)

    def set_description(self, *_: Any, **__: Any) -> None:
        """Nothing is shown."""

    @staticmethod
    def write(*_: Any, **__: Any) -> None:
        """Nothing is shown."""


@contextmanager
def mended(
    module: ModuleType, model: nn.Module, functions: Mapping[str, Callable[..., Any]] | None = None
) -> Iterator[None]:
    """Run one of mlx-lm's modules quietly, with fast exponentials, and with other functions.

    Args:
        module: of mlx-lm, with a `tqdm`.
        model: that it works on.
        functions: to put in place of the module's own, by name.
    """
    quiet: dict[str, Any] = {"tqdm": _Quiet}
    places = {Place(module, name): own for name, own in (quiet | dict(functions or {})).items()}
    with _ONE_AT_A_TIME, swapped(places), fast_cpu(model), redirect_stdout(StringIO()):
        yield
