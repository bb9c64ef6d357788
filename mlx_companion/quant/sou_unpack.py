"""Unpacking a `.sou` file into a folder that mlx-lm reads: `unpack`.

Model, tokenizer and texts lie in the folder as on the hub; all else is under `companion/`. Every
byte is checked while it is copied, names cannot leave the folder, and the folder appears whole or
not at all.

    unpack("mine.sou", "mine")
    model, tokenizer = mlx_lm.load("mine")
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlx_companion.errors import ConfigError, SouError
from mlx_companion.quant.sou_layout import Kind
from mlx_companion.quant.sou_reader import MODEL, SouFile
from mlx_companion.quant.sou_rules import unpacked_path
from mlx_companion.quant.sou_safetensors import write_safetensors
from mlx_companion.runtime.files import atomic_dir


@dataclass(frozen=True)
class Unpacked:
    """What `unpack` wrote.

    Attributes:
        folder: where.
        files: how many.
        skipped: sections of a newer version, which have no place in the folder.
    """

    folder: Path
    files: int
    skipped: tuple[str, ...]


def unpack(path: str | Path, folder: str | Path) -> Unpacked:
    """Write the content of a file as a folder.

    Args:
        path: the `.sou` file.
        folder: must not exist yet, or be empty.

    Raises:
        ModelNotFoundError: there is no such file.
        SouError: damaged or hostile; nothing was written.
        ConfigError: the folder holds something.
        DiskFullError: no space; nothing was written.
    """
    folder = Path(folder)
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise ConfigError(f"{folder} exists and is not empty; give a new folder")
    with SouFile(path) as sou, atomic_dir(folder) as temporary:
        with sou.named():
            _write(sou, temporary)
        files = sum(1 for one in temporary.rglob("*") if one.is_file())
    skipped = tuple(str(section) for section in sou.sections if not section.known)
    return Unpacked(folder, files, skipped)


def _write(sou: SouFile, folder: Path) -> None:
    for section in sou.sections:
        name = unpacked_path(section)
        if name is None:
            continue
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if section.kind == Kind.DATA:
            write_safetensors(target, sou, section.name)
        else:
            sou.copy(section, target)
    if MODEL in sou.tensor_sets:
        _write_model(sou, folder)


def _write_model(sou: SouFile, folder: Path) -> None:
    """The weights, in the files that they came from where those are known."""
    headers = sou.all(Kind.SOURCE_HEADER)
    if not headers:
        write_safetensors(folder / "model.safetensors", sou, MODEL)
        return
    written: list[str] = []
    for section in headers:
        entries = write_safetensors(folder / section.name, sou, MODEL, sou.read(section))
        written += [entry.name for entry in entries]
    if sorted(written) != sorted(sou.index()):
        raise SouError("its source headers do not name each tensor of the model once")
