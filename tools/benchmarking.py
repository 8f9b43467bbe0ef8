"""The speed of training beside its peers: whole programs, one at a time and in turn, timed by the lines they print."""

import contextlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from torch import Tensor

from fmnist_lightning.data.drawn import load_drawn
from fmnist_lightning.data.fashion_mnist import TORCHVISION_FOLDER, load_split
from fmnist_lightning.data.sources import TITLES
from fmnist_lightning.errors import UserError
from fmnist_lightning.runs.environment import environment
from fmnist_lightning.runs.files import write_text
from fmnist_lightning.training.devices import fastest_precision

ROOT = Path(__file__).parent.parent
PROGRAMS, SCRIPTS = ROOT / "benchmarks", ROOT / "scripts"
EPOCH_LINE = re.compile(r"\bepoch \d+/\d+")
TRAIN_SECONDS = re.compile(r"\btrain_seconds ([\d.]+)")
PAIR = re.compile(r"\bpair bare ([\d.]+) trainer ([\d.]+)")
PRECISIONS = ("32-true", "bf16-mixed")


class Observation(NamedTuple):
    """What a program did: the lines that it printed, each with its time, and what it took in all."""

    lines: list[tuple[float, str]]  # seconds since its start
    seconds: float
    peak_mb: float  # resident memory at its highest


def observe(command: list[str]) -> Observation:
    """Run a program to its end. Raises UserError, with its last words, where it fails."""
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
    """The highest resident memory of a program, in MB, as Linux tells it while it runs; 0 elsewhere.

    `wait4` tells it too, but counts the memory of the parent that the program was forked from.
    """
    status, peak = Path(f"/proc/{process.pid}/status"), 0
    while process.poll() is None:
        try:
            found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        except OSError:  # it has just ended
            break
        peak = int(found[1]) if found else peak
        time.sleep(0.05)
    return peak / 1024


def figures(observation: Observation) -> dict[str, list[float]]:
    """Seconds between one epoch's line and the next, so without the first epoch, in which everything warms up.

    `train` is the part that the program itself says was training, where it does.
    """
    spoken = [(at, line) for at, line in observation.lines if EPOCH_LINE.search(line)]
    if len(spoken) < 2:
        raise ValueError(f"{len(spoken)} lines of epochs; at least two are needed, since the first warms up")
    parts = [TRAIN_SECONDS.search(line) for _, line in spoken[1:]]
    return {
        "epoch": [later - earlier for (earlier, _), (later, _) in pairwise(spoken)],
        "train": [float(part[1]) for part in parts if part],
        "peak_mb": [observation.peak_mb],
    }


def peers(keras_python: str | None, data: str, dataset: str, log_dir: Path, accelerator: str) -> dict[str, list[str]]:
    """The command of each program by its name. `data` holds the files in torchvision's layout, unpacked."""
    python, epochs = sys.executable, "2"
    ours = [python, str(SCRIPTS / "train.py"), "--accelerator", accelerator, "--max_epochs", epochs]
    ours += ["--dataset", dataset, "--data_dir", data, "--log_dir", str(log_dir), "--test", "false"]
    data_dir = data if dataset == "fashion_mnist" else dataset

    def program(name: str, *arguments: str, python: str = python) -> list[str]:
        return [python, str(PROGRAMS / f"{name}.py"), *arguments]

    commands = {}
    if keras_python:
        for name, tuning in (("keras", "tuning"), ("keras untuned", "no-tuning")):
            commands[name] = program("keras_tensorflow", data, epochs, tuning, python=keras_python)
    commands["idiomatic"] = program("idiomatic_lightning", data, epochs, accelerator)
    for precision in PRECISIONS:
        commands[f"ours {precision}"] = [*ours, "--precision", precision]
        commands[f"bare {precision}"] = program("bare_loop", data_dir, epochs, accelerator, precision)
        commands[f"floor {precision}"] = program("floor", epochs, accelerator, precision)
    return commands


def measure_speed(commands: dict[str, list[str]], rounds: int) -> list[dict[str, dict[str, list[float]]]]:
    """All programs once a round, so that a machine whose speed drifts slows all alike."""
    measured: list[dict[str, dict[str, list[float]]]] = []
    for number in range(rounds):
        measured.append({})
        for name, command in commands.items():
            measured[-1][name] = figures(observe(command))
            seconds = statistics.median(measured[-1][name]["epoch"])
            print(f"round {number + 1}/{rounds}  {name:<18} {seconds:6.2f} s an epoch", flush=True)
    return measured


def measure_trainer(
    dataset: str, data_dir: str, log_dir: Path, epochs: int, accelerator: str
) -> dict[str, list[dict[str, float]]]:
    """Seconds of the same epochs by the bare loop and by the Trainer, in each precision; the first epoch warms up."""
    pairs: dict[str, list[dict[str, float]]] = {}
    for precision in PRECISIONS:
        command = [sys.executable, str(PROGRAMS / "trainer_cost.py"), dataset, data_dir, str(log_dir)]
        seen = observe([*command, str(epochs + 1), accelerator, precision])
        found = [match for _, line in seen.lines if (match := PAIR.search(line))]
        pairs[precision] = [{"bare": float(match[1]), "trainer": float(match[2])} for match in found[1:]]
    return pairs


