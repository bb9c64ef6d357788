"""Export to JSONL and import from it."""

from __future__ import annotations

import contextlib
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_companion.errors import DataError, StoreError
from mlx_companion.store import (
    ImportReport,
    Judgement,
    NewEntry,
    NewExample,
    ReplayMember,
    Store,
    export,
    import_,
)
from mlx_companion.store.kinds import KINDS

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
OBJECT = st.dictionaries(TEXT, JSON, max_size=3)
_number = itertools.count()


def fill(store: Store, text: str = "x", extra: dict[str, Any] | None = None) -> None:
    """At least one row in every table, with `text` wherever text may be."""
    extra = extra or {}
    prompt = f"?{text}"
    said = store.interactions.add(prompt, text, system=text, source=f"s{text}", meta=extra)
    store.interactions.add("second", "reply", conversation_id=said.conversation_id)
    store.feedback.add(said.id, "up")
    store.feedback.add(said.id, "edit", prompt)
    first = store.rounds.begin(config=extra, seed=5)
    store.rounds.begin_step(first.id, prompt)
    store.rounds.finish_step(first.id, prompt, extra)
    store.rounds.begin_step(first.id, "gate")
    store.rounds.fail_step(first.id, "gate", text)
    made = store.examples.add_many(
        first.id,
        [NewExample(prompt, text, n, topic=text, template=text, sampling=extra) for n in (0, 1)]
        + [NewExample(prompt, text, 0, purpose="gate", model_version="v0002@0.5")],
    )
    store.examples.judge_many([Judgement(made[0].id, "good", extra, text)])
    store.replay.set(first.id, [ReplayMember(made[0].id, "new", count=2)])
    run = store.runs.start(prompt, config=extra, seed=1, data_hash=text)
    store.runs.log(run.id, 1, {prompt: 0.1, "broken": float("nan")})
    store.runs.finish(run.id, "done", extra)
    base = store.versions.ensure_base("hash", text)
    tuned = store.versions.create(
        parent=base.id, metrics=extra, adapter_path=store.adapters_dir / "a", round_id=first.id
    )
    store.versions.activate(tuned.id, text, verify=False)
    store.versions.rollback(text)
    store.ledger.record(text, first.id, 0.01, p=0.5, outcome=text)
    store.rounds.finish(first.id, "rejected", extra)
    store.settings.set(prompt, extra)
    store.context.add_many(
        [
            NewEntry(f"u{n}{text}", f"s{text}", f"k{text}", [extra, text], 0.9, evidence=text).row()
            for n in range(3)
        ]
    )
    for entry in store.context.with_status("queued", 2):
        store.context.decide(entry, "applied", text)
    store.module_states.set(f"m{text}", [extra, text])
    pack = store.module_versions.add(
        f"m{text}", text, store.folder / "packs" / "m", "hash", metrics=extra, personal=True
    )
    store.module_versions.move(pack.module, pack.id, "activate", text)
    store.traffic.add("m", text, {"query": text}, extra, 0.5, label=text)


def rows(file: Path) -> list[str]:
    """The lines of an export but for its header, which holds the time."""
    header, *rest = file.read_bytes().decode().split("\n")
    assert json.loads(header)["kind"] == "header"
    return rest


def fresh(tmp_path: Path) -> Path:
    return tmp_path / f"{next(_number)}" / "companion.db"


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(text=TEXT, extra=OBJECT)
def test_everything_comes_through_unchanged(
    tmp_path: Path, text: str, extra: dict[str, Any]
) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    with Store(fresh(tmp_path)) as source, Store(fresh(tmp_path)) as target:
        fill(source, text, extra)
        counts = export(source, first)
        assert set(counts) == set(KINDS)
        assert min(counts.values()) > 0
        report = import_(target, first)
        assert dict(report.added) == counts
        assert (dict(report.existing), report.conflicts) == ({}, [])
        assert export(target, second) == counts
        assert rows(first) == rows(second)
        again = import_(target, first)
        assert (dict(again.added), again.conflicts) == ({}, [])
        assert dict(again.existing) == counts
        assert target.versions.active() is not None
        assert list(target.interactions.iter()) == list(source.interactions.iter())
        assert target.rounds.all() == source.rounds.all()
        assert target.versions.history() == source.versions.history()


