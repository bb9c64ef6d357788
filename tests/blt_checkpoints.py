"""Byte models in the ways that other programs write them, without those programs.

    write_meta(case, tmp_path / "meta", tables="split", pth=True)
    write_pth(tmp_path / "weights.pth", {"a": np.zeros(3, np.float32)})

The writer of `.pth` files assembles the pickle instruction by instruction, as `torch.save` does it,
and takes extra instructions, for files that nobody should write.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
from pathlib import Path
from typing import Literal

import numpy as np
from blt_fixtures import Case
from safetensors.numpy import save_file

STORAGES = {
    "float32": ("FloatStorage", 4),
    "float16": ("HalfStorage", 2),
    "int64": ("LongStorage", 8),
    "bfloat16": ("BFloat16Storage", 2),
}

_TO_META = (
    ("self_attn.q_proj", "attention.wq"),
    ("self_attn.k_proj", "attention.wk"),
    ("self_attn.v_proj", "attention.wv"),
    ("self_attn.o_proj", "attention.wo"),
    ("mlp.gate_proj", "feed_forward.w1"),
    ("mlp.down_proj", "feed_forward.w2"),
    ("mlp.up_proj", "feed_forward.w3"),
    ("input_layernorm", "attention_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("embed_tokens", "tok_embeddings"),
    ("q_norm", "cross_attn_norm_q"),
    ("k_norm", "cross_attn_norm_kv"),
    (".q_proj", ".wq"),
    (".k_proj", ".wk"),
    (".v_proj", ".wv"),
    (".o_proj", ".wo"),
)


def meta_name(name: str) -> str:
    """Meta's name of a tensor that transformers calls `name` (without "model." in front)."""
    if name == "lm_head.weight":
        return "local_decoder.output.weight"
    name = name.removeprefix("model.").removeprefix("patcher.")
    for ours, theirs in _TO_META:
        name = name.replace(ours, theirs)
    return name.replace("lm_head", "output")


def write_meta(
    case: Case,
    folder: Path,
    *,
    tables: Literal["split", "fused"] = "split",
    pth: bool = False,
    settings: Literal["args", "model"] = "args",
) -> Path:
    """Write a case as Meta's checkpoints are.

    Args:
        case: of `blt_fixtures`.
        folder: made if need be.
        tables: one hash table per n-gram size and function, or one for all.
        pth: weights in `.pth` files; the entropy model's always are.
        settings: where the main model's settings are: "args" of a config.json, as on the hub, or
            "model" of a params.json, as training leaves them.
    """
    entropy = {k: v for k, v in case.weights.items() if k.startswith("model.patcher.")}
    main = {meta_name(k): v for k, v in case.weights.items() if k not in entropy}
    if tables == "split":
        table = main.pop("encoder_hash_tok_embedding.weight")
        for i, part in enumerate(np.split(table, _tables(case))):
            main[f"encoder_hash_tok_embedding.{i}.weight"] = part.copy()
    for part in ("local_encoder", "global_transformer", "local_decoder"):
        main[f"{part}.rope.freqs_cis"] = np.zeros((4, 2), np.float32)
    (folder / "entropy_model").mkdir(parents=True)
    name = "config.json" if settings == "args" else "params.json"
    (folder / name).write_text(json.dumps({settings: _main_settings(case)}))
    (folder / "entropy_model" / "params.json").write_text(json.dumps(_entropy_settings(case)))
    if pth:
        write_pth(folder / "consolidated.pth", main, under="model")
    else:
        save_file(main, folder / "model.safetensors")
    renamed = {meta_name(k): v for k, v in entropy.items()}
    write_pth(folder / "entropy_model" / "consolidated.pth", renamed, under="model")
    return folder


def _tables(case: Case) -> int:
    config = case.config
    functions = config["encoder_hash_byte_group_nb_functions"]
    return functions * len(config["encoder_hash_byte_group_size"])


