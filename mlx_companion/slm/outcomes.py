"""What came of running modules: an outcome per module, and the check that an answer makes sense.

Nothing that a module does is lost or hidden. Its outcome says whether it answered, what was wrong
when it did not, how long it took, and whose answer is used instead::

    report = await orchestrator.run_parallel("what is the weather today")
    report["research_classifier"].result      # a ResearchResult, the module's or its fallback's
    report["research_classifier"].status      # "ok", "timeout", "error", ...
    report.to_dict()                           # for a trace
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

from mlx_companion.errors import SLMError
from mlx_companion.slm.results import (
    ContextResult,
    ContextUpdate,
    DriftResult,
    GuardResult,
    ModuleResult,
    ResearchResult,
)

Status = Literal[
    "ok", "timeout", "error", "nonsense", "unavailable", "loading", "open", "skipped"
]  # fmt: skip

RESULTS: dict[str, type[ModuleResult]] = {
    "research_classifier": ResearchResult,
    "personality_guard": GuardResult,
    "context_tracker": ContextResult,
    "drift_monitor": DriftResult,
}
# What stands in for a module, for people. Tracker and drift monitor have rules of their own, too,
# but nothing depends on them: without a result they fail open.
FALLBACKS = {"research_classifier": "keyword rule", "personality_guard": "rules"}


# Types by their names in the annotations of results.
_KINDS: dict[str, type] = {
    "str": str, "list": list, "dict": Mapping, "ContextUpdate": ContextUpdate,
}  # fmt: skip


class NonsenseError(SLMError):
    """A module answered with what cannot be an answer."""


@dataclass(frozen=True)
class ModuleOutcome:
    """One module on one message.

    Attributes:
        module: its name.
        status: ok; timeout (too late); error (it raised); nonsense (its answer makes no sense);
            unavailable (it cannot be loaded); loading (not yet); open (left alone after repeated
            failure); skipped (switched off, not due, or the machine is short of something).
        result: what to use: the module's answer, its fallback's, or None.
        error: what was wrong, or why it was skipped; None when ok.
        seconds: that it took, its fallback included.
        fallback: what answered in its place; None when nothing did.
        version: of the module.
    """

    module: str
    status: Status
    result: ModuleResult | None = None
    error: str | None = None
    seconds: float = 0.0
    fallback: str | None = None
    version: str | None = None

    @property
    def ok(self) -> bool:
        """The module itself answered."""
        return self.status == "ok"

    def to_dict(self) -> dict[str, Any]:
        """As values that `json.dumps` takes."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        result = None if self.result is None else self.result.to_dict()
        return fields | {"result": result, "seconds": round(self.seconds, 6)}


@dataclass(frozen=True)
class RunReport(Mapping[str, ModuleOutcome]):
    """The outcomes of one message, by module.

    Attributes:
        outcomes: in the order of the plan, skipped modules included.
        seconds: that all of it took.
        load_seconds: of them, spent waiting for modules to load.
    """

    outcomes: dict[str, ModuleOutcome]
    seconds: float
    load_seconds: float = 0.0

    def __getitem__(self, module: str) -> ModuleOutcome:
        return self.outcomes[module]

    def __iter__(self) -> Iterator[str]:
        return iter(self.outcomes)

    def __len__(self) -> int:
        return len(self.outcomes)

    def result(self, module: str) -> Any:
        """The result to use of one module; None when there is none, or the module did not run."""
        outcome = self.outcomes.get(module)
        return None if outcome is None else outcome.result

    @property
    def degraded(self) -> tuple[str, ...]:
        """Modules that were to run and did not answer themselves."""
        return tuple(o.module for o in self.outcomes.values() if o.status not in ("ok", "skipped"))

    def to_dict(self) -> dict[str, Any]:
        """As values that `json.dumps` takes."""
        return {
            "outcomes": {name: one.to_dict() for name, one in self.outcomes.items()},
            "seconds": round(self.seconds, 6),
            "load_seconds": round(self.load_seconds, 6),
        }


def input_of(module: str, message: str) -> Any:
    """A message in the form that a module reads."""
    return {"text": message} if module == "drift_monitor" else message


def checked(module: str, result: Any) -> ModuleResult:
    """The result, when it makes sense.

    Every number among the fields of the four results is a share, 0 to 1, so any other number is a
    fault of the module, as are fields of another type and values that are not JSON.

    Raises:
        NonsenseError: it does not; says what is wrong.
    """
    expected = RESULTS.get(module, ModuleResult)
    if not isinstance(result, expected):
        raise NonsenseError(
            f"{module} answered with a {type(result).__name__}, not {expected.__name__}"
        )
    for field in dataclasses.fields(result):
        problem = _wrong(str(field.type), getattr(result, field.name))
        if problem is not None:
            raise NonsenseError(f"{module} answered with nonsense: {field.name} is {problem}")
    try:
        json.dumps(result.to_dict(), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise NonsenseError(f"{module} answered with what is not JSON: {error}") from error
    if isinstance(result, GuardResult) and result.original_response.strip():
        _check_rewrite(result)
    return result


def _wrong(kind: str, value: Any) -> str | None:
    """What is wrong with a field's value, by its annotation; None when nothing is."""
    if kind == "float":
        good = isinstance(value, Real) and math.isfinite(value) and 0 <= float(value) <= 1
        return None if good else f"{_shown(value)}, not a share from 0 to 1"
    if kind == "bool":
        # NumPy's booleans are no `bool`, but equal to one.
        good = not isinstance(value, Mapping | list | str) and value in (True, False)
        return None if good else f"{_shown(value)}, not true or false"
    outer, _, inner = kind.partition("[")
    plain = _KINDS.get(outer)
    if plain is not None and not isinstance(value, plain):
        return f"{_shown(value)}, not a {plain.__name__.lower()}"
    part = _KINDS.get(inner.partition("[")[0].rstrip("]"))
    if plain is list and part is not None:
        bad = [one for one in value if not isinstance(one, part)]
        return f"a list with {_shown(bad[0])} in it" if bad else None
    return None


def _check_rewrite(result: GuardResult) -> None:
    if not result.rewritten_response.strip():
        raise NonsenseError(
            "personality_guard answered with nonsense: nothing is left of the response"
        )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