def test_long_and_odd_text_comes_through(store: Store, tmp_path: Path) -> None:
    odd = "\0\u2028\r\n\ufeff\U0010ffff" + "ü" * 100_000
    fill(store, odd)
    export(store, tmp_path / "data.jsonl")
    with Store(fresh(tmp_path)) as target:
        import_(target, tmp_path / "data.jsonl")
        assert list(target.interactions.iter()) == list(store.interactions.iter())


def test_an_export_of_one_kind_brings_what_it_refers_to(store: Store, tmp_path: Path) -> None:
    fill(store)
    file = tmp_path / "data.jsonl"
    assert set(export(store, file, ["feedback"])) == {"feedback", "interaction"}
    assert set(export(store, file, ["replay"])) == {"replay", "example", "round"}
    with Store(fresh(tmp_path)) as target:
        import_(target, file)
        assert target.examples.accepted() == store.examples.accepted()
    with pytest.raises(DataError, match="no kind 'dreams'; known are: setting, interaction"):
        export(store, file, ["dreams"])


def test_an_export_never_replaces_the_database(store: Store) -> None:
    for name in ("companion.db", "companion.db-wal"):
        with pytest.raises(DataError, match="overwrite the database"):
            export(store, store.path.with_name(name))


def test_an_export_is_of_one_moment(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_companion.store import transfer

    fill(store)
    written = transfer.line_of

    def write_meanwhile(kind: Any, row: Any) -> Any:
        store.interactions.add("meanwhile", "reply")
        return written(kind, row)

    monkeypatch.setattr(transfer, "line_of", write_meanwhile)
    assert export(store, tmp_path / "data.jsonl")["interaction"] == 2
    assert store.interactions.count() > 10


def test_two_stores_are_merged_and_neither_loses(store: Store, tmp_path: Path) -> None:
    fill(store)
    file = tmp_path / "data.jsonl"
    with Store(fresh(tmp_path)) as other:
        fill(other, "other")
        export(other, file)
        before = store.versions.all(), store.versions.history(), store.versions.active()
        report = import_(store, file)
        assert store.interactions.count() == 4
        assert [one.number for one in store.rounds.all()] == [1, 2]
        # Versions share their numbers: ours stay, and so does the way back.
        assert (store.versions.all(), store.versions.history(), store.versions.active()) == before
        assert sum("version v000" in line for line in report.conflicts) == 2
        assert sum("another history" in line for line in report.conflicts) == 3
        assert len(report.conflicts) == 5
        again = import_(store, file)
        assert not again.added
        assert again.conflicts == report.conflicts


def test_an_imported_version_is_not_activated(store: Store, tmp_path: Path) -> None:
    base = store.versions.ensure_base("hash", "model")
    file = tmp_path / "data.jsonl"
    export(store, file)
    with Store(fresh(tmp_path)) as other:
        import_(other, file)
        assert other.versions.active() == base
        tuned = other.versions.create(parent=base.id)
        other.versions.activate(tuned.id, "better there")
        export(other, file)
    report = import_(store, file)
    assert report.added == {"version": 1}
    assert [one.split(" belongs")[1] for one in report.conflicts] == [
        " to another history of versions; kept as it is"
    ]
    assert store.versions.active() == base
    assert store.versions.activate(tuned.id, "better here too").active


def test_a_changed_row_is_reported_and_kept(store: Store, tmp_path: Path) -> None:
    run = store.runs.start("finetune")
    file = tmp_path / "data.jsonl"
    export(store, file)
    done = store.runs.finish(run.id)
    report = import_(store, file)
    assert report.conflicts == [f"run {run.id} is here with another content; kept as it is"]
    assert store.runs.get(run.id) == done


def test_the_same_sample_under_two_ids_is_kept_once(store: Store, tmp_path: Path) -> None:
    # One round went on in two places, and both sampled the same prompt.
    file, shared = tmp_path / "data.jsonl", store.rounds.begin()
    with Store(fresh(tmp_path)) as other:
        export(store, file)
        import_(other, file)
        theirs = other.examples.add_many(shared.id, [NewExample("p", "theirs", verdict="good")])
        other.replay.set(shared.id, [ReplayMember(theirs[0].id, "new")])
        export(other, file)
    ours = store.examples.add_many(shared.id, [NewExample("p", "ours", verdict="good")])
    report = import_(store, file)
    assert store.examples.accepted() == ours
    assert [line.split()[0] for line in report.conflicts] == ["example", "replay"]


def chat(file: Path, *lines: object) -> Path:
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    file.write_text(text + "\n", encoding="utf-8")
    return file


def test_plain_chat_becomes_interactions(store: Store, tmp_path: Path) -> None:
    file = chat(
        tmp_path / "chat.jsonl",
        {"prompt": "Hello?", "response": "Hi.", "feedback": "up", "score": 3},
        {"prompt": "Hello?", "completion": "Hi."},
        {"prompt": "Bye?", "response": "So long.", "system": "Be brief.",
         "feedback": {"edit": "Bye."}, "created_at": "2025-05-05T05:05:05Z"},
    )  # fmt: skip
    report = import_(store, file)
    assert report.added == {"interaction": 2, "feedback": 2}
    assert report.existing == {"interaction": 1}
    bye, hello = store.interactions.iter()
    assert (bye.prompt, bye.response, bye.system) == ("Bye?", "So long.", "Be brief.")
    assert (bye.created_at, bye.source) == ("2025-05-05T05:05:05.000000+00:00", "import")
    states = store.feedback.states()
    assert (states[bye.id].edited, states[hello.id].rating) == ("Bye.", "up")
    again = import_(store, file)
    assert not again.added
    assert not again.conflicts


def test_a_conversation_that_grew_adds_only_the_new_turns(store: Store, tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "One"},
        {"role": "user", "content": "and a half?"},
        {"role": "assistant", "content": "1.5"},
        {"role": "user", "content": "Two?"},
    ]
    more = [*turns, {"role": "assistant", "content": "2"}, {"role": "user", "content": "Bye"}]
    other = [*turns[1:], {"role": "assistant", "content": "2"}]
    assert import_(store, chat(tmp_path / "a.jsonl", {"messages": turns})).added.total() == 1
    report = import_(store, chat(tmp_path / "b.jsonl", {"messages": more}))
    assert (report.added.total(), report.existing.total()) == (1, 1)
    first, second = store.interactions.iter()
    assert (first.prompt, first.response, first.system) == ("One\n\nand a half?", "1.5", "Be kind.")
    assert (second.prompt, second.response) == ("Two?", "2")
    assert second.conversation_id == first.conversation_id
    assert (first.meta, second.meta) == ({}, {"follows": first.id})
    # The same words without the system prompt are another conversation.
    assert import_(store, chat(tmp_path / "c.jsonl", {"messages": other})).added.total() == 2


