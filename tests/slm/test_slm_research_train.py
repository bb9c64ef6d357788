"""Training of the research classifier: queries, sources, weights, held-out figures, the pack."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_bert, tiny_llama

from mlx_companion.errors import ConfigError, DataError, Stopped
from mlx_companion.runtime.stop import StopSwitch
from mlx_companion.slm import research_sources
from mlx_companion.slm.backbone import EncoderAdapter, LanguageModelAdapter
from mlx_companion.slm.network import NetworkConfig
from mlx_companion.slm.packs import load_pack, packaged
from mlx_companion.slm.research import ResearchClassifier
from mlx_companion.slm.research_queries import Query, generate_queries
from mlx_companion.slm.research_sources import (
    read_clinc,
    read_collections,
    read_queries,
    read_remarks,
)
from mlx_companion.slm.research_train import (
    KNOWN,
    UNSEEN,
    ResearchTrainConfig,
    _weights,
    train_research_classifier,
)
from mlx_companion.slm.tuned_encoder import TuneConfig
from recipes import train_research


@pytest.fixture(scope="module")
def generated() -> list[Query]:
    return generate_queries(per_template=3, seed=0)


def test_generated_queries_are_many_different_and_balanced(generated: list[Query]) -> None:
    texts = [query.text.lower() for query in generated]
    assert len(texts) == len(set(texts)) > 1500
    share = np.mean([query.needs_research for query in generated])
    assert 0.4 < share < 0.6
    assert all(query.family and query.category for query in generated)


def test_no_slot_or_choice_is_left_open(generated: list[Query]) -> None:
    for query in generated:
        assert "{" not in query.text, query
        assert "|" not in query.text, query
        assert query.text == query.text.strip()


def test_both_labels_come_in_the_same_styles(generated: list[Query]) -> None:
    def shares(label: bool) -> np.ndarray:
        texts = [query.text for query in generated if query.needs_research == label]
        styles = [
            [text.endswith("?"), text[0].isupper(), len(text.split()) > 14, text.isupper()]
            for text in texts
        ]
        return np.mean(styles, axis=0)

    assert np.abs(shares(True) - shares(False)).max() < 0.07


def test_a_seed_repeats_and_another_differs() -> None:
    first, again = generate_queries(1, seed=3), generate_queries(1, seed=3)
    assert first == again
    assert first != generate_queries(1, seed=4)


def test_years_fit_their_cutoff() -> None:
    dated = [q for q in generate_queries(8, seed=0) if q.family == "dated:0"]
    assert dated
    for query in dated:
        years = [int(word) for word in query.text.replace("?", " ").split() if word.isdigit()]
        assert query.cutoff is not None
        assert all(year > query.cutoff.year for year in years)


def test_sources_and_labels_count_evenly() -> None:
    sources = np.array(["a"] * 90 + ["b"] * 10)
    labels = np.array([1] * 60 + [0] * 30 + [0] * 10)
    weights = _weights(sources, labels, {"b": 3.0})
    assert weights.sum() == pytest.approx(1)
    assert weights[:60].sum() == pytest.approx(weights[60:90].sum()) == pytest.approx(1 / 8)
    assert weights[90:].sum() == pytest.approx(3 / 4)


SMALL = NetworkConfig(members=2, hidden=8, epochs=4)


def _two_sources() -> list[Query]:
    """The word "now" needs research; sources differ in everything else."""
    rng = np.random.default_rng(0)
    words = {"a": ["red", "green", "blue", "tree"], "b": ["uno", "dos", "tres", "cinco"]}
    queries = []
    for source, known in words.items():
        for _ in range(150):
            label = bool(rng.random() < 0.5)
            text = " ".join([*rng.choice(known, 4), "now" if label else "then"])
            queries.append(Query(text, label, "", source, f"{source}:{text}"))
    return queries


def test_unseen_sources_are_measured_and_the_pack_can_be_used(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "llama")
    backbone = LanguageModelAdapter(str(folder))
    config = ResearchTrainConfig(max_steps=40, folds=3, network=SMALL)
    made = train_research_classifier(
        _two_sources(), tmp_path / "pack", backbone=backbone, config=config, version="t1"
    )
    assert {KNOWN, UNSEEN, "unseen a", "unseen b", f"ngrams: {UNSEEN}"} <= made.scores.keys()
    assert made.scores[UNSEEN].rows == 300
    assert made.scores[f"ngrams: {UNSEEN}"].accuracy > 0.95
    assert len(made.held_out[0]) == 300
    classifier = ResearchClassifier(pack=tmp_path / "pack", backbone=backbone)
    assert classifier.process("red tree blue now").needs_research
    assert not classifier.process("uno dos tres then").needs_research
    assert classifier.degraded is None
    assert classifier.version == "t1"
    text = (tmp_path / "pack" / "README.md").read_text()
    assert "| a | 150 |" in text
    assert "unseen a" in text


def test_the_same_training_gives_the_same_pack(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "llama")
    config = ResearchTrainConfig(
        max_steps=10, folds=2, network=SMALL, tuning=TuneConfig(rank=2, epochs=1)
    )
    bert = tiny_bert(tmp_path / "bert")
    packs = [
        train_research_classifier(
            _two_sources()[::5],
            tmp_path / name,
            backbone=LanguageModelAdapter(str(folder)),
            encoder=EncoderAdapter(str(bert)),
            config=config,
        ).pack.sha256
        for name in ("one", "two")
    ]
    assert packs[0] == packs[1]


def test_sources_that_go_together_are_left_out_together(tmp_path: Path) -> None:
    def accuracy(together: tuple[tuple[str, ...], ...]) -> float:
        config = ResearchTrainConfig(max_steps=40, folds=2, network=SMALL, together=together)
        made = train_research_classifier(
            [*_two_sources(), *(Query(f"wann {i}", i % 2 == 0, "", "c") for i in range(20))],
            tmp_path / "pack",
            backbone=LanguageModelAdapter(str(tiny_llama(tmp_path / "llama"))),
            config=config,
        )
        return made.scores["ngrams: unseen a"].accuracy

    # What "now" means is learned from the other source only.
    assert accuracy(()) > 0.95
    assert accuracy((("a", "b"),)) < 0.7


def test_a_stopped_training_leaves_no_pack(tmp_path: Path) -> None:
    stop = StopSwitch()
    stop.request("test")
    with pytest.raises(Stopped):
        train_research_classifier(
            _two_sources(),
            tmp_path / "pack",
            backbone=LanguageModelAdapter(str(tiny_llama(tmp_path / "llama"))),
            stop=stop,
        )
    assert not (tmp_path / "pack").exists()


def test_one_label_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one label"):
        train_research_classifier([Query("a", True)], tmp_path / "pack", backbone=object())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="folds"):
        ResearchTrainConfig(folds=1)


def test_labelled_rows_are_read(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    rows = [
        {"query": "A?", "needs_research": True, "cutoff": "2024-06"},
        {"query": "b", "needs_research": False, "source": "other"},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = read_queries(file)
    assert (first.text, first.needs_research, first.source) == ("A?", True, "mine")
    assert str(first.cutoff) == "2024-06-30"
    assert second.source == "other"


@pytest.mark.parametrize(
    "line", ["nonsense", "[1]", '{"query": 3, "needs_research": true}', '{"query": "a"}']
)
def test_wrong_rows_are_named_by_line(tmp_path: Path, line: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text('{"query": "a", "needs_research": true}\n' + line + "\n")
    with pytest.raises(DataError, match=r"bad\.jsonl:2"):
        read_queries(file)
    with pytest.raises(DataError, match="cannot be read"):
        read_queries(tmp_path / "missing.jsonl")


def test_collections_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = hashlib.sha256(b"how tall is it").hexdigest()[:12]
    monkeypatch.setattr(research_sources, "_outside_labels", lambda: {key: True})
    rows = [("how tall is it", "oos"), ("unlabelled", "oos"), ("a visa?", "international_visa")]
    lines = [json.dumps({"text": text, "intent": intent}) + "\n" for text, intent in rows]
    (tmp_path / "train.jsonl").write_text("".join(lines))
    (tmp_path / "val.jsonl").write_text(json.dumps({"text": "x", "intent": "time"}) + "\n")
    found = read_clinc(tmp_path)
    assert [(q.text, q.needs_research, q.source) for q in found] == [
        ("how tall is it", True, "clinc_outside"),
        ("a visa?", True, "clinc_more"),
    ]
    (tmp_path / "remarks.tsv").write_text("so true\t3\tx\nlol\t1\ty\nso true\t1\tz\n")
    remarks = read_remarks(tmp_path / "remarks.tsv", 5)
    assert sorted(query.text for query in remarks) == ["lol", "so true"]
    assert not any(query.needs_research for query in remarks)


def test_a_folder_of_collections_is_read_as_a_whole(tmp_path: Path) -> None:
    for name in ("research", "clinc150", "goemotions"):
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=r"research/\*\.jsonl"):
        read_collections(tmp_path / "research")
    (tmp_path / "research" / "a.jsonl").write_text('{"query": "rain?", "needs_research": true}\n')
    visa = '{"text": "a visa?", "intent": "international_visa"}\n'
    for name in ("train.jsonl", "val.jsonl"):
        (tmp_path / "clinc150" / name).write_text(visa)
    (tmp_path / "goemotions" / "train.tsv").write_text("so true\t3\tx\n")
    found = [(query.text, query.source) for query in read_collections(tmp_path)]
    more = ("a visa?", "clinc_more")
    assert found == [("rain?", "a"), more, more, ("so true", "remarks")]


def test_the_shipped_pack_is_whole_and_small() -> None:
    folder = packaged("research_classifier")
    pack = load_pack(folder, "research_classifier")
    assert sum(file.stat().st_size for file in folder.iterdir()) < 5_000_000
    assert pack.metrics[UNSEEN]["accuracy"] > 0.85
    assert "Held-out figures" in (folder / "README.md").read_text()


def test_the_recipe_runs_in_smoke_mode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_research.main(["--smoke", "--out", str(tmp_path)])
    report = json.loads((tmp_path / "report.json").read_text())
    assert KNOWN in report
    assert (tmp_path / "reliability.svg").read_text().startswith("<svg")
    load_pack(tmp_path / "pack", "research_classifier")
    assert KNOWN in capsys.readouterr().out
