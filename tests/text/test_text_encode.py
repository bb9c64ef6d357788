"""Masks, against what a reader would mark by hand: the decoded targets are the replies.

The oracle never looks at token positions: it decodes each run of targets and compares it with
the text that the template writes for that reply.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tuner.datasets import ChatDataset
from tiny import CHATML, tiny_llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mlx_companion.errors import ConfigError, DataError
from mlx_companion.text.encode import Encoded, encode_sample, encode_samples
from mlx_companion.text.records import Message, Sample

DIALOG = [
    ("system", "Be brief."),
    ("user", "What is the capital of Portugal?"),
    ("assistant", "Lisbon."),
    ("user", "How far is it from Porto?"),
    ("assistant", "About 310 km,\nor three hours by train."),
]
REPLIES = [content for role, content in DIALOG if role == "assistant"]

# Each: the template, and what it writes for a reply after the generation prompt.
TEMPLATES = {
    "chatml": (CHATML, "{}<|im_end|>"),
    "chatml with a default system prompt": (
        "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n"
        "{% endif %}" + CHATML,
        "{}<|im_end|>",
    ),
    "llama 2": (
        "{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'] | trim }} "
        "<|im_end|>{% else %}<|im_start|>[INST] {{ m['content'] }} [/INST]{% endif %}{% endfor %}",
        " {} <|im_end|>",
    ),
    "llama 3": (
        "<|endoftext|>{% for m in messages %}<|im_start|>{{ m['role'] }}<|im_start|>\n\n"
        "{{ m['content'] | trim }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant<|im_start|>\n\n{% endif %}",
        "{}<|im_end|>",
    ),
    "two newlines after the end": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        "{}<|im_end|>",
    ),
    "no end token": (
        "{% for m in messages %}{{ m['role'] }}:\n{{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:\n{% endif %}",
        "{}\n",
    ),
    # Qwen3: the last turn gets an empty thinking block that earlier turns do not have.
    "reasoning": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
        "{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        None,
    ),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(tiny_llama(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def wrapped(plain: PreTrainedTokenizerFast) -> Any:
    """Gives mlx-lm's wrapper with a given template."""
    original = plain.chat_template

    def make(template: str | None) -> TokenizerWrapper:
        plain.chat_template = template
        return TokenizerWrapper(plain)

    yield make
    plain.chat_template = original


def dialog(turns: list[tuple[str, str]] | None = None, source: str = "chat.jsonl:1") -> Sample:
    return Sample(tuple(Message(*turn) for turn in turns or DIALOG), source=source)


def target_texts(encoded: Encoded, tokenizer: Any) -> list[str]:
    """The decoded text of every unbroken run of targets."""
    pairs = list(zip(encoded.tokens, encoded.targets, strict=True))
    runs = [[token for token, _ in run] for on, run in groupby(pairs, lambda pair: pair[1]) if on]
    return [tokenizer.decode(run, skip_special_tokens=False) for run in runs]


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_reply_with_its_end_token_and_nothing_else(name: str, wrapped: Any) -> None:
    template, shape = TEMPLATES[name]
    tokenizer = wrapped(template)
    encoded = encode_sample(dialog(), tokenizer, 512)
    expected = (
        [shape.format(reply) for reply in REPLIES]
        if shape
        else [
            "Lisbon.<|im_end|>",
            "<think>\n\n</think>\n\nAbout 310 km,\nor three hours by train.<|im_end|>",
        ]
    )
    assert target_texts(encoded, tokenizer) == expected
    turns = [{"role": role, "content": content} for role, content in DIALOG]
    assert encoded.tokens == tokenizer.apply_chat_template(turns, tokenize=True)


def test_mlx_lm_masks_all_but_the_last_reply(wrapped: Any) -> None:
    tokenizer = wrapped(CHATML)
    turns = [{"role": role, "content": content} for role, content in DIALOG]
    theirs = ChatDataset([{"messages": turns}], tokenizer, mask_prompt=True)
    tokens, offset = theirs.process({"messages": turns})
    assert "Lisbon" not in tokenizer.decode(tokens[offset:])
    assert "Lisbon" in "".join(target_texts(encode_sample(dialog(), tokenizer, 512), tokenizer))


def test_a_plain_transformers_tokenizer_works(plain: PreTrainedTokenizerFast) -> None:
    encoded = encode_sample(dialog(), plain, 512)
    assert target_texts(encoded, plain) == [f"{reply}<|im_end|>" for reply in REPLIES]


