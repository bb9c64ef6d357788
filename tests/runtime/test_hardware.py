"""Hardware: Apple chips from what their tools print, Linux from /proc, and the settings implied."""

from __future__ import annotations

import json
import re

import psutil
import pytest

from mlx_companion.runtime import hardware
from mlx_companion.runtime.device import device_facts
from mlx_companion.runtime.hardware import (
    Battery,
    Hardware,
    apple_bandwidth_gbs,
    detect,
    mac_hardware,
    parse_apple_chip,
    parse_cpuinfo,
    parse_gpu_cores,
    recommend,
)

GIB = 2**30
# chip, GiB, performance cores, efficiency cores, GPU cores, GB/s
MACS = [
    ("Apple M1", 8, 4, 4, 8, 68),
    ("Apple M1 Pro", 16, 8, 2, 16, 200),
    ("Apple M1 Max", 64, 8, 2, 32, 400),
    ("Apple M1 Ultra", 128, 16, 4, 64, 800),
    ("Apple M2", 8, 4, 4, 10, 100),
    ("Apple M2 Pro", 32, 8, 4, 19, 200),
    ("Apple M2 Max", 96, 8, 4, 38, 400),
    ("Apple M2 Ultra", 192, 16, 8, 76, 800),
    ("Apple M3", 16, 4, 4, 10, 100),
    ("Apple M3 Pro", 18, 6, 6, 18, 150),
    ("Apple M3 Max", 36, 10, 4, 30, 300),
    ("Apple M3 Ultra", 512, 24, 8, 80, 819),
    ("Apple M4", 16, 4, 6, 10, 120),
    ("Apple M4 Pro", 48, 10, 4, 20, 273),
    ("Apple M4 Max", 128, 12, 4, 40, 410),
]


def sysctl(chip: str, gib: int, performance: int, efficiency: int) -> str:
    return (
        f"machdep.cpu.brand_string: {chip}\nhw.memsize: {gib * GIB}\n"
        f"hw.physicalcpu: {performance + efficiency}\n"
        f"hw.perflevel0.physicalcpu: {performance}\nhw.perflevel1.physicalcpu: {efficiency}\n"
    )


def displays(chip: str, cores: int) -> str:
    card = {
        "_name": chip,
        "spdisplays_mtlgpufamilysupport": "spdisplays_metal3",
        "spdisplays_vendor": "sppci_vendor_Apple",
        "sppci_bus": "spdisplays_builtin",
        "sppci_cores": str(cores),
        "sppci_device_type": "spdisplays_gpu",
        "sppci_model": chip,
    }
    return json.dumps({"SPDisplaysDataType": [card]}, indent=2)


@pytest.mark.parametrize("mac", MACS, ids=lambda mac: f"{mac[0][6:]} {mac[1]}")
def test_macs_are_read_whole(mac: tuple[str, int, int, int, int, float]) -> None:
    chip, gib, performance, efficiency, gpu_cores, bandwidth = mac
    battery = Battery(81.0, plugged=False)
    found = mac_hardware(
        sysctl(chip, gib, performance, efficiency),
        displays(chip, gpu_cores),
        battery,
        version="26.1",
    )
    assert found == Hardware(
        chip=chip,
        cores=performance + efficiency,
        memory_mb=pytest.approx(gib * GIB / 1e6),
        os="macOS 26.1",
        performance_cores=performance,
        efficiency_cores=efficiency,
        gpu=chip,
        gpu_kind="metal",
        gpu_cores=gpu_cores,
        battery=battery,
    )
    assert apple_bandwidth_gbs(chip) == bandwidth


@pytest.mark.parametrize("mac", MACS, ids=lambda mac: f"{mac[0][6:]} {mac[1]}")
def test_settings_for_macs_fit_their_memory(mac: tuple[str, int, int, int, int, float]) -> None:
    chip, gib, *_ = mac
    settings = recommend(mac_hardware(sysctl(chip, gib, 4, 4), "", None, version="26.1"))
    assert (settings.dtype, settings.dequantize) == ("bfloat16", False)
    assert settings.memory_limit_mb < gib * GIB / 1e6
    # The rule of 2 MB of activations per token, beside the weights.
    assert 270 + 2 * settings.batch_tokens <= settings.memory_limit_mb
    assert settings.batch_tokens in {512, 1024, 2048, 4096, 8192, 16384}


