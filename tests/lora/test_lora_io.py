"""Adapters on disk: bit-exact, tied to their base, and loud when something is wrong."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from lora_models import CONFIG, TOKENS, adapted, llama, state
from mlx_lm.tuner.utils import load_adapters
from safetensors.numpy import load_file, save_file

from mlx_companion.errors import AdapterError, DiskFullError
from mlx_companion.lora import (
    LoraConfig,
    adapter_parameters,
    attach,
    attached_config,
    export_mlx_lm,
    get_multiplier,
    is_attached,
    load_adapter,
    read_adapter_config,
    save_adapter,
    set_multiplier,
)
from mlx_companion.runtime.files import sha256_file

BASE = "ab" * 32


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with an adapter of the small llama."""
    save_adapter(tmp_path / "adapter", adapted(llama()), CONFIG, BASE, {"round": 3, "note": "é"})
    return tmp_path / "adapter"


@pytest.mark.parametrize("bits", [None, 4])
def test_round_trip_is_bit_exact(tmp_path: Path, bits: int | None) -> None:
    source = adapted(llama(bits=bits))
    sha = save_adapter(tmp_path / "a", source, CONFIG, BASE, {"round": 3})
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "adapter_config.json",
        "adapters.safetensors",
    ]
    assert sha == sha256_file(tmp_path / "a" / "adapters.safetensors")

    target = llama(bits=bits)
    config = load_adapter(tmp_path / "a", target, base_sha256=BASE, expected_sha256=sha)
    assert config == CONFIG == attached_config(target)
    assert state(target) == state(source)
    assert mx.array_equal(target(TOKENS), source(TOKENS))
    info = read_adapter_config(tmp_path / "a")
    assert (info.base_sha256, info.weights_sha256, info.extra) == (BASE, sha, {"round": 3})
    assert info.shapes["model.layers.0.self_attn.q_proj.lora_b"][0] == 4


def test_the_multiplier_is_kept(saved: Path, tmp_path: Path) -> None:
    model = llama()
    load_adapter(saved, model)
    set_multiplier(model, 0.375)
    expected = model(TOKENS)
    save_adapter(tmp_path / "scaled", model, CONFIG, BASE)
    other = adapted(llama())
    load_adapter(tmp_path / "scaled", other)
    assert get_multiplier(other) == 0.375
    assert mx.array_equal(other(TOKENS), expected)
    load_adapter(saved, other)
    assert get_multiplier(other) == 1.0


def test_loading_replaces_what_is_attached(saved: Path) -> None:
    expected = llama()
    load_adapter(saved, expected)
    for config in (CONFIG, LoraConfig(rank=2, targets=("q_proj",), layers=1)):
        model = adapted(llama(), config)
        load_adapter(saved, model)
        assert mx.array_equal(model(TOKENS), expected(TOKENS))
        assert attached_config(model) == CONFIG


def test_saving_replaces_the_folder_in_one_step(saved: Path) -> None:
    (saved / "stray.txt").write_text("old")
    first = read_adapter_config(saved).weights_sha256
    model = adapted(llama())
    attached = adapter_parameters(model)
    name = next(iter(attached))
    model.load_weights([(name, attached[name] + 1)], strict=False)
    assert save_adapter(saved, model, CONFIG, BASE) != first
    assert sorted(p.name for p in saved.iterdir()) == [
        "adapter_config.json",
        "adapters.safetensors",
    ]
    assert list(saved.parent.iterdir()) == [saved]


