"""A personality profile: how the companion speaks, written in YAML and checkable rule by rule.

A profile holds the system prompt that is served with every chat, variants of it that give
generation more diversity, the rules that a reply must keep, each with its parameters, and what the
personality guard enforces. Archetypes come with the package; copy one to write your own::

    profile = load_profile()              # profiles/default.yaml: calm, plain and short
    profile = load_profile("dry_wit")     # one of packaged_profiles()
    profile = load_profile("mine.yaml")   # a file of yours

Keys, rules and parameters that do not exist are errors that name the nearest known one.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from mlx_companion.errors import ConfigError
from mlx_companion.personality.guard_settings import GuardSettings
from mlx_companion.personality.rules import RULES
from mlx_companion.runtime.config import load_config, nearest

DEFAULT_PROFILE = "default"


@dataclass(frozen=True)
class Profile:
    """How the companion speaks.

    Attributes:
        name: short name, shown in reports.
        description: one sentence for people.
        system_prompt: what the model is told; it is served with every chat, so keep it short.
        prompt_variants: other wordings of it, used only while samples are generated.
        rules: rule name -> its parameters, in the order in which they are reported.
        guard: what the personality guard enforces; see `GuardSettings`.

    Raises:
        ConfigError: an empty name or prompt, an unknown rule or parameter, or a bad value.
    """

    name: str = ""
    description: str = ""
    system_prompt: str = ""
    prompt_variants: tuple[str, ...] = ()
    rules: dict[str, dict[str, Any]] = field(default_factory=dict)
    guard: GuardSettings = field(default_factory=GuardSettings)

    def __post_init__(self) -> None:
        prompts = tuple(_one_line(one) for one in (self.system_prompt, *self.prompt_variants))
        if not self.name.strip():
            raise ConfigError("'name' is missing or empty; write it")
        if not all(prompts):
            at = prompts.index("")
            which = f"'prompt_variants' item {at}" if at else "'system_prompt'"
            raise ConfigError(f"{which} is missing or empty; write it")
        checked = {rule: _checked(rule, given) for rule, given in self.rules.items()}
        if "no_prompt_echo" in checked:
            checked["no_prompt_echo"]["prompts"] = prompts
        # A frozen class sets its own normalised values this way and no other.
        object.__setattr__(self, "system_prompt", prompts[0])
        object.__setattr__(self, "prompt_variants", prompts[1:])
        object.__setattr__(self, "rules", checked)


def load_profile(
    source: str | Path = DEFAULT_PROFILE, overrides: Mapping[str, Any] | None = None
) -> Profile:
    """Load a profile.

    Args:
        source: the name of a packaged profile, or the path of a YAML file.
        overrides: values by dotted key, such as `{"rules.max_words.limit": 30}`.

    Raises:
        ConfigError: no such profile, not a YAML mapping, an unknown key, rule or parameter, or a
            value of the wrong type.
    """
    if str(source) in packaged_profiles():
        with resources.as_file(_folder() / f"{source}.yaml") as path:
            return load_config(Profile, path, overrides)
    if not Path(source).is_file():
        raise ConfigError(
            f"no profile '{source}'; expected the path of a YAML file or the name of a packaged "
            f"profile ({', '.join(packaged_profiles())})"
        )
    return load_config(Profile, source, overrides)


def packaged_profiles() -> list[str]:
    """Return the names of the profiles that come with the package."""
    names = (entry.name for entry in _folder().iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def _folder() -> Traversable:
    return resources.files("mlx_companion.personality") / "profiles"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _checked(rule: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of one rule, having compared them with the rule's own signature."""
    if rule not in RULES:
        raise ConfigError(f"unknown rule '{rule}'{nearest(rule, RULES)}")
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(RULES[rule]).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    for name, value in given.items():
        if name not in defaults:
            known = nearest(str(name), defaults) or "; it takes none"
            raise ConfigError(f"unknown parameter 'rules.{rule}.{name}'{known}")
        whole = isinstance(value, int) and not isinstance(value, bool) and value > 0
        if isinstance(defaults[name], int) and not whole:
            raise ConfigError(
                f"'rules.{rule}.{name}' is {value!r}; expected a whole number above 0"
            )
    return dict(given)
