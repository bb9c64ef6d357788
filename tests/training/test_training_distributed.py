"""Two and three ranks on loopback against one process: losses, weights, checkpoints, a killed rank.

Starting processes takes most of the time, so a module's worth of cases runs in three launches.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from ranks_world import TIMEOUT, Seen, free_ports, launch, run_case, seen
from safetensors.numpy import load_file
from tiny import tiny_llama
from training_models import buckets

from mlx_companion.errors import ConfigError, TrainingError
from mlx_companion.training import TrainConfig
from mlx_companion.training.distributed import ALONE, Ranks, join, lost_connection
from mlx_companion.training.low_bit import packed, unpacked
from mlx_companion.training.sharding import is_sharded, plain_name

TOLERANCE = 1e-4
SHARDED: dict[str, Any] = {"sharding": "full"}
# Of one row each: in every second step one of two ranks has nothing to do.
ONE_ROW: dict[str, Any] = {"data": {"batch_tokens": 8}}
EIGHT_BIT: dict[str, Any] = {"kind": "all", "optimizer": "adamw8bit", "lr": 1e-3}
SAME: dict[str, dict[str, Any]] = {
    "rows of a batch": {},
    "batches of a step": {"accumulate": 2, "clip_norm": 0.05},
    "three batches": {"accumulate": 3, "kind": "quantized"},
    "single rows": ONE_ROW,
    "8 bits": EIGHT_BIT,
    "sharded": SHARDED | {"data": {"prefix": 24, "batch_tokens": 256}},
    "sharded quantized": SHARDED | {"kind": "quantized", "accumulate": 2, "clip_norm": 0.05},
    "sharded dora": SHARDED | {"kind": "dora", "gradient_checkpointing": True},
    "sharded single rows": SHARDED | ONE_ROW,
    "sharded all": SHARDED | {"kind": "all", "lr": 1e-3},
}
DROPOUT = SHARDED | {"dropout": 0.2, "accumulate": 2}
KILLED: dict[str, Any] = {"save_every": 2, "accumulate": 2}


class Places:
    """Checkpoint folders by what was stopped there."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __getitem__(self, name: str) -> str:
        return str(self.root / name)

    def copy(self, name: str, new: str) -> str:
        shutil.copytree(self.root / name, self.root / new)
        return str(self.root / new)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    return Places(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def one(places: Places) -> Seen:
    """A run of one process that was stopped after two steps."""
    return run_case({"stop": (0, 2), "folder": places["one"]})


@pytest.fixture(scope="module")
def killed(places: Places, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[int], Seen]:
    folder = tmp_path_factory.mktemp("killed")
    codes = launch(2, {"killed": KILLED | {"kill": 1, "folder": places["killed"]}}, folder)
    return codes, seen(folder, "killed", 0)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model to make a classifier of."""
    return str(tiny_llama(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def two(
    places: Places,
    one: Seen,
    killed: Any,
    classifier: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Everything that two ranks run together."""
    folder = tmp_path_factory.mktemp("two")
    stopped = {"stop": (1, 2)}
    cases = SAME | {
        "from one": {"folder": places.copy("one", "two from one")},
        "from one sharded": SHARDED | {"folder": places.copy("one", "shards from one")},
        "after a kill": KILLED | {"folder": places["killed"]},
        "dropout": DROPOUT,
        "dropout stopped": DROPOUT | stopped | {"folder": places["dropout"]},
        "dropout again": DROPOUT | {"folder": places["dropout"]},
        "sharded 8 bits": SHARDED | EIGHT_BIT,
        "8 bits stopped": SHARDED | EIGHT_BIT | stopped | {"folder": places["8 bits"]},
        "8 bits again": SHARDED | EIGHT_BIT | {"folder": places["8 bits"]},
        "for others": SHARDED | stopped | {"folder": places["two"]},
        "classifier": SHARDED | {"classifier": classifier, "out": places["classifier"]},
        "8 bits for others": SHARDED | EIGHT_BIT | stopped | {"folder": places["two 8 bits"]},
    }
    assert launch(2, cases, folder) == [0, 0]
    return folder


@pytest.fixture(scope="module")
def three(places: Places, two: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three")
    cases = {
        "three": {"accumulate": 2},
        "from one": {"folder": places.copy("one", "three from one")},
        "from two": SHARDED | {"folder": places.copy("two", "three from two")},
    }
    assert launch(3, cases, folder) == [0, 0, 0]
    return folder


def close(ours: Seen, theirs: Seen, since: int = 0, tolerance: float = TOLERANCE) -> None:
    """The same losses, norms, targets, evaluations and weights, from a step on."""
    expected = [values for values in theirs.steps if values[0] > since]
    np.testing.assert_allclose(ours.steps, expected, rtol=tolerance)
    evals = [values for values in theirs.evals if values[0] > since or not since]
    np.testing.assert_allclose(ours.evals, evals, rtol=tolerance)
    assert ours.weights.keys() == theirs.weights.keys()
    assert ours.weights
    for name, value in theirs.weights.items():
        np.testing.assert_allclose(ours.weights[name], value, rtol=tolerance, atol=tolerance)


def exactly(ours: Seen, theirs: Seen) -> None:
    assert ours.weights.keys() == theirs.weights.keys()
    assert ours.weights
    assert all(np.array_equal(ours.weights[name], value) for name, value in theirs.weights.items())


@pytest.mark.parametrize("name", SAME)
def test_two_ranks_are_one_process(name: str, two: Path) -> None:
    ours, other = (seen(two, name, rank) for rank in range(2))
    close(ours, run_case(SAME[name]))
    exactly(ours, other)
    assert ours.steps == other.steps
    assert len(ours.steps) == 4
    assert bool(ours.shards) == ("sharding" in SAME[name])


def test_each_rank_holds_about_half_when_sharded(two: Path) -> None:
    for name in ("sharded", "sharded quantized", "sharded all"):
        whole = run_case(SAME[name] | {"max_steps": 1})
        assert 0.5 < seen(two, name, 1).bytes / whole.bytes < 0.56
    assert seen(two, "rows of a batch", 1).bytes == run_case({"max_steps": 1}).bytes


def test_shards_of_eight_bit_moments_train_alike(two: Path) -> None:
    # Shards below the smallest size keep float32 moments, so that only the rounding differs.
    close(seen(two, "sharded 8 bits", 0), run_case(EIGHT_BIT), tolerance=2e-3)


@pytest.mark.parametrize(
    ("whole", "stopped", "again"),
    [
        ("dropout", "dropout stopped", "dropout again"),
        ("sharded 8 bits", "8 bits stopped", "8 bits again"),
    ],
)
def test_a_stop_on_one_rank_stops_all_and_they_go_on_exactly(
    whole: str, stopped: str, again: str, two: Path
) -> None:
    ends = [seen(two, stopped, rank) for rank in range(2)]
    assert ends[1].error.startswith("Stopped: stopped at a safe point: the test")
    assert "another process was asked to stop" in ends[0].error
    assert [len(end.steps) for end in ends] == [2, 2]
    for rank in range(2):
        ours, expected = seen(two, again, rank), seen(two, whole, rank)
        assert ends[rank].steps + ours.steps == expected.steps
        exactly(ours, expected)


def test_ranks_drop_different_things_out(two: Path) -> None:
    alone = run_case(DROPOUT)
    assert seen(two, "dropout", 0).steps[0][1] != pytest.approx(alone.steps[0][1], rel=1e-5)


def test_a_checkpoint_of_one_process_serves_two_and_three_ranks(two: Path, three: Path) -> None:
    whole = run_case({})
    for folder in (two, three):
        close(seen(folder, "from one", 0), whole, since=2)
    close(seen(two, "from one sharded", 1), whole, since=2)
    exactly(seen(three, "from one", 2), seen(three, "from one", 0))


def test_a_checkpoint_of_two_shards_serves_one_process_and_three(
    three: Path, places: Places
) -> None:
    whole = run_case({})
    close(run_case({"folder": places.copy("two", "one from two")}), whole, since=2)
    # A rank of 4 cannot be cut into 3: the adapters stay whole, what is frozen is cut.
    ours = seen(three, "from two", 1)
    close(ours, whole, since=2)
    assert ours.shards
    eight = run_case(EIGHT_BIT | {"folder": places.copy("two 8 bits", "one from 8 bits")})
    close(eight, run_case(EIGHT_BIT), since=2, tolerance=2e-3)


def test_three_ranks_are_one_process(three: Path) -> None:
    close(seen(three, "three", 0), run_case({"accumulate": 2}))
    exactly(seen(three, "three", 2), seen(three, "three", 0))


def test_a_classifier_of_two_ranks(two: Path, classifier: str, places: Places) -> None:
    alone = run_case({"classifier": classifier, "out": places["classifier alone"]})
    for rank in range(2):
        ours = seen(two, "classifier", rank)
        # Trained once; the second time it is the finished run's, on every rank.
        assert ours.evals[0] == ours.evals[1]
        np.testing.assert_allclose(ours.evals, alone.evals, rtol=TOLERANCE)
        for name, value in alone.weights.items():
            np.testing.assert_allclose(ours.weights[name], value, atol=TOLERANCE)


def test_checkpoints_hold_whole_arrays_under_plain_names(two: Path, places: Places) -> None:
    found = {}
    for name in ("one", "two"):
        (step,) = Path(places[name]).glob("step-*")
        found[name] = {
            file.name: {n: v.shape for n, v in load_file(file).items()}
            for file in step.glob("*.safetensors")
        }
    assert found["one"] == found["two"]


def test_a_killed_rank_ends_the_other_with_advice(killed: tuple[list[int], Seen]) -> None:
    codes, other = killed
    assert codes == [0, -9]
    assert other.error.startswith("TrainingError: the connection to another of the 2 processes")
    assert "step 4 was not finished" in other.error
    assert "goes on from the checkpoint of step 2, which is sound" in other.error
    assert len(other.steps) == 3


def test_and_both_go_on_from_its_checkpoint(two: Path) -> None:
    ours = seen(two, "after a kill", 0)
    assert [values[0] for values in ours.steps] == [3, 4]
    close(ours, run_case(KILLED), since=2)


def command(*words: str) -> list[str]:
    launcher = Path(sys.executable).with_name("mlx.launch")
    port = str(min(free_ports(2)))
    start = [str(launcher), "-n", "2", "--backend", "ring", "--starting-port", port, "--"]
    return [*start, sys.executable, "-m", "mlx_companion", *words]


def test_the_command_line_under_mlx_launch(tmp_path: Path, repository: Path) -> None:
    model = tiny_llama(tmp_path / "model")
    rng = random.Random(0)
    words = ("kettle", "garden", "train", "station", "river", "answer")
    rows = [
        {"prompt": f"say {i}", "completion": " ".join(rng.choices(words, k=rng.randint(2, 9)))}
        for i in range(20)
    ]
    data = tmp_path / "chats.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = (
        "finetune", "--data", str(data), "--model", str(model), "--valid", "0.2", "--epochs", "1",
        "--rank", "2", "--batch-tokens", "256",
    )  # fmt: skip
    env = os.environ | {"PYTHONPATH": str(repository)}

    def finished(command: list[str], out: Path, *more: str) -> dict[str, Any]:
        told, errors = out.with_suffix(".out"), out.with_suffix(".err")
        with (
            open(told, "wb") as stdout,
            open(errors, "wb") as stderr,
            # A pipe that stays open: the launcher reads its standard input all the time.
            subprocess.Popen(
                [*command, "--out", str(out), *more],
                env=env,
                stdin=subprocess.PIPE,
                stdout=stdout,
                stderr=stderr,
            ) as process,
        ):
            try:
                code = process.wait(timeout=TIMEOUT)
            finally:
                process.kill()
        assert code == 0, errors.read_text()
        assert told.read_text().count("adapter: ") == 1
        assert errors.read_text().count("training rows of") == 1
        return json.loads((out / "result.json").read_text())

    alone = finished([sys.executable, "-m", "mlx_companion", *options], tmp_path / "alone")
    ours = finished(command(*options), tmp_path / "run", "--set", "train.sharding=full")
    assert ours["run_hash"] == alone["run_hash"]
    for name in ("train_loss", "valid_before", "valid_after"):
        assert ours[name] == pytest.approx(alone[name], rel=TOLERANCE)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines if '"step"' in line[:20]]
    assert steps == list(range(1, ours["steps"] + 1))
    ours, alone = (
        load_file(tmp_path / name / "adapter" / "adapters.safetensors") for name in ("run", "alone")
    )
    assert ours.keys() == alone.keys()
    for name, value in alone.items():
        np.testing.assert_allclose(ours[name], value, atol=TOLERANCE)


