"""What a key-value cache of few bits costs: measured, not assumed.

A text is read twice with the model's cache in small steps, as in decoding: once with plain keys and
values, once with packed ones. The difference of the two is the cost::

    for cost in kv_cost(lm, texts, bits=(8, 4, "k8v4", 2)):
        print(cost.bits, cost.kl, cost.perplexity, cost.bytes_per_token)

Only what was packed before a step is read packed, so that the first tokens of a text, and the
newest, cost nothing: give texts as long as the contexts that matter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from mlx_companion.errors import ConfigError
from mlx_companion.models.fast_cpu import fast_cpu
from mlx_companion.models.kv_cache import KVBits, attending_to_packed, quantized_cache
from mlx_companion.models.load import LanguageModel

_STEP = 16
_LEAST = 2 * _STEP


@dataclass(frozen=True)
class KVCost:
    """One setting's cost.

    Attributes:
        bits: "4", "k8v4", or "plain".
        tokens: predicted.
        kl: mean Kullback-Leibler divergence from the plain cache's predictions, nats per token.
        top1: share of tokens whose likeliest prediction is the same.
        perplexity: of the text.
        nbytes: of the cache at the end of the longest text.
        bytes_per_token: of the cache there.
        seconds: for reading all of it on this machine.
    """

    bits: str
    tokens: int
    kl: float
    top1: float
    perplexity: float
    nbytes: int
    bytes_per_token: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


MakeCache = Callable[[Any], list[Any]]


def kv_cost(
    lm: LanguageModel,
    texts: Sequence[str],
    bits: Sequence[int | str | KVBits] = (8, 6, 4, 3, 2),
    *,
    context: int = 1024,
    others: dict[str, MakeCache] | None = None,
) -> list[KVCost]:
    """Measure settings of the cache on texts.

    Args:
        lm: the model.
        texts: what to read; those of fewer than 32 tokens are left out.
        bits: settings to measure.
        context: tokens of each text that are read at most.
        others: further caches by name, as functions of the model.

    Returns:
        The plain cache first, then one entry per setting, then the others.

    Raises:
        ConfigError: no text is long enough, or a setting that there is not.
    """
    rows = [lm.tokenizer.encode(text)[: context + 1] for text in texts]
    rows = [row for row in rows if len(row) > _LEAST]
    if not rows:
        raise ConfigError(f"no text has more than {_LEAST} tokens; give longer ones")
    settings: dict[str, MakeCache] = {"plain": make_prompt_cache}
    for how in map(KVBits.of, bits):
        settings[str(how)] = lambda model, how=how: quantized_cache(model, how)  # type: ignore[misc]
    settings |= others or {}
    sums = {name: _Sums() for name in settings}
    for row in rows:
        plain = None
        for name, make in settings.items():
            cache = make(lm.model)
            started = time.perf_counter()
            found = np.concatenate(list(_log_probabilities(lm, row, cache)))
            sums[name].seconds += time.perf_counter() - started
            plain = found if plain is None else plain
            sums[name].add(plain, found, np.array(row[1:]), _bytes(cache))
    return [total.cost(name) for name, total in sums.items()]


def _log_probabilities(lm: LanguageModel, row: list[int], cache: list[Any]) -> Iterator[np.ndarray]:
    for at in range(0, len(row) - 1, _STEP):
        tokens = mx.array([row[at : min(at + _STEP, len(row) - 1)]])
        with fast_cpu(lm.model), attending_to_packed(lm.model):
            logits = lm.model(tokens, cache=cache)[0].astype(mx.float32)
            yield np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))


def _bytes(cache: list[Any]) -> int:
    """What a cache holds; mlx-lm's allocate in steps, of which only the filled part counts."""
    total = 0
    for part in cache:
        held = part.nbytes
        steps = getattr(part, "keys", None)
        if steps is not None:
            first = steps[0] if isinstance(steps, tuple) else steps
            held = held * part.offset // first.shape[2]
        total += held
    return total


class _Sums:
    """What adds up over the tokens of all texts."""

    def __init__(self) -> None:
        self.kl = self.same = self.loss = self.seconds = 0.0
        self.tokens = self.nbytes = self.longest = 0

    def add(self, plain: np.ndarray, found: np.ndarray, targets: np.ndarray, nbytes: int) -> None:
        self.kl += float((np.exp(plain) * (plain - found)).sum())
        self.same += float((plain.argmax(-1) == found.argmax(-1)).sum())
        self.loss -= float(found[np.arange(len(targets)), targets].sum())
        self.tokens += len(targets)
        if len(targets) > self.longest:
            self.longest, self.nbytes = len(targets), nbytes

    def cost(self, name: str) -> KVCost:
        return KVCost(
            name,
            self.tokens,
            max(0.0, self.kl / self.tokens),
            self.same / self.tokens,
            float(np.exp(self.loss / self.tokens)),
            self.nbytes,
            self.nbytes / self.longest,
            self.seconds,
        )
