"""Profiles: the packaged one, files of one's own, and what a wrong file says."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mlx_companion.errors import ConfigError
from mlx_companion.personality import (
    RULES,
    Profile,
    chat_messages,
    check,
    load_profile,
    packaged_profiles,
    system_prompt,
    variant_count,
)
from mlx_companion.runtime.config import config_hash, load_config, to_dict

MINE = {"name": "mine", "system_prompt": "Be brief.", "rules": {"max_words": {"limit": 5}}}


def _write(folder: Path, content: object) -> Path:
    path = folder / "mine.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), "utf-8")
    return path


def test_default_profile_is_packaged_and_complete() -> None:
    profile = load_profile()
    assert profile.name == "default"
    assert "default" in packaged_profiles()
    assert profile.rules["max_words"] == {"limit": 40}
    assert set(profile.rules) == set(RULES)


def test_default_prompts_are_short_and_distinct() -> None:
    profile = load_profile()
    prompts = [system_prompt(profile, variant) for variant in range(variant_count(profile))]
    assert len(set(prompts)) == len(prompts) >= 4
    # The default model makes about 1.3 tokens of a word: 30 words stay under 45 tokens.
    assert all(len(prompt.split()) <= 30 for prompt in prompts)
    assert "40 words" in prompts[0]


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    profile = load_profile(_write(tmp_path, MINE))
    assert profile.name == "mine"
    assert [broken.rule for broken in check(profile, "One two three four five six!")] == [
        "max_words"
    ]
    assert check(profile, "five words are fine!") == []


def test_overrides_replace_values() -> None:
    profile = load_profile(overrides={"rules.max_words.limit": 12})
    assert profile.rules["max_words"] == {"limit": 12}
    assert profile.rules["min_words"] == {"limit": 3}


def test_prompts_are_put_on_one_line() -> None:
    profile = Profile(name="x", system_prompt="Be\n  brief.\n", prompt_variants=("Be  short.",))
    assert system_prompt(profile, 0) == "Be brief."
    assert system_prompt(profile, 1) == "Be short."


def test_prompt_echo_gets_the_prompts_of_its_profile(tmp_path: Path) -> None:
    mine = {
        "name": "mine",
        "system_prompt": "Speak as a lighthouse keeper would.",
        "rules": {"no_prompt_echo": {}},
    }
    profile = load_profile(_write(tmp_path, mine))
    assert check(profile, "I speak as a lighthouse keeper would speak.")
    assert not check(profile, "A lighthouse keeper would sleep by day.")


def test_a_profile_survives_its_own_record(tmp_path: Path) -> None:
    profile = load_profile()
    again = load_config(Profile, _write(tmp_path, to_dict(profile)))
    assert again == profile
    assert config_hash(again) == config_hash(profile)
    assert config_hash(load_profile(overrides={"rules.max_words.limit": 12})) != config_hash(
        profile
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({**MINE, "sytem_prompt": "x"}, "did you mean 'system_prompt'"),
        ({**MINE, "rules": {"no_exclamations": {}}}, "did you mean 'no_exclamation'"),
        ({**MINE, "rules": {"zzz": {}}}, "unknown rule 'zzz'; known: "),
        ({**MINE, "rules": {"max_words": {"limits": 3}}}, "did you mean 'limit'"),
        ({**MINE, "rules": {"no_emoji": {"limit": 3}}}, "it takes none"),
        ({**MINE, "rules": {"max_words": {"limit": "many"}}}, "a whole number above 0"),
        ({**MINE, "rules": {"max_words": {"limit": 0}}}, "a whole number above 0"),
        ({**MINE, "rules": {"max_words": {"limit": True}}}, "a whole number above 0"),
        ({**MINE, "rules": {"max_words": 40}}, "rules.max_words"),
        ({**MINE, "rules": ["max_words"]}, "'rules'"),
        ({**MINE, "name": 3}, "'name' is 3"),
        ({**MINE, "prompt_variants": "one"}, "prompt_variants"),
        ({**MINE, "prompt_variants": [" "]}, "empty"),
        ({"name": "mine"}, "'system_prompt'"),
        ({"system_prompt": "Be brief."}, "'name'"),
        ("- a\n- b\n", "expected key: value lines"),
        ("name: [", "not valid YAML"),
    ],
)
def test_wrong_files_say_what_is_wrong(tmp_path: Path, content: object, message: str) -> None:
    path = _write(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        load_profile(path)
    assert message in str(caught.value)
    assert "mine.yaml" in str(caught.value)


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"name: \xff\xfe\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_profile(path)


def test_no_such_profile() -> None:
    with pytest.raises(ConfigError, match=r"no profile 'defualt'.*packaged profile \(.*default"):
        load_profile("defualt")


def test_chat_messages_hold_the_turns_in_order() -> None:
    profile = Profile(name="x", system_prompt="Be brief.", prompt_variants=("Be short.",))
    messages = chat_messages(profile, "And now?", 1, history=[("Hi.", "Good day.")])
    assert [(message["role"], message["content"]) for message in messages] == [
        ("system", "Be short."),
        ("user", "Hi."),
        ("assistant", "Good day."),
        ("user", "And now?"),
    ]


@pytest.mark.parametrize("variant", [-1, 2])
def test_no_such_variant(variant: int) -> None:
    profile = Profile(name="x", system_prompt="Be brief.", prompt_variants=("Be short.",))
    with pytest.raises(ConfigError, match="expected 0 to 1"):
        system_prompt(profile, variant)
