"""The four real modules through the orchestrator: they answer, share a pass, hold no loop."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from slm_pauses import HELD, calmest

from mlx_companion.runtime.config import load_config
from mlx_companion.slm.backbone import LanguageModelAdapter
from mlx_companion.slm.config import SLMConfig
from mlx_companion.slm.module import MODULES
from mlx_companion.slm.orchestrator import SLMOrchestrator

# However busy the machine is.
PATIENT = {f"modules.{name}.timeout": 300.0 for name in MODULES} | {
    "orchestration.total_timeout": 600.0,
    "orchestration.load_timeout": 300.0,
    "resources.adaptive": False,
}


@pytest.mark.real_model
def test_all_four_answer_share_a_pass_and_leave_the_loop_alone(
    real_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[str] = []
    plain = LanguageModelAdapter._features

    def counted(self: LanguageModelAdapter, texts: Sequence[str]) -> np.ndarray:
        passes.extend(texts)
        return plain(self, texts)

    monkeypatch.setattr(LanguageModelAdapter, "_features", counted)

    years = itertools.count(1900)

    async def main() -> tuple[Any, Any, float]:
        async with SLMOrchestrator(load_config(SLMConfig, None, PATIENT)) as own:
            found = await own.run_parallel("what is the price of copper today")
            pause = await calmest(
                lambda: own.run_parallel(f"who leads the league in {next(years)}"), threads=2
            )
            return found, own.get_execution_plan(), pause

    report, plan, pause = asyncio.run(main())
    assert {name: outcome.status for name, outcome in report.items()} == dict.fromkeys(
        MODULES, "ok"
    )
    assert report.result("research_classifier").needs_research
    assert len(plan.steps) == len(MODULES)
    assert len(passes) == len(set(passes))
    assert pause < HELD
