"""Patches in a terminal: a text coloured patch by patch, and a table of them.

    console.print(colored(found, colors=has_colors(console)))
    console.print(patch_table(found))

Without colours a line stands between patches instead. The picture is in `entropy_plot`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlx_companion.blt.text_patches import TextPatches
from mlx_companion.blt.visible import Kind, Shown, visible_characters

# Both have black on them, so that they read the same on a dark and on a light terminal.
PATCH_STYLES = ("black on bright_cyan", "black on bright_yellow")
_KIND_STYLES: dict[Kind, str] = {"plain": "", "mark": "bold", "byte": "italic"}


def has_colors(console: Console) -> bool:
    """Whether a console shows colours: a terminal that can, and nobody asked for none."""
    return console.is_terminal and console.color_system is not None and not console.no_color


def colored(patches: TextPatches, *, colors: bool = True, separator: str = "│") -> Text:
    """A text, patch by patch.

    Args:
        patches: of the text.
        colors: two backgrounds in turn; else `separator` between patches.
        separator: may be "|" where a terminal knows no other.

    Returns:
        For a rich console. Line feeds are shown and break the line; see `visible` for what else
        is shown by marks.
    """
    text = Text(overflow="fold")
    for number, several in _by_patch(patches):
        if number and not colors:
            text.append(separator, style="bold")
        # Pieces of one look go out together: each change costs a terminal two control codes.
        for kind, alike in groupby(several, key=lambda shown: shown.kind):
            joined = "".join(shown.text + "\n" * shown.breaks for shown in alike)
            text.append(joined, style=_style(kind, number) if colors else "")
    return text


def patch_table(patches: TextPatches) -> Table:
    """One row per patch: where it begins, its bytes, what it says, how open its bytes were."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    entropies = patches.entropies
    for name in ("at byte", "bytes", *(() if entropies is None else ("first", "highest after"))):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("patch", overflow="fold")
    for number, several in _by_patch(patches):
        start, length = int(patches.starts[number]), int(patches.lengths[number])
        row = [f"{start:,}", str(length)]
        if entropies is not None:
            rest = entropies[start + 1 : start + length]
            row += [f"{entropies[start]:.2f}", f"{rest.max():.2f}" if len(rest) else ""]
        table.add_row(*row, Text("".join(shown.text for shown in several)))
    return table


def summary(patches: TextPatches) -> str:
    """One line: bytes, patches, their mean and longest length, the rule."""
    count, size, rule = len(patches.starts), len(patches.data), patches.rule
    how = f"{rule.mode}, threshold {rule.threshold:.2f} nats" if rule.needs_entropies else rule.mode
    return (
        f"{size:,} byte{'s' * (size != 1)} in {count:,} patch{'es' * (count != 1)}, "
        f"{patches.mean_patch_bytes:.2f} bytes each, longest {patches.lengths.max()} ({how})"
    )


def _by_patch(patches: TextPatches) -> Iterator[tuple[int, Iterator[Shown]]]:
    return groupby(visible_characters(patches), key=lambda shown: shown.patch)


def _style(kind: Kind, number: int) -> str:
    return f"{_KIND_STYLES[kind]} {PATCH_STYLES[number % len(PATCH_STYLES)]}".strip()
