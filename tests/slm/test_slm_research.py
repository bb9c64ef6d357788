"""The research classifier: both heads, the uncertain band, dates, faults, threads."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patience import slowness
from tiny import tiny_bert

from mlx_companion.errors import ConfigError, DataError, ModelNotFoundError, SLMError
from mlx_companion.models.encoder import load_encoder
from mlx_companion.slm.backbone import BaseSLMAdapter, EncoderAdapter
from mlx_companion.slm.linear import LinearHead
from mlx_companion.slm.network import NetworkConfig
from mlx_companion.slm.ngrams import NGramConfig, NGrams
from mlx_companion.slm.packs import WEIGHTS, Pack
from mlx_companion.slm.research import ResearchClassifier, as_date
from mlx_companion.slm.research_queries import generate_queries
from mlx_companion.slm.research_train import ResearchTrainConfig, train_research_classifier
from mlx_companion.slm.results import ResearchResult
from mlx_companion.slm.tuned_encoder import TuneConfig, Tuned

LIVE = [
    "who is the mayor of oslo right now",
    "what's the weather in rome tomorrow",
    "bitcoin price today",
    "latest version of ubuntu",
    "is the library open on sunday",
    "who won the game last night",
    "fact check: the senate passed the bill",
]
SETTLED = [
    "why is the sky blue",
    "who was the first president of france",
    "how do i reverse a list in python",
    "what is 12 times 30",
    "write a poem about autumn",
    "what is on my shopping list",
    "thanks, that was helpful",
]


class Lengths(BaseSLMAdapter):
    """A backbone that costs nothing: a few counts of letters."""

    def __init__(self, identity: str = "lengths", broken: Exception | None = None) -> None:
        super().__init__("lengths")
        self._identity, self._broken = identity, broken

    @property
    def loaded(self) -> bool:
        return True

    @property
    def memory_bytes(self) -> int:
        return 0

    @property
    def identity(self) -> str:
        if self._broken is not None:
            raise self._broken
        return self._identity

    def _load(self) -> None:
        """Nothing to read."""

    def _unload(self) -> None:
        """Nothing to let go of."""

    def _features(self, texts: Sequence[str]) -> np.ndarray:
        counts = [[len(text), text.count("e"), text.count("w"), text.count(" ")] for text in texts]
        return np.array(counts, dtype=np.float32)

    def _generate(self, prompt: Any, max_tokens: int) -> str:
        raise SLMError("no text")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def pack(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Pack:
    queries = generate_queries(per_template=1, seed=1)[::2]
    config = ResearchTrainConfig(
        max_steps=25,
        folds=2,
        network=NetworkConfig(members=1, hidden=8, epochs=1),
        tuning=TuneConfig(rank=2, epochs=1),
        samples={"generated": 100},
    )
    folder = tmp_path_factory.mktemp("pack") / "research"
    return train_research_classifier(
        queries, folder, backbone=Lengths(), encoder=EncoderAdapter(str(bert)), config=config
    ).pack


@pytest.fixture
def made(pack: Pack, bert: Path) -> ResearchClassifier:
    return ResearchClassifier(pack=pack, backbone=Lengths(), encoder=EncoderAdapter(str(bert)))


@pytest.fixture(scope="module")
def light() -> ResearchClassifier:
    return ResearchClassifier(use_backbone=False)


def test_plain_cases_are_told_apart_without_a_backbone(light: ResearchClassifier) -> None:
    results = light.process_batch(LIVE + SETTLED)
    assert [result.needs_research for result in results] == [True] * 7 + [False] * 7
    assert {result.head for result in results} == {"ngrams"}
    for result in results:
        assert 0.5 <= result.confidence < 1
        json.dumps(result.to_dict())


def test_results_explain_themselves_by_factors(light: ResearchClassifier) -> None:
    says = {factor.name: factor.says for factor in light.rules.factors}
    for query in LIVE + SETTLED:
        result = light.process(query)
        for name in result.factors:
            assert says[name] in result.reasoning
    silent = light.process("zxcv")
    assert silent.factors == {}
    assert "no factor speaks for it" in silent.reasoning


@pytest.mark.parametrize(
    ("query", "category"),
    [
        ("what's the weather in rome tomorrow", "weather"),
        ("how do i reverse a list in python", "code"),
        ("what is 12 times 30", "mathematics"),
        ("fact check: the senate passed the bill", "verification"),
    ],
)
def test_categories(light: ResearchClassifier, query: str, category: str) -> None:
    assert light.process(query).category == category


def test_dates_change_the_answer(light: ResearchClassifier) -> None:
    asked = {"query": "who won the world cup in 2022", "today": "2025-01-01"}
    after = light.process({**asked, "cutoff": "2021-12"})
    before = light.process({**asked, "cutoff": "2024"})
    assert after.needs_research
    assert not before.needs_research
    assert "after the model's cutoff" in after.reasoning
    set_once = ResearchClassifier(use_backbone=False, today="2025-01-01", cutoff="2021-12")
    assert set_once.process(asked["query"]) == after


def test_the_uncertain_band_goes_where_it_is_told() -> None:
    def make(**options: Any) -> ResearchClassifier:
        return ResearchClassifier(use_backbone=False, confidence_threshold=1.0, **options)

    query = "who wrote hamlet"
    kept = make().process(query)
    assert kept.uncertain
    assert not kept.needs_research
    research = make(on_uncertain="research").process(query)
    assert research.needs_research
    assert research.confidence == pytest.approx(1 - kept.confidence)
    assert "the set rule held" in research.reasoning
    assert not make(on_uncertain="answer").process("weather in rome").needs_research
    seen: list[tuple[str, ResearchResult]] = []

    def ask(text: str, result: ResearchResult) -> bool:
        seen.append((text, result))
        return True

    assert make(on_uncertain=ask).process(query).needs_research
    assert seen[0][0] == query
    never = ResearchClassifier(use_backbone=False, confidence_threshold=0, on_uncertain="research")
    assert not never.process(query).uncertain


def test_the_full_head_is_used_with_its_own_backbone(
    made: ResearchClassifier, pack: Pack, bert: Path
) -> None:
    results = made.process_batch(LIVE + SETTLED)
    assert {result.head for result in results} == {"backbone+encoder"}
    assert made.degraded is None
    # Anew, as the first one keeps what it computed; alone, where a batch is padded.
    again = ResearchClassifier(pack=pack, backbone=Lengths(), encoder=EncoderAdapter(str(bert)))
    for query, result in zip(LIVE + SETTLED, results, strict=True):
        assert again.process(query).confidence == pytest.approx(result.confidence, abs=1e-5)


def test_a_head_is_the_weighted_sum_of_its_experts(
    made: ResearchClassifier, pack: Pack, bert: Path
) -> None:
    query = "who is the mayor of oslo right now"
    found = made.process(query)
    factors = made.rules.vector(made.rules.read(query, as_date(2026), as_date(2023)))
    row = np.concatenate([Lengths().features([query])[0], factors])
    hidden = np.clip(
        (row - pack.arrays["network.mean"]) / pack.arrays["network.deviation"], -5, 5
    ) @ pack.arrays["network.into"].astype(np.float32)
    hidden = np.maximum(hidden + pack.arrays["network.shift"], 0)
    network = hidden @ pack.arrays["network.out"] + pack.arrays["network.bias"][0]
    tuned = Tuned.from_arrays(load_encoder(bert), pack.arrays).logits([query])[0]
    parts = NGramConfig(**pack.settings["ngrams"])
    linear = LinearHead.from_arrays(pack.arrays, "ngrams")
    pairs = made.rules.pairs([made.rules.read(query, as_date(2026), as_date(2023))])
    light = linear.logits([NGrams(parts).transform([query]), factors[None], pairs])[0, 0]
    blend = pack.settings["heads"]["backbone+encoder"]
    logits = {"ngrams": light, "network": network, "tuned": tuned}
    total = sum(blend["weights"][name] * value for name, value in logits.items())
    chance = 1 / (1 + np.exp(-total - blend["offset"]))
    assert found.needs_research == (chance >= 0.5)
    assert found.confidence == pytest.approx(max(chance, 1 - chance), abs=1e-4)


@pytest.mark.parametrize(
    ("backbone", "problem"),
    [
        (Lengths("another"), "trained for another backbone"),
        (Lengths(broken=ModelNotFoundError("no such model")), "no such model"),
    ],
)
def test_without_its_backbone_it_degrades_and_says_so(
    pack: Pack, backbone: Lengths, problem: str
) -> None:
    classifier = ResearchClassifier(pack=pack, backbone=backbone)
    result = classifier.process("who is the mayor of oslo")
    assert result.head == "ngrams"
    assert problem in str(classifier.degraded)
    alone = ResearchClassifier(pack=pack, use_backbone=False)
    assert alone.process("who is the mayor of oslo") == result


@pytest.mark.parametrize("seed", [None, 1])
def test_without_its_encoder_the_backbone_still_answers(
    pack: Pack, tmp_path: Path, seed: int | None
) -> None:
    lost = tmp_path / "bert"
    if seed is not None:
        tiny_bert(lost, seed=seed)
    problem = "there is no|cannot be loaded" if seed is None else "trained for another encoder"
    classifier = ResearchClassifier(
        pack=pack, backbone=Lengths(), encoder=EncoderAdapter(str(lost))
    )
    assert classifier.process("who is the mayor of oslo").head == "backbone"
    assert re.search(problem, str(classifier.degraded))


@pytest.mark.parametrize("query", ["", " \n\t ", "\u200b\ufeff", "\u3000"])
def test_a_query_without_anything_to_read_says_so(light: ResearchClassifier, query: str) -> None:
    always = ResearchClassifier(pack=light.pack, use_backbone=False, on_uncertain="research")
    for found in (light.process(query), light.fallback(query), always.process(query)):
        assert not found.needs_research
        assert (found.confidence, found.uncertain) == (0.5, True)
        assert "nothing to read" in found.reasoning
        assert found.factors == {}


def test_queries_beside_one_without_anything_to_read_keep_their_answers(
    light: ResearchClassifier,
) -> None:
    queries = [LIVE[0], "", SETTLED[0], " ", LIVE[1]]
    found = light.process_batch(queries)
    alone = [light.process(query) for query in queries]
    assert [one.needs_research for one in found] == [one.needs_research for one in alone]
    assert [one.reasoning for one in found] == [one.reasoning for one in alone]


def test_the_keyword_rule_needs_no_weights(light: ResearchClassifier) -> None:
    found = light.fallback({"query": "who is the mayor of oslo"})
    assert found.needs_research
    assert found.head == "table"
    assert 0.5 <= found.confidence <= 1
    assert not light.fallback("why is the sky blue").needs_research


@pytest.mark.parametrize(
    "item", [None, 3, ["a"], {"text": "a"}, {"query": 3}, {"query": "a", "today": "soon"}]
)
def test_bad_items_are_refused_before_any_work(light: ResearchClassifier, item: Any) -> None:
    with pytest.raises(DataError):
        light.process_batch(["a good one", item])


@pytest.mark.parametrize("query", ["", "   ", "?" * 5000, "🙂 漢字", "a\x00b", "w " * 20_000])
def test_odd_texts_have_an_answer(light: ResearchClassifier, query: str) -> None:
    assert 0.5 <= light.process(query).confidence <= 1


def test_no_items(light: ResearchClassifier) -> None:
    assert light.process_batch([]) == []


@pytest.mark.parametrize(
    "options",
    [{"confidence_threshold": 1.2}, {"on_uncertain": "guess"}, {"cutoff": "spring"}, {"today": 5}],
)
def test_bad_options_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError):
        ResearchClassifier(**options)


def test_a_damaged_pack_is_refused(pack: Pack, tmp_path: Path) -> None:
    folder = tmp_path / "pack"
    folder.mkdir()
    assert pack.folder is not None
    for file in pack.folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = bytearray((folder / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (folder / WEIGHTS).write_bytes(weights)
    with pytest.raises(SLMError, match="damaged"):
        ResearchClassifier(pack=folder)


def test_a_pack_of_another_kind_is_refused(pack: Pack) -> None:
    with pytest.raises(SLMError, match="no head 'ngrams'"):
        ResearchClassifier(pack=replace(pack, arrays={"full.bias": np.zeros(1)}))
    arrays = {k: v for k, v in pack.arrays.items() if not k.startswith("network.")}
    with pytest.raises(SLMError, match="no network"):
        ResearchClassifier(pack=replace(pack, arrays=arrays))


def test_many_threads_get_the_same_answers(
    made: ResearchClassifier, pack: Pack, bert: Path
) -> None:
    alone = ResearchClassifier(pack=pack, backbone=Lengths(), encoder=EncoderAdapter(str(bert)))
    expected = {query: alone.process(query) for query in LIVE + SETTLED}
    start = threading.Barrier(8)

    def work(_: int) -> bool:
        start.wait()
        return all(made.process(query) == expected[query] for query in LIVE + SETTLED)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_the_light_head_takes_milliseconds(light: ResearchClassifier) -> None:
    light.process("warm up")
    took = []
    for at in range(20):
        start = time.thread_time()
        light.process(f"who is the prime minister of the united kingdom {at}")
        took.append(time.thread_time() - start)
    assert min(took) < 0.01 * slowness()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("2024-06-30", "2024-06-30"),
        ("2024-06", "2024-06-30"),
        ("2024-12", "2024-12-31"),
        ("2024-02", "2024-02-29"),
        (2024, "2024-12-31"),
        ("2024-06-30T12:00:00", "2024-06-30"),
    ],
)
def test_dates_are_read(given: str | int, expected: str) -> None:
    assert as_date(given).isoformat() == expected


@pytest.mark.real_model
def test_the_shipped_head_reads_the_default_model(real_cache: Path) -> None:
    classifier = ResearchClassifier()
    results = classifier.process_batch(LIVE + SETTLED)
    assert classifier.degraded is None
    assert {result.head for result in results} == {"backbone+encoder"}
    assert [result.needs_research for result in results] == [True] * 7 + [False] * 7


def test_the_field_of_a_wrong_date_is_named(light: ResearchClassifier) -> None:
    for name in ("today", "cutoff"):
        with pytest.raises(DataError, match=f"field '{name}': 'soon' is no date"):
            light.process({"query": "x", name: "soon"})


def test_a_megabyte_is_read_at_its_ends_and_half_a_character_is_no_fault(
    light: ResearchClassifier, made: ResearchClassifier
) -> None:
    long = "what is the price of gold today? " + "SO fast!! at 3.50 * " * 50_000
    assert light.process(long).factors == light.process(long[:4000] + " " + long[-4000:]).factors
    assert "prices" in light.process(long).factors
    assert made.process("the price \ud83d of gold").head == made.process("a").head
