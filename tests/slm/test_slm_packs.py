"""Packs: what was saved comes back, and nothing that was changed afterwards is accepted."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_companion.errors import ConfigError, SLMError
from mlx_companion.slm.packs import load_pack, packaged, save_pack


def saved(folder: Path, **changes: Any) -> Any:
    given: dict[str, Any] = {
        "arrays": {"w": np.arange(6, dtype=np.float16).reshape(2, 3), "q": np.int8([1, -2])},
        "settings": {"threshold": 0.25, "names": ["a", "b"]},
        "rules": "- one\n",
        "metrics": {"accuracy": 0.9},
        "card": "# Card\n",
    }
    return save_pack(folder, "guard", "3", **(given | changes))


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    pack = saved(tmp_path / "p")
    assert (pack.module, pack.version, pack.rules) == ("guard", "3", "- one\n")
    assert pack.settings == {"threshold": 0.25, "names": ["a", "b"]}
    assert pack.arrays["w"].dtype == np.float16
    np.testing.assert_array_equal(pack.arrays["w"], np.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(pack.arrays["q"], [1, -2])
    assert (tmp_path / "p" / "README.md").read_text() == "# Card\n"
    assert pack.metrics == {"accuracy": 0.9}


def test_the_checksum_is_over_everything_that_decides(tmp_path: Path) -> None:
    first = saved(tmp_path / "a").sha256
    assert saved(tmp_path / "b").sha256 == first
    assert saved(tmp_path / "c", metrics={}, card=None).sha256 == first
    others = {
        saved(tmp_path / "d", settings={"threshold": 0.26}).sha256,
        saved(tmp_path / "e", rules=None).sha256,
        saved(tmp_path / "f", arrays={"w": np.zeros(1, np.float16)}).sha256,
    }
    assert len(others | {first}) == 4


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_flipped_bit_is_found(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    folder = tmp_path_factory.mktemp("pack") / "p"
    saved(folder)
    name = data.draw(st.sampled_from(["weights.safetensors", "settings.json", "rules.yaml"]))
    content = bytearray((folder / name).read_bytes())
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    (folder / name).write_bytes(bytes(content))
    with pytest.raises(SLMError, match="was changed or damaged"):
        load_pack(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "4"}, "does not match its own checksum"),
        ({"files": {}}, "expected weights"),
        ({"files": {"../../etc/passwd": "0", "weights.safetensors": "", "settings.json": ""}},
         "is no index"),
        ({"sha256": 5}, "is no index"),
        ({"metrics": [0.9]}, "is no index"),
    ],
)  # fmt: skip
def test_a_wrong_index_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    saved(tmp_path / "p")
    index = tmp_path / "p" / "pack.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | change))
    with pytest.raises(SLMError, match=message):
        load_pack(tmp_path / "p")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("rules.yaml", b"\xff\xfe", "cannot be read .*utf-8"),
        ("settings.json", b"[1]", "holds a list, not an object"),
        ("settings.json", b"{", "cannot be read"),
        ("weights.safetensors", b"{", "cannot be read"),
    ],
)
def test_a_whole_file_of_the_wrong_kind_is_refused(
    file: str, content: bytes, message: str, tmp_path: Path
) -> None:
    saved(tmp_path / "p")
    (tmp_path / "p" / file).write_bytes(content)
    index = json.loads((tmp_path / "p" / "pack.json").read_text())
    index["files"][file] = hashlib.sha256(content).hexdigest()
    # As the docstring says: over module, version, and name and SHA-256 of each file.
    lines = [index["module"], index["version"]]
    lines += [f"{name} {index['files'][name]}" for name in sorted(index["files"])]
    index["sha256"] = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    (tmp_path / "p" / "pack.json").write_text(json.dumps(index))
    with pytest.raises(SLMError, match=message):
        load_pack(tmp_path / "p")


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "[" * 100_000, '{"module": "x"}'])
def test_what_is_no_index_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "pack.json").write_text(text)
    with pytest.raises(SLMError, match="is no index of a pack"):
        load_pack(tmp_path)


def test_missing_things_are_named(tmp_path: Path) -> None:
    with pytest.raises(SLMError, match="is no index of a pack"):
        load_pack(tmp_path / "nowhere")
    with pytest.raises(SLMError, match="no pack of 'nothing'"):
        packaged("nothing")
    saved(tmp_path / "p")
    with pytest.raises(SLMError, match="expected 'tracker'"):
        load_pack(tmp_path / "p", "tracker")
    (tmp_path / "p" / "settings.json").unlink()
    with pytest.raises(SLMError, match="cannot be read"):
        load_pack(tmp_path / "p")


def test_settings_must_be_json(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be JSON"):
        saved(tmp_path / "p", settings={"threshold": float("nan")})
    assert not (tmp_path / "p").exists()
