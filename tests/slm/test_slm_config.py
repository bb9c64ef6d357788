"""SLMConfig: defaults, files, overrides, and what is wrong with a value."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from mlx_companion.errors import ConfigError
from mlx_companion.runtime.config import load_config, to_dict
from mlx_companion.slm.config import (
    GuardConfig,
    ModuleConfig,
    OrchestrationConfig,
    ResourcesConfig,
    SLMConfig,
)
from mlx_companion.slm.module import MODULES

# Milliseconds of the promise: median of a single message on two cores.
PROMISED = {
    "research_classifier": 50,
    "personality_guard": 20,
    "context_tracker": 60,
    "drift_monitor": 100,
}


def test_every_module_has_settings_and_its_promised_budget() -> None:
    config = SLMConfig()
    assert set(to_dict(config.modules)) == set(MODULES)
    assert {name: config.module(name).budget_ms for name in MODULES} == PROMISED
    for name in MODULES:
        own = config.module(name)
        assert own.enabled
        assert own.frequency == 1
        assert own.timeout * 1000 >= 10 * own.budget_ms
        assert own.timeout < config.orchestration.total_timeout


def test_only_what_can_wait_is_skipped_under_pressure() -> None:
    config = SLMConfig()
    assert config.module("research_classifier").skip_below == 0
    assert config.module("personality_guard").skip_below == 0
    assert config.module("context_tracker").skip_below > 0
    assert config.module("context_tracker").skip_below < config.module("drift_monitor").skip_below


def test_a_module_of_your_own_has_defaults() -> None:
    assert SLMConfig().module("mine") == ModuleConfig()


YAML = """
model: tinyllama
modules:
  personality_guard: {enforcement_level: monitor, timeout: 0.5}
  drift_monitor: {enabled: off, frequency: 5}
  research_classifier: {threshold: 0.8, batch_size: 4}
orchestration: {max_parallel: 2, total_timeout: 1}
resources: {memory_ceiling_mb: 4000, threads: 2, gpu: off, adaptive: no}
"""


@pytest.mark.parametrize("kind", ["yaml", "json"])
def test_files_replace_defaults(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"slm.{kind}"
    path.write_text(YAML)
    config = load_config(SLMConfig, path)
    if kind == "json":
        path.write_text(json.dumps(to_dict(config)))
        assert load_config(SLMConfig, path) == config
    guard = config.modules.personality_guard
    assert (guard.enforcement_level, guard.timeout) == ("monitor", 0.5)
    assert not config.modules.drift_monitor.enabled
    assert config.modules.drift_monitor.frequency == 5
    assert config.modules.research_classifier.threshold == 0.8
    assert config.resources.gpu == "off"
    assert not config.resources.adaptive
    assert config.model == "tinyllama"
    assert config.modules.context_tracker == SLMConfig().modules.context_tracker


def test_overrides_are_texts_with_dots() -> None:
    given = {"modules.drift_monitor.timeout": "2", "resources.memory_ceiling_mb": "1e3"}
    config = load_config(SLMConfig, None, given)
    assert config.modules.drift_monitor.timeout == 2.0
    assert config.resources.memory_ceiling_mb == 1000.0


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("modules.drift_monitr.timeout", 1, "did you mean 'drift_monitor'"),
        ("modules.drift_monitor.time_out", 1, "did you mean 'timeout'"),
        ("modules.research_classifier.enforcement_level", "strict", "unknown key"),
        ("modules.personality_guard.enforcement_level", "strikt", "did you mean 'strict'"),
        ("modules.personality_guard.timeout", 0, "timeout is 0.0; expected more than 0"),
        ("modules.personality_guard.timeout", "soon", "expected a number"),
        ("modules.research_classifier.on_uncertain", "ask", "expected one of 'keep'"),
        ("modules.personality_guard.threshold", 1.5, "threshold is 1.5; expected a share"),
        ("modules.context_tracker.frequency", 0, "frequency is 0; expected 1 or more"),
        ("modules.context_tracker.batch_size", -1, "batch_size is -1"),
        ("modules.context_tracker.batch_size", 1.5, "expected a whole number"),
        ("orchestration.max_parallel", 0, "max_parallel is 0"),
        ("orchestration.total_timeout", float("inf"), "total_timeout is inf"),
        ("orchestration.load_timeout", -1, "load_timeout is -1"),
        ("orchestration.max_reset_seconds", 1, "less than reset_seconds"),
        ("resources.memory_ceiling_mb", 0, "memory_ceiling_mb is 0"),
        ("resources.battery_threshold", 101, "battery_threshold is 101"),
        ("resources.gpu", "yes", "gpu"),
        ("resources.threads", 0, "threads is 0"),
        ("resources.min_free_mb", -1, "min_free_mb is -1"),
        ("model", 5, "expected a text"),
    ],
)
def test_a_wrong_value_is_told(key: str, value: object, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_config(SLMConfig, None, {key: value})


def test_wrong_values_are_told_in_code_too() -> None:
    with pytest.raises(ConfigError, match="strict, moderate, monitor"):
        GuardConfig(enforcement_level="lax")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="failures is 0"):
        OrchestrationConfig(failures=0)
    with pytest.raises(ConfigError, match="batch_size is nan"):
        ModuleConfig(batch_size=float("nan"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="timeout is 1; expected more than 0"):
        ModuleConfig(timeout="1")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expected 'auto'"):
        ResourcesConfig(gpu="maybe")  # type: ignore[arg-type]


def test_the_settings_in_the_documentation_are_the_defaults(repository: Path) -> None:
    text = (repository / "docs" / "slm.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"## Settings.*?```yaml\n(.*?)```", text, re.DOTALL)
    shown, defaults = yaml.safe_load(block), to_dict(SLMConfig())
    assert set(shown) == set(defaults)
    for section in ("orchestration", "resources"):
        assert shown[section] == defaults[section]
    for name, values in shown["modules"].items():
        assert {key: defaults["modules"][name][key] for key in values} == values
    in_any = set().union(*shown["modules"].values()) | {"pack", "budget_ms"}
    assert in_any >= set().union(*defaults["modules"].values())
