"""Which rank this process is: the environment variables of torchrun and srun."""

import os
import signal
import sys
import time
from typing import NamedTuple

from fmnist_lightning.errors import UserError

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # names the file in which torch's elastic agent looks for a rank's error


def end_with_launcher(launcher: int) -> None:
    """Send this rank SIGTERM once its launcher, which else would do so, was killed."""
    while os.getppid() == launcher:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


class Launcher(NamedTuple):
    """A program that starts ranks, by the variables that it sets for each of them."""

    name: str
    mark: str  # set by this launcher alone
    world_size: str
    rank: str
    needed: tuple[str, ...]  # by a rank, too: numbers, except an address
    misleading: tuple[str, ...] = ()  # a process that another program started


# torchrun first, since it can run in a SLURM job. `launch`, in training/devices.py, sets the same variables. The script
# of a SLURM job is one process, whatever SLURM_NTASKS is; only srun sets the variables of a step.
LAUNCHERS = (
    Launcher(
        name="torchrun",
        mark="TORCHELASTIC_RUN_ID",
        world_size="WORLD_SIZE",
        rank="RANK",
        needed=("LOCAL_RANK", "MASTER_PORT", "MASTER_ADDR"),
        misleading=("LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "TORCHELASTIC_USE_AGENT_STORE", ERROR_FILE),
    ),
    Launcher(
        name="srun",
        mark="SLURM_STEP_NUM_TASKS",
        world_size="SLURM_STEP_NUM_TASKS",
        rank="SLURM_PROCID",
        needed=("SLURM_LOCALID", "SLURM_NODEID", "SLURM_NTASKS"),
    ),
)
WORLD_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "JSM_NAMESPACE_SIZE")


def launcher() -> Launcher | None:
    """The launcher that started this process as one of several ranks; None if it runs alone.

    Raises UserError if there is one, but its variables don't give this process's rank.
    """
    for one in LAUNCHERS:
        world_size = number(one.world_size)
        if one.mark not in os.environ or world_size is None:
            continue
        if world_size <= 1:
            return None
        for name in (one.rank, *one.needed):
            value = number(name)
            right = os.environ.get(name) if name == "MASTER_ADDR" else value is not None
            if not right or (name == one.rank and value is not None and value >= world_size):
                raise UserError(
                    f"cannot be one of {world_size} processes: {name} is {os.environ.get(name, 'not set') or 'empty'} "
                    f"(start all with {one.name}; to run alone, unset {one.mark})"
                )
        return one
    return None


def number(name: str) -> int | None:
    """The value of an environment variable, if it is an integer from 0."""
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else None


def forget_other_launchers() -> None:
    """Remove the variables of launchers that did not start this process, before Lightning is imported and reads them.

    With RANK=1, left by some other program, it would write neither epochs nor curves. Raises UserError as `launcher`
    does.
    """
    mine = launcher()
    claims = [name for name in WORLD_SIZES if (number(name) or 1) > 1]
    if claims and not mine:
        print(
            f"WARNING: {claims[0]} is {number(claims[0])}, but neither torchrun nor srun started this process: it runs "
            "alone (to use several, see docs/scale.md)",
            file=sys.stderr,
        )
    names = ["JSM_NAMESPACE_RANK"]  # of IBM's jsrun, which Lightning knows
    for one in LAUNCHERS:
        if one is not mine:
            names += [one.mark, one.world_size, one.rank, *one.misleading]
    for name in names:
        os.environ.pop(name, None)


def is_rank_zero() -> bool:
    """Whether this process is the only one, or the one of several that speaks for all."""
    one = launcher()
    return one is None or number(one.rank) == 0