GOOD = b'{"prompt": "fine", "response": "fine"}\n'
INTERACTION: dict[str, Any] = {
    "id": "a", "created_at": "2026-01-01T00:00:00+00:00", "conversation_id": "c",
    "prompt": "p", "response": "r", "source": "chat",
}  # fmt: skip
FEEDBACK: dict[str, Any] = {
    "id": "f", "interaction_id": "a", "kind": "up", "created_at": "2026-01-01",
}  # fmt: skip


def row(table: str, values: dict[str, Any], /, **changes: Any) -> bytes:
    changed = {k: v for k, v in {**values, **changes}.items() if v != "absent"}
    return json.dumps({"kind": table, "row": changed}).encode()


@pytest.mark.parametrize(
    ("line", "field", "problem"),
    [
        (b"{not json}", None, "not JSON"),
        (b'{"prompt": "half', None, "not JSON"),
        (b'"text"', None, "expected one JSON object"),
        (b'{"prompt": "caf\xe9", "response": "x"}', None, "not UTF-8 .byte 16"),
        (b"[" * 100_000, None, "nested too deeply"),
        (b'{"prompt": "x", "response": "x", "n": NaN}', None, "NaN is not JSON"),
        (b'{"text": "x"}', "prompt", "neither 'messages' nor 'prompt'"),
        (b'{"prompt": "x"}', "response", "missing"),
        (b'{"prompt": " ", "response": "x"}', "prompt", "empty"),
        (b'{"prompt": 7, "response": "x"}', "prompt", "expected text, got int"),
        (b'{"prompt": "x", "completion": ""}', "completion", "empty"),
        (b'{"prompt": "\\ud800", "response": "x"}', "prompt", "lone surrogate"),
        (b'{"prompt": "x", "response": "x", "feedback": "meh"}', "feedback", "expected"),
        (b'{"prompt": "x", "response": "x", "feedback": {"edit": ""}}', "feedback.edit", "empty"),
        (b'{"prompt": "x", "response": "x", "created_at": "noon"}', "created_at", "not a time"),
        (b'{"messages": "x"}', "messages", "expected a list"),
        (b'{"messages": []}', "messages", "no reply"),
        (b'{"messages": ["x"]}', "messages[0]", "expected an object"),
        (b'{"messages": [{"role": "robot", "content": "x"}]}', "messages[0].role", "one of"),
        (b'{"messages": [{"role": "user"}]}', "messages[0].content", "empty"),
        (b'{"messages": [{"role": "assistant", "content": "x"}]}', "messages[0].role", "before"),
        (b'{"kind": "dream", "row": {}}', "kind", "none of"),
        (b'{"kind": ["header"], "row": {}}', "kind", "none of"),
        (b'{"kind": "interaction"}', "row", "expected an object"),
        (b'{"kind": "header", "row": {"format": "other"}}', "format", "expected the format"),
        (b'{"kind": "header", "row": {"format": "mlx-companion", "version": 2}}', "version",
         "upgrade"),
        (row("interaction", INTERACTION, prompt=""), "prompt", "empty"),
        (row("interaction", INTERACTION, prompt="absent"), "prompt", "missing"),
        (row("interaction", INTERACTION, source=None), "source", "null"),
        (row("interaction", INTERACTION, mood="good"), "mood", "has only: id, created_at"),
        (row("interaction", INTERACTION, meta=[]), "meta", "expected an object, got a list"),
        (row("interaction", INTERACTION, created_at="x"), "created_at", "not a time"),
        (row("interaction", INTERACTION, response="\ud800"), "response", "surrogate"),
        (row("feedback", FEEDBACK), "interaction_id", "no interaction 'a' in the file or"),
        (row("feedback", FEEDBACK, kind="love"), "kind", "none of 'up', 'down', 'edit'"),
        (row("metric", {"run_id": "r", "step": 1.5, "name": "n", "value": 1}), "step", "whole"),
        (row("metric", {"run_id": "r", "step": 2**70, "name": "n", "value": 1}), "step", "64 bits"),
        (row("metric", {"run_id": "r", "step": 1, "name": "n", "value": "x"}), "value", "a number"),
        (row("metric", {"run_id": "r", "step": 1, "name": "n", "value": 10**400}), "value",
         "too large"),
        (row("round", {"id": "r", "number": True, "started_at": "2026-01-01"}), "number",
         "got true or false"),
    ],
    ids=lambda value: value.decode("latin-1")[:60] if isinstance(value, bytes) else "",
)  # fmt: skip
def test_a_bad_line_is_named_and_nothing_is_written(
    store: Store, tmp_path: Path, line: bytes, field: str | None, problem: str
) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_bytes(GOOD + b"\n" + line + b"\n" + GOOD)
    with pytest.raises(DataError, match=problem) as caught:
        import_(store, file)
    assert (caught.value.path, caught.value.line, caught.value.field) == (file, 3, field)
    assert str(caught.value).startswith(f"{file}:3: ")
    assert store.interactions.count() == 0


