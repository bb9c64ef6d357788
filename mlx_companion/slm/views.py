"""Backbones with a condition: with a module's own LoRA adapter, or kept on the CPU.

Why: a rewriter may be tuned without a second copy of its model. Several modules then share one
loaded backbone, its features and its memory, and each generates with its own adapter out of one
`AdapterBank`::

    plain = factory.get_slm()
    guard_backbone = AdaptedBackbone(plain, "personality_guard", "runs/rewriter/adapter")
    guard_backbone.features(texts)       # the plain model's, from the same memory of texts
    guard_backbone.generate(prompt)      # with the adapter
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

import numpy as np

from mlx_companion.errors import AdapterError
from mlx_companion.runtime.logs import get_logger
from mlx_companion.slm.backbone import BaseSLMAdapter, LanguageModelAdapter

if TYPE_CHECKING:
    from mlx_companion.lora.bank import AdapterBank
    from mlx_companion.models.prompts import Prompt

T = TypeVar("T")
_log = get_logger(__name__)


class AdaptedBackbone(BaseSLMAdapter):
    """A shared backbone that generates with an adapter; its features are the shared one's.

    Args:
        shared: the backbone.
        adapter: whose the adapter is, usually the module's name.
        folder: where the adapter lies; read when it is first generated with, and again when there
            is another one by then. What cannot be read leaves the one before in its place.
    """

    def __init__(self, shared: LanguageModelAdapter, adapter: str, folder: str | Path) -> None:
        super().__init__(shared.name)
        self.shared = shared
        self.adapter = adapter
        self.folder = Path(folder)
        # The bank is the whole process's, in which two companions may have adapters of their own.
        self._in_bank = f"{adapter} of {self.folder.expanduser().resolve()}"

    @property
    def loaded(self) -> bool:
        """See the base class."""
        return self.shared.loaded

    @property
    def memory_bytes(self) -> int:
        """See the base class; the adapter itself is small."""
        return self.shared.memory_bytes

    @property
    def identity(self) -> str:
        """See the base class."""
        return self.shared.identity

    def load(self) -> None:
        """Read the model and the adapter.

        Raises:
            ModelError: the model cannot be had.
            AdapterError: the adapter is missing, corrupt or made for another base.
        """
        self.shared.load()
        self.shared._run(self._bank)

    def unload(self) -> None:
        """Nothing: others use the model."""

    def features(self, texts: Sequence[str]) -> np.ndarray:
        """See the base class."""
        return self.shared.features(texts)

    def generate(self, prompt: Prompt, max_tokens: int = 128) -> str:
        """See the base class; with the adapter.

        Raises:
            AdapterError: as `load`.
        """
        from mlx_companion.models.generation import generate

        lm = self.shared.language_model

        def work() -> str:
            with self._bank().rows(self._in_bank):
                return generate(lm, prompt, max_tokens=max_tokens).text

        return self.shared._run(work)

    def _bank(self) -> AdapterBank:
        bank = bank_of(self.shared)
        if self._in_bank not in bank:
            bank.add(self._in_bank, self.folder)
            return bank
        try:
            bank.refresh(self._in_bank)
        except AdapterError as error:
            _log.warning("the adapter before goes on", extra={"error": str(error)})
        return bank

    def _load(self) -> None:
        self.shared.load()

    def _unload(self) -> None:
        """Nothing, as `unload`."""

    def _features(self, texts: Sequence[str]) -> np.ndarray:
        return self.shared.features(texts)

    def _generate(self, prompt: Prompt, max_tokens: int) -> str:
        return self.generate(prompt, max_tokens)


class CpuBackbone(LanguageModelAdapter):
    """A language model whose work stays on the CPU, whatever else the machine has."""

    def _load(self) -> None:
        _on_cpu(super()._load)

    def _features(self, texts: Sequence[str]) -> np.ndarray:
        plain = super()._features
        return _on_cpu(lambda: plain(texts))

    def _generate(self, prompt: Prompt, max_tokens: int) -> str:
        plain = super()._generate
        return _on_cpu(lambda: plain(prompt, max_tokens))


_banks: WeakKeyDictionary[object, AdapterBank] = WeakKeyDictionary()
_banks_lock = threading.Lock()


def bank_of(shared: LanguageModelAdapter) -> AdapterBank:
    """The one bank of adapters over a backbone's model; made when it is first asked for.

    Raises:
        AdapterError: the model carries adapters already.
    """
    from mlx_companion.lora.bank import AdapterBank

    lm = shared._lm
    assert lm is not None
    with _banks_lock:
        bank = _banks.get(shared)
        if bank is None or bank.model is not lm.model:
            bank = _banks[shared] = AdapterBank(lm.model, base_sha256=lm.base_sha256)
        return bank


def _on_cpu(work: Callable[[], T]) -> T:
    import mlx.core as mx

    with mx.stream(mx.cpu):
        return work()
