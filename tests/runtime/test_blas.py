"""The BLAS loader: it makes MLX fast, says what it did, and breaks nothing that comes after.

Each case needs a fresh process, because a library cannot be unloaded.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from patience import slowness

from mlx_companion.runtime import blas
from mlx_companion.runtime.cores import available_cores

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the loader works on Linux only"
)

REPORT = """
    import json
    from mlx_companion.runtime import blas
    info = blas.load_blas()
    out = {"status": info.status, "path": info.path, "message": info.message}
"""


def run(script: str, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    variables.pop("MLX_COMPANION_BLAS", None)
    return subprocess.run(
        [sys.executable, *flags, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=False,
        env=variables | environment,
    )


def report(script: str = "", **environment: str) -> dict[str, Any]:
    done = run(
        textwrap.dedent(REPORT) + textwrap.dedent(script) + "\nprint(json.dumps(out))",
        **environment,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def loaded() -> dict[str, Any]:
    """The loader's report here; skips where there is no OpenBLAS to load."""
    out = report("out['gflops'] = blas.measure_gflops(768)")
    if out["status"] != "loaded":
        pytest.skip(f"no OpenBLAS here: {out['message']}")
    return out


def test_matmul_is_several_times_faster(loaded: dict[str, Any]) -> None:
    slow = report("out['gflops'] = blas.measure_gflops(768)", MLX_COMPANION_BLAS="off")
    assert slow["status"] == "off"
    # 31 times on a quiet machine.
    assert loaded["gflops"] > 4 * slow["gflops"]


def test_products_are_right(loaded: dict[str, Any]) -> None:
    script = """
        import mlx.core as mx, numpy as np
        rng = np.random.default_rng(0)
        a, b = rng.normal(size=(3, 65, 129)), rng.normal(size=(129, 33))
        ours = np.array(mx.array(a.astype("f4")) @ mx.array(b.astype("f4")))
        out["error"] = float(np.abs(ours - a @ b).max())
    """
    assert report(script)["error"] < 1e-4


def test_the_path_can_be_named(loaded: dict[str, Any]) -> None:
    if loaded["path"] is None or "/" not in loaded["path"]:
        pytest.skip("the library was not found by its path")
    assert report(MLX_COMPANION_BLAS=loaded["path"])["path"] == loaded["path"]


@pytest.mark.parametrize("wrong", ["/no/such/libopenblas.so", "libm.so.6"])
def test_a_wrong_path_is_an_error(wrong: str) -> None:
    done = run("import mlx_companion", MLX_COMPANION_BLAS=wrong)
    assert f"MLX_COMPANION_BLAS={wrong} is not a library that exports cblas_sgemm" in done.stderr


def test_numpys_renamed_openblas_is_not_taken() -> None:
    spec = importlib.util.find_spec("numpy")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent.parent / "numpy.libs"
    libraries = sorted(folder.glob("libscipy_openblas*.so*"))
    if not libraries:
        pytest.skip("this NumPy carries no OpenBLAS")
    done = run("import mlx_companion", MLX_COMPANION_BLAS=str(libraries[0]))
    assert "ConfigError" in done.stderr


def test_too_late_is_said() -> None:
    done = run("import mlx.core, mlx_companion")
    assert done.returncode == 0
    if "RuntimeWarning" not in done.stderr:
        assert "already loaded" in report()["message"]
    else:
        assert "import mlx_companion first" in done.stderr


def test_missing_is_said_once_with_the_remedy() -> None:
    script = """
        import os, warnings
        import mlx_companion
        from mlx_companion.runtime import blas
        del os.environ["MLX_COMPANION_BLAS"]
        blas._info = None
        blas._system_candidates = blas._wheel_candidates = lambda *folders: []
        blas._already_global = lambda: False
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            infos = [blas.load_blas(), blas.load_blas()]
        assert infos[0] is infos[1]
        print(infos[0].status, len(caught), caught[0].message)
    """
    done = run(script, MLX_COMPANION_BLAS="off")
    assert done.stdout.startswith("missing 1 no OpenBLAS was found"), done.stderr
    assert 'pip install "mlx-companion[blas]"' in done.stdout
    assert "30 times" in done.stdout


