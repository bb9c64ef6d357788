"""The tokenizer inside a GGUF file's metadata, as a transformers fast tokenizer.

A GGUF file names its kind of tokenizer (`tokenizer.ggml.model`) and how text is cut into words
before merging (`tokenizer.ggml.pre`), and lists tokens, merges or scores, and what each token is.
Two kinds are read: `gpt2` (byte-level BPE) and `llama` (SentencePiece BPE with scores and byte
fallback). An unknown `pre` is an error, never a guess: a wrong one gives a tokenizer that works
and a model that is quietly worse.

    tokenizer = tokenizer_from_gguf(read_header("model.gguf").metadata)
    tokenizer.encode("Hello")
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from mlx_companion.errors import WeightsError

CONTROL, USER_DEFINED = 3, 4
SPACE = "\u2581"

_CONTRACTIONS = r"'s|'t|'re|'ve|'m|'ll|'d"
_GPT2 = rf"{_CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"


def _cl100k(digits: str) -> str:
    """The word pattern of OpenAI's cl100k vocabulary, with `digits` at most in one word."""
    return (
        rf"(?i:{_CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


@dataclass(frozen=True)
class WordSplit:
    """How a byte-level BPE cuts text into words.

    Attributes:
        patterns: applied one after the other; each cuts out its matches, and what lies between
            them stays as a piece.
        nfc: text is brought to Unicode form NFC first.
        whole_words: a word that is itself a token is taken whole, whatever the merges say.
        adds_bos: a start token is put first when the file does not say.
    """

    patterns: tuple[str, ...]
    nfc: bool = False
    whole_words: bool = False
    adds_bos: bool = False


# By `tokenizer.ggml.pre`. Patterns are those of the models' own tokenizer.json files; "default"
# is llama.cpp's, for files converted without a known `pre`.
WORD_SPLITS: dict[str, WordSplit] = {
    "smollm": WordSplit((r"\p{N}", _GPT2)),
    "gpt-2": WordSplit((_GPT2,)),
    "phi-2": WordSplit((_GPT2,)),
    "llama-bpe": WordSplit((_cl100k(r"\p{N}{1,3}"),), whole_words=True, adds_bos=True),
    "qwen2": WordSplit((_cl100k(r"\p{N}"),), nfc=True),
    "default": WordSplit((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
}


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """Build the tokenizer that a GGUF file describes.

    Args:
        metadata: the file's keys and values, as plain Python or NumPy values.

    Returns:
        A fast tokenizer with the file's chat template, start, end, unknown and padding tokens.

    Raises:
        WeightsError: there is no tokenizer, or one of a kind that cannot be read here.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama") or not metadata.get("tokenizer.ggml.tokens"):
        raise WeightsError(
            f"the GGUF file's tokenizer is of kind {kind!r}; kinds 'gpt2' and 'llama' can be "
            "read; load the original model from the hub"
        )
    tokens = _unique(metadata["tokenizer.ggml.tokens"])
    if kind == "gpt2":
        core, adds_bos = _byte_level(metadata, tokens)
    else:
        core, adds_bos = _sentencepiece(metadata, tokens), True
    core.add_special_tokens(list(_added(metadata, tokens, CONTROL)))
    core.add_tokens(list(_added(metadata, tokens, USER_DEFINED)))
    core.post_processor = _ends(metadata, tokens, adds_bos)
    return _wrap(core, metadata, tokens)


def _unique(tokens: Sequence[str]) -> list[str]:
    """The tokens, with repeated ones renamed so that every id keeps its place."""
    seen: set[str] = set()
    result = []
    for number, token in enumerate(tokens):
        name = token if token not in seen else f"[UNUSED {number}]"
        seen.add(name)
        result.append(name)
    return result


def _types(metadata: Mapping[str, Any], count: int) -> Sequence[int]:
    types = metadata.get("tokenizer.ggml.token_type")
    return [1] * count if types is None else types


def _added(metadata: Mapping[str, Any], tokens: list[str], kind: int) -> Iterator[AddedToken]:
    """Tokens that are found in the text before anything else is done to it."""
    for token, its_kind in zip(tokens, _types(metadata, len(tokens)), strict=True):
        if its_kind == kind and token:
            yield AddedToken(token, special=kind == CONTROL, normalized=False)


def _byte_level(metadata: Mapping[str, Any], tokens: list[str]) -> tuple[Tokenizer, bool]:
    name = metadata.get("tokenizer.ggml.pre")
    split = WORD_SPLITS.get(name or "")
    if split is None:
        raise WeightsError(
            f"the GGUF file splits words by rule {name!r} (tokenizer.ggml.pre); known are "
            f"{', '.join(sorted(WORD_SPLITS))}; get a newer conversion of the model, or load it "
            "from the hub"
        )
    merges = [tuple(m.split(" ", 1)) for m in metadata.get("tokenizer.ggml.merges", [])]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    core = Tokenizer(BPE(vocabulary, merges, ignore_merges=split.whole_words))
    if split.nfc:
        core.normalizer = normalizers.NFC()
    cuts: list[Any] = [pre_tokenizers.Split(Regex(p), "isolated") for p in split.patterns]
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    return core, split.adds_bos


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[str]) -> Tokenizer:
    vocabulary = {token: i for i, token in enumerate(tokens)}
    unknown = tokens[int(metadata.get("tokenizer.ggml.unknown_token_id", 0))]
    core = Tokenizer(
        BPE(
            vocabulary,
            _merges_from_scores(metadata, tokens),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback="<0x00>" in vocabulary,
        )
    )
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    steps: list[Any] = [normalizers.Prepend(SPACE)] if prefix else []
    core.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    core.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return core


def _merges_from_scores(metadata: Mapping[str, Any], tokens: list[str]) -> list[tuple[str, str]]:
    """Every way to make a piece out of two others, best piece first.

    SentencePiece joins the neighbours whose union has the highest score; a list of merges in the
    order of their unions' scores does the same.
    """
    kinds = _types(metadata, len(tokens))
    scores = metadata["tokenizer.ggml.scores"]
    normal = {t: float(scores[i]) for i, t in enumerate(tokens) if kinds[i] == 1}
    merges: list[tuple[str, str]] = []
    for piece in sorted(normal, key=normal.__getitem__, reverse=True):
        merges.extend(
            (piece[:cut], piece[cut:])
            for cut in range(1, len(piece))
            if piece[:cut] in normal and piece[cut:] in normal
        )
    return merges


def _ends(metadata: Mapping[str, Any], tokens: list[str], adds_bos: bool) -> Any:
    """What is put before and after a text that is encoded with special tokens."""
    template, special = ["$A"], []
    for name, default in (("bos", adds_bos), ("eos", False)):
        number = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if number is not None and metadata.get(f"tokenizer.ggml.add_{name}_token", default):
            token = tokens[int(number)]
            special.append((token, int(number)))
            template = [token, *template] if name == "bos" else [*template, token]
    second = [f"{part}:1" if part == "$A" else part for part in template]
    pair = [*template, *(part.replace("$A", "$B") for part in second)]
    return TemplateProcessing(single=template, pair=pair, special_tokens=special)


class _Handed:
    """Hands a tokenizer over as it is.

    transformers makes a deep copy of what it is given: it writes all of it as JSON and reads that
    again, in one call of some 80 ms in which no other thread of the process can run.
    """

    def __init__(self, core: Tokenizer) -> None:
        self._core = core

    def __deepcopy__(self, memo: dict[int, Any]) -> Tokenizer:
        return self._core


def _wrap(core: Tokenizer, metadata: Mapping[str, Any], tokens: list[str]) -> Any:
    named = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        number = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if number is not None:
            named[f"{name}_token"] = tokens[int(number)]
    if "pad_token" not in named and "eos_token" in named:
        named["pad_token"] = named["eos_token"]
    architecture = metadata.get("general.architecture", "llama")
    return PreTrainedTokenizerFast(
        tokenizer_object=_Handed(core),
        clean_up_tokenization_spaces=False,
        model_max_length=int(metadata.get(f"{architecture}.context_length", 2048)),
        chat_template=metadata.get("tokenizer.chat_template"),
        **named,
    )
