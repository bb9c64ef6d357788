"""What scripts for people have in common: options, settings, Ctrl-C, and errors as sentences.

    options = script_options(__doc__, out="runs/mine").parse_args()
    with script_work(options.out) as stop:
        settings = script_settings(FinetuneConfig, options, smoke={"train.max_steps": 3})
        ...

Every script then takes `--out`, `--config settings.yaml`, `--set key=value` and `--smoke`, stops at
a safe point, and goes on from there when it is started again.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from mlx_companion.errors import CompanionError, ConfigError, Stopped
from mlx_companion.runtime.config import load_config, parse_overrides
from mlx_companion.runtime.stop import StopSwitch

T = TypeVar("T")


def script_options(
    doc: str | None, *, out: str, config: Path | None = None
) -> argparse.ArgumentParser:
    """A parser with the options that every script has.

    Args:
        doc: the script's docstring; its first line is shown by `--help`.
        out: the folder that is used unless another is given.
        config: the YAML file that is read unless another is given.
    """
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(out), help=f"the run's folder ({out})")
    parser.add_argument("--config", type=Path, default=config, help="YAML file with settings")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="one setting, such as train.lr=1e-4; repeatable",
    )
    parser.add_argument(
        "--smoke", action="store_true", help="a run of seconds that shows that everything works"
    )
    return parser


def script_settings(
    cls: type[T], options: argparse.Namespace, smoke: Mapping[str, Any] | None = None
) -> T:
    """Settings: defaults, then `--config`, then (with `--smoke`) those, then `--set`.

    Args:
        cls: a configuration, see `load_config`.
        options: of a parser of `script_options`.
        smoke: values by dotted key.

    Raises:
        ConfigError: an unreadable file, an unknown key, or a value of the wrong type or range.
    """
    overrides = dict(smoke or {}) if options.smoke else {}
    return load_config(cls, options.config, overrides | parse_overrides(options.set))


def needed(options: argparse.Namespace, name: str, smoke: Path) -> Path:
    """The file of an option that may be left out with `--smoke` only.

    Raises:
        ConfigError: it was left out.
    """
    given = getattr(options, name)
    if given is None and not options.smoke:
        raise ConfigError(f"--{name.replace('_', '-')} is missing; give a file, or --smoke")
    return smoke if given is None else given


@contextlib.contextmanager
def script_work(out: Path) -> Iterator[StopSwitch]:
    """Run a block that Ctrl-C, SIGTERM or a file `STOP` in `out` ends at a safe point.

    A stop or an error of this package ends the program with one sentence on standard error.
    """
    try:
        with StopSwitch(out / "STOP") as stop:
            yield stop
    except Stopped as stopped:
        sys.exit(f"{stopped}; the same command goes on from here")
    except CompanionError as error:
        sys.exit(f"error: {error}")
