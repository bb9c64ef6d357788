"""Runs of one or several ranks for the tests: the same cases, in this process or in others.

`launch(2, cases, folder)` starts two processes on loopback, each running this file, and waits; what
each rank saw lies in the folder, for `seen`. `run_case` is what they run, and what a test runs for
the single process to compare with.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The package first: it loads the BLAS, which has to happen before MLX.
sys.path.insert(0, str(Path(__file__).parent))

import mlx_companion

import mlx.core as mx  # isort: skip
import mlx.nn as nn  # isort: skip
import numpy as np  # isort: skip
from mlx.utils import tree_flatten  # isort: skip
from training_models import arrays, buckets, llama  # isort: skip

from mlx_companion.errors import Stopped, TrainingError  # isort: skip
from mlx_companion.lora import (  # isort: skip
    LoraConfig,
    adapter_parameters,
    attach,
    load_parameters,
)
from mlx_companion.models.load import load  # isort: skip
from mlx_companion.runtime.stop import StopSwitch  # isort: skip
from mlx_companion.text.labelled_records import Labelled  # isort: skip
from mlx_companion.training import Callback, SftLoss, TrainConfig, Trainer  # isort: skip
from mlx_companion.training.classify import ClassifyConfig, train_classifier  # isort: skip
from mlx_companion.training.distributed import join  # isort: skip

# Of a whole launch; it guards against waiting without end, on busy machines too (seconds).
TIMEOUT = 1200
_TRIES = 3


@dataclass
class Seen:
    """What a rank saw: losses and norms by step, evaluations, held bytes, the last weights."""

    steps: list[list[float]]
    evals: list[list[float]]
    bytes: int
    shards: list[str]
    error: str
    weights: dict[str, np.ndarray]


class _Record(Callback):
    def __init__(self, trainer_of: list[Trainer], stop: StopSwitch | None, at: int) -> None:
        self.trainer_of, self.stop, self.at = trainer_of, stop, at
        self.seen = Seen([], [], 0, [], "", {})

    def on_start(self, run: Any) -> None:
        trainer = self.trainer_of[0]
        held: dict[str, mx.array] = dict(tree_flatten(trainer.model.parameters()))
        state: dict[str, mx.array] = dict(tree_flatten(trainer.optimizer.state))
        self.seen.bytes = sum(v.nbytes for v in (*held.values(), *state.values()))
        self.seen.shards = [name for name in held if ".module." in name]

    def on_step(self, step: Any) -> None:
        self.seen.steps.append([step.step, step.loss, step.norm, step.targets])
        if self.stop is not None and step.step == self.at:
            self.stop.request("the test")

    def on_eval(self, step: int, loss: float) -> None:
        self.seen.evals.append([step, loss])


class _Killing(SftLoss):
    """Kills its process in the middle of the fourth step."""

    def __init__(self, trainer_of: list[Trainer]) -> None:
        super().__init__()
        self.trainer_of = trainer_of

    def __call__(self, model: nn.Module, batch: Any) -> tuple[mx.array, mx.array]:
        if model.training and self.trainer_of[0].state.step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(model, batch)


def make_model(kind: str) -> nn.Module:
    """ "lora", "quantized", "dora", or "all": every parameter trained."""
    model = llama(hidden_size=64, intermediate_size=128)
    if kind == "all":
        return model
    if kind in ("quantized", "dora"):
        nn.quantize(model, 32, 4)
    attach(model, LoraConfig(rank=4, alpha=8.0, dora=kind == "dora"))
    keys = iter(mx.random.split(mx.random.key(5), 200))
    start = {
        name: value + 0.1 * mx.random.normal(value.shape, key=next(keys))
        for name, value in adapter_parameters(model).items()
    }
    load_parameters(model, start)
    return model


def run_case(case: dict[str, Any]) -> Seen:
    """Train as a case says.

    Args:
        case: settings of `TrainConfig`, and: kind (of `make_model`), data (options of `buckets`),
            dropout, folder (checkpoints), stop (rank and step), kill (a rank). With "classifier",
            a model's folder, and "out" it is a classifier that is trained, and asked for again.
    """
    if "classifier" in case:
        return _classifier(**case)
    case, ranks = dict(case), join()
    model = make_model(case.pop("kind", "lora"))
    dropout = case.pop("dropout", 0.0)
    for _, module in model.named_modules():
        if isinstance(module, nn.Dropout):
            module._p_1 = 1 - dropout
    data, folder = case.pop("data", {}), case.pop("folder", None)
    rank, at = case.pop("stop", (None, 0))
    stop = StopSwitch()
    holder: list[Trainer] = []
    record = _Record(holder, stop if rank == ranks.rank else None, at)
    killed = case.pop("kill", None) == ranks.rank
    trainer = Trainer(
        model,
        buckets(14, **data),
        valid=buckets(3, seed=1, batch_tokens=512),
        loss=_Killing(holder) if killed else None,
        config=TrainConfig(**({"max_steps": 4, "lr": 1e-2, "eval_every": 2} | case)),
        callbacks=[record],
        stop=stop,
        checkpoints=folder,
    )
    holder.append(trainer)
    try:
        trainer.run()
    except (Stopped, TrainingError) as error:
        record.seen.error = f"{type(error).__name__}: {error}"
    else:
        record.seen.weights = {name: np.array(value) for name, value in arrays(model).items()}
    return record.seen


def _classifier(classifier: str, out: str, sharding: str = "none") -> Seen:
    names = ["river", "kettle", "train"] * 10
    data = Labelled([f"say {i} {name} now" for i, name in enumerate(names)], names)
    train = TrainConfig(
        epochs=1, batch_tokens=64, lr=1e-2, lr_ratios={"head.*": 4.0}, sharding=sharding
    )
    config = ClassifyConfig(lora=LoraConfig(rank=2), train=train, dropout=0.0)
    seen = Seen([], [], 0, [], "", {})
    for _ in range(2):
        lm = load(classifier)
        found = train_classifier(lm, data, out, valid=data, config=config, progress=False, track=())
        seen.evals.append([found.steps, found.valid.log_loss])
        for name, value in adapter_parameters(lm.model).items():
            seen.weights[name] = np.array(value)
    return seen


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def launch(size: int, cases: dict[str, Any], folder: Path) -> list[int]:
    """Run cases on so many ranks; their exit codes. A port that was taken meanwhile: once more."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cases.json").write_text(json.dumps(cases))
    for _ in range(_TRIES):
        codes, told = _launch(size, folder)
        if "cannot be reached" not in told:
            return codes
    raise AssertionError(told)


def _launch(size: int, folder: Path) -> tuple[list[int], str]:
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(size)]))
    root = Path(mlx_companion.__file__).parent.parent
    env = os.environ | {"PYTHONPATH": f"{root}:{root / 'tests'}", "MLX_HOSTFILE": str(hosts)}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            env=env | {"MLX_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        told = [process.communicate(timeout=TIMEOUT)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return [process.returncode for process in processes], "\n".join(told)


def seen(folder: Path, name: str, rank: int) -> Seen:
    """What a rank saw of a case."""
    values = json.loads((folder / f"{name}.{rank}.json").read_text())
    weights = dict(np.load(folder / f"{name}.{rank}.npz"))
    return Seen(**values, weights=weights)


def _main(folder: Path) -> None:
    rank = join().rank
    for name, case in json.loads((folder / "cases.json").read_text()).items():
        found = run_case(case)
        values = {key: value for key, value in vars(found).items() if key != "weights"}
        np.savez(folder / f"{name}.{rank}.npz", **found.weights)
        (folder / f"{name}.{rank}.json").write_text(json.dumps(values))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