def _main_settings(case: Case) -> dict:
    config = case.config
    return {
        "dim": 999,  # not read: the weights tell
        "n_heads": 999,
        "n_heads_local_encoder": config["encoder_config"]["num_attention_heads"],
        "n_heads_local_decoder": config["decoder_config"]["num_attention_heads"],
        "n_heads_global": config["global_config"]["num_attention_heads"],
        "rope_theta": config["encoder_config"]["rope_parameters"]["rope_theta"],
        "norm_eps": config["encoder_config"]["rms_norm_eps"],
        "local_attention_window_len": config["local_attention_window_len"] or 10_000,
        "encoder_hash_byte_group_size": config["encoder_hash_byte_group_size"],
        "encoder_hash_byte_group_nb_functions": config["encoder_hash_byte_group_nb_functions"],
        "max_seqlen": 256,
    }


def _entropy_settings(case: Case) -> dict:
    patcher = case.config["patcher_config"]
    return {
        "entropy_model": {
            "n_heads": patcher["num_attention_heads"],
            "rope_theta": patcher["rope_parameters"]["rope_theta"],
            "norm_eps": patcher["rms_norm_eps"],
            "sliding_window": patcher["sliding_window"],
            "max_seqlen": 256,
        },
        "data": {
            "patcher_args": {
                "patching_mode": "entropy",
                "threshold": case.config["patching_threshold"],
                "threshold_add": None,
                "monotonicity": False,
                "patch_size": 4.5,
                "max_patch_length": None,
            }
        },
    }


def write_pth(
    path: Path,
    tensors: dict[str, np.ndarray],
    *,
    under: str | None = None,
    extra: bytes = b"",
) -> Path:
    """Write arrays as `torch.save` writes a state dict.

    Args:
        path: the file.
        tensors: of a type in `STORAGES` (bfloat16 is not NumPy's, see `tensor_code`).
        under: wrap the state dict in a dict with this key.
        extra: pickle instructions that leave the stack as it is, put before the first tensor.
    """
    code = b"}(" + text_code(under) if under else b""
    code += b"}" + extra + b"("
    for i, (name, array) in enumerate(tensors.items()):
        code += text_code(name) + tensor_code(str(i), str(array.dtype), array.size, array.shape)
    code += b"u" + (b"u" if under else b"")
    storages = {str(i): array.tobytes() for i, array in enumerate(tensors.values())}
    return write_archive(path, b"\x80\x02" + code + b".", storages)


def write_archive(path: Path, pickle: bytes, storages: dict[str, bytes]) -> Path:
    """Write the zip archive of a `.pth` file."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickle)
        archive.writestr("archive/byteorder", "little")
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
        archive.writestr("archive/version", "3\n")
    return path


def tensor_code(
    key: str,
    dtype: str,
    count: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...] | None = None,
    offset: int = 0,
) -> bytes:
    """Pickle instructions that push a tensor.

    Args:
        key: of its storage.
        dtype: a key of `STORAGES`.
        count: numbers that the storage is said to hold.
        shape: of the tensor.
        strides: in numbers; None for rows one after the other.
        offset: of its first number in the storage.
    """
    if strides is None:
        strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    kind = STORAGES[dtype][0]
    storage = b"(" + text_code("storage") + f"ctorch\n{kind}\n".encode()
    storage += text_code(key) + text_code("cpu") + number_code(count) + b"tQ"
    numbers = [b"(" + b"".join(map(number_code, sizes)) + b"t" for sizes in (shape, strides)]
    hooks = b"ccollections\nOrderedDict\n)R"
    arguments = storage + number_code(offset) + b"".join(numbers) + b"\x89" + hooks
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def text_code(text: str) -> bytes:
    """Push a text."""
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number_code(number: int) -> bytes:
    """Push a whole number."""
    if 0 <= number < 2**31:
        return b"J" + struct.pack("<i", number)
    data = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def entry_bytes(path: Path, name: str) -> bytes:
    """A file of a `.pth` archive."""
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        return archive.read(f"archive/{name}")
