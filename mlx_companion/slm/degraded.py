"""What is left of a module whose pack is damaged: its rules, without weights.

A damaged weight file must not switch off the guard, nor make the companion look nothing up. So the
parts of the pack that still have their checksum are kept, those of the package's own pack stand in
for the others, and the module is built on that for its `fallback` alone::

    rules_only("personality_guard", damaged_folder).fallback("*grins* Hello!")
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_companion.errors import SLMError
from mlx_companion.runtime.files import sha256_file
from mlx_companion.slm.module import SLMModule
from mlx_companion.slm.packs import RULES, SETTINGS, Pack, packaged
from mlx_companion.slm.research_factors import CUTOFF

# No head without weights; the figures that the classifier's rules go by are low ones.
_PLAIN: dict[str, dict[str, Any]] = {
    "research_classifier": {
        "heads": {},
        "ngrams": {},
        "cutoff": CUTOFF,
        "table_precision": {"research": 0.7, "answer": 0.7, "none": 0.5},
    },
    "personality_guard": {},
}


def rules_only(
    name: str, folder: Path | None = None, options: Mapping[str, Any] | None = None
) -> SLMModule[Any] | None:
    """A module that can do nothing but `fallback`; None for one whose rules need weights.

    Args:
        name: which one.
        folder: of its damaged pack; the package's own by default.
        options: keyword arguments besides the pack.

    Raises:
        SLMError: not even its rules can be read.
    """
    from mlx_companion.slm.factory import module_class

    if name not in _PLAIN:
        return None
    built: SLMModule[Any] = module_class(name)(pack=salvaged(name, folder), **(options or {}))
    return built


def salvaged(name: str, folder: Path | None = None) -> Pack:
    """A pack of the rules and settings that are whole, without weights.

    Raises:
        SLMError: no rule file with its checksum is left.
    """
    shipped = packaged(name)
    places = [shipped] if folder is None else [folder, shipped]
    rules = next((text for place in places if (text := _whole(place, RULES)) is not None), None)
    if rules is None:
        raise SLMError(f"the rules of {name} are damaged as well; reinstall the package")
    settings = dict(_PLAIN.get(name, {}))
    for place in reversed(places):
        text = _whole(place, SETTINGS)
        if text is not None:
            kept = json.loads(text)
            settings |= {key: kept[key] for key in settings if key in kept and settings[key] != {}}
    return Pack(name, "rules", "", {}, settings, rules)


def _whole(folder: Path, name: str) -> str | None:
    """The text of a pack's file, when it still has its checksum."""
    try:
        index = json.loads((folder / "pack.json").read_text(encoding="utf-8"))
        if sha256_file(folder / name) != index["files"][name]:
            return None
        return (folder / name).read_text(encoding="utf-8")
    except (OSError, ValueError, KeyError, TypeError):
        return None
