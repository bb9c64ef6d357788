"""Tokenizers from GGUF metadata, token for token against independent readers.

Byte-level BPE: a plain Python twin written here (other regular-expression engine, other merge
loop), the `tokenizers` library's own GPT-2 splitting, and stored ids of transformers' GGUF reader.
SentencePiece BPE: the sentencepiece library.
"""

from __future__ import annotations

import functools
import io
import itertools
import json
import unicodedata
from pathlib import Path

import gguf
import numpy as np
import pytest
import regex
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from tiny import CORPUS
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast
from varied_text import SMOLLM2_STRINGS, varied_strings

from mlx_companion.errors import WeightsError
from mlx_companion.models.fetch import fetch
from mlx_companion.models.registry import DEFAULT_MODEL
from mlx_companion.models.tokenizer import wrap_gguf_tokenizer
from mlx_companion.text.gguf_tokenizer import WORD_SPLITS, tokenizer_from_gguf

FIXTURES = Path(__file__).parent.parent / "fixtures"
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXTS = varied_strings(400, seed=7, specials=tuple(SPECIALS))

GPT2 = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")


def byte_letters() -> dict[int, str]:
    """GPT-2's printable letter for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        letters.setdefault(byte, chr(256 + len(letters) - len(printable)))
    return letters


class Twin:
    """Byte-level BPE the slow way: cut, then join the best-ranked neighbours until none is left."""

    def __init__(self, tokens, merges, patterns, specials=(), nfc=False, whole_words=False):
        self.ids = {token: i for i, token in enumerate(tokens)}
        self.ranks = {tuple(m.split(" ")): i for i, m in enumerate(merges)}
        self.patterns = patterns
        self.specials = specials
        self.nfc, self.whole_words = nfc, whole_words
        self.letters = byte_letters()
        self.word = functools.cache(self._word)

    def encode(self, text):
        ids = []
        marks = "|".join(map(regex.escape, self.specials)) or r"(?!)"
        for piece in regex.split(f"({marks})", text):
            if piece in self.specials:
                ids.append(self.ids[piece])
                continue
            words = [unicodedata.normalize("NFC", piece) if self.nfc else piece]
            for pattern in self.patterns:
                words = [part for word in words for part in self.cut(pattern, word)]
            ids += [self.ids[t] for word in words for t in self.word(word)]
        return ids

    @staticmethod
    def cut(pattern, text):
        at = 0
        for match in regex.finditer(pattern, text):
            yield text[at : match.start()]
            yield match[0]
            at = match.end()
        yield text[at:]

    def _word(self, word):
        parts = [self.letters[byte] for byte in word.encode()]
        if self.whole_words and "".join(parts) in self.ids:
            return ["".join(parts)]
        while len(parts) > 1:
            rank, at = min(
                (self.ranks.get(pair, 10**9), i) for i, pair in enumerate(itertools.pairwise(parts))
            )
            if rank == 10**9:
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return parts


@pytest.fixture(scope="module")
def vocabulary():
    """Tokens and merges of a byte-level BPE trained on words, numbers and runs of spaces."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(
        vocab_size=900,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([*CORPUS, *varied_strings(200, seed=1)], trainer)
    content = core.get_vocab()
    merges = [" ".join(m) for m in json.loads(core.to_str())["model"]["merges"]]
    return sorted(content, key=content.__getitem__), merges


def metadata(vocabulary, pre, **changes):
    tokens, merges = vocabulary
    keys = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if t in SPECIALS else 1 for t in tokens],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    return keys | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}


TWINS = {
    "smollm": {"patterns": [r"\p{N}", GPT2]},
    "gpt-2": {"patterns": [GPT2]},
    "phi-2": {"patterns": [GPT2]},
    "llama-bpe": {"patterns": [LLAMA3], "whole_words": True},
    "qwen2": {"patterns": [QWEN2], "nfc": True},
    "default": {"patterns": [r"[\p{P}$+<=>^~|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]},
}


def test_every_word_split_has_a_twin():
    assert TWINS.keys() == WORD_SPLITS.keys()


@pytest.mark.parametrize("pre", TWINS)
def test_byte_level_bpe_equals_the_twin(vocabulary, pre):
    tokenizer = tokenizer_from_gguf(metadata(vocabulary, pre))
    twin = Twin(*vocabulary, specials=SPECIALS, **TWINS[pre])
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == twin.encode(text), text
        expected = unicodedata.normalize("NFC", text) if pre == "qwen2" else text
        assert tokenizer.decode(ids) == expected


@pytest.mark.parametrize("pre", ["gpt-2", "smollm"])
def test_words_are_cut_as_the_tokenizers_library_cuts_them(vocabulary, pre):
    theirs = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pre == "smollm":
        theirs = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), theirs])
    ours = tokenizer_from_gguf(metadata(vocabulary, pre)).backend_tokenizer.pre_tokenizer
    for text in TEXTS:
        assert ours.pre_tokenize_str(text) == theirs.pre_tokenize_str(text)


