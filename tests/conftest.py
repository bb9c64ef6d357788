"""What every test gets: its own data and cache folders, and an environment without our variables.

Warnings are errors (pyproject.toml). Helpers that build tiny models are in `tiny.py`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Before anything imports mlx.core: the package loads the BLAS.
import mlx_companion
from mlx_companion.runtime.paths import CACHE_VARIABLE, HOME_VARIABLE, cache_dir

_PREFIX = "MLX_COMPANION_"
_KEPT = {"MLX_COMPANION_BLAS"}
_PERSON_CACHE = os.environ.get(CACHE_VARIABLE)

# A worker that forks with tokenizer threads running would warn, and warnings are errors.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A machine that stalls fails no example. The examples are the same each time, so that no failure is
# a matter of luck; HYPOTHESIS_PROFILE=searching looks for new ones.
_PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", _PATIENT, derandomize=True)
settings.register_profile("searching", _PATIENT)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.fixture(autouse=True)
def clean_environment(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keep each test out of the real home and cache folders, and free of the person's settings."""
    for name in [n for n in os.environ if n.startswith(_PREFIX) and n not in _KEPT]:
        monkeypatch.delenv(name)
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path_factory.mktemp("home")))
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def real_cache(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use the person's own cache (for tests marked `real_model`): a model is downloaded once."""
    if _PERSON_CACHE is None:
        monkeypatch.delenv(CACHE_VARIABLE)
    else:
        monkeypatch.setenv(CACHE_VARIABLE, _PERSON_CACHE)
    return cache_dir()


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(mlx_companion.__file__).parent.parent
