"""Pretrained models in: by alias, hub id, local folder or GGUF file; and sentence embeddings.

`load` gives a language model with its tokenizer, `load_encoder` a sentence encoder, `generate` and
its kin text. Everything else in this folder serves those.
"""

import os

# transformers advises installing PyTorch on import; only its tokenizers are used here.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
