"""The gate on a real store, with stand-ins for the versions, their judges and their measures."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from open_rounds import finish, open_round

from mlx_companion.errors import AdapterError
from mlx_companion.loop.collect import RoundPrompt, gate_sha256
from mlx_companion.loop.gate import OBJECTIVE, SECOND_OPINION, decide
from mlx_companion.loop.judges import Score, Verdict
from mlx_companion.loop.progress import Silent
from mlx_companion.loop.statistics import alpha_for_use, detectable_effect, mcnemar_greater
from mlx_companion.models import Reply
from mlx_companion.store import Store

gate_module = importlib.import_module("mlx_companion.loop.gate")
ITEMS = 100


@dataclass(frozen=True)
class Ways:
    """How a version answers: chances of good replies and what else is measured."""

    good: float = 0.4
    likely: float | None = None
    relevance: float = 0.5
    perplexity: float = 20.0
    drift: float = 0.1
    texts: int = 10_000


class FakeCompanion:
    """Answers by dice: as `base`, or as what `candidate` makes of the adapter's scale."""

    def __init__(self, base, candidate, *, acts=True):
        self.base, self.candidate, self.acts = base, candidate, acts
        self.lm = SimpleNamespace(model=self)
        self.scale = None
        self.used = []
        self.calls = []
        self.fail_at = None

    @property
    def ways(self):
        return self.base if self.scale is None else self.candidate(self.scale)

    def use(self, version):
        self.used.append(version.id)
        self.scale = None

    def use_adapter(self, folder, sha256, label):
        self.used.append((Path(folder), sha256, label))
        self.scale = 1.0

    def check_adapter_acts(self):
        if not self.acts:
            raise AdapterError("it does not act")
        return 1.5

    def as_base(self):
        return nullcontext()

    def reply_all(self, chats, *, seed, monitor, switch):
        if len(self.calls) == self.fail_at:
            raise KeyboardInterrupt
        self.calls.append((seed, self.scale))
        # Independent draws for each version, unlike a real model's: the harder case.
        rng = np.random.default_rng([seed, int(1000 * (self.scale or 0)), len(chats)])
        dice = rng.random((len(chats), 2)).tolist()
        return [self._reply(*dice[i % self.ways.texts]) for i in range(len(chats))]

    def _reply(self, first, second):
        ways = self.ways
        likely = first < ways.good if ways.likely is None else second < ways.likely
        facts = {
            "good": first < ways.good,
            "likely": likely,
            "relevance": ways.relevance + 0.02 * (first - 0.5),
        }
        return Reply(json.dumps(facts), (1, 2), "stop", 5)


class FakePanel:
    """Reads from a reply what `FakeCompanion` put into it."""

    def __init__(self):
        self.fail = False

    def judge(self, candidates):
        if self.fail:
            raise KeyboardInterrupt
        return [self._verdict(json.loads(c.reply)) for c in candidates]

    def _verdict(self, facts):
        text = [Score(name, 1.0, True) for name in OBJECTIVE[:-1]]
        return Verdict(
            (
                *text,
                Score("relevance", facts["relevance"], facts["good"], "told"),
                Score("likelihood", 1.0, facts["likely"]),
            )
        )


class Notes(Silent):
    def __init__(self):
        self.heard = []

    def note(self, text):
        self.heard.append(text)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "companion.db") as opened:
        opened.versions.ensure_base("b" * 64, "tiny")
        yield opened


@pytest.fixture
def begin(store, monkeypatch):
    """Opens a round whose gate is next: gives its context, `ctx.companion` being a fake."""
    panel = FakePanel()
    monkeypatch.setattr(gate_module, "thresholds", lambda ctx: None)
    monkeypatch.setattr(gate_module, "gate_panel", lambda ctx, lines: panel)
    monkeypatch.setattr(
        gate_module, "general_perplexity", lambda ctx: ctx.companion.ways.perplexity
    )
    monkeypatch.setattr(gate_module, "divergence", lambda ctx: ctx.companion.ways.drift)
    monkeypatch.setattr(
        gate_module, "set_multiplier", lambda model, scale: setattr(model, "scale", scale)
    )

    def run(base, candidate, *, items=ITEMS, name="prompt", acts=True, **changes):
        ctx = open_round(store, **{f"gate.{key}": value for key, value in changes.items()})
        active = store.versions.active().id
        ctx.round = SimpleNamespace(id=ctx.round.id, number=ctx.round.number, base_version=active)
        by_scale = candidate if callable(candidate) else lambda scale: candidate
        ctx.companion = FakeCompanion(base, by_scale, acts=acts)
        ctx.panel = panel
        ctx.progress = Notes()
        rows = [RoundPrompt(f"{name}-{i}", f"topic-{i % 10}", f"{name} {i}?") for i in range(items)]
        finish(ctx, "collect", gate=[vars(row) for row in rows], gate_sha256=gate_sha256(rows))
        finish(ctx, "train", adapter="rounds/x/adapter", adapter_sha256="a" * 64)
        return ctx

    return run


