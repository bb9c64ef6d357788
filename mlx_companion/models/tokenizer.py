"""mlx-lm's tokenizer wrapper for what `load` found, with every token that ends a reply.

Generation stops at the wrapper's `eos_token_ids`. Model files often name only one end token,
while chat models close a turn with another (`<|im_end|>`, `<|eot_id|>`); a missing one shows as a
reply that runs on into an invented next turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mlx_lm.tokenizer_utils import (
    BPEStreamingDetokenizer,
    SPMStreamingDetokenizer,
    TokenizerWrapper,
)
from mlx_lm.utils import load_tokenizer

from mlx_companion.errors import WeightsError
from mlx_companion.text.gguf_tokenizer import tokenizer_from_gguf

TURN_ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
)


def wrap_folder_tokenizer(folder: Path, config: Mapping[str, Any]) -> TokenizerWrapper:
    """The tokenizer of a model folder.

    Raises:
        WeightsError: there is none, or it cannot be read.
    """
    try:
        tokenizer = load_tokenizer(folder, eos_token_ids=config.get("eos_token_id"))
    except Exception as error:
        raise WeightsError(
            f"the tokenizer in {folder} cannot be read ({error}); expected tokenizer.json and "
            "tokenizer_config.json beside the weights"
        ) from error
    return _with_turn_ends(tokenizer)


def wrap_gguf_tokenizer(metadata: Mapping[str, Any]) -> TokenizerWrapper:
    """The tokenizer that a GGUF file's metadata describe.

    Raises:
        WeightsError: there is none, or one of an unknown kind.
    """
    tokenizer = tokenizer_from_gguf(metadata)
    trim = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    detokenizer = (
        BPEStreamingDetokenizer
        if metadata["tokenizer.ggml.model"] == "gpt2"
        else partial(SPMStreamingDetokenizer, trim_space=trim)
    )
    return _with_turn_ends(TokenizerWrapper(tokenizer, detokenizer))


def _with_turn_ends(tokenizer: TokenizerWrapper) -> TokenizerWrapper:
    special = set(tokenizer.added_tokens_decoder)
    vocabulary = tokenizer.get_vocab()
    ends: Iterable[int] = (vocabulary[t] for t in TURN_ENDS if t in vocabulary)
    # Only as an added token does such a string stand for one id in every text.
    tokenizer.eos_token_ids = {*tokenizer.eos_token_ids, *(i for i in ends if i in special)}
    return tokenizer
