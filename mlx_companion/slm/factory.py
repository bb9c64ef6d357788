"""`SLMFactory`: the backbones by name, and the modules on top of them, each loaded once.

    factory = SLMFactory(load_config(SLMConfig, "slm.yaml"))
    factory.list_available()                        # phi3-mini, mistral-tiny, ... and yours
    backbone = factory.get_slm("llama3-1b")         # the same object for everybody who asks
    guard = factory.get_module("personality_guard") # built with the shared backbone
    factory.register_slm("mine", lambda: LanguageModelAdapter("path/to/folder"))

A backbone is any alias, hub id, folder or GGUF file, or an adapter of your own; it loads when its
features are first asked for. Modules that read features of the same text cause one forward pass,
because they share the adapter and it remembers what it computed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from threading import Lock, RLock
from typing import TYPE_CHECKING, Any

from mlx_companion.errors import ConfigError, SLMError
from mlx_companion.runtime.blas import limit_threads
from mlx_companion.runtime.config import nearest
from mlx_companion.slm.config import SLMConfig
from mlx_companion.slm.degraded import rules_only
from mlx_companion.slm.module import MODULES, SLMModule
from mlx_companion.slm.packs import load_pack
from mlx_companion.slm.results import ModuleResult
from mlx_companion.slm.slms import Backbones, MakeSLM, SLMInfo

if TYPE_CHECKING:
    from mlx_companion.models.load import LanguageModel
    from mlx_companion.slm.backbone import BaseSLMAdapter

CLASSES = {
    "research_classifier": "mlx_companion.slm.research:ResearchClassifier",
    "personality_guard": "mlx_companion.slm.guard:PersonalityGuard",
    "context_tracker": "mlx_companion.slm.tracker:ContextTracker",
    "drift_monitor": "mlx_companion.slm.drift:DriftMonitor",
}
# How modules call what the configuration calls otherwise.
_KEYWORDS = {
    "threshold": ("threshold", "confidence_threshold"),
    "enforcement_level": ("level", "enforcement_level"),
}

# Settings that only one module has.
_OWN = ("enforcement_level", "on_uncertain", "use_backbone")

# Modules are built on threads of their own. Two threads that import packages which need each other
# can be handed a half-initialized one (Python would rather do that than deadlock), so what a build
# imports is imported by one thread at a time, its backbone's package included.
_importing = Lock()

MakeModule = Callable[[], SLMModule[Any]]


class SLMFactory:
    """Builds backbones and modules, each once; see the module. Safe between threads.

    Args:
        config: which backbone, packs, thresholds.
        packs: folders of packs by module, over those of `config` (a registry's active versions).
        options: keyword arguments by module, such as {"personality_guard": {"profile": mine}}.
        served: a loaded model that answers meanwhile; a backbone that is the same takes its weights
            (see `sharing.py`).
    """

    def __init__(
        self,
        config: SLMConfig | None = None,
        *,
        packs: Mapping[str, Path] | None = None,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        served: LanguageModel | None = None,
    ) -> None:
        self.config = config or SLMConfig()
        self._packs = dict(packs or {})
        self._options = {name: dict(values) for name, values in (options or {}).items()}
        self._lock = RLock()
        self._backbones = Backbones(self.config, served)
        self._modules: dict[str, SLMModule[Any]] = {}
        self._makers: dict[str, MakeModule] = {}
        self._rules: dict[str, SLMModule[Any] | None] = {}
        self._building: dict[str, Lock] = {}
        if self.config.resources.threads is not None:
            limit_threads(self.config.resources.threads)

    def register_slm(
        self, name: str, make: BaseSLMAdapter | MakeSLM, *, replace: bool = False
    ) -> None:
        """Offer a backbone under a name.

        Args:
            name: for `get_slm`; it may hide an alias only with `replace`.
            make: the adapter, or what builds it when it is first asked for.
            replace: take the place of another one; who has that keeps it.

        Raises:
            ConfigError: the name is taken, or empty.
        """
        self._backbones.register(name, make, replace=replace)

    def get_slm(self, name: str | None = None) -> BaseSLMAdapter:
        """The backbone of a name; the same object each time, loaded when first used.

        Args:
            name: a registered name, an alias, a hub id, a folder or a GGUF file; None takes the
                configured one.

        Raises:
            ModelNotFoundError: none of these; names the nearest alias.
            SLMError: what a registered maker built is no adapter.
            HardwareError: the configuration asks for a GPU, and there is none.
        """
        return self._backbones.get(name)

    def list_available(self) -> list[SLMInfo]:
        """Every backbone with a name: those promised, other aliases, those registered."""
        return self._backbones.list()

    def register_module(self, name: str, make: SLMModule[Any] | MakeModule) -> None:
        """Use a module of your own under a name; one of the four is replaced by it.

        What was built under that name is let go of.
        """
        with self._lock:
            built = self._modules.pop(name, None)
            self._rules.pop(name, None)
            self._makers[name] = (lambda: make) if isinstance(make, SLMModule) else make
        if built is not None and built is not make:
            built.close()

    @property
    def module_names(self) -> tuple[str, ...]:
        """The four modules, then those registered besides."""
        return (*MODULES, *(name for name in list(self._makers) if name not in MODULES))

    def is_packaged(self, name: str) -> bool:
        """It is one of the four as they come with the package."""
        return name in CLASSES and name not in self._makers

    def loaded_module(self, name: str) -> SLMModule[Any] | None:
        """The module, when it is built already."""
        return self._modules.get(name)

    def get_module(self, name: str) -> SLMModule[Any]:
        """The module of a name, built when it is first asked for.

        Raises:
            SLMError: unknown, not installed, or its pack is damaged.
            ConfigError: a setting that the module does not have.
        """
        with self._lock:
            self._require(name)
            building = self._building.setdefault(name, Lock())
        with building:
            found = self._modules.get(name)
            if found is None:
                found = self._build(name)
                with self._lock:
                    self._modules[name] = found
            return found

    def fallback(self, name: str, item: Any) -> ModuleResult | None:
        """The answer of rules alone, also of a module that cannot be loaded; None: there is none.

        Raises:
            DataError: the item is not what the module reads.
        """
        module = self.loaded_module(name)
        if module is not None:
            return module.fallback(item)
        rules = self.rules_of(name)
        answer: ModuleResult | None = None if rules is None else rules.fallback(item)
        return answer

    def rules_of(self, name: str) -> SLMModule[Any] | None:
        """What is left of a module that cannot be loaded; good for `fallback` alone.

        Raises:
            SLMError: not even its rules can be read.
        """
        with self._lock:
            if name in self._rules:
                return self._rules[name]
            own = name in self._makers
        folder = self._packs.get(name, self.config.module(name).pack)
        made = None if own else rules_only(name, folder, self._arguments(name))
        with self._lock:
            self._rules[name] = made
        return made

    def reload(self, name: str, pack: Path | None = None) -> SLMModule[Any]:
        """Build a module anew, with another pack when one is given; the old one serves until then.

        Raises:
            SLMError: as `get_module`; the old one then goes on.
        """
        with self._lock:
            self._require(name)
            building = self._building.setdefault(name, Lock())
        with building:
            before = self._packs.get(name)
            if pack is not None:
                self._packs[name] = pack
            try:
                new = self._build(name)
            except BaseException:
                self._packs.pop(name, None)
                if before is not None:
                    self._packs[name] = before
                raise
            with self._lock:
                old, self._modules[name] = self._modules.get(name), new
                self._rules.pop(name, None)
        if old is not None and old is not new:
            old.close()
        return new

    def discard(self, name: str) -> None:
        """Let go of a module that is built; who asks for it next has it built anew."""
        with self._lock:
            building = self._building.setdefault(name, Lock())
        with building, self._lock:
            old = self._modules.pop(name, None)
        if old is not None:
            old.close()

    def close(self) -> None:
        """Let go of every module and registered backbone; others may use the shared ones."""
        with self._lock:
            modules = list(self._modules.values())
            self._modules.clear()
        for module in modules:
            module.close()
        self._backbones.close()

    def _require(self, name: str) -> None:
        if name not in self._makers and name not in CLASSES:
            raise SLMError(f"there is no module '{name}'{nearest(name, self.module_names)}")

    def _build(self, name: str) -> SLMModule[Any]:
        maker = self._makers.get(name)
        made = self._packaged(name) if maker is None else maker()
        if not isinstance(made, SLMModule):
            raise SLMError(
                f"the maker of '{name}' built a {type(made).__name__}; expected an SLMModule"
            )
        return made

    def _packaged(self, name: str) -> SLMModule[Any]:
        cls, config = module_class(name), self.config.module(name)
        arguments = self._arguments(name)
        known = inspect.signature(cls).parameters
        folder = self._packs.get(name, config.pack)
        if folder is not None:
            # Read here, so that a damaged one is told now and not by the first message.
            arguments["pack"] = load_pack(folder, name)
        rewrites = config.adapter is not None or bool(getattr(config, "rewriter", False))
        if config.adapter is not None and not {"backbone", "rewriter"} & set(known):
            raise ConfigError(f"{name} generates nothing, so it takes no adapter; leave it out")
        if rewrites and "rewriter" in known and "rewriter" not in arguments:
            arguments["rewriter"] = (self._backbone_for(name) or self.get_slm()).generate
        elif "backbone" in known and "backbone" not in arguments:
            arguments["backbone"] = self._backbone_for(name)
        built: SLMModule[Any] = cls(**arguments)
        return built

    def _arguments(self, name: str) -> dict[str, Any]:
        """Settings and the caller's options, as the module's class calls them."""
        config, known = self.config.module(name), inspect.signature(module_class(name)).parameters
        given = {key: getattr(config, key, None) for key in ("threshold", *_OWN)}
        values = {key: value for key, value in given.items() if value is not None}
        arguments = {}
        for setting, value in (values | self._options.get(name, {})).items():
            names = _KEYWORDS.get(setting, (setting,))
            keyword = next((one for one in names if one in known), None)
            if keyword is None:
                raise ConfigError(f"{name} has no '{setting}' to set; leave it out")
            arguments[keyword] = value
        return arguments

    def adapted_backbone(self, name: str) -> BaseSLMAdapter | None:
        """The backbone with a module's own adapter; None for a module without one.

        Raises:
            ConfigError: the backbone is no language model.
        """
        from mlx_companion.slm.backbone import LanguageModelAdapter
        from mlx_companion.slm.views import AdaptedBackbone

        adapter = self.config.module(name).adapter
        if adapter is None:
            return None
        shared = self.get_slm()
        if not isinstance(shared, LanguageModelAdapter):
            raise ConfigError(f"'{shared.name}' is no language model; it takes no adapter")
        return AdaptedBackbone(shared, name, adapter)

    def _backbone_for(self, name: str) -> BaseSLMAdapter | None:
        """None leaves a module with the process's own shared backbone, if it needs one at all."""
        plain = self.get_slm if self._backbones.is_chosen() else lambda: None
        return self.adapted_backbone(name) or plain()


def module_class(name: str) -> Any:
    """The class of one of the four modules.

    Raises:
        SLMError: it cannot be imported.
    """
    path, _, attribute = CLASSES[name].partition(":")
    try:
        with _importing:
            cls = getattr(import_module(path), attribute)
            if "backbone" in inspect.signature(cls).parameters:
                import_module("mlx_companion.models")
            return cls
    except (ImportError, AttributeError) as error:
        raise SLMError(f"{name} cannot be imported ({error}); reinstall the package") from error
