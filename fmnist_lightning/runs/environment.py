"""The machine and the code that made a record."""

import contextlib
import os
import platform
import re
import subprocess
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

LIBRARIES = ("torch", "lightning", "torchmetrics", "numpy")
# What git status looks at: a recipe or picture of one's own, or a new record of a benchmark, changes no code.
CODE = (":/fmnist_lightning", ":/scripts", ":/tools", ":/benchmarks/*.py")
# git sets these for hooks; they would name the hook's repository instead of this one.
GIT_VARIABLES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")


def environment(device: torch.device) -> dict[str, Any]:
    """Device, versions and git state, as plain values."""
    versions = {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}
    return {"device": device_name(device), "versions": versions, "git": git_state()}


def now() -> str:
    """The local date and time, with its offset from UTC."""
    return datetime.now().astimezone().isoformat(" ", "seconds")


def device_name(device: torch.device) -> str:
    """The accelerator's name, or the processor's with the number of threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return str(device)
    return f"{processor_name()}, {torch.get_num_threads()} threads"


def processor_name() -> str:
    with contextlib.suppress(OSError):  # Linux alone has this file
        if found := re.search(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return found[1]
    return platform.processor() or platform.machine()


def git_state() -> dict[str, str | bool | None]:
    """Commit of the running code, and whether the checkout had uncommitted or untracked files among CODE.

    Both are None if no repository tracks this file: it may be installed inside another project's checkout.
    """
    here = Path(__file__)
    own = {name: value for name, value in os.environ.items() if name not in GIT_VARIABLES}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=own).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--", *CODE))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
