"""`mlx-companion blt <verb>`: byte models from the command line; see `cli` for the conventions."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mlx_companion.cli_parts import (
    AsJson,
    ClearStop,
    ConfigFile,
    DataDir,
    Seed,
    Set,
    flag,
    given,
    make_console,
    option,
    print_json,
    read_settings,
)
from mlx_companion.errors import ConfigError, DataError

if TYPE_CHECKING:
    from mlx_companion.blt import BltModel, ByteLM, Evaluation, NoiseResult, PatchConfig

app = typer.Typer(no_args_is_help=True, help="Byte-level models: no tokenizer, patches of bytes.")

Model = Annotated[
    str | None, option("PATH", "Folder or hub id (the small model that is built in).")
]
TextFile = Annotated[Path, option("FILE", "Text file, .gz or not, or a folder.", "--text")]


@app.command()
def train(
    text: Annotated[list[Path], option("PATH", "Files or folders of .txt; repeatable.", "--text")],
    out: Annotated[Path, option("FOLDER", "The run's folder; the model comes into FOLDER/model.")],
    kind: Annotated[str | None, option("KIND", "blt, or a flat model: entropy, flat.")] = None,
    preset: Annotated[str | None, option("NAME", "Size: tiny, small or base.")] = None,
    entropy: Annotated[
        str | None, option("PATH", "Entropy model that places a blt's boundaries; else spaces.")
    ] = None,
    target: Annotated[
        float | None, option("BYTES", "Wanted mean bytes per patch, with --entropy.")
    ] = None,
    valid: Annotated[list[Path] | None, option("PATH", "Held-out files; repeatable.")] = None,
    flops: Annotated[float | None, option("X", "Stop after so many, such as 2e14.")] = None,
    steps: Annotated[int | None, option("N", "Stop after so many steps.")] = None,
    lr: Annotated[float | None, option("X", "Highest learning rate.")] = None,
    seed: Seed = None,
    config: ConfigFile = None,
    set_: Set = None,
    no_resume: Annotated[bool, flag("--no-resume", "Start over in the run's folder.")] = False,
    clear_stop: ClearStop = False,
    data_dir: DataDir = None,
) -> None:
    """Train a byte model on your own text; an interrupted run goes on where it was."""
    from mlx_companion.loop.switch import long_work
    from mlx_companion.training import RichProgress
    from mlx_companion.training.byte_runs import ByteRunConfig, train_from_files

    named = {"kind": kind, "preset": preset, "target_patch_bytes": target}
    run = {"max_flops": flops, "max_steps": steps, "lr": lr, "seed": seed}
    run = {f"train.{name}": value for name, value in run.items()}
    settings = read_settings(ByteRunConfig, config, set_, **named, **run)
    with long_work(clear_stop=clear_stop, say=partial(typer.echo, err=True)) as switch:
        folder, _ = train_from_files(
            text,
            out,
            settings,
            valid=valid or None,
            entropy_model=entropy,
            callbacks=[RichProgress(unit="nats per byte")],
            stop=switch,
            resume=not no_resume,
        )
    print(f"model: {folder}")


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to continue; - reads standard input.")],
    model: Model = None,
    max_bytes: Annotated[int | None, option("N", "Most bytes to make (256).")] = None,
    temperature: Annotated[
        float | None, option("X", "0, the default, takes the likeliest byte.")
    ] = None,
    top_k: Annotated[int | None, option("N", "Keep the N likeliest bytes.")] = None,
    top_p: Annotated[float | None, option("X", "Keep this much probability.")] = None,
    seed: Seed = None,
    stop: Annotated[list[str] | None, option("TEXT", "Ends the text; repeatable.")] = None,
    regex: Annotated[str | None, option("PATTERN", "What is made has to match this.")] = None,
    json_schema: Annotated[
        Path | None, option("FILE", "What is made is JSON of this schema.")
    ] = None,
    speculate: Annotated[
        int | None, option("N", "Draft N bytes at a time: faster, and the same text.")
    ] = None,
) -> None:
    """Continue a text byte by byte."""
    from mlx_companion.blt.generation import stream_generate
    from mlx_companion.models import Sampling

    sampling = Sampling(**given(temperature=temperature, top_k=top_k, top_p=top_p))
    constraint = _constraint(regex, json_schema)
    text = sys.stdin.buffer.read() if prompt == "-" else prompt
    pieces = stream_generate(
        _load(model),
        text,
        sampling=sampling,
        constraint=constraint,
        **given(max_bytes=max_bytes, seed=seed, stop=stop, speculate=speculate),
    )
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


@app.command()
def patch(
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="The text; - reads standard input.")
    ] = None,
    file: Annotated[Path | None, option("FILE", "Text file instead, .gz or not.", "--text")] = None,
    model: Model = None,
    mode: Annotated[
        str | None, option("MODE", "Another rule: entropy, monotonic, space, static, byte, topk.")
    ] = None,
    threshold: Annotated[float | None, option("NATS", "Another threshold.")] = None,
    plot: Annotated[Path | None, option("FILE", "Save a plot of the entropies (.svg).")] = None,
    table: Annotated[bool, flag("--table", "A row for each patch.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show where a model divides a text into patches."""
    from mlx_companion.blt import colored, patches, save_plot
    from mlx_companion.blt.render import has_colors, patch_table, summary

    given_text = _text(text, file)
    loaded = _load(model)
    found = patches(loaded, given_text, rule=_rule(loaded, mode, threshold))
    if plot is not None:
        print(f"plot: {save_plot(found, plot)}", file=sys.stderr)
    if as_json:
        print_json(found.to_dict())
        return
    console = make_console()
    separator = "│" if console.encoding.lower().startswith("utf") else "|"
    if table:
        console.print(patch_table(found))
    else:
        # Cut lines would lose their colours or words in a file: the terminal wraps them itself.
        shown = colored(found, colors=has_colors(console), separator=separator)
        console.print(shown, soft_wrap=True)
    console.print(summary(found), style="dim", soft_wrap=True)


