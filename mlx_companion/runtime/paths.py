"""Where the companion keeps what it must not lose, and what it can fetch again.

`data_dir()` holds a person's own things (the database, adapters, reports); `cache_dir()` holds
downloads. Both follow the platform's custom and both can be moved by an environment variable,
which the tests use to stay out of a real home folder.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mlx_companion.errors import ConfigError

HOME_VARIABLE = "MLX_COMPANION_HOME"
CACHE_VARIABLE = "MLX_COMPANION_CACHE"
_FOLDER = "mlx-companion"


def data_dir() -> Path:
    """The user-data folder, created on first use and readable by its owner only.

    Returns:
        `$MLX_COMPANION_HOME`, else `~/Library/Application Support/mlx-companion` on macOS, else
        `$XDG_DATA_HOME/mlx-companion` (`~/.local/share/mlx-companion`).

    Raises:
        ConfigError: the folder cannot be created or is not a folder.
    """
    default = _platform_folder("Library/Application Support", "XDG_DATA_HOME", ".local/share")
    return _ensure(HOME_VARIABLE, default, mode=0o700)


def cache_dir() -> Path:
    """The folder for downloads, created on first use; deleting it loses nothing.

    Returns:
        `$MLX_COMPANION_CACHE`, else `~/Library/Caches/mlx-companion` on macOS, else
        `$XDG_CACHE_HOME/mlx-companion` (`~/.cache/mlx-companion`).

    Raises:
        ConfigError: the folder cannot be created or is not a folder.
    """
    default = _platform_folder("Library/Caches", "XDG_CACHE_HOME", ".cache")
    return _ensure(CACHE_VARIABLE, default, mode=0o755)


def _platform_folder(on_mac: str, variable: str, elsewhere: str) -> Path:
    if sys.platform == "darwin":
        return Path.home() / on_mac / _FOLDER
    base = os.environ.get(variable)
    # The XDG specification says that a relative path there is to be ignored.
    if base and os.path.isabs(base):
        return Path(base) / _FOLDER
    return Path.home() / elsewhere / _FOLDER


def _ensure(variable: str, default: Path, mode: int) -> Path:
    given = os.environ.get(variable)
    folder = Path(given).expanduser().absolute() if given else default
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=mode)
    except OSError as error:
        raise ConfigError(
            f"cannot create the folder {folder}: {error.strerror}; "
            f"set {variable} to a folder that you can write to"
        ) from error
    return folder
