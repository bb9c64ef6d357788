"""Configuration: defaults in the dataclass, checked overrides, errors that name the nearest key."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mlx_companion.errors import ConfigError
from mlx_companion.runtime.config import config_hash, load_config, parse_overrides, to_dict


@dataclass(frozen=True)
class Optimizer:
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; expected more than 0")


@dataclass(frozen=True)
class Config:
    steps: int = 100
    name: str = "run"
    resume: bool = True
    mode: Literal["auto", "off"] = "auto"
    limit: float | None = None
    targets: list[str] = field(default_factory=lambda: ["q_proj"])
    weights: dict[str, float] = field(default_factory=dict)
    out: Path | None = None
    optimizer: Optimizer = field(default_factory=Optimizer)
    judge: Optimizer | None = None


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def test_without_file_and_overrides_the_defaults_stand() -> None:
    assert load_config(Config) == Config()


def test_file_then_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, "steps: 5\noptimizer:\n  learning_rate: 1e-3\n  betas: [0.5, 0.6]\n")
    config = load_config(Config, path, {"optimizer.learning_rate": 2, "out": "~/x"})
    assert config.steps == 5
    assert config.optimizer == Optimizer(2.0, (0.5, 0.6))
    assert isinstance(config.optimizer.learning_rate, float)
    assert config.out == Path("~/x").expanduser()


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert load_config(Config, write(tmp_path, "# nothing\n")) == Config()


def test_scientific_notation_is_a_number(tmp_path: Path) -> None:
    # YAML 1.1 reads it as a text: the premise of the special case.
    assert yaml.safe_load("1e-4") == "1e-4"
    config = load_config(Config, write(tmp_path, "limit: 1e-4\noptimizer: {learning_rate: 3e-5}\n"))
    assert config.limit == 1e-4
    assert config.optimizer.learning_rate == 3e-5


def test_off_is_the_choice_and_not_false(tmp_path: Path) -> None:
    assert load_config(Config, write(tmp_path, "mode: off\n")).mode == "off"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"stps": 1}, r"unknown key 'stps'; did you mean 'steps'\?"),
        ({"optimizer.learning_rat": 1}, r"'optimizer.learning_rat'; did you mean 'learning_rate'"),
        ({"zzzz": 1}, r"unknown key 'zzzz'; known: judge, limit"),
        ({"steps": 1.5}, r"'steps' is 1.5; expected a whole number"),
        ({"steps": "many"}, r"'steps' is 'many'; expected a whole number"),
        ({"steps": True}, r"'steps' is True; expected a whole number"),
        ({"resume": 1}, r"'resume' is 1; expected true or false"),
        ({"name": 3}, r"'name' is 3; expected a text"),
        ({"mode": "aut"}, r"'mode' is 'aut'; expected one of 'auto', 'off'; did you mean 'auto'"),
        ({"limit": "high"}, r"'limit' is 'high'; expected a number"),
        ({"limit": float("nan")}, r"'limit' is nan; expected a number"),
        ({"targets": 3}, r"'targets' is 3; expected a list"),
        ({"targets": ["a", 3]}, r"'targets\[1\]' is 3; expected a text"),
        ({"weights": {"a": "b"}}, r"'weights.a' is 'b'; expected a number"),
        ({"optimizer": 3}, r"'optimizer' is 3; expected a section"),
        ({"optimizer.betas": [1.0]}, r"expected a list of 2 values"),
        ({"optimizer.learning_rate": -1}, r"\(optimizer\): learning_rate is -1.0"),
        ({"judge.learning_rte": 1}, r"did you mean 'learning_rate'"),
        ({"steps.deep.er": 3, "steps": 3, "steps.x": 1}, r"'steps' is a value, not a section"),
    ],
)
def test_what_is_wrong_is_named(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(Config, overrides=overrides)


def test_errors_name_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "steps: [\n")
    with pytest.raises(ConfigError, match=r"config\.yaml is not valid YAML"):
        load_config(Config, path)
    with pytest.raises(ConfigError, match=r"config\.yaml: expected key: value"):
        load_config(Config, write(tmp_path, "- 1\n"))
    with pytest.raises(ConfigError, match=r"config\.yaml: unknown key 'setps'"):
        load_config(Config, write(tmp_path, "setps: 1\n"))
    with pytest.raises(ConfigError, match=r"none\.yaml: No such file"):
        load_config(Config, tmp_path / "none.yaml")
    path.write_bytes(b"name: \xff\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(Config, path)


def test_a_null_is_allowed_only_where_it_may_be() -> None:
    assert load_config(Config, overrides={"limit": None}).limit is None
    with pytest.raises(ConfigError, match="'steps' is None"):
        load_config(Config, overrides={"steps": None})


def test_command_line_texts_are_read_by_the_type_of_their_field() -> None:
    texts = ["steps=7", "name=3", "targets=[x, y]", "resume=false", "mode=off", "limit=1e-2"]
    config = load_config(Config, overrides=parse_overrides(texts))
    assert config == Config(7, "3", False, "off", 0.01, ["x", "y"])
    assert parse_overrides(["name=a=b", "optimizer.learning_rate= 1"]) == {
        "name": "a=b",
        "optimizer.learning_rate": "1",
    }
    cleared = load_config(Config, overrides=parse_overrides(["limit=null", "weights={a: 1}"]))
    assert (cleared.limit, cleared.weights) == (None, {"a": 1.0})
    for wrong in ("steps", "=3"):
        with pytest.raises(ConfigError, match="expected key=value"):
            parse_overrides([wrong])


configs = st.builds(
    Config,
    steps=st.integers(-(10**9), 10**9),
    name=st.text(max_size=20),
    resume=st.booleans(),
    mode=st.sampled_from(["auto", "off"]),
    limit=st.none() | st.floats(allow_nan=False),
    targets=st.lists(st.text(max_size=5), max_size=3),
    weights=st.dictionaries(st.text(max_size=5), st.floats(allow_nan=False), max_size=3),
    optimizer=st.builds(Optimizer, learning_rate=st.floats(1e-9, 1.0)),
)


@given(configs)
def test_to_dict_through_yaml_and_back_is_the_same(config: Config) -> None:
    tree = yaml.safe_load(yaml.safe_dump(to_dict(config)))
    assert load_config(Config, overrides=tree) == config


@given(configs, configs)
def test_equal_hash_means_equal_content(one: Config, two: Config) -> None:
    assert (config_hash(one) == config_hash(two)) == (to_dict(one) == to_dict(two))


def test_the_hash_is_that_of_sorted_compact_json() -> None:
    # Stored with runs, so it must not change between versions.
    text = b'{"betas":[0.9,0.999],"learning_rate":0.0001}'
    assert config_hash(Optimizer()) == hashlib.sha256(text).hexdigest()


@pytest.mark.parametrize(
    "text", ["seed: 1\nseed: 2\n", "optimizer: {learning_rate: 1, learning_rate: 2}\n"]
)
def test_a_key_that_is_there_twice_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match="is there twice; leave one out"):
        load_config(Config, tmp_path / "config.yaml")


def test_merged_keys_may_be_replaced(tmp_path: Path) -> None:
    text = "optimizer: {<<: {learning_rate: 1.0}, learning_rate: 2.0}\n"
    (tmp_path / "config.yaml").write_text(text)
    assert load_config(Config, tmp_path / "config.yaml").optimizer.learning_rate == 2.0