@app.command("eval")
def evaluate(
    text: TextFile,
    model: Model = None,
    context: Annotated[int | None, option("N", "Bytes per window (the model's own).")] = None,
    stride: Annotated[
        int | None, option("N", "From one window to the next (half a window).")
    ] = None,
    noise: Annotated[
        bool, flag("--noise", "Also with changed case, dropped and swapped characters.")
    ] = False,
    seed: Seed = None,
    as_json: AsJson = False,
) -> None:
    """Measure bits per byte of a text, and what a byte costs."""
    from mlx_companion import blt
    from mlx_companion.blt.evaluate import read_text

    documents = read_text(text)
    if noise and len(documents) > 1:
        raise DataError(f"--noise takes one text, and {text} has {len(documents)}")
    loaded = _load(model)
    settings = given(context=context, stride=stride)
    with _Bar("evaluating") as bar:
        found = blt.evaluate(loaded, text, progress=bar.update, **settings)
    rows: list[NoiseResult] = []
    if noise:
        with make_console(stderr=True).status("evaluating with noise"):
            rows = blt.robustness(
                lambda data: blt.evaluate(loaded, data, **settings).nats,
                documents[0],
                **given(seed=seed),
            )
    if as_json:
        print_json(found.to_dict() | ({"noise": [row.to_dict() for row in rows]} if noise else {}))
        return
    console = make_console()
    console.print(_evaluation_table(found))
    if rows:
        console.print()
        console.print(_noise_table(rows))


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="Folder in any layout, or hub id.")],
    target: Annotated[Path, typer.Argument(help="Folder to write.")],
    to: Annotated[str | None, option("LAYOUT", "mlx, the default, or hf for transformers.")] = None,
    bits: Annotated[int | None, option("N", "Pack weights in 2 to 8 bits.")] = None,
    table_bits: Annotated[int | None, option("N", "Bits of the hash table, if others.")] = None,
) -> None:
    """Write a model in another layout, or smaller."""
    from mlx_companion.blt import convert as write

    with make_console(stderr=True).status("converting"):
        folder = write(source, target, **given(to=to, bits=bits, table_bits=table_bits))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}  {size / 1e6:.1f} MB")


