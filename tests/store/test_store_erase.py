"""Deleting everything, for good."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_companion.errors import StoreError
from mlx_companion.store import NewEntry, NewExample, Store, delete_everything, forget

SECRET = "the-secret-of-the-house"


def tell(store: Store) -> None:
    for number in range(50):
        said = store.interactions.add(f"{SECRET} {number}", SECRET * 20)
        store.feedback.add(said.id, "edit", SECRET)
    begun = store.rounds.begin(config={"secret": SECRET})
    store.examples.add_many(begun.id, [NewExample(SECRET, SECRET)])
    base = store.versions.ensure_base("hash", SECRET)
    tuned = store.versions.create(parent=base.id, adapter_path=store.adapters_dir / "one")
    (store.adapters_dir / "one").mkdir()
    (store.adapters_dir / "one" / "adapters.safetensors").write_text(SECRET)
    (store.folder / "rounds" / "0001").mkdir(parents=True)
    (store.folder / "rounds" / "0001" / "report.html").write_text(SECRET)
    store.versions.activate(tuned.id, SECRET)
    store.settings.set("secret", SECRET)
    store.backup()
    store.path.with_name(f"{store.path.name}.damaged-2026").write_text(SECRET)


def traces(folder: Path) -> list[Path]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return [file for file in files if SECRET.encode() in file.read_bytes()]


def test_no_trace_is_left_in_the_folder(store: Store) -> None:
    tell(store)
    others = [
        store.folder / name for name in ("mine.txt", "adapters/mine/a", "rounds/notes", "logs/a")
    ]
    for other in others:
        other.parent.mkdir(exist_ok=True)
        other.write_text("untouched")
    assert len(traces(store.folder)) >= 4
    with store.transaction():
        for _ in range(400):
            store.interactions.add(SECRET, "x" * 1000)
    counts = delete_everything(store, confirm=True)
    assert store.path.stat().st_size < 300_000
    assert (counts["interaction"], counts["feedback"]) == (450, 50)
    assert (counts["example"], counts["version"], counts["setting"]) == (1, 2, 1)
    assert (counts["files"], counts["backups"]) == (2, 2)
    store.close()
    assert traces(store.folder) == []
    assert [other.read_text() for other in others] == ["untouched"] * 4
    assert not (store.folder / "backups").exists()


def test_what_kills_left_of_copies_goes_too(tmp_path: Path) -> None:
    with Store(tmp_path / "mine [1].db") as store:
        name = store.backup().name
        left = [
            f"backups/.tmp-0bbfd16a-99999-abcdef01-{name}",
            f"backups/.tmp-0bbfd16a-99999-abcdef01-{name}-journal",
            ".tmp-0bbfd16a-99999-abcdef01-mine [1].db",
            "mine [1].db.damaged-20260301T120000",
            "mine [1].db.damaged-20260301T120000-wal",
        ]
        others = ["mine 1.db.damaged-2026", "mine [1].db.txt", "backups/other-backup.db"]
        for path in (*left, *others):
            (tmp_path / path).write_text(SECRET)
        assert forget(store)["backups"] == len(left) + 1
        assert sorted(traces(tmp_path)) == sorted(tmp_path / path for path in others)
        store.check()


def test_in_the_user_data_folder_whole_folders_go() -> None:
    with Store() as store:
        tell(store)
        for name in ("adapters", "rounds", "logs"):
            (store.folder / name).mkdir(exist_ok=True)
            (store.folder / name / "left by a killed round").write_text(SECRET)
        assert delete_everything(store, confirm=True)["files"] == 5
        assert {entry.name for entry in store.folder.iterdir() if entry.is_dir()} == set()
    assert traces(store.folder) == []


def test_a_path_outside_or_the_folder_itself_is_never_deleted(store: Store, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for path in (outside, store.folder, store.folder.parent):
        store.versions.create(adapter_path=path)
    store.database.execute("UPDATE versions SET adapter_path = '../outside' WHERE number = 2")
    delete_everything(store, confirm=True)
    assert outside.is_dir()
    assert store.path.is_file()


def test_the_store_can_be_used_again(store: Store) -> None:
    tell(store)
    delete_everything(store, confirm=True)
    assert store.versions.active() is None
    assert store.interactions.count() == 0
    store.check()
    store.interactions.add("a new start", "yes")
    assert store.versions.ensure_base("h", "m").id == "v0001"
    assert delete_everything(store, confirm=True)["interaction"] == 1


@pytest.mark.parametrize("confirm", [False, "yes", 1])
def test_it_must_be_confirmed(store: Store, confirm: object) -> None:
    tell(store)
    with pytest.raises(StoreError, match="must be confirmed"):
        delete_everything(store, confirm=confirm)  # type: ignore[arg-type]
    assert store.interactions.count() == 50


def test_not_while_a_round_is_running(store: Store) -> None:
    tell(store)
    with store.exclusive(), pytest.raises(StoreError, match="already running"):
        delete_everything(store, confirm=True)
    assert store.interactions.count() == 50


def test_a_reader_is_named_and_the_rest_can_be_done_later(store: Store) -> None:
    with Store(store.path, busy_seconds=0.05) as quick:
        tell(quick)
        with store.database.snapshot() as reader:
            reader.execute("SELECT count(*) FROM interactions").fetchone()
            with pytest.raises(StoreError, match="another process is reading"):
                delete_everything(quick, confirm=True)
        assert quick.interactions.count() == 0
        delete_everything(quick, confirm=True)
    store.close()
    assert traces(store.folder) == []


def test_a_linked_folder_is_not_followed(store: Store, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").write_text("kept")
    store.rounds.begin()
    (store.folder / "rounds").mkdir()
    (store.folder / "rounds" / "0001").symlink_to(elsewhere)
    assert delete_everything(store, confirm=True)["files"] == 0
    assert (elsewhere / "kept").read_text() == "kept"


def learn(store: Store) -> None:
    """Something learned in every place where that may lie."""
    rows = [
        NewEntry(f"u{n}", "tracker", f"k{n}", f"{SECRET} {n}", evidence=SECRET).row()
        for n in range(300)
    ]
    store.context.add_many(rows)
    for entry in store.context.with_status("queued"):
        store.context.decide(entry, "applied", SECRET)
    store.module_states.set("drift_monitor", {"baseline": [SECRET]})
    store.traffic.add("context_tracker", "1", SECRET, {"text": SECRET}, 0.1)
    for name, personal in (("mine", True), ("public", False)):
        folder = store.folder / "packs" / name
        folder.mkdir(parents=True)
        (folder / "rules.yaml").write_text(SECRET if personal else "rules")
        store.module_versions.add("m", name, folder, "hash", metrics={}, personal=personal)
    store.backup()


def test_what_was_learned_is_forgotten_without_a_trace(store: Store) -> None:
    said = store.interactions.add("What is a fjord?", "A glacier's valley.")
    store.settings.set("threshold", 0.5)
    learn(store)
    assert len(traces(store.folder)) >= 3
    counts = forget(store)
    assert traces(store.folder) == []
    assert (counts["context_update"], counts["module_state"], counts["module_traffic"]) == (
        300, 1, 1,
    )  # fmt: skip
    assert (counts["module_version"], counts["files"], counts["backups"]) == (1, 1, 1)
    assert store.interactions.get(said.id) == said
    assert store.settings.get("threshold") == 0.5
    assert [version.label for version in store.module_versions.all()] == ["public"]
    assert (store.folder / "packs" / "public" / "rules.yaml").read_text() == "rules"
    store.check()
    assert forget(store)["context_update"] == 0


def test_conversations_go_when_asked_with_all_that_was_made_of_them(store: Store) -> None:
    for number in range(20):
        said = store.interactions.add(f"{SECRET} {number}", SECRET * 20)
        store.feedback.add(said.id, "edit", SECRET)
    begun = store.rounds.begin()
    store.rounds.begin_step(begun.id, "collect")
    store.rounds.finish_step(begun.id, "collect", {"prompts": [SECRET]})
    store.examples.add_many(begun.id, [NewExample(SECRET, SECRET)])
    (store.folder / "rounds" / "0001").mkdir(parents=True)
    (store.folder / "rounds" / "0001" / "report.html").write_text(SECRET)
    base = store.versions.ensure_base("hash", "model")
    learn(store)
    counts = forget(store, conversations=True)
    assert traces(store.folder) == []
    assert (counts["interaction"], counts["example"], counts["round"]) == (20, 1, 1)
    assert store.versions.active() == base


def test_logs_in_the_user_data_folder_are_forgotten() -> None:
    with Store() as store:
        learn(store)
        for name in ("logs", "reports"):
            (store.folder / name).mkdir(exist_ok=True)
            (store.folder / name / "one").write_text(SECRET)
        forget(store)
        assert traces(store.folder) == [store.folder / "reports" / "one"]
        forget(store, conversations=True)
        assert traces(store.folder) == []


def test_nothing_outside_is_forgotten(store: Store, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    store.module_versions.add("m", "1", outside, "hash", metrics={}, personal=True)
    forget(store, conversations=True)
    assert outside.is_dir()
    with store.exclusive(), pytest.raises(StoreError, match="already running"):
        forget(store)
