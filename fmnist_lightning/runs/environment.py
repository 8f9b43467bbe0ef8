"""What a record says of the machine and the code that made it."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

# By which a hook names its repository to all that it starts.
ANOTHER_REPOSITORY = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
LIBRARIES = ("torch", "lightning", "torchmetrics", "numpy")


def device_name(device: torch.device) -> str:
    """The accelerator's name, or the processor's with the number of threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return str(device)
    return f"{processor_name()}, {torch.get_num_threads()} threads"


def processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def environment(device: torch.device) -> dict[str, Any]:
    """Device, versions and git state, as plain values."""
    return {"device": device_name(device), "versions": versions(), "git": git_state()}


def git_state() -> dict[str, str | bool | None]:
    """Commit of the code that runs, and whether there were uncommitted or untracked files.

    None outside a checkout, also where an environment with this package lies in another project's.
    """
    here = Path(__file__)
    own = {name: value for name, value in os.environ.items() if name not in ANOTHER_REPOSITORY}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=own).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
