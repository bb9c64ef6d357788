"""Rollouts: completions that the model being trained writes, scored by reward functions.

    def short(prompt, completion, row):
        return -len(completion) / 100

    source = RolloutSource(lm, read_prompts("questions.jsonl"), [short], folder="run/rollouts")
    Trainer(lm.model, source, loss=GrpoLoss("dapo"), checkpoints="run/checkpoints").run()

The source works in rounds: a few prompts, several completions of each in one batched generation,
rewards, advantages within each prompt's group, and the log-probabilities of the policy that wrote
them. Each round is cut into the same number of micro-batches, over which the trainer goes once or
several times before the next round is written with the weights of that moment.

A folder keeps every round as a file that people can read, and lets an interrupted run go on with
the very completions that it had.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_companion.errors import ConfigError, TrainingError
from mlx_companion.lora import adapter_parameters, load_parameters
from mlx_companion.models.fast_cpu import fast_cpu
from mlx_companion.models.generation import Reply, batch_generate
from mlx_companion.models.load import LanguageModel
from mlx_companion.models.prompts import render
from mlx_companion.models.sampling import Sampling
from mlx_companion.runtime.monitor import ResourceMonitor
from mlx_companion.runtime.seeds import derive_seed
from mlx_companion.runtime.stop import NEVER, StopSwitch
from mlx_companion.text.batches import collate
from mlx_companion.text.encode import Encoded
from mlx_companion.text.prompt_records import PromptRow
from mlx_companion.training.grpo import RolloutBatch, Scaling, advantages
from mlx_companion.training.logprobs import (
    check_reference,
    shares_prefix,
    target_rows,
    token_logprobs,
    without_adapters,
)
from mlx_companion.training.rng import get_random_state, set_random_state
from mlx_companion.training.rollout_files import Rollout, RolloutFolder

Reward = Callable[[Any, str, Mapping[str, Any]], float]


@dataclass(frozen=True)
class RolloutConfig:
    """How rounds are made.

    Args:
        group_size: completions of each prompt.
        prompts_per_round: prompts of a round.
        groups_per_batch: prompts whose completions make a micro-batch.
        passes: how often a round is trained on.
        max_tokens: longest completion.
        temperature: of sampling. Nothing else (top-k, nucleus) is used: the policy that is
            trained must be the one that wrote.
        scaling: of advantages; see `grpo.advantages`.
        mask_truncated: completions that were cut off do not train (their group still counts them).
        reference: compute the reference's log-probabilities (for `kl_weight`).
        reference_every: rounds after which the reference becomes the policy of that moment; None
            for the base model all the time.
        max_rows: most completions that are written together.
        seed: decides order and completions.

    Raises:
        ConfigError: a value out of range.
    """

    group_size: int = 8
    prompts_per_round: int = 8
    groups_per_batch: int = 1
    passes: int = 1
    max_tokens: int = 256
    temperature: float = 1.0
    scaling: Scaling = "group"
    mask_truncated: bool = False
    reference: bool = False
    reference_every: int | None = None
    max_rows: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("prompts_per_round", "groups_per_batch", "passes", "max_tokens", "max_rows"):
            self._check(name, getattr(self, name) >= 1, "1 or more")
        self._check("group_size", self.group_size >= 2, "2 or more: one has nothing to beat")
        self._check("temperature", self.temperature > 0, "over 0")
        every = self.reference_every
        self._check("reference_every", every is None or every >= 1, "1 or more, or None")
        known = ("group", "batch", "none")
        self._check("scaling", self.scaling in known, f"one of {', '.join(known)}")

    def _check(self, name: str, fits: bool, expected: str) -> None:
        if not fits:
            raise ConfigError(f"{name} is {getattr(self, name)!r}; expected {expected}")


@dataclass(frozen=True)
class RoundReport:
    """What a round gave.

    Attributes:
        number: from 0.
        reward, reward_std: mean over all completions, and standard deviation.
        length: mean length of a completion (tokens).
        truncated: share of completions that were cut off, 0-1.
        flat: share of groups whose rewards are all equal, which teach nothing, 0-1.
        seconds: time to write and score them; 0 when they came from the folder.
    """

    number: int
    reward: float
    reward_std: float
    length: float
    truncated: float
    flat: float
    seconds: float


class RolloutSource:
    """A row source whose rows the model writes itself.

    Args:
        lm: the model that is trained, and its tokenizer.
        prompts: what to answer.
        rewards: functions of (prompt, completion, the prompt's row) to a number; they are added.
        config: see `RolloutConfig`.
        weights: of the reward functions; 1 each by default.
        folder: keeps the rounds; needed for a resumed run to be the same run.
        run_hash: names the run (model, data, settings) that the folder belongs to.
        on_round: called with each round's report; they are also in `reports`.
        monitor, stop: consulted while generating.

    Raises:
        ConfigError: no prompts, no reward function, or weights of another number.
        TrainingError: a reference is asked for, and switching adapters off does not give it.
    """

    def __init__(
        self,
        lm: LanguageModel,
        prompts: Sequence[PromptRow | str],
        rewards: Sequence[Reward],
        config: RolloutConfig | None = None,
        *,
        weights: Sequence[float] | None = None,
        folder: str | Path | None = None,
        run_hash: str = "",
        on_round: Callable[[RoundReport], None] | None = None,
        monitor: ResourceMonitor | None = None,
        stop: StopSwitch = NEVER,
    ) -> None:
        self.lm, self.config = lm, config or RolloutConfig()
        self.prompts = [p if isinstance(p, PromptRow) else PromptRow(p) for p in prompts]
        self.rewards = tuple(rewards)
        self.weights = tuple(weights) if weights is not None else (1.0,) * len(self.rewards)
        if not self.prompts or not self.rewards or len(self.weights) != len(self.rewards):
            raise ConfigError(
                f"{len(self.prompts)} prompts, {len(self.rewards)} reward functions and "
                f"{len(self.weights)} weights were given; expected 1 or more of each, and a weight "
                "for each function"
            )
        if self.config.reference:
            check_reference(lm.model)
        self.reports: list[RoundReport] = []
        self.on_round, self.monitor, self.stop = on_round, monitor, stop
        self._tokens = [render(lm, prompt.prompt) for prompt in self.prompts]
        self._share = shares_prefix(lm.model)
        self._folder = None if folder is None else RolloutFolder(folder, self._identity(run_hash))
        self._current: tuple[int, list[Rollout], np.ndarray] | None = None
        self._lengths: dict[int, list[int]] = {}
        self._anchor: tuple[int, dict[str, mx.array]] | None = None

    @property
    def rows(self) -> int:
        """Completions of an epoch."""
        return len(self.prompts) * self.config.group_size * self.config.passes

    @property
    def target_count(self) -> int:
        """Most tokens that the completions of an epoch may have."""
        return self.rows * self.config.max_tokens

    @property
    def rounds(self) -> int:
        """Rounds of an epoch."""
        return math.ceil(len(self.prompts) / self.config.prompts_per_round)

    def epoch(self, number: int) -> list[tuple[int, ...]]:
        """The micro-batches of an epoch. A row's number holds its round, so all are different."""
        plan: list[tuple[int, ...]] = []
        for at in range(number * self.rounds, (number + 1) * self.rounds):
            groups = len(self._prompts_of(at))
            for turn in range(self.config.passes):
                plan += self._batches_of(at, turn, groups)
        return plan

    def batch(self, indices: tuple[int, ...]) -> RolloutBatch:
        """The micro-batch of those rows; its round is written now, if it is not there yet."""
        number = indices[0] // self._width
        rollouts, gains = self._round(number)
        places = [index % self._width for index in indices]
        rows = [rollouts[place] for place in places]
        unfinished = [self.config.mask_truncated and not row.finished for row in rows]
        return RolloutBatch(
            collate([_encoded(row) for row in rollouts], places),
            gains.reshape(-1)[places],
            tuple(np.array(row.behaviour, dtype=np.float32) for row in rows),
            tuple(np.array(row.reference, dtype=np.float32) for row in rows)
            if self.config.reference
            else None,
            1 - np.array(unfinished, dtype=np.float32),
            self.config.temperature,
            self.config.max_tokens + 1,
            tuple(places),
        )

    def tokens(self, indices: Sequence[int]) -> int:
        """Tokens of those rows, padding excluded; 0 before their round is written."""
        return sum(self._lengths_of(indices))

    def slots(self, indices: Sequence[int]) -> int:
        """The same, padding included."""
        lengths = self._lengths_of(indices)
        return len(lengths) * max(lengths, default=0)

    @property
    def _width(self) -> int:
        return self.config.prompts_per_round * self.config.group_size

    def _lengths_of(self, indices: Sequence[int]) -> list[int]:
        known = self._lengths.get(indices[0] // self._width)
        return [] if known is None else [known[index % self._width] for index in indices]

    def _prompts_of(self, number: int) -> list[int]:
        """The prompts of a round: each is in one round of an epoch."""
        epoch, at = divmod(number, self.rounds)
        rng = np.random.default_rng(derive_seed(self.config.seed, "prompts", epoch))
        each = self.config.prompts_per_round
        return rng.permutation(len(self.prompts))[at * each : (at + 1) * each].tolist()

    def _batches_of(self, number: int, turn: int, groups: int) -> list[tuple[int, ...]]:
        rng = np.random.default_rng(derive_seed(self.config.seed, "turns", number, turn))
        order = rng.permutation(groups).tolist()
        size, each = self.config.group_size, self.config.groups_per_batch
        first = number * self._width
        return [
            tuple(first + group * size + i for group in order[at : at + each] for i in range(size))
            for at in range(0, groups, each)
        ]

    def _round(self, number: int) -> tuple[list[Rollout], np.ndarray]:
        if self._current is not None and self._current[0] == number:
            return self._current[1], self._current[2]
        start = time.perf_counter()
        kept = self._folder.load(number) if self._folder else None
        rollouts = self._write(number) if kept is None else kept
        if kept is None and self._folder is not None:
            self._folder.save(number, rollouts)
        rewards = np.array([row.reward for row in rollouts]).reshape(-1, self.config.group_size)
        gains = advantages(rewards, self.config.scaling)
        self._current = number, rollouts, gains
        self._lengths[number] = [len(row.tokens) for row in rollouts]
        seconds = time.perf_counter() - start if kept is None else 0.0
        self._tell(_report(number, rollouts, rewards, seconds))
        return rollouts, gains

    def _tell(self, report: RoundReport) -> None:
        self.reports.append(report)
        if self.on_round is not None:
            self.on_round(report)

    def _write(self, number: int) -> list[Rollout]:
        """Generate, reward and score a round. The trainer's random numbers stay as they were."""
        model, asked = self.lm.model, self._prompts_of(number)
        was_training, random = model.training, get_random_state()
        model.eval()
        try:
            replies = batch_generate(
                self.lm,
                [self._tokens[at] for at in asked for _ in range(self.config.group_size)],
                max_tokens=self.config.max_tokens,
                sampling=Sampling(temperature=self.config.temperature),
                seed=derive_seed(self.config.seed, "rollouts", number),
                max_rows=self.config.max_rows,
                monitor=self.monitor,
                switch=self.stop,
            )
            owners = [at for at in asked for _ in range(self.config.group_size)]
            rows = [self._rewarded(at, reply) for at, reply in zip(owners, replies, strict=True)]
            rows = self._scored(rows, "behaviour")
            if self.config.reference:
                with self._as_reference(number):
                    rows = self._scored(rows, "reference")
            return rows
        finally:
            set_random_state(random)
            model.train(was_training)

    def _rewarded(self, at: int, reply: Reply) -> Rollout:
        finished = reply.finish_reason == "stop"
        # Writing the end is part of the answer, and a reply leaves the token out.
        end = [self.lm.tokenizer.eos_token_id] if finished or not reply.tokens else []
        prompt = self.prompts[at]
        each: dict[str, float] = {}
        for function in self.rewards:
            value = function(prompt.prompt, reply.text, prompt.fields)
            each[_name(function, each)] = _checked(value, function, prompt)
        total = sum(w * value for w, value in zip(self.weights, each.values(), strict=True))
        return Rollout(
            prompt=at,
            text=reply.text,
            tokens=[*self._tokens[at], *reply.tokens, *end],
            start=len(self._tokens[at]),
            finished=finished,
            rewards=each,
            reward=total,
        )

    def _scored(self, rows: list[Rollout], name: str) -> list[Rollout]:
        """Log-probabilities under the model as it is now, in the groups that are trained on."""
        found: list[Rollout] = []
        size = self.config.group_size * self.config.groups_per_batch
        with fast_cpu(self.lm.model):
            for at in range(0, len(rows), size):
                part = rows[at : at + size]
                batch = collate([_encoded(row) for row in part], range(len(part)))
                given = target_rows(batch, self._share)
                each = token_logprobs(
                    self.lm.model,
                    given.targets,
                    temperature=self.config.temperature,
                    gradient=False,
                )
                values = np.array(each).tolist()
                for row in part:
                    own, values = values[: row.length], values[row.length :]
                    known = {name: own}
                    found.append(row.with_values(**known))
        return found

    def _as_reference(self, number: int) -> Any:
        """The model as the reference of that round is, inside of the block."""
        every = self.config.reference_every
        if every is None or number < every:
            return without_adapters(self.lm.model)
        turn = number // every
        if self._anchor is None or self._anchor[0] != turn:
            kept = self._folder.load_reference(turn) if self._folder else None
            now = adapter_parameters(self.lm.model)
            self._anchor = turn, now if kept is None else kept
            if kept is None and self._folder is not None:
                self._folder.save_reference(turn, now)
        return _Swapped(self.lm.model, self._anchor[1])

    def _identity(self, run_hash: str) -> str:
        names = [getattr(function, "__name__", "reward") for function in self.rewards]
        # How many are written at a time changes speed only.
        settings = {k: v for k, v in asdict(self.config).items() if k != "max_rows"}
        parts = [run_hash, self._tokens, names, list(self.weights), settings]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class _Swapped:
    """A model with other adapter weights inside of a block."""

    def __init__(self, model: Any, weights: Mapping[str, mx.array]) -> None:
        self.model, self.weights = model, weights

    def __enter__(self) -> None:
        self.own = adapter_parameters(self.model)
        load_parameters(self.model, self.weights)

    def __exit__(self, *_: object) -> None:
        load_parameters(self.model, self.own)


def _encoded(row: Rollout) -> Encoded:
    return Encoded(row.tokens, [False] * row.start + [True] * row.length)


def _name(function: Reward, taken: Mapping[str, float]) -> str:
    name = getattr(function, "__name__", "reward")
    return name if name not in taken else f"{name}_{len(taken)}"


def _checked(value: Any, function: Reward, prompt: PromptRow) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        name = getattr(function, "__name__", "reward")
        raise TrainingError(
            f"the reward function '{name}' gave {value!r} for the prompt {prompt.prompt!r:.80}"
            f"{f' of {prompt.source}' if prompt.source else ''}; it must give a finite number"
        )
    return number


def _report(
    number: int, rollouts: Sequence[Rollout], rewards: np.ndarray, seconds: float
) -> RoundReport:
    return RoundReport(
        number=number,
        reward=float(rewards.mean()),
        reward_std=float(rewards.std()),
        length=float(np.mean([row.length for row in rollouts])),
        truncated=float(np.mean([not row.finished for row in rollouts])),
        flat=float((np.ptp(rewards, axis=1) == 0).mean()),
        seconds=seconds,
    )
