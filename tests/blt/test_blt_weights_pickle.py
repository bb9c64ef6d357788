"""The reader of PyTorch's files: what torch wrote, and what nobody should have written."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import tempfile
import zipfile
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from blt_checkpoints import (
    entry_bytes,
    tensor_code,
    text_code,
    write_archive,
    write_pth,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import cpu_seconds_below

from mlx_companion.blt.torch_file import load_pth
from mlx_companion.errors import ModelNotFoundError, WeightsError

FIXTURES = Path(__file__).parent.parent / "fixtures"
TORCH = FIXTURES / "blt_torch.pth"


def one_tensor(code: bytes) -> bytes:
    """A pickle of {"a": tensor}."""
    return b"\x80\x02}(" + text_code("a") + code + b"u."


def problem(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        load_pth(path)
    assert str(path) in str(caught.value)
    # The folder's name holds words of the test's.
    return str(caught.value).replace(str(path), "")


class TestWhatTorchWrote:
    def test_values_types_and_views(self) -> None:
        table = np.arange(24, dtype=np.float32).reshape(4, 6)
        expected = {
            "weight": np.arange(6, dtype=np.float32).reshape(3, 2),
            "bias": np.arange(3, dtype=np.float32),
            "half": np.arange(6, dtype=np.float16).reshape(2, 3),
            "long": np.array([-1, 2**40]),
            "scalar": np.float32(7),
            "empty": np.zeros((0, 3), np.float32),
            "table": table,
            "transposed": table.T,
            "part": table[1:3, 2:5],
            "tied": table,
        }
        found = load_pth(TORCH)
        bfloat = found.pop("bfloat")
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            got = np.array(found[name])
            assert got.dtype == value.dtype
            assert got.shape == value.shape
            np.testing.assert_array_equal(got, value)
        assert bfloat.dtype == mx.bfloat16
        assert bfloat.astype(mx.float32).tolist() == pytest.approx([1, -2.5, 3e38], rel=0.01)

    def test_the_old_format_is_refused(self) -> None:
        assert "before 1.6" in problem(FIXTURES / "blt_old.pth")

    @pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
    def test_cut_short(self, tmp_path: Path, part: float) -> None:
        data = TORCH.read_bytes()
        path = tmp_path / "cut.pth"
        path.write_bytes(data[: int(len(data) * part)])
        assert "cut short" in problem(path)

    def test_a_flipped_bit_in_the_numbers(self, tmp_path: Path) -> None:
        data = bytearray(TORCH.read_bytes())
        at = data.index(np.arange(24, dtype=np.float32).tobytes())
        data[at + 5] ^= 1
        path = tmp_path / "flipped.pth"
        path.write_bytes(data)
        assert "CRC" in problem(path)


class TestFiles:
    def test_a_hand_written_file(self, tmp_path: Path) -> None:
        arrays = {"a.b": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array([2**33])}
        for under in (None, "model", "state_dict"):
            found = load_pth(write_pth(tmp_path / "w.pth", arrays, under=under))
            assert {k: np.array(v).tolist() for k, v in found.items()} == {
                k: v.tolist() for k, v in arrays.items()
            }

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFoundError, match=r"no\.pth"):
            load_pth(tmp_path / "no.pth")

    @pytest.mark.parametrize("data", [b"", b"P", b"hello", b"PK\x03\x04", b"\x80"])
    def test_something_else(self, tmp_path: Path, data: bytes) -> None:
        path = tmp_path / "x.pth"
        path.write_bytes(data)
        problem(path)

    def test_a_zip_of_something_else(self, tmp_path: Path) -> None:
        path = tmp_path / "x.pth"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("hello.txt", "hello")
        assert "no data.pkl" in problem(path) or "without a data.pkl" in problem(path)

    def test_no_tensors(self, tmp_path: Path) -> None:
        path = write_archive(tmp_path / "x.pth", b"\x80\x02}.", {})
        assert "no dictionary of tensors" in problem(path)

    def test_big_endian(self, tmp_path: Path) -> None:
        path = write_pth(tmp_path / "x.pth", {"a": np.zeros(2, np.float32)})
        data = path.read_bytes()
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                new.writestr(name, b"big" if name.endswith("byteorder") else old.read(name))
        assert "byte order" in problem(path)

    def test_a_compressed_part(self, tmp_path: Path) -> None:
        path = tmp_path / "x.pth"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02" + b"0" * 50_000_000)
        assert path.stat().st_size < 100_000
        assert "compressed" in problem(path)

    def test_a_storage_is_missing_or_short(self, tmp_path: Path) -> None:
        code = one_tensor(tensor_code("0", "float32", 4, (4,)))
        assert "data/0" in problem(write_archive(tmp_path / "a.pth", code, {}))
        assert "expected 16" in problem(write_archive(tmp_path / "b.pth", code, {"0": b"1234"}))
        assert "16" in problem(write_archive(tmp_path / "c.pth", code, {"0": bytes(20)}))


class Evil:
    def __init__(self, command: tuple) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return self.command


class TestMalice:
    @pytest.mark.parametrize(
        ("call", "named"),
        [
            ((os.system, ("touch {mark}",)), "posix.system"),
            ((os.mkdir, ("{mark}",)), "posix.mkdir"),
            ((eval, ("open('{mark}', 'w')",)), "__builtin__.eval"),
        ],
    )
    @pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
    def test_calls_are_refused_by_name(
        self, tmp_path: Path, call: tuple, named: str, protocol: int
    ) -> None:
        mark = tmp_path / "mark"
        function, arguments = call
        filled = tuple(argument.format(mark=mark) for argument in arguments)
        data = pickle.dumps({"a": Evil((function, filled))}, protocol)
        message = problem(write_archive(tmp_path / "x.pth", data, {}))
        assert not mark.exists()
        assert "nothing was run" in message
        if protocol >= 2:
            # Below, the first instruction is refused already: torch does not write such pickles.
            assert named.replace("__builtin__", "builtins" if protocol > 2 else "__builtin__") in (
                message
            )

    @pytest.mark.parametrize(
        "name",
        [
            "torch.load",
            "torch._utils._rebuild_device_tensor_from_numpy",
            "torch.storage._load_from_bytes",
            "torch.DoubleStorage",
            "collections.deque",
            "builtins.dict",
            "os.path.join",
        ],
    )
    def test_other_names_are_refused(self, tmp_path: Path, name: str) -> None:
        module, _, attribute = name.rpartition(".")
        data = b"\x80\x02}(" + text_code("a") + f"c{module}\n{attribute}\n".encode() + b"u."
        assert f"'{name}'" in problem(write_archive(tmp_path / "x.pth", data, {}))

    def test_an_allowed_name_is_not_called_with_other_arguments(self, tmp_path: Path) -> None:
        for code in (
            b"ccollections\nOrderedDict\n" + b"(" + text_code("x") + b"tR",
            b"ctorch\nFloatStorage\n)R",
            b"ctorch._utils\n_rebuild_tensor_v2\n)R",
            b"}}R",
        ):
            data = b"\x80\x02}(" + text_code("a") + code + b"u."
            problem(write_archive(tmp_path / "x.pth", data, {}))

    @pytest.mark.parametrize(
        "code",
        [
            tensor_code("0", "float32", 4, (5,)),
            tensor_code("0", "float32", 4, (4,), offset=1),
            tensor_code("0", "float32", 4, (2, 2), (3, 1)),
            tensor_code("0", "float32", 4, (2, 2), (2, 2)),
            tensor_code("0", "float32", 4, (2, 4), (0, 1)),
            tensor_code("0", "float32", 4, (2**40,), (0,)),
            tensor_code("0", "float32", 4, (0, 2**62)),
            tensor_code("0", "float32", 4, (2**62, 2**62, 2**62)),
            tensor_code("0", "float32", 4, (4,), offset=-1),
            tensor_code("0", "float32", 4, (4,), (-1,)),
            tensor_code("0", "float32", 4, (-4,)),
            tensor_code("0", "float32", 4, (2, 2), (2,)),
            tensor_code("0", "float32", 2**60, (2**60,)),
            tensor_code("0", "float32", 4, (1,) * 70),
            tensor_code("../../../../etc/passwd", "float32", 4, (4,)),
        ],
        ids=lambda code: str(len(code)),
    )
    def test_tensors_beyond_their_storage(self, tmp_path: Path, code: bytes) -> None:
        problem(write_archive(tmp_path / "x.pth", one_tensor(code), {"0": bytes(16)}))

    def test_an_empty_tensor_may_have_large_sizes(self, tmp_path: Path) -> None:
        code = tensor_code("0", "float32", 4, (2**20, 0, 2**20))
        path = write_archive(tmp_path / "x.pth", one_tensor(code), {"0": bytes(16)})
        assert load_pth(path)["a"].shape == (2**20, 0, 2**20)

    def test_a_stride_of_a_size_of_one_does_not_matter(self, tmp_path: Path) -> None:
        code = tensor_code("0", "float32", 2, (1, 2, 1), (2**62, 1, 7))
        path = write_archive(
            tmp_path / "x.pth", one_tensor(code), {"0": np.arange(2, dtype=np.float32).tobytes()}
        )
        assert load_pth(path)["a"].tolist() == [[[0], [1]]]

    def test_many_tensors_on_one_storage(self, tmp_path: Path) -> None:
        """A file of a megabyte must not become a gigabyte."""
        first = tensor_code("0", "float32", 250_000, (250_000,))
        names = b"".join(text_code(f"t{i}") + (first + b"q\x07" if i == 0 else b"h\x07")
                         for i in range(1000))  # fmt: skip
        data = b"\x80\x02}(" + names + b"u."
        assert "nothing was read" in problem(
            write_archive(tmp_path / "x.pth", data, {"0": bytes(1_000_000)})
        )

    @pytest.mark.parametrize(
        "code",
        [
            b"(" * 20_000,
            b"]" * 20_000 + b"a" * 19_999,
            b")" + b"\x85" * 20_000,
            b")" + b"2\x86" * 60,
            b")" + b"q\x00h\x00h\x00\x86" * 100,
            b"}" + b")" + b"q\x00h\x00\x86" * 60 + b"Ns",
            b"r\xff\xff\xff\xff",
            b"Nr\xff\xff\xff\xff",
            b"X\xff\xff\xff\xff",
            b"\x8d" + b"\xff" * 8,
            b"\x8b\xff\xff\xff\x7f",
            b"I" + b"9" * 10_000 + b"\n",
            b"t",
            b"u",
            b"R",
            b"0" * 5,
            b"h\x05",
        ],
        ids=lambda code: repr(code[:6]),
    )
    def test_nonsense_ends_quickly(self, tmp_path: Path, code: bytes) -> None:
        path = write_archive(tmp_path / "x.pth", b"\x80\x02" + code + b".", {})
        with cpu_seconds_below(10):
            problem(path)


@settings(deadline=None, max_examples=50)
@given(at=st.integers(0, 10_000), value=st.integers(0, 255), cut=st.booleans())
def test_a_damaged_pickle_is_read_or_refused(at: int, value: int, cut: bool) -> None:
    """Any byte of a real data.pkl changed, or the rest missing."""
    pickled = bytearray(_torch_pickle())
    at %= len(pickled)
    pickled[at] = value
    data = bytes(pickled[:at]) if cut else bytes(pickled)
    with tempfile.TemporaryDirectory() as folder:
        path = write_archive(Path(folder) / "fuzz.pth", data, _torch_storages())
        with contextlib.suppress(WeightsError):
            assert all(isinstance(value, mx.array) for value in load_pth(path).values())


def _torch_pickle() -> bytes:
    with zipfile.ZipFile(TORCH) as archive:
        return archive.read("blt_torch/data.pkl")


def _torch_storages() -> dict[str, bytes]:
    with zipfile.ZipFile(TORCH) as archive:
        names = [name for name in archive.namelist() if "/data/" in name]
        return {name.rpartition("/")[2]: archive.read(name) for name in names}


def test_the_writer_of_these_tests_writes_what_torch_does(tmp_path: Path) -> None:
    """Its pickles, read by Python's own unpickler, describe the same tensors as torch's."""
    path = write_pth(tmp_path / "w.pth", {"a": np.zeros((2, 3), np.float32)})
    seen: list = []

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str):
            return dict if name == "OrderedDict" else lambda *arguments: seen.append(arguments)

        def persistent_load(self, pid: tuple) -> tuple:
            return (pid[0], pid[2:])

    Reader(io.BytesIO(entry_bytes(path, "data.pkl"))).load()
    assert seen == [(("storage", ("0", "cpu", 6)), 0, (2, 3), (3, 1), False, {})]
