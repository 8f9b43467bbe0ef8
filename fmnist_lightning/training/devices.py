"""Which device and which arithmetic a training uses, and how its memory is kept."""

import ctypes
import os
import platform
from collections.abc import Mapping
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException

from fmnist_lightning.errors import UserError
from fmnist_lightning.ranks import launched, started_by_srun
from fmnist_lightning.training.distributed import is_distributed

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
NEVER = 2**31 - 1


class Devices(NamedTuple):
    """Where a training or a test computes, and how."""

    fabric: L.Fabric  # not launched yet; one process of several where the options name several devices
    trainer: dict[str, Any]  # the Trainer's options that say where and how it computes

    @property
    def precision(self) -> Any:
        return self.trainer["precision"]


def resolve_devices(
    accelerator: str, devices: int | str, precision: str, num_nodes: int = 1, strategy: str = "auto"
) -> Devices:
    """Make ready for the devices that the options name, and find what precision and strategy mean there.

    Raises UserError where this machine has no such devices, or who started this process has started another number
    of them. Also turns TF32 off: cuDNN's convolutions use it by default, and 32-true would then mean 10 bits of 23.
    """
    asked = f"--accelerator {accelerator} --devices {devices} --precision {precision}"
    chosen: Any = "32-true" if precision == "auto" else precision
    plugins = srun_plugins()
    try:
        fabric = L.Fabric(
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            strategy=strategy,
            precision=chosen,
            plugins=plugins,
        )
    except (MisconfigurationException, ValueError, RuntimeError, TypeError) as error:
        cure = "use --accelerator auto, which takes what this machine has"
        raise UserError(f"{asked}: {error}; {cure}") from error
    place = launched()
    asked_for, started = fabric.world_size, place.world_size if place else 1
    if asked_for != started:
        raise UserError(
            f"{asked} --num_nodes {num_nodes} is {asked_for} processes, and {started} were started: give --devices and "
            "--num_nodes as torchrun or srun has them"
        )
    torch.backends.cudnn.allow_tf32 = False
    if fabric.device.type == "cpu":
        # `import lightning` sets it to 1. Adam, which asks at each step whether there is CUDA, then has the system look
        # for a driver's library each time: 0.14 ms a step (LOG.md, 2026-11-23).
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
    keep_freed_memory()
    trainer = {
        "accelerator": accelerator,
        "devices": devices,
        "num_nodes": num_nodes,
        "precision": fastest_precision(fabric.device) if precision == "auto" else precision,
        "strategy": "ddp" if is_distributed(fabric) else "auto",
        "plugins": plugins,
        "use_distributed_sampler": False,  # Lightning's repeats images; the shares of `Batches` don't
    }
    return Devices(fabric, trainer)


def srun_plugins() -> list[Any]:
    """SLURM's environment by name, where srun started this process; Lightning finds it in no job called `interactive`.

    Without its way of going on with a job that SLURM stops, which writes elsewhere than into the run folder: --resume
    does it. Raises UserError where the job's options are none that Lightning takes.
    """
    try:
        return [SLURMEnvironment(auto_requeue=False)] if started_by_srun() else []
    except RuntimeError as error:
        raise UserError(str(error)) from error


def fastest_precision(device: torch.device) -> str:
    """The precision in which the nets were measured to train fastest: bf16-mixed where a CPU gains by it.

    AMD's cores do by AVX-512's bf16 (docs/speed.md); Intel's, where they have it without AMX, as many a virtual machine
    shows them, take a third longer (LOG.md, 2026-11-25), and CPUs that emulate bf16 longer still (2026-11-23). GPUs
    stay at 32-true until they are measured.
    """
    capabilities = cpu_capabilities()
    by_avx512 = capabilities.get("avx512_bf16", False) and "Intel" not in capabilities.get("cpu_name", "")
    gains = by_avx512 or capabilities.get("amx_bf16", False)
    return "bf16-mixed" if device.type == "cpu" and gains else "32-true"


def has_bf16_products(device: torch.device) -> bool:
    """Whether a product of matrices in bf16 has instructions of its own there, and is not put together from others.

    Of accelerators that are not CUDA's it is taken for granted.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    by_cpu = ("avx512_bf16", "amx_bf16", "bf16")  # the last is ARM's
    return device.type != "cpu" or any(cpu_capabilities().get(name, False) for name in by_cpu)


def cpu_capabilities() -> Mapping[str, Any]:
    """Which instructions this CPU has, by torch's names; nothing with an older torch, which can't tell."""
    return getattr(torch.cpu, "get_capabilities", dict)()


def keep_freed_memory() -> None:
    """Tell glibc to keep what a training step frees for the next one, which needs just as much.

    Else it gives megabytes back to the system and takes them again at each step, as it happens to lie in memory: up to
    3,400 page faults a step and a third of the speed (LOG.md, 2026-11-23). The peak is the same. Other C libraries
    are left alone.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, NEVER)
        libc.mallopt(M_MMAP_THRESHOLD, NEVER)
