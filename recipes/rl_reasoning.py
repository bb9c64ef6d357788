"""Reinforcement learning (GRPO) on questions whose answers can be checked, from reasoning-gym.

    pip install "mlx-companion[reasoning]"
    python recipes/rl_reasoning.py --task chain_sum --out runs/sums
    python recipes/rl_reasoning.py --smoke

The model answers every question several times; what the task's own checker finds right is made
likelier, compared with the other answers to the same question. No answer is ever shown to it. The
questions are made anew from a seed, others of them are kept for the figures before and after.
Stopped at any moment, the same command goes on, with the very completions that it had.

Settings are those of `FinetuneConfig`, and `rollouts.*` of `RolloutConfig`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx_companion as mc
from mlx_companion.models import DEFAULT_MODEL, LanguageModel
from mlx_companion.models.tiny import tiny_model
from mlx_companion.runtime.files import atomic_write_json
from mlx_companion.runtime.monitor import ResourceMonitor
from mlx_companion.runtime.script import script_options, script_settings, script_work
from mlx_companion.text.prompt_records import PromptRow
from mlx_companion.training.adapter_run import digest_of, train_adapter
from mlx_companion.training.grpo import VARIANTS, GrpoLoss
from mlx_companion.training.rollouts import RolloutConfig, RolloutSource, RoundReport
from mlx_companion.training.settings import FinetuneConfig, load_for

ASK = "{question}\n\nAnswer with the result only."
SMOKE = {
    "train.max_steps": 2,
    "lora.rank": 4,
    "rollouts.group_size": 4,
    "rollouts.prompts_per_round": 2,
    "rollouts.max_tokens": 8,
}


@dataclass(frozen=True)
class ReasoningConfig(FinetuneConfig):
    """Settings of a run: those of fine-tuning, and how answers are written."""

    rollouts: RolloutConfig = field(default_factory=lambda: RolloutConfig(max_tokens=64))


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and report."""
    options = _options().parse_args(arguments)
    with script_work(options.out) as stop:
        settings = script_settings(ReasoningConfig, options, SMOKE)
        size = (8, 4) if options.smoke else (options.size, options.held_out)
        task, asked = _task(options.task, size[0], seed=1)
        _, held_out = _task(options.task, size[1], seed=2)

        def reward(_: Any, completion: str, row: Mapping[str, Any]) -> float:
            return float(task.score_answer(completion.strip(), row))

        tiny = options.smoke and options.model is None
        model = tiny_model(options.out / "tiny") if tiny else options.model or DEFAULT_MODEL
        lm = load_for(model, settings.train)
        before = _score(lm, held_out, reward, settings.rollouts, stop)
        digest = digest_of(options.task, size[0], options.variant, settings.rollouts)
        monitor = ResourceMonitor(settings.limits)
        source = RolloutSource(
            lm,
            asked,
            [reward],
            settings.rollouts,
            folder=options.out / "rollouts",
            run_hash=digest + lm.base_sha256,
            on_round=_say,
            monitor=monitor,
            stop=stop,
        )
        result = train_adapter(
            lm,
            source,
            options.out,
            loss=GrpoLoss(options.variant),
            data_sha256=digest,
            lora=settings.lora,
            train=settings.train,
            about={"task": options.task, "questions": size[0]},
            stop=stop,
            monitor=monitor,
        )
        after = _score(lm, held_out, reward, settings.rollouts, stop)
    figures = {"task": options.task, "before": before, "after": after, "steps": result.steps}
    atomic_write_json(options.out / "report.json", figures)
    print(
        f"reward   {before:.3f} -> {after:.3f} on {len(held_out)} other questions\n"
        f"steps    {result.steps} in {result.seconds:.0f} s\n"
        f"adapter  {result.adapter}\n"
        f"report   {options.out / 'report.json'}"
    )


def _task(name: str, size: int, seed: int) -> tuple[Any, list[PromptRow]]:
    """A task, which knows how to check answers, and its questions."""
    try:
        import reasoning_gym
    except ImportError as error:
        raise mc.errors.MissingExtraError("reasoning_gym", "reasoning") from error
    try:
        task = reasoning_gym.create_dataset(name, size=size, seed=seed)
    except ValueError as error:
        raise mc.errors.ConfigError(f"--task {name}: {error}") from error
    # Through JSON, because rows are kept in files with the completions.
    rows = [json.loads(json.dumps(entry, default=str)) for entry in task]
    return task, [PromptRow(ASK.format(question=row["question"]), row) for row in rows]


def _score(
    lm: LanguageModel, rows: Sequence[PromptRow], reward: Any, config: RolloutConfig, stop: Any
) -> float:
    """Mean reward of greedy answers."""
    prompts = [row.prompt for row in rows]
    replies = mc.batch_generate(lm, prompts, max_tokens=config.max_tokens, switch=stop)
    found = [
        reward(row.prompt, reply.text, row.fields) for row, reply in zip(rows, replies, strict=True)
    ]
    return sum(found) / len(found)


def _say(report: RoundReport) -> None:
    print(f"round {report.number}: reward {report.reward:.3f}, {report.length:.0f} tokens")


def _options() -> argparse.ArgumentParser:
    parser = script_options(__doc__, out="runs/reasoning")
    parser.add_argument("--model", help=f"alias, hub id, folder or GGUF file ({DEFAULT_MODEL})")
    parser.add_argument("--task", default="chain_sum", help="of reasoning-gym (chain_sum)")
    parser.add_argument("--variant", default="dr_grpo", choices=list(VARIANTS))
    parser.add_argument("--size", type=int, default=400, help="questions to learn from (400)")
    parser.add_argument("--held-out", type=int, default=100, help="questions to measure on (100)")
    return parser


if __name__ == "__main__":
    main()
