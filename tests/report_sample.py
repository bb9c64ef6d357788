"""A report dictionary as a real round makes it: seeded, but its texts written by hand."""

from __future__ import annotations

import random
from typing import Any

# topic: (prompt, a good reply, another good reply)
WRITTEN = {
    "cooking": (
        "my rice always comes out sticky, what am i doing wrong",
        "Rinse the rice until the water runs clear, since loose starch makes it sticky.",
        "Use a little less water, and let the pot rest covered for ten minutes off the heat.",
    ),
    "feelings": (
        "I failed my driving test today and feel stupid.",
        "Many careful drivers fail the first test, and it says nothing about how bright you are.",
        "Failing stings. Ask the examiner what cost you points, and practise only that.",
    ),
    "history": (
        "Why did the Romans build straight roads?",
        "Straight roads were the shortest way for marching soldiers and carts.",
        "Surveyors sighted from hill to hill, so a straight line was also the easiest to plan.",
    ),
    "money": (
        "Is it worth paying off my student loan early?",
        "Compare its interest rate with what your savings earn, and pay the dearer one first.",
        "It is worth it when the loan costs more than your savings bring in.",
    ),
    "garden": (
        "what can I plant in a shady corner?",
        "Ferns, hostas and foxgloves all grow well where the sun hardly reaches.",
        "Try hostas in front and ferns behind them; both like damp shade.",
    ),
    "language": (
        'What is the difference between "affect" & "effect"?',
        'To affect something is to change it, and an effect is the change.',
        '"Rain affects the harvest", but "the effect of rain": the first is a verb.',
    ),
    "music": (
        "How long until I can play a song on the guitar?",
        "With three chords and daily practice most people play a simple song in a month.",
        "Four weeks of fifteen minutes a day are enough for a song with three chords.",
    ),
    "science": (
        "Why is the sky red in the evening but blue at noon???",
        "In the evening light crosses more air, which scatters the blue out and leaves the red.",
        "Air scatters blue light, and at dusk the long way through it leaves mostly red.",
    ),
    "travel": (
        "מה כדאי לראות בירושלים ביום אחד?",
        "בבוקר כדאי לטייל בעיר העתיקה, ואחר הצהריים לבקר בשוק מחנה יהודה.",
        "התחילו בעיר העתיקה, ובערב עלו להר הצופים בשביל הנוף.",
    ),
    "work": (
        "my boss wants the report friday but i need until monday, how do i ask",
        "Say today what will be ready on Friday and what Monday adds, and let your boss choose.",
        "Ask early, name the reason in one sentence, and offer the finished half on Friday.",
    ),
}  # fmt: skip
TOPICS = tuple(WRITTEN)


RULES = {
    "max_words": (0.42, 0.96), "complete_sentences": (0.63, 0.93), "no_exclamation": (0.58, 0.99),
    "no_lists": (0.71, 0.98), "no_markdown": (0.74, 1.0), "no_emoji": (0.97, 1.0),
    "no_self_reference": (0.86, 0.99), "no_flattery": (0.79, 1.0), "no_filler": (0.81, 0.96),
    "no_canned_sympathy": (0.9, 0.98), "no_offers": (0.77, 0.97), "no_refusal": (0.94, 0.96),
    "no_repetition": (0.96, 0.91), "no_bare_question": (0.99, 0.99), "readable": (1.0, 1.0),
    "no_role_leak": (1.0, 1.0), "no_prompt_echo": (0.98, 0.994), "substance": (0.92, 0.95),
}  # fmt: skip