@given(text=st.text(max_size=60))
@pytest.mark.parametrize("pre", ["smollm", "llama-bpe"])
def test_any_text_survives(vocabulary_tokenizers, pre, text):
    tokenizer = vocabulary_tokenizers[pre]
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@pytest.fixture(scope="module")
def vocabulary_tokenizers(vocabulary):
    return {pre: tokenizer_from_gguf(metadata(vocabulary, pre)) for pre in WORD_SPLITS}


def test_llama_bpe_takes_words_that_no_merges_reach(vocabulary):
    tokens, merges = vocabulary
    extended = [*tokens, "zqzqz"], merges
    whole = tokenizer_from_gguf(metadata(extended, "llama-bpe"))
    parts = tokenizer_from_gguf(metadata(extended, "gpt-2"))
    assert whole.encode("zqzqz", add_special_tokens=False) == [len(tokens)]
    assert len(parts.encode("zqzqz", add_special_tokens=False)) > 1


def test_special_tokens_and_template(vocabulary):
    keys = metadata(vocabulary, "smollm", padding_token_id=0, unknown_token_id=0)
    tokenizer = tokenizer_from_gguf(keys | {"tokenizer.chat_template": "{{ messages[0].content }}"})
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)
    assert tokenizer.unk_token == "<|endoftext|>"
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat == "hi"
    assert tokenizer.decode(tokenizer.encode("a<|im_end|>"), skip_special_tokens=True) == "a"


def test_a_tokenizer_is_neither_copied_nor_listed_again_and_again(vocabulary, monkeypatch):
    # Each of these keeps every other thread of the process from running for tens of milliseconds.
    copies, lists, plain = [], [], PreTrainedTokenizerFast.get_vocab
    monkeypatch.setattr(Tokenizer, "__getstate__", lambda core: copies.append(core), raising=False)
    monkeypatch.setattr(
        PreTrainedTokenizerFast, "get_vocab", lambda self: lists.append(self) or plain(self)
    )
    tokenizer = wrap_gguf_tokenizer(metadata(vocabulary, "smollm"))
    assert (len(copies), len(lists)) == (0, 1)
    assert tokenizer.eos_token_ids == {0, 2}
    tokenizer.add_tokens(["quite new"])
    assert "quite new" in tokenizer.get_vocab()


def test_without_a_padding_token_the_end_token_pads(vocabulary):
    assert tokenizer_from_gguf(metadata(vocabulary, "smollm")).pad_token_id == 2


@pytest.mark.parametrize(
    ("pre", "changes", "expected"),
    [
        ("smollm", {}, "{}"),
        ("llama-bpe", {}, "1{}"),
        ("llama-bpe", {"add_bos_token": False}, "{}"),
        ("smollm", {"add_bos_token": True, "add_eos_token": True}, "1{}2"),
    ],
)
def test_start_and_end_tokens_are_put_as_the_file_says(vocabulary, pre, changes, expected):
    tokenizer = tokenizer_from_gguf(metadata(vocabulary, pre, **changes))
    inner = tokenizer.encode("kettle", add_special_tokens=False)
    before, after = ([int(end)] if end else [] for end in expected.split("{}"))
    assert tokenizer.encode("kettle") == [*before, *inner, *after]
    second = tokenizer.encode("garden", add_special_tokens=False)
    pair = tokenizer.encode("kettle", "garden")
    assert pair == [*before, *inner, *after, *before, *second, *after]


def test_user_defined_tokens_are_found_in_text_and_kept_when_decoding(vocabulary):
    tokens, merges = vocabulary
    extended = [*tokens, "<tool>"], merges
    keys = metadata(extended, "gpt-2")
    keys["tokenizer.ggml.token_type"][-1] = 4
    tokenizer = tokenizer_from_gguf(keys)
    ids = tokenizer.encode("a<tool>b", add_special_tokens=False)
    assert len(tokens) in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a<tool>b"


