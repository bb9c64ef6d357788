"""Plans, the questions people have, machines, the command, the picture, and what is wrong input."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import tiny
from typer.testing import CliRunner

from mlx_companion.cli import app
from mlx_companion.errors import CompanionError, ConfigError, DataError, ModelNotFoundError
from mlx_companion.models.tiny import tiny_model
from mlx_companion.quant import plan_machines
from mlx_companion.quant.plan import LoraPlan, context_cost, largest_model, plan, runs_at
from mlx_companion.quant.plan_machines import Machine, machine, machine_names, this_machine
from mlx_companion.quant.plan_picture import memory_picture, save_picture
from mlx_companion.quant.plan_text import facts, one_line
from mlx_companion.runtime.hardware import Hardware

CPU = Machine("cpu", 10**10, 9 * 10**9, 1e10, None, 1e11, 1e11, 1e-4, gpu=False)
GIB = 2**30
SMALL = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 1, "vocab_size": 64}
SMALL |= {"intermediate_size": 64, "num_attention_heads": 2, "tie_word_embeddings": False}


def test_an_8b_runs_at_35_on_the_reference_machine() -> None:
    assert runs_at("llama3.1-8b", 35, "m4-pro-48", bits=4, context=4096)
    assert not runs_at("llama3.1-8b", 35, "m4-32", bits=4, context=4096)
    # Fast enough if only it fitted.
    assert not runs_at("qwen2.5-14b", 5, "m4-pro-24", bits=16)


def test_a_long_context_costs_memory_and_speed() -> None:
    short, long = context_cost("llama3.1-8b", "m4-pro-48", (1024, 32768), bits=4)
    assert long.parts["cache"] - short.parts["cache"] == 31 * 1024 * 131072
    assert long.parts["weights"] == short.parts["weights"]
    assert short.speed is not None
    assert long.speed is not None
    assert long.speed.generation < 0.7 * short.speed.generation
    assert long.speed.first_seconds > 32 * short.speed.first_seconds


def test_the_largest_model_fits_and_nothing_larger_does() -> None:
    for task in ("generate", "lora"):
        best = largest_model("m4-pro-24", task)
        assert best is not None
        assert best.fits
        rest = ("llama3.3-70b", "qwen2.5-72b", "mixtral-8x7b")
        lora = best.training.lora if best.training else None
        for name in rest:
            assert not plan(name, "m4-pro-24", bits=4, lora=lora).fits


def test_the_largest_model_may_have_to_be_fast() -> None:
    slow, fast = (largest_model("m4-pro-48", least=least) for least in (0, 60))
    assert slow is not None
    assert fast is not None
    assert fast.speed is not None
    assert fast.speed.generation >= 60
    assert fast.shape.active_parameters < slow.shape.active_parameters
    assert largest_model("m1-8", among=["llama3.3-70b"]) is None


def test_packed_files_take_room_while_they_are_unpacked(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "packed", bits=4)
    found = plan(folder, CPU)
    assert found.quantization.bits == 32
    packed = plan(folder, "m4-16")
    assert packed.quantization.bits == 4
    assert packed.loading == packed.parts["weights"]
    unpacked, small = found.parts["weights"], packed.parts["weights"]
    assert unpacked + 0.9 * small < found.loading < unpacked + 1.5 * small


def test_a_configuration_is_enough(tmp_path: Path) -> None:
    folder = tiny.tiny_llama(tmp_path / "llama")
    whole = plan(folder, CPU)
    alone = tmp_path / "config.json"
    alone.write_text((folder / "config.json").read_text())
    assert plan(alone, CPU).parts == whole.parts
    assert whole.parts["weights"] == sum(
        size for size in [(folder / "model.safetensors").stat().st_size - _header(folder)]
    )


def _header(folder: Path) -> int:
    with open(folder / "model.safetensors", "rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def test_plans_of_encoders_and_byte_models() -> None:
    encoder = plan("minilm-l6", CPU)
    assert encoder.speed is None
    assert "cache" not in encoder.parts
    assert plan("blt:tiny", CPU).shape.unit == "byte"
    assert "bytes/s" in facts(plan("blt:tiny", CPU))["generation"]


def test_a_plan_is_told() -> None:
    found = plan("qwen3-30b-a3b", "m4-pro-48", bits=4, context=8192)
    told = facts(found)
    assert told["parameters"] == "30,532,122,624, 3,041,867,776 of them per token"
    assert told["in all"].endswith("fits")
    assert "cache 805 MB" in one_line(found)
    trained = facts(plan("qwen2.5-3b", "m4-pro-48", bits=4, lora=LoraPlan(16)))
    assert trained["trained"] == "29,933,568 numbers"
    assert "ceiling" in trained["training"]
    assert plan("tinyllama", CPU, context=4096).notes[0].startswith("a context of 4,096 is over")


def test_plans_as_json() -> None:
    found = plan("qwen2.5-3b", "m4-pro-48", bits=4, lora=LoraPlan(16))
    values = json.loads(json.dumps(found.to_json()))
    assert values["total"] == sum(values["parts"].values())
    assert values["training"]["rank"] == 16
    assert values["speed"] is None


@pytest.mark.parametrize(
    ("name", "memory", "usable"),
    [
        ("m4-pro-48", 48 * GIB, 36 * GIB),
        ("Apple M4 Pro", 64 * GIB, 48 * GIB),
        ("m1-8gb", 8 * GIB, 4 * GIB),
        ("m2-24", 24 * GIB, 16 * GIB),
        ("m4-max-36", 36 * GIB, 27 * GIB),
        ("m4-pro-16core-24", 24 * GIB, 16 * GIB),
    ],
)
def test_machines_by_name(name: str, memory: int, usable: int) -> None:
    found = machine(name)
    assert found.memory == memory
    assert found.usable == pytest.approx(usable, rel=1e-3)
    assert found.bandwidth < (found.nominal or 0)


def test_the_table_of_machines() -> None:
    found = [machine(name) for name in machine_names()]
    assert {name.split("-")[0] for name in machine_names()} == {"m1", "m2", "m3", "m4"}
    for own in found:
        assert 0 < own.usable < own.memory
        assert 0.2e12 < own.flops32 / (own.gpu_cores or 1) < 0.5e12
    assert machine("m4-pro-48").bandwidth == 244e9
    assert machine("m4-max-36").gpu_cores == 32


def test_a_known_mac_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    mac = Hardware("Apple M3 Max", 14, 36 * GIB / 1e6, "macOS 26.1", gpu_kind="metal", gpu_cores=30)
    monkeypatch.setattr(plan_machines, "detect", lambda: mac)
    found = this_machine()
    assert (found.name, found.nominal, found.measured) == ("m3-max-30core-36", 300e9, False)


def test_this_machine_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_machines, "_READ_ROWS", 256)
    monkeypatch.setattr(plan_machines, "_PRODUCT", 64)
    monkeypatch.setattr(plan_machines, "_CHAIN", 10)
    found = this_machine(measure=True)
    assert found.measured
    assert min(found.bandwidth, found.flops32, found.layer_seconds) > 0
    assert found.usable < found.memory


def test_the_picture(tmp_path: Path) -> None:
    plans = context_cost("llama3.1-8b", "m4-pro-24", bits=4)
    path = save_picture(plans, tmp_path / "memory.svg")
    root = ET.fromstring(path.read_text())
    texts = [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "131,072 positions" in texts
    assert any(text and text.startswith("usable: 17.2 GB") for text in texts)
    bars = [e for e in root.iter("{http://www.w3.org/2000/svg}rect") if len(e)]
    assert len(bars) == sum(len([p for p in own.parts.values() if p]) for own in plans)
    # The parts of a bar follow each other without gaps, in one scale.
    places = [(float(e.get("x", 0)), float(e.get("width", 0))) for e in bars[:3]]
    for (x, width), (after, _) in pairwise(places):
        assert after == pytest.approx(x + width, abs=0.2)
    sizes = list(plans[0].parts.values())
    assert places[0][1] / places[2][1] == pytest.approx(sizes[0] / sizes[2], rel=0.05)
    assert "m4-pro-24" in memory_picture(plans[:1])
    with pytest.raises(DataError, match=r"ends in \.svg"):
        save_picture(plans, tmp_path / "memory.png")


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["plan", *arguments])
    return result.exit_code, result.output


def test_the_command() -> None:
    code, text = run("llama3.1-8b", "--bits", "4", "--machine", "m4-pro-48", "--at-least", "35")
    assert code == 0
    assert "8,030,261,248" in text
    code, _ = run("llama3.1-8b", "--bits", "4", "--machine", "m4-32", "--at-least", "35")
    assert code == 1


def test_lora_settings_follow_each_other() -> None:
    wanted = ("qwen2.5-3b", "--bits", "4", "--machine", "m4-pro-48", "--json", "--lora", "rank=16")
    code, text = run(*wanted, "batch=2", "checkpoint=true")
    assert code == 0
    found = json.loads(text)["training"]
    assert (found["rank"], found["batch"], found["checkpoint"]) == (16, 2, True)


def test_questions_on_the_command_line(tmp_path: Path) -> None:
    picture = tmp_path / "c.svg"
    code, text = run(
        "llama3.1-8b", "--bits", "4", "--machine", "m4-pro-24", "--contexts", "--picture",
        str(picture),
    )  # fmt: skip
    assert code == 0
    assert "does not fit" in text.splitlines()[-1]
    assert picture.exists()
    code, text = run("--largest", "--machine", "m4-pro-24", "--lora", "rank=8", "--json")
    assert code == 0
    assert json.loads(text)["fits"]
    assert "m1-ultra-128" in run("--machines")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "is no folder, no config.json"),
        (["lama3.1-8b", "--machine", "m1"], "did you mean 'llama3.1-8b'"),
        (["owner/nothing-here"], "is not in the hub's cache"),
        (["llama3.1-8b", "--machine", "m4-pro-17"], "has 24, 48, 64 GiB of memory, not 17"),
        (["llama3.1-8b", "--machine", "m44"], "no machine is called 'm44'"),
        (["llama3.1-8b", "--machine", "m4", "--bits", "7"], "bits is '7'"),
        (["llama3.1-8b", "--machine", "m4", "--bits", "4", "--group", "7"], "group size is 7"),
        (["llama3.1-8b", "--machine", "m4", "--context", "0"], "context is 0"),
        (["llama3.1-8b", "--machine", "m4", "--kv-bits", "5"], "kv bits is 5"),
        (["llama3.1-8b", "--machine", "m4", "--lora", "rnk=8"], "did you mean 'rank'"),
        (["llama3.1-8b", "--machine", "m4", "--largest"], "leave 'llama3.1-8b' out"),
        (["--machine", "m4"], "give a model"),
        (["--largest", "--machine", "m1-8", "--context", "9999999"], "no known model fits"),
    ],
)
def test_wrong_input_is_one_error(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(plan_machines, "this_machine", lambda: CPU)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "500")
    code, text = run(*arguments)
    assert code in (1, 2)
    assert message in text
    assert text.count("error:") == 1
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "has no 'model_type'"),
        ({"model_type": "llama"}, "hidden_size = None; expected a whole number"),
        ({"model_type": "nobody"}, "unknown to mlx-lm"),
        (SMALL | {"num_attention_heads": 0}, "num_attention_heads = 0; expected a whole number of"),
        (SMALL | {"num_hidden_layers": 0}, "num_hidden_layers = 0"),
        (SMALL | {"quantization": {"bits": "four"}}, "quantization says bits 'four'"),
        (SMALL | {"quantization": {"bits": 4, "lm_head": 3}}, "quantization of lm_head is 3"),
        ({"model_type": "llama", "hidden_size": "wide"}, "hidden_size = 'wide'"),
        ({"model_type": "blt", "encoder_config": {"hidden_size": "x"}}, "encoder.width"),
        ({"format": "mlx-companion-blt", "kind": "cat"}, "kind is 'cat'"),
    ],
)
def test_configurations_that_cannot_be_read(config: dict, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    with pytest.raises(CompanionError, match=message):
        plan(path, "m4-16")


def test_models_that_keep_more_than_keys_and_values() -> None:
    config = {"model_type": "mamba", "vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2}
    config |= {"intermediate_size": 64, "state_size": 4, "conv_kernel": 4, "use_bias": False}
    config |= {"use_conv_bias": True, "time_step_rank": 4}
    with pytest.raises(ConfigError, match="plain and windowed key-value caches only"):
        plan(config, CPU)


def test_a_list_is_no_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ConfigError, match="holds no JSON object"):
        plan(tmp_path, CPU)
    with pytest.raises(ModelNotFoundError, match="there is no folder or file"):
        plan("./nowhere", CPU)
