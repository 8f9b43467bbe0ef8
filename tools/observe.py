"""Run a program to its end; return its printed lines with their times, its seconds and its peak memory."""

import re
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from fmnist_lightning.errors import UserError

ROOT = Path(__file__).parent.parent
PROGRAMS, SCRIPTS = ROOT / "benchmarks", ROOT / "scripts"


class Observation(NamedTuple):
    """A finished program: the lines that it printed, each with its time, and its totals."""

    lines: list[tuple[float, str]]  # seconds since its start
    seconds: float
    peak_mb: float  # resident memory at its highest


def observe(command: list[str]) -> Observation:
    """Run a program to its end. Raises UserError with its last line of errors if it fails."""
    lines = []
    with tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        with ThreadPoolExecutor(1) as watcher, process:
            peak = watcher.submit(peak_memory, process)
            for line in process.stdout or ():
                lines.append((time.perf_counter() - start, line))
            process.wait()
            seconds = time.perf_counter() - start
        if process.returncode:
            errors.seek(0)
            last_words = " ".join(errors.read().strip().splitlines()[-1:])
            raise UserError(f"{' '.join(command)} ended with status {process.returncode}: {last_words}")
    return Observation(lines, seconds, peak.result())


def peak_memory(process: subprocess.Popen[str]) -> float:
    """The highest resident memory of a program in MB, read from Linux's /proc while it runs; 0 on other systems.

    `wait4` reports it too, but counts the memory of the parent that the program was forked from.
    """
    status, peak = Path(f"/proc/{process.pid}/status"), 0
    while process.poll() is None:
        try:
            found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        except OSError:  # the program has just ended
            break
        peak = int(found[1]) if found else peak
        time.sleep(0.05)
    return peak / 1024
