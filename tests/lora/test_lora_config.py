"""The adapter's configuration: ranges, patterns, YAML, and folders of earlier versions."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_models import CONFIG, TOKENS, adapted, llama

from mlx_companion.errors import AdapterError, ConfigError
from mlx_companion.lora import LoraConfig, LoRALinear, attach, load_adapter, save_adapter
from mlx_companion.lora.config import config_from_dict, config_to_dict
from mlx_companion.runtime.config import load_config

FULL = LoraConfig(
    rank=3,
    targets=("q_proj", "lm_head"),
    layers=2,
    scaling="rslora",
    dora=True,
    init="pissa",
    rank_pattern={"q_proj": 2},
    alpha_pattern={r"layers\.0\..*": 1.5},
    tied="input",
    dtype="bfloat16",
)


def test_patterns_set_rank_and_strength_of_layers() -> None:
    config = LoraConfig(
        rank=4,
        alpha=8,
        targets=("q_proj", "v_proj", "down_proj"),
        rank_pattern={r"layers\.1\.mlp\.down_proj": 2, "down_proj": 6, "proj": 1},
        alpha_pattern={"v_proj": 2},
    )
    model = llama()
    attach(model, config)
    ranks = {p: m.rank for p, m in model.named_modules() if isinstance(m, LoRALinear)}
    assert ranks == {
        path: 2 if path.endswith("1.mlp.down_proj") else 6 if "down" in path else 4
        for path in ranks
    }
    assert model.layers[0].self_attn.v_proj.scale == 0.5
    assert model.layers[0].self_attn.q_proj.scale == 2.0
    assert model.layers[1].mlp.down_proj.scale == 4.0
    stable = LoraConfig(rank=16, alpha=8, scaling="rslora", rank_pattern={"q_proj": 4})
    assert (stable.scale, stable.scale_of("a.q_proj")) == (2.0, 4.0)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"scaling": "rs"}, "scaling must be one of standard, rslora"),
        ({"init": "svd"}, "init must be one of kaiming, pissa"),
        ({"tied": "none"}, "tied must be one of"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"dora": "yes"}, "dora must be true or false"),
        ({"rank_pattern": {"a": 0}}, r"rank_pattern\['a'\] must be a whole number"),
        ({"rank_pattern": {"a(": 2}}, "not a regular expression"),
        ({"rank_pattern": [1]}, "rank_pattern must map"),
        ({"alpha_pattern": {"a": -1}}, r"alpha_pattern\['a'\] must be a number over 0"),
        ({"alpha_pattern": {3: 1}}, "alpha_pattern must map texts"),
    ],
)
def test_the_new_fields_are_checked(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LoraConfig(**given)


@pytest.mark.parametrize("config", [LoraConfig(), FULL])
def test_a_config_survives_json_and_yaml(config: LoraConfig, tmp_path: Path) -> None:
    values = config_to_dict(config)
    text = json.dumps(values)
    assert config_from_dict(json.loads(text)) == config
    # JSON is YAML.
    (tmp_path / "lora.yaml").write_text(text)
    assert load_config(LoraConfig, tmp_path / "lora.yaml") == config


def test_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'rank_patern'; did you mean 'rank_p.*'"):
        config_from_dict({"rank_patern": {}})
    with pytest.raises(ConfigError, match=r"'scaling' is 'rslra'.*did you mean 'rslora'"):
        config_from_dict({"scaling": "rslra"})
    save_adapter(tmp_path / "a", adapted(llama()), CONFIG, "ab" * 32)
    path = tmp_path / "a" / "adapter_config.json"
    head = json.loads(path.read_text())
    path.write_text(json.dumps(head | {"lora": head["lora"] | {"use_dora": True}}))
    with pytest.raises(AdapterError, match=r"damaged.*unknown key 'use_dora'; did you mean 'dora'"):
        load_adapter(tmp_path / "a", llama())


def test_a_folder_of_an_earlier_version_still_loads(tmp_path: Path) -> None:
    model = adapted(llama())
    save_adapter(tmp_path / "a", model, CONFIG, "ab" * 32)
    path = tmp_path / "a" / "adapter_config.json"
    head = json.loads(path.read_text())
    kept = {name: head["lora"][name] for name in ("rank", "alpha", "dropout", "targets", "layers")}
    path.write_text(json.dumps(head | {"lora": kept}))
    other = llama()
    assert load_adapter(tmp_path / "a", other) == CONFIG
    assert mx.array_equal(other(TOKENS), model(TOKENS))


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["q_proj", "proj", r"layers\.1\..*", "mlp.*", "1"]), unique=True),
    st.sampled_from(["model.layers.1.mlp.up_proj", "layers.0.self_attn.q_proj", "q_proj"]),
)
def test_patterns_match_as_in_peft(patterns: list[str], path: str) -> None:
    """PEFT's rule: the first pattern that a path ends with, from its start or a dot on."""
    config = LoraConfig(rank=99, rank_pattern={p: n + 1 for n, p in enumerate(patterns)})
    ends = [path] + [path[m.end() :] for m in re.finditer(r"\.", path)]
    found = [n + 1 for n, p in enumerate(patterns) if any(re.fullmatch(p, end) for end in ends)]
    assert config.rank_of(path) == (found[0] if found else 99)


def test_the_documentation_lists_every_field(repository: Path) -> None:
    text = (repository / "docs" / "lora.md").read_text(encoding="utf-8")
    table = text.partition("## Options")[2].partition("Methods combine")[0]
    first = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = set(re.findall(r"`(\w+)", "".join(first)))
    assert named == set(config_to_dict(LoraConfig()))
