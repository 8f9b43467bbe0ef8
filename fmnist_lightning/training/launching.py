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
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from fmnist_lightning.errors import SIGNALS, ProcessFailedError, ReportedError, UserError
from fmnist_lightning.ranks import SUPERVISED, launched

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

SECONDS_BETWEEN_LOOKS = 0.1
SECONDS_TO_SAVE = 600  # that processes have to end behind a validation at Ctrl-C; torch's default is 30
PROCESSES_A_CORE = 4  # at most; each takes about 1 GB
LOCALHOST = "127.0.0.1"


def launch(processes: int, *, num_nodes: int = 1, extra: Sequence[str] = ()) -> None:
    """Run this command line, with `extra` behind it, in so many processes, and wait until all have ended well.

    Each finds its rank in the environment, and has its part of the cores. When one fails, the others are ended within
    seconds. Raises ProcessFailedError with the last words and the status of the one that failed first; ReportedError at
    Ctrl-C and SIGTERM, which the processes get too; UserError where `num_nodes` is more than one and the environment
    does not say where the others are, or where there is no script to run, as in a notebook.
    """
    if not hasattr(sys.modules["__main__"], "__file__"):
        raise UserError("several processes run a script each: start one, such as scripts/train.py, not from a notebook")
    meeting = rendezvous(num_nodes)
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ[SUPERVISED] = str(os.getpid())
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // processes)))
    logging.disable(logging.ERROR)  # the agent's own account of what ProcessFailedError says
    wanted = {"shutdown_timeout": SECONDS_TO_SAVE, "signals_to_handle": "SIGTERM,SIGINT"}
    known = {field.name for field in fields(LaunchConfig)}  # torch 2.10 has not all of them
    answers: dict[str, Any] = {name: value for name, value in wanted.items() if name in known}
    before = {number: signal.getsignal(number) for number in SIGNALS}
    with TemporaryDirectory(prefix="fmnist-processes-") as last_words:
        config = LaunchConfig(
            min_nodes=num_nodes,
            max_nodes=num_nodes,
            nproc_per_node=processes,
            max_restarts=0,
            monitor_interval=SECONDS_BETWEEN_LOOKS,
            logs_specs=DefaultLogsSpecs(log_dir=last_words),
            **answers,
            **meeting,
        )
        try:
            elastic_launch(config, sys.executable)(*sys.orig_argv[1:], *extra)
        except ChildFailedError as error:
            # The first of those that were found first: the dictionary is in the order of finding.
            rank, failure = min(error.failures.items(), key=lambda item: item[1].timestamp)
            raise process_failed(rank, processes * num_nodes, failure) from error
        except SignalException as error:
            raise ReportedError(128 + int(error.sigval)) from error
        finally:
            for number, handler in before.items():  # the agent leaves its own
                signal.signal(number, handler)


def processes_to_launch(accelerator: str, devices: int | str, num_nodes: int, strategy: str) -> int:
    """How many processes this machine is to start; 0 where one is enough, or this is one that was started.

    Raises UserError where a CPU is asked for more than it can be meant to carry.
    """
    if launched():
        return 0
    count = count_devices(accelerator, devices)
    limit = PROCESSES_A_CORE * usable_cores()
    if count > limit and accelerator in ("auto", "cpu"):
        raise UserError(f"--devices {devices} is more than {PROCESSES_A_CORE} processes a core: take {limit} at most")
    return count if strategy == "ddp" or count * num_nodes > 1 else 0


def count_devices(accelerator: str, devices: int | str) -> int:
    """How many devices an option means; 1 where this machine has no such device, as `resolve_devices` will say."""
    if str(devices) == "1" or (accelerator == "cpu" and str(devices).isdecimal()):
        return int(devices)
    import lightning as L
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    try:
        return int(L.Fabric(accelerator=accelerator, devices=devices).world_size)
    except (MisconfigurationException, ValueError, RuntimeError, TypeError):
        return 1


def usable_cores() -> int:
    """The cores that this process may use, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
    if not (node_rank.isdecimal() and int(node_rank) < num_nodes):
        raise UserError(f"NODE_RANK is {node_rank}; expected this node's number, 0 to {num_nodes - 1}")
    return {
        "rdzv_backend": "static",
        "rdzv_endpoint": f"{address}:{port}",
        "rdzv_configs": {"rank": int(node_rank)},
        "run_id": "fmnist",
    }


def process_failed(rank: int, world_size: int, failure: "ProcessFailure") -> ProcessFailedError:
    """What to say of the process that failed first."""
    name, status = f"process {rank + 1} of {world_size}", failure.exitcode
    if status < 0 or status - 128 in SIGNALS:
        number = -status if status < 0 else status - 128
        end = f"was {'killed' if status < 0 else 'stopped'} by {signal.Signals(number).name}"
        return ProcessFailedError(f"{name} {end}, and the others were ended", 128 + number)
    if Path(failure.error_file).is_file():
        return ProcessFailedError(f"{failure.message} ({name})", status)
    return ProcessFailedError(f"{name} ended with status {status}; its own message stands above", status)