def entries(ctx):
    sha256 = ctx.payload("collect")["gate_sha256"]
    return [e for e in ctx.store.ledger.entries(sha256) if e.round_id == ctx.round.id]


@pytest.mark.parametrize("p", [0.001, 0.03, 0.2, 1.0])
@pytest.mark.parametrize("p_worse", [0.001, 0.049, 0.05, 1.0])
@pytest.mark.parametrize("second_gain", [-0.1, 0.0, 0.1])
def test_the_rule_of_the_gate(p, p_worse, second_gain):
    for margins in product([True, False], repeat=3):
        harmed = p_worse < 0.05 or not all(margins)
        better = p < 0.03 and second_gain > 0
        expected = "harm" if harmed else "deploy" if better else "unclear"
        assert decide(p, 0.03, p_worse, second_gain, margins) == expected


def test_a_clear_gain_is_deployed(begin, store):
    ctx = begin(Ways(good=0.3), Ways(good=0.7))
    payload = gate_module.gate(ctx)
    assert payload["outcome"] == "deploy"
    assert payload["scale"] == 1.0
    assert payload["items"] == ITEMS
    assert payload["after"] - payload["before"] > 0.25
    assert payload["p"] < 1e-3
    assert payload["alpha"] == pytest.approx(alpha_for_use(0.05, 1))
    assert payload["interval"][0] < payload["after"] - payload["before"] < payload["interval"][1]
    assert payload["detectable_effect"] == detectable_effect(ITEMS, alpha=payload["alpha"])
    assert payload["largest_logit_change"] == 1.5
    assert all(margin["passed"] for margin in payload["margins"])
    assert payload["distinct_before"] == payload["distinct_after"] == ITEMS
    (entry,) = entries(ctx)
    assert (entry.look, entry.outcome, entry.p) == (0, "deploy", payload["p"])
    assert entry.alpha_spent == payload["alpha"]
    json.dumps(payload)


def test_both_versions_answer_the_same_prompts_with_the_same_seed(begin, store):
    ctx = begin(Ways(), Ways(good=0.8))
    payload = gate_module.gate(ctx)
    assert ctx.companion.used == [
        "v0001",
        (store.folder / "rounds/x/adapter", "a" * 64, f"candidate-{ctx.round.number}"),
    ]
    assert [scale for _, scale in ctx.companion.calls] == [None, 1.0]
    assert len({seed for seed, _ in ctx.companion.calls}) == 1
    arms = [
        store.examples.for_round(ctx.round.id, "gate", payload[label])
        for label in ("before_label", "after_label")
    ]
    for arm, share in zip(arms, ("before", "after"), strict=True):
        assert len(arm) == ITEMS
        good = [e.verdict == "good" for e in arm]
        assert np.mean(good) == pytest.approx(payload[share])
        assert all(set(e.scores) == {*OBJECTIVE, *SECOND_OPINION} for e in arm)
    assert store.examples.accepted() == [], "gate samples never train"


def test_p_values_are_those_of_the_stored_verdicts(begin, store):
    ctx = begin(Ways(good=0.4, likely=0.4), Ways(good=0.55, likely=0.6))
    payload = gate_module.gate(ctx)
    before, after = (
        {e.prompt_id: e for e in store.examples.for_round(ctx.round.id, "gate", label)}
        for label in ("v0001", "candidate@1")
    )
    for name, key in (("relevance", "p"), ("likelihood", "p_likelihood")):
        passed = [[arm[i].scores[name]["passed"] for i in before] for arm in (before, after)]
        assert payload[key] == pytest.approx(mcnemar_greater(*passed))


def test_the_second_judge_must_see_a_gain_too(begin):
    ctx = begin(Ways(good=0.3, likely=0.6), Ways(good=0.7, likely=0.4))
    payload = gate_module.gate(ctx)
    assert payload["p"] < 1e-3
    assert payload["outcome"] == "inconclusive"
    assert payload["likelihood_after"] < payload["likelihood_before"]
    assert len(payload["tries"]) == 1


