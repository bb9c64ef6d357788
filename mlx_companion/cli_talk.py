"""`chat` and `generate`: talking with a model; see `cli` for the conventions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mlx_companion.cli_parts import (
    ConfigFile,
    DataDir,
    Model,
    Profile,
    Seed,
    Set,
    flag,
    given,
    make_console,
    option,
    read_settings,
)


def chat(
    model: Model = None,
    profile: Profile = None,
    config: ConfigFile = None,
    set_: Set = None,
    modules: Annotated[
        bool, typer.Option("--modules/--no-modules", help="Learn, guard and watch as well.")
    ] = False,
    seed: Seed = None,
    data_dir: DataDir = None,
) -> None:
    """Talk with the active version; every exchange is kept on this machine.

    /good, /bad and /edit TEXT judge the last reply; /help lists the rest. Ctrl-C ends a reply.
    With --modules it learns how you talk (/learned, /undo, /forget), keeps to the profile and says
    how a reply came about (/trace). Replies then come in one piece, as the guard reads them first.
    """
    from mlx_companion.loop import LoopConfig, ServedModel
    from mlx_companion.loop.chat import Chat
    from mlx_companion.loop.companion import Companion
    from mlx_companion.loop.talk import talk
    from mlx_companion.store import Store

    console, interactive = make_console(), sys.stdin.isatty()
    with Store() as store:
        active = store.versions.active()
        if model is None and config is None and active is not None:
            model = active.model_source
        settings = read_settings(LoopConfig, config, set_, model=model, profile=profile)
        with make_console(stderr=True).status("loading the model"):
            companion = ServedModel.open(store, settings)
        if interactive:
            console.print(f"{companion.version_id} listens; /help lists commands", style="dim")
        if modules:
            with Companion(companion, store, seed=seed) as whole:
                failures = talk(whole.conversation, console, interactive=interactive)
        else:
            failures = talk(Chat(companion, store, seed), console, interactive=interactive)
    if failures and not interactive:
        raise typer.Exit(1)


def generate(
    prompt: Annotated[str, typer.Argument(help="What to say; - reads standard input.")],
    model: Model = None,
    adapter: Annotated[
        Path | None, option("FOLDER", "Folder of an adapter, such as finetune's result.")
    ] = None,
    max_tokens: Annotated[int | None, option("N", "Most tokens to make (256).")] = None,
    temperature: Annotated[
        float | None, option("X", "0, the default, takes the likeliest token.")
    ] = None,
    top_k: Annotated[int | None, option("N", "Keep the N likeliest tokens.")] = None,
    top_p: Annotated[float | None, option("X", "Keep this much probability.")] = None,
    seed: Seed = None,
    stop: Annotated[list[str] | None, option("TEXT", "Ends the reply; repeatable.")] = None,
    system: Annotated[str | None, option("TEXT", "System message.")] = None,
    raw: Annotated[bool, flag("--raw", "Continue the text, no chat format.")] = False,
) -> None:
    """Stream one reply of a model, as it is, without profile or history."""
    from mlx_companion.lora import load_adapter
    from mlx_companion.models import DEFAULT_MODEL, Sampling, load, stream_generate

    sampling = Sampling(**given(temperature=temperature, top_k=top_k, top_p=top_p))
    text = sys.stdin.buffer.read().decode() if prompt == "-" else prompt
    with make_console(stderr=True).status("loading the model"):
        lm = load(model or DEFAULT_MODEL)
        if adapter is not None:
            load_adapter(adapter, lm.model, base_sha256=lm.base_sha256)
    pieces = stream_generate(
        lm,
        list(lm.tokenizer.encode(text)) if raw else text,
        sampling=sampling,
        **given(system=system, max_tokens=max_tokens, seed=seed, stop=stop),
    )
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