def test_a_token_over_the_border_is_found_by_its_characters(wrapped: Any) -> None:
    # "Reply: " ends in a space that the tokenizer glues to the next word (" a").
    tokenizer = wrapped(
        "{% for m in messages %}{% if m['role'] == 'assistant' %}Reply: {{ m['content'] }}"
        "<|im_end|>{% else %}{{ m['content'] }}\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}Reply: {% endif %}"
    )
    chat = [("user", "Where?"), ("assistant", "a garden")]
    chat += [("user", "And?"), ("assistant", "a wall")]
    prompt = tokenizer.encode("Where?\nReply: ", add_special_tokens=False)
    encoded = encode_sample(dialog(chat), tokenizer, 512)
    assert encoded.tokens[: len(prompt)] != prompt
    assert target_texts(encoded, tokenizer) == [" a garden<|im_end|>", " a wall<|im_end|>"]


class _Slow:
    """A tokenizer that cannot say where its tokens lie and merges over the border."""

    all_special_ids: tuple[int, ...] = ()
    eos_token_id = 1
    chat_template = "x"

    def apply_chat_template(self, turns: list, **options: Any) -> str:
        return "".join(turn["content"] for turn in turns)

    def encode(self, text: str, **options: Any) -> list[int]:
        return [ord(char) for char in text.replace("ab", "X")]

    def __call__(self, text: str, **options: Any) -> dict:
        raise NotImplementedError


def test_a_slow_tokenizer_that_merges_over_the_border_is_refused() -> None:
    sample = dialog([("user", "a"), ("assistant", "b")])
    with pytest.raises(DataError, match="use a fast tokenizer"):
        encode_sample(sample, _Slow(), 16)


@pytest.mark.parametrize(
    "template",
    [
        # Keeps the last exchange only.
        "{% for m in messages[-2:] %}{{ m['role'] }}: {{ m['content'] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
        # Writes how many turns there are in front.
        "{{ messages | length }}{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}",
        # Shortens earlier replies.
        "{% for m in messages %}{{ m['role'] }}: {% if loop.last or m['role'] == 'user' %}"
        "{{ m['content'] }}{% else %}{{ m['content'][:3] }}{% endif %}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
    ],
    ids=["cuts", "counts", "shortens"],
)
def test_templates_that_rewrite_earlier_turns_are_refused(template: str, wrapped: Any) -> None:
    with pytest.raises(DataError, match="writes assistant turn 2 differently"):
        encode_sample(dialog(), wrapped(template), 512)


def test_a_template_that_leaves_out_replies_is_refused(wrapped: Any) -> None:
    users_only = "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}\n{% endfor %}"
    with pytest.raises(DataError, match="writes nothing for assistant turn 2"):
        encode_sample(dialog(), wrapped(users_only), 512)


def test_an_end_token_that_only_the_wrapper_knows_counts(
    plain: PreTrainedTokenizerFast,
) -> None:
    # Some models end turns with an ordinary token, named in their generation settings alone.
    template = (
        "{% for m in messages %}{{ m['role'] }}:\n{{ m['content'] }}#\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:\n{% endif %}"
    )
    end = plain.convert_tokens_to_ids("#")
    for ends, tail in (([], "#\n"), ([end], "#")):
        tokenizer = TokenizerWrapper(plain, eos_token_ids=ends)
        plain.chat_template = template
        encoded = encode_sample(dialog(), tokenizer, 512)
        plain.chat_template = CHATML
        assert target_texts(encoded, tokenizer) == [reply + tail for reply in REPLIES]


def test_a_template_may_refuse_a_conversation(wrapped: Any) -> None:
    refusing = wrapped(
        "{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
    )
    with pytest.raises(DataError, match="System role not supported"):
        encode_sample(dialog(), refusing, 512)
    with pytest.raises(DataError, match=r"^chat.jsonl:1: .*System role"):
        encode_samples([dialog()], refusing, 512)
    rows, report = encode_samples([dialog(), dialog(DIALOG[1:])], refusing, 512, on_error="skip")
    assert len(rows) == report.kept == 1
    assert report.dropped[0].source == "chat.jsonl:1"
    assert "System role" in report.dropped[0].reason


SPECIAL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
content = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
content = content.filter(str.strip).filter(lambda text: not any(s in text for s in SPECIAL))


@given(
    st.lists(st.tuples(content, content), min_size=1, max_size=4),
    st.sampled_from(["chatml", "llama 3", "two newlines after the end"]),
)
def test_masks_hold_for_any_text(
    plain: PreTrainedTokenizerFast, exchanges: list[tuple[str, str]], name: str
) -> None:
    plain.chat_template = template = TEMPLATES[name][0]
    turns = [turn for user, reply in exchanges for turn in (("user", user), ("assistant", reply))]
    encoded = encode_sample(dialog(turns), plain, 100_000)
    clean = str.strip if "trim" in template else str
    assert target_texts(encoded, plain) == [f"{clean(reply)}<|im_end|>" for _, reply in exchanges]
    plain.chat_template = CHATML


