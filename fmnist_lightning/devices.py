"""Which device and which arithmetic a training uses, and how its memory is kept."""

import ctypes
import os
import platform
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from fmnist_lightning.errors import UserError

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
NEVER = 2**31 - 1


def resolve_devices(accelerator: str, devices: int | str, precision: str) -> Any:
    """Make ready for the device that the options name; return what `precision` means there, as a Trainer takes it.

    Raises UserError where this machine has no such device, or the options name more than one. Also turns TF32 off:
    cuDNN's convolutions use it by default, and 32-true would then mean 10 bits of 23.
    """
    asked = f"--accelerator {accelerator} --devices {devices} --precision {precision}"
    chosen: Any = "32-true" if precision == "auto" else precision
    try:
        fabric = L.Fabric(accelerator=accelerator, devices=devices, precision=chosen)
    except (MisconfigurationException, ValueError, RuntimeError, TypeError) as error:
        cure = "use --accelerator auto, which takes what this machine has"
        raise UserError(f"{asked}: {error}; {cure}") from error
    if fabric.world_size != 1:
        raise UserError(f"{asked} names {fabric.world_size} devices; this version trains on one, so use --devices 1")
    torch.backends.cudnn.allow_tf32 = False
    if fabric.device.type == "cpu":
        # `import lightning` sets it to 1. Adam, which asks at each step whether there is CUDA, then has the system look
        # for a driver's library each time: 0.14 ms a step (LOG.md, 2026-11-23).
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
    keep_freed_memory()
    return fastest_precision(fabric.device) if precision == "auto" else precision


def fastest_precision(device: torch.device) -> str:
    """The precision in which the seed net was measured to train fastest: bf16-mixed where a CPU computes in bf16.

    docs/speed.md has both. CPUs that emulate bf16 are slower in it (LOG.md, 2026-11-23); GPUs stay at 32-true until
    they are measured. Older torch can't tell what a CPU has.
    """
    capabilities: Mapping[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    has_bf16 = capabilities.get("avx512_bf16", False) or capabilities.get("amx_bf16", False)
    return "bf16-mixed" if device.type == "cpu" and has_bf16 else "32-true"


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
