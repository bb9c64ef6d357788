"""Tiny models and PEFT adapters on them, the same numbers in PyTorch and in MLX.

Weights come from numpy, so that only adapters and logits need to be stored (tests/fixtures/peft,
written by make_peft_fixtures.py). Functions that import torch are called where the extra
`reference` is installed.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parents[1] / "fixtures" / "peft"
TOKENS = np.array([[1, 5, 9, 30, 2, 2], [7, 7, 0, 31, 12, 4]])
LLAMA = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 32,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "attention_bias": True,
}
LINEAR = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
EVERYTHING = ["q_proj", "embed_tokens", "lm_head"]
# Name: what is tied, and what PEFT's LoraConfig is given.
CASES: dict[str, tuple[bool, dict[str, Any]]] = {
    "lora": (False, {"r": 4, "lora_alpha": 6, "target_modules": LINEAR}),
    "rslora": (
        False,
        {
            "r": 4,
            "lora_alpha": 6,
            "use_rslora": True,
            "target_modules": r".*\.(q_proj|down_proj)",
            "rank_pattern": {"down_proj": 2, r"layers\.1\..*q_proj": 3},
            "alpha_pattern": {r"layers\.0\.self_attn\.q_proj": 9},
        },
    ),
    "dora": (False, {"r": 3, "lora_alpha": 5, "use_dora": True, "target_modules": LINEAR}),
    "embeddings": (False, {"r": 2, "lora_alpha": 6, "target_modules": EVERYTHING}),
    "dora_embeddings": (
        False,
        {"r": 2, "lora_alpha": 6, "use_dora": True, "target_modules": EVERYTHING},
    ),
    "tied": (
        True,
        {
            "r": 2,
            "lora_alpha": 6,
            "target_modules": ["q_proj", "embed_tokens"],
            "ensure_weight_tying": True,
        },
    ),
    "tied_input": (True, {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "embed_tokens"]}),
    "tied_output": (True, {"r": 2, "lora_alpha": 6, "target_modules": ["lm_head"]}),
    "pissa": (
        False,
        {"r": 2, "lora_alpha": 6, "init_lora_weights": "pissa", "target_modules": LINEAR},
    ),
}


def numbers(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float32 values that depend on a name."""
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    return generator.normal(size=shape).astype(np.float32)


def base_value(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The value of a base weight: of a size that keeps logits of the order of 1."""
    size = 0.3 if name.endswith("bias") else shape[-1] ** -0.5
    return numbers(name, shape) * np.float32(size)


def mlx_llama(tied: bool) -> Any:
    """mlx-lm's model."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.models.llama import Model, ModelArgs

    options = {k: v for k, v in LLAMA.items() if k != "tie_word_embeddings"}
    args = ModelArgs(model_type="llama", head_dim=4, tie_word_embeddings=tied, **options)
    model = Model(args)
    values = [
        (name, mx.array(base_value(name, w.shape))) for name, w in tree_flatten(model.parameters())
    ]
    model.load_weights(values)
    mx.eval(model.parameters())
    return model


def torch_llama(tied: bool) -> Any:
    """The model of transformers, which has the same names."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**{**LLAMA, "tie_word_embeddings": tied})).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.tensor(base_value(name, tuple(weight.shape))))
    return model


def peft_adapter(case: str, folder: Path) -> np.ndarray:
    """Make a case's adapter, save it as PEFT does, and give the logits with it."""
    import torch
    from peft import LoraConfig, get_peft_model

    tied, options = CASES[case]
    with quiet():
        config = LoraConfig(task_type="CAUSAL_LM", **options)
        model = get_peft_model(torch_llama(tied), config).eval()
        if case == "pissa":
            model.peft_config["default"].init_lora_weights = True
            model.save_pretrained(folder / "start")
            model.peft_config["default"].init_lora_weights = "pissa"
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_" in name:
                    noise = 0.2 * torch.tensor(numbers(name, tuple(weight.shape)))
                    # Plain A starts at random. Magnitudes and PiSSA's start are what they are, up
                    # to signs of singular vectors, which a factor leaves alone.
                    starts = "magnitude" in name or case == "pissa"
                    weight.copy_(weight * (1 + noise) if starts else noise)
        more: dict[str, Any] = {}
        if case == "pissa":
            more["path_initial_model_for_weight_conversion"] = str(folder / "start")
        model.save_pretrained(folder, save_embedding_layers=False, **more)
        return torch_logits(model)


def peft_logits(case: str, folder: Path) -> np.ndarray:
    """Logits of transformers and PEFT with the adapter in a folder on the case's base."""
    from peft import PeftModel

    with quiet():
        model = PeftModel.from_pretrained(torch_llama(CASES[case][0]), str(folder)).eval()
        return torch_logits(model)


def torch_logits(model: Any) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.numpy()


@contextmanager
def quiet() -> Iterator[None]:
    """PEFT warns of what the cases do on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
