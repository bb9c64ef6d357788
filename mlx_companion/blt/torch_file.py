"""PyTorch `.pth` files without PyTorch.

Such a file is a zip archive: a pickle (`data.pkl`) that describes tensors, which `pickle_safe`
reads, and their numbers, one file per storage. Nothing in it is run, and no tensor reaches beyond
its storage.

    weights = load_pth("consolidated.pth")            # {"layers.0.attention.wq.weight": ...}

Files from before PyTorch 1.6 are bare pickles and are refused.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_companion.blt.pickle_safe import STORAGES, Tensor, run
from mlx_companion.errors import ModelNotFoundError, WeightsError

# Descriptions of models of a thousand layers stay under a megabyte.
_PICKLE_LIMIT = 64_000_000
# Tied weights share a storage; many tensors on one storage would need more memory than there is.
_MAX_SHARING = 4


def load_pth(path: str | Path) -> dict[str, mx.array]:
    """The tensors of a PyTorch checkpoint.

    Args:
        path: a file that `torch.save` wrote: a state dict, or a dict with one under "model" or
            "state_dict".

    Returns:
        Name -> array in the file's number type (float32, float16, bfloat16 or int64).

    Raises:
        ModelNotFoundError: there is no such file.
        WeightsError: it is damaged, of the old format, holds no state dict, or names anything but
            tensors; nothing of it was run.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return _Reader(path, archive).state_dict()
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"there is no file {path}") from error
    except zipfile.BadZipFile as error:
        raise _not_a_zip(path, error) from error
    except (OSError, EOFError, zlib.error, NotImplementedError, RuntimeError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error


class _Reader:
    """Reads the parts of an open archive."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path, self.archive = path, archive
        described = [n for n in archive.namelist() if n.endswith("/data.pkl") or n == "data.pkl"]
        if len(described) != 1:
            raise WeightsError(
                f"{path} is a zip archive without a data.pkl; expected a file of torch.save"
            )
        self.root = described[0].removesuffix("data.pkl")

    def state_dict(self) -> dict[str, mx.array]:
        self._check_byte_order()
        tree = run(self.path, self._bytes("data.pkl", _PICKLE_LIMIT))
        for key in ("model", "state_dict"):
            if isinstance(tree, dict) and isinstance(tree.get(key), dict):
                tree = tree[key]
                break
        if not isinstance(tree, dict) or not any(isinstance(v, Tensor) for v in tree.values()):
            raise WeightsError(f"{self.path} holds no dictionary of tensors; expected a state dict")
        tensors = {str(k): v for k, v in tree.items() if isinstance(v, Tensor)}
        self._check_sharing(tensors.values())
        return {name: self._array(tensor) for name, tensor in tensors.items()}

    def _check_sharing(self, tensors: Iterable[Tensor]) -> None:
        total = sum(math.prod(tensor.shape) * tensor.storage.itemsize for tensor in tensors)
        size = self.path.stat().st_size
        if total > _MAX_SHARING * size:
            raise WeightsError(
                f"{self.path} has {size} bytes and describes tensors of {total}; nothing was read"
            )

    def _array(self, tensor: Tensor) -> mx.array:
        kind, view = STORAGES[tensor.storage.kind]
        name = f"data/{tensor.storage.key}"
        size = tensor.storage.count * tensor.storage.itemsize
        raw = self._bytes(name, size)
        if len(raw) != size:
            raise WeightsError(
                f"{self.path}: the storage '{name}' has {len(raw)} bytes, expected {size}; "
                "fetch the file again"
            )
        array = mx.array(_strided(np.frombuffer(raw, kind), tensor))
        return array if view is None else array.view(view)

    def _bytes(self, name: str, limit: int) -> bytes:
        """A file of the archive, its checksum compared, if it is no larger than `limit`."""
        try:
            entry = self.archive.getinfo(self.root + name)
        except KeyError:
            raise WeightsError(f"{self.path} lacks '{name}'; fetch the file again") from None
        # Stored as it is: a small archive cannot unpack into a huge one.
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > limit:
            raise WeightsError(
                f"{self.path}: '{name}' is compressed or has {entry.file_size} bytes, more than "
                f"the {limit} expected"
            )
        return self.archive.read(entry)

    def _check_byte_order(self) -> None:
        if self.root + "byteorder" in self.archive.namelist():
            order = self._bytes("byteorder", 16)
            if order != b"little":
                raise WeightsError(f"{self.path} has byte order {order!r}; expected b'little'")


def _strided(values: np.ndarray, tensor: Tensor) -> np.ndarray:
    if not math.prod(tensor.shape):
        return np.zeros(tensor.shape, values.dtype)
    view = np.lib.stride_tricks.as_strided(
        values[tensor.offset :],
        tensor.shape,
        [step * values.itemsize for step in tensor.strides],
        writeable=False,
    )
    # NumPy gives a scalar's copy one dimension.
    return np.ascontiguousarray(view).reshape(tensor.shape)


def _not_a_zip(path: Path, error: Exception) -> WeightsError:
    with path.open("rb") as file:
        start = file.read(2)
    if start[:1] == b"\x80":
        return WeightsError(
            f"{path} is a bare pickle, the format of PyTorch before 1.6, which is not read here; "
            "save it again with a newer PyTorch, or as safetensors"
        )
    problem = "is cut short or damaged" if start == b"PK" else "is no file of torch.save"
    return WeightsError(f"{path} {problem} ({error}); fetch it again")
