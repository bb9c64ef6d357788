"""Several processes that train one model together, over MLX's own collectives.

    mlx.launch -n 2 --backend ring -- mlx-companion finetune --data chats.jsonl

`mlx.launch` starts the same command once per rank. `join()` finds out whether that happened; the
trainer asks it by itself. Every rank reads all data, trains on its part of each step, and takes
the same decisions from the same numbers; only rank 0 writes. A single process is the group of one,
for which nothing here computes or waits.

Losses and gradients of parts are sums, so the parts of a step may be as uneven as they like: the
sums over all ranks are those of one process at the same global batch, up to rounding.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from mlx_companion.errors import Stopped, TrainingError
from mlx_companion.training.gradients import Accumulated, split_rows

T = TypeVar("T")
Arrays = dict[str, mx.array]

# What the launchers that MLX knows tell each process; asking MLX itself may start MPI.
_LAUNCHED = ("MLX_RANK", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
_BACKENDS = ("[ring]", "[jaccl]", "[mpi]", "[nccl]", "nccl error")


class Part(NamedTuple):
    """What a rank runs.

    Attributes:
        batch: a micro-batch or some of its rows.
        weight: 1, or 0 for what is run for the sake of the others; None where each rank runs
            what it has.
    """

    batch: Any
    weight: float | None = None


class Ranks:
    """This process among those that train together.

    Args:
        group: of MLX's; None for a process on its own.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
        in_step: every rank has to run equally many parts, because running one waits for the
            others (fully sharded parameters).
    """

    def __init__(self, group: mx.distributed.Group | None = None) -> None:
        self.group = group
        self.rank = 0 if group is None else group.rank()
        self.size = 1 if group is None else group.size()
        self.in_step = False

    @property
    def alone(self) -> bool:
        """There are no others."""
        return self.size == 1

    @property
    def first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def deal(self, batches: Iterable[Any], count: int, pieces: int = 1) -> Iterator[Part]:
        """This rank's parts of a step.

        Whole micro-batches go round as far as they are enough for everybody; the rows of those
        that are left over are dealt out.

        Args:
            batches: the step's micro-batches, the same on every rank.
            count: how many.
            pieces: cut each part in so many, where the caller cannot (`in_step`).
        """
        if self.alone:
            return (Part(batch) for batch in batches)
        mine = self._own(batches, count)
        if self.in_step:
            return self._keeping_step(mine, pieces)
        return (Part(batch) for batch, own in mine if own)

    def reduce(
        self, total: Accumulated | None, like: Any, apart: Callable[[str], bool]
    ) -> Accumulated:
        """Sums over all ranks.

        Args:
            total: this rank's; None if it had nothing to do.
            like: the trainable parameters.
            apart: whether a parameter of a name is sharded: its gradient is summed already, and
                divided by the number of ranks.
        """
        if self.alone:
            assert total is not None
            return total
        if total is None:
            total = Accumulated(0.0, 0.0, tree_map(mx.zeros_like, like))
        loss, targets = self.sums(total.loss, total.targets)
        gradients = average_whole(total.gradients, apart, self.group)
        return Accumulated(loss, targets, tree_map(lambda g: g * self.size, gradients))

    def sums(self, *values: float) -> list[float]:
        """Of each value over all ranks, added in their order: the same bits everywhere."""
        return [sum(column) for column in zip(*self.gather(*values), strict=True)]

    def agree(self, flag: bool) -> bool:
        """Whether a flag is set on some rank."""
        return self.largest(flag) > 0

    def largest(self, value: float) -> float:
        """Of all ranks' values."""
        return max(row[0] for row in self.gather(value))

    def gather(self, *values: float) -> list[tuple[float, ...]]:
        """The values of every rank, in their order."""
        if self.alone:
            return [values]
        rows = self._all_gather(np.array(values, dtype=np.float64).view(np.uint8))
        return [tuple(row.view(np.float64).tolist()) for row in rows]

    def gather_json(self, value: Any) -> list[Any]:
        """A JSON value of every rank."""
        if self.alone:
            return [value]
        data = json.dumps(value).encode()
        lengths = [int(row[0]) for row in self.gather(len(data))]
        padded = np.frombuffer(data.ljust(max(lengths)), dtype=np.uint8)
        rows = self._all_gather(padded)
        return [json.loads(row.tobytes()[:n]) for row, n in zip(rows, lengths, strict=True)]

    def from_first(self, value: Any) -> Any:
        """Rank 0's JSON value."""
        return self.gather_json(value if self.first else None)[0]

    def arrays_from_first(self, arrays: Arrays) -> Arrays:
        """Rank 0's arrays, bit for bit; what the others give is not looked at."""
        if self.alone:
            return arrays
        kinds = {n: [list(v.shape), _type_name(v.dtype)] for n, v in arrays.items()}
        return {
            name: self._from_first(arrays[name] if self.first else None, shape, getattr(mx, dtype))
            for name, (shape, dtype) in self.from_first(kinds).items()
        }

    def on_first(self, action: Callable[[], T], doing: str) -> T | None:
        """Run something on rank 0 while the others wait.

        Args:
            action: what.
            doing: what it does, for the others' error, such as "write the checkpoint".

        Returns:
            Its result on rank 0, None elsewhere.

        Raises:
            TrainingError: on the other ranks, when it fails on rank 0, where its own error is.
        """
        if self.alone:
            return action()
        result, failure = None, None
        if self.first:
            try:
                result = action()
            except Exception as error:
                failure = error
        failed = self.agree(failure is not None)
        if failure is not None:
            raise failure
        if failed:
            raise TrainingError(f"process 0 could not {doing}; its own message says why")
        return result

    def check_same(self, value: str, what: str) -> None:
        """Raises TrainingError unless every rank has the same value."""
        found = self.gather_json(value)
        odd = [rank for rank, other in enumerate(found) if other != found[0]]
        if odd:
            raise TrainingError(
                f"process {odd[0]} has {what} {found[odd[0]][:12]}, process 0 has {found[0][:12]}; "
                "start all of them with the same model, data and settings"
            )

    @contextmanager
    def stopping_together(self) -> Iterator[None]:
        """Stop all ranks when the block is stopped on one of them. Raises Stopped."""
        stopped = None
        try:
            yield
        except Stopped as request:
            stopped = request
        if self.agree(stopped is not None):
            raise stopped or Stopped("stopped at a safe point: another process was asked to stop")

    @contextmanager
    def guarded(self, where: Callable[[], str]) -> Iterator[None]:
        """Turn the loss of another process into an error of ours.

        Args:
            where: what was going on, and how to go on.
        """
        try:
            yield
        except RuntimeError as error:
            if self.alone or not lost_connection(error):
                raise
            raise TrainingError(
                f"the connection to another of the {self.size} processes was lost: it ended, or "
                f"its machine or the network did; {where()}"
            ) from error

    def _own(self, batches: Iterable[Any], count: int) -> Iterator[tuple[Any, bool]]:
        """Parts and whether they are this rank's; of the others' just the first."""
        whole = count - count % self.size
        for number, batch in enumerate(batches):
            if number < whole:
                own = number % self.size == self.rank
                if own or not number:
                    yield batch, own
                continue
            parts = split_rows(batch, self.size)
            # Starting elsewhere each time, as rank 0 would get every batch of a single row.
            turn = (self.rank - number) % self.size
            own = turn < len(parts)
            if own or not number:
                yield parts[turn if own else 0], own

    def _keeping_step(self, mine: Iterable[tuple[Any, bool]], pieces: int) -> Iterator[Part]:
        found = list(mine)
        own = [piece for batch, own in found if own for piece in split_rows(batch, pieces)]
        most = int(self.largest(len(own)))
        spare = own[-1] if own else found[0][0]
        yield from (Part(batch, 1.0) for batch in own)
        yield from (Part(spare, 0.0) for _ in range(most - len(own)))

    def _from_first(
        self, value: mx.array | None, shape: Sequence[int], dtype: mx.Dtype
    ) -> mx.array:
        # Bytes: adding zeros to floats would turn -0 into 0.
        size = int(np.prod(shape)) * dtype.size
        sent = mx.zeros((size,), dtype=mx.uint8) if value is None else _bytes(value)
        whole = mx.distributed.all_sum(sent, group=self.group)
        whole = whole.view(dtype).reshape(shape)
        mx.eval(whole)
        return whole

    def _all_gather(self, values: np.ndarray) -> np.ndarray:
        gathered = mx.distributed.all_gather(mx.array(values)[None], group=self.group)
        mx.eval(gathered)
        return np.array(gathered)


