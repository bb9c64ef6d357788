"""The guard's section of a profile, and the archetypes that come with the package."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_companion.errors import ConfigError
from mlx_companion.personality import GuardSettings, TopicSettings, load_profile, packaged_profiles


def test_archetypes_load_and_keep_prompts_short() -> None:
    assert {"default", "dry_wit", "warm_mentor", "concise_expert", "playful_friend"} <= set(
        packaged_profiles()
    )
    for name in packaged_profiles():
        profile = load_profile(name)
        assert profile.name == name
        assert len(profile.system_prompt.split()) <= 36


def test_overrides_reach_the_section() -> None:
    profile = load_profile("dry_wit", {"guard.max_exclamations": 0, "guard.level": "strict"})
    assert (profile.guard.max_exclamations, profile.guard.level) == (0, "strict")


def test_a_section_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\nsystem_prompt: Be kind.\nguard:\n  max_emoji: null\n"
        "  topics:\n    alcohol: {terms: [wine], substitute: juice}\n  phrases: {circle back: ''}\n"
    )
    guard = load_profile(path).guard
    assert guard.max_emoji is None
    assert guard.topics["alcohol"].terms == ("wine",)
    assert guard.phrases == {"circle back": ""}


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("guard.level", "strictly", "strict"),
        ("guard.max_emojis", 1, "max_emoji"),
        ("guard.max_exclamations", -1, "0 or more"),
        ("guard.topics", {"two words": {}}, "two words"),
        ("guard.topics", {"tea": {"term": ["x"]}}, "terms"),
        ("guard.phrases", {" ": "x"}, "empty phrase"),
        ("guard.empty_reply", " ", "empty_reply"),
        ("guard.empty_reply", "Coffee.", "empty_reply"),
        ("guard.empty_reply", "Well!!", "exclamation"),
        ("guard.topics", {"golf": {}}, "golf has no terms"),
        ("guard.topics", {"golf": {"terms": [" "]}}, "empty term"),
        (
            "guard.topics",
            {"drink": {"terms": ["wine", "beer"], "substitute": "beer"}},
            "prohibited",
        ),
        ("guard.topics", {"drink": {"terms": ["wine"], "substitute": "two Wines"}}, "prohibited"),
    ],
)
def test_bad_sections(key: str, value: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_profile("dry_wit", {key: value})


def test_settings_by_hand_are_checked() -> None:
    with pytest.raises(ConfigError, match="level"):
        GuardSettings(level="soft")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("phrases", "told"),
    [
        ({"circle back": "let us Circle Back"}, "holds the prohibited 'circle back'"),
        ({"touch base": "sync up", "sync up": "touch base"}, "'touch base' by 'sync up'"),
        ({"port": "red wine"}, "prohibited 'wine'"),
    ],
)
def test_what_replaces_a_phrase_holds_nothing_prohibited(
    phrases: dict[str, str], told: str
) -> None:
    topics = {"drink": TopicSettings(("wine",))}
    with pytest.raises(ConfigError, match=told):
        GuardSettings(phrases=phrases, topics=topics)
    GuardSettings(phrases={"port": "export"}, topics=topics)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("system_prompt: Be calm.", "'name' is missing"),
        ("name: me", "'system_prompt' is missing"),
        ("name: me\nsystem_prompt: Be calm.\nprompt_variants: [Be kind., '']", "item 2 is"),
    ],
)
def test_what_a_profile_lacks_is_named(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "me.yaml").write_text(text)
    with pytest.raises(ConfigError, match=told):
        load_profile(tmp_path / "me.yaml")
