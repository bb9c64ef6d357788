"""A key-value cache of few bits, ours beside mlx-lm's: what it costs and what it saves.

    python benchmarks/kv_cache.py --text FILE        # about six minutes on two cores

Each file of text (plain or .gz) is read from its middle with every cache in small steps; KL is the
mean divergence from the plain cache's predictions. Then a reply is decoded behind a long prompt
with each, in turn.
"""

from __future__ import annotations

import argparse
import gzip
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common

OURS: tuple[int | str, ...] = (8, 6, "k8v4", 4, 3, 2)
THEIRS = (8, 6, 4, 3, 2)


def main() -> None:
    """Run and report."""
    options = _arguments().parse_args()
    # First, so that MLX finds a fast BLAS.
    import mlx_companion as mc
    from mlx_companion.quant.kv_cost import kv_cost

    lm = mc.load(options.model)
    texts = [_excerpt(path, options.context) for path in options.text]
    found = kv_cost(lm, texts, OURS, context=options.context, others=_others())
    rows = [cost.to_dict() for cost in found]
    speeds = _speeds(lm, texts[0], options.context, options.repeats)
    for row in rows:
        row["decode_tokens_per_s"] = speeds.get(row["bits"])
    plain = rows[0]
    lines = [
        [
            "plain (float32)" if row is plain else _named(row["bits"]),
            f"{row['kl']:.5f}",
            f"{row['top1']:.1%}",
            f"{row['perplexity']:.2f}",
            f"{row['bytes_per_token'] / 1000:.2f}",
            f"{plain['bytes_per_token'] / row['bytes_per_token']:.1f}",
            "" if row["decode_tokens_per_s"] is None else f"{row['decode_tokens_per_s']:.1f}",
        ]
        for row in rows
    ]
    head = ["cache", "KL (nats)", "same top-1", "perplexity", "kB per token", "times smaller",
            "decode (tokens/s)"]  # fmt: skip
    facts = common.machine()
    text = "\n".join(
        [
            f"key-value caches of {options.model} at {options.context} tokens",
            common.machine_text(facts),
            "",
            common.table(head, lines),
        ]
    )
    result = {"model": options.model, "context": options.context, "rows": rows, "machine": facts}
    common.publish("kv_cache", result, text, not options.no_save)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, action="append", required=True, metavar="FILE")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-save", action="store_true")
    return parser


def _others() -> dict[str, Any]:
    from mlx_lm.models.cache import QuantizedKVCache

    def make(bits: int) -> Any:
        return lambda model: [QuantizedKVCache(64, bits) for _ in model.layers]

    return {f"mlx-lm {bits}": make(bits) for bits in THEIRS}


def _named(bits: str) -> str:
    return bits if bits.startswith("mlx-lm") else f"ours {bits}"


def _excerpt(path: Path, context: int) -> str:
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    # A token has rarely more than six letters.
    return text[len(text) // 2 :][: 8 * context]


def _speeds(lm: Any, text: str, context: int, repeats: int) -> dict[str, float]:
    """Tokens per second decoded behind `context` tokens, the median of rounds in turn."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    from mlx_companion.models.kv_cache import quantized_cache

    tokens = mx.array(lm.tokenizer.encode(text)[:context])
    makers: dict[str, Any] = {"plain": make_prompt_cache}
    makers |= {str(bits): lambda model, b=bits: quantized_cache(model, b) for bits in (8, 4, 2)}
    makers |= {name: make for name, make in _others().items() if name.endswith((" 8", " 4", " 2"))}
    times: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(repeats):
        for name, make in makers.items():
            times[name].append(_decode(lm, tokens, make(lm.model)))
    return {name: 1 / statistics.median(seconds) for name, seconds in times.items()}


def _decode(lm: Any, tokens: Any, cache: list[Any], count: int = 16) -> float:
    from mlx_lm.generate import generate_step

    from mlx_companion.models.fast_cpu import fast_cpu
    from mlx_companion.models.kv_cache import attending_to_packed

    with fast_cpu(lm.model), attending_to_packed(lm.model):
        steps = generate_step(tokens, lm.model, max_tokens=count + 1, prompt_cache=cache)
        next(steps)
        started = time.perf_counter()
        for _ in steps:
            pass
    return (time.perf_counter() - started) / count


if __name__ == "__main__":
    main()
