"""Versions, the pointer to the active one, and going back."""

from __future__ import annotations

import hashlib
import shutil
import threading
from pathlib import Path

import pytest

from mlx_companion.errors import AdapterError, DataError, StoreError
from mlx_companion.store import Store, Version


def adapter(store: Store, name: str, content: bytes = b"weights") -> tuple[Path, str]:
    folder = store.adapters_dir / name
    folder.mkdir()
    (folder / "adapters.safetensors").write_bytes(content)
    return folder, hashlib.sha256(content).hexdigest()


def versions(store: Store, count: int) -> list[str]:
    return [store.versions.create(name=f"n{i}").id for i in range(count)]


def active(store: Store) -> str | None:
    version = store.versions.active()
    return version and version.id


def test_a_version_is_recorded_with_all_it_needs(store: Store) -> None:
    base = store.versions.ensure_base("base-hash", "smollm2-135m")
    folder, sha = adapter(store, "first")
    made = store.versions.create(
        name="round 1", parent=base.id, adapter_path=folder, adapter_sha256=sha,
        base_sha256="base-hash", model_source="smollm2-135m", metrics={"good": 0.6},
        round_id="r1",
    )  # fmt: skip
    assert (made.id, made.number, made.parent, made.active) == ("v0002", 2, "v0001", False)
    assert (made.adapter_path, made.metrics) == (folder, {"good": 0.6})
    again = store.versions.create(adapter_path=folder, adapter_sha256=sha, round_id="r1")
    assert again == made
    assert store.versions.all() == [base, made]
    with pytest.raises(StoreError, match=r"no version 'v0009'; the last ones are: v0001, v0002"):
        store.versions.create(parent="v0009")


def test_the_base_is_made_and_activated_once(store: Store) -> None:
    assert store.versions.active() is None
    base = store.versions.ensure_base("hash", "model")
    assert base.active
    assert store.versions.ensure_base("hash", "model") == base
    other = store.versions.ensure_base("other hash", "model 2")
    assert (other.id, other.active, active(store)) == ("v0002", False, "v0001")
    assert [event.reason for event in store.versions.history()] == ["first use of the base model"]