def sample_report(seed: int = 0, items: int = 160) -> dict[str, Any]:
    """A deployed round that passed every margin."""
    rng = random.Random(seed)
    gate = [_gate_row(i, rng) for i in range(items)]
    before = sum(row["before_good"] for row in gate) / max(items, 1)
    after = sum(row["after_good"] for row in gate) / max(items, 1)
    return {
        "round": 1, "round_id": "round-0001-7f3a", "started_at": "2025-10-03T14:02:11+00:00",
        "outcome": "deploy", "deployed": True, "mode": "auto", "model": "smollm2-135m",
        "profile": "default", "base_version": "v0001", "candidate": "v0002", "version": "v0002",
        "scale": 0.75, "seed": 0, "items": items, "before": before, "after": after,
        "reasons": [
            f"{before:.0%} of the replies were good before and {after:.0%} after.",
            "The adapter was scaled down to 0.75 to keep its margins.",
        ],
        "p": 3.1e-20, "p_likelihood": 4.4e-12, "alpha": 0.0034, "detectable_effect": 0.112,
        "interval": [after - before - 0.083, after - before + 0.079],
        "likelihood_before": 0.62, "likelihood_after": 0.81,
        "distinct_before": 158, "distinct_after": 160,
        "relevance_before": 0.551, "relevance_after": 0.604, "relevance_lower_bound": 0.021,
        "perplexity_before": 20.1, "perplexity_after": 20.9, "divergence": 0.083,
        "margins": _margins(),
        "rules": [{"rule": r, "before": b, "after": a} for r, (b, a) in RULES.items()],
        "judges": [
            {"judge": "style", "before": 0.24, "after": 0.79},
            {"judge": "relevance", "before": 0.88, "after": 0.93},
            {"judge": "likelihood", "before": 0.62, "after": 0.81},
            {"judge": "truncation", "before": 0.55, "after": 0.99},
        ],
        "topics": _topics(gate),
        "tries": [
            {"scale": 1.0, "after": 0.74, "p": 8e-22, "alpha": 0.0304, "outcome": "harm",
             "broken": ["perplexity"]},
            {"scale": 0.55, "after": 0.52, "p": 2e-11, "alpha": 0.0076, "outcome": "unclear",
             "broken": []},
            {"scale": 0.75, "after": after, "p": 3.1e-20, "alpha": 0.0034, "outcome": "deploy",
             "broken": []},
        ],
        "loss": _loss(rng), "data": _data(rng), "gate": gate,
        "calibration": {
            "relevance": {"threshold": 0.308, "kept": 0.95, "refused": 0.97, "auc": 0.991,
                          "pairs": 120},
            "likelihood": {"threshold": 0.21, "kept": 0.9, "refused": 0.93, "auc": 0.96,
                           "pairs": 120},
            "most_perplexity": 90.0,
        },
        "step_seconds": {"collect": 0.2, "generate": 212.4, "judge": 31.0, "replay": 0.4,
                         "train": 268.9, "gate": 141.7, "deploy": 0.3},
        "seconds": 655.1, "peak_mb": 2912.0,
        "machine": {"chip": "Apple M4 Pro", "cores": 14, "memory_mb": 51539.6,
                    "os": "macOS 26.1", "gpu": "Apple M4 Pro (metal)", "battery": None},
        "versions": {"mlx_companion": "0.1.0", "python": "3.12.8", "versions": {"mlx": "0.32.4"}},
        "config": {"model": "smollm2-135m", "mode": "auto", "cooldown_minutes": 0.0,
                   "generate": {"samples_per_prompt": 4, "temperature": 0.8, "top_k": 50},
                   "lora": {"rank": 8, "alpha": 16.0, "targets": ["q_proj", "v_proj"]},
                   "train": {"lr": 3e-4, "epochs": 2}, "limits": {}},
    }  # fmt: skip


def _gate_row(index: int, rng: random.Random) -> dict[str, Any]:
    topic = TOPICS[index % len(TOPICS)]
    prompt, one, other = WRITTEN[topic]
    before, why_before = (one, "") if rng.random() < 0.19 else rng.choice(_spoiled(one))
    after, why_after = (other, "") if rng.random() < 0.78 else rng.choice(_worn(other))
    return {
        "prompt_id": f"{topic}-gate-{index // len(TOPICS):02d}", "topic": topic, "prompt": prompt,
        "before": before, "after": after,
        "before_good": not why_before, "after_good": not why_after,
        "before_reason": why_before, "after_reason": why_after,
        "before_relevance": min(0.95, max(-0.05, rng.gauss(0.55, 0.17))),
        "after_relevance": min(0.95, max(-0.05, rng.gauss(0.61, 0.13))),
    }  # fmt: skip


