"""Answers of transformers' byte latent transformer for tiny random models, stored and rebuilt.

Tests compare with what is stored in `fixtures/blt_<case>.npz`: entropies, patch lengths, logits and
(for one case) the loss and every gradient. The weights are not stored: each tensor is made of
small integers from a seed that its name gives, and is exact in float32, float16 and bfloat16.

    case = read("k2_window")
    case.write_hf(tmp_path / "hf")          # config.json and model.safetensors, as transformers has

Two `.pth` files of `torch.save` lie beside them.

To build the files again (the only part that needs PyTorch), in an environment of its own:

    pip install torch transformers safetensors
    python tests/blt_fixtures.py

Last built with torch 2.13.0 and transformers 5.23.0.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

HERE = Path(__file__).parent / "fixtures"
LENGTH = 60
# Logits of every fourth vocabulary entry say as much about the layers below as all of them.
STEP = 4
GRADIENT_CASE = "k4_projected_window"
CASES = [
    f"k{k}{projected}{window}"
    for k, projected, window in product((2, 4), ("", "_projected"), ("", "_window"))
] + ["k2_bytes"]
TEXTS = (
    "Gestern im Café: »zwölf Bücher, zwölf Brote«, 東京の朝, and so to bed.",
    "the cat sat on the mat; the cat sat on the hat. THE CAT?\n\n\t42 42 4242",
)


@dataclass
class Case:
    """One tiny model and what transformers computed with it.

    Attributes:
        name: of the case.
        config: content of `config.json`.
        weights: name in transformers -> float32 array.
        ids: (2, N) int32, BOS and bytes + 4.
        entropies: (2, N) float32, nats.
        patch_lengths: (2, P) int32 as transformers gives them: may count one byte too many, and
            ends with zeros (and a -1) in the row with fewer patches.
        logits: (2, N, 65) float32, every `STEP`th entry.
        normalizer: (2, N) float32, log-sum-exp of all logits.
        loss: mean cross-entropy of bytes 1.. in nats; None but for `GRADIENT_CASE`.
        gradients: of the loss, by name.
    """

    name: str
    config: dict[str, Any]
    weights: dict[str, np.ndarray]
    ids: np.ndarray
    entropies: np.ndarray
    patch_lengths: np.ndarray
    logits: np.ndarray
    normalizer: np.ndarray
    loss: float | None = None
    gradients: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def opens(self) -> np.ndarray:
        """(2, N) bool: where patches start, from their lengths."""
        return self._opens_and_next()[:, :-1]

    @property
    def closes(self) -> np.ndarray:
        """(2, N) bool: whether the next byte, seen or not, starts a patch."""
        return self._opens_and_next()[:, 1:]

    def _opens_and_next(self) -> np.ndarray:
        rows, length = self.ids.shape
        result = np.zeros((rows, length + 1), bool)
        for row, lengths in zip(result, self.patch_lengths, strict=True):
            starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
            row[starts[starts <= length]] = True
        return result

    def write_hf(self, folder: Path) -> Path:
        """Write the model as transformers does; returns `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config, indent=1))
        save_file(self.weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder


def read(name: str) -> Case:
    """A stored case.

    Args:
        name: one of `CASES`.
    """
    with np.load(HERE / f"blt_{name}.npz") as stored:
        arrays = dict(stored)
    shapes = json.loads(str(arrays.pop("shapes")))
    weights = {key: weight(name, key, tuple(shape)) for key, shape in shapes.items()}
    assert weights_sha256(weights) == str(arrays.pop("sha256")), "the weights came out differently"
    gradients = {key[5:]: arrays.pop(key) for key in list(arrays) if key.startswith("grad/")}
    loss = float(arrays.pop("loss")) if gradients else None
    config = json.loads(str(arrays.pop("config")))
    arrays["ids"] = arrays["ids"].astype(np.int32)
    return Case(name, config, weights, loss=loss, gradients=gradients, **arrays)


def weight(case: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor of a case: the same on every machine, since it only draws integers.

    Norms lie around 1; matrices have a standard deviation near 1 / sqrt(columns).
    """
    draws = np.random.RandomState(zlib.crc32(f"{case}/{name}".encode()))
    if len(shape) == 1:
        return (1 + draws.randint(-32, 33, shape) / 128).astype(np.float32)
    # The integers' deviation is 73. A patcher that is more certain at times makes real patches.
    power = -round(np.log2(73 * shape[-1] ** 0.5)) + 2 * ("patcher.lm_head" in name)
    return (draws.randint(-127, 128, shape) * 2.0**power).astype(np.float32)


def weights_sha256(weights: dict[str, np.ndarray]) -> str:
    """Of names and contents, hex."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].tobytes())
    return digest.hexdigest()


def text_ids() -> np.ndarray:
    """(2, `LENGTH`) int32: BOS and bytes + 4 of `TEXTS`, cut."""
    rows = [[1] + [byte + 4 for byte in text.encode()] for text in TEXTS]
    return np.array([row[:LENGTH] for row in rows], np.int32)


def hf_config(name: str) -> dict[str, Any]:
    """`config.json` of a case, but for the threshold."""
    k = int(name[1])
    projected, window = "projected" in name, 8 if "window" in name else None
    width = 16
    latent = 48 if projected else k * width
    # One case shares keys and values between heads, in every stack.
    grouped = name == "k4"
    shared = {
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        "rms_norm_eps": 1e-5,
        "cross_attn_k": k,
        "hidden_size_global": latent,
        "vocab_size": 260,
    }
    return {
        "model_type": "blt",
        "architectures": ["BltForCausalLM"],
        "vocab_size": 260,
        "cross_attn_k": k,
        "local_attention_window_len": window,
        "patching_mode": "byte" if "bytes" in name else "entropy",
        "max_position_embeddings": 256,
        "rope_parameters": shared["rope_parameters"],
        "encoder_hash_byte_group_size": [3, 5, 8] if projected else [3, 4, 5, 6, 7, 8],
        "encoder_hash_byte_group_vocab": 53,
        "encoder_hash_byte_group_nb_functions": 2 if projected else 1,
        # The two switches of cross-attention are varied against the other settings.
        "encoder_config": shared
        | _stack(width, 2 if window or projected else 1, 2, None, 1 if grouped else None)
        | {"cross_attn_all_layers": window is None and projected},
        "decoder_config": shared
        | _stack(width, 2, 2, 40, 1 if grouped else None)
        | {"cross_attn_all_layers": projected == (window is not None)},
        "global_config": {"rms_norm_eps": 1e-5, "rope_parameters": shared["rope_parameters"]}
        | _stack(latent, 2, 4, 56, 2 if grouped else None),
        "patcher_config": {
            "vocab_size": 260,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "sliding_window": 6 if k == 2 else None,
        }
        | _stack(24, 2, 2, 40, 1 if grouped else None),
    }


def _stack(
    width: int, layers: int, heads: int, ffn: int | None, kv_heads: int | None = None
) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": ffn,
    }


def torch_model(config: dict[str, Any], name: str) -> Any:
    """transformers' model of a configuration with the weights of a case."""
    import torch
    from transformers import BltConfig, BltForCausalLM

    model = BltForCausalLM(BltConfig(**config)).float().eval()
    state = {
        key: torch.from_numpy(weight(name, key, tuple(value.shape)))
        for key, value in model.state_dict().items()
    }
    model.load_state_dict(state)
    return model


def torch_answers(model: Any, ids: np.ndarray) -> dict[str, np.ndarray]:
    """What is stored of a forward pass; no cache, since transformers' cached pass is wrong."""
    import torch

    tokens = torch.from_numpy(ids).long()
    config = model.config
    with torch.no_grad():
        logits = model(tokens, use_cache=False).logits
        entropies, lengths, _ = model.model.patcher(
            tokens, patch_size=4, threshold=config.patching_threshold
        )
    if config.patching_mode != "entropy":
        lengths = torch.ones(len(ids), ids.shape[1] + 1)
    return {
        "entropies": entropies.numpy(),
        "patch_lengths": lengths.numpy().astype(np.int32),
        "logits": logits[..., ::STEP].numpy(),
        "normalizer": torch.logsumexp(logits, -1).numpy(),
    }


def torch_gradients(model: Any, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Loss and gradients; parameters that the loss does not reach get zeros."""
    import torch

    tokens = torch.from_numpy(ids).long()
    logits = model(tokens, use_cache=False).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    result = {"loss": loss.detach().numpy()}
    for name, parameter in model.named_parameters():
        if "patcher" not in name:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            result[f"grad/{name}"] = gradient.numpy()
    return result


def _threshold(entropies: np.ndarray) -> float:
    """The middle of the widest gap of the entropies that leaves patches of 3 to 6 bytes."""
    ordered = np.sort(entropies[:, 1:].ravel())
    low, high = int(len(ordered) * 0.67), int(len(ordered) * 0.83)
    at = low + int(np.argmax(np.diff(ordered[low:high])))
    return float((ordered[at] + ordered[at + 1]) / 2)


def build(name: str) -> None:
    """Compute a case with transformers and store it."""
    config, ids = hf_config(name), text_ids()
    model = torch_model(config | {"patching_threshold": 1.0}, name)
    config["patching_threshold"] = _threshold(torch_answers(model, ids)["entropies"])
    model = torch_model(config, name)
    weights = {key: value.numpy() for key, value in model.state_dict().items()}
    stored: dict[str, Any] = torch_answers(model, ids)
    if name == GRADIENT_CASE:
        stored |= torch_gradients(model, ids)
    np.savez_compressed(
        HERE / f"blt_{name}.npz",
        config=np.array(json.dumps(config)),
        shapes=np.array(json.dumps({key: value.shape for key, value in weights.items()})),
        sha256=np.array(weights_sha256(weights)),
        ids=ids.astype(np.uint16),
        **stored,
    )


def build_pth() -> None:
    """Have torch write checkpoints of every kind of tensor that is read, and of the old format."""
    import torch

    table = torch.arange(24.0).reshape(4, 6)
    module = torch.nn.Linear(2, 3)
    with torch.no_grad():
        module.weight.copy_(torch.arange(6.0).reshape(3, 2))
        module.bias.copy_(torch.arange(3.0))
    state = module.state_dict()
    state |= {
        "half": torch.arange(6).half().reshape(2, 3),
        "bfloat": torch.tensor([1.0, -2.5, 3.0e38]).bfloat16(),
        "long": torch.tensor([-1, 2**40]),
        "scalar": torch.tensor(7.0),
        "empty": torch.zeros(0, 3),
        "table": table,
        "transposed": table.T,
        "part": table[1:3, 2:5],
        "tied": table,
    }
    torch.save({"model": state, "step": 3, "loss": 0.5}, HERE / "blt_torch.pth")
    torch.save({"a": table}, HERE / "blt_old.pth", _use_new_zipfile_serialization=False)


if __name__ == "__main__":
    build_pth()
    for case_name in CASES:
        build(case_name)
