"""Random lies and mutations: an error of ours or a file in order, fast and in little memory."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import fuzz_sou
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sou_bytes import build, small

from mlx_companion.errors import SouError
from mlx_companion.quant.sou_layout import Kind
from mlx_companion.quant.sou_names import check_section_name

names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).map(lambda s: s.encode())
numbers = st.one_of(
    st.sampled_from(fuzz_sou.ODD_NUMBERS), st.integers(0, 2**64 - 1), st.integers(0, 300)
)
section = st.fixed_dictionaries(
    {
        "kind": st.integers(0, 20),
        "name": st.one_of(names, st.sampled_from(fuzz_sou.ODD_NAMES), st.just(b"a.json")),
        "data": st.one_of(st.binary(max_size=60), st.sampled_from(fuzz_sou.ODD_TEXTS)),
    },
    optional={
        "flags": st.sampled_from([0, 1, 2, 256]),
        "compression": st.integers(0, 2),
        "log2": st.integers(0, 15),
        "offset": numbers,
        "size": numbers,
        "raw_size": numbers,
    },
)


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(sections=st.lists(section, max_size=4))
def test_any_table_gives_an_error_or_a_file(sections: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "a.sou"
    path.write_bytes(build(sections))
    assert fuzz_sou.use(path, tmp_path / "room" / "out") in (
        "in order", "refused", "refused by unpack",
    )  # fmt: skip
    shutil.rmtree(tmp_path / "room", ignore_errors=True)
    assert list(tmp_path.iterdir()) == [path]


@settings(max_examples=300, deadline=None)
@given(name=names)
def test_a_name_that_passes_stays_in_its_folder(name: bytes) -> None:
    try:
        found = check_section_name(name)
    except SouError:
        return
    assert found.encode() == name
    root = os.path.abspath("folder")
    assert os.path.normpath(os.path.join(root, found)).startswith(root + os.sep)


def test_a_slice_of_the_mutation_fuzzer(tmp_path: Path) -> None:
    shared = Path("/dev/shm")
    scratch = shared / f"sou-{os.getpid()}" if shared.is_dir() else tmp_path / "scratch"
    scratch.mkdir()
    try:
        outcomes = fuzz_sou.run(2000, 20260131, scratch)
    finally:
        shutil.rmtree(scratch)
    assert sum(outcomes.values()) == 2000
    assert outcomes["raw: refused"] > 450
    # It would find nothing if all were refused at once.
    assert all(outcomes[f"{kind}: in order"] > 5 for kind in ("sealed", "fields", "content"))


def test_kinds_are_looked_at_by_the_fuzzer() -> None:
    kinds = {s["kind"] for s in small()}
    assert {Kind.CONFIG, Kind.INDEX, Kind.DATA, Kind.TOKENIZER, Kind.ADAPTER} <= kinds
