"""What every step of a round is given: the store, the settings, and tools made when first used."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from mlx_companion.errors import LoopError
from mlx_companion.loop.config import LoopConfig
from mlx_companion.loop.progress import Progress, Silent
from mlx_companion.loop.served import ServedModel
from mlx_companion.models import SentenceEncoder, load_encoder
from mlx_companion.runtime.monitor import ResourceMonitor
from mlx_companion.runtime.seeds import derive_seed
from mlx_companion.runtime.stop import NEVER, StopSwitch
from mlx_companion.store import Round, Store, Version

__all__ = ["Poison", "RoundContext", "round_folder"]

Poison = Literal["garbage", "repeat"]


@dataclass
class RoundContext:
    """One round in progress.

    Args:
        poison: spoils the training targets; for testing that the gate refuses the result.
    """

    store: Store
    config: LoopConfig
    round: Round
    companion: ServedModel
    progress: Progress = field(default_factory=Silent)
    switch: StopSwitch = NEVER
    poison: Poison | None = None

    @property
    def folder(self) -> Path:
        """Where the round keeps its files."""
        folder = round_folder(self.store, self.round.number)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def base_version(self) -> Version:
        """The version that was active when the round began."""
        if self.round.base_version is None:
            raise LoopError(f"round {self.round.number} does not name the version it began with")
        return self.store.versions.get(self.round.base_version)

    @cached_property
    def encoder(self) -> SentenceEncoder:
        """The sentence encoder, loaded when first used."""
        return load_encoder(self.config.judge.encoder)

    @cached_property
    def monitor(self) -> ResourceMonitor:
        """Keeps the round inside the machine's limits."""
        return ResourceMonitor(self.config.limits, on_pause=self._paused)

    def _paused(self, reason: str | None) -> None:
        self.progress.note(f"Paused: {reason}." if reason else "Going on.")

    def seed(self, *names: str | int) -> int:
        """The seed of one use in this round."""
        return derive_seed(self.config.seed, self.round.number, *names)

    def payload(self, step: str) -> dict[str, Any]:
        """What a finished step left for the later ones.

        Raises:
            LoopError: the step is not finished.
        """
        state = self.store.rounds.step(self.round.id, step)
        if state is None or not state.done:
            raise LoopError(f"step '{step}' of round {self.round.number} is not finished")
        return state.payload


def round_folder(store: Store, number: int) -> Path:
    """Where a round keeps its files."""
    return store.folder / "rounds" / f"{number:04d}"
