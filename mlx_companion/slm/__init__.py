"""Four small modules around a language model, and what runs them.

The research classifier says whether a query needs research, the personality guard keeps the
character of replies, the context tracker learns the person's language, and the drift monitor
watches how the replies change. Read `results.py` first (what they answer), then `module.py` (what
each of them is), `backbone.py` (what they read texts with) and `orchestrator.py` (what runs them)::

    from mlx_companion.slm import SLMOrchestrator

    async with SLMOrchestrator() as slm:
        report = await slm.run_parallel("what is the weather in Porto today")
        report.result("research_classifier").needs_research      # True

Names are imported on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers; a test compares it with `_LAZY`
    from mlx_companion.slm.backbone import BaseSLMAdapter as BaseSLMAdapter
    from mlx_companion.slm.backbone import EncoderAdapter as EncoderAdapter
    from mlx_companion.slm.backbone import LanguageModelAdapter as LanguageModelAdapter
    from mlx_companion.slm.backbone import shared_backbone as shared_backbone
    from mlx_companion.slm.batches import FileRun as FileRun
    from mlx_companion.slm.batches import run_file as run_file
    from mlx_companion.slm.bench import LatencyRow as LatencyRow
    from mlx_companion.slm.bench import measure_latencies as measure_latencies
    from mlx_companion.slm.bench import sample_inputs as sample_inputs
    from mlx_companion.slm.breaker import CircuitBreaker as CircuitBreaker
    from mlx_companion.slm.config import SLMConfig as SLMConfig
    from mlx_companion.slm.drift import DriftMonitor as DriftMonitor
    from mlx_companion.slm.factory import SLMFactory as SLMFactory
    from mlx_companion.slm.guard import PersonalityGuard as PersonalityGuard
    from mlx_companion.slm.health import ModuleStatus as ModuleStatus
    from mlx_companion.slm.module import MODULES as MODULES
    from mlx_companion.slm.module import SLMModule as SLMModule
    from mlx_companion.slm.orchestrator import SLMOrchestrator as SLMOrchestrator
    from mlx_companion.slm.outcomes import ModuleOutcome as ModuleOutcome
    from mlx_companion.slm.outcomes import RunReport as RunReport
    from mlx_companion.slm.packs import Pack as Pack
    from mlx_companion.slm.packs import load_pack as load_pack
    from mlx_companion.slm.packs import save_pack as save_pack
    from mlx_companion.slm.plan import ExecutionPlan as ExecutionPlan
    from mlx_companion.slm.plan import PlanStep as PlanStep
    from mlx_companion.slm.registry import SLMRegistry as SLMRegistry
    from mlx_companion.slm.research import ResearchClassifier as ResearchClassifier
    from mlx_companion.slm.resources import ResourceScheduler as ResourceScheduler
    from mlx_companion.slm.results import ContextResult as ContextResult
    from mlx_companion.slm.results import ContextUpdate as ContextUpdate
    from mlx_companion.slm.results import DriftResult as DriftResult
    from mlx_companion.slm.results import GuardResult as GuardResult
    from mlx_companion.slm.results import ModuleResult as ModuleResult
    from mlx_companion.slm.results import ResearchResult as ResearchResult
    from mlx_companion.slm.slms import SLMInfo as SLMInfo
    from mlx_companion.slm.sync import ContextSyncManager as ContextSyncManager
    from mlx_companion.slm.tracker import ContextTracker as ContextTracker

_LAZY: dict[str, str] = {
    "BaseSLMAdapter": "mlx_companion.slm.backbone:BaseSLMAdapter",
    "CircuitBreaker": "mlx_companion.slm.breaker:CircuitBreaker",
    "ContextResult": "mlx_companion.slm.results:ContextResult",
    "ContextSyncManager": "mlx_companion.slm.sync:ContextSyncManager",
    "ContextTracker": "mlx_companion.slm.tracker:ContextTracker",
    "ContextUpdate": "mlx_companion.slm.results:ContextUpdate",
    "DriftMonitor": "mlx_companion.slm.drift:DriftMonitor",
    "DriftResult": "mlx_companion.slm.results:DriftResult",
    "EncoderAdapter": "mlx_companion.slm.backbone:EncoderAdapter",
    "ExecutionPlan": "mlx_companion.slm.plan:ExecutionPlan",
    "FileRun": "mlx_companion.slm.batches:FileRun",
    "GuardResult": "mlx_companion.slm.results:GuardResult",
    "LanguageModelAdapter": "mlx_companion.slm.backbone:LanguageModelAdapter",
    "LatencyRow": "mlx_companion.slm.bench:LatencyRow",
    "MODULES": "mlx_companion.slm.module:MODULES",
    "ModuleOutcome": "mlx_companion.slm.outcomes:ModuleOutcome",
    "ModuleResult": "mlx_companion.slm.results:ModuleResult",
    "ModuleStatus": "mlx_companion.slm.health:ModuleStatus",
    "Pack": "mlx_companion.slm.packs:Pack",
    "PersonalityGuard": "mlx_companion.slm.guard:PersonalityGuard",
    "PlanStep": "mlx_companion.slm.plan:PlanStep",
    "ResearchClassifier": "mlx_companion.slm.research:ResearchClassifier",
    "ResearchResult": "mlx_companion.slm.results:ResearchResult",
    "ResourceScheduler": "mlx_companion.slm.resources:ResourceScheduler",
    "RunReport": "mlx_companion.slm.outcomes:RunReport",
    "SLMConfig": "mlx_companion.slm.config:SLMConfig",
    "SLMFactory": "mlx_companion.slm.factory:SLMFactory",
    "SLMInfo": "mlx_companion.slm.slms:SLMInfo",
    "SLMModule": "mlx_companion.slm.module:SLMModule",
    "SLMOrchestrator": "mlx_companion.slm.orchestrator:SLMOrchestrator",
    "SLMRegistry": "mlx_companion.slm.registry:SLMRegistry",
    "load_pack": "mlx_companion.slm.packs:load_pack",
    "measure_latencies": "mlx_companion.slm.bench:measure_latencies",
    "run_file": "mlx_companion.slm.batches:run_file",
    "sample_inputs": "mlx_companion.slm.bench:sample_inputs",
    "save_pack": "mlx_companion.slm.packs:save_pack",
    "shared_backbone": "mlx_companion.slm.backbone:shared_backbone",
}

__all__ = sorted(_LAZY)


def __getattr__(name: str) -> Any:
    target = _LAZY.get(name)
    if target is None:
        raise AttributeError(f"module 'mlx_companion.slm' has no attribute '{name}'")
    module, _, attribute = target.partition(":")
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
