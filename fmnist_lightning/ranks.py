"""Which of several processes this one is, as its launcher says it. Imports nothing heavy: `--help` passes here."""

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

SUPERVISED = "FMNIST_SUPERVISED"  # by `launching.launch`, for the processes that it starts: its own number
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # where torch's agent looks for a failed process's last words
PR_SET_PDEATHSIG = 1  # of Linux's sys/prctl.h
# What srun tells each task that it starts. A job's script has SLURM_NTASKS too, and is none of them.
TASK = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")


class Rank(NamedTuple):
    """One process of `world_size`."""

    rank: int
    world_size: int
    local_rank: int  # on its own machine


def launched(environment: Mapping[str, str] = os.environ) -> Rank | None:
    """This process's rank, if torchrun, SLURM's srun or `launching.launch` started it beside others."""
    if "TORCHELASTIC_RUN_ID" in environment:
        return Rank(*(int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    if started_by_srun(environment):
        return Rank(*(int(environment[name]) for name in TASK))
    return None


def started_by_srun(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether srun started this process beside others; torchrun in a SLURM job has SLURM's variables too."""
    tasks = environment.get(TASK[1], "1")
    return "TORCHELASTIC_RUN_ID" not in environment and tasks != "1" and all(name in environment for name in TASK)


def is_first() -> bool:
    """Whether this process is the one that speaks for all."""
    place = launched()
    return place is None or place.rank == 0


def leave_last_words(message: str) -> bool:
    """Hand a failed process's message to whoever started it; return whether that one will print it."""
    if path := os.environ.get(ERROR_FILE):
        Path(path).write_text(json.dumps({"message": message, "timestamp": int(time.time())}), encoding="utf-8")
    return is_supervised()


def is_supervised() -> bool:
    """Whether this process is one that `launching.launch` started."""
    return SUPERVISED in os.environ and launched() is not None


def end_with_parent() -> None:
    """Have Linux send SIGTERM when whoever started this process is killed: what is begun is saved, nothing stays."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if is_supervised() and os.getppid() != int(os.environ[SUPERVISED]):  # it was killed before this
            os.kill(os.getpid(), signal.SIGTERM)