@given(st.integers(2, 120))
def test_truncation_keeps_the_head(plain: PreTrainedTokenizerFast, max_tokens: int) -> None:
    whole = encode_sample(dialog(), plain, 10_000)
    cut = encode_sample(dialog(), plain, max_tokens)
    assert cut.tokens == whole.tokens[:max_tokens]
    assert cut.targets == whole.targets[:max_tokens]


def test_a_conversation_without_targets_left_is_dropped_and_said(
    plain: PreTrainedTokenizerFast,
) -> None:
    wordy = [("user", "Tell me. " * 40), ("assistant", "No.")]
    rows, report = encode_samples(
        [dialog(wordy, "a.jsonl:1"), dialog(DIALOG[1:], "a.jsonl:2"), dialog(DIALOG, "a.jsonl:3")],
        plain,
        max_tokens=70,
    )
    assert [row.target_count > 0 for row in rows] == [True, True]
    assert (report.kept, report.truncated, len(report.dropped)) == (2, 2, 1)
    assert report.dropped[0].source == "a.jsonl:1"
    assert "beyond token 70" in report.dropped[0].reason
    assert report.tokens == sum(len(row.tokens) for row in rows)
    assert report.targets == sum(sum(row.targets) for row in rows)
    assert "1 dropped (first: a.jsonl:1" in str(report)


def test_texts_train_on_everything_and_end(plain: PreTrainedTokenizerFast) -> None:
    text = "Rain fell on the roof all night."
    encoded = encode_sample(Sample(text=text), plain, 512)
    assert plain.decode(encoded.tokens) == text + "<|im_end|>"
    assert encoded.targets == [False] + [True] * (len(encoded.tokens) - 1)


@given(content, st.integers(2, 20))
def test_long_texts_are_split_and_every_token_trained_once(
    plain: PreTrainedTokenizerFast, text: str, max_tokens: int
) -> None:
    whole = encode_sample(Sample(text=text), plain, 10**6)
    rows, report = encode_samples([Sample(text=text)], plain, max_tokens)
    assert report.split == (len(whole.tokens) > max_tokens)
    assert all(2 <= len(row.tokens) <= max_tokens for row in rows)
    trained = [t for row in rows for t, on in zip(row.tokens, row.targets, strict=True) if on]
    assert trained == whole.tokens[1:]


@pytest.fixture(scope="module")
def llama_style() -> PreTrainedTokenizerFast:
    """SentencePiece-like: spaces become part of words, and <s> is put in front of text."""
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = BpeTrainer(
        vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    core.train_from_iterator(["where is the garden, the wall and the river?"] * 4, trainer)
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def test_one_start_token_never_two(llama_style: PreTrainedTokenizerFast) -> None:
    llama_style.chat_template = (
        "<s>{% for m in messages %}{% if m['role'] == 'user' %}[{{ m['content'] }}]"
        "{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
    )
    chat = dialog([("user", "where is the wall"), ("assistant", "the garden")])
    encoded = encode_sample(chat, llama_style, 64)
    assert encoded.tokens.count(1) == 1
    assert target_texts(encoded, llama_style) == [" the garden</s>"] or target_texts(
        encoded, llama_style
    ) == ["the garden</s>"]
    text = encode_sample(Sample(text="the river"), llama_style, 64)
    assert (text.tokens[0], text.tokens[-1], text.tokens.count(1)) == (1, 2, 1)


def test_without_a_template_turns_are_joined_as_generation_joins_them(
    llama_style: PreTrainedTokenizerFast,
) -> None:
    llama_style.chat_template = None
    tokenizer = TokenizerWrapper(llama_style)
    encoded = encode_sample(
        dialog([("user", "where is the wall"), ("assistant", "the garden")]), tokenizer, 64
    )
    prompt = tokenizer.encode("where is the wall")
    assert encoded.tokens[: len(prompt)] == prompt
    assert encoded.tokens[-1] == 2
    assert encoded.targets == [index >= len(prompt) for index in range(len(encoded.tokens))]


@pytest.mark.parametrize("max_tokens", [1, 0, -5])
def test_nothing_can_be_predicted_in_one_token(
    plain: PreTrainedTokenizerFast, max_tokens: int
) -> None:
    for call in (
        lambda: encode_sample(dialog(), plain, max_tokens),
        lambda: encode_samples([], plain, max_tokens),
    ):
        with pytest.raises(ConfigError, match="max_tokens must be 2 or more"):
            call()


def test_a_very_long_prompt_is_dropped_quietly(
    plain: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    chat = dialog([("user", "a garden wall " * 8000), ("assistant", "Yes.")])
    rows, report = encode_samples([chat], plain, 512)
    assert (rows, len(report.dropped), caplog.messages) == ([], 1, [])
