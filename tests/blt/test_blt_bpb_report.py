"""The benchmark of four models, from a tiny training to the report, against plain NumPy."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import sentencepiece
from blt_bpb_world import (
    CONTEXT,
    ENTROPY_FLOPS,
    FLOPS,
    TOKEN,
    TOKEN_CONTEXT,
    VOCABULARY,
    Steps,
    copy_of,
    metrics,
    prose,
    texts,
    tiny_shapes,
)
from mlx.utils import tree_flatten

from benchmarks import bpb_measure, bpb_models, bpb_report, common
from benchmarks.bpb_measure import Trained, token_pieces
from benchmarks.bpb_models import MODELS, Workplace
from benchmarks.bpb_text import scientific
from mlx_companion.blt import (
    BltModel,
    ByteLM,
    corrupt,
    evaluate,
    load,
    save,
)
from mlx_companion.errors import DataError
from mlx_companion.text.byte_text import encode_bytes


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    """Four tiny trained models."""
    with pytest.MonkeyPatch.context() as patch:
        tiny_shapes(patch)
        folder = tmp_path_factory.mktemp("bpb")
        found = Workplace(texts(folder / "data"), folder / "out")
        bpb_models.train_entropy_model(found, Steps())
        for name in MODELS:
            bpb_models.train(name, found, FLOPS, Steps(), 256)
        yield found


@pytest.fixture(scope="module")
def result(place: Workplace) -> bpb_report.Result:
    return bpb_report.collect(place, FLOPS)


@pytest.fixture(scope="module")
def book(place: Workplace) -> bytes:
    return (place.data / "valid" / "2.txt").read_bytes()


def tokens(place: Workplace, text: bytes) -> list[int]:
    model = sentencepiece.SentencePieceProcessor(model_file=str(place.out / "tokenizer.model"))
    return model.encode(text.decode())


def plain_nats(model: BltModel | ByteLM, ids: np.ndarray, context: int) -> np.ndarray:
    """Cross-entropies in float64 of logits, window after window by half a context."""
    nats: list[float] = []
    for start in range(0, len(ids), context // 2):
        window = ids[start : start + context]
        row = np.concatenate([[1], window[:-1]]).astype(np.int32)
        logits = np.asarray(model(mx.array(row[None])))[0].astype(np.float64)
        normalizer = np.log(np.exp(logits).sum(axis=-1))
        own = normalizer - logits[np.arange(len(window)), window]
        nats += own[len(nats) - start :].tolist()
    return np.array(nats)


def plain_bits(place: Workplace, name: str, text: bytes) -> float:
    """Bits per byte of a text."""
    model = load(place.out / name / "model")
    if name == "token":
        nats = plain_nats(model, np.array(tokens(place, text)), TOKEN_CONTEXT)
    else:
        nats = plain_nats(model, encode_bytes(text, bos=False), CONTEXT)
    return nats.sum() / math.log(2) / len(text)


@pytest.mark.parametrize("name", MODELS)
def test_bits_per_byte_of_the_book(
    name: str, place: Workplace, result: bpb_report.Result, book: bytes
) -> None:
    found = result["models"][name]["bits_per_byte"]
    assert found == pytest.approx(plain_bits(place, name, book), rel=1e-5)
    assert result["held_out_bytes"] == len(book)


@pytest.mark.parametrize("name", ["token", "blt-entropy"])
def test_bits_per_byte_with_errors(
    name: str, place: Workplace, result: bpb_report.Result, book: bytes
) -> None:
    sample = bpb_report.excerpt(book)
    assert 300 < len(sample) <= 400
    assert sample in book
    assert sample.endswith(b"\n")
    clean, case, drop = result["models"][name]["robustness"]
    assert clean["bits_per_byte"] == pytest.approx(plain_bits(place, name, sample), rel=1e-5)
    damaged = corrupt(sample, "drop", 0.1)
    bits = plain_bits(place, name, damaged)
    assert drop["bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    scale = len(damaged) / len(sample)
    assert drop["bits_per_original_byte"] == pytest.approx(bits * scale, rel=1e-5)
    assert drop["increase"] == pytest.approx(bits * scale - clean["bits_per_byte"], rel=1e-4)
    assert (case["noise"], case["rate"]) == ("case", 0.5)


@pytest.mark.parametrize("name", MODELS)
def test_lengths_of_patches_and_tokens(
    name: str, place: Workplace, result: bpb_report.Result, book: bytes
) -> None:
    sizes = result["models"][name]["position_bytes"]
    every = np.repeat([int(k) for k in sizes["histogram"]], list(sizes["histogram"].values()))
    if name == "token":
        count = len(tokens(place, book))
    else:
        count = evaluate(load(place.out / name / "model"), book).patches
    assert (every.sum(), len(every)) == (len(book), count)
    assert sizes["mean"] == pytest.approx(len(book) / count)
    every.sort()
    assert sizes["median"] == every[(len(every) - 1) // 2]
    assert sizes["p95"] == every[math.ceil(0.95 * len(every)) - 1]


def test_cost_of_a_token_model_is_spread_over_its_bytes(
    place: Workplace, result: bpb_report.Result, book: bytes
) -> None:
    D, F = TOKEN.width, TOKEN.ffn
    matrices = 2 * (4 * D * D + 3 * D * F)
    layers = TOKEN.layers * (matrices + 4 * D * (TOKEN_CONTEXT + 1) / 2)
    per_byte = len(tokens(place, book)) / len(book)
    cost = result["models"]["token"]["inference_flops_per_byte"]
    assert cost["latent"] == pytest.approx(layers * per_byte)
    assert cost["head"] == pytest.approx(2 * D * VOCABULARY * per_byte)
    assert cost["total"] == pytest.approx((layers + 2 * D * VOCABULARY) * per_byte)
    entropy = result["models"]["blt-entropy"]["inference_flops_per_byte"]["entropy"]
    assert entropy > 0 == result["models"]["blt-space"]["inference_flops_per_byte"]["entropy"]
    share = result["against_token"]["blt-space"]["flops_share"]
    blt = result["models"]["blt-space"]["inference_flops_per_byte"]
    parts = sum(value for part, value in blt.items() if part != "total")
    assert share == pytest.approx(parts / cost["total"])


@pytest.mark.parametrize("name", MODELS)
def test_training_figures(name: str, place: Workplace, result: bpb_report.Result) -> None:
    steps = metrics(place, name)
    documents = [path.read_bytes() for path in sorted((place.data / "train").iterdir())]
    size = sum(map(len, documents))
    scale = size / sum(len(tokens(place, d)) for d in documents) if name == "token" else 1.0
    before = metrics(place, "entropy")[-1]["flops"] if name == "blt-entropy" else 0.0
    run = result["models"][name]["training"]
    assert run["flops"] == pytest.approx(steps[-1]["flops"] + before)
    # Over the budget by less than a step, of the entropy model's and of its own.
    assert FLOPS <= run["flops"] < FLOPS + steps[0]["flops"] + max(before - ENTROPY_FLOPS, 0)
    assert run["bytes"] == pytest.approx(sum(s["targets"] for s in steps) * scale)
    assert run["epochs"] == pytest.approx(run["bytes"] / size)
    assert run["steps"] == len(steps) < 80
    # Fewer steps than points: each step is one.
    expected = [(s["flops"] + before, s["loss"] / math.log(2) / scale) for s in steps]
    np.testing.assert_allclose(run["curve"], expected, rtol=1e-4)


def test_parameters(place: Workplace, result: bpb_report.Result) -> None:
    model = load(place.out / "blt-entropy" / "model")
    sizes = result["models"]["blt-entropy"]["parameters"]
    assert sizes["total"] == sum(value.size for _, value in tree_flatten(model.parameters()))
    assert sizes["hash_tables"] == 2 * 64 * 16
    assert sizes["entropy_model"] == sum(
        value.size for _, value in tree_flatten(model.model.patcher.parameters())
    )
    assert result["models"]["token"]["parameters"]["hash_tables"] == 0


def test_tokens_stand_for_bytes(place: Workplace) -> None:
    pieces = token_pieces(place.out / "tokenizer.model")
    assert len(pieces) == VOCABULARY
    for text in ("a whale\n\n  café\t東京 \0 🐋 ", prose(5, 40)):
        spelled = b"".join(pieces[i] for i in tokens(place, text.encode()))
        assert spelled == text.encode()


def test_text_that_tokens_cannot_spell_is_refused(place: Workplace) -> None:
    with pytest.raises(DataError, match="do not spell"):
        Trained("token", place).read(b"whale \xff")


def test_a_second_report_measures_nothing(
    place: Workplace, result: bpb_report.Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bpb_measure, "nats_of_ids", None)
    again = bpb_report.collect(place, FLOPS)
    for key in result.keys() - {"machine"}:
        assert json.dumps(again[key]) == json.dumps(result[key]), key


def test_other_weights_are_measured_again(place: Workplace, tmp_path: Path, book: bytes) -> None:
    copied = copy_of(place, tmp_path, "token")
    model = load(tmp_path / "token" / "model")
    model.model.lm_head.weight = model.model.lm_head.weight * 0.5
    save(model, tmp_path / "token" / "model")
    found = Trained("token", copied).read(book).bits_per_byte
    assert found == pytest.approx(plain_bits(copied, "token", book), rel=1e-5)
    assert abs(found - Trained("token", place).read(book).bits_per_byte) > 0.01


def test_some_of_the_models(
    place: Workplace,
    result: bpb_report.Result,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copied = copy_of(place, tmp_path, "token")
    (tmp_path / "flat").mkdir()
    shutil.copy(place.out / "flat" / "metrics.jsonl", tmp_path / "flat")
    bpb_report.report(copied, FLOPS, save=False)
    out = capsys.readouterr().out
    steps = result["models"]["flat"]["training"]["steps"]
    assert f"**flat is missing**: step {steps}, " in out
    assert "**blt-space is missing**: not begun" in out
    last = json.loads(out.splitlines()[-1])
    assert list(last["models"]) == ["token"]
    assert last["models"]["token"] == json.loads(json.dumps(result["models"]["token"]))
    assert [aim["met"] for aim in last["aims"]] == [None] * 5
    drawn = sorted(path.name for path in tmp_path.glob("*.svg"))
    assert drawn == ["blt_bpb-cost.svg", "blt_bpb-training.svg"]


def test_no_models(place: Workplace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bpb_report.report(Workplace(place.data, tmp_path), FLOPS, save=False)
    out = capsys.readouterr().out
    assert all(f"**{name} is missing**: not begun" in out for name in MODELS)
    assert json.loads(out.splitlines()[-1])["models"] == {}


def test_the_report_is_kept(
    place: Workplace,
    result: bpb_report.Result,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (common, bpb_report):
        monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(common, "ROOT", tmp_path)
    bpb_report.report(place, 2 * FLOPS, save=True)
    stem = f"blt_bpb-{common.host_kind()}"
    kept = {path.name for path in (tmp_path / "results").iterdir()}
    pictures = {f"{stem}-{title}.svg" for title in ("cost", "training", "patches")}
    assert kept == {f"{stem}.json", f"{stem}.md", *pictures}
    text = (tmp_path / "results" / f"{stem}.md").read_text()
    assert all(f"]({name})" in text for name in pictures)
    assert str(tmp_path) not in text
    spent = scientific(result["models"]["flat"]["training"]["flops"])
    assert f"**flat was trained with {spent} FLOPs, not {scientific(2 * FLOPS)}**" in text
    bits = result["models"]["blt-space"]["bits_per_byte"]
    assert f"| blt-space | {bits:.4f} |" in text
    assert capsys.readouterr().out.startswith(text.rstrip("\n"))


@pytest.mark.parametrize("name", ["token", "blt-entropy"])
def test_a_training_that_was_broken_off_goes_on(
    name: str, place: Workplace, result: bpb_report.Result, tmp_path: Path
) -> None:
    copied = copy_of(place, tmp_path, "entropy")
    with pytest.raises(KeyboardInterrupt):
        bpb_models.train(name, copied, FLOPS, Steps(last=6), 256)
    assert not Trained.finished(name, copied)
    second, third = Steps(), Steps()
    bpb_models.train(name, copied, FLOPS, second, 256)
    bpb_models.train(name, copied, FLOPS, third, 256)
    total = result["models"][name]["training"]["steps"]
    # Checkpoints are written every two steps; the sixth was not reached.
    assert (second.seen, third.seen) == (list(range(5, total + 1)), [])
    assert [row["step"] for row in metrics(copied, name)] == list(range(1, total + 1))
    whole, resumed = (
        dict(tree_flatten(load(p.out / name / "model").parameters())) for p in (place, copied)
    )
    assert all(np.array_equal(resumed[key], value) for key, value in whole.items())


def test_a_broken_off_entropy_model_goes_on(place: Workplace, tmp_path: Path) -> None:
    fresh = Workplace(place.data, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        bpb_models.train_entropy_model(fresh, Steps(last=3))
    second, third = Steps(), Steps()
    bpb_models.train_entropy_model(fresh, second)
    bpb_models.train_entropy_model(fresh, third)
    assert second.seen[0] == 3
    assert third.seen == []
    assert len(metrics(fresh, "entropy")) == second.seen[-1] == len(metrics(place, "entropy"))
