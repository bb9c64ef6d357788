"""A whole round in a few seconds: tiny random models, a lenient profile, a person's feedback.

A random model says nothing good, so the person's rewritten replies are what a round learns
from, and the thresholds of the measured judges are given instead of measured.

    python tests/loop_world.py FOLDER [KEY=VALUE ...]   # one round on the world in FOLDER
    python tests/loop_world.py FOLDER --wait ...        # waits for a line before each step
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_companion.loop.config import LoopConfig
from mlx_companion.runtime.config import load_config, parse_overrides
from mlx_companion.store import Store

if TYPE_CHECKING:
    from mlx_companion.loop import RoundResult

PROFILE = """
name: lenient
system_prompt: Be brief.
prompt_variants: [Say little.]
rules:
  max_words: {limit: 60}
"""

REPLIES = [
    ("How warm should the kettle be for green tea?", "About eighty degrees, well below boiling."),
    ("When do I plant beans?", "Plant them once the nights stay above ten degrees."),
    ("How do I mend a tyre?", "Find the hole in a bowl of water and glue a patch over it."),
    ("Is it far to the station?", "A quarter of an hour on foot, along the river."),
    ("What should I read next?", "Try a book of short stories; you can stop after any of them."),
    ("Why does the roof drip?", "A tile has slipped, so rain runs under the ones below."),
    ("My tea went cold.", "Warm the cup first next time; it keeps the heat for longer."),
    ("Tell me of the garden.", "The roses are over, and the beans have reached the top."),
    ("I cannot find my keys.", "Look where you last put down something heavy."),
    ("What is for lunch?", "There is soup from yesterday, and fresh bread."),
    ("Should I take the early train?", "Yes, it is emptier and leaves you an hour in town."),
    ("Who lives next door?", "A carpenter with two dogs and a quiet radio."),
]


# Enough training for a random model to learn something from a dozen rows.
TAUGHT = {
    "lora.rank": 8,
    "train.lr": 3e-2,
    "train.epochs": 20,
    "train.batch_tokens": 2048,
    "train.save_every": 5,
    "serve.max_tokens": 16,
    "collect.gate_items": 32,
}
# For rounds whose result is not the point.
QUICK = {
    "collect.max_prompts": 4,
    "collect.gate_items": 4,
    "generate.samples_per_prompt": 1,
    "train.epochs": 1,
}
# How ready a model is to end its reply: one never ends, one ends after about ten tokens.
TALKATIVE, BRIEF = -2.0, 1.5


def settings(folder: Path, **changes: Any) -> LoopConfig:
    """A configuration whose round takes seconds; `changes` are dotted overrides."""
    return load_config(
        LoopConfig,
        overrides={
            "model": str(folder / "llama"),
            "profile": str(folder / "profile.yaml"),
            "serve.max_tokens": 12,
            "collect.max_prompts": 24,
            "collect.gate_items": 20,
            "generate.samples_per_prompt": 2,
            "generate.max_rows": 8,
            "judge.encoder": str(folder / "bert"),
            "judge.relevance_threshold": -1.0,
            "judge.likelihood_threshold": -100.0,
            "judge.least_new_words": 1,
            "judge.train_new_words": 1,
            "replay.max_rows": 40,
            "lora.rank": 2,
            "train.epochs": 2,
            "train.batch_tokens": 256,
            "train.save_every": 1,
            "gate.general_chars": 400,
            "gate.perplexity_margin": 10.0,
            "gate.divergence_limit": 100.0,
            "gate.relevance_margin": 2.0,
            "gate.variety_margin": 1.0,
            "gate.scale_steps": 1,
            **changes,
        },
    )


def build(folder: Path, *, ending: float | None = None) -> None:
    """Write the models, the profile and a store with what the person said.

    Args:
        folder: made if need be.
        ending: how ready the model is to end its reply, such as `TALKATIVE`.
    """
    from tiny import tiny_bert, tiny_llama

    tiny_llama(folder / "llama", max_position_embeddings=512)
    if ending is not None:
        _set_ending(folder / "llama", ending)
    tiny_bert(folder / "bert")
    (folder / "profile.yaml").write_text(PROFILE, encoding="utf-8")
    with Store(folder / "companion.db") as store:
        for prompt, reply in REPLIES:
            told = store.interactions.add(prompt, "I do not know.")
            store.feedback.add(told.id, "edit", reply)


def _set_ending(llama: Path, ending: float) -> None:
    """Make one channel the same everywhere, which the end tokens' logits then follow."""
    from safetensors.numpy import load_file, save_file
    from tiny import SPECIALS

    weights = load_file(llama / "model.safetensors")
    weights["model.embed_tokens.weight"][:, 0] = 4.0
    weights["model.norm.weight"][0] = 1.0
    head = weights["lm_head.weight"]
    head[:, 0] = 0.0
    # The special tokens come first in the vocabulary.
    ends = [SPECIALS.index("<|endoftext|>"), SPECIALS.index("<|im_end|>")]
    head[ends] = 0.0
    head[ends, 0] = ending
    save_file(weights, llama / "model.safetensors", metadata={"format": "pt"})


def one_round(folder: Path, poison: Any = None, **changes: Any) -> RoundResult:
    """A round with enough training on the world in `folder`; `changes` as in `settings`."""
    from mlx_companion.loop import improve

    with Store(folder / "companion.db") as store:
        return improve(settings(folder, **{**TAUGHT, **changes}), store=store, poison=poison)[0]


def main(folder: Path, changes: list[str]) -> None:
    """One round on the world in `folder`, telling each step as it begins."""
    import mlx_companion  # noqa: F401 - loads the BLAS before MLX
    from mlx_companion.loop import improve
    from mlx_companion.loop.progress import Silent

    waits = "--wait" in changes

    def tell(step: str) -> None:
        print(f"step {step}", flush=True)
        if waits:
            sys.stdin.readline()

    class Tell(Silent):
        def step_started(self, step: str) -> None:
            tell(step)

        def step_finished(self, step: str, summary: str, *, seconds: float, skipped: bool) -> None:
            if step == "deploy":
                tell("report")

    with Store(folder / "companion.db") as store:
        config = settings(folder, **parse_overrides(c for c in changes if c != "--wait"))
        result = improve(config, store=store, progress=Tell())[0]
    print(f"outcome {result.report['outcome']}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
