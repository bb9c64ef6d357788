"""Pretrained models in: by alias, hub id, local folder or GGUF file; and sentence embeddings.

`load` gives a language model with its tokenizer, `load_encoder` a sentence encoder. Everything
else in this folder serves those two.
"""
