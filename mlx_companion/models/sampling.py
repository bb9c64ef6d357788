"""How the next token is chosen: temperature, nucleus, top-k, penalties.

`Sampling` is the one object that describes it everywhere (generation, chat, the
self-improvement loop). It is turned into mlx-lm's samplers and logits processors;
the only thing done differently here is top-k, which first gathers the k candidates
so that the random draw and the nucleus sort run over k values instead of the whole
vocabulary (about 50,000): on a CPU that is the larger part of a decoding step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
from mlx_lm.sample_utils import make_logits_processors, make_sampler

from mlx_companion.errors import GenerationError

Sampler = Callable[[mx.array], mx.array]
LogitsProcessor = Callable[[mx.array, mx.array], mx.array]

__all__ = ["GREEDY", "LogitsProcessor", "Sampler", "Sampling"]


@dataclass(frozen=True)
class Sampling:
    """Sampling settings.

    Args:
        temperature: 0 takes the most likely token (greedy); 1 samples as trained.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of tokens that holds this probability (nucleus).
        min_p: drop tokens less likely than this share of the most likely one.
        repetition_penalty: divide the logits of tokens already seen; 1 is off.
        repetition_context: how many of the last tokens count as seen.

    Raises:
        GenerationError: a value is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repetition_context: int = 64

    def __post_init__(self) -> None:
        for name, low, high in (
            ("temperature", 0.0, 10.0),
            ("top_k", 0, 1_000_000),
            ("top_p", 1e-6, 1.0),  # mlx-lm takes 0 for "off"
            ("min_p", 0.0, 1.0),
            ("repetition_penalty", 0.1, 10.0),
            ("repetition_context", 1, 1_000_000),
        ):
            value = getattr(self, name)
            kind = int if isinstance(low, int) else (int, float)
            if not isinstance(value, kind) or not low <= value <= high:  # also refuses NaN
                raise GenerationError(
                    f"sampling setting {name}={value!r} cannot be used: give {low} to {high}"
                )

    def sampler(self) -> Sampler:
        """A function from log-probabilities (B, V) to tokens (B,)."""
        inner = make_sampler(temp=self.temperature, top_p=self.top_p, min_p=self.min_p)
        if self.top_k <= 0 or self.temperature == 0:
            return inner
        return _within_top_k(inner, self.top_k)

    def processors(self) -> list[LogitsProcessor]:
        """Logits processors `f(tokens, logits) -> logits`, empty when none is needed."""
        if self.repetition_penalty == 1.0:
            return []
        return make_logits_processors(
            repetition_penalty=self.repetition_penalty,
            repetition_context_size=self.repetition_context,
        )


def _within_top_k(inner: Sampler, k: int) -> Sampler:
    def sample(logprobs: mx.array) -> mx.array:
        if k >= logprobs.shape[-1]:
            return inner(logprobs)
        index = mx.argpartition(logprobs, kth=-k, axis=-1)[..., -k:]
        kept = mx.take_along_axis(logprobs, index, axis=-1)
        kept = kept - mx.logsumexp(kept, axis=-1, keepdims=True)
        choice = inner(kept)
        return mx.take_along_axis(index, choice[..., None], axis=-1).squeeze(-1)

    return sample


GREEDY = Sampling()