def test_many_threads_make_one_base(store: Store) -> None:
    made: list[str] = []
    threads = [
        threading.Thread(target=lambda: made.append(store.versions.ensure_base("h", "m").id))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == ["v0001"] * 8
    assert len(store.versions.history()) == 1


def test_the_database_itself_allows_one_active_version(store: Store) -> None:
    first, second = versions(store, 2)
    store.versions.activate(first, "start")
    with pytest.raises(StoreError, match="UNIQUE"):
        store.database.execute("UPDATE versions SET active = 1 WHERE id = ?", (second,))
    assert active(store) == first


def test_activating_moves_the_pointer_and_writes_history(store: Store) -> None:
    first, second = versions(store, 2)
    store.versions.activate(first, "start")
    store.versions.activate(second, "better by 12 points")
    store.versions.activate(second, "again")
    assert active(store) == second
    assert [
        (event.from_version, event.to_version, event.action, event.reason)
        for event in store.versions.history()
    ] == [
        (None, first, "promote", "start"),
        (first, second, "promote", "better by 12 points"),
    ]
    with pytest.raises(StoreError, match="no version 'v0042'"):
        store.versions.activate("v0042", "typo")
    assert active(store) == second


def test_a_pointer_without_its_line_in_the_history_is_impossible(store: Store) -> None:
    first, second = versions(store, 2)
    store.versions.activate(first, "start")
    with pytest.raises(DataError, match="surrogate"):
        store.versions.activate(second, "a reason that cannot be stored: \ud800")
    assert active(store) == first
    assert len(store.versions.history()) == 1


def test_going_back_goes_further_back_each_time(store: Store) -> None:
    a, b, c, d = versions(store, 4)
    for version in (a, b, c):
        store.versions.activate(version, "up")
    assert store.versions.previous() == b
    assert store.versions.rollback("bad").id == b
    assert store.versions.rollback("worse").id == a
    with pytest.raises(StoreError, match=f"{a} is the first version.*nothing to go back"):
        store.versions.rollback("too far")
    store.versions.activate(d, "up")
    assert store.versions.previous() == a
    assert [event.action for event in store.versions.history()] == [
        "promote", "promote", "promote", "rollback", "rollback", "promote",
    ]  # fmt: skip


def test_a_version_that_was_active_twice(store: Store) -> None:
    a, b, c = versions(store, 3)
    for version in (a, b, a, c):
        store.versions.activate(version, "up")
    assert [store.versions.rollback("back").id for _ in range(3)] == [a, b, a]
    with pytest.raises(StoreError, match="nothing to go back"):
        store.versions.rollback("back")


def test_going_back_to_a_chosen_version(store: Store) -> None:
    a, b, c, never = versions(store, 4)
    for version in (a, b, c):
        store.versions.activate(version, "up")
    assert store.versions.rollback("far", to=a).id == a
    with pytest.raises(StoreError, match="nothing to go back"):
        store.versions.previous()
    store.versions.activate(b, "up")
    assert store.versions.rollback("sideways", to=never).id == never
    assert store.versions.previous() == a


def test_without_history_the_parent_is_the_way_back(store: Store) -> None:
    with pytest.raises(StoreError, match="no version is active"):
        store.versions.rollback("nothing yet")
    base = store.versions.create(name="base")
    child = store.versions.create(parent=base.id)
    store.versions.activate(child.id, "imported")
    assert store.versions.rollback("bad").id == base.id
    with pytest.raises(StoreError, match="nothing to go back"):
        store.versions.rollback("again")


def deployed(store: Store) -> Version:
    base = store.versions.ensure_base("h", "m")
    folder, sha = adapter(store, "first")
    made = store.versions.create(parent=base.id, adapter_path=folder, adapter_sha256=sha)
    return store.versions.activate(made.id, "gate passed")


@pytest.mark.parametrize("damage", ["file", "folder", "bytes"])
def test_a_broken_adapter_is_never_activated(store: Store, damage: str) -> None:
    made = deployed(store)
    assert made.adapter_path is not None
    store.versions.rollback("for the test")
    weights = made.adapter_path / "adapters.safetensors"
    if damage == "bytes":
        weights.write_bytes(b"weightz")
    elif damage == "file":
        weights.unlink()
    else:
        shutil.rmtree(made.adapter_path)
    expected = "is damaged.*SHA-256" if damage == "bytes" else "is missing.*does not exist"
    with pytest.raises(AdapterError, match=f"{made.id} {expected}"):
        store.versions.activate(made.id, "again")
    assert active(store) == "v0001"
    assert len(store.versions.history()) == 3
    with pytest.raises(AdapterError):
        store.versions.rollback("to it", to=made.id)
    assert store.versions.activate(made.id, "I know", verify=False).active


def test_an_adapter_may_be_a_file_or_lie_elsewhere(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "elsewhere.safetensors"
    file.write_bytes(b"x")
    sha = hashlib.sha256(b"x").hexdigest()
    made = store.versions.create(adapter_path=file, adapter_sha256=sha)
    assert store.versions.verify(made.id).adapter_path == file


def test_the_whole_folder_can_be_moved(store: Store, tmp_path: Path) -> None:
    made = deployed(store)
    store.close()
    shutil.move(store.folder, tmp_path / "moved")
    with Store(tmp_path / "moved" / "companion.db") as moved:
        version = moved.versions.verify(made.id)
        assert version.adapter_path == tmp_path / "moved" / "adapters" / "first"


def test_deploying_is_one_transaction_with_what_belongs_to_it(store: Store) -> None:
    base = store.versions.ensure_base("h", "m")
    current = store.rounds.begin()
    with pytest.raises(RuntimeError, match="killed"), store.transaction():
        made = store.versions.create(parent=base.id, round_id=current.id)
        store.versions.activate(made.id, "gate passed")
        store.rounds.finish(current.id, "deployed")
        raise RuntimeError("killed")
    assert active(store) == base.id
    assert store.versions.all() == [base]
    assert store.rounds.unfinished() == current
