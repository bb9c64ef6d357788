"""What answers when a module cannot even be loaded: its rules, without its pack.

A damaged pack must not switch off the guard, nor make the companion look nothing up. Modules whose
rules work without weights offer them as a class method `rules_only()`; nothing else is done here.
"""

from __future__ import annotations

from typing import Any

from mlx_companion.slm.results import ModuleResult


def degraded(name: str, item: Any) -> ModuleResult | None:
    """The answer of a module's rules; None for one that has none (it then fails open).

    Raises:
        SLMError: the module cannot be imported.
        DataError: the item is not what the module reads.
    """
    from mlx_companion.slm.factory import module_class

    make = getattr(module_class(name), "rules_only", None)
    answer: ModuleResult | None = None if make is None else make().fallback(item)
    return answer