def test_what_only_the_database_can_refuse_is_undone_too(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_bytes(
        GOOD + row("interaction", INTERACTION) + b"\n" + row("feedback", FEEDBACK, edited="x")
    )
    with pytest.raises(DataError, match="CHECK constraint") as caught:
        import_(store, file)
    assert caught.value.line == 3
    assert store.interactions.count() == 0


def test_lines_may_come_in_any_order(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_bytes(
        b"\xef\xbb\xbf" + row("feedback", FEEDBACK) + b"\r\n" + row("interaction", INTERACTION)
    )
    assert import_(store, file).added == {"feedback": 1, "interaction": 1}
    assert store.feedback.state("a").rating == "up"


def test_an_import_of_nothing_or_of_no_file(store: Store, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_bytes(b"\n \n")
    assert import_(store, tmp_path / "empty.jsonl") == ImportReport()
    for missing in (tmp_path / "missing.jsonl", tmp_path):
        with pytest.raises(StoreError, match="cannot read"):
            import_(store, missing)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.binary(max_size=80) | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_content_breaks_the_import(store: Store, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "any.jsonl"
    file.write_bytes(content)
    # Anything but these two outcomes, such as an error of another type, fails the test.
    with contextlib.suppress(DataError):
        assert import_(store, file) == ImportReport()