def measure_startup(dataset: str, data_dir: str, log_dir: Path, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds and peak memory of `--help`, of imports, of imports and data, of a first step, and of the test loop.

    The test loop tests a run that is in `log_dir` already.
    """
    startup = [sys.executable, str(PROGRAMS / "startup.py")]
    folders = {"imports": log_dir, "data": log_dir, "step": log_dir / "step", "test": log_dir}
    commands = {
        "help": [sys.executable, str(SCRIPTS / "train.py"), "--help"],
        **{until: [*startup, until, dataset, data_dir, str(folder)] for until, folder in folders.items()},
    }
    measured: dict[str, dict[str, list[float]]] = {name: {"seconds": [], "peak_mb": []} for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            seen = observe(command)
            measured[name]["seconds"].append(seen.seconds)
            measured[name]["peak_mb"].append(seen.peak_mb)
    return measured


def measure_growth(dataset: str, data_dir: str, log_dir: Path) -> list[dict[str, float]]:
    """Seconds for each 54,000 images, and peak memory, with more data and with other batch sizes."""
    cases = [(copies, 128) for copies in (1, 2, 4, 8)] + [(1, 2**power) for power in range(5, 12) if power != 7]
    rows = []
    for copies, batch_size in cases:
        command = [sys.executable, str(PROGRAMS / "growth.py"), str(copies), str(batch_size)]
        seen = observe([*command, dataset, data_dir, str(log_dir), "2"])
        seconds = statistics.median(figures(seen)["epoch"]) / copies
        rows.append({"copies": copies, "batch_size": batch_size, "seconds": seconds, "peak_mb": seen.peak_mb})
        print(f"{copies} x data, batch size {batch_size}: {seconds:.2f} s, {seen.peak_mb:.0f} MB", flush=True)
    return rows


def write_layout(folder: Path, dataset: str, data_dir: str) -> None:
    """Write the data as unpacked IDX files where torchvision looks for them, for all programs to read alike."""
    raw = folder / TORCHVISION_FOLDER
    raw.mkdir(parents=True)
    for prefix, train in (("train", True), ("t10k", False)):
        images, labels = load_drawn(train=train) if dataset == "drawn" else load_split(Path(data_dir), train=train)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(idx_bytes(images.squeeze(1)))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(idx_bytes(labels.to(torch.uint8)))


def idx_bytes(values: Tensor) -> bytes:
    """What `parse_idx` reads."""
    return bytes([0, 0, 8, values.dim()]) + np.array(values.shape, ">i4").tobytes() + values.numpy().tobytes()


@contextlib.contextmanager
def data_and_logs(dataset: str, data_dir: str) -> Iterator[tuple[str, Path]]:
    """A folder with the data as all programs read it, and one for runs; both are gone at the end."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        write_layout(data, dataset, data_dir)
        yield str(data), Path(folder, "logs")


def record_speed(
    path: Path, dataset: str, data_dir: str, rounds: int, accelerator: str, keras_python: str | None
) -> dict[str, Any]:
    """Measure all programs, write the record, return it."""
    with data_and_logs(dataset, data_dir) as (data, log_dir):
        measured = {"rounds": measure_speed(peers(keras_python, data, dataset, log_dir, accelerator), rounds)}
    return write_record(path, measured, dataset, accelerator, keras_python)


def record_trainer(path: Path, dataset: str, data_dir: str, rounds: int, accelerator: str) -> dict[str, Any]:
    """Measure the Trainer beside the bare loop, write the record, return it."""
    with data_and_logs(dataset, data_dir) as (data, log_dir):
        measured = {"pairs": measure_trainer(dataset, data, log_dir, rounds, accelerator)}
    return write_record(path, measured, dataset, accelerator, None)


def record_startup(path: Path, dataset: str, data_dir: str, rounds: int) -> dict[str, Any]:
    """Measure the start-up and the test loop of a run of one epoch, write the record, return it."""
    with data_and_logs(dataset, data_dir) as (data, log_dir):
        options = ["--dataset", dataset, "--data_dir", data, "--log_dir", str(log_dir)]
        observe([sys.executable, str(SCRIPTS / "train.py"), *options, "--max_epochs", "1", "--test", "false"])
        measured = {"startup": measure_startup(dataset, data, log_dir, rounds)}
    return write_record(path, measured, dataset, "cpu", None)


def record_growth(path: Path, dataset: str, data_dir: str) -> dict[str, Any]:
    """Measure more data and other batch sizes, write the record, return it."""
    with data_and_logs(dataset, data_dir) as (data, log_dir):
        measured = {
            "growth": measure_growth(dataset, data, log_dir),
            "precision": fastest_precision(torch.device("cpu")),
        }
    return write_record(path, measured, dataset, "cpu", None)


def write_record(
    path: Path, measured: dict[str, Any], dataset: str, accelerator: str, keras_python: str | None
) -> dict[str, Any]:
    device = L.Fabric(accelerator=accelerator, devices=1).device
    record = {**measured, "dataset": TITLES[dataset], **environment(device)}
    if keras_python:
        command = [
            keras_python,
            "-c",
            "from importlib.metadata import version as v; print(v('keras'), v('tensorflow-cpu'))",
        ]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        record["versions"] |= dict(zip(("keras", "tensorflow"), told, strict=True))
    write_text(path, json.dumps(record, indent=2) + "\n")
    return record