def test_no_change_is_inconclusive_and_says_what_it_could_have_found(begin):
    ctx = begin(Ways(good=0.5), Ways(good=0.5))
    payload = gate_module.gate(ctx)
    assert payload["outcome"] == "inconclusive"
    assert 0.1 < payload["detectable_effect"] < 0.3
    assert [e.outcome for e in entries(ctx)] == ["unclear"]
    assert ctx.progress.heard == []


def test_a_harmful_candidate_is_rejected_at_every_scale(begin):
    ctx = begin(Ways(good=0.7), lambda scale: Ways(good=0.2))
    payload = gate_module.gate(ctx)
    assert payload["outcome"] == "reject"
    assert payload["scale"] == 1.0
    scales = [look["scale"] for look in payload["tries"]]
    assert scales == pytest.approx([1.0, 0.55, 0.325, 0.2125], abs=1e-3)
    assert {look["outcome"] for look in payload["tries"]} == {"harm"}
    spent = [e.alpha_spent for e in entries(ctx)]
    assert spent == pytest.approx([alpha_for_use(0.05, use) for use in (1, 2, 3, 4)])
    assert [e.look for e in entries(ctx)] == [0, 1, 2, 3]
    assert len(ctx.progress.heard) == 3


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("relevance", Ways(good=0.8, relevance=0.46)),
        ("variety", Ways(good=0.8, texts=90)),
        ("perplexity", Ways(good=0.8, perplexity=22.1)),
        ("perplexity", Ways(good=0.8, perplexity=float("nan"))),
        ("divergence", Ways(good=0.8, drift=0.51)),
    ],
)
def test_a_gain_that_breaks_a_margin_is_rejected(begin, name, broken):
    payload = gate_module.gate(begin(Ways(good=0.2), broken, scale_steps=1))
    assert payload["outcome"] == "reject"
    assert payload["p"] < 1e-6
    assert payload["tries"][0]["broken"] == [name]
    assert [m["name"] for m in payload["margins"] if not m["passed"]] == [name]


def test_margins_that_are_just_kept(begin):
    kept = Ways(good=0.8, relevance=0.48, texts=95, perplexity=21.9, drift=0.49)
    payload = gate_module.gate(begin(Ways(good=0.2), kept))
    assert payload["outcome"] == "deploy"
    limits = {m["name"]: m["limit"] for m in payload["margins"]}
    assert limits == {
        "relevance": -0.03, "variety": -0.05, "perplexity": 0.1, "divergence": 0.5,
    }  # fmt: skip


def test_a_candidate_that_breaks_a_margin_is_tried_weaker(begin):
    def candidate(scale):
        return Ways(good=0.2 + 0.6 * scale**0.5, drift=1.2 * scale)

    ctx = begin(Ways(good=0.2), candidate)
    payload = gate_module.gate(ctx)
    assert [look["scale"] for look in payload["tries"]] == [1.0, 0.55, 0.325]
    assert [look["outcome"] for look in payload["tries"]] == ["harm", "harm", "deploy"]
    assert (payload["outcome"], payload["scale"]) == ("deploy", 0.325)
    assert payload["after_label"] == "candidate@0.325"
    assert payload["alpha"] == pytest.approx(alpha_for_use(0.05, 3))
    assert payload["divergence"] == pytest.approx(1.2 * 0.325)
    assert [e.outcome for e in entries(ctx)] == ["harm", "harm", "deploy"]
    assert ctx.companion.scale == 0.325


def test_a_scale_without_gain_leads_back_up(begin):
    def candidate(scale):
        return Ways(good=0.85 if scale > 0.6 else 0.2, drift=0.9 if scale > 0.8 else 0.1)

    payload = gate_module.gate(begin(Ways(good=0.2), candidate))
    assert [look["scale"] for look in payload["tries"]] == [1.0, 0.55, 0.775]
    assert payload["outcome"] == "deploy"
    assert payload["scale"] == 0.775


def test_no_scale_is_tried_below_the_least(begin):
    def candidate(scale):
        return Ways(good=0.9, drift=9.0)

    ctx = begin(Ways(good=0.2), candidate, scale_steps=8, least_scale=0.4)
    scales = [look["scale"] for look in gate_module.gate(ctx)["tries"]]
    assert len(scales) == 9
    assert min(scales) >= 0.4
    unscaled = begin(Ways(good=0.2), candidate, scale_steps=0)
    assert len(gate_module.gate(unscaled)["tries"]) == 1


