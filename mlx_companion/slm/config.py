"""`SLMConfig`: which modules run, for how long at most, and what they may take from the machine.

Defaults live here and nowhere else; a JSON or YAML file (YAML reads JSON, too) and dotted overrides
replace them, and an unknown key is an error that names the nearest known one::

    config = load_config(SLMConfig, "slm.yaml", {"modules.drift_monitor.frequency": 5})

    modules:
      personality_guard: {enforcement_level: monitor, timeout: 0.5}
      drift_monitor: {enabled: false}
    orchestration: {max_parallel: 4, total_timeout: 2.0}
    resources: {memory_ceiling_mb: 4000}

Each module is to answer within its `budget_ms` on two cores of a plain CPU. Its timeout is ten
times that and more: a busy machine is slow and not broken, and a reply still waits no longer than
`total_timeout`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mlx_companion.errors import ConfigError

EnforcementLevel = Literal["strict", "moderate", "monitor"]
LEVELS: tuple[EnforcementLevel, ...] = ("strict", "moderate", "monitor")


@dataclass(frozen=True)
class ModuleConfig:
    """One module.

    Attributes:
        enabled: it runs at all.
        timeout: seconds that one message may take, after which its fallback answers.
        threshold: of its decision, 0 to 1; None takes the one its pack was calibrated for.
        batch_size: inputs worked on at once.
        frequency: run on every Nth message only; 1 is every one.
        budget_ms: the time (milliseconds) that it is expected to take, for plans.
        skip_below: leave it out while the machine grants less than this share (0 to 1) of its
            usual work; 0 never does. See `resources`.
        pack: folder of another pack than the one that comes with the package.
        adapter: folder of a LoRA adapter for what it generates.
    """

    enabled: bool = True
    timeout: float = 1.0
    threshold: float | None = None
    batch_size: int = 32
    frequency: int = 1
    budget_ms: float = 100.0
    skip_below: float = 0.0
    pack: Path | None = None
    adapter: Path | None = None

    def __post_init__(self) -> None:
        for name in ("timeout", "budget_ms"):
            _positive(name, getattr(self, name))
        for name in ("batch_size", "frequency"):
            _at_least_one(name, getattr(self, name))
        for name in ("threshold", "skip_below"):
            _share(name, getattr(self, name))


@dataclass(frozen=True)
class ResearchConfig(ModuleConfig):
    """The research classifier: without it no query is looked up, so pressure never skips it.

    Attributes:
        threshold: answers less sure than this are uncertain; up to 0.5 none is.
        on_uncertain: what becomes of those: keep the likelier answer, research always, or answer
            without; None takes the classifier's own default.
        use_backbone: False answers by n-grams and factors alone, in a millisecond.
    """

    timeout: float = 1.0
    budget_ms: float = 50.0
    on_uncertain: Literal["keep", "research", "answer"] | None = None
    use_backbone: bool | None = None


@dataclass(frozen=True)
class GuardConfig(ModuleConfig):
    """The personality guard.

    Attributes:
        enforcement_level: strict and moderate rewrite, monitor only reports; None takes the
            profile's own.
        rewriter: let the language model rewrite sentences of the wrong tone (seconds on a CPU);
            an `adapter` for it implies that. Otherwise tone is mended by rules. None: in a
            companion whose model has a billion parameters or more and works on a GPU, as smaller
            ones hardly ever do it faithfully; nowhere else.
        rewriter_seconds: for all sentences of a reply, in a companion, where rewriting is a step of
            its own and no part of `timeout`.
    """

    # Rules take 20 ms; the rest is for one sentence that a language model rewrites.
    timeout: float = 2.0
    budget_ms: float = 20.0
    enforcement_level: EnforcementLevel | None = None
    rewriter: bool | None = None
    rewriter_seconds: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive("rewriter_seconds", self.rewriter_seconds)
        if self.enforcement_level is not None and self.enforcement_level not in LEVELS:
            raise ConfigError(
                f"enforcement_level is {self.enforcement_level!r}; expected one of "
                f"{', '.join(LEVELS)}"
            )


@dataclass(frozen=True)
class TrackerConfig(ModuleConfig):
    """The context tracker: what it misses under heavy pressure is not learned that time."""

    timeout: float = 1.0
    budget_ms: float = 60.0
    skip_below: float = 0.3


@dataclass(frozen=True)
class DriftConfig(ModuleConfig):
    """The drift monitor: the first one to wait when the machine is short of anything."""

    timeout: float = 1.5
    budget_ms: float = 100.0
    skip_below: float = 0.6


@dataclass(frozen=True)
class ModulesConfig:
    """The four modules."""

    research_classifier: ResearchConfig = field(default_factory=ResearchConfig)
    personality_guard: GuardConfig = field(default_factory=GuardConfig)
    context_tracker: TrackerConfig = field(default_factory=TrackerConfig)
    drift_monitor: DriftConfig = field(default_factory=DriftConfig)


@dataclass(frozen=True)
class OrchestrationConfig:
    """How modules run beside each other.

    Attributes:
        max_parallel: modules at work at once.
        total_timeout: seconds for all modules of a message together.
        load_timeout: seconds that a message waits for modules that are not loaded yet; 0 answers
            with fallbacks while they load. It is no part of the other two.
        fallback_on_timeout: a module that is too late is answered for by its fallback.
        fallback_timeout: seconds that a fallback may take.
        failures: failures in a row after which a module is left alone for a while.
        reset_seconds: how long; doubled each time that the try afterwards fails, up to
            `max_reset_seconds`.
        max_reset_seconds: see there.
        max_abandoned: threads of one module that may hang before no new one is started.
    """

    max_parallel: int = 4
    total_timeout: float = 2.5
    load_timeout: float = 60.0
    fallback_on_timeout: bool = True
    fallback_timeout: float = 0.25
    failures: int = 3
    reset_seconds: float = 30.0
    max_reset_seconds: float = 600.0
    max_abandoned: int = 2

    def __post_init__(self) -> None:
        for name in ("total_timeout", "fallback_timeout", "reset_seconds", "max_reset_seconds"):
            _positive(name, getattr(self, name))
        for name in ("max_parallel", "failures", "max_abandoned"):
            _at_least_one(name, getattr(self, name))
        if not 0 <= self.load_timeout < math.inf:
            raise ConfigError(f"load_timeout is {self.load_timeout}; expected 0 or more seconds")
        if self.max_reset_seconds < self.reset_seconds:
            raise ConfigError(
                f"max_reset_seconds is {self.max_reset_seconds:g}, less than reset_seconds "
                f"({self.reset_seconds:g}); raise it"
            )


@dataclass(frozen=True)
class ResourcesConfig:
    """What the modules may take from the machine.

    Attributes:
        memory_ceiling_mb: of this process (MB); over it batches shrink and modules are skipped.
        min_free_mb: memory (MB) that the machine is to have left, likewise.
        threads: of matrix products; None leaves the number that the package chose.
        gpu: on asks for one (an error where there is none), off keeps modules on the CPU.
        adaptive: look at memory, battery and heat at all.
        battery_threshold: percent of charge under which an unplugged machine is spared.
        poll_seconds: least time between two looks at the machine.
    """

    memory_ceiling_mb: float | None = None
    min_free_mb: float = 300.0
    threads: int | None = None
    gpu: Literal["auto", "on", "off"] = "auto"
    adaptive: bool = True
    battery_threshold: float = 40.0
    poll_seconds: float = 5.0

    def __post_init__(self) -> None:
        if self.memory_ceiling_mb is not None:
            _positive("memory_ceiling_mb", self.memory_ceiling_mb)
        _positive("poll_seconds", self.poll_seconds)
        if not 0 <= self.min_free_mb < math.inf:
            raise ConfigError(f"min_free_mb is {self.min_free_mb}; expected 0 or more MB")
        if self.threads is not None:
            _at_least_one("threads", self.threads)
        if self.gpu not in ("auto", "on", "off"):
            raise ConfigError(f"gpu is {self.gpu!r}; expected 'auto', 'on' or 'off'")
        if not 0 <= self.battery_threshold <= 100:
            raise ConfigError(
                f"battery_threshold is {self.battery_threshold}; expected a percentage, 0 to 100"
            )


@dataclass(frozen=True)
class SLMConfig:
    """Everything about the modules; build it with `load_config(SLMConfig, path, overrides)`.

    Attributes:
        model: the backbone that modules share: an alias, a hub id, a folder or a GGUF file; None
            takes the default model.
        modules: each module's settings.
        orchestration: how they run beside each other.
        resources: what they may take from the machine.
    """

    model: str | None = None
    modules: ModulesConfig = field(default_factory=ModulesConfig)
    orchestration: OrchestrationConfig = field(default_factory=OrchestrationConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)

    def module(self, name: str) -> ModuleConfig:
        """A module's settings; defaults for one that is not among the four."""
        found: ModuleConfig | None = getattr(self.modules, name, None)
        return found if found is not None else ModuleConfig()


def _positive(name: str, value: float) -> None:
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigError(f"{name} is {value}; expected more than 0")


def _at_least_one(name: str, value: int) -> None:
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} is {value}; expected 1 or more, a whole number")


def _share(name: str, value: float | None) -> None:
    if value is not None and not 0 <= value <= 1:
        raise ConfigError(f"{name} is {value}; expected a share, 0 to 1")
