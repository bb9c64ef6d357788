"""Backbones: features against a full forward pass, one pass per text, from any thread."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from patience import LONG
from tiny import tiny_bert, tiny_llama

from mlx_companion.errors import ModelNotFoundError, SLMError
from mlx_companion.kernels.fast_math import wanted
from mlx_companion.models import LanguageModel, load
from mlx_companion.slm.backbone import (
    MAX_TOKENS,
    BaseSLMAdapter,
    EncoderAdapter,
    LanguageModelAdapter,
    cut_in_the_middle,
    cut_text,
    forget_texts,
    shared_backbone,
)
from mlx_companion.slm.llama_rows import llama_rows
from mlx_companion.slm.worker import Worker

_TEXTS = ["the kettle is warm", "how far is it to Porto?", "rain", "", "a b c d e f g h i j k"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return load(tiny_llama(tmp_path_factory.mktemp("lm") / "llama", num_hidden_layers=4))


def _full_forward(lm: LanguageModel, text: str, layer: int) -> np.ndarray:
    """All layers with a note of what each gives; then the final norm of the one that is asked."""
    tokens = mx.array([lm.tokenizer.encode(text) or [0]])
    states, hidden = [], lm.model.model.embed_tokens(tokens)
    for block in lm.model.model.layers:
        hidden = block(hidden, "causal", None)
        states.append(hidden)
    rows = np.array(lm.model.model.norm(states[layer - 1]))[0]
    return np.concatenate([rows[-1], rows.mean(axis=0)])


@pytest.mark.parametrize("plain", [True, False], ids=["as chosen", "by MLX"])
@pytest.mark.parametrize(("depth", "layer"), [(0.5, 2), (0.25, 1), (1.0, 4)])
def test_features_are_those_of_a_full_forward_pass(
    tiny: LanguageModel, depth: float, layer: int, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not plain:
        monkeypatch.setattr("mlx_companion.slm.llama_rows.llama_rows", lambda *_: None)
    adapter = LanguageModelAdapter(tiny, depth=depth)
    rows = adapter.features(_TEXTS)
    assert adapter.layer == layer
    assert rows.dtype == np.float32
    for text, row in zip(_TEXTS, rows, strict=True):
        np.testing.assert_allclose(row, _full_forward(tiny, text, layer), atol=2e-4)
    # The model itself is as it was.
    assert len(tiny.model.layers) == 4


@pytest.mark.parametrize("traditional", [True, False])
def test_numpy_rows_agree_with_mlx(tmp_path: Path, traditional: bool) -> None:
    lm = load(tiny_llama(tmp_path / "llama", num_hidden_layers=3, rope_traditional=traditional))
    rows = llama_rows(lm, 2)
    assert (rows is not None) == wanted()
    if rows is None:
        return
    tokens = np.random.default_rng(0).integers(0, 300, (3, 17))
    below = lm.model.model
    whole, below.layers = below.layers, below.layers[:2]
    expected = np.array(below(mx.array(tokens)))
    below.layers = whole
    np.testing.assert_allclose(rows(tokens), expected, atol=2e-4)


def test_other_models_go_by_mlx(tiny: LanguageModel, tmp_path: Path) -> None:
    half = load(tiny_llama(tmp_path / "half"), dtype=mx.bfloat16)
    assert llama_rows(half, 1) is None
    assert LanguageModelAdapter(half).features(["rain"]).shape[0] == 1


class _Counting(BaseSLMAdapter):
    """A backbone whose features are lengths; counts passes, and may be held or broken."""

    def __init__(self, cache_size: int = 1024) -> None:
        super().__init__("counting", cache_size)
        self.seen: list[str] = []
        self.loads = 0
        self.broken = False
        self.gate = threading.Event()
        self.gate.set()
        self.threads: set[str] = set()
        self._there = False

    @property
    def loaded(self) -> bool:
        return self._there

    @property
    def memory_bytes(self) -> int:
        return 0

    @property
    def identity(self) -> str:
        return "counting"

    def _load(self) -> None:
        self.loads += 1
        self._there = True

    def _unload(self) -> None:
        self._there = False

    def _features(self, texts: list[str]) -> np.ndarray:
        self.gate.wait()
        self.threads.add(threading.current_thread().name)
        self.seen += texts
        if self.broken:
            raise SLMError("broken")
        return np.array([[len(text)] for text in texts], dtype=np.float32)

    def _generate(self, prompt: object, max_tokens: int) -> str:
        return f"{prompt}:{max_tokens}"


def test_a_text_is_computed_once_whoever_asks() -> None:
    adapter = _Counting()
    adapter.gate.clear()
    texts = [f"text {i % 7}" for i in range(60)]
    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(adapter.features, [text, "common"]) for text in texts]
        adapter.gate.set()
        rows = [one.result(LONG) for one in asked]
    assert sorted(adapter.seen) == sorted({*texts, "common"})
    assert all(row[0, 0] == len(text) for row, text in zip(rows, texts, strict=True))
    assert adapter.loads == 1
    assert len(adapter.threads) == 1


def test_the_latest_used_texts_are_kept() -> None:
    adapter = _Counting(cache_size=2)
    for text in ("a", "b", "a", "c", "a", "b"):
        adapter.features([text])
    assert adapter.seen == ["a", "b", "c", "b"]


def test_more_texts_than_are_kept_come_back_in_order() -> None:
    adapter = _Counting(cache_size=2)
    rows = adapter.features(["a", "bb", "ccc", "a", "bb"])
    assert rows[:, 0].tolist() == [1, 2, 3, 1, 2]


def test_a_failure_reaches_who_asked_and_is_tried_again() -> None:
    adapter = _Counting()
    adapter.broken = True
    with pytest.raises(SLMError, match="broken"):
        adapter.features(["a"])
    adapter.broken = False
    assert adapter.features(["a"])[0, 0] == 1


def test_texts_can_be_forgotten() -> None:
    adapter = _Counting()
    adapter.features(["a", "b"])
    forget_texts()
    adapter.features(["b"])
    assert (adapter.seen, adapter.loads) == (["a", "b", "b"], 1)


def test_too_few_rows_are_told_to_all_who_wait() -> None:
    adapter = _Counting()
    adapter._features = lambda texts: np.zeros((1, 1), dtype=np.float32)  # type: ignore[method-assign]
    with ThreadPoolExecutor(1) as pool, pytest.raises(SLMError, match="1 rows of features for 2"):
        pool.submit(adapter.features, ["a", "b"]).result(LONG)
    del adapter._features
    assert adapter.features(["b"])[0, 0] == 1


def test_without_a_thread_it_is_told_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = _Counting()

    def refuse(work: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(adapter._worker, "submit", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            adapter.prefetch(["a"])
    assert adapter.features(["a"])[0, 0] == 1


def test_unloaded_models_load_again() -> None:
    adapter = _Counting()
    adapter.load()
    adapter.unload()
    assert not adapter.loaded
    assert adapter.features(["abc"])[0, 0] == 3
    assert adapter.loads == 2
    assert adapter.generate("hi", 5) == "hi:5"


def test_no_texts_and_one_text() -> None:
    assert _Counting().features([]).shape == (0, 0)
    with pytest.raises(TypeError, match="list of texts"):
        _Counting().features("one")


def test_what_a_language_model_says_of_itself(tiny: LanguageModel) -> None:
    adapter = LanguageModelAdapter(tiny)
    assert (adapter.loaded, adapter.memory_bytes) == (False, 0)
    assert adapter.identity == f"{tiny.base_sha256}:2:last+mean"
    assert adapter.memory_bytes > 0
    assert isinstance(adapter.generate("hello", max_tokens=3), str)
    with pytest.raises(SLMError, match="depth"):
        LanguageModelAdapter(tiny, depth=0)


def test_a_process_that_used_a_backbone_ends_quietly(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "llama")
    code = (
        "from mlx_companion.slm.backbone import LanguageModelAdapter;"
        f"LanguageModelAdapter({str(folder)!r}).features(['a']);"
        f"kept = LanguageModelAdapter({str(folder)!r}); kept._rows(['b', 'c'])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LONG)
    assert (run.returncode, run.stderr) == (0, "")


def test_a_cancelled_job_and_a_collected_worker() -> None:
    worker, gate = Worker("test"), threading.Event()
    first = worker.submit(lambda: gate.wait())
    second = worker.submit(lambda: "never")
    third = worker.submit(threading.current_thread)
    assert second.cancel()
    gate.set()
    assert first.result(LONG)
    thread = third.result(LONG)
    del worker, first, second, third
    gc.collect()
    # It goes on waiting, and serves the next worker.
    assert thread.is_alive()
    workers = [Worker(f"next {n}") for n in range(threading.active_count() + 1)]
    assert thread in [one.submit(threading.current_thread).result(LONG) for one in workers]


def test_long_texts_keep_both_ends(tiny: LanguageModel) -> None:
    assert cut_in_the_middle(list(range(10)), 5) == [0, 1, 7, 8, 9]
    rows = LanguageModelAdapter(tiny).features(["x " * 4000])
    assert np.isfinite(rows).all()
    assert len(cut_in_the_middle([1] * 4000, MAX_TOKENS)) == MAX_TOKENS


def test_sentence_encoders_have_the_same_face(tmp_path: Path) -> None:
    adapter = EncoderAdapter(str(tiny_bert(tmp_path / "bert")))
    rows = adapter.features(["warm", "cold day"])
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert adapter.identity.endswith(":sentence")
    assert adapter.memory_bytes > 0
    with pytest.raises(SLMError, match="no text"):
        adapter.generate("hi")
    adapter.unload()
    assert not adapter.loaded


def test_one_backbone_of_a_name_is_shared() -> None:
    assert shared_backbone() is shared_backbone()
    nowhere = shared_backbone("/no/such/folder")
    assert not nowhere.loaded
    with pytest.raises(ModelNotFoundError, match="/no/such/folder"):
        nowhere.features(["a"])


def test_huge_texts_and_half_characters_reach_no_tokenizer(tiny: LanguageModel) -> None:
    adapter = LanguageModelAdapter(tiny)
    long = "abc " * 250_000
    rows = adapter.features([long, cut_text(long), "half \ud83d", "half ?"])
    assert len(cut_text(long)) < 10_000
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[2], rows[3])
