"""The checkpoints of a run of one or several ranks: rank 0 reads and writes, all get the same.

The others need no access to rank 0's disk. Arrays are whole in the files, so that any number of
ranks can go on from them. With as many as before the run goes on exactly: every rank's random
state is kept. With another number, ranks behind the first start new ones, derived from the run's
seed and the step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.optimizers import Optimizer

from mlx_companion.runtime.seeds import derive_seed, seed_everything
from mlx_companion.training import snapshot
from mlx_companion.training.checkpoint import Arrays, Checkpoint, CheckpointFolder
from mlx_companion.training.distributed import Ranks
from mlx_companion.training.rng import export_random_states, restore_random_states
from mlx_companion.training.sharding import shards, whole
from mlx_companion.training.state import TrainState


class Saves:
    """What the trainer keeps on the disk. Every rank has to make every call.

    Args:
        folder: None to keep nothing.
        ranks: those that train together.

    Attributes:
        last: step of the newest checkpoint that this process knows of.
    """

    def __init__(self, folder: CheckpointFolder | None, ranks: Ranks) -> None:
        self.folder, self.ranks = folder, ranks
        self.last: int | None = None

    def start(self, model: nn.Module, seed: int) -> None:
        """Let all ranks start alike: one run, rank 0's values, random numbers of their own.

        Raises:
            TrainingError: another rank has another run.
        """
        ranks = self.ranks
        seed_everything(seed if ranks.first else derive_seed(seed, "rank", ranks.rank))
        if ranks.alone:
            return
        ranks.check_same(self.folder.run_hash if self.folder else "", "a run of hash")
        values = ranks.arrays_from_first(snapshot.parameters(model))
        snapshot.set_parameters(model, values)

    def load(self, resume: bool) -> Checkpoint | None:
        """The newest sound checkpoint; without `resume` all are removed.

        Raises:
            CheckpointError: it belongs to another run.
        """
        folder = self.folder
        if folder is None:
            return None
        if not resume:
            self.ranks.on_first(folder.clear, "remove the old checkpoints")
        found = self.ranks.on_first(folder.load_latest, "read the newest checkpoint")
        return found if self.ranks.alone else self._share(found)

    def restore(
        self, found: Checkpoint, model: nn.Module, optimizer: Optimizer, seed: int
    ) -> TrainState:
        """Set what a checkpoint holds, random states included; returns the progress."""
        snapshot.put(found, model, optimizer, self.ranks)
        state = TrainState.from_json(found.state["progress"])
        rank = self.ranks.rank
        known = found.state.get("random_of_ranks", [found.state["random"]])
        if self.ranks.first or len(known) == self.ranks.size:
            restore_random_states(known[rank])
        else:
            seed_everything(derive_seed(seed, "rank", rank, state.step))
        self.last = state.step
        return state

    def save(self, model: nn.Module, optimizer: Optimizer, state: TrainState) -> Path:
        """Write a checkpoint; its folder.

        Raises:
            DiskFullError: no space; the one before is intact.
        """
        folder = self.folder
        assert folder is not None
        arrays = snapshot.take(model, optimizer, self.ranks)
        random = self.ranks.gather_json(export_random_states())
        values: dict[str, Any] = {"progress": state.to_json(), "random": random[0]}
        if not self.ranks.alone:
            values |= {"random_of_ranks": random} | snapshot.shards_of(model, self.ranks)
        self.ranks.on_first(lambda: folder.save(state.step, arrays, values), "write a checkpoint")
        self.last = state.step
        return folder.path_of(state.step)

    def save_best(self, parameters: Arrays, step: int) -> None:
        """Write the parameters of the lowest held-out loss. Raises as `save`."""
        folder = self.folder
        if folder is None:
            return
        arrays = whole(parameters, self.ranks)
        self.ranks.on_first(
            lambda: folder.save_best(arrays, {"step": step}), "write the best weights"
        )

    def load_best(self, model: nn.Module) -> Arrays | None:
        """The parameters of the lowest held-out loss, as this rank holds them."""
        folder, ranks = self.folder, self.ranks
        if folder is None:
            return None
        found = ranks.on_first(folder.load_best, "read the best weights")
        if not ranks.from_first(found is not None):
            return None
        arrays = shards(ranks.arrays_from_first(found or {}), snapshot.parameters(model), ranks)
        mx.eval(arrays)
        return arrays

    def advice(self, step: int) -> str:
        """How to go on after an error that was not the run's own.

        Args:
            step: steps done.
        """
        known = "there is no checkpoint yet, so it starts from the beginning"
        if self.last is not None:
            known = f"it goes on from the checkpoint of step {self.last}, which is sound"
        return f"step {step + 1} was not finished; start all processes again as before: {known}"

    def _share(self, found: Checkpoint | None) -> Checkpoint | None:
        told = found and {"path": str(found.path), "state": found.state, "of": list(found.arrays)}
        known = self.ranks.from_first(told)
        if known is None:
            return None
        arrays = {
            group: self.ranks.arrays_from_first(found.arrays[group] if found else {})
            for group in known["of"]
        }
        return Checkpoint(Path(known["path"]), arrays, known["state"])