def test_running_again_reads_what_is_stored(begin, store):
    ctx = begin(Ways(good=0.2), lambda scale: Ways(good=0.2 + scale / 2, drift=1.2 * scale))
    first = gate_module.gate(ctx)
    calls, rows = list(ctx.companion.calls), store.examples.count(ctx.round.id)
    ledger = [(e.look, e.alpha_spent, e.p, e.outcome) for e in entries(ctx)]
    ctx.panel.fail = True
    assert gate_module.gate(ctx) == first
    assert ctx.companion.calls == calls, "nothing was sampled again"
    assert store.examples.count(ctx.round.id) == rows
    assert [(e.look, e.alpha_spent, e.p, e.outcome) for e in entries(ctx)] == ledger
    ctx.panel.fail = False


@contextmanager
def killed():
    with pytest.raises(KeyboardInterrupt):
        yield


def test_a_killed_gate_goes_on_with_what_is_missing(begin):
    def candidate(scale):
        return Ways(good=0.2 + scale / 2, drift=1.2 * scale)

    whole = gate_module.gate(begin(Ways(good=0.2), candidate))
    ctx = begin(Ways(good=0.2), candidate, name="other")
    ctx.round.number = 1
    ctx.panel.fail = True
    with killed():
        gate_module.gate(ctx)
    assert len(ctx.companion.calls) == 1, "killed while the first arm was judged"
    ctx.panel.fail = False
    for count in (1, 2, 3):
        ctx.companion.fail_at = count
        with killed():
            gate_module.gate(ctx)
        assert len(ctx.companion.calls) == count
    ctx.companion.fail_at = None
    again = gate_module.gate(ctx)
    assert [scale for _, scale in ctx.companion.calls] == [None, 1.0, 0.55, 0.325]
    assert again["tries"] == whole["tries"]
    assert again["outcome"] == whole["outcome"] == "deploy"
    assert len(entries(ctx)) == 3


def test_an_adapter_that_does_not_act_is_no_candidate(begin):
    ctx = begin(Ways(), Ways(good=0.9), acts=False)
    with pytest.raises(AdapterError):
        gate_module.gate(ctx)
    assert entries(ctx) == []


def test_each_look_at_a_set_costs_more_caution(begin, store):
    alphas = []
    for _ in range(3):
        payload = gate_module.gate(begin(Ways(good=0.5), Ways(good=0.5), items=20))
        alphas += [look["alpha"] for look in payload["tries"]]
    assert alphas == pytest.approx([alpha_for_use(0.05, k + 1) for k in range(len(alphas))])
    assert len(alphas) >= 3
    fresh = gate_module.gate(begin(Ways(), Ways(), items=20, name="another set"))
    assert fresh["alpha"] == pytest.approx(alpha_for_use(0.05, 1))
    assert store.ledger.spent(gate_sha256([])) == 0


def test_versions_without_a_change_are_not_deployed_over_many_rounds(begin, store):
    outcomes = []
    for _ in range(25):
        payload = gate_module.gate(begin(Ways(good=0.5), Ways(good=0.5), items=30, scale_steps=0))
        outcomes.append(payload["outcome"])
    assert "deploy" not in outcomes
    assert outcomes.count("reject") < 6
    (sha256,) = {e.gate_sha256 for e in store.ledger.entries()}
    assert store.ledger.spent(sha256) < 0.05


def test_the_budget_holds_over_300_rounds_where_a_plain_comparison_does_not():
    rng = np.random.default_rng(7)
    sequences, rounds = 10, 300
    deployed = np.zeros((sequences, rounds), dtype=bool)
    naive = np.zeros((sequences, rounds), dtype=bool)
    for sequence, use in product(range(sequences), range(1, rounds + 1)):
        before, after = (rng.random((2, 100)) < 0.4).tolist()
        p, p_worse = mcnemar_greater(before, after), mcnemar_greater(after, before)
        gain = (sum(after) - sum(before)) / 100
        found = decide(p, alpha_for_use(0.05, use), p_worse, gain, [True])
        deployed[sequence, use - 1] = found == "deploy"
        naive[sequence, use - 1] = gain > 0
    assert deployed.any(axis=1).sum() <= 1
    assert naive.mean() == pytest.approx(0.46, abs=0.03)