def test_a_full_disk_leaves_the_old_adapter(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    load_adapter(saved, model)
    expected = model(TOKENS)

    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(DiskFullError, match="no space left"):
            save_adapter(saved, model, CONFIG, BASE)
    other = llama()
    load_adapter(saved, other)
    assert mx.array_equal(other(TOKENS), expected)
    assert list(saved.parent.iterdir()) == [saved]


def test_saving_needs_the_adapter_and_its_own_config(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"attach\(model, config\) first"):
        save_adapter(tmp_path / "a", llama(), CONFIG, BASE)
    with pytest.raises(AdapterError, match=r"attached with .*rank=4.*saved as .*rank=8"):
        save_adapter(tmp_path / "a", adapted(llama()), LoraConfig(rank=8), BASE)
    assert not (tmp_path / "a").exists()


def edit_config(**changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "adapter_config.json"
        head = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({k: v for k, v in head.items() if v is not None}))

    return edit


def flip_a_byte(folder: Path) -> None:
    path = folder / "adapters.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def truncate(folder: Path) -> None:
    path = folder / "adapters.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def replace_weights(weights: bytes | dict) -> Callable[[Path], None]:
    """Other weights with a matching hash, as a careless hand would leave them."""

    def edit(folder: Path) -> None:
        path = folder / "adapters.safetensors"
        if isinstance(weights, bytes):
            path.write_bytes(weights)
        else:
            save_file(load_file(path) | weights, path)
        edit_config(weights_sha256=sha256_file(path))(folder)

    return edit


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "adapter_config.json").unlink(), "adapter_config.json is missing"),
        (lambda f: (f / "adapters.safetensors").unlink(), "adapters.safetensors is missing"),
        (lambda f: (f / "adapter_config.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "adapter_config.json").write_bytes(b"\xff\xfe"), "cannot be read"),
        (lambda f: (f / "adapter_config.json").write_text("[]"), "not an adapter of this package"),
        (edit_config(format="other"), "not an adapter of this package"),
        (edit_config(format_version=2), r"format version 2, this package reads 1; update"),
        (edit_config(lora=None), "damaged: KeyError: 'lora'"),
        (edit_config(lora={"rank": 4, "rnak": 4}), "damaged"),
        (edit_config(lora={"rank": -1}), "damaged.*rank"),
        (edit_config(tensors=[1]), "damaged"),
        (flip_a_byte, "corrupt or was replaced"),
        (truncate, "corrupt or was replaced"),
        (replace_weights(b"not safetensors at all"), "not a readable safetensors"),
        (replace_weights({"x": np.zeros(2, np.float32)}), "does not hold the tensors"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damage_is_named_and_the_model_left_alone(
    saved: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(saved)
    model = llama()
    before = state(model)
    with pytest.raises(AdapterError, match=words):
        load_adapter(saved, model)
    assert state(model) == before


def test_another_base_is_refused_by_both_hashes(saved: Path) -> None:
    with pytest.raises(AdapterError, match=f"base model {BASE[:12]}, but this one is {'cd' * 6};"):
        load_adapter(saved, llama(), base_sha256="cd" * 32)
    with pytest.raises(AdapterError, match=f"the caller expects {'ef' * 6}"):
        load_adapter(saved, llama(), expected_sha256="ef" * 32)
    with pytest.raises(AdapterError, match="no adapter folder"):
        load_adapter(saved / "absent", llama())


def test_another_architecture_is_refused_and_keeps_its_adapter(saved: Path) -> None:
    other = llama(width=128)
    attach(other, LoraConfig(rank=2, targets=("v_proj",)))
    before = state(other)
    with pytest.raises(AdapterError, match=r"does not fit this model: .*has shape"):
        load_adapter(saved, other)
    assert state(other) == before
    assert is_attached(other)


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("layers", [None, 1])
def test_mlx_lm_reads_the_export(tmp_path: Path, bits: int | None, layers: int | None) -> None:
    config = LoraConfig(rank=4, alpha=10.0, targets=("q_proj", "mlp.*"), layers=layers)
    model = adapted(llama(bits=bits), config)
    set_multiplier(model, 0.7)
    assert export_mlx_lm(model, tmp_path / "out") == tmp_path / "out"
    theirs = llama(bits=bits)
    base = theirs(TOKENS)
    load_adapters(theirs, str(tmp_path / "out"))
    assert mx.abs(theirs(TOKENS) - base).max().item() > 0.01
    np.testing.assert_allclose(
        np.array(theirs(TOKENS)), np.array(model(TOKENS)), rtol=1e-5, atol=1e-5
    )


def test_export_needs_one_rank_and_one_scale(tmp_path: Path) -> None:
    model = adapted(llama())
    model.layers[0].mlp.up_proj.multiplier = 0.5
    with pytest.raises(AdapterError, match="these layers differ"):
        export_mlx_lm(model, tmp_path / "out")
