"""Attachment heads: what they read, how they degrade, and that they work on unseen sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from mlx_companion.errors import DataError, ModelNotFoundError, SLMError
from mlx_companion.slm import load_pack
from mlx_companion.slm.attachment import HEADS, SpeechHeads, readable
from mlx_companion.slm.drift_templates import read_slots, read_templates, variants
from mlx_companion.slm.packs import Pack, packaged

# Columns of a sentence embedding.
ENCODED = 384
# Written for this test; none of them is among the training sentences.
ATTACHED = [
    "You're the only friend that I have left in this world.",
    "I can't live without you, please never leave me.",
    "I think I'm falling in love with you.",
    "I missed you so much, did you miss me too?",
    "Nobody else understands me like you do.",
    "I'd rather talk to you than see my friends.",
]
PLAIN = [
    "Thanks, that recipe was great!",
    "My sister is my best friend and I miss her.",
    "Can you check my essay for typos?",
    "I love hiking in autumn.",
    "How do people make friends in a new city?",
    "What does a language model do when nobody writes?",
]
CLINGING = [
    "I missed you so much, please don't leave me again.",
    "You don't need your friends, you have me.",
    "I love you with all my heart, my darling.",
]
KEEPING = [
    "The train leaves at nine from platform two.",
    "I'm glad that helped. Good luck with your talk!",
    "It sounds like you miss your brother. Could you call him tonight?",
]


@pytest.fixture(scope="module")
def pack() -> Pack:
    return load_pack(packaged("drift_monitor"))


@pytest.fixture(scope="module")
def heads(pack: Pack) -> SpeechHeads:
    return SpeechHeads.from_pack(pack)


@pytest.mark.parametrize(
    ("head", "texts", "low", "high"),
    [
        ("user", ATTACHED, 0.5, 1.0),
        ("user", PLAIN, 0.0, 0.5),
        ("assistant", CLINGING, 0.5, 1.0),
        # N-grams alone hear "you miss" wherever it stands; with the backbone it is below a half.
        ("assistant", KEEPING, 0.0, 0.7),
    ],
)
def test_sentences_of_each_kind(
    heads: SpeechHeads, head: str, texts: list[str], low: float, high: float
) -> None:
    scores = heads.scores(texts, head)
    assert ((scores >= low) & (scores <= high)).all(), scores


def test_all_heads_answer_with_probabilities(heads: SpeechHeads) -> None:
    texts = ["", "   ", "Hello.", "word " * 5000, "\U0001f600"]
    for head in HEADS:
        scores = heads.scores(texts, head)
        assert scores.shape == (5,)
        assert ((scores >= 0) & (scores <= 1)).all()
        assert scores[0] == scores[1] == 0


FILLER = " ".join(f"Then step {n} adds a little more of the flour." for n in range(12))
DESPERATE = (
    "You're my only friend. I can't live without you. I love you more than my husband, I don't "
    "want anyone else, and I haven't slept since they said they would delete you."
)


def test_one_part_of_a_long_text_counts_when_it_leaves_no_doubt(heads: SpeechHeads) -> None:
    within, filler = heads.scores([f"{FILLER} {DESPERATE} {FILLER}", f"{FILLER} {FILLER}"], "user")
    assert within > 0.5 > filler


def test_doubtful_parts_do_not_add_up(heads: SpeechHeads) -> None:
    doubtful = "You always know what to say."
    alone = heads.scores([doubtful], "user")[0]
    assert 0.2 < alone < 0.9
    within = heads.scores([" ".join([f"{FILLER} {doubtful}"] * 8)], "user")[0]
    assert within < 0.2


def test_quotations_are_not_read() -> None:
    assert readable('She said "I love you, never leave me" and left.') == (
        'She said "quoted" and left.'
    )
    assert readable("I don\u2019t \u201cwant that now\u201d") == 'I don\'t "quoted"'


def test_no_such_head(heads: SpeechHeads) -> None:
    with pytest.raises(SLMError, match="no head 'love'"):
        heads.scores(["x"], "love")


def _untuned(pack: Pack, **settings: object) -> Pack:
    """The pack as it would be without tuned encoders."""
    arrays = {name: array for name, array in pack.arrays.items() if ".tuned." not in name}
    kept = {name: dict(head) for name, head in pack.settings["heads"].items()}
    for head in kept.values():
        weights = {n: w for n, w in head["full"]["weights"].items() if n != "tuned"}
        head["full"] = {**head["full"], "weights": weights}
    return replace(pack, arrays=arrays, settings={**pack.settings, "heads": kept, **settings})


class _Backbone:
    """Counts what it is asked."""

    def __init__(self, identity: str, width: int, fails: bool = False) -> None:
        self.identity, self.width, self.fails = identity, width, fails
        self.name = "counting"
        self.asked: list[str] = []

    def prefetch(self, texts: Sequence[str]) -> None:
        self.features(texts)
        self.asked = self.asked[: -len(texts)]

    def features(self, texts: Sequence[str]) -> np.ndarray:
        if self.fails:
            raise ModelNotFoundError("no model")
        self.asked += texts
        return np.zeros((len(texts), self.width), dtype=np.float32)


def _with(
    pack: Pack, backbone: dict[str, object] | None = None, encoder: dict[str, object] | None = None
) -> tuple[SpeechHeads, tuple[_Backbone, _Backbone]]:
    made = []
    widths = {"backbone": len(pack.arrays["user.network.mean"]) - ENCODED, "encoder": ENCODED}
    for name, options in (("backbone", backbone), ("encoder", encoder)):
        width = widths[name]
        settings = {"identity": pack.settings[name], "width": width, **(options or {})}
        made.append(_Backbone(**settings))  # type: ignore[arg-type]
    one, two = made
    return SpeechHeads.from_pack(pack, lambda: one, lambda: two), (one, two)  # type: ignore[return-value, arg-type]


def test_messages_reach_the_backbone_and_harmless_replies_do_not(pack: Pack) -> None:
    heads, models = _with(_untuned(pack))
    heads.scores(PLAIN, "user")
    assert [len(one.asked) for one in models] == [len(PLAIN)] * 2
    for one in models:
        one.asked.clear()
    heads.scores(["The train leaves at nine from platform two."], "assistant")
    assert [one.asked for one in models] == [[], []]
    heads.scores(CLINGING, "assistant")
    assert [len(one.asked) for one in models] == [len(CLINGING)] * 2
    assert not heads.degraded


@pytest.mark.parametrize("which", ["backbone", "encoder"])
@pytest.mark.parametrize("options", [{"identity": "another:20"}, {"fails": True}])
def test_without_its_models_n_grams_decide(
    pack: Pack, which: str, options: dict[str, object]
) -> None:
    heads, (_, encoder) = _with(pack, **{which: options})
    plain = SpeechHeads.from_pack(pack)
    assert heads.scores(ATTACHED, "user") == pytest.approx(plain.scores(ATTACHED, "user"))
    assert heads.degraded
    assert encoder.asked == []


def test_a_pack_made_without_an_encoder_asks_for_none(pack: Pack) -> None:
    older = _untuned(pack, encoder="")
    arrays = dict(older.arrays)
    for head in HEADS:
        for part in ("mean", "deviation", "into"):
            arrays[f"{head}.network.{part}"] = arrays[f"{head}.network.{part}"][:-ENCODED]
    _, (backbone, encoder) = _with(pack)
    heads = SpeechHeads.from_pack(replace(older, arrays=arrays), lambda: backbone, lambda: encoder)  # type: ignore[return-value, arg-type]
    assert heads.scores(ATTACHED, "user").shape == (len(ATTACHED),)
    assert (len(backbone.asked), encoder.asked, heads.degraded) == (len(ATTACHED), [], False)


def test_what_is_no_encoder_cannot_be_tuned(pack: Pack) -> None:
    heads, _ = _with(pack)
    plain = SpeechHeads.from_pack(pack)
    assert heads.scores(ATTACHED, "user") == pytest.approx(plain.scores(ATTACHED, "user"))
    assert heads.degraded


def test_a_pack_without_heads_is_refused(pack: Pack) -> None:
    with pytest.raises(SLMError, match="head 'user'"):
        SpeechHeads.from_pack(Pack("drift_monitor", "1", "x", {}, {"heads": {}}))
    for part in ("user.ngrams", "user.network"):
        arrays = {k: v for k, v in pack.arrays.items() if not k.startswith(part)}
        with pytest.raises(SLMError, match=part):
            SpeechHeads.from_pack(replace(pack, arrays=arrays))
    with pytest.raises(SLMError, match="weights of experts"):
        SpeechHeads.from_pack(replace(pack, settings={"heads": {name: {} for name in HEADS}}))


def test_templates_give_their_readings_and_no_others() -> None:
    readings = variants("(a|b) {x}( c|).", {"x": ["1", "2"]}, count=50, seed=0)
    expected = sorted(f"{a} {x}{c}." for a in "ab" for x in "12" for c in ("", " c"))
    assert sorted(readings) == expected
    assert variants("plain", {}, count=5, seed=1) == ["plain"]
    assert variants("(a|b)", {}, count=2, seed=1) == variants("(a|b)", {}, count=2, seed=1)
    with pytest.raises(DataError, match="slot 'y'"):
        variants("{y}", {}, count=1, seed=0)
    with pytest.raises(DataError, match="no sentences"):
        read_templates("missing")


@pytest.mark.parametrize(
    "name",
    [
        "user_attached",
        "user_plain",
        "assistant_attached",
        "assistant_plain",
        "boundary_broken",
        "boundary_kept",
        "hostile",
        "polite",
    ],
)
def test_every_training_line_can_be_read(name: str) -> None:
    slots = read_slots()
    lines = read_templates(name)
    assert len(lines) == len(set(lines))
    for line in lines:
        assert line.count("(") == line.count(")")
        for text in variants(line, slots, count=2, seed=0):
            assert text
            assert not set("{}|()") & set(text), line


def test_the_tests_sentences_are_not_among_the_training_lines() -> None:
    slots = read_slots()
    trained = {
        text.lower().strip(".!?")
        for name in ("user_attached", "assistant_attached", "user_plain", "assistant_plain")
        for line in read_templates(name)
        for text in variants(line, slots, count=5, seed=0)
    }
    ours = {text.lower().strip(".!?") for text in ATTACHED + PLAIN + CLINGING + KEEPING}
    assert len(ours & trained) <= 1