@app.command()
def calibrate(
    text: TextFile,
    target: Annotated[float, option("BYTES", "Wanted mean bytes per patch.")],
    model: Model = None,
    most: Annotated[int, option("N", "Look at this many bytes at most.", "--bytes")] = 500_000,
    save: Annotated[
        Path | None, option("FOLDER", "Write the model with this threshold here.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find the threshold that gives patches of a wanted mean length on your text."""
    from mlx_companion.blt.recalibrate import recalibrate

    with make_console(stderr=True).status("reading"):
        found = recalibrate(model, text, target, most=most, save_to=save)
    if as_json:
        print_json(found)
        return
    print(
        f"threshold {found.threshold:.6g} nats: {found.mean_patch_bytes:.2f} bytes per patch "
        f"(now {found.before_threshold:.6g}: {found.before_mean_patch_bytes:.2f})"
    )
    if save is not None:
        print(f"model: {save}")


def _load(model: str | None) -> BltModel | ByteLM:
    with make_console(stderr=True).status("loading the model"):
        from mlx_companion.blt import load

        return load(model)


def _text(words: str | None, file: Path | None) -> bytes | Path:
    if (words is None) == (file is None):
        raise typer.BadParameter("give a text or --text FILE")
    if file is not None:
        return file
    # As bytes, so that a word that is also the name of a file stays a word.
    return (
        sys.stdin.buffer.read() if words == "-" else str(words).encode("utf-8", "surrogateescape")
    )


def _rule(
    model: BltModel | ByteLM, mode: str | None, threshold: float | None
) -> PatchConfig | None:
    from dataclasses import replace

    from mlx_companion.blt import BltModel, PatchConfig

    changes: dict[str, Any] = given(mode=mode, threshold=threshold)
    own = model.config.patching if isinstance(model, BltModel) else PatchConfig()
    return replace(own, **changes) if changes else None


def _constraint(regex: str | None, schema: Path | None) -> Any:
    if regex is not None and schema is not None:
        raise typer.BadParameter("give --regex or --json-schema, not both")
    from mlx_companion.blt import constraints

    if regex is not None:
        return constraints.regex(regex)
    return None if schema is None else constraints.json_schema(_read_json(schema))


def _read_json(path: Path) -> Any:
    import json

    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON: {error}") from error


def _evaluation_table(found: Evaluation) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(min_width=18, style="dim")
    table.add_column(justify="right")
    for name, value in (
        ("bits per byte", f"{found.bits_per_byte:.4f}"),
        ("bytes", f"{found.bytes:,}"),
        ("bytes per patch", f"{found.mean_patch_bytes:.2f}"),
        ("MFLOPs per byte", f"{found.flops_per_byte / 1e6:.3f}"),
        ("seconds", f"{found.seconds:.1f}"),
    ):
        table.add_row(name, value)
    return table


def _noise_table(rows: list[NoiseResult]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("noise")
    for name in ("rate", "bits per byte", "per byte of the original"):
        table.add_column(name, justify="right")
    for row in rows:
        per_byte = (f"{bits:.4f}" for bits in (row.bits_per_byte, row.bits_per_original_byte))
        table.add_row(row.noise, f"{row.rate:g}", *per_byte)
    return table


class _Bar:
    """Bytes done of bytes in all, on a terminal only."""

    def __init__(self, what: str) -> None:
        console = make_console(stderr=True)
        self._progress = Progress(
            TextColumn(what), BarColumn(bar_width=20), TimeRemainingColumn(),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._progress.add_task("", total=None)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, done: int, total: int) -> None:
        """Show how far it is."""
        self._progress.update(self._task, completed=done, total=total)
