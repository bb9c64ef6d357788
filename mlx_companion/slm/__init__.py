"""Four small modules around a language model, and what runs them.

The research classifier says whether a query needs research, the personality guard keeps the
character of replies, the context tracker learns the person's language, and the drift monitor
watches how the replies change. Read `results.py` first (what they answer), then `module.py`.
"""

from __future__ import annotations

from mlx_companion.slm.module import MODULES, SLMModule
from mlx_companion.slm.packs import Pack, load_pack, save_pack
from mlx_companion.slm.results import (
    ContextResult,
    ContextUpdate,
    DriftResult,
    GuardResult,
    ModuleResult,
    ResearchResult,
)

__all__ = [
    "MODULES",
    "ContextResult",
    "ContextUpdate",
    "DriftResult",
    "GuardResult",
    "ModuleResult",
    "Pack",
    "ResearchResult",
    "SLMModule",
    "load_pack",
    "save_pack",
]
