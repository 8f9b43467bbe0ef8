"""Starts the processes of one machine and ends them together; torch's elastic agent, as in torchrun, does the work.

Not Lightning's own launcher: there the first process is a rank itself, and hears of another's death from its own broken
connection, or 5 s later and by SIGTERM, so that neither the dead one's message nor its exit status comes out.
"""

import logging
import os
import signal
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import fields
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from fmnist_lightning.errors import ProcessFailedError, ReportedError, UserError
from fmnist_lightning.ranks import SUPERVISED, launched

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

SECONDS_BETWEEN_LOOKS = 0.1
SECONDS_TO_SAVE = 600  # that processes have to end behind a validation at Ctrl-C; torch's default is 30
PROCESSES_A_CORE = 4  # at most; each takes about 1 GB
LOCALHOST = "127.0.0.1"


def launch(processes: int, *, cure: str, num_nodes: int = 1, extra: Sequence[str] = ()) -> None:
    """Run this command line, with `extra` behind it, in so many processes, and wait until all have ended well.

    Each finds its rank in the environment, and has its part of the cores. When one fails, the others are ended within
    seconds. Raises ProcessFailedError with the last words and the status of the one that failed first, and `cure` where
    it was killed; ReportedError at Ctrl-C and SIGTERM, which the processes get too; UserError where `num_nodes` is more
    than one and the environment does not say where the others are, or where there is no script, as in a notebook.
    """
    if not hasattr(sys.modules["__main__"], "__file__"):
        raise UserError("several processes run a script each: start one, such as scripts/train.py, not from a notebook")
    meeting = rendezvous(num_nodes)
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ[SUPERVISED] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    logging.disable(logging.ERROR)  # the agent's own account of what ProcessFailedError says
    known = {field.name for field in fields(LaunchConfig)}
    patience: dict[str, Any] = (
        {"shutdown_timeout": SECONDS_TO_SAVE} if "shutdown_timeout" in known else {}
    )  # torch 2.10 has it not
    with TemporaryDirectory(prefix="fmnist-processes-") as last_words:
        config = LaunchConfig(
            min_nodes=num_nodes,
            max_nodes=num_nodes,
            nproc_per_node=processes,
            max_restarts=0,
            monitor_interval=SECONDS_BETWEEN_LOOKS,
            logs_specs=DefaultLogsSpecs(log_dir=last_words),
            **patience,
            **meeting,
        )
        try:
            elastic_launch(config, sys.executable)(*sys.orig_argv[1:], *extra)
        except ChildFailedError as error:
            # The first of those that were found first: the dictionary is in the order of finding.
            rank, failure = min(error.failures.items(), key=lambda item: item[1].timestamp)
            raise process_failed(rank, processes * num_nodes, failure, cure) from error
        except SignalException as error:
            raise ReportedError(128 + int(error.sigval)) from error


def processes_to_launch(accelerator: str, devices: int | str, num_nodes: int, strategy: str) -> int:
    """How many processes this machine is to start; 0 where one is enough, or this is one that was started.

    Raises UserError where a CPU is asked for more than it can be meant to carry.
    """
    if launched():
        return 0
    count = count_devices(accelerator, devices)
    limit = PROCESSES_A_CORE * (os.cpu_count() or 1)
    if count > limit and accelerator in ("auto", "cpu"):
        raise UserError(f"--devices {devices} is more than {PROCESSES_A_CORE} processes a core: take {limit} at most")
    return count if strategy == "ddp" or count * num_nodes > 1 else 0


def count_devices(accelerator: str, devices: int | str) -> int:
    """How many devices an option means; 1 where this machine has no such device, as `resolve_devices` will say."""
    if str(devices).isdecimal():
        return int(devices)
    import lightning as L

    try:
        return int(L.Fabric(accelerator=accelerator, devices=devices).world_size)
    except (ValueError, RuntimeError, TypeError):
        return 1


def rendezvous(num_nodes: int, environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Where processes meet, as `LaunchConfig` takes it: on one machine, at a port that is free; on several, as told."""
    if num_nodes == 1:
        here = {"rdzv_backend": "c10d", "rdzv_endpoint": f"{LOCALHOST}:0", "local_addr": LOCALHOST}
        return {**here, "run_id": uuid.uuid4().hex}
    needed = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")
    if missing := [name for name in needed if not environment.get(name)]:
        raise UserError(
            f"--num_nodes {num_nodes} needs {', '.join(missing)} in the environment: the first node's address, a free "
            "port there, and this node's number from 0; or start by torchrun or srun (docs/scale.md)"
        )
    address, port, node_rank = (environment[name] for name in needed)
    return {
        "rdzv_backend": "static",
        "rdzv_endpoint": f"{address}:{port}",
        "rdzv_configs": {"rank": int(node_rank)},
        "run_id": "fmnist",
    }


def process_failed(rank: int, world_size: int, failure: "ProcessFailure", cure: str) -> ProcessFailedError:
    """What to say of the process that failed first."""
    name = f"process {rank + 1} of {world_size}"
    if failure.exitcode < 0:
        cause = signal.Signals(-failure.exitcode).name
        told = f"{name} was killed by {cause}, and the others were ended; {cure}"
        return ProcessFailedError(told, 128 - failure.exitcode)
    if said := failure.error_file_data.get("message"):
        return ProcessFailedError(f"{said} ({name})", failure.exitcode)
    return ProcessFailedError(
        f"{name} ended with status {failure.exitcode}; its own message stands above", failure.exitcode
    )
