"""Tiny random models on disk, in the layout that mlx-lm and transformers read.

They have the shapes and the traps of the real ones (a byte-level BPE tokenizer with a ChatML
template whose pad token is its end token; a post-LN BERT with a pooling folder) and load in
milliseconds. The same seed gives the same bytes.

    folder = tiny_llama(tmp_path / "llama")
    model, tokenizer = load(folder)
    encoder = load_encoder(tiny_bert(tmp_path / "bert"))
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer, WordPieceTrainer
from transformers import PreTrainedTokenizerFast

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

CORPUS = [
    "The kettle is warm and the garden is quiet this morning.",
    "How do I mend a bicycle tyre without a patch kit?",
    "Write to me when the train leaves; I will meet you at the station.",
    "She planted beans, peas and carrots in two long rows beside the wall.",
    "A short answer is better than a long one that says less.",
    "What is the capital of Portugal, and how far is it from Porto?",
    "user system assistant question answer message reply hello thanks",
    "def add(a, b):\n    return a + b\n\nprint(add(2, 3))",
    "The sum of 12 and 30 is 42; half of that is 21.",
    "Rain fell on the roof all night, and by morning the river had risen.",
    "Read the first page aloud, then tell me what the writer wanted to say.",
    "Caf\u00e9 na\u00efve \u00fcber \u4f60\u597d \u041f\u0440\u0438\u0432\u0435\u0442 \U0001f600",
]


def _bpe_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
        chat_template=CHATML,
    )


def _wordpiece_tokenizer(vocab_size: int) -> Tokenizer:
    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    core.train_from_iterator(
        CORPUS,
        WordPieceTrainer(vocab_size=vocab_size, special_tokens=specials, show_progress=False),
    )
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    core.decoder = decoders.WordPiece()
    return core


def _save(folder: Path, shapes: dict[str, tuple[int, ...]], config: dict, seed: int) -> None:
    """Random weights of those shapes (norms near 1, biases near 0) and the configuration."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in shapes.items():
        scale = 0.1 if len(shape) == 1 else shape[-1] ** -0.5
        center = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
        weights[name] = (center + scale * rng.standard_normal(shape)).astype(np.float32)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def _llama_shapes(c: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    d, m, v = c["hidden_size"], c["intermediate_size"], c["vocab_size"]
    kv = d // c["num_attention_heads"] * c["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (v, d),
        "model.norm.weight": (d,),
    }
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}."
        shapes |= {
            f"{at}self_attn.{p}_proj.weight": (n, d)
            for p, n in {"q": d, "k": kv, "v": kv, "o": d}.items()
        }
        shapes |= {f"{at}mlp.{p}_proj.weight": (m, d) for p in ("gate", "up")}
        shapes[f"{at}mlp.down_proj.weight"] = (d, m)
        shapes |= {f"{at}{p}_layernorm.weight": (d,) for p in ("input", "post_attention")}
    if not c["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (v, d)
    return shapes


def tiny_llama(folder: Path, *, seed: int = 0, vocab_size: int = 384, **config: Any) -> Path:
    """A llama with 2 layers and width 32 (about 43k parameters) and a ChatML tokenizer.

    Args:
        folder: made if need be.
        seed: of the random weights.
        vocab_size: upper bound of the trained vocabulary; the model's size follows the real one.
        config: entries of `config.json` to change, e.g. `num_hidden_layers=4`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _bpe_tokenizer(vocab_size)
    tokenizer.save_pretrained(str(folder))
    full = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 512,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "torch_dtype": "float32",
    } | config
    _save(folder, _llama_shapes(full), full, seed)
    return folder


def _bert_shapes(c: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    d, m = c["hidden_size"], c["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (c["vocab_size"], d),
        "embeddings.position_embeddings.weight": (c["max_position_embeddings"], d),
        "embeddings.token_type_embeddings.weight": (c["type_vocab_size"], d),
    }
    linears, norms = {}, ["embeddings.LayerNorm"]
    for i in range(c["num_hidden_layers"]):
        at = f"encoder.layer.{i}."
        linears |= {f"{at}attention.self.{p}": (d, d) for p in ("query", "key", "value")}
        linears[f"{at}attention.output.dense"] = (d, d)
        linears[f"{at}intermediate.dense"] = (m, d)
        linears[f"{at}output.dense"] = (d, m)
        norms += [f"{at}attention.output.LayerNorm", f"{at}output.LayerNorm"]
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in norms:
        shapes |= {f"{name}.weight": (d,), f"{name}.bias": (d,)}
    return shapes


def tiny_bert(
    folder: Path, *, seed: int = 0, pooling: str = "mean", max_seq_length: int = 48, **config: Any
) -> Path:
    """A sentence-transformers folder: BERT with 2 layers and width 32, pooling, normalize.

    Args:
        folder: made if need be.
        seed: of the random weights.
        pooling: "mean" or "cls".
        max_seq_length: tokens, [CLS] and [SEP] included.
        config: entries of `config.json` to change.
    """
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    core = _wordpiece_tokenizer(300)
    core.save(str(folder / "tokenizer.json"))
    full = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 64,
        "type_vocab_size": 2,
        "vocab_size": core.get_vocab_size(),
        "pad_token_id": 0,
    } | config
    _save(folder, _bert_shapes(full), full, seed)
    stages = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(stages)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": max_seq_length, "do_lower_case": False})
    )
    modes = {f"pooling_mode_{m}_tokens": pooling == m for m in ("mean", "max")}
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps(
            {
                "word_embedding_dimension": full["hidden_size"],
                **modes,
                "pooling_mode_cls_token": pooling == "cls",
            }
        )
    )
    return folder