def test_repeated_tokens_keep_their_ids(vocabulary):
    tokens, merges = vocabulary
    extended = [*tokens[:-1], tokens[10], "zz"], merges[:-1]
    tokenizer = tokenizer_from_gguf(metadata(extended, "gpt-2"))
    assert len(tokenizer) == len(tokens) + 1
    assert tokenizer.convert_tokens_to_ids("zz") == len(tokens)
    assert tokenizer.convert_tokens_to_ids(tokens[10]) == 10


@pytest.mark.parametrize("pre", ["command-r", None])
def test_an_unknown_word_split_is_refused(vocabulary, pre):
    with pytest.raises(WeightsError, match=f"{pre!r}.*known are.*smollm"):
        tokenizer_from_gguf(metadata(vocabulary, pre))


@pytest.mark.parametrize("kind", ["bert", "t5", None])
def test_an_unknown_kind_is_refused(vocabulary, kind):
    with pytest.raises(WeightsError, match="kind"):
        tokenizer_from_gguf(metadata(vocabulary, "smollm", model=kind))


def test_no_tokens_are_refused():
    with pytest.raises(WeightsError, match="kinds 'gpt2' and 'llama'"):
        tokenizer_from_gguf({"tokenizer.ggml.model": "gpt2"})


def train_sentencepiece(prefix: bool) -> sentencepiece.SentencePieceProcessor:
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*CORPUS * 3, *varied_strings(300, seed=2)]),
        model_writer=out,
        model_type="bpe",
        vocab_size=700,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        character_coverage=0.98,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())


def sentencepiece_metadata(model, prefix, **changes):
    count = len(model)
    kinds = {i: 6 for i in range(count) if model.is_byte(i)}
    kinds |= {i: 3 for i in range(count) if model.is_control(i)} | {model.unk_id(): 2}
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [model.id_to_piece(i) for i in range(count)],
        "tokenizer.ggml.scores": np.array([model.get_score(i) for i in range(count)]),
        "tokenizer.ggml.token_type": np.array([kinds.get(i, 1) for i in range(count)]),
        "tokenizer.ggml.bos_token_id": model.bos_id(),
        "tokenizer.ggml.eos_token_id": model.eos_id(),
        "tokenizer.ggml.unknown_token_id": model.unk_id(),
        "tokenizer.ggml.add_space_prefix": prefix,
        **changes,
    }


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_bpe_equals_sentencepiece(prefix):
    model = train_sentencepiece(prefix)
    tokenizer = tokenizer_from_gguf(sentencepiece_metadata(model, prefix))
    texts = ["", " ", "   ", *CORPUS, *varied_strings(1000, seed=3)]
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == model.encode(text), text
        assert tokenizer.decode(ids) == text
        assert tokenizer.encode(text) == [model.bos_id(), *ids]


@pytest.mark.real_model
class TestDefaultModel:
    """The tokenizer of the default model itself."""

    @pytest.fixture
    def reader(self, real_cache):
        path = fetch(DEFAULT_MODEL)
        if path.is_dir():
            pytest.skip("the cache holds the hub's files and no GGUF")
        return gguf.GGUFReader(path)

    def keys(self, reader):
        names = ("model", "pre", "tokens", "token_type", "merges", "eos_token_id")
        fields = {f"tokenizer.ggml.{name}" for name in names}
        return {name: reader.fields[name].contents() for name in fields}

    def test_it_equals_transformers_on_3000_strings(self, reader):
        tokenizer = tokenizer_from_gguf(self.keys(reader))
        stored = np.load(FIXTURES / "smollm2_tokens.npz")
        ends = stored["lengths"].astype(int).cumsum()
        expected = np.split(stored["ids"].astype(int), ends[:-1])
        assert len(expected) == len(SMOLLM2_STRINGS) == 3000
        for text, ids in zip(SMOLLM2_STRINGS, expected, strict=True):
            assert tokenizer.encode(text) == ids.tolist(), text
            assert tokenizer.decode(ids) == text

    def test_it_equals_the_twin(self, reader):
        keys = self.keys(reader)
        tokenizer = tokenizer_from_gguf(keys)
        twin = Twin(
            keys["tokenizer.ggml.tokens"],
            keys["tokenizer.ggml.merges"],
            specials=SPECIALS,
            **TWINS["smollm"],
        )
        for text in varied_strings(500, seed=11, specials=tuple(SPECIALS)):
            assert tokenizer.encode(text) == twin.encode(text), text
