"""Which devices a training or test runs on, in which precision and in how many processes, and how these cooperate.

Each device has a process, called a rank. torch's elastic agent, as in torchrun, starts the ranks of one machine.
Lightning's launcher would end with status 0 after SIGTERM, and would blame the wrong rank for a failure. torchrun or
SLURM's srun can start the ranks too, and must if there are several machines.
"""

import contextlib
import ctypes
import logging
import os
import platform
import signal
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any, NamedTuple, TypeVar

import lightning as L
import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.strategies import Strategy
from torch import distributed
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from fmnist_lightning.cli.launchers import launcher
from fmnist_lightning.cli.shell import command
from fmnist_lightning.errors import SIGNALS, UserError

T = TypeVar("T")

LOCALHOST = "127.0.0.1"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
NEVER = 2**31 - 1
PROCESSES_PER_CORE = 4  # at most, on CPUs: each process takes about 1 GB
SECONDS_TO_SAVE = 600  # for a validation and a checkpoint after Ctrl-C; torch's default is 30
# A rank that lost its connection waits this long for the agent to end it, so that the agent reports the rank that died.
LINGER_SECONDS = 5.0
SECONDS_TO_MEET = 300  # for all ranks to start; an import of torch over a slow network takes minutes
SECONDS_OF_SILENCE = 5
POLL_SECONDS = 0.1
PROXY_SECONDS = 0.2
STORE_SECONDS = 5
MEETING = "fmnist-ranks"  # begins the store's keys
# In messages of gloo, which raises plain RuntimeErrors.
LOST_CONNECTION = ("Connection closed by peer", "Connection reset by peer", "Socket closed", "Broken pipe", "gloo")


class Devices(NamedTuple):
    """Where a training or test runs."""

    fabric: L.Fabric  # not launched yet
    trainer: dict[str, Any]  # the same as arguments of the Trainer
    to_launch: int  # ranks to start with `launch`; 0 if this process is enough, or is one already

    @property
    def precision(self) -> Any:
        return self.trainer["precision"]


def resolve_devices(
    accelerator: str, devices: int | str, precision: str, num_nodes: int = 1, strategy: str = "auto"
) -> Devices:
    """Find what the options mean on this machine.

    Turns TF32 off: cuDNN's convolutions use it by default, with 10 bits of mantissa where 32-true promises 23. Raises
    UserError if this machine has no such devices, or another number of processes was started.
    """
    asked = f"--accelerator {accelerator} --devices {devices} --num_nodes {num_nodes} --precision {precision}"
    environment = cluster_environment()
    if not environment:
        # At its import, Lightning may have read the rank of some other program.
        rank_zero_only.rank = 0  # type: ignore[attr-defined]
    # LightningEnvironment, the default elsewhere, also in a SLURM job: there Lightning would answer SIGUSR1 with a
    # checkpoint of its own, and queue the job again.
    plugins: list[Any] = [environment or LightningEnvironment()]
    # On a CPU, Lightning would take bf16-mixed for 16-mixed, and warn; it is refused below.
    chosen: Any = "32-true" if precision in ("auto", "16-mixed") else precision
    where: Any = {"accelerator": accelerator, "devices": devices, "num_nodes": num_nodes}
    try:
        fabric = L.Fabric(**where, strategy=strategy, precision=chosen, plugins=plugins)
    except (MisconfigurationException, ValueError, RuntimeError, TypeError) as error:
        raise UserError(f"cannot use {asked}: {explained(str(error))}") from error
    if precision == "16-mixed" and fabric.device.type == "cpu":
        raise UserError(f"cannot use {asked}: on CPUs, Lightning does not train in float16 (use bf16-mixed)")
    processes = getattr(fabric.strategy, "num_processes", 1)
    if environment and environment.world_size() != processes * num_nodes:
        started = f"{'srun' if isinstance(environment, SLURMEnvironment) else 'torchrun'} started"
        expected = f"--devices times --num_nodes must be {environment.world_size()}"
        raise UserError(f"cannot use {asked}: {started} {environment.world_size()} processes ({expected})")
    if not environment and num_nodes > 1:
        raise UserError(f"cannot use {asked}: other machines are not reached from here (use torchrun, docs/scale.md)")
    if not environment and fabric.device.type == "cpu" and processes > PROCESSES_PER_CORE * usable_cores():
        raise UserError(f"cannot use {asked}: this machine has {usable_cores()} cores (use fewer --devices)")
    torch.backends.cudnn.allow_tf32 = False
    if fabric.device.type == "cpu":
        # `import lightning` sets it to 1. Adam, which asks at each step for CUDA, then looks for a driver (0.14 ms).
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
    keep_freed_memory()
    trainer = {
        **where,
        "precision": fastest_precision(fabric.device) if precision == "auto" else precision,
        "strategy": "ddp" if is_distributed(fabric) else "auto",
        "plugins": plugins,
        "use_distributed_sampler": False,  # `Batches` makes the shards; Lightning's sampler would repeat images
    }
    return Devices(fabric, trainer, to_launch=0 if environment or processes == 1 else processes)


