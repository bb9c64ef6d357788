"""Looking at every byte of a `.sou` file: `verify`.

Opening a file checks its table, and reading a section checks that section; this checks all of
them, the zeros between them, the text in them, every tensor, and the signature.

    report = verify("mine.sou", key=read_public_key("friend.pub.pem"))
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from mlx_companion.errors import MissingExtraError, SouError
from mlx_companion.quant.sou_layout import (
    MAX_TEXT,
    NONE,
    Kind,
    Section,
)
from mlx_companion.quant.sou_names import MAX_JSON, TEXT_SUFFIXES, check_json_depth, parse_json
from mlx_companion.quant.sou_reader import SouFile
from mlx_companion.quant.sou_rules import JSON_KINDS
from mlx_companion.quant.sou_safetensors import parse_header
from mlx_companion.quant.sou_sign import check_signature

SignatureState = Literal["none", "valid", "trusted", "not checked"]


@dataclass(frozen=True)
class Verified:
    """What was checked.

    Attributes:
        digest: of the header, hex; it stands for the whole content.
        size: bytes of the file.
        sections, tensors: how many.
        signature: "none"; "valid": right for the key in the file, whoever that is; "trusted":
            made with the key that was given; "not checked": `cryptography` is not installed.
        public_key: the key in the file, hex; empty when it is not signed.
    """

    digest: str
    size: int
    sections: int
    tensors: int
    signature: SignatureState
    public_key: str


def verify(path: str | Path, key: bytes | None = None) -> Verified:
    """Check a whole file.

    Args:
        path: the file.
        key: 32 bytes of the ed25519 public key that must have signed it; None takes any or none.

    Raises:
        ModelNotFoundError: there is no such file.
        SouError: the first thing that is wrong.
        MissingExtraError: a key was given, but `cryptography` is not installed.
    """
    with SouFile(path) as sou, sou.named():
        state = _signature(sou, key)
        _check_gaps(sou)
        for section in sou.sections:
            if section.kind == Kind.DATA:
                _check_data(sou, section)
            elif section.kind == Kind.INDEX:
                sou.index(section.name)
            else:
                _check_section(sou, section)
        _check_source_headers(sou)
        return Verified(
            digest=sou.header.digest.hex(),
            size=sou.header.file_size,
            sections=len(sou.sections),
            tensors=sum(len(sou.index(name)) for name in sou.tensor_sets),
            signature=state,
            public_key=sou.signature.public_key.hex() if sou.signature else "",
        )


def _signature(sou: SouFile, key: bytes | None) -> SignatureState:
    found = sou.signature
    if found is None:
        if key is not None:
            raise SouError("it is not signed, but a signature was asked for")
        return "none"
    if key is not None and found.public_key != key:
        raise SouError(
            f"it is signed with the key {found.public_key.hex()}, expected {key.hex()}; "
            "it comes from somebody else"
        )
    try:
        check_signature(found, sou.header.digest)
    except MissingExtraError:
        if key is not None:
            raise
        return "not checked"
    return "valid" if key is None else "trusted"


def _check_gaps(sou: SouFile) -> None:
    """What lies between sections must be zeros."""
    first = sou.header.first
    edges = [(0, first), *((s.offset, s.end) for s in sou.sections)]
    for (_, end), (start, _) in pairwise(edges):
        if any(sou.pread(end, start - end)):
            raise SouError(f"there is something between sections, at byte {end}; zeros must be")


def _check_section(sou: SouFile, section: Section) -> None:
    if not section.known or not _is_small(section):
        for _ in sou.checked_chunks(section):
            pass
        return
    data = sou.read(section)
    if section.kind in JSON_KINDS:
        sou.json(Kind(section.kind))
    elif section.name.endswith(".json"):
        check_json_depth(data, str(section))
        if len(data) <= MAX_JSON:
            parse_json(data, str(section))


def _is_small(section: Section) -> bool:
    """Whether it is taken into memory: what is compressed, and text."""
    text = section.kind == Kind.SOURCE_HEADER or section.name.endswith(TEXT_SUFFIXES)
    return section.compression != NONE or (text and section.size <= MAX_TEXT)


def _check_data(sou: SouFile, section: Section) -> None:
    """One pass over the weights: the sum of the section, of each tensor, and the zeros between."""
    whole = hashlib.sha256()
    end = 0
    for entry in sou.index(section.name).values():
        gap = sou.pread(section.offset + end, entry.offset - end)
        if any(gap):
            raise SouError(f"there is something before tensor '{entry.name}'; zeros must be")
        whole.update(gap)
        for piece in sou.tensor_bytes(entry.name, section.name):
            whole.update(piece)
        end = entry.end
    if whole.digest() != section.sha256:
        raise SouError(f"{section} is damaged (SHA-256 differs); copy the file again")


def _check_source_headers(sou: SouFile) -> None:
    headers = sou.all(Kind.SOURCE_HEADER)
    if headers:
        named = [e.name for one in headers for e in parse_header(sou.read(one), str(one))]
        if sorted(named) != sorted(sou.index()):
            raise SouError("its source headers do not name each tensor of the model once")
