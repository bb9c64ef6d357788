"""Batches of a bank that decode: rows come and go, and each row's adapter goes with its cache.

mlx-lm's `BatchGenerator` merges, filters and splits the caches of the rows as they join and end.
So a row's adapter is written into its cache, as a last entry without keys or values (`RowNames`),
and read from there at every call of the model (`RowModel`): no second list of rows to keep.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from threading import Lock
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import LRUPromptCache, make_prompt_cache

if TYPE_CHECKING:
    from mlx_companion.lora.bank import AdapterBank, CacheKey

MAX_MB = 512.0
Rows = Callable[[Sequence[str | None]], AbstractContextManager[None]]


class RowNames:
    """The adapters of a batch's rows, in the form of an entry of a prompt cache."""

    nbytes = 0
    state: tuple[()] = ()

    def __init__(self, names: Sequence[str | None]) -> None:
        self.names = list(names)

    @classmethod
    def merge(cls, parts: Sequence[RowNames]) -> RowNames:
        """One entry of several."""
        return cls([name for part in parts for name in part.names])

    def extend(self, other: RowNames) -> None:
        """Take on another batch's rows."""
        self.names += other.names

    def filter(self, keep: Any) -> None:
        """Keep some rows."""
        self.names = [self.names[int(i)] for i in keep]

    def extract(self, row: int) -> RowNames:
        """One row's."""
        return RowNames([self.names[row]])

    def prepare(self, **_: Any) -> None:
        """Padding is nothing to a name."""

    def finalize(self) -> None:
        """As `prepare`."""

    def is_trimmable(self) -> bool:
        """Names do not end with the tokens."""
        return True

    def trim(self, tokens: int) -> int:
        """Nothing to do."""
        return tokens


class RowModel:
    """Called as the model, with caches whose last entry is a `RowNames`."""

    def __init__(self, model: nn.Module, rows: Rows) -> None:
        self._model = model
        self._rows = rows

    def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        *layers, row_names = cache
        with self._rows(row_names.names):
            return self._model(tokens, cache=layers)


class PromptCaches:
    """Keys and values of prompts seen, by adapter and version: a swapped adapter starts anew.

    Args:
        bank: says which versions are current; what belongs to others is dropped.
        max_mb: the most memory to hold (MB); the least recently used go first.
        max_prompts: the most prompts per adapter.
    """

    def __init__(self, bank: AdapterBank, max_mb: float = MAX_MB, max_prompts: int = 16) -> None:
        self._bank = bank
        self._max_bytes = int(max_mb * 1e6)
        self._max_prompts = max_prompts
        self._by_key: OrderedDict[CacheKey, Any] = OrderedDict()
        self._lock = Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values held."""
        return sum(kept.nbytes for kept in self._by_key.values())

    def fetch(self, key: CacheKey, tokens: Sequence[int]) -> tuple[list[Any] | None, int]:
        """The cache of the longest known beginning, a copy, and how many tokens it holds.

        Never all of them: the last token is for the model to run. (None, 0) where nothing fits.
        """
        with self._lock:
            self._drop_stale()
            if key not in self._by_key:
                return None, 0
            self._by_key.move_to_end(key)
            for asked in (list(tokens), list(tokens[:-1])):
                cache, rest = self._by_key[key].fetch_nearest_cache(key, asked)
                known = len(asked) - len(rest)
                if known < len(tokens):
                    return cache, known
            return None, 0

    def store(self, key: CacheKey, tokens: Sequence[int], cache: list[Any]) -> None:
        """Keep the cache of these tokens, unless its adapter is gone or was swapped meanwhile."""
        with self._lock:
            self._drop_stale()
            if not tokens or not self._bank.is_current(key):
                return
            kept = self._by_key.setdefault(key, LRUPromptCache(max_size=self._max_prompts))
            kept.insert_cache(key, list(tokens), cache)
            self._by_key.move_to_end(key)
            while self._by_key and self.nbytes > self._max_bytes:
                oldest, kept = next(iter(self._by_key.items()))
                kept.trim_to(n_sequences=len(kept) - 1)
                if not len(kept):
                    del self._by_key[oldest]

    def _drop_stale(self) -> None:
        for key in [key for key in self._by_key if not self._bank.is_current(key)]:
            del self._by_key[key]


class BankRows:
    """The rows of one batch; the `models.generation.RowCaches` of a bank.

    Args:
        model: the bank's.
        adapters: of each prompt.
        rows: a context in which the model's rows run with those adapters.
        key: the cache key of an adapter as this batch holds it.
        caches: where to look for prompts, and keep them; None for nowhere.
    """

    def __init__(
        self,
        model: nn.Module,
        adapters: Sequence[str | None],
        rows: Rows,
        key: Callable[[str | None], CacheKey],
        caches: PromptCaches | None,
    ) -> None:
        self.model = RowModel(model, rows)
        self._served, self._adapters, self._key, self._caches = model, adapters, key, caches

    def start(self, row: int, tokens: Sequence[int]) -> tuple[list[Any], int]:
        """A cache for the row, and how many of its tokens are in it."""
        cache, known = None, 0
        if self._caches is not None:
            cache, known = self._caches.fetch(self._key(self._adapters[row]), tokens)
        if cache is None:
            cache = make_prompt_cache(self._served)
        return [*cache, RowNames([self._adapters[row]])], known

    def ended(self, row: int, tokens: Sequence[int], cache: list[Any]) -> None:
        """Keep what a row leaves behind."""
        if self._caches is not None:
            self._caches.store(self._key(self._adapters[row]), tokens, cache[:-1])
