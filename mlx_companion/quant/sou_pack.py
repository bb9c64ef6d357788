"""Packing a companion into one file: `pack`.

    pack("path/to/mlx-folder", "mine.sou", adapters={"tone": "runs/tone/adapter"},
         profile="mine.yaml", licence="Apache-2.0")
    pack("model.gguf", "mine.sou")
    pack("weights.safetensors", "weights.sou")

The source is a folder in the layout of the hub or of mlx-lm, a GGUF file, a safetensors file, or
an alias. A folder that `unpack` made has a sub-folder `companion/`, which is taken along; so
packing what was unpacked gives the same bytes again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_companion.errors import ConfigError, SouError
from mlx_companion.models.folder import weight_files
from mlx_companion.models.hashing import content_sha256
from mlx_companion.models.load import find_model
from mlx_companion.quant.sou_layout import Kind
from mlx_companion.quant.sou_names import check_file_kind, parse_json
from mlx_companion.quant.sou_safetensors import read_safetensors
from mlx_companion.quant.sou_sign import SigningKey
from mlx_companion.quant.sou_writer import (
    Part,
    TensorSet,
    TensorSource,
    file_part,
    text_part,
    write_sou,
)

COMPANION = "companion"
_TOKENIZER = ("tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "chat_template")
_TOKENIZER_SUFFIXES = (".model", ".tiktoken", ".jinja")
_JSON_FILES = {
    "modules.json": Kind.MODULES,
    "retrieval.json": Kind.RETRIEVAL,
    "access.json": Kind.ACCESS,
}
Path_ = str | Path


@dataclass(frozen=True)
class Packed:
    """What `pack` wrote.

    Attributes:
        path: the file.
        digest: of its header, hex.
        size: bytes.
        skipped: files of the source that a `.sou` file does not hold.
    """

    path: Path
    digest: str
    size: int
    skipped: tuple[str, ...]


@dataclass
class Content:
    """What goes into a file, as it is gathered."""

    parts: dict[tuple[Kind, str], Part] = field(default_factory=dict)
    sets: dict[str, TensorSet] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    base_sha256: str = ""
    source: str = ""

    def add(self, part: Part) -> None:
        """Add a section, in place of one of the same kind and name."""
        self.parts[part.kind, part.name] = part

    def add_json(self, kind: Kind, name: str, value: Mapping[str, Any]) -> None:
        """Add a JSON section."""
        text = json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True, allow_nan=False)
        self.add(text_part(kind, name, (text + "\n").encode()))


def pack(
    source: Path_,
    out: Path_,
    *,
    adapters: Mapping[str, Path_] | None = None,
    profile: Path_ | None = None,
    embedding: Path_ | None = None,
    modules: Path_ | None = None,
    rules: Iterable[Path_] = (),
    retrieval: Path_ | None = None,
    access: Path_ | None = None,
    licence: str | None = None,
    created: str | None = None,
    key: SigningKey | None = None,
) -> Packed:
    """Write a companion as one file.

    Args:
        source: folder, GGUF file, safetensors file, alias or hub id.
        out: the `.sou` file; an older one is replaced when the new one is complete.
        adapters: name -> folder of an adapter.
        profile: personality profile, YAML or JSON.
        embedding: the personality's embedding, a safetensors file.
        modules: thresholds of modules, a JSON object.
        rules: rule packs, YAML, JSON or text.
        retrieval: settings of retrieval, a JSON object.
        access: access-control metadata, a JSON object.
        licence: of the whole, an SPDX expression where there is one.
        created: time in ISO 8601; left out when None, so that the same input gives the same bytes.
        key: signs the file.

    Returns:
        What was written.

    Raises:
        ModelNotFoundError: the source names nothing.
        WeightsError, SouError: the source is damaged or holds what a `.sou` file cannot.
        ConfigError: an extra file is missing.
        DiskFullError: no space; an older file is untouched.
    """
    content = _gather(source)
    if profile is not None:
        content.parts = {k: v for k, v in content.parts.items() if k[0] != Kind.PROFILE}
        content.add(_checked_part(Kind.PROFILE, Path(profile)))
    for name, folder in (adapters or {}).items():
        _add_adapter(content, name, Path(folder))
    given = [_checked_part(Kind.RULES, Path(path)) for path in rules]
    if len({part.name for part in given}) < len(given):
        raise ConfigError("two rule packs have the same file name; rename one")
    for part in given:
        content.add(part)
    for settings, name in zip((modules, retrieval, access), _JSON_FILES, strict=True):
        if settings is not None:
            content.add(_checked_part(_JSON_FILES[name], Path(settings), name))
    if embedding is not None:
        content.sets["personality"] = tensor_set("personality", Path(embedding))
    _add_provenance(content, licence, created)
    digest = write_sou(out, content.parts.values(), content.sets.values(), key)
    return Packed(Path(out), digest, Path(out).stat().st_size, tuple(sorted(content.skipped)))


def tensor_set(name: str, path: Path) -> TensorSet:
    """The tensors of one safetensors file as a set."""
    return TensorSet(name, read_safetensors(_existing(path))[1])


def _gather(source: Path_) -> Content:
    path = Path(source).expanduser()
    if path.suffix == ".safetensors" and path.is_file():
        content = Content(source="safetensors", base_sha256=content_sha256([path]))
        _add_weights(content, [path], keep_headers=False)
        return content
    path = find_model(source)
    if path.is_file():
        from mlx_companion.quant.sou_gguf import gather_gguf

        return gather_gguf(path)
    return _gather_folder(path)


def _gather_folder(folder: Path) -> Content:
    weights = weight_files(folder)
    if not weights:
        raise SouError(f"{folder} holds no weights (model*.safetensors)")
    content = Content(source="folder", base_sha256=content_sha256(weights))
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path in weights or path.is_dir() or name.split("/")[0] == COMPANION:
            continue
        if _is_allowed(name):
            content.add(_checked_part(_kind_of(name), path, name))
        else:
            content.skipped.append(name)
    _add_weights(content, weights, keep_headers=True)
    if (folder / COMPANION).is_dir():
        _gather_companion(content, folder / COMPANION)
    return content


def _gather_companion(content: Content, folder: Path) -> None:
    """What `unpack` put beside a model."""
    for path in sorted(folder.iterdir()):
        if path.name in _JSON_FILES:
            content.add(_checked_part(_JSON_FILES[path.name], path))
        elif path.name == "provenance.json":
            content.add(_checked_part(Kind.PROVENANCE, path))
        elif path.suffix == ".safetensors":
            content.sets[path.stem] = tensor_set(path.stem, path)
        elif path.name == "adapters" and path.is_dir():
            for one in sorted(path.iterdir()):
                _add_adapter(content, one.name, one)
        elif path.name in ("profile", "rules") and path.is_dir():
            kind = Kind.PROFILE if path.name == "profile" else Kind.RULES
            for one in sorted(path.rglob("*")):
                if one.is_file():
                    name = one.relative_to(path).as_posix()
                    content.add(_checked_part(kind, one, name))
        else:
            content.skipped.append(f"{COMPANION}/{path.name}")


def _add_weights(content: Content, files: Iterable[Path], keep_headers: bool) -> None:
    tensors: dict[str, TensorSource] = {}
    for path in files:
        header, found = read_safetensors(path)
        if keep_headers:
            content.add(text_part(Kind.SOURCE_HEADER, path.name, header))
        for tensor in found:
            if tensor.entry.name in tensors:
                raise SouError(f"{path}: tensor '{tensor.entry.name}' is in another file, too")
            tensors[tensor.entry.name] = tensor
    content.sets["model"] = TensorSet("model", list(tensors.values()))


def _add_adapter(content: Content, name: str, folder: Path) -> None:
    if not folder.is_dir():
        raise ConfigError(f"there is no adapter folder '{folder}'; check the path")
    for path in sorted(folder.iterdir()):
        if path.is_file() and _is_allowed(path.name):
            content.add(file_part(Kind.ADAPTER, f"{name}/{path.name}", path))
        else:
            content.skipped.append(f"{name}/{path.name}")


def _add_provenance(content: Content, licence: str | None, created: str | None) -> None:
    if (Kind.PROVENANCE, "provenance.json") in content.parts and licence is created is None:
        return
    from importlib.metadata import version

    import mlx_companion

    versions = {name: version(name) for name in ("mlx", "mlx-lm")}
    facts = {
        "base_sha256": content.base_sha256,
        "source": content.source,
        "versions": {"mlx-companion": mlx_companion.__version__, **versions},
        "licence": licence,
        "created": created,
    }
    given = {name: value for name, value in facts.items() if value is not None}
    content.add_json(Kind.PROVENANCE, "provenance.json", given)


def _checked_part(kind: Kind, path: Path, name: str | None = None) -> Part:
    """A section of a small file; JSON in it must be JSON."""
    name = name or path.name
    check_file_kind(name)
    part = file_part(kind, name, _existing(path))
    if kind in _PARSED:
        parse_json(path.read_bytes(), str(path))
    return part


_PARSED = {Kind.CONFIG, Kind.GENERATION, Kind.PROVENANCE, *_JSON_FILES.values()}


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ConfigError(f"there is no file '{path}'; check the path")
    return path


def _kind_of(name: str) -> Kind:
    if name == "config.json":
        return Kind.CONFIG
    if name == "generation_config.json":
        return Kind.GENERATION
    at_top = "/" not in name and name.startswith(_TOKENIZER)
    return Kind.TOKENIZER if at_top or name.endswith(_TOKENIZER_SUFFIXES) else Kind.FILE


def _is_allowed(name: str) -> bool:
    if any(part.startswith(".") for part in name.split("/")):
        return False
    try:
        check_file_kind(name)
    except SouError:
        return False
    return True
