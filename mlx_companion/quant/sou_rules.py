"""What the sections of a `.sou` file must be like, kind by kind; bytes are not looked at here.

The table has been parsed and every section lies where it must. Now: kinds that this version does
not know, how many of a kind, which names, which compression; and whether the files that they would
become can lie side by side.
"""

from __future__ import annotations

from collections.abc import Sequence

from mlx_companion.errors import SouError
from mlx_companion.quant.sou_layout import (
    CRITICAL,
    ENTRY_MUST_UNDERSTAND,
    MAX_RATIO,
    MAX_TEXT,
    MAX_TEXTS,
    NONE,
    PAGE,
    SINGLE,
    TENSOR_KINDS,
    ZLIB,
    Kind,
    Section,
)
from mlx_companion.quant.sou_names import check_file_kind, check_paths

# Where a section goes in an unpacked folder: beside the weights, or under `companion/`.
FOLDERS = {
    Kind.CONFIG: "",
    Kind.GENERATION: "",
    Kind.TOKENIZER: "",
    Kind.FILE: "",
    Kind.PROFILE: "companion/profile/",
    Kind.ADAPTER: "companion/adapters/",
    Kind.RULES: "companion/rules/",
    Kind.MODULES: "companion/",
    Kind.RETRIEVAL: "companion/",
    Kind.ACCESS: "companion/",
    Kind.PROVENANCE: "companion/",
}

JSON_KINDS = frozenset(SINGLE)


def check_sections(sections: Sequence[Section]) -> None:
    """Check the table as a whole.

    Raises:
        SouError: a section that must be understood is not; or a rule is broken.
    """
    seen: set[tuple[int, str]] = set()
    for section in sections:
        if (section.kind, section.name) in seen:
            raise SouError(f"{section} comes twice")
        seen.add((section.kind, section.name))
        if section.known:
            _check_known(section)
        elif section.flags & (CRITICAL | ENTRY_MUST_UNDERSTAND):
            raise SouError(
                f"{section} must be understood, but is of a newer version; update mlx-companion"
            )
    _check_pairs(sections)
    _check_single(sections)
    check_paths(path for path in map(unpacked_path, sections) if path is not None)


def unpacked_path(section: Section) -> str | None:
    """The file that a section becomes in an unpacked folder; None where it becomes none."""
    if not section.known or section.kind in (Kind.INDEX, Kind.SOURCE_HEADER):
        return None
    if section.kind == Kind.DATA:
        # Those of the model may become several files, with the names of their source.
        return None if section.name == "model" else f"companion/{section.name}.safetensors"
    return FOLDERS[Kind(section.kind)] + section.name


def _check_known(section: Section) -> None:
    if section.flags & ENTRY_MUST_UNDERSTAND:
        raise SouError(f"{section} uses features of a newer version; update mlx-companion")
    if section.kind in TENSOR_KINDS:
        _check_tensors(section)
    else:
        check_file_kind(section.name)
        _check_compression(section)
    if section.kind == Kind.ADAPTER and section.name.count("/") != 1:
        raise SouError(f"{section} must be named ADAPTER/FILE")
    if section.kind == Kind.SOURCE_HEADER and not _is_weights_file(section.name):
        raise SouError(f"{section} must be named like model*.safetensors")
    if section.kind in (Kind.TOKENIZER, Kind.FILE) and _is_reserved(section):
        raise SouError(f"{section} has a name that belongs to another kind")


def _is_weights_file(name: str) -> bool:
    return "/" not in name and name.startswith("model") and name.endswith(".safetensors")


def _is_reserved(section: Section) -> bool:
    name = section.name.lower()
    return name.split("/")[0] == "companion" or _is_weights_file(name)


def _check_tensors(section: Section) -> None:
    name = section.name
    if not (name.isascii() and name.replace("_", "").isalnum() and name == name.lower()):
        raise SouError(f"{section}: a set of tensors is named with a-z, 0-9 and _ only")
    if section.compression != NONE or section.raw_size != section.size:
        raise SouError(f"{section} must not be compressed")
    if section.kind == Kind.DATA and section.alignment < PAGE:
        raise SouError(f"{section} must be aligned to {PAGE} bytes at least")


def _check_compression(section: Section) -> None:
    if section.compression == NONE:
        if section.raw_size != section.size:
            raise SouError(f"{section} is not compressed, but has two sizes")
    elif section.compression != ZLIB:
        raise SouError(f"{section} is compressed in an unknown way ({section.compression})")
    elif section.raw_size > min(MAX_TEXT, MAX_RATIO * section.size):
        raise SouError(
            f"{section} claims to grow from {section.size} to {section.raw_size} bytes; at most "
            f"{MAX_RATIO} times and {MAX_TEXT} bytes are allowed"
        )


def _check_pairs(sections: Sequence[Section]) -> None:
    names = [{s.name for s in sections if s.kind == kind} for kind in TENSOR_KINDS]
    for name in sorted(names[0] ^ names[1]):
        raise SouError(f"the tensors '{name}' have an index without data, or data without an index")


def _check_single(sections: Sequence[Section]) -> None:
    for kind, name in SINGLE.items():
        for section in sections:
            if section.kind == kind and section.name != name:
                raise SouError(f"{section} must be named '{name}'")
    if sum(s.raw_size for s in sections if s.compression != NONE) > MAX_TEXTS:
        raise SouError(f"its compressed sections claim more than {MAX_TEXTS} bytes in all")
    profiles = [section for section in sections if section.kind == Kind.PROFILE]
    if len(profiles) > 1:
        raise SouError(f"it holds {len(profiles)} personality profiles; one at most")
