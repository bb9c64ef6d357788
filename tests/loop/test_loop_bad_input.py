"""What can be wrong from outside: damaged adapters, other models, absurd prompts, bad settings.

Each must give a clear error, lose nothing, and leave a companion that works once the cause
is gone. A full disk and failing steps are in `test_loop_failures.py`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from loop_world import PROFILE, QUICK, one_round, settings
from tiny import tiny_llama

from mlx_companion.errors import (
    AdapterError,
    ConfigError,
    DataError,
    GenerationError,
    LoopError,
    ModelNotFoundError,
)
from mlx_companion.loop import LoopConfig, ServedModel, improve, promote, rollback
from mlx_companion.loop.chat import Chat
from mlx_companion.loop.packaged import load_prompts
from mlx_companion.runtime.config import load_config
from mlx_companion.store import Store, import_

WEIGHTS, CONFIG = "adapters.safetensors", "adapter_config.json"


def flip_a_byte(adapter: Path) -> None:
    data = bytearray((adapter / WEIGHTS).read_bytes())
    data[-100] ^= 0x40
    (adapter / WEIGHTS).write_bytes(data)


def truncate(adapter: Path) -> None:
    data = (adapter / WEIGHTS).read_bytes()
    (adapter / WEIGHTS).write_bytes(data[: len(data) // 2])


def empty(adapter: Path) -> None:
    (adapter / WEIGHTS).write_bytes(b"")


def made_for_another_base(adapter: Path) -> None:
    head = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps(head | {"base_sha256": "0" * 64}))


def spoil_config(adapter: Path) -> None:
    (adapter / CONFIG).write_text('{"format": "mlx-companion-lora", "format_version": 1')


def remove_config(adapter: Path) -> None:
    (adapter / CONFIG).unlink()


DAMAGES = {
    flip_a_byte: "corrupt or was replaced",
    truncate: "corrupt or was replaced",
    empty: "corrupt or was replaced",
    made_for_another_base: "was made for the base model 000000000000",
    spoil_config: "cannot be read",
    remove_config: "is missing",
    shutil.rmtree: "no adapter folder",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_adapter_is_refused_and_can_be_rolled_back(
    deployed: Path, damage: Callable[[Path], None]
) -> None:
    whole = shutil.copytree(deployed / "adapters" / "round-0001", deployed / "kept")
    damage(deployed / "adapters" / "round-0001")
    with Store(deployed / "companion.db") as store:
        before = store.versions.all(), store.versions.history(), store.rounds.all()
        for attempt in (ServedModel.open, lambda store, config: improve(config, store=store)):
            with pytest.raises(AdapterError, match=DAMAGES[damage]) as caught:
                attempt(store, settings(deployed))
            assert "round-0001" in str(caught.value)
        assert (store.versions.all(), store.versions.history(), store.rounds.all()) == before
        assert rollback(store).id == "v0001"
        assert ServedModel.open(store, settings(deployed)).version_id == "v0001"
        # The folder was put back: the version is as good as before.
        shutil.rmtree(deployed / "adapters" / "round-0001", ignore_errors=True)
        shutil.copytree(whole, deployed / "adapters" / "round-0001")
        promote(store, "v0002")
        assert ServedModel.open(store, settings(deployed)).check_adapter_acts() > 0


def test_damaged_version_is_not_promoted(deployed: Path) -> None:
    with Store(deployed / "companion.db") as store:
        rollback(store)
        flip_a_byte(deployed / "adapters" / "round-0001")
        with pytest.raises(AdapterError, match="the adapter of v0002 is damaged"):
            promote(store, "v0002")
        assert store.versions.active().id == "v0001"


def test_candidate_damaged_before_the_gate_ends_the_round(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_companion.loop import rounds

    def spoiled_gate(ctx: rounds.RoundContext) -> dict[str, object]:
        truncate(ctx.folder / "train" / "adapter")
        return gate(ctx)

    gate = rounds.STEPS["gate"]
    monkeypatch.setitem(rounds.STEPS, "gate", spoiled_gate)
    with pytest.raises(AdapterError, match="corrupt or was replaced"):
        one_round(world, **QUICK)
    monkeypatch.undo()
    with Store(world / "companion.db") as store:
        assert store.rounds.all()[0].outcome == "failed"
        assert store.versions.active().id == "v0001"
    assert one_round(world, **QUICK).report["round"] == 2


def test_missing_model_is_named_and_nothing_is_stored(tmp_path: Path) -> None:
    (tmp_path / "profile.yaml").write_text(PROFILE)
    with Store(tmp_path / "companion.db") as store:
        for attempt in (ServedModel.open, lambda store, config: improve(config, store=store)):
            with pytest.raises(ModelNotFoundError, match="llama"):
                attempt(store, settings(tmp_path))
        assert store.versions.all() == []
        assert store.rounds.all() == []


def test_another_model_than_the_versions_is_refused(deployed: Path) -> None:
    other = str(tiny_llama(deployed / "other", seed=1))
    with Store(deployed / "companion.db") as store:
        before = store.versions.all()
        for attempt in (ServedModel.open, lambda store, config: improve(config, store=store)):
            with pytest.raises(LoopError, match=r"belong to the model .*llama.*not to .*other"):
                attempt(store, settings(deployed, model=other))
        # Not even a version for the other base is left behind.
        assert store.versions.all() == before
        assert len(store.rounds.all()) == 1
        # A plain base has no adapter that could tell.
        rollback(store)
        with pytest.raises(LoopError, match="--data-dir"):
            ServedModel.open(store, settings(deployed, model=other))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"prompt": "a", "response": "b"}\n{"prompt": "c", ', ":2: .*JSON"),
        (b'{"prompt": "a", "response": "b"}\n\xff\xfe{}\n', ":2: .*UTF-8"),
        (b'{"prompt": "a", "response": "b"}\n{"prompt": "", "response": "b"}\n', ":2: .*empty"),
        (b'{"prompt": "a", "response": "b"}\n{"prompt": " \\n", "response": "b"}\n', ":2: .*empty"),
        (b'{"prompt": "a", "response": "b"}\n[1, 2]\n', ":2: "),
    ],
    ids=["cut off", "not UTF-8", "empty prompt", "blank prompt", "no object"],
)
def test_malformed_import_names_the_line_and_stores_nothing(
    world: Path, content: bytes, said: str
) -> None:
    file = world / "chats.jsonl"
    file.write_bytes(content)
    with Store(world / "companion.db") as store:
        before = store.interactions.count()
        with pytest.raises(DataError, match=said):
            import_(store, file)
        assert store.interactions.count() == before


def test_prompts_too_long_for_the_model_are_left_out(world: Path) -> None:
    absurd = "tea and cake " * 7700
    wordy = "Quizzical jackdaws vex me by the sea; " * 40
    lines = [
        {"prompt": absurd, "response": "No."},
        # Short enough for the setting, too long for this model's context.
        {"prompt": wordy, "response": "Yes.", "feedback": "up"},
        {"prompt": "When is tea?", "response": "x", "feedback": {"edit": absurd}},
        {"prompt": "\u200b \u3000", "response": "?"},
        {"prompt": "!!!", "response": "?", "feedback": "up"},
    ]
    file = world / "chats.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    with Store(world / "companion.db") as store:
        import_(store, file)
        known = store.interactions.count()
        changes = {**QUICK, "collect.max_prompts": 40, "collect.gate_block": 1}
        improve(settings(world, **changes), store=store)
        collected = store.rounds.step(store.rounds.all()[0].id, "collect").payload
        texts = [row["prompt"] for row in (*collected["train"], *collected["gate"])]
        assert not {absurd, wordy} & {*texts}
        assert wordy not in [row["prompt"] for row in collected["feedback"]]
        assert "When is tea?" in [row["prompt"] for row in collected["feedback"]]
        assert store.interactions.count() == known


def test_prompts_that_are_packaged_too_neither_repeat_nor_change_sides(world: Path) -> None:
    tested, taught = load_prompts("gate")[:6], load_prompts("train")[:6]
    with Store(world / "companion.db") as store:
        for row in (*tested, *taught):
            told = store.interactions.add(row.prompt.upper(), "Hm.")
            store.feedback.add(told.id, "edit", f"What I think of {row.id}: it depends.")
        changes = {"collect.max_prompts": 400, "collect.gate_items": 400, "collect.gate_block": 1}
        improve(settings(world, **{**QUICK, **changes, "mode": "dry-run"}), store=store)
        collected = store.rounds.step(store.rounds.all()[0].id, "collect").payload
        train = [row["prompt"].lower() for row in collected["train"]]
        gate = [row["prompt"].lower() for row in collected["gate"]]
        assert len(set(train)) == len(train)
        assert len(set(gate)) == len(gate)
        assert not {*train} & {*gate}
        told = {row["prompt"].lower() for row in collected["feedback"]}
        assert not told & {row.prompt.lower() for row in tested}
        assert told & {row.prompt.lower() for row in taught}


def test_absurd_prompt_in_a_chat_is_refused_and_the_chat_goes_on(deployed: Path) -> None:
    with Store(deployed / "companion.db") as store:
        chat = Chat(ServedModel.open(store, settings(deployed)), store, seed=0)
        known = store.interactions.count()
        list(chat.say("Is it warm?"))
        with pytest.raises(GenerationError, match=r"tokens.*reads at most 512: shorten"):
            list(chat.say("tea and cake " * 7700))
        with pytest.raises(DataError, match="empty"):
            list(chat.say("   "))
        assert store.interactions.count() == known + 1
        list(chat.say("And tomorrow?"))
        assert len(chat.history) == 2
        assert store.interactions.count() == known + 2


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"gate.alhpa": 0.1}, "gate.alhpa.*did you mean 'alpha'"),
        ({"gaet.alpha": 0.1}, "gaet.*did you mean 'gate'"),
        ({"train.learning_rate": 0.1}, "train.learning_rate"),
        ({"rounds": 0}, "rounds=0.*give 1 or more"),
        ({"collect.gate_items": 0}, "collect.gate_items=0 cannot be used: give 1 or more"),
        ({"generate.max_rows": 0}, "generate.max_rows=0"),
        ({"gate.alpha": "high"}, "gate.alpha"),
        ({"mode": "yolo"}, "mode"),
    ],
)
def test_wrong_settings_are_named(overrides: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(LoopConfig, overrides=overrides)
    key, value = next(iter(overrides.items()))
    for part in reversed(key.split(".")):
        value = {part: value}
    (tmp_path / "mine.yaml").write_text(json.dumps(value))
    with pytest.raises(ConfigError, match=said):
        load_config(LoopConfig, tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    ("line", "said"),
    [("  max_wrods: {limit: 60}", "max_words"), ("  max_words: {limt: 60}", "limit")],
)
def test_slip_in_the_profile_is_named_and_costs_no_round(world: Path, line: str, said: str) -> None:
    profile = world / "profile.yaml"
    good = profile.read_text()
    with Store(world / "companion.db") as store:
        begun = store.rounds.begin(
            config=load_config(LoopConfig, overrides={"profile": str(profile)}),
            base_version=None,
        )
        profile.write_text(good.replace("  max_words: {limit: 60}", line))
        with pytest.raises(ConfigError, match=f"did you mean '{said}'"):
            improve(settings(world), store=store)
        assert store.rounds.unfinished() == begun


def test_interrupted_round_whose_profile_is_gone_is_abandoned(world: Path) -> None:
    with Store(world / "companion.db") as store:
        ServedModel.open(store, settings(world))
        gone = load_config(LoopConfig, overrides={"profile": str(world / "gone.yaml")})
        store.rounds.begin(config=gone, base_version="v0001")
        assert improve(settings(world, **QUICK), store=store)[0].report["round"] == 2
        assert "gone.yaml" in store.rounds.all()[0].summary["why"]


def test_settings_of_another_release_do_not_block(world: Path) -> None:
    with Store(world / "companion.db") as store:
        ServedModel.open(store, settings(world))
        store.rounds.begin(config={"generate": {"no_longer_known": 1}}, base_version="v0001")
        assert improve(settings(world, **QUICK), store=store)[0].report["round"] == 2
        assert store.rounds.all()[0].outcome == "abandoned"
        assert "no_longer_known" in store.rounds.all()[0].summary["why"]


def test_profile_without_other_wordings_or_rules_will_do(world: Path) -> None:
    (world / "profile.yaml").write_text("name: bare\nsystem_prompt: Be brief.\n")
    report = one_round(world, **QUICK | {"generate.samples_per_prompt": 5}).report
    assert (report["profile"], report["rules"]) == ("bare", [])
    assert report["data"]["generated"] == 20
