"""The backbones by name: those promised, every other alias, and those that a person registers.

Used by the factory, whose `register_slm`, `get_slm` and `list_available` these are. A backbone of
a name is one object in the process, so that whoever asks shares its weights and its features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING

from mlx_companion.errors import ConfigError, HardwareError, SLMError
from mlx_companion.slm.config import SLMConfig

if TYPE_CHECKING:
    from mlx_companion.models.load import LanguageModel
    from mlx_companion.slm.backbone import BaseSLMAdapter

# The models that adapters are promised for, beside the default; any other name works as well.
SLMS = ("phi3-mini", "mistral-tiny", "llama3-1b", "tinyllama", "phi2")

MakeSLM = Callable[[], "BaseSLMAdapter"]


@dataclass(frozen=True)
class SLMInfo:
    """A backbone that can be had.

    Attributes:
        name: for `get_slm`.
        source: hub id, or "registered" for one of your own.
        loaded: it is in memory.
        memory_mb: that it takes there; None while it is not loaded.
    """

    name: str
    source: str
    loaded: bool
    memory_mb: float | None


class Backbones:
    """Builds each backbone once. Safe between threads.

    Args:
        config: the default name, and whether a GPU may, must or must not be used.
        served: a loaded model whose weights are to serve, too, where they are the same.
    """

    def __init__(self, config: SLMConfig, served: LanguageModel | None = None) -> None:
        self._config, self._served = config, served
        self._lock = RLock()
        self._slms: dict[str, BaseSLMAdapter] = {}
        self._makers: dict[str, MakeSLM] = {}

    def register(self, name: str, make: BaseSLMAdapter | MakeSLM, *, replace: bool) -> None:
        """See `SLMFactory.register_slm`."""
        from mlx_companion.slm.backbone import BaseSLMAdapter

        if not name.strip():
            raise ConfigError("a backbone's name is empty; give it one")
        with self._lock:
            if not replace and (name in self._makers or name in _aliases()):
                raise ConfigError(
                    f"'{name}' is a backbone already; choose another, or replace=True"
                )
            self._slms.pop(name, None)
            self._makers[name] = (lambda: make) if isinstance(make, BaseSLMAdapter) else make

    def get(self, name: str | None) -> BaseSLMAdapter:
        """See `SLMFactory.get_slm`."""
        from mlx_companion.models.registry import DEFAULT_MODEL

        name = name or self._config.model or DEFAULT_MODEL
        with self._lock:
            key = name if name in self._makers else _canonical(name)
            if key not in self._slms:
                self._slms[key] = self._make(key)
            return self._slms[key]

    def list(self) -> list[SLMInfo]:
        """See `SLMFactory.list_available`."""
        from mlx_companion.models.registry import DEFAULT_MODEL

        with self._lock:
            aliases = _aliases()
            own = [name for name in self._makers if name not in aliases]
            first = [DEFAULT_MODEL, *SLMS]
            names = [*first, *(name for name in aliases if name not in first), *own]
            return [self._info(name, aliases.get(name, "registered")) for name in names]

    def is_chosen(self) -> bool:
        """The default is not simply the process's own shared backbone of the default model."""
        from mlx_companion.models.registry import DEFAULT_MODEL

        special = self._config.model is not None or self._config.resources.gpu != "auto"
        return special or self._served is not None or DEFAULT_MODEL in self._makers

    def close(self) -> None:
        """Let go of the registered ones; others may use the shared ones."""
        with self._lock:
            own = [slm for name, slm in self._slms.items() if name in self._makers]
            self._slms.clear()
        for slm in own:
            slm.unload()

    def _make(self, name: str) -> BaseSLMAdapter:
        from mlx_companion.slm.backbone import BaseSLMAdapter

        maker = self._makers.get(name)
        if maker is None:
            return self._by_name(name)
        made = maker()
        if not isinstance(made, BaseSLMAdapter):
            raise SLMError(
                f"the maker of '{name}' built a {type(made).__name__}; expected a BaseSLMAdapter"
            )
        return made

    def _by_name(self, name: str) -> BaseSLMAdapter:
        """The process's one backbone of a name; one of our own over the served model's weights, or
        when it is kept on the CPU.
        """
        from mlx_companion.slm import backbone, sharing, views

        on_cpu = self._config.resources.gpu == "off"
        if self._config.resources.gpu == "on":
            require_gpu()
        if self._served is not None:
            kind = sharing.ServedCpuBackbone if on_cpu else sharing.ServedBackbone
            return kind(name, self._served)
        return views.CpuBackbone(name) if on_cpu else backbone.shared_backbone(name)

    def _info(self, name: str, source: str) -> SLMInfo:
        slm = self._slms.get(name)
        loaded = slm is not None and slm.loaded
        return SLMInfo(name, source, loaded, slm.memory_bytes / 1e6 if slm and loaded else None)


def require_gpu() -> None:
    """Return when MLX works on a GPU.

    Raises:
        HardwareError: it does not; there is no silent fallback.
    """
    from mlx_companion.runtime.device import is_cpu

    if is_cpu():
        raise HardwareError(
            "resources.gpu is 'on', but MLX works on the CPU here; set it to 'auto' or 'off'"
        )


def _aliases() -> dict[str, str]:
    from mlx_companion.models.registry import ALIASES

    return {alias: spec.hub_id for alias, spec in ALIASES.items() if spec.kind == "language"}


def _canonical(name: str) -> str:
    """One key for one model: paths as they are, aliases in lower case, hub ids by their alias."""
    from mlx_companion.models.registry import spec_for

    return name if Path(name).expanduser().exists() else spec_for(name).alias
