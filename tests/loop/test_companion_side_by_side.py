"""Several companions of one person: what each of them sees is in the one state that is stored."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import companion_world as world
import pytest

from mlx_companion.errors import StoreError
from mlx_companion.loop.watch import Watcher
from mlx_companion.slm.drift import DriftMonitor
from mlx_companion.slm.tracker import ContextTracker
from mlx_companion.store import Store

SAID = "the rain walks up a quiet hill and maybe bread cheese or tea would do you good"


def replies(count: int, owner: str) -> list[str]:
    words = SAID.split()
    return [f"{owner} {n}: " + " ".join(words[n % 7 : n % 7 + 8]) + "." for n in range(count)]


def watcher(store: Store) -> Watcher:
    return Watcher(store, monitor=DriftMonitor(backbone=False))


def stored(store: Store) -> dict[str, Any]:
    state: dict[str, Any] = store.module_states.get("drift_monitor")
    return state


def see(watching: Watcher, texts: Sequence[str]) -> list[dict[str, Any]]:
    return [watching.process({"response": text, "user": "hello"}).to_dict() for text in texts]


def test_two_in_turn_watch_one_stream_as_one_would(tmp_path: Path) -> None:
    said = replies(60, "both")
    with Store(tmp_path / "one.db") as one, Store(tmp_path / "two.db") as two:
        alone = see(watcher(one), said)
        first, second = watcher(two), watcher(two)
        shared = [see((first, second)[n // 3 % 2], [text])[0] for n, text in enumerate(said)]
        assert shared == alone
        assert stored(two) == stored(one)


def test_nothing_is_lost_between_threads_and_processes(tmp_path: Path) -> None:
    path, each = tmp_path / "companion.db", 5
    program = f"""
import sys
sys.path[:0] = {[str(folder) for folder in Path(__file__).parents[:2]]!r}
from test_companion_side_by_side import Path, Store, replies, see, watcher
with Store(Path({str(path)!r})) as store:
    watching = watcher(store)
    print("ready", flush=True)
    sys.stdin.readline()
    see(watching, replies({each}, "process"))
"""
    with Store(path) as first, Store(path) as second:
        other = subprocess.Popen(
            [sys.executable, "-c", program], text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )  # fmt: skip
        assert other.stdin is not None
        assert other.stdout is not None
        with other:
            assert other.stdout.readline() == "ready\n"
            other.stdin.write("go\n")
            other.stdin.flush()
            stores = {"first": first, "again": first, "second": second}
            threads = [
                threading.Thread(target=see, args=(watcher(store), replies(each, owner)))
                for owner, store in stores.items()
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert other.returncode == 0
        kept = stored(first)["baseline"]
    # Fewer than make a baseline, so all of them are in it: each once, each one's in order.
    assert len(kept) == 4 * each
    for owner in (*stores, "process"):
        assert [text for text in kept if text.startswith(owner)] == replies(each, owner)


def test_the_state_of_many_stays_as_small_as_that_of_one(store: Store) -> None:
    watching = [watcher(store) for _ in range(3)]
    for n, text in enumerate(replies(90, "long " * 900)):
        see(watching[n % 3], [text])
    assert stored(store)["counts"][2] == 90 - 24
    assert len(json.dumps(stored(store))) < 150_000


def broken(store: Store, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def fail(*_: Any, **__: Any) -> None:
        raise StoreError("the disk is away")

    monkeypatch.setattr(store.module_states, "set", fail)
    return monkeypatch.undo


def test_what_could_not_be_stored_is_taken_in_later_and_once(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = replies(6, "reply")
    with Store(store.path) as beside:
        first, second = watcher(store), watcher(beside)
        see(first, said[:1])
        mend = broken(store, monkeypatch)
        for text in said[1:3]:
            with pytest.raises(StoreError, match="the disk is away"):
                see(first, [text])
        mend()
        see(second, said[3:4])
        see(first, said[4:5])
        see(second, said[5:])
    assert stored(store)["baseline"] == [said[n] for n in (0, 3, 1, 2, 4, 5)]


def test_one_that_cannot_be_taken_in_does_not_stop_the_others(store: Store) -> None:
    monitor = DriftMonitor(backbone=False)
    take_in = monitor.take_in

    def refuses(seen: Any) -> Any:
        if seen.reply.text == "bad":
            raise ValueError("no")
        return take_in(seen)

    monitor.take_in = refuses  # type: ignore[method-assign]
    watching = Watcher(store, monitor=monitor)
    see(watching, ["one"])
    with pytest.raises(ValueError, match="no"):
        see(watching, ["bad"])
    see(watching, ["two"])
    assert stored(store)["baseline"] == ["one", "two"]


def test_scores_are_taken_over_from_the_same_heads_only() -> None:
    first = DriftMonitor(backbone=False)
    for text in replies(30, "reply"):
        first.observe(text)
    state = json.loads(json.dumps(first.state_dict()))
    state["scores"]["recent"][0]["assistant"] = 0.125
    second = DriftMonitor(backbone=False)
    second.load_state(state)
    assert second.state_dict() == state
    # Of another version, and of a release that stored none.
    for given in ({**state["scores"], "heads": "another"}, None):
        third = DriftMonitor(backbone=False)
        third.load_state({**state, "scores": given})
        assert third.state_dict() == first.state_dict()


def test_words_that_two_companions_heard_are_counted_together(tmp_path: Path) -> None:
    path = tmp_path / "companion.db"
    with Store(path) as one, Store(path) as two:
        pair = [world.companion(one), world.companion(two)]
        for talk, store in zip(pair, (one, two), strict=True):
            learned = store.module_states.get("context_tracker")
            talk._modules.factory.register_module(
                "context_tracker", ContextTracker(learned=learned, use_encoder=False)
            )
        said = ["that is glorpina", "so zorpi today", "glorpina once more", "zorpi it is"]
        for n, text in enumerate(said):
            pair[n // 2 % 2].chat_sync(text)
        state = one.module_states.get("context_tracker")
        assert state["seen"] == {"glorpina": [2, 2], "zorpi": [2, 2]}
        # The first one knows of all uses after its next message, and the term counts for both.
        pair[0].chat_sync("glorpina again")
        pair[0].chat_sync("glorpina for ever")
        pair[1].chat_sync("hello")
        assert list(two.module_states.get("context_tracker")["learned"]) == ["glorpina"]
        assert two.module_states.get("context_tracker")["seen"] == {"zorpi": [2, 2]}
        for talk in pair:
            talk.close()
