"""`mlx-companion quantize`: smaller weights and what they cost; see `cli` for the conventions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mlx_companion.cli_parts import AsJson, Seed, flag, given, make_console, option, print_json
from mlx_companion.errors import ConfigError, DataError


def quantize(
    model: Annotated[str, typer.Argument(help="Alias, hub id, folder or GGUF file.")],
    out: Annotated[Path, option("FOLDER", "Where the model and its report go.", "--out")],
    level: Annotated[
        str | None, option("NAME", "f16, q8 to q2, mxfp4, mxfp8, nvfp4, or such as 4.5bpw (q4).")
    ] = None,
    method: Annotated[str | None, option("NAME", "auto, rtn, awq, gptq or dwq.")] = None,
    calibration: Annotated[
        list[Path] | None, option("FILE", "Text like what it will see, UTF-8; repeatable.")
    ] = None,
    evaluation: Annotated[
        list[Path] | None, option("FILE", "Other text, to measure on; repeatable.")
    ] = None,
    group_size: Annotated[int | None, option("N", "Weights per scale: 32, 64 or 128.")] = None,
    tokens: Annotated[int | None, option("N", "The most tokens to calibrate on (8192).")] = None,
    blt: Annotated[bool, flag("--blt", "The folder holds a byte model.")] = False,
    encoder: Annotated[bool, flag("--encoder", "The name is a sentence encoder's.")] = False,
    seed: Seed = None,
    as_json: AsJson = False,
) -> None:
    """Pack a model's weights in fewer bits, measure what that costs, and save it.

    The folder can be read by this program and by mlx_lm.generate. The report is in it too, as JSON
    and as a picture.
    """
    from mlx_companion.loop.switch import long_work
    from mlx_companion.quant import quantize as run
    from mlx_companion.quant.levels import parse_level
    from mlx_companion.quant.quantize_save import check_target

    if blt and encoder:
        raise ConfigError("give --blt or --encoder, not both")
    parse_level(level or "q4", group_size)
    check_target(out)
    texts = {"calibration": _read(calibration), "evaluation": _read(evaluation)}
    console = make_console(stderr=True)
    with long_work(clear_stop=False, say=console.print) as switch:
        with console.status("loading the model") as status:

            def show(stage: str, done: int, total: int) -> None:
                status.update(f"{stage} {done}/{total}" if total > 1 else stage)

            found = run(
                _load(model, blt, encoder),
                progress=show,
                switch=switch,
                **given(level=level, method=method, group_size=group_size, seed=seed),
                **given(calibration_tokens=tokens, **texts),
            )
        found.save(out)
    if as_json:
        print_json(found.report.to_dict())
        return
    from mlx_companion.loop.console import pairs

    make_console().print(pairs(found.report.facts()))
    print(f"saved in {out}")


def _load(model: str, blt: bool, encoder: bool) -> Any:
    if blt:
        from mlx_companion.blt.load import load as load_bytes

        return load_bytes(model)
    if encoder:
        from mlx_companion.models.encoder import load_encoder

        return load_encoder(model)
    from mlx_companion.models.load import load

    return load(model)


def _read(files: list[Path] | None) -> list[str] | None:
    """The paragraphs of some files."""
    if not files:
        return None
    texts: list[str] = []
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"it cannot be read as UTF-8 text ({error})", path=file) from error
        texts += [part for part in text.split("\n\n") if part.strip()]
    if not texts:
        raise DataError("there is no text in it", path=files[0])
    return texts
