"""The benchmark of four models, from a tiny training to the report, against plain NumPy."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import sentencepiece
from mlx.utils import tree_flatten

from benchmarks import bpb_measure, bpb_models, bpb_report, common
from benchmarks.bpb_measure import Reading, Trained, read_training, token_pieces
from benchmarks.bpb_models import MODELS, Workplace
from benchmarks.bpb_text import scientific
from mlx_companion.blt import (
    BlockConfig,
    BltConfig,
    BltModel,
    ByteLM,
    ByteLMConfig,
    HashConfig,
    PatchConfig,
    corrupt,
    evaluate,
    load,
    save,
)
from mlx_companion.errors import DataError
from mlx_companion.text.byte_text import encode_bytes
from mlx_companion.training.callbacks import Callback
from mlx_companion.training.state import StepInfo

FLOPS, ENTROPY_FLOPS = 6e8, 4e8
CONTEXT, TOKEN_CONTEXT, VOCABULARY, STRETCH = 64, 16, 320, 300
TOKEN = BlockConfig(32, 2, 2, 64)
LOCAL = BlockConfig(16, 1, 2, 16, window=16)
LINE = "the sea café a whale of old ships and men “quoth” he white deep, very. some ahab"


class Steps(Callback):
    """Notes the steps; may break off behind one of them."""

    def __init__(self, last: int | None = None) -> None:
        self.seen: list[int] = []
        self.last = last

    def on_step(self, step: StepInfo) -> None:
        self.seen.append(step.step)
        if step.step == self.last:
            raise KeyboardInterrupt


def tiny_blt(_: str, rule: PatchConfig) -> BltConfig:
    entropy = LOCAL if rule.needs_entropies else None
    latent, table = BlockConfig(32, 1, 2, 32), HashConfig((3, 4), 1, 64)
    return BltConfig(LOCAL, latent, LOCAL, entropy, hash=table, patching=rule, context=CONTEXT)


def tiny_shapes(patch: pytest.MonkeyPatch) -> None:
    flat = ByteLMConfig(BlockConfig(16, 2, 2, 32, window=32), context=CONTEXT)
    changed: dict[str, Any] = {
        "CONTEXT": CONTEXT,
        "VOCABULARY": VOCABULARY,
        "TOKEN_CONTEXT": TOKEN_CONTEXT,
        "PATCH_BYTES": 4.0,
        "ENTROPY_FLOPS": ENTROPY_FLOPS,
        "TOKEN": TOKEN,
        "SETTINGS": replace(bpb_models.SETTINGS, warmup_steps=2, save_every=2),
        "flat_preset": lambda _: flat,
        "blt_preset": tiny_blt,
        "entropy_preset": lambda _: ByteLMConfig(LOCAL, context=CONTEXT),
    }
    for name, value in changed.items():
        patch.setattr(bpb_models, name, value)
    patch.setattr(bpb_report, "EXCERPT", 400)
    patch.setattr(bpb_report, "RATES", {"case": (0.5,), "drop": (0.1,)})
    for module in (bpb_measure, bpb_report):
        patch.setattr(module, "STRETCH", STRETCH)


def prose(seed: int, words: int) -> str:
    rng, known = random.Random(seed), LINE.split()
    return "".join(rng.choice(known) + ("\n" if i % 11 == 10 else " ") for i in range(words))


def texts(folder: Path) -> Path:
    for part, seed, words in (("train", 0, 700), ("train", 1, 500), ("valid", 2, 300)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / part / f"{seed}.txt").write_text(prose(seed, words), encoding="utf-8")
    return folder


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


def metrics(place: Workplace, name: str) -> list[dict[str, Any]]:
    lines = (place.out / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


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


def test_a_curve_is_of_means_over_equal_parts(tmp_path: Path) -> None:
    def line(step: int, loss: float | None) -> str:
        values = {"targets": 10 + step % 3, "seconds": 0.5, "lr": step / 1e4, "peak_mb": 7.0}
        skipped = {"loss": loss, "skipped": loss is None, "flops": 100.0 * step}
        return json.dumps({"event": "step", "step": step, **values, **skipped})

    losses: list[float | None] = [5 / step for step in range(1, 801)]
    losses[399] = None
    lines = [line(step, loss) for step, loss in enumerate(losses, 1)]
    lines.insert(100, '{"event": "eval", "step": 100, "loss": 9.9}')
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"event": "st')
    found = read_training(tmp_path, bytes_per_target=4.0, spent=1000.0)
    assert found is not None
    assert (found.steps, found.skipped, found.flops) == (800, 1, 81000.0)
    assert (found.seconds, found.peak_lr) == (400.0, 0.08)
    assert len(found.curve) == 80
    # Part 40 is steps 400 to 409, the first of them skipped.
    weights = [10 + step % 3 for step in range(401, 410)]
    bits = np.average([5 / step / math.log(2) / 4 for step in range(401, 410)], weights=weights)
    assert found.curve[40][1] == pytest.approx(bits, abs=1e-5)
    assert read_training(tmp_path / "nothing") is None


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


def copy_of(place: Workplace, folder: Path, *names: str) -> Workplace:
    """The same data with some of the trained models."""
    for name in names:
        shutil.copytree(place.out / name, folder / name)
    for file in ("tokenizer.model", "tokens.npz"):
        shutil.copy(place.out / file, folder)
    return Workplace(place.data, folder)


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


def reading(stretches: list[float], size: int) -> Reading:
    return Reading(sum(stretches), size, {1: size}, stretches, 0.0)


def test_standard_error_of_a_difference() -> None:
    # Over 300 bytes each, the second and third 1 bit per byte apart; the last stretch is cut.
    bit = STRETCH * math.log(2)
    a = reading([5 * bit, 3 * bit, 2 * bit, 99.0], 3 * STRETCH + 7)
    b = reading([4 * bit, 3 * bit, 3 * bit, 1.0], 3 * STRETCH + 7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpb_report, "STRETCH", STRETCH)
        # Differences of 1, 0 and -1: deviation 1, over the square root of 3.
        assert bpb_report.standard_error(a, b) == pytest.approx(3**-0.5)
        assert bpb_report.standard_error(reading([1.0], 300), reading([2.0], 300)) is None


@pytest.mark.parametrize(
    ("bits", "share", "flat", "patch", "flops", "expected"),
    [
        (0.0, 0.6, -0.02, 4.5, 2e14, [True] * 5),
        (0.001, 0.601, -0.019, 4.49, 1.99e14, [False] * 5),
        (-0.1, 0.7, 0.3, 9.0, 3e14, [True, False, False, True, True]),
    ],
)
def test_aims(
    bits: float, share: float, flat: float, patch: float, flops: float, expected: list[bool]
) -> None:
    def beside(difference: float) -> dict[str, Any]:
        row = {"bits_difference": difference, "standard_error": 0.01, "flops_share": share}
        return {"blt-entropy": row}

    model = {"training": {"flops": flops}, "position_bytes": {"mean": patch}}
    found = bpb_report.aims(
        {
            "models": {"blt-entropy": model},
            "missing": {},
            "against_token": beside(bits),
            "against_flat": beside(flat),
        }
    )
    assert [row["met"] for row in found] == expected


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
