"""What every small module is: a name, a version, and an answer for one input or for many.

    module = ResearchClassifier()
    module.process("who won the match last night")        # a ResearchResult
    module.process_batch(["...", "..."])                  # a list of them, in order

A module has a degraded form, `fallback`, where rules alone can answer; the orchestrator uses it
when the module itself fails, is too slow or is switched off.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeVar

from mlx_companion.slm.results import ModuleResult

Result = TypeVar("Result", bound=ModuleResult)

MODULES = ("research_classifier", "personality_guard", "context_tracker", "drift_monitor")


class SLMModule(ABC, Generic[Result]):
    """Base of the four modules. `process` may be called from any thread.

    Attributes:
        name: one of `MODULES`, or a name of your own.
        version: of the weights, thresholds and rules in use.
    """

    name: ClassVar[str]
    version: str = "0"

    @abstractmethod
    def process_batch(self, items: Sequence[Any]) -> list[Result]:
        """Answer every item, in order.

        Raises:
            DataError: an item is not what the module reads; nothing was processed.
        """

    def process(self, item: Any) -> Result:
        """Answer one item."""
        return self.process_batch([item])[0]

    def fallback(self, item: Any) -> Result | None:
        """The answer of rules alone; None when there is none (the module then fails open)."""
        return None

    def prepare(self) -> None:
        """Fetch what helps and can be done without; the lack of it is no error."""

    def close(self) -> None:
        """Let go of what the module holds."""
