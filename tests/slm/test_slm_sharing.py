"""One copy of the weights: the same arrays, the same features, and nothing shared that differs."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from gguf_files import write_gguf
from mlx.utils import tree_flatten
from tiny import tiny_llama

from mlx_companion.lora import LoraConfig, adapter_parameters, attach, detach, is_attached
from mlx_companion.models import LanguageModel, generate, load
from mlx_companion.models.load import would_load
from mlx_companion.runtime.config import load_config
from mlx_companion.slm import backbone as backbone_module
from mlx_companion.slm.backbone import LanguageModelAdapter, shared_backbone
from mlx_companion.slm.config import SLMConfig
from mlx_companion.slm.factory import SLMFactory
from mlx_companion.slm.sharing import ServedBackbone, ServedCpuBackbone, plain_view

TEXTS = ["hello", "what is the weather in porto", "a", "She planted beans, peas and carrots."]


@pytest.fixture(autouse=True)
def own_shared_backbones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbone_module, "_shared", {})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "model")


@pytest.fixture
def served(folder: Path) -> LanguageModel:
    return load(folder)


@pytest.fixture(params=["numpy", "mlx"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Features by NumPy, as on Linux CPUs, and by MLX, as everywhere else."""
    if request.param == "mlx":
        monkeypatch.setattr("mlx_companion.kernels.fast_math.wanted", lambda: False)
        monkeypatch.setattr("mlx_companion.models.fast_cpu.wanted", lambda: False)
    return str(request.param)


def arrays(model: nn.Module) -> dict[str, mx.array]:
    found: list[tuple[str, mx.array]] = tree_flatten(model.parameters())
    return dict(found)


def adapt(lm: LanguageModel) -> None:
    """An adapter that changes every layer."""
    attach(lm.model, LoraConfig(rank=2, targets=("*", "embed_tokens")))
    parameters = adapter_parameters(lm.model)
    mx.random.seed(3)
    values = [(name, mx.random.normal(value.shape)) for name, value in parameters.items()]
    lm.model.load_weights(values, strict=False)
    mx.eval(lm.model.parameters())


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("adapted", [False, True])
def test_features_are_bit_by_bit_those_of_a_model_loaded_apart(
    folder: Path, served: LanguageModel, adapted: bool
) -> None:
    if adapted:
        adapt(served)
    own = ServedBackbone(str(folder), served)
    apart = LanguageModelAdapter(str(folder))
    np.testing.assert_array_equal(own.features(TEXTS), apart.features(TEXTS))
    assert own.shared
    assert (own.identity, own.name, own.layer) == (apart.identity, apart.name, apart.layer)
    assert is_attached(served.model) == adapted


@pytest.mark.usefixtures("way")
def test_adapters_that_come_and_go_change_no_features(folder: Path, served: LanguageModel) -> None:
    own = ServedBackbone(str(folder), served)
    plain = own.features(TEXTS[:2])
    said = generate(served, "hello", max_tokens=8).text
    adapt(served)
    assert generate(served, "hello", max_tokens=8).text != said
    own.unload()
    np.testing.assert_array_equal(own.features(TEXTS[:2]), plain)
    assert own.generate("hello", 8) == said
    detach(served.model)
    assert generate(served, "hello", max_tokens=8).text == said


def test_the_arrays_are_the_very_same(folder: Path, served: LanguageModel) -> None:
    adapt(served)
    own = ServedBackbone(str(folder), served)
    view = arrays(own.language_model.model)
    detach(served.model)
    theirs = arrays(served.model)
    assert view.keys() == theirs.keys()
    assert all(view[name] is theirs[name] for name in view)


def test_memory_holds_the_weights_once(folder: Path, served: LanguageModel) -> None:
    size = sum(array.nbytes for array in arrays(served.model).values())

    def grown(make: Callable[[], LanguageModelAdapter]) -> int:
        gc.collect()
        before = mx.get_active_memory()
        made = make()
        made.load()
        gc.collect()
        return mx.get_active_memory() - before

    assert grown(lambda: LanguageModelAdapter(str(folder))) >= size
    assert grown(lambda: ServedBackbone(str(folder), served)) < size / 10


def test_changes_of_the_view_and_of_the_model_stay_apart(served: LanguageModel) -> None:
    before = arrays(served.model)
    view = plain_view(served)
    view.model.freeze()
    assert len(tree_flatten(served.model.trainable_parameters())) == len(before)
    assert tree_flatten(view.model.trainable_parameters()) == []
    view.model.model.layers[0].self_attn.q_proj.weight = mx.zeros((32, 32))
    assert arrays(served.model).keys() == before.keys()
    assert all(array is before[name] for name, array in arrays(served.model).items())
    adapt(view)
    assert not is_attached(served.model)


def quantized(folder: Path) -> LanguageModel:
    lm = load(folder)
    nn.quantize(lm.model, group_size=32, bits=8)
    return lm


def trained(folder: Path) -> LanguageModel:
    lm = load(folder)
    lm.model.model.norm.weight = lm.model.model.norm.weight * 1.01
    return lm


