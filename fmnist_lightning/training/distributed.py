"""Several processes that train or test together: joined, told, gathered, agreed. In one process all of it does nothing.

Every function here is called by all processes, or by none.
"""

import contextlib
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import lightning as L
import torch
from torch import Tensor, distributed
from torchmetrics.utilities.distributed import gather_all_tensors

from fmnist_lightning.errors import Interrupted, ReportedError, UserError

T = TypeVar("T")

# How long a process whose connection broke waits to be ended, so that the dead one's message is the last word.
LINGER_SECONDS = 5.0
# Of gloo's messages, which come as plain RuntimeErrors.
LOST_CONNECTION = ("Connection closed by peer", "Connection reset by peer", "Socket closed", "Broken pipe", "gloo")


@contextlib.contextmanager
def joined(fabric: L.Fabric) -> Iterator[None]:
    """Meet the other processes of `fabric`. Only the first speaks on standard output.

    Raises UserError where the connection to another one is lost, a few seconds later: whoever started the processes
    ends this one meanwhile, and tells what the dead one said.
    """
    if not is_distributed(fabric):
        yield
        return
    try:
        fabric.launch()
        with silent(unless=fabric.is_global_zero):
            yield
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        try:
            time.sleep(LINGER_SECONDS)
        except Interrupted as end:
            raise ReportedError(end.exit_status) from error
        raise UserError(
            f"process {fabric.global_rank + 1} of {fabric.world_size} lost its connection to another one, whose own "
            f"message says why ({str(error).splitlines()[-1]}); what was saved before is whole"
        ) from error
    distributed.destroy_process_group()


def is_distributed(fabric: L.Fabric) -> bool:
    return hasattr(fabric.strategy, "cluster_environment")


def is_lost_connection(error: RuntimeError) -> bool:
    return isinstance(error, distributed.DistError) or any(text in str(error) for text in LOST_CONNECTION)


@contextlib.contextmanager
def silent(*, unless: bool) -> Iterator[None]:
    """Drop what this process prints and warns of, which another one prints and warns of too; errors end the block."""
    if unless:
        yield
        return
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


class Group(Protocol):
    """A Fabric or a Trainer's strategy."""

    @property
    def is_global_zero(self) -> bool: ...

    def broadcast(self, obj: Any) -> Any: ...


def told(group: Group, find: Callable[[], T]) -> T:
    """What `find` gives in the first process, in all of them."""
    found: T = group.broadcast(find() if group.is_global_zero else None)
    return found


def world_size() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def gather_rows(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor (n, ...) with the rows of all processes behind each other; n may differ between them."""
    if world_size() == 1:
        return list(tensors)
    return [torch.cat(gather_all_tensors(tensor.contiguous())) for tensor in tensors]


def gather_objects(value: T) -> list[T]:
    """The value of each process, by rank."""
    if world_size() == 1:
        return [value]
    values: list[T | None] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values  # type: ignore[return-value]


class Agreement:
    """What processes decide together behind a step, on the CPU: nobody waits for a GPU."""

    def __init__(self) -> None:
        self.group: Any = distributed.new_group(backend="gloo") if world_size() > 1 else None

    def largest(self, value: int) -> int:
        """The largest of all processes' values."""
        if self.group is None:
            return value
        shared = torch.tensor(value)
        distributed.all_reduce(shared, distributed.ReduceOp.MAX, group=self.group)
        return int(shared)
