"""Processes for tests: ranks as torchrun or srun would start them, and programs as people start them."""

import contextlib
import logging
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import draw_few, leave_undrawn, own_signals, run_command
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from torch.distributed.elastic.rendezvous.utils import _PeriodicTimer

ROOT = Path(__file__).parent.parent
SECONDS = 120  # until a test gives up
LIMITS = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

# Forks of a process that has imported everything: a rank starts in a tenth of a second.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["several", "fmnist_lightning.training.train"])


def torchrun_environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """The variables that torchrun sets for a rank on one machine."""
    numbers = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": rank, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "t", **{name: str(numbers[name]) for name in numbers}}


def slurm_environment(rank: int, world_size: int, port: int, nodes: int = 1) -> dict[str, str]:
    """The variables that SLURM's srun sets for a task, in an interactive job, which Lightning would overlook."""
    tasks = world_size // nodes
    numbers = {"SLURM_PROCID": rank, "SLURM_NODEID": rank // tasks, "SLURM_LOCALID": rank % tasks, "MASTER_PORT": port}
    numbers |= {"SLURM_NTASKS": world_size, "SLURM_STEP_NUM_TASKS": world_size, "SLURM_NTASKS_PER_NODE": tasks}
    names = {"SLURM_JOB_NAME": "interactive", "MASTER_ADDR": "127.0.0.1"}
    return {**names, **{name: str(numbers[name]) for name in numbers}}


def rank_main(
    environment: dict[str, str], output: Path, command: Callable[..., Any], arguments: Sequence[object], before: Any
) -> None:
    """One rank: `command` as its script runs it, on few drawn images, without plots. It prints to `output`."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.environ.update(environment)
    torch.set_num_threads(1)
    patch = pytest.MonkeyPatch()
    draw_few(patch)
    leave_undrawn(patch)
    if before:
        before()
    sys.exit(run_command(patch, command, *arguments))


def start_rank(
    output: Path,
    command: Callable[..., Any],
    arguments: Sequence[object],
    environment: dict[str, str] | None = None,
    before: Callable[[], None] | None = None,
) -> BaseProcess:
    """Start `rank_main` in a process, which first calls `before`, a function of a test's module."""
    process = CONTEXT.Process(target=rank_main, args=(environment or {}, output, command, arguments, before))
    process.start()
    return process


def run_ranks(
    folder: Path,
    command: Callable[..., Any],
    arguments: Sequence[object],
    *,
    world_size: int,
    launcher: Callable[[int, int, int], dict[str, str]] = torchrun_environment,
    before: Callable[[], None] | None = None,
) -> tuple[list[int | None], list[str]]:
    """Exit statuses and outputs of `world_size` ranks, by rank. Those that don't end in time are killed."""
    folder.mkdir(parents=True, exist_ok=True)
    port = find_free_network_port()
    outputs = [folder / f"rank_{rank}.txt" for rank in range(world_size)]
    ranks = [
        start_rank(output, command, arguments, launcher(rank, world_size, port), before)
        for rank, output in enumerate(outputs)
    ]
    deadline = time.monotonic() + SECONDS
    for one in ranks:
        one.join(max(0.0, deadline - time.monotonic()))
        one.kill()
        one.join()
    return [one.exitcode for one in ranks], [output.read_text() for output in outputs]


@contextlib.contextmanager
def started(*words: object) -> Iterator[subprocess.Popen[str]]:
    """A program, killed at the end, which ends its ranks too."""
    command = [str(word) for word in words]
    environment = {**os.environ, **LIMITS, "PYTHONPATH": str(ROOT)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def as_script(*arguments: object) -> Iterator[None]:
    """Play tests/launched.py, so that `launch` starts it, and undo what `launch` leaves behind."""
    command = [sys.executable, str(ROOT / "tests" / "launched.py"), *map(str, arguments)]
    with pytest.MonkeyPatch.context() as patch, own_signals():
        patch.setattr(sys, "orig_argv", command)
        patch.setattr("__main__.__file__", __file__, raising=False)  # pytest-xdist's processes have none
        for name, value in LIMITS.items():
            patch.setenv(name, value)
        # After a signal the agent leaves a thread that may fail to join itself at any later time.
        patch.setattr(_PeriodicTimer, "_stop_thread", staticmethod(lambda _, stop: stop.set()))
        for name in ("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "TORCHELASTIC_SIGNALS_TO_HANDLE"):
            patch.setenv(name, "")
            patch.delenv(name)
        yield
    logging.disable(logging.NOTSET)


def wait_for(happened: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """The first true result of `happened`. Fails if there is none in time."""
    deadline = time.monotonic() + seconds
    while not (answer := happened()):
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)
    return answer