DIFFERENT: dict[str, Callable[[Path], LanguageModel]] = {
    "another model": lambda folder: load(tiny_llama(folder.parent / "other", seed=1)),
    "half precision": lambda folder: load(folder, dtype=mx.bfloat16),
    "quantized": quantized,
    "trained in memory": trained,
}


@pytest.mark.parametrize("how", list(DIFFERENT))
def test_what_differs_is_loaded_apart(folder: Path, how: str) -> None:
    own = ServedBackbone(str(folder), DIFFERENT[how](folder))
    np.testing.assert_array_equal(
        own.features(TEXTS), LanguageModelAdapter(str(folder)).features(TEXTS)
    )
    assert own.shared is False
    # Even then there is one copy for all who ask for it by that name.
    assert own.language_model is shared_backbone(str(folder)).language_model


def test_the_same_content_in_another_folder_is_shared(folder: Path, tmp_path: Path) -> None:
    again = tiny_llama(tmp_path / "again")
    own = ServedBackbone(str(folder), load(again))
    own.load()
    assert own.shared


@pytest.fixture
def gguf(folder: Path, tmp_path: Path) -> Path:
    write_gguf(tmp_path / "m.gguf", folder, "Q8_0")
    return tmp_path / "m.gguf"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files whose weights MLX reads from here on."""
    found: list[str] = []
    plain = mx.load

    def note(path: str, *rest: Any, **named: Any) -> Any:
        found.append(str(path))
        return plain(path, *rest, **named)

    monkeypatch.setattr(mx, "load", note)
    return found


@pytest.mark.usefixtures("way")
def test_a_gguf_file_is_read_once(gguf: Path, tmp_path: Path, reads: list[str]) -> None:
    served = load(gguf)
    assert reads == [str(gguf)]
    adapt(served)
    # By another name of the same content, too.
    again = tmp_path / "again.gguf"
    again.write_bytes(gguf.read_bytes())
    for name in (gguf, again):
        own = ServedBackbone(str(name), served)
        features = own.features(TEXTS)
        assert own.shared
        assert len(reads) == 1
        assert own.language_model.tokenizer is not served.tokenizer
        assert own.language_model.source == str(name)
        apart = LanguageModelAdapter(str(name))
        np.testing.assert_array_equal(features, apart.features(TEXTS))
        del reads[1:]


GGUF_DIFFERENT: dict[str, Callable[[Path], LanguageModel]] = {
    "half precision": lambda path: load(path, dtype=mx.float16),
    "packed": lambda path: load(path, dequantize=False),
    "quantized": quantized,
    "trained in memory": trained,
}


@pytest.mark.parametrize("how", list(GGUF_DIFFERENT))
def test_what_became_another_than_its_file_is_loaded_apart(
    gguf: Path, how: str, reads: list[str]
) -> None:
    served = GGUF_DIFFERENT[how](gguf)
    del reads[:]
    own = ServedBackbone(str(gguf), served)
    own.load()
    assert own.shared is False
    assert reads == [str(gguf)]


def test_a_file_that_was_replaced_is_another_model(gguf: Path, tmp_path: Path) -> None:
    served = load(gguf)
    write_gguf(gguf, tiny_llama(tmp_path / "other", seed=1), "Q8_0")
    own = ServedBackbone(str(gguf), served)
    own.load()
    assert own.shared is False


def test_a_vector_that_was_written_into_is_noticed(gguf: Path) -> None:
    served = load(gguf)
    norm = served.model.model.norm.weight
    norm[0] = norm[0] + 1
    assert would_load(gguf, served) is False


@pytest.mark.usefixtures("way")
def test_features_and_replies_on_threads_of_their_own(folder: Path, served: LanguageModel) -> None:
    plain = LanguageModelAdapter(str(folder)).features(TEXTS)
    adapt(served)
    said = generate(served, "hello", max_tokens=6).text
    replies: list[str] = []
    # Made here, used on its own thread, while another one generates: as a companion does it.
    own = ServedBackbone(str(folder), served)

    def reply() -> None:
        replies.extend(generate(served, "hello", max_tokens=6).text for _ in range(8))

    thread = threading.Thread(target=reply)
    thread.start()
    for _ in range(8):
        with own._lock:
            own._cache.clear()
        np.testing.assert_array_equal(own.features(TEXTS), plain)
    thread.join()
    assert replies == [said] * 8


def test_a_factory_shares_the_served_weights(folder: Path, served: LanguageModel) -> None:
    factory = SLMFactory(SLMConfig(model=str(folder)), served=served)
    own = factory.get_slm()
    assert isinstance(own, ServedBackbone)
    assert own.shared is None
    assert factory.get_slm(str(folder)) is own
    own.load()
    assert own.shared
    off = load_config(SLMConfig, None, {"model": str(folder), "resources.gpu": "off"})
    on_cpu = SLMFactory(off, served=served).get_slm()
    assert isinstance(on_cpu, ServedCpuBackbone)
    np.testing.assert_allclose(on_cpu.features(TEXTS), own.features(TEXTS), rtol=1e-5, atol=1e-6)
    assert on_cpu.shared
    other = SLMFactory(off, served=load(tiny_llama(folder.parent / "x", seed=2))).get_slm()
    np.testing.assert_allclose(other.features(TEXTS), own.features(TEXTS), rtol=1e-5, atol=1e-6)