class Fake(Ranks):
    """One of several ranks, of which the others do not exist."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__()
        self.rank, self.size = rank, size


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_every_row_of_a_step_is_dealt_to_one_rank(size: int, count: int) -> None:
    data = buckets(24, batch_tokens=40)
    batches = [data.batch(indices) for indices in data.epoch(0)[:count]]
    dealt = [
        [row for part in Fake(rank, size).deal(batches, count) for row in part.batch.indices]
        for rank in range(size)
    ]
    assert sorted(row for rows in dealt for row in rows) == sorted(
        row for batch in batches for row in batch.indices
    )
    if count >= size:
        assert all(dealt)


def test_a_process_on_its_own_is_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLX_RANK", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert join() is ALONE
    assert (ALONE.rank, ALONE.size, ALONE.first, ALONE.alone) == (0, 1, True, True)
    assert ALONE.gather(1.5, 2.0) == [(1.5, 2.0)]
    assert ALONE.sums(0.1, 0.2) == [0.1, 0.2]
    value = {"a": mx.array([1.0])}
    assert ALONE.arrays_from_first(value) is value
    assert ALONE.from_first({"a": [1]}) == {"a": [1]}
    with pytest.raises(RuntimeError, match="peer"), ALONE.guarded(lambda: ""):
        raise RuntimeError("[ring] connection to a peer was lost")


def test_a_rank_without_the_others_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_RANK", "1")
    for name in ("MLX_HOSTFILE", "MLX_JACCL_COORDINATOR", "MLX_IBV_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(TrainingError, match=r"start all of them with mlx\.launch"):
        join()


def test_which_errors_say_that_a_rank_is_gone() -> None:
    assert lost_connection(RuntimeError("[ring] connection to a peer was lost"))
    assert not lost_connection(RuntimeError("[ring] sum_scatter not supported."))
    assert not lost_connection(RuntimeError("[matmul] shapes do not fit"))


def test_names_of_shards() -> None:
    sharded = "states.0.model.layers.3.self_attn.module.fully_sharded.q_proj.lora_a.m"
    assert plain_name(sharded) == "states.0.model.layers.3.self_attn.q_proj.lora_a.m"
    whole = "model.layers.3.mlp.fully_sharded.up_proj.lora_b"
    assert plain_name(whole) == "model.layers.3.mlp.up_proj.lora_b"
    assert (is_sharded(sharded), is_sharded(whole)) == (True, False)
    assert plain_name("model.module.head.weight") == "model.module.head.weight"


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_eight_bit_moments_of_several_shards(parts: int) -> None:
    size = 3 * 2 * 1000
    m = mx.random.normal((size,), key=mx.random.key(0))
    v = mx.square(mx.random.normal((size,), key=mx.random.key(1)))
    state = packed(m, v, parts)
    blocks = parts * -(-size // parts // 256)
    assert state["m"].shape[0] == state["r"].shape[0] == state["r_max"].shape[0] == blocks
    m_again, v_again = unpacked(state, size, parts)
    assert float(mx.abs(m_again - m).max()) < 0.02
    # A 16th of a factor of 2, rounded to the nearest; codes reach down to 2^-16 of the largest.
    large = np.array(v) > 1e-3
    ratio = np.array(v_again)[large] / np.array(v)[large]
    assert np.abs(np.log2(ratio)).max() < 1 / 16 + 1e-3


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"sharding": "half"}, "sharding"),
        ({"sharding": "full", "optimizer": "muon"}, "optimizer"),
        ({"sharding": "full", "compile": True}, "compile"),
    ],
)
def test_settings_that_cannot_be_sharded(wrong: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        TrainConfig(**wrong)
