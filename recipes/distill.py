"""Distillation: a small model learns from a larger one, by its texts or by its logits.

    ollama serve & ollama pull llama3.1:8b
    python recipes/distill.py --prompts prompts.jsonl --set teacher.model=llama3.1:8b --out runs/d
    python recipes/distill.py --by logits --data chats.jsonl --teacher qwen2.5-3b \\
        --model qwen2.5-0.5b --out runs/logits
    python recipes/distill.py --smoke

By texts, the teacher is any server with an OpenAI-compatible interface: Ollama on this machine
unless `teacher.url` says otherwise, and nothing goes anywhere else. It answers the prompts (rows of
{"prompt"} or {"messages"}), several at once; every reply is kept in `replies.jsonl` as it comes, so
that a run that was stopped or killed asks only for the rest. The student is fine-tuned on them.

By logits, the teacher is another model that MLX runs, with the student's tokenizer: it reads the
data once, and the student learns its distribution over the next token.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import mlx_companion as mc
from mlx_companion.models import DEFAULT_MODEL, LanguageModel, load
from mlx_companion.models.tiny import tiny_model
from mlx_companion.runtime.files import atomic_write_json
from mlx_companion.runtime.monitor import ResourceMonitor
from mlx_companion.runtime.script import needed, script_options, script_settings, script_work
from mlx_companion.text.prompt_records import read_prompts
from mlx_companion.training import TrainResult
from mlx_companion.training.distill_run import distill_logits
from mlx_companion.training.settings import FinetuneConfig, load_for
from mlx_companion.training.teacher_api import TeacherConfig, ask_teacher
from mlx_companion.training.teacher_stub import teacher_stub

SMOKE_DATA = Path(__file__).parent.parent / "examples" / "data" / "keeper.jsonl"
SMOKE = {"train.max_steps": 3, "train.batch_tokens": 512, "lora.rank": 4}
REPLIES = "replies.jsonl"


@dataclass(frozen=True)
class DistillConfig(FinetuneConfig):
    """Settings of a run: those of fine-tuning, and the teacher's."""

    teacher: TeacherConfig = field(default_factory=TeacherConfig)


def main(arguments: Sequence[str] | None = None) -> None:
    """Ask, train and report."""
    options = _options().parse_args(arguments)
    with script_work(options.out) as stop:
        settings = script_settings(DistillConfig, options, SMOKE)
        tiny = options.smoke and options.model is None
        model = tiny_model(options.out / "tiny") if tiny else options.model or DEFAULT_MODEL
        student = load_for(model, settings.train)
        by = _by_logits if options.by == "logits" else _by_texts
        result = by(options, settings, student, stop)
    figures = {
        "by": options.by,
        "valid_before": result.valid_before,
        "valid_best": result.valid_best,
        "steps": result.steps,
        "seconds": result.seconds,
    }
    atomic_write_json(options.out / "report.json", figures)
    unit = "divergence" if options.by == "logits" else "held-out loss"
    print(
        f"{unit:14} {result.valid_before:.4f} -> {result.valid_best:.4f} nats per token\n"
        f"steps          {result.steps} in {result.seconds:.0f} s, {result.peak_mb:.0f} MB\n"
        f"adapter        {result.adapter}\n"
        f"report         {options.out / 'report.json'}"
    )


def _by_texts(
    options: argparse.Namespace,
    settings: DistillConfig,
    student: LanguageModel,
    stop: mc.StopSwitch,
) -> TrainResult:
    prompts = read_prompts(needed(options, "prompts", SMOKE_DATA))
    with _teacher(options, settings.teacher) as teacher:
        found = ask_teacher(
            [row.prompt for row in prompts],
            teacher,
            options.out / REPLIES,
            stop=stop,
            on_reply=lambda known, total: _say(known, total),
        )
    samples = found.samples()
    cut = sum(reply is not None and reply.cut for reply in found.replies)
    print(
        f"{len(samples)} replies to {len(prompts)} prompts, {found.asked} of them asked for now; "
        f"{len(found.failed)} without a reply, {cut} cut off and left out"
    )
    for number, why in found.failed[:3]:
        print(f"  {prompts[number].source or number}: {why}")
    return mc.finetune(
        student,
        samples,
        options.out,
        lora=settings.lora,
        train=settings.train,
        valid=options.share,
        stop=stop,
        monitor=ResourceMonitor(settings.limits),
    )


def _by_logits(
    options: argparse.Namespace,
    settings: DistillConfig,
    student: LanguageModel,
    stop: mc.StopSwitch,
) -> TrainResult:
    if options.teacher is None and not options.smoke:
        raise mc.errors.ConfigError("--by logits needs --teacher, a model that MLX runs")
    return distill_logits(
        student,
        lambda: load(options.teacher or tiny_model(options.out / "tiny-teacher", seed=1)),
        needed(options, "data", SMOKE_DATA),
        options.out,
        valid=options.share,
        kind=options.kind,
        temperature=options.temperature,
        lora=settings.lora,
        train=settings.train,
        stop=stop,
        monitor=ResourceMonitor(settings.limits),
    )


@contextlib.contextmanager
def _teacher(options: argparse.Namespace, config: TeacherConfig) -> Iterator[TeacherConfig]:
    """The teacher that was asked for; with --smoke and no other, one that knows one sentence."""
    if not options.smoke or config != TeacherConfig():
        yield config
        return
    with teacher_stub(lambda messages, _: f"Aye. {messages[-1]['content']} Who knows?") as stub:
        yield replace(config, model="stub", url=stub.url)


def _say(known: int, total: int) -> None:
    if known % 20 == 0 or known == total:
        print(f"{known} of {total} replies")


def _options() -> argparse.ArgumentParser:
    parser = script_options(__doc__, out="runs/distill")
    parser.add_argument("--by", choices=["texts", "logits"], default="texts")
    parser.add_argument("--model", help=f"the student ({DEFAULT_MODEL})")
    parser.add_argument("--prompts", type=Path, help="by texts: what to ask the teacher")
    parser.add_argument("--data", type=Path, help="by logits: chats that both models read")
    parser.add_argument("--teacher", help="by logits: alias, hub id, folder or GGUF file")
    parser.add_argument("--kind", choices=["forward", "reverse", "jsd"], default="forward")
    parser.add_argument("--temperature", type=float, default=1.0, help="by logits (1.0)")
    parser.add_argument("--share", type=float, default=0.1, help="what is held out (0.1)")
    return parser


if __name__ == "__main__":
    main()
