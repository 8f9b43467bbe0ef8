"""Which of several processes this one is, as its launcher says it. Imports nothing heavy: `--help` passes here."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

SUPERVISED = "FMNIST_SUPERVISED"  # set by `launching.launch` for the processes that it starts
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # where torch's agent looks for a failed process's last words
# Of a SLURM job that is a shell, whose own process `srun` did not start; Lightning has the same list.
SHELLS = ("bash", "interactive")


class Rank(NamedTuple):
    """One process of `world_size`."""

    rank: int
    world_size: int
    local_rank: int  # on its own machine


def launched(environment: Mapping[str, str] = os.environ) -> Rank | None:
    """This process's rank, if torchrun, SLURM's srun or `launching.launch` started it beside others."""
    if "TORCHELASTIC_RUN_ID" in environment:
        return Rank(*(int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    if int(environment.get("SLURM_NTASKS", "1")) > 1 and environment.get("SLURM_JOB_NAME") not in SHELLS:
        return Rank(*(int(environment[f"SLURM_{name}"]) for name in ("PROCID", "NTASKS", "LOCALID")))
    return None


def is_first() -> bool:
    """Whether this process is the one that speaks for all."""
    place = launched()
    return place is None or place.rank == 0


def leave_last_words(message: str) -> bool:
    """Hand a failed process's message to whoever started it; return whether that one will print it."""
    if path := os.environ.get(ERROR_FILE):
        Path(path).write_text(json.dumps({"message": message, "timestamp": int(time.time())}), encoding="utf-8")
    return SUPERVISED in os.environ and launched() is not None
