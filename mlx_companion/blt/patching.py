"""What a division of bytes into patches is, whichever rule made it.

Two facts per byte say all: whether it opens a patch, and whether its patch is closed after it.
Inside a document the second is the first, one position on; at the end of a text it is the decision
about the byte that has not been seen. With it the decoder knows at each byte which patch it may
read, in a whole text and byte by byte alike.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx


class Patching(NamedTuple):
    """Patches of a batch of rows.

    Attributes:
        opens: (B, N) bool, the byte starts a patch. Positions 0 (BOS) and 1 of a document always
            do, and so does padding.
        closes: (B, N) bool, the next byte of the document, seen or not, starts a patch.
    """

    opens: mx.array
    closes: mx.array

    @property
    def patch_ids(self) -> mx.array:
        """(B, N) int32, the patch that each byte belongs to, from 0 in each row."""
        return mx.cumsum(self.opens.astype(mx.int32), axis=1) - 1

    @property
    def source(self) -> mx.array:
        """(B, N) int32, the last patch that is closed after each byte: what its decoder reads."""
        return self.patch_ids - 1 + self.closes.astype(mx.int32)

    @property
    def count(self) -> int:  # type: ignore[override]
        """P, patches of the row that has most. Computes `opens`."""
        return int(self.opens.astype(mx.int32).sum(axis=1).max())
