"""The companion as it is served: the base model, one version's adapter, one profile.

Chat, generation of samples and the gate all answer through this class, so what is tested is
what a person gets.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_companion.errors import AdapterError, LoopError
from mlx_companion.loop.config import LoopConfig, ServeConfig
from mlx_companion.lora import detach, get_multiplier, is_attached, load_adapter, set_multiplier
from mlx_companion.models import LanguageModel, load
from mlx_companion.models.generation import Reply, batch_generate, generate, stream_generate
from mlx_companion.models.prompts import context_length, render
from mlx_companion.models.sampling import Sampling
from mlx_companion.personality import Profile, chat_messages, load_profile
from mlx_companion.runtime.monitor import ResourceMonitor
from mlx_companion.runtime.stop import NEVER, StopSwitch
from mlx_companion.store import Store, Version

__all__ = ["ServedModel"]

_PROBE = "Tell me one thing about the sea."


class ServedModel:
    """Answers as one version of the companion.

    Args:
        lm: the base model; adapters are put on it and taken off by `use`.
        profile: how the companion speaks.
        serve: sampling and length of replies.
    """

    def __init__(self, lm: LanguageModel, profile: Profile, serve: ServeConfig) -> None:
        self.lm = lm
        self.profile = profile
        self.serve = serve
        self.version_id = "base"

    @classmethod
    def open(
        cls, store: Store, config: LoopConfig, *, lm: LanguageModel | None = None
    ) -> ServedModel:
        """The active version of a store, its adapter verified and loaded.

        Raises:
            AdapterError: the adapter is missing, changed, or made for another base.
            LoopError: the store's versions belong to another base model.
        """
        profile = load_profile(config.profile)
        lm = lm or load(config.model)
        active = store.versions.active()
        if active is not None and active.base_sha256 not in (None, lm.base_sha256):
            raise LoopError(
                f"the versions in {store.path} belong to the model {active.model_source} "
                f"({str(active.base_sha256)[:12]}), not to {lm.source} ({lm.base_sha256[:12]}); "
                "give that model with --model, or another folder with --data-dir"
            )
        store.versions.ensure_base(lm.base_sha256, lm.source)
        companion = cls(lm, profile, config.serve)
        companion.use(store.versions.active())
        return companion

    def use(self, version: Version | None) -> None:
        """Answer as this version; None is the plain base.

        Raises:
            AdapterError: its adapter cannot be loaded; the version in use stays.
        """
        if version is None or version.adapter_path is None:
            self.use_base("base" if version is None else version.id)
        else:
            self.use_adapter(version.adapter_path, version.adapter_sha256, version.id)

    def use_base(self, label: str = "base") -> None:
        """Answer as the plain base model."""
        detach(self.lm.model)
        self.version_id = label

    def use_adapter(self, folder: Path, sha256: str | None, label: str) -> None:
        """Answer with the adapter in `folder`, whose weights must have this SHA-256.

        Raises:
            AdapterError: missing, changed, or made for another base.
        """
        load_adapter(folder, self.lm.model, self.lm.base_sha256, sha256)
        self.version_id = label

    @contextmanager
    def as_base(self) -> Iterator[LanguageModel]:
        """The plain base model while the block runs, whatever adapter is on."""
        if not is_attached(self.lm.model):
            yield self.lm
            return
        before = get_multiplier(self.lm.model)
        set_multiplier(self.lm.model, 0.0)
        try:
            yield self.lm
        finally:
            set_multiplier(self.lm.model, before)

    def stream(
        self,
        prompt: str,
        history: Sequence[tuple[str, str]] = (),
        *,
        seed: int | None = None,
        switch: StopSwitch = NEVER,
        system: str | None = None,
    ) -> Generator[str, None, Reply]:
        """Pieces of the reply to `prompt`; the return value is the whole `Reply`.

        Earlier exchanges that do not fit the model's context are forgotten, oldest first.

        Args:
            history: earlier exchanges, oldest first: (what the person said, the reply).
            system: in place of the profile's own system prompt.
        """
        return stream_generate(
            self.lm,
            self._fitting(prompt, history, system),
            max_tokens=self.serve.max_tokens,
            sampling=self.sampling(),
            seed=seed,
            switch=switch,
        )

    def complete(
        self, messages: list[dict[str, str]], *, max_tokens: int, switch: StopSwitch = NEVER
    ) -> str:
        """The likeliest reply to ready-made messages, as they are: without profile or history.

        Args:
            messages: of a chat.
            max_tokens: the most tokens to make.
            switch: ends it early; what there is by then is returned.
        """
        return generate(self.lm, messages, max_tokens=max_tokens, switch=switch).text

    def _fitting(
        self, prompt: str, history: Sequence[tuple[str, str]], system: str | None
    ) -> list[dict[str, str]]:
        """The messages with as many of the last exchanges as the model's context has room for."""
        room = context_length(self.lm) - self.serve.max_tokens

        def messages(kept: int) -> list[dict[str, str]]:
            return self._messages(prompt, history[len(history) - kept :], system)

        def too_long(kept: int) -> bool:
            return len(render(self.lm, messages(kept))) > room

        # From the end, and doubled: to tokenize all of a long conversation takes seconds.
        fits, more = 0, 1
        while more <= len(history) and not too_long(more):
            fits, more = more, 2 * more
        between = range(fits + 1, min(more, len(history) + 1))
        return messages(fits + bisect_left(between, True, key=too_long))

    def _messages(
        self, prompt: str, history: Sequence[tuple[str, str]], system: str | None
    ) -> list[dict[str, str]]:
        messages = chat_messages(self.profile, prompt, history=history)
        if system is not None:
            messages[0] = {"role": "system", "content": system}
        return messages

    def reply_all(
        self,
        chats: Sequence[str | list[dict[str, str]]],
        *,
        seed: int,
        sampling: Sampling | None = None,
        max_rows: int = 64,
        monitor: ResourceMonitor | None = None,
        switch: StopSwitch = NEVER,
    ) -> list[Reply]:
        """One reply to each prompt (served with the profile) or ready-made list of messages."""
        return batch_generate(
            self.lm,
            [chat_messages(self.profile, c) if isinstance(c, str) else c for c in chats],
            max_tokens=self.serve.max_tokens,
            sampling=sampling or self.sampling(),
            seed=seed,
            max_rows=max_rows,
            monitor=monitor,
            switch=switch,
        )

    def sampling(self, **changes: float) -> Sampling:
        """The served sampling, with changes."""
        served = Sampling(temperature=self.serve.temperature, top_k=self.serve.top_k)
        return dataclasses.replace(served, **changes)  # type: ignore[arg-type]

    def check_adapter_acts(self) -> float:
        """The largest change of a logit that the adapter makes on a served prompt.

        Raises:
            AdapterError: there is no change: the served path does not use the adapter.
        """
        tokens = mx.array([render(self.lm, chat_messages(self.profile, _PROBE))])
        with_adapter = np.array(self.lm.model(tokens)[:, -1].astype(mx.float32))
        with self.as_base() as base:
            without = np.array(base.model(tokens)[:, -1].astype(mx.float32))
        change = float(np.abs(with_adapter - without).max())
        if not change > 0:
            raise AdapterError(
                f"version {self.version_id} answers exactly as the base: its adapter does not act"
            )
        return change
