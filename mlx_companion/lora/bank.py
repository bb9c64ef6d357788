"""`AdapterBank`: many adapters over one base model, a row of the batch each.

    bank = AdapterBank(lm.model, base_sha256=lm.base_sha256)
    bank.add("tutor", "runs/tutor")
    bank.add("poet", "runs/poet")                       # another rank, other layers: fine
    with bank.rows(["tutor", None, "poet"]):            # None: the base alone
        logits = lm.model(tokens)                       # (3, L)
    replies = bank.generate(lm, prompts, ["tutor", "poet", None])
    bank.swap("poet", "runs/poet-2")                    # the base is neither read nor written
    bank.refresh("tutor")                               # read again, where its folder has changed
    bank.detach()                                       # the very modules that were there before

The base's product is computed once for the whole batch; only the small products differ by row
(`kernels.lora_bgmv`).

Threads: adapters never change once they are in, so `add`, `swap` and `remove` may run beside
batches. A batch takes its adapters when `rows` is entered and keeps them to its end, whatever is
swapped meanwhile; rows are set for the thread (or asyncio task) that entered and no other. An
adapter that a batch is using cannot be removed, only swapped. MLX adds its own rule: what is not
computed yet belongs to the thread that asked for it, so evaluate models before sharing them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from threading import RLock
from typing import Any, NamedTuple

import mlx.nn as nn

from mlx_companion.errors import AdapterError
from mlx_companion.lora.attach import is_attached, replace_modules
from mlx_companion.lora.bank_generation import BankRows, PromptCaches
from mlx_companion.lora.bank_rows import ActiveRows, BankLinear, LoadedAdapter, Stacks
from mlx_companion.lora.bank_source import Origin, Source, read_source
from mlx_companion.lora.config import LoraConfig
from mlx_companion.lora.layers import BASE_TYPES
from mlx_companion.models.generation import Reply, batch_generate
from mlx_companion.models.load import LanguageModel
from mlx_companion.models.prompts import Prompt

# Batches of a server mix the same few adapters; each set costs a copy of its adapters.
_STACKS_KEPT = 4


class CacheKey(NamedTuple):
    """What a prompt cache belongs to: an adapter (None: the base) in one version."""

    adapter: str | None
    version: int


class AdapterBank:
    """Adapters over one base model; see the module.

    Args:
        model: the base, without adapters. Layers that adapters change are replaced by
            `BankLinear`, which is the plain layer as long as no rows are set.
        base_sha256: hash of its weights (`LanguageModel.base_sha256`); adapter folders made for
            another base are then refused.

    Raises:
        AdapterError: the model carries adapters, or another bank, already.
    """

    def __init__(self, model: nn.Module, base_sha256: str | None = None) -> None:
        modules = dict(model.named_modules())
        if is_attached(model) or any(isinstance(m, BankLinear) for m in modules.values()):
            raise AdapterError(
                "the model carries adapters already; detach(model), or the other bank, first"
            )
        self.model = model
        self.base_sha256 = base_sha256
        self._bases = {path: m for path, m in modules.items() if isinstance(m, BASE_TYPES)}
        self._wrapped: dict[str, nn.Module] = {}
        self._adapters: dict[str, LoadedAdapter] = {}
        self._origins: dict[str, Origin | None] = {}
        self._stacks: list[Stacks] = []
        self._uses: Counter[LoadedAdapter] = Counter()
        self._versions = 0
        self._lock = RLock()
        self._current: ContextVar[ActiveRows | None] = ContextVar("rows", default=None)

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters in the bank, in the order in which they came."""
        return tuple(self._adapters)

    def __len__(self) -> int:
        return len(self._adapters)

    def __contains__(self, name: object) -> bool:
        return name in self._adapters

    def add(self, name: str, source: Source, config: LoraConfig | None = None) -> None:
        """Put an adapter in.

        Args:
            name: what rows call it.
            source: a folder of `save_adapter`; tensors as `adapter_parameters` gives them; or a
                model that carries the adapter.
            config: what tensors were attached with.

        Raises:
            AdapterError: the name is taken; the adapter is missing, corrupt, made for another
                base, or of a kind that cannot share a batch (DoRA, embeddings).
        """
        if not isinstance(name, str) or not name:
            raise AdapterError(f"an adapter's name must be a text, got {name!r}")
        self._require_free(name)
        # Before it is read, so that what changes meanwhile is read again.
        origin = Origin.of(source)
        layers = read_source(source, self._bases, config, self.base_sha256)
        with self._lock:
            # Somebody else may have taken it while the file was read.
            self._require_free(name)
            self._put(name, layers, origin)

    def swap(self, name: str, source: Source, config: LoraConfig | None = None) -> None:
        """Put another adapter in the place of one; batches that run end with the old one.

        Arguments as in `add`. Raises AdapterError: no such name, or as in `add`; the old one then
        stays.
        """
        self._find(name)
        origin = Origin.of(source)
        layers = read_source(source, self._bases, config, self.base_sha256)
        with self._lock:
            self._forget(self._find(name))
            self._put(name, layers, origin)

    def refresh(self, name: str) -> bool:
        """Swap an adapter for what its folder holds by now; cheap when nothing there has changed.

        Returns:
            Whether it was read again; never for one that came from no folder.

        Raises:
            AdapterError: no such name, or as in `add`; the old one then stays, and the folder is
                not read again before it changes again.
        """
        self._find(name)
        before = self._origins.get(name)
        if before is None:
            return False
        now = Origin.of(before.folder)
        if now == before:
            return False
        self._origins[name] = now
        self.swap(name, before.folder)
        return True

    def remove(self, name: str) -> None:
        """Take an adapter out.

        Raises:
            AdapterError: no such name, or a batch is using it.
        """
        with self._lock:
            adapter = self._find(name)
            if self._uses[adapter]:
                raise AdapterError(
                    f"a batch is using '{name}'; let it end first, or swap the adapter"
                )
            self._forget(adapter)
            del self._adapters[name], self._origins[name]

    def cache_key(self, name: str | None) -> CacheKey:
        """What to keep prompt caches under; another one after each swap.

        Hashable, so that it serves as the `model` of mlx-lm's `LRUPromptCache`, too.

        Raises:
            AdapterError: no such name.
        """
        return _key(None if name is None else self._find(name))

    def is_current(self, key: CacheKey) -> bool:
        """Whether that version of the adapter is the one in the bank."""
        return key.adapter is None or key == _key(self._adapters.get(key.adapter))

    @contextmanager
    def rows(self, names: Sequence[str | None] | str) -> Iterator[None]:
        """Inside the block, row i of the model's batches runs with adapter `names[i]`.

        Works with everything that calls the model inside the block, `generate` included; a stream
        must be read there, too.

        Args:
            names: one per row, None for the base; or one name for all rows.

        Raises:
            AdapterError: no such name; from the model, when its batch has other rows.
        """
        rows = names if isinstance(names, str) else tuple(names)
        with (
            self._hold([rows] if isinstance(rows, str) else rows) as stacks,
            self._active(stacks, rows),
        ):
            yield

    def generate(
        self,
        lm: LanguageModel,
        prompts: Sequence[Prompt],
        adapters: Sequence[str | None],
        *,
        caches: PromptCaches | None = None,
        **options: Any,
    ) -> list[Reply]:
        """`batch_generate` with an adapter per prompt; rows come and go, adapters follow.

        Args:
            lm: the language model whose `model` this bank serves.
            prompts: texts, chats or tokens.
            adapters: one name per prompt, None for the base.
            caches: prompt caches to continue from, and to fill.
            options: as in `batch_generate`.

        Raises:
            AdapterError: no such name, another number of names than prompts, another model.
            GenerationError: as in `batch_generate`.
        """
        if lm.model is not self.model:
            raise AdapterError("this bank serves another model than the one given")
        if len(adapters) != len(prompts):
            raise AdapterError(
                f"{len(adapters)} adapters were given for {len(prompts)} prompts; "
                "give one name (or None) per prompt"
            )
        with self._hold(adapters) as stacks:
            rows = BankRows(
                self.model,
                adapters,
                lambda names: self._active(stacks, names),
                lambda name: _key(None if name is None else stacks.adapters[name]),
                caches,
            )
            return batch_generate(lm, prompts, row_caches=rows, **options)

    def detach(self) -> None:
        """Give the model back as it was; the bank is empty afterwards.

        Raises:
            AdapterError: a batch is running.
        """
        with self._lock:
            if self._uses.total():
                raise AdapterError("a batch is running; let it end first")
            replace_modules(self.model, self._wrapped)
            self._wrapped.clear()
            self._adapters.clear()
            self._origins.clear()
            self._stacks.clear()

    @contextmanager
    def _active(self, stacks: Stacks, names: Sequence[str | None] | str) -> Iterator[None]:
        token = self._current.set(ActiveRows(stacks, names))
        try:
            yield
        finally:
            self._current.reset(token)

    @contextmanager
    def _hold(self, names: Sequence[str | None]) -> Iterator[Stacks]:
        """The adapters of a batch, which stay as they are inside the block."""
        with self._lock:
            wanted = dict.fromkeys(name for name in names if name is not None)
            used = [self._find(name) for name in wanted]
            stacks = self._stacks_with(used)
            self._uses.update(used)
        try:
            yield stacks
        finally:
            with self._lock:
                self._uses.subtract(used)
                self._uses += Counter()

    def _stacks_with(self, used: list[LoadedAdapter]) -> Stacks:
        stacks = next((kept for kept in self._stacks if kept.holds(used)), None)
        if stacks is None:
            stacks = Stacks(used)
        else:
            self._stacks.remove(stacks)
        self._stacks = [stacks, *self._stacks][:_STACKS_KEPT]
        return stacks

    def _put(self, name: str, layers: Any, origin: Origin | None) -> None:
        self._versions += 1
        self._origins[name] = origin
        self._adapters[name] = LoadedAdapter(name, self._versions, layers)
        new = {path: self._bases[path] for path in layers if path not in self._wrapped}
        made = {path: BankLinear(base, path, self._current) for path, base in new.items()}
        for path, layer in made.items():
            layer.train(new[path].training)
        replace_modules(self.model, made)
        self._wrapped |= new

    def _forget(self, adapter: LoadedAdapter) -> None:
        self._stacks = [s for s in self._stacks if s.adapters.get(adapter.name) is not adapter]

    def _require_free(self, name: str) -> None:
        if name in self._adapters:
            raise AdapterError(f"the bank has a '{name}' already; swap it, or take another name")

    def _find(self, name: str) -> LoadedAdapter:
        adapter = self._adapters.get(name)
        if adapter is None:
            near = get_close_matches(str(name), self._adapters)
            has = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(self._adapters)}"
            raise AdapterError(
                f"the bank has no adapter '{name}'; {has if self._adapters else 'it is empty'}"
            )
        return adapter


def _key(adapter: LoadedAdapter | None) -> CacheKey:
    return CacheKey(None, 0) if adapter is None else CacheKey(adapter.name, adapter.version)
