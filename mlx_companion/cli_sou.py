"""`mlx-companion sou <verb>`: companions in one file; see `cli` for the conventions."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from mlx_companion.cli_parts import AsJson, flag, given, make_console, option, print_json
from mlx_companion.errors import ConfigError

app = typer.Typer(no_args_is_help=True, help="A companion in one file: pack, look, check, unpack.")

File = Annotated[Path, typer.Argument(help="The .sou file.")]
Extra = Path | None


@app.command()
def pack(
    source: Annotated[
        str, typer.Argument(help="Model folder, GGUF or safetensors file, or alias.")
    ],
    file: Annotated[Path, typer.Argument(help="The .sou file to write.")],
    adapter: Annotated[
        list[str] | None, option("NAME=FOLDER", "An adapter to take along; repeatable.")
    ] = None,
    profile: Annotated[Extra, option("FILE", "Personality profile, YAML or JSON.")] = None,
    embedding: Annotated[Extra, option("FILE", "Personality embedding, safetensors.")] = None,
    modules: Annotated[Extra, option("FILE", "Thresholds of modules, JSON.")] = None,
    rules: Annotated[list[Path] | None, option("FILE", "A rule pack; repeatable.")] = None,
    retrieval: Annotated[Extra, option("FILE", "Settings of retrieval, JSON.")] = None,
    access: Annotated[Extra, option("FILE", "Access-control metadata, JSON.")] = None,
    licence: Annotated[str | None, option("NAME", "Licence of the whole, such as MIT.")] = None,
    created: Annotated[
        str | None, option("TIME", "Time to note, ISO 8601 or now; else none is noted.")
    ] = None,
    sign: Annotated[Extra, option("FILE", "ed25519 private key, PEM.")] = None,
) -> None:
    """Write a model and all that belongs to it as one file.

    The same input gives the same bytes. A folder that `unpack` wrote is packed with its extras.
    """
    from mlx_companion.quant.sou import SigningKey
    from mlx_companion.quant.sou import pack as write

    done = write(
        source,
        file,
        adapters=_named_folders(adapter or []),
        rules=rules or (),
        key=None if sign is None else SigningKey(sign),
        **given(
            profile=profile,
            embedding=embedding,
            modules=modules,
            retrieval=retrieval,
            access=access,
            licence=licence,
            created=_time(created),
        ),
    )
    if done.skipped:
        typer.echo(f"left out: {', '.join(done.skipped)}", err=True)
    print(f"{done.path}: {done.size / 1e6:,.1f} MB, {done.digest}")


@app.command()
def inspect(
    file: File,
    tensors: Annotated[bool, flag("--tensors", "List the tensors, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a file holds; only its table is read, and its tensor index when asked."""
    from mlx_companion.quant.sou import SouFile, describe
    from mlx_companion.quant.sou_view import section_table, tensor_table

    with SouFile(file) as sou:
        found = describe(sou, tensors=tensors)
        if as_json:
            print_json(found)
            return
        console = make_console()
        console.print(section_table(sou))
        for name in sou.tensor_sets if tensors else ():
            console.print(tensor_table(name, sou.index(name)))
        print(f"{found['size'] / 1e6:,.1f} MB, signed: {found['public_key'] or 'no'}")


@app.command()
def verify(
    file: File,
    key: Annotated[Extra, option("FILE", "ed25519 public key that must have signed it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check every byte of a file, and its signature."""
    from dataclasses import asdict

    from mlx_companion.quant.sou import read_public_key
    from mlx_companion.quant.sou import verify as check

    found = check(file, None if key is None else read_public_key(key))
    if as_json:
        print_json(asdict(found))
        return
    print(
        f"{file} is whole: {found.sections} sections, {found.tensors} tensors, "
        f"{found.size / 1e6:,.1f} MB; signature: {found.signature}"
    )


@app.command()
def unpack(
    file: File,
    folder: Annotated[Path, typer.Argument(help="Folder to write; it must be new or empty.")],
) -> None:
    """Write a file's content as a folder that mlx-lm reads; every byte is checked."""
    from mlx_companion.quant.sou import unpack as write

    done = write(file, folder)
    if done.skipped:
        typer.echo(f"left out, of a newer version: {', '.join(done.skipped)}", err=True)
    print(f"{done.folder}: {done.files} files")


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(help="One .sou file.")],
    b: Annotated[Path, typer.Argument(help="Another one.")],
    as_json: AsJson = False,
) -> None:
    """Show what differs between two files, down to single tensors and settings."""
    from mlx_companion.quant.sou import diff as compare
    from mlx_companion.quant.sou_view import difference_lines

    found = compare(a, b)
    if as_json:
        print_json(found)
    else:
        print("\n".join(difference_lines(found)))


def _named_folders(texts: list[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for text in texts:
        given_name, _, folder = text.rpartition("=")
        name = given_name or Path(folder).resolve().name
        if name in found:
            raise ConfigError(f"two adapters are called '{name}'; name one with NAME=FOLDER")
        found[name] = Path(folder)
    return found


def _time(text: str | None) -> str | None:
    if text is None:
        return None
    if text == "now":
        return datetime.now(UTC).isoformat(timespec="seconds")
    try:
        datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"'{text}' is no time in ISO 8601; give 2026-01-31 or now") from None
    return text
