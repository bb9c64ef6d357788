"""Kernels of other libraries on the bench, their modules unchanged.

    losses = testing.on_bench("mlx_lm.tuner.losses", schedule="reverse")
    losses.kl_div_loss(q, p)

The module is loaded a second time under a private name. In that copy `mlx.core` says that there is
a GPU, and its `fast.metal_kernel` is the bench's; nobody else sees either.
"""

from __future__ import annotations

import builtins
import importlib.util
import sys
from collections.abc import Callable, Mapping
from types import CodeType, ModuleType, SimpleNamespace
from typing import Any

import mlx.core as mx

from mlx_companion.errors import ConfigError
from mlx_companion.kernels.testing.bench import maker
from mlx_companion.kernels.testing.request import Options

Edit = Callable[[str, str], str]


class _With:
    """An object's attributes, some of them replaced."""

    def __init__(self, real: Any, **replaced: Any) -> None:
        self.__dict__.update(replaced)
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def on_bench(
    module: str, *, schedule: str = "forward", edit: Edit | None = None, **options: Any
) -> ModuleType:
    """A private copy of a module, whose Metal kernels run on the bench.

    Args:
        module: its full name; it must be importable, from a source file.
        schedule: the order of threads.
        edit: given a kernel's name and body, returns the body to run: for trying a mend.
        options: further ones of `Options`.

    Returns:
        The copy. `mx.compile` does nothing in it, since the bench needs values.

    Raises:
        ConfigError: there is no such module.
    """
    origin, code = _compiled(module)
    make = maker(Options(schedule=schedule, **options))
    core = _core(_edited(make, edit) if edit else make)
    copy = ModuleType(f"{module}__on_bench")
    copy.__package__ = module.rpartition(".")[0]
    copy.__file__ = origin
    copy.__dict__["__builtins__"] = {**vars(builtins), "__import__": _importer(core)}
    # Dataclasses look their module up by name while their body runs.
    sys.modules[copy.__name__] = copy
    try:
        exec(code, copy.__dict__)
    finally:
        del sys.modules[copy.__name__]
    return copy


def _compiled(module: str) -> tuple[str | None, CodeType]:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    loader: Any = spec.loader if spec else None
    code = loader.get_code(module) if hasattr(loader, "get_code") else None
    if spec is None or code is None:
        raise ConfigError(f"no module '{module}' with source; give a full name like 'a.b.c'")
    return spec.origin, code


def _core(make: Callable[..., Any]) -> Any:
    return _With(
        mx,
        fast=_With(mx.fast, metal_kernel=make),
        metal=_With(mx.metal, is_available=lambda: True),
        default_device=lambda: mx.Device(mx.gpu),
        compile=_uncompiled,
    )


def _uncompiled(function: Callable[..., Any] | None = None, **_: Any) -> Any:
    return function if function is not None else _uncompiled


def _edited(make: Callable[..., Any], edit: Edit) -> Callable[..., Any]:
    def edited(*args: Any, **given: Any) -> Any:
        names = ("name", "input_names", "output_names", "source")
        call = {**dict(zip(names, args, strict=False)), **given}
        call["source"] = edit(call["name"], call["source"])
        return make(**call)

    return edited


def _importer(core: Any) -> Callable[..., Any]:
    def import_(
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: tuple[str, ...] = (),
        level: int = 0,
    ) -> Any:
        real = builtins.__import__(name, globals, locals, fromlist or (), level)
        if name == "mlx.core" and level == 0:
            return core if fromlist else SimpleNamespace(core=core)
        if name == "mlx" and level == 0 and "core" in (fromlist or ()):
            return _With(real, core=core)
        if "can_run_metal" in (fromlist or ()):
            return _With(real, can_run_metal=lambda: True)
        return real

    return import_
