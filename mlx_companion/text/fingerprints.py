"""What tells data and tokenizers apart: hashes of content, wherever it lies."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from mlx_companion.runtime.files import sha256_file
from mlx_companion.text.encode import encode_sample
from mlx_companion.text.readers import data_files
from mlx_companion.text.records import Message, Sample

KEY_BYTES = 16
_PROBE = Sample(messages=(Message("user", "What is 12 + 30?"), Message("assistant", "It's 42.")))


def content_key(sample: Sample) -> bytes:
    """16 bytes that are equal for samples of equal content, whatever their source."""
    turns = [[message.role, message.content] for message in sample.messages]
    text = json.dumps([turns, sample.text], ensure_ascii=True)
    return hashlib.blake2b(text.encode("ascii"), digest_size=KEY_BYTES).digest()


def files_sha256(path: str | Path) -> str:
    """SHA-256 over names and contents of the data files under a path, as 64 hexadecimal digits.

    Raises:
        DataError: nothing there, or a kind of file that is not known.
    """
    path = Path(path)
    named = [(f.relative_to(path).as_posix() if path.is_dir() else "", f) for f in data_files(path)]
    found = [[name or file.suffix.lower(), sha256_file(file)] for name, file in named]
    return _sha256(found)


def tokenizer_sha256(tokenizer: Any) -> str:
    """SHA-256 over all that decides how a tokenizer encodes, as 64 hexadecimal digits.

    Args:
        tokenizer: an mlx-lm `TokenizerWrapper` or a transformers tokenizer.
    """
    inner = getattr(tokenizer, "_tokenizer", tokenizer)
    core = getattr(inner, "backend_tokenizer", None)
    ends = getattr(tokenizer, "eos_token_ids", None)
    parts = [
        type(inner).__name__,
        core.to_str() if core is not None else sorted(inner.get_vocab().items()),
        getattr(tokenizer, "chat_template", None),
        sorted(tokenizer.all_special_ids),
        sorted(ends) if isinstance(ends, set) else None,
        # What none of the above says, e.g. of tokenizers written in Python.
        encode_sample(_PROBE, tokenizer, 1 << 20).tokens,
    ]
    return _sha256(parts)


def _sha256(parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