def test_nothing_is_loaded_beside_a_cuda_backend(tmp_path: Path) -> None:
    (tmp_path / "mlx_cuda_13-0.32.4.dist-info").mkdir()
    path = os.pathsep.join([str(tmp_path), *sys.path[1:]])
    assert report(PYTHONPATH=path)["status"] == "not-needed"


def test_faiss_still_works_afterwards(loaded: dict[str, Any]) -> None:
    if importlib.util.find_spec("faiss") is None:
        pytest.skip("faiss is not installed")
    script = """
        import mlx.core as mx, numpy as np, faiss
        rows = np.random.default_rng(0).normal(size=(500, 64)).astype("f4")
        index = faiss.IndexFlatIP(64)
        index.add(rows)
        found = index.search(rows[:20], 3)[1]
        expected = np.argsort(-(rows[:20].astype("f8") @ rows.T), axis=1)[:, :3]
        out["same"] = bool((found == expected).all())
        out["gflops"] = blas.measure_gflops(512)
    """
    out = report(script)
    assert out["same"]
    assert out["gflops"] > loaded["gflops"] / 10


THREADS = """
    import ctypes
    out["threads"] = ctypes.CDLL(None).openblas_get_num_threads()
"""


def test_threads_are_the_usable_cores(loaded: dict[str, Any]) -> None:
    assert report(THREADS)["threads"] == available_cores()


def test_a_chosen_number_of_threads_is_kept(loaded: dict[str, Any]) -> None:
    out = report(THREADS, OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")
    assert out["threads"] == 1


def test_loading_is_quick(loaded: dict[str, Any]) -> None:
    script = """
        import time
        start = time.process_time()
        import mlx_companion.runtime.blas
        print(time.process_time() - start)
    """
    # 10 to 25 ms on a quiet machine.
    assert min(float(run(script).stdout) for _ in range(4)) < 0.1 * slowness()


def test_the_libraries_beside_it_are_loaded_first_and_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "some.libs"
    folder.mkdir()
    for name in ("libgomp-1.so.1", "libquadmath-2.so.0", "libgfortran-3.so.5", "libother.so"):
        (folder / name).touch()
    opened: list[str] = []
    monkeypatch.setattr(blas.ctypes, "CDLL", lambda path, mode=0: opened.append(Path(path).name))
    blas._load_companions(folder)
    assert opened == ["libquadmath-2.so.0", "libgfortran-3.so.5", "libgomp-1.so.1"]
    opened.clear()
    blas._load_companions(tmp_path)
    assert opened == []


AVX512 = {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}


@pytest.mark.parametrize(
    ("flags", "kernels"),
    [
        ({"sse2", "avx"}, None),
        ({"avx2", "fma"}, "HASWELL"),
        ({"avx2", "fma", "avx512f"}, "HASWELL"),
        ({"avx2", "fma", *AVX512}, "SKYLAKEX"),
    ],
)
def test_kernels_are_the_widest_that_run(flags: set[str], kernels: str | None) -> None:
    assert blas.kernels_for(flags) == kernels


def test_a_choice_of_kernels_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Nehalem")
    with blas._widest_kernels():
        assert os.environ["OPENBLAS_CORETYPE"] == "Nehalem"
    assert os.environ["OPENBLAS_CORETYPE"] == "Nehalem"


def test_kernels_are_chosen_only_while_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    monkeypatch.setattr(blas, "_cpu_flags", lambda: {"avx2", "fma"})
    with blas._widest_kernels():
        assert os.environ["OPENBLAS_CORETYPE"] == "HASWELL"
    assert "OPENBLAS_CORETYPE" not in os.environ


@pytest.mark.parametrize("chosen", ["", "9"])
def test_numpys_threads_are_told_to_sleep_soon_unless_the_person_says_otherwise(
    loaded: dict[str, Any], chosen: str
) -> None:
    environment = {"OPENBLAS_THREAD_TIMEOUT": chosen} if chosen else {}
    out = report(
        """
        import os, sys
        out["early"] = "numpy" not in sys.modules
        out["cycles"] = os.environ["OPENBLAS_THREAD_TIMEOUT"]
        """,
        **environment,
    )
    assert out["early"], "NumPy reads it when it is imported, so it has to be set before that"
    assert out["cycles"] == (chosen or "20")
