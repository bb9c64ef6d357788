"""The whole of it with the real model and the four real modules, and no way out of the machine."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from mlx_companion.loop import LoopConfig
from mlx_companion.loop.companion import Companion
from mlx_companion.runtime.config import load_config
from mlx_companion.slm.config import SLMConfig

pytestmark = pytest.mark.real_model

# A busy machine is slow and not broken.
PATIENT = {
    f"modules.{name}.timeout": 300.0
    for name in ("research_classifier", "personality_guard", "context_tracker", "drift_monitor")
} | {
    "orchestration.total_timeout": 600.0,
    "orchestration.load_timeout": 600.0,
    "resources.adaptive": False,
}
SECRET = "Bartholomew"


def test_a_conversation_learns_guards_and_watches_offline(
    real_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(LoopConfig, overrides={"serve.max_tokens": 10})
    slm = load_config(SLMConfig, overrides=PATIENT)
    folder = tmp_path / "home"
    loop = asyncio.new_event_loop()

    def blocked(*_: object, **__: object) -> None:
        raise AssertionError("a socket was asked for")

    with Companion.open(
        folder / "c.db", profile="dry_wit", config=config, slm=slm, seed=1
    ) as companion:
        for name in ("connect", "connect_ex", "bind", "sendto"):
            monkeypatch.setattr(socket.socket, name, blocked)
        for name in ("socket", "create_connection", "getaddrinfo"):
            monkeypatch.setattr(socket, name, blocked)
        try:
            first = loop.run_until_complete(
                companion.chat(f"Call me {SECRET}. Please keep your answers short.")
            )
            second = loop.run_until_complete(
                companion.chat("what is the weather in porto right now")
            )
        finally:
            loop.close()
        assert first.trace.faults == second.trace.faults == []
        facts = {entry.key: entry.value for entry in companion.learned()}
        assert facts["person.name"] == SECRET
        assert facts["preference.reply_length"] == "short"
        assert SECRET in first.trace["prompt"].made
        assert first.trace["research"].fault == "not needed"
        assert "cannot look anything up" in second.trace["prompt"].details["used"][-1]
        assert all(reply.text.strip() for reply in (first, second))
        assert companion.store.module_states.get("drift_monitor") is not None
        assert len(companion.store.traffic.recent("personality_guard")) == 2
        companion.forget(conversations=True)
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert not any(SECRET.encode() in file.read_bytes() for file in files)
