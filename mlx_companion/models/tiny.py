"""A tiny random model on disk, for trying things out in seconds and without a download.

    lm = load(tiny_model("runs/smoke/tiny"))

It is a llama of 2 layers that reads bytes through a ChatML template: it loads, trains, quantizes
and generates like any other, and says nothing but noise. With `bits` its linear layers are packed.
"""

from __future__ import annotations

import json
from pathlib import Path

from mlx_companion.runtime.files import atomic_dir

_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_CONTEXT = 1024
_GROUP = 32


def tiny_model(folder: str | Path, *, seed: int = 0, bits: int | None = None) -> Path:
    """Write the model, unless the folder is there already.

    Args:
        folder: where to.
        seed: of its random weights; the same one gives the same model.
        bits: of packed weights, in groups of 32; None for float32.

    Returns:
        The folder, for `load`.

    Raises:
        DiskFullError: no space.
    """
    folder = Path(folder)
    if not folder.is_dir():
        with atomic_dir(folder) as temporary:
            size = _write_tokenizer(temporary)
            _write_weights(temporary, size, seed, bits)
    return folder


def _write_tokenizer(folder: Path) -> int:
    """Bytes and the marks of turns; returns the size of the vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: number for number, text in enumerate([*_SPECIALS, *letters])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(_SPECIALS))
    PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=_SPECIALS[1],
        eos_token=_SPECIALS[2],
        pad_token=_SPECIALS[2],
        unk_token=_SPECIALS[0],
        clean_up_tokenization_spaces=False,
        model_max_length=_CONTEXT,
        chat_template=_CHATML,
    ).save_pretrained(str(folder))
    return len(vocabulary)


def _write_weights(folder: Path, size: int, seed: int, bits: int | None) -> None:
    import mlx.core as mx
    import mlx.nn as nn
    from mlx.utils import tree_flatten
    from mlx_lm.models.llama import Model, ModelArgs

    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "vocab_size": size,
        "max_position_embeddings": _CONTEXT,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    high, low = mx.random.state[0].tolist()  # type: ignore[index]
    try:
        mx.random.seed(seed)
        model = Model(ModelArgs.from_dict(config))
        mx.eval(model.parameters())
    finally:
        # Whoever asks for a model in the middle of a run keeps their own random numbers.
        mx.random.seed((high << 32) | low)
    if bits is not None:
        nn.quantize(model, group_size=_GROUP, bits=bits)
        config["quantization"] = {"group_size": _GROUP, "bits": bits}
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
