"""How many logits exist at a time."""

from __future__ import annotations

# Logits of a chunk: 17 MB in float32 on CPUs; shorter chunks make the products less efficient.
# Accelerators need longer products to be busy.
CPU_ELEMENTS = 2**22
ACCELERATOR_ELEMENTS = 2**25
# One tile of the plain form, 1 MB: it stays in a CPU's cache through a dozen operations, and MLX's
# CPU queue, which runs several tiles ahead of the computation, stays small.
TILE_ELEMENTS = 2**18
_TILE_COLUMNS = 1024
_LEAST_ROWS = 16


def chunk_rows(vocabulary: int, rows: int, elements: int = CPU_ELEMENTS) -> int:
    """How many of `rows` rows of logits to compute at a time; chunks are of about equal size.

    Args:
        vocabulary: V, at least 1.
        rows: N.
        elements: the most numbers in a chunk, unless that were fewer than 16 rows.
    """
    return evenly(rows, max(_LEAST_ROWS, elements // vocabulary))


def default_chunk(rows: int, width: int, vocabulary: int, elements: int) -> int:
    """Rows of logits that exist at a time: all where the hidden states take as much anyway."""
    return rows if vocabulary <= 2 * width else chunk_rows(vocabulary, rows, elements)


def tile(rows: int, vocabulary: int, chunk: int, unpacks: bool = False) -> tuple[int, int]:
    """Rows and columns of a tile of the (N, V) logits, at most `chunk` x V numbers.

    Wide enough that what is done once per tile and hidden state is little beside the product; not
    wider where a block of the matrix is a copy (`unpacks`).
    """
    elements = min(TILE_ELEMENTS, chunk * vocabulary)
    columns = min(vocabulary, _TILE_COLUMNS, elements)
    height = evenly(rows, max(1, elements // columns))
    return height, evenly(vocabulary, columns if unpacks else max(columns, elements // height))


def evenly(total: int, most: int) -> int:
    """The length of equal parts, the last shorter, that are at most `most` long."""
    return -(-total // -(-total // most)) if total else most