def explained(message: str) -> str:
    """Why Lightning can't use devices, and a hint, from its message, which names its own classes and arguments."""
    if "CPUAccelerator" in message:
        return "CPUs have no ids (give a number of processes, such as --devices 2)"
    if "not available" in message or "backend found" in message:
        return "torch finds no such device on this machine (use --accelerator auto)"
    return f"{message} (use --accelerator auto)"


def cluster_environment() -> ClusterEnvironment | None:
    """This process's rank and world size, if torchrun, `launch` or SLURM's srun started it as one of several.

    Lightning overlooks srun in a job that is named interactive or bash.
    """
    started_by = launcher()
    if started_by is None:
        return None
    if started_by.name == "torchrun":
        return TorchElasticEnvironment()
    try:
        return SLURMEnvironment(auto_requeue=False)
    except RuntimeError as error:
        raise UserError(f"cannot use this SLURM job: {error}") from error


def usable_cores() -> int:
    """The cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_memory() -> None:
    """Let glibc keep the memory that a training step frees for the next step, which needs as much.

    Otherwise it returns megabytes to the system and takes them again at some steps: 370,000 to 625,000 page faults in
    three epochs instead of 165,000, and a bare loop in 32 bits takes 9% longer (LOG.md, 2026-11-30).
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, NEVER)
        libc.mallopt(M_MMAP_THRESHOLD, NEVER)


def fastest_precision(device: torch.device) -> str:
    """The precision in which the models train fastest, as far as this was measured; else 32-true.

    On CPUs bf16-mixed pays with AMD's AVX-512 bf16 (docs/speed.md) and with Intel's AMX. With Intel's AVX-512 bf16
    alone a step takes a third longer (LOG.md, 2026-11-25). GPUs were not measured.
    """
    capabilities = cpu_capabilities()
    by_avx512 = capabilities.get("avx512_bf16", False) and "Intel" not in capabilities.get("cpu_name", "")
    pays = by_avx512 or capabilities.get("amx_bf16", False)
    return "bf16-mixed" if device.type == "cpu" and pays else "32-true"


