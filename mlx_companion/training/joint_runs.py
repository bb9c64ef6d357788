"""What the owners of a run's folder (`finetune` and its like) need where several ranks train.

Rank 0 alone holds the folder's lock, writes, shows and tracks; the others get from it what they
need: whether the run is finished already, its result, and the adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import mlx.nn as nn

from mlx_companion.lora import LoraConfig, detach
from mlx_companion.lora.attach import attach_layers, load_stored, stored_parameters
from mlx_companion.training.callbacks import Callback
from mlx_companion.training.distributed import Ranks

T = TypeVar("T")


@contextmanager
def joint_run(ranks: Ranks, lock: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """Hold a run's folder, on rank 0, while all ranks are in the block.

    Args:
        ranks: those that train together.
        lock: takes the folder.

    Raises:
        TrainingError: the folder is taken, or another rank is gone.
    """
    with ExitStack() as stack:
        stack.enter_context(
            ranks.guarded(lambda: "start all processes again as before, and the run goes on")
        )
        ranks.on_first(lambda: stack.enter_context(lock()), "take the run's folder")
        yield


def watching(ranks: Ranks, make: Callable[[], list[Callback]]) -> list[Callback]:
    """Callbacks that write or show, made on rank 0 only."""
    return ranks.on_first(make, "start what watches the run") or []


def shared_result(ranks: Ranks, kind: type[T], found: T | None) -> T | None:
    """Rank 0's result on every rank.

    Args:
        ranks: those that train together.
        kind: its dataclass; fields of type `Path` may be among them.
        found: what rank 0 has; looked at nowhere else.
    """
    if ranks.alone:
        return found
    told = None if found is None else _told(asdict(found))  # type: ignore[call-overload]
    values = ranks.from_first(told)
    if values is None or ranks.first:
        return found
    paths = {name: Path(value) for name, value in values["paths"].items()}
    return kind(**values["plain"] | paths)


def share_adapter(ranks: Ranks, model: nn.Module, config: LoraConfig) -> None:
    """Give every rank's model the adapter that rank 0's carries."""
    if ranks.alone:
        return
    arrays = ranks.arrays_from_first(stored_parameters(model) if ranks.first else {})
    if ranks.first:
        return
    detach(model)
    attach_layers(model, config, decompose=False)
    load_stored(model, arrays)


def _told(values: Mapping[str, Any]) -> dict[str, Any]:
    paths = {name: str(value) for name, value in values.items() if isinstance(value, Path)}
    return {"paths": paths, "plain": {n: v for n, v in values.items() if n not in paths}}
