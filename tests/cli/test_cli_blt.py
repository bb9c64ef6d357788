"""`mlx-companion blt ...` with tiny random models on disk: what is printed, written and refused."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import cli_reference
import mlx.core as mx
import pytest
import typer
from typer.testing import Result

from mlx_companion import blt
from mlx_companion.blt.evaluate import Evaluation
from mlx_companion.cli import app
from mlx_companion.loop.switch import stop_file

Run = Callable[..., Result]
BLOCK = blt.BlockConfig(16, 1, 2, 24, window=8)
TEXT = "Gestern im Café: zwölf Bücher und zwölf Brote. " * 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte latent transformer whose entropy model fires at some bytes."""
    mx.random.seed(0)
    config = blt.BltConfig(
        BLOCK,
        blt.BlockConfig(32, 1, 2, 32),
        BLOCK,
        replace(BLOCK, rope_theta=1e4),
        hash=blt.HashConfig((3,), 1, 101),
        patching=blt.PatchConfig(threshold=5.08),
        context=64,
    )
    return blt.save(blt.BltModel(config), tmp_path_factory.mktemp("models") / "blt")


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    mx.random.seed(1)
    lm = blt.ByteLM(blt.ByteLMConfig(BLOCK, context=64))
    return blt.save(lm, tmp_path_factory.mktemp("models") / "flat")


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def done(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.stdout


def test_eval_prints_json(run: Run, folder: Path, book: Path) -> None:
    found = json.loads(done(run("blt", "eval", "--text", book, "--model", folder, "--json")))
    expected = blt.evaluate(blt.load(folder), TEXT.encode())
    assert set(found) == {field for field in Evaluation.__dataclass_fields__}
    assert found["bits_per_byte"] == pytest.approx(expected.bits_per_byte)
    assert found["mean_patch_bytes"] == pytest.approx(expected.mean_patch_bytes)
    assert found["flops_per_byte"] == pytest.approx(expected.flops_per_byte)


def test_eval_with_noise(run: Run, flat: Path, book: Path) -> None:
    words = ("blt", "eval", "--text", book, "--model", flat, "--noise", "--seed", "3")
    found = json.loads(done(run(*words, "--stride", "64", "--json")))
    assert found["stride"] == 64
    assert {row["noise"] for row in found["noise"]} >= {"none", "case", "drop", "swap"}
    assert found["noise"][0]["bits_per_byte"] == pytest.approx(found["bits_per_byte"])
    shown = done(run(*words))
    assert re.search(r"bits per byte +\d\.\d{4}", shown)
    assert re.search(r"^drop +0\.05 +\d\.\d{4} +\d\.\d{4}$", shown, re.MULTILINE)


def test_patch_separates_without_colours(run: Run, folder: Path) -> None:
    found = blt.patches(blt.load(folder), "Café\n")
    assert len(found.pieces) > 1
    shown = done(run("blt", "patch", "Café\n", "--model", folder))
    assert shown.splitlines()[0] == blt.colored(found, colors=False).plain.rstrip("\n")
    assert f"{len(found.pieces)} patches" in shown.splitlines()[-1]
    table = done(run("blt", "patch", "Café\n", "--model", folder, "--table"))
    assert len(table.splitlines()) == len(found.pieces) + 2


def test_patch_as_json_with_another_rule(run: Run, folder: Path, tmp_path: Path) -> None:
    words = ("blt", "patch", "--model", folder, "--json")
    found = json.loads(done(run(*words, "one two", "--mode", "space")))
    assert found["boundaries"] == [0, 4]
    assert found["patches"] == ["one ", "two"]
    assert json.loads(done(run(*words, "abc", "--threshold", "-1")))["lengths"] == [1, 1, 1]
    found = json.loads(done(run(*words, "-", input=b"a\xff\0b")))
    assert (found["bytes"], len(found["entropies"])) == (4, 4)


def test_a_word_that_names_a_file_stays_a_word(
    run: Run, folder: Path, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(book.parent)
    words = ("blt", "patch", "--model", folder, "--json")
    assert json.loads(done(run(*words, "book.txt")))["bytes"] == len("book.txt")
    assert json.loads(done(run(*words, "--text", "book.txt")))["bytes"] == len(TEXT.encode())


def test_patch_saves_a_plot(run: Run, folder: Path, tmp_path: Path) -> None:
    plot = tmp_path / "plots" / "a.svg"
    result = run("blt", "patch", "Brot", "--model", folder, "--plot", plot)
    assert done(result)
    assert f"plot: {plot}" in result.stderr
    letters = [e.text for e in ET.parse(plot).iter() if "letter" in e.get("class", "")]
    assert letters == list("Brot")


def test_generate_streams(run: Run, flat: Path, folder: Path) -> None:
    for model in (flat, folder):
        words = ("blt", "generate", "Café", "--model", model, "--max-bytes", "12")
        reply = blt.generate(blt.load(model), "Café", max_bytes=12)
        assert done(run(*words)) == reply.text + "\n"
        if model == folder:
            assert done(run(*words, "--speculate", "4")) == reply.text + "\n"
        again = (*words, "--temperature", "1", "--top-k", "50", "--seed", "4")
        assert done(run(*again)) == done(run(*again)) != done(run(*words))
        result = run("blt", "generate", "-", *words[3:], input="Café".encode())
        assert done(result) == reply.text + "\n"
        last = reply.text[-1]
        stopped = done(run(*words, "--stop", last))
        assert stopped == reply.text[: reply.text.index(last)] + "\n"


def test_generate_within_a_form(run: Run, folder: Path, tmp_path: Path) -> None:
    words = ("blt", "generate", "x", "--model", folder, "--max-bytes", "20")
    assert re.fullmatch(r"[ab]{3,9}\n", done(run(*words, "--regex", "[ab]{3,9}")))
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "integer", "minimum": 10, "maximum": 99}')
    assert 10 <= json.loads(done(run(*words, "--json-schema", schema))) <= 99


def test_defaults_that_help_texts_mention_are_true() -> None:
    verbs = dict(cli_reference.commands(typer.main.get_command(app), ()))
    helps = {p.name: p.help for p in verbs["blt", "generate"].params}
    most = inspect.signature(blt.stream_generate).parameters["max_bytes"].default
    assert f"({most})" in helps["max_bytes"]


def test_calibrate_and_save(run: Run, folder: Path, book: Path, tmp_path: Path) -> None:
    words = ("blt", "calibrate", "--text", book, "--model", folder, "--target", "3")
    found = json.loads(done(run(*words, "--save", tmp_path / "mine", "--json")))
    assert found["mean_patch_bytes"] == pytest.approx(3, abs=0.3)
    assert found["before_threshold"] == pytest.approx(5.08)
    assert found["bytes"] == len(TEXT.encode())
    model = blt.load(tmp_path / "mine")
    assert isinstance(model, blt.BltModel)
    assert model.config.patching.threshold == pytest.approx(found["threshold"])
    shown = done(run(*words, "--bytes", "200"))
    assert re.match(r"threshold [\d.]+ nats: [\d.]+ bytes per patch \(now 5\.08: [\d.]+\)", shown)


def test_convert(run: Run, folder: Path, tmp_path: Path) -> None:
    hf, back = tmp_path / "hf", tmp_path / "back"
    assert done(run("blt", "convert", folder, hf, "--to", "hf")).startswith(f"{hf}  0.")
    done(run("blt", "convert", hf, back))
    ids = mx.array([[1, 76, 101, 90]])
    assert mx.allclose(blt.load(back)(ids), blt.load(folder)(ids), atol=1e-5)


def test_train_an_entropy_model_and_then_a_blt(run: Run, book: Path, tmp_path: Path) -> None:
    train = ("blt", "train", "--text", book, "--preset", "tiny", "--steps", "2", "--seed", "1")
    small = ("--set", "train.batch_tokens=256")
    entropy, out = tmp_path / "entropy", tmp_path / "blt"
    assert done(run(*train, *small, "--out", entropy, "--kind", "entropy")) == (
        f"model: {entropy / 'model'}\n"
    )
    words = (*train, *small, "--out", out, "--entropy", entropy / "model", "--target", "2.5")
    done(run(*words))
    model = blt.load(out / "model")
    assert isinstance(model, blt.BltModel)
    placing = blt.load(entropy / "model")
    ids = mx.array([[1, 70, 80, 90]])
    assert mx.allclose(model.entropies(ids), placing.entropies(ids))
    assert 2 < blt.evaluate(model, book).mean_patch_bytes < 3
    again = run(*words)
    assert "going on from step 2" in " ".join(again.stderr.split())
    metrics = (out / "metrics.jsonl").read_text().splitlines()
    assert sum('"step"' in line and "targets" in line for line in metrics) == 2


def test_without_an_entropy_model_spaces_divide(run: Run, book: Path, tmp_path: Path) -> None:
    words = ("blt", "train", "--text", book, "--preset", "tiny", "--steps", "1")
    done(run(*words, "--set", "train.batch_tokens=128", "--out", tmp_path / "run"))
    model = blt.load(tmp_path / "run" / "model")
    assert isinstance(model, blt.BltModel)
    assert model.config.patching.mode == "space"


def test_training_honours_the_kill_switch(run: Run, book: Path, tmp_path: Path) -> None:
    stop_file().touch()
    result = run("blt", "train", "--text", book, "--out", tmp_path / "run", "--preset", "tiny")
    assert result.exit_code == 1
    assert "the kill switch is thrown" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["eval", "--text", "nowhere.txt"], 1, "nowhere.txt: cannot be read"),
        (["eval", "--text", "BOOK", "--model", "nowhere"], 1, "there is no folder 'nowhere'"),
        (["eval", "--text", "BOOK", "--model", "MODEL", "--stride", "65"], 2, "stride is 65"),
        (["patch", "", "--model", "MODEL"], 1, "the text is empty"),
        (["patch", "a", "--model", "MODEL", "--mode", "spaces"], 2, "expected one of entropy"),
        (["patch", "a", "--model", "MODEL", "--plot", "a.png"], 1, "ends in .svg"),
        (["calibrate", "--text", "BOOK", "--model", "MODEL", "--target", "900"], 2, "choose a"),
        (["calibrate", "--text", "BOOK", "--model", "FLAT", "--target", "4"], 2, "no patches"),
        (["convert", "MODEL", "NEW", "--to", "gguf"], 2, "expected 'mlx' or 'hf'"),
        (["train", "--text", "BOOK", "--out", "NEW", "--kind", "bilt"], 2, "kind"),
        (["train", "--text", "BOOK", "--out", "NEW", "--preset", "huge"], 2, "preset"),
        (["train", "--text", "BOOK", "--out", "NEW", "--entropy", "MODEL"], 2, "no entropy model"),
        (["train", "--text", "nowhere.txt", "--out", "NEW"], 1, "nowhere.txt"),
        (["generate", "a", "--model", "MODEL", "--max-bytes", "999"], 1, "trained on texts of 64"),
        (["generate", "a", "--model", "FLAT", "--max-bytes", "9", "--speculate", "4"], 1, "flat"),
        (["generate", "a", "--model", "MODEL", "--regex", "("], 2, "("),
        (["generate", "a", "--model", "MODEL", "--json-schema", "BOOK"], 2, "is no JSON"),
        (["generate", "a", "--model", "MODEL", "--json-schema", "none"], 2, "none cannot be read"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_an_error_is_one_line_that_says_what_to_do(
    words: list[str],
    code: int,
    said: str,
    run: Run,
    folder: Path,
    flat: Path,
    book: Path,
    tmp_path: Path,
) -> None:
    names = {"BOOK": book, "MODEL": folder, "FLAT": flat, "NEW": tmp_path / "new"}
    result = run("blt", *(str(names.get(word, word)) for word in words))
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert said in result.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["patch"],
        ["patch", "a", "--text", "b"],
        ["eval"],
        ["calibrate", "--text", "a"],
        ["generate", "a", "--regex", "a", "--json-schema", "b"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_ends_with_2(words: list[str], run: Run) -> None:
    result = run("blt", *words)
    assert (result.exit_code, result.stdout) == (2, "")
