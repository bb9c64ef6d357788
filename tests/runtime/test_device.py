"""Device facts agree with MLX, and a backend that is not there is an error."""

from __future__ import annotations

import json
import sys
from importlib import metadata

import mlx.core as mx
import pytest

from mlx_companion.errors import HardwareError
from mlx_companion.runtime.device import device_facts, environment, is_cpu, require, version


def test_facts_agree_with_mlx() -> None:
    facts = device_facts()
    assert facts.metal == mx.metal.is_available()
    assert facts.cuda == mx.cuda.is_available()
    assert is_cpu() == (facts.kind == "cpu") == (mx.default_device() == mx.Device(mx.cpu))
    assert facts.name


def test_live_and_peak_buffers_are_counted() -> None:
    before = device_facts()
    block = mx.zeros((1000, 1000))
    mx.eval(block)
    after = device_facts()
    assert after.active_mb - before.active_mb >= block.nbytes / 1e6 * 0.99
    assert after.peak_mb >= after.active_mb


@pytest.mark.parametrize("backend", ["metal", "cuda"])
def test_a_missing_backend_is_an_error(backend) -> None:
    if getattr(mx, backend).is_available():
        require(backend)
    else:
        with pytest.raises(HardwareError, match=f"{backend} backend was asked for"):
            require(backend)


def test_versions() -> None:
    assert version("mlx") == metadata.version("mlx")
    assert version("no-such-package") is None


def test_the_record_is_json_and_names_versions() -> None:
    record = json.loads(json.dumps(environment()))
    assert record["versions"]["mlx-lm"] == metadata.version("mlx-lm")
    assert record["python"] == ".".join(map(str, sys.version_info[:3]))
    assert record["device"]["kind"] in {"cpu", "gpu"}