def has_bf16_products(device: torch.device) -> bool:
    """Whether the device has instructions for bf16 matrix products; assumed of accelerators other than CUDA."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    names = ("avx512_bf16", "amx_bf16", "bf16")  # the last is ARM's
    return device.type != "cpu" or any(cpu_capabilities().get(name, False) for name in names)


def cpu_capabilities() -> dict[str, Any]:
    """The CPU's instruction sets under torch's names; empty in a torch that does not list them."""
    return dict(getattr(torch.cpu, "get_capabilities", dict)())


def launch(processes: int, *, hint: str = "", extra: Sequence[str] = ()) -> None:
    """Run this command line, with `extra` appended, in so many ranks, and wait for them.

    The ranks share the cores. If one fails, the agent ends the others. Raises UserError with the message and status of
    the one that failed first, plus `hint` if a signal ended it, and in a notebook, which has no script to run. Raises
    SystemExit with 130 or 143 after Ctrl-C or SIGTERM, which the ranks receive too.
    """
    if not hasattr(sys.modules["__main__"], "__file__"):
        raise UserError(f"cannot start processes from a notebook: each runs a script (use {command('train')})")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // processes)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SECONDS_TO_SAVE))
    logging.disable(logging.ERROR)  # the agent would log the error raised below
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    with TemporaryDirectory(prefix="fmnist-ranks-") as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint=f"{LOCALHOST}:0",  # any free port
            local_addr=LOCALHOST,
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            signals_to_handle=",".join(number.name for number in SIGNALS),  # torch adds SIGHUP, which nohup ignores
        )
        try:
            elastic_launch(config, sys.executable)(*sys.orig_argv[1:], *extra)
        except ChildFailedError as error:
            raise process_failed(*error.get_first_failure(), processes, hint) from error
        except SignalException as error:
            raise SystemExit(128 + error.sigval) from error  # rank 0 has said what it saved
        finally:
            for number, handler in handlers.items():  # the agent leaves its own
                signal.signal(number, handler)


def process_failed(rank: int, failure: ProcessFailure, world_size: int, hint: str) -> UserError:
    """The error of the rank that failed first, with the status that a shell would give it."""
    name, status = f"rank {rank} of {world_size}", failure.exitcode
    number = -status if status < 0 else status - 128
    if number in signal.valid_signals():
        ended = f"{name} was ended by {signal.Signals(number).name}, and then the others"
        return UserError(f"{ended} ({hint})" if hint else ended, 128 + number)
    if Path(failure.error_file).is_file():
        return UserError(f"{failure.message} ({name})", status)
    return UserError(f"{name} ended with status {status}; its message is above", status)


@contextlib.contextmanager
def process_group(fabric: L.Fabric) -> Iterator[None]:
    """Connect the ranks of `fabric`, if there are several. Only rank 0 prints and warns.

    Raises UserError if a rank is missing, or the connection is lost, unless the agent ends this rank within
    LINGER_SECONDS.
    """
    environment = cluster_environment()
    if not environment or not is_distributed(fabric):
        yield
        return
    store = wait_for_ranks(environment)  # noqa: F841 (the others use it until they are connected)
    try:
        fabric.launch()
        with contextlib.nullcontext() if fabric.is_global_zero else silence():
            yield
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and not any(text in str(error) for text in LOST_CONNECTION):
            raise
        time.sleep(LINGER_SECONDS)
        name, reason = f"rank {fabric.global_rank} of {fabric.world_size}", str(error).splitlines()[-1]
        raise UserError(f"{name} lost its connection to another rank: {reason} (see that rank's message)") from error
    distributed.destroy_process_group()


def wait_for_ranks(environment: ClusterEnvironment) -> TCPStore:
    """Wait until all ranks have come to the address of rank 0; return the connection.

    torch would wait in C++, for half an hour, in silence, without an answer to Ctrl-C or SIGTERM. Raises UserError if
    the address is wrong, or a rank does not come within SECONDS_TO_MEET.
    """
    rank, world_size = environment.global_rank(), environment.world_size()
    host, port = rendezvous_address(environment)
    stores = [hosted_store(port)] if rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" else []
    connecting = Thread()
    began, announced = time.monotonic(), environment.local_rank() > 0
    while missing := missing_ranks(stores, rank, world_size):
        names = f"rank{'s' * (len(missing) > 1)} {', '.join(map(str, missing[:8]))}{' and more' * (len(missing) > 8)}"
        waited = time.monotonic() - began
        if waited > SECONDS_TO_MEET:
            raise UserError(
                f"cannot start rank {rank} of {world_size}: {names} did not come to {host}:{port} within "
                f"{SECONDS_TO_MEET} seconds (start all processes, or check MASTER_ADDR and MASTER_PORT)"
            )
        if waited > SECONDS_OF_SILENCE and not announced:
            announced = True
            what = f"rank {rank} of {world_size} waits for {names} at {host}:{port}"
            print(f"{what}, at most {SECONDS_TO_MEET} seconds", file=sys.stderr, flush=True)
        time.sleep(POLL_SECONDS)
        if not stores and not connecting.is_alive() and is_listened_to(host, port):
            connecting = Thread(target=connect, args=(host, port, stores), daemon=True)
            connecting.start()
    return stores[0]


def rendezvous_address(environment: ClusterEnvironment) -> tuple[str, int]:
    """Where rank 0 listens. Raises UserError if there is no such address."""
    try:
        host, port = environment.main_address, environment.main_port
        if not 0 < port < 2**16:
            raise ValueError(f"the port {port} is not from 1 to 65535")
    except ValueError as error:
        raise UserError(f"cannot find rank 0: {error} (set MASTER_PORT to a free port)") from error
    try:
        socket.getaddrinfo(host, port)
    except (OSError, UnicodeError) as error:  # the latter for a name that no host can have
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot find rank 0 at {host}:{port}: {reason} (set MASTER_ADDR to its host)") from error
    return host, port


def hosted_store(port: int) -> TCPStore:
    """The store of rank 0, whose port torch's own store will use, too. Raises UserError if the port is in use."""
    try:
        return TCPStore(LOCALHOST, port, is_master=True, wait_for_workers=False, multi_tenant=True)
    except distributed.DistNetworkError as error:
        reason = str(error).rpartition("message: ")[2]
        raise UserError(f"cannot listen on port {port}: {reason} (set another MASTER_PORT)") from error


def is_listened_to(host: str, port: int) -> bool:
    """Whether something listens there that may be rank 0. torch would print a warning at each try before it does.

    In some networks a web proxy answers for each address.
    """
    try:
        connection = socket.create_connection((host, port), timeout=1)
    except OSError:
        return False
    with connection:
        connection.settimeout(PROXY_SECONDS)
        try:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return connection.recv(4) != b"HTTP"
        except OSError:  # torch's store says nothing
            return True


def connect(host: str, port: int, stores: list[TCPStore]) -> None:
    """Append rank 0's store. This waits forever, without an answer to Ctrl-C, if another program listens there."""
    with contextlib.suppress(distributed.DistError):
        timeout = timedelta(seconds=STORE_SECONDS)
        stores.append(TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timeout))


def missing_ranks(stores: list[TCPStore], rank: int, world_size: int) -> list[int]:
    """The ranks that have not come to the store yet."""
    with contextlib.suppress(distributed.DistError):  # raised if it is that of an earlier training, which closes
        for store in stores:
            store.set(f"{MEETING}/{rank}", "")
            return [one for one in range(world_size) if not store.check([f"{MEETING}/{one}"])]
    stores.clear()
    return [0]


def is_distributed(fabric: L.Fabric) -> bool:
    return hasattr(fabric.strategy, "cluster_environment")


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Drop what this process prints; Python prints warnings too."""
    nowhere = Path(os.devnull).open("w")  # noqa: SIM115
    with nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


def broadcast(group: L.Fabric | Strategy, fn: Callable[[], T]) -> T:
    """Call `fn` on rank 0 and return its result on every rank."""
    result: Any = fn() if group.is_global_zero else None
    return group.broadcast(result)
