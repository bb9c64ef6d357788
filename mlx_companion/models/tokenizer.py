"""mlx-lm's tokenizer wrapper for what `load` found, with every token that ends a reply.

Generation stops at the wrapper's `eos_token_ids`. Model files often name only one end token,
while chat models close a turn with another (`<|im_end|>`, `<|eot_id|>`); a missing one shows as a
reply that runs on into an invented next turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
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
    # mlx-lm asks for all words again and again; each time nothing else runs for 30 ms.
    tokenizer.get_vocab = cache(tokenizer.get_vocab)
    try:
        wrapper = TokenizerWrapper(tokenizer, detokenizer)
    finally:
        del tokenizer.get_vocab
    return _with_turn_ends(wrapper)


def _with_turn_ends(tokenizer: TokenizerWrapper) -> TokenizerWrapper:
    # Only as an added token does such a string stand for one id in every text.
    added = tokenizer.added_tokens_decoder.items()
    ends = {number for number, token in added if token.content in TURN_ENDS}
    tokenizer.eos_token_ids = {*tokenizer.eos_token_ids, *ends}
    return tokenizer