ALONE = Ranks()


def join() -> Ranks:
    """The ranks that this process was started among, or itself alone.

    Raises:
        TrainingError: it was started as one of several, and MLX cannot reach the others.
    """
    if not any(name in os.environ for name in _LAUNCHED):
        return ALONE
    try:
        group = mx.distributed.init()
    except (RuntimeError, ValueError) as error:
        raise TrainingError(f"the other processes cannot be reached: {error}") from error
    if group.size() == 1 and os.environ.get("MLX_RANK", "0") != "0":
        raise TrainingError(
            f"this is process {os.environ['MLX_RANK']} of several, but MLX found no way to the "
            "others; start all of them with mlx.launch"
        )
    return ALONE if group.size() == 1 else Ranks(group)


def lost_connection(error: BaseException) -> bool:
    """Whether an error of MLX's says that another process is gone."""
    told = str(error).lower()
    return any(name in told for name in _BACKENDS) and "not supported" not in told


def average_whole(
    gradients: Any, apart: Callable[[str], bool], group: mx.distributed.Group | None
) -> Any:
    """Average gradients over the ranks, except those that are averaged already.

    Args:
        gradients: a tree.
        apart: says of a name that it is left as it is.
        group: the ranks.
    """
    flat: Arrays = dict(tree_flatten(gradients))
    whole = {name: value for name, value in flat.items() if not apart(name)}
    if whole:
        averaged = nn.average_gradients(tree_unflatten(list(whole.items())), group)
        flat |= dict(tree_flatten(averaged))
    return tree_unflatten(list(flat.items()))


def _bytes(value: mx.array) -> mx.array:
    return mx.contiguous(value).reshape(-1).view(mx.uint8)


def _type_name(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")