def test_wider_memory_answers_more_prompts_at_once() -> None:
    rows = [
        recommend(mac_hardware(sysctl(chip, 64, 4, 4), "", None, version="26")).generation_rows
        for chip in ("Apple M4", "Apple M4 Pro", "Apple M4 Max")
    ]
    assert rows == [16, 32, 64]
    small = mac_hardware(sysctl("Apple M1", 8, 4, 4), "", None, version="26")
    assert recommend(small).generation_rows == 8


def test_a_model_that_is_large_for_the_machine_is_checkpointed() -> None:
    mac = mac_hardware(sysctl("Apple M4 Pro", 48, 10, 4), "", None, version="26")
    assert not recommend(mac).gradient_checkpointing
    assert recommend(mac, model_mb=16_000).gradient_checkpointing
    assert recommend(mac, model_mb=16_000).batch_tokens < recommend(mac).batch_tokens


@pytest.mark.parametrize(
    ("chip", "parsed"),
    [
        ("Apple M4 Pro", (4, "Pro")),
        ("Apple M1", (1, "")),
        ("Apple M12 Ultra", (12, "Ultra")),
        ("Apple M2 (Virtual)", (2, "")),
        ("Apple A18 Pro", None),
        ("Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz", None),
        ("AMD EPYC", None),
        ("", None),
    ],
)
def test_chip_names(chip: str, parsed: tuple[int, str] | None) -> None:
    assert parse_apple_chip(chip) == parsed


def test_a_chip_from_the_future_counts_as_the_newest_known() -> None:
    assert apple_bandwidth_gbs("Apple M9 Max") == apple_bandwidth_gbs("Apple M4 Max")
    assert apple_bandwidth_gbs("AMD EPYC") is None


@pytest.mark.parametrize("text", ["", "not json", "[]", "{}", '{"SPDisplaysDataType": [{}]}'])
def test_unreadable_display_reports_give_none(text: str) -> None:
    assert parse_gpu_cores(text) is None


def test_a_mac_whose_tools_are_missing_is_still_a_machine() -> None:
    found = mac_hardware("", "", None, version="26.1", metal=False)
    assert (found.chip, found.gpu) == ("unknown", None)
    assert found.cores >= 1
    assert recommend(found).batch_tokens == 512


def test_processor_names() -> None:
    x86 = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC 9R14\nflags\t: fpu\n"
    board = "processor\t: 0\nBogoMIPS\t: 108.00\n\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n"
    assert parse_cpuinfo(x86) == "AMD EPYC 9R14"
    assert parse_cpuinfo(board) == "Raspberry Pi 5 Model B Rev 1.0"
    assert parse_cpuinfo("model\t\t: 17\n") is None


def test_a_cpu_gets_float32_and_dequantized_weights() -> None:
    settings = recommend(Hardware("AMD EPYC", cores=2, memory_mb=16_000, os="Linux 6.18"))
    assert (settings.dtype, settings.dequantize) == ("float32", True)
    assert settings.batch_tokens == 2048
    assert settings.generation_rows == 64
    tiny = recommend(Hardware("ARM", cores=4, memory_mb=2_000, os="Linux 6.18"))
    assert (tiny.batch_tokens, tiny.generation_rows) == (512, 16)


def test_this_machine() -> None:
    found = detect()
    assert found.chip
    assert 1 <= found.cores <= (psutil.cpu_count() or 1)
    assert 100 < found.memory_mb <= psutil.virtual_memory().total / 1e6
    assert re.fullmatch(r"(macOS|Linux) \d+(\.\d+)*", found.os)
    assert (found.gpu_kind is None) == (device_facts().kind == "cpu")
    assert recommend(found).batch_tokens >= 512


def test_a_container_s_memory_limit_counts(tmp_path, monkeypatch) -> None:
    (tmp_path / "memory.max").write_text("500000000\n")
    (tmp_path / "other").write_text("max\n")
    limits = (tmp_path / "memory.max", tmp_path / "other", tmp_path / "missing")
    monkeypatch.setattr(hardware, "_CGROUP_LIMITS", limits)
    assert hardware._linux_memory_mb() == 500