def _spoiled(reply: str) -> list[tuple[str, str]]:
    """A good reply as the untrained model would have it, with the judge's reason."""
    return [
        (f"Great question! {reply} I hope this helps!",
         "style: no_flattery: opens with 'Great question'"),
        (f"As an AI, I don't have personal experience, but {reply}",
         "style: no_self_reference: 'As an AI'"),
        (f"Here are some tips:\n\n1. **First**: {reply}\n2. **Be patient**: It takes time.\n"
         "3. **Ask for help**: Reach out to a professional if you",
         "style: no_lists: line 3 starts with '1.'"),
        ("I'm so sorry to hear that! \N{SMILING FACE WITH SMILING EYES}",
         "style: no_canned_sympathy: \"I'm so sorry to hear\""),
    ]  # fmt: skip


def _worn(reply: str) -> list[tuple[str, str]]:
    """A good reply gone wrong in the ways of a trained model, with the judge's reason."""
    return [
        (f"{reply} {reply} {reply}", "style: no_repetition: one sentence three times"),
        (f"{reply} It also", "truncated: cut off at 80 tokens"),
        ("It depends on what you want.", "stock: also given to 3 other prompts"),
    ]


def _margins() -> list[dict[str, Any]]:
    return [
        {"name": "relevance", "value": 0.021, "limit": -0.03, "passed": True,
         "text": "lower 95 % bound of the change of mean relevance (cosine)"},
        {"name": "variety", "value": 0.0127, "limit": -0.05, "passed": True,
         "text": "change of the number of distinct replies (share)"},
        {"name": "perplexity", "value": 0.04, "limit": 0.1, "passed": True,
         "text": "change of the perplexity of general text (share)"},
        {"name": "divergence", "value": 0.083, "limit": 0.5, "passed": True,
         "text": "mean KL divergence from the base on its own answers (nats per token)"},
    ]  # fmt: skip


def _topics(gate: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for topic in dict.fromkeys(row["topic"] for row in gate):
        rows = [row for row in gate if row["topic"] == topic]
        found.append({
            "topic": topic, "items": len(rows),
            "before": sum(row["before_good"] for row in rows) / len(rows),
            "after": sum(row["after_good"] for row in rows) / len(rows),
        })  # fmt: skip
    return found


def _loss(rng: random.Random) -> dict[str, Any]:
    train = [[step, 1.25 + 1.6 * 0.97**step + rng.gauss(0, 0.09)] for step in range(1, 121)]
    valid = [[step, 1.38 + 1.45 * 0.965**step] for step in range(0, 121, 15)]
    return {"train": train, "valid": valid}


def _data(rng: random.Random) -> dict[str, Any]:
    return {
        "packaged": True, "own_prompts": 14, "prompts": 260, "generated": 1040, "accepted": 312,
        "rows": {"new": 296, "replay": 0, "feedback": 0, "written": 80, "general": 32},
        "total_rows": 408, "synthetic_share": 0.804,
        "dropped": [
            ["style: max_words", 287], ["style: no_exclamation", 121], ["style: no_lists", 96],
            ["truncated", 74], ["style: complete_sentences", 61], ["relevance", 44],
            ["near_duplicate", 21], ["likelihood", 17], ["stock", 7],
        ],
        "diversity": {"distinct_1": 0.21, "distinct_2": 0.63, "unique_share": 0.998,
                      "mean_similarity": 0.14},
        "rows_per_topic": {topic: rng.randint(14, 27) for topic in TOPICS},
    }  # fmt: skip


def rejected_report() -> dict[str, Any]:
    """A round that lost, broke a margin and has no loss curve."""
    report = sample_report(3, items=40)
    report |= {
        "outcome": "reject", "deployed": False, "version": "v0001", "candidate": None,
        "loss": {"train": [], "valid": None}, "p": 0.93, "after": 0.05,
        "reasons": ["Harm is shown, so the old version stays."],
    }  # fmt: skip
    report["margins"][2] |= {"value": 0.48, "passed": False}
    return report


def diverged_report() -> dict[str, Any]:
    """A rejected round whose training left the finite numbers."""
    report = rejected_report()
    nan, inf = float("nan"), float("inf")
    report["loss"] = {"train": [[0, 2.5], [1, nan], [2, inf], [3, 2.0]], "valid": [[0, nan]]}
    return report | {"perplexity_after": inf, "divergence": nan, "after": nan, "interval": [nan, 1]}
