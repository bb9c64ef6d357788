"""Lets `python -m mlx_companion <verb>` do what the `mlx-companion` command does."""

from __future__ import annotations

from mlx_companion.cli import main

if __name__ == "__main__":
    main()
