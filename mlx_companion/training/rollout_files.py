"""Rounds of rollouts on disk, one readable file each, and the references they were scored with.

    round-000003.jsonl        a line about the round, then one line per completion
    reference-0001.safetensors adapter weights that became the reference

A file is written whole or not at all. One of another run is refused; a damaged one is made again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_companion.errors import CheckpointError
from mlx_companion.runtime.files import atomic_path, atomic_write_text
from mlx_companion.runtime.logs import get_logger

_log = get_logger(__name__)


@dataclass(frozen=True)
class Rollout:
    """A completion and what is known about it.

    Attributes:
        prompt: number of the prompt.
        text: the completion.
        tokens: ids of prompt and completion, the end token included.
        start: where the completion begins.
        finished: it ended by itself and was not cut off.
        rewards: of each reward function, by name.
        reward: their weighted sum.
        behaviour: log-probability (nats) of each token of the completion when it was written.
        reference: the same under the reference model.
    """

    prompt: int
    text: str
    tokens: list[int]
    start: int
    finished: bool
    rewards: dict[str, float]
    reward: float
    behaviour: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens of the completion."""
        return len(self.tokens) - self.start

    def with_values(
        self, *, behaviour: list[float] | None = None, reference: list[float] | None = None
    ) -> Rollout:
        """The same with those log-probabilities."""
        return replace(
            self,
            behaviour=self.behaviour if behaviour is None else behaviour,
            reference=self.reference if reference is None else reference,
        )


class RolloutFolder:
    """The rounds of one run.

    Args:
        folder: made when the first round is kept.
        identity: names the run.
    """

    def __init__(self, folder: str | Path, identity: str) -> None:
        self.folder, self.identity = Path(folder), identity

    def save(self, number: int, rollouts: Sequence[Rollout]) -> None:
        """Keep a round. Raises DiskFullError when there is no space."""
        head = {"round": number, "run": self.identity, "completions": len(rollouts)}
        lines = [head, *(asdict(row) for row in rollouts)]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        atomic_write_text(self._path(number), text)

    def load(self, number: int) -> list[Rollout] | None:
        """A round, or None when it is not there or damaged.

        Raises:
            CheckpointError: it belongs to another run.
        """
        path = self._path(number)
        try:
            head, *rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
            whole, owner = len(rows) == head["completions"], head["run"]
            rollouts = [Rollout(**row) for row in rows]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("rollouts are damaged, made again", extra={"why": str(error)})
            return None
        if owner != self.identity:
            raise CheckpointError(
                f"{path} holds rollouts of another run (other prompts, rewards or settings); "
                "choose another folder, or remove this one to start over"
            )
        return rollouts if whole else None

    def save_reference(self, turn: int, weights: dict[str, mx.array]) -> None:
        """Keep a reference's adapter. Raises DiskFullError when there is no space."""
        with atomic_path(self._reference(turn)) as temporary:
            mx.save_safetensors(str(temporary), weights, {"run": self.identity})

    def load_reference(self, turn: int) -> dict[str, mx.array] | None:
        """A reference's adapter, or None when it is not there.

        Raises:
            CheckpointError: it belongs to another run.
        """
        path = self._reference(turn)
        if not path.exists():
            return None
        try:
            found: Any = mx.load(str(path), return_metadata=True)
        except RuntimeError as error:
            _log.warning("reference is damaged, made again", extra={"why": str(error)})
            return None
        weights, about = found
        if about.get("run") != self.identity:
            raise CheckpointError(f"{path} belongs to another run; choose another folder")
        return weights

    def _path(self, number: int) -> Path:
        return self.folder / f"round-{number:06d}.jsonl"

    def _reference(self, turn: int) -> Path:
        return self.folder / f"reference-{turn:04d}.safetensors"
