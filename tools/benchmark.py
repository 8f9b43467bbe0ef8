"""Time whole trainings next to their peers, one program at a time: python -m tools.benchmark --help"""

import json
import re
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from jsonargparse.typing import PositiveInt
from torch import Tensor

from fmnist_lightning.cli.main import main
from fmnist_lightning.cli.types import Accelerator, Dataset, default_data_dir, path_option
from fmnist_lightning.data.sets import KNOWN, find_source, resolve_dataset
from fmnist_lightning.data.sets.fashion_mnist import RAW_FOLDER
from fmnist_lightning.runs.environment import environment
from fmnist_lightning.runs.files import write_text
from fmnist_lightning.runs.options import SourceOptions
from fmnist_lightning.training.devices import fastest_precision
from tools.observe import PROGRAMS, SCRIPTS, Observation, observe
from tools.scaling import measure_scaling, scaling_table
from tools.speed_tables import growth_table, speed_table, startup_table, trainer_table

EPOCH_LINE = re.compile(r"\bepoch \d+/\d+")
TRAIN_SECONDS = re.compile(r"\btrain_seconds ([\d.]+)")
PAIR = re.compile(r"\bpair bare ([\d.]+) trainer ([\d.]+)")
PRECISIONS = ("32-true", "bf16-mixed")


def epoch_seconds(observation: Observation) -> dict[str, list[float]]:
    """Seconds between the lines of consecutive epochs, so without the first epoch, which warms up.

    `train` is the part of them that the program itself says was training, if it does.
    """
    printed = [(at, line) for at, line in observation.lines if EPOCH_LINE.search(line)]
    if len(printed) < 2:
        raise ValueError(f"{len(printed)} lines of epochs; at least two are needed, since the first warms up")
    parts = [TRAIN_SECONDS.search(line) for _, line in printed[1:]]
    return {
        "epoch": [later - earlier for (earlier, _), (later, _) in pairwise(printed)],
        "train": [float(part[1]) for part in parts if part],
        "peak_mb": [observation.peak_mb],
    }


def program(name: str) -> str:
    """The path of a program in benchmarks/."""
    return str(PROGRAMS / f"{name}.py")


def peers(keras_python: str | None, data: str, dataset: str, log_dir: Path, accelerator: str) -> dict[str, list[str]]:
    """The command of each program by its name. `data` holds the files in torchvision's layout, unpacked."""
    python, epochs = sys.executable, "2"
    ours = [python, str(SCRIPTS / "train.py"), "--accelerator", accelerator, "--max_epochs", epochs]
    ours += ["--dataset", dataset, "--data_dir", data, "--log_dir", str(log_dir), "--test", "false"]
    data_dir = data if dataset == "fashion_mnist" else dataset

    commands: dict[str, list[str]] = {}
    if keras_python:
        keras = [keras_python, program("keras_tensorflow"), data, epochs]
        commands |= {"keras": [*keras, "tuning"], "keras untuned": [*keras, "no-tuning"]}
    commands["idiomatic"] = [python, program("idiomatic_lightning"), data, epochs, accelerator]
    for precision in PRECISIONS:
        commands[f"ours {precision}"] = [*ours, "--precision", precision]
        commands[f"bare {precision}"] = [python, program("bare_loop"), data_dir, epochs, accelerator, precision]
        commands[f"floor {precision}"] = [python, program("floor"), epochs, accelerator, precision]
    return commands


def measure_speed(commands: dict[str, list[str]], rounds: int) -> list[dict[str, dict[str, list[float]]]]:
    """Run all programs once per round, so that a machine whose speed drifts slows all of them alike."""
    measured: list[dict[str, dict[str, list[float]]]] = []
    for number in range(rounds):
        measured.append({})
        for name, command in commands.items():
            measured[-1][name] = epoch_seconds(observe(command))
            seconds = statistics.median(measured[-1][name]["epoch"])
            print(f"round {number + 1}/{rounds}  {name:<18} {seconds:6.2f} s per epoch", flush=True)
    return measured


def measure_trainer(
    dataset: str, data_dir: str, log_dir: Path, epochs: int, accelerator: str
) -> dict[str, list[dict[str, float]]]:
    """Seconds of the same epochs by the bare loop and by the Trainer, in each precision; the first epoch warms up."""
    pairs: dict[str, list[dict[str, float]]] = {}
    for precision in PRECISIONS:
        command = [sys.executable, program("trainer_cost"), dataset, data_dir, str(log_dir)]
        seen = observe([*command, str(epochs + 1), accelerator, precision])
        found = [match for _, line in seen.lines if (match := PAIR.search(line))]
        pairs[precision] = [{"bare": float(match[1]), "trainer": float(match[2])} for match in found[1:]]
    return pairs


def measure_startup(dataset: str, data_dir: str, log_dir: Path, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds and peak memory of `--help`, of imports, of imports and data, of a first step, and of the test loop.

    The test loop tests a run of one epoch.
    """
    options = ["--dataset", dataset, "--data_dir", data_dir, "--log_dir", str(log_dir)]
    observe([sys.executable, str(SCRIPTS / "train.py"), *options, "--max_epochs", "1", "--test", "false"])
    startup = [sys.executable, program("startup")]
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
    """Seconds per 54,000 images and peak memory, with more data and with other batch sizes."""
    cases = [(copies, 128) for copies in (1, 2, 4, 8)] + [(1, 2**power) for power in range(5, 12) if power != 7]
    rows = []
    for copies, batch_size in cases:
        command = [sys.executable, program("growth"), str(copies), str(batch_size)]
        seen = observe([*command, dataset, data_dir, str(log_dir), "2"])
        seconds = statistics.median(epoch_seconds(seen)["epoch"]) / copies
        rows.append({"copies": copies, "batch_size": batch_size, "seconds": seconds, "peak_mb": seen.peak_mb})
        print(f"{copies} x data, batch size {batch_size}: {seconds:.2f} s, {seen.peak_mb:.0f} MB", flush=True)
    return rows


def write_layout(folder: Path, dataset: str, data_dir: str) -> None:
    """Write the data as unpacked IDX files in torchvision's layout, which every program reads."""
    raw = folder / RAW_FOLDER
    raw.mkdir(parents=True)
    source = find_source(SourceOptions(dataset=dataset, data_dir=data_dir))
    for prefix, train in (("train", True), ("t10k", False)):
        images, labels = source.load("train" if train else "test")
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(idx_bytes(images.squeeze(1)))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(idx_bytes(labels.to(torch.uint8)))


def idx_bytes(values: Tensor) -> bytes:
    """What `idx.read_tensor` reads."""
    return bytes([0, 0, 8, values.dim()]) + np.array(values.shape, ">i4").tobytes() + values.numpy().tobytes()


def write_record(
    path: Path, measured: dict[str, Any], dataset: str, accelerator: str, keras_python: str | None
) -> dict[str, Any]:
    device = L.Fabric(accelerator=accelerator, devices=1).device
    record = {**measured, "dataset": KNOWN[dataset].title, **environment(device)}
    if keras_python:
        code = "from importlib.metadata import version as v; print(v('keras'), v('tensorflow-cpu'))"
        printed = subprocess.run([keras_python, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        record["versions"] |= dict(zip(("keras", "tensorflow"), printed, strict=True))
    write_text(path, json.dumps(record, indent=2) + "\n")
    return record


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """Time whole trainings in turn: this project, Keras, tutorial Lightning, a bare loop, the convolutions alone."""

    rounds: PositiveInt = 3
    """How often each is measured; for trainer, the number of epochs."""
    part: Literal["speed", "trainer", "startup", "growth", "scaling"] = "speed"
    """speed, next to the peers; trainer, the Trainer next to a bare loop, in turns; startup, up to the first step;
    growth, with more data and other batch sizes; scaling, with more processes."""
    dataset: Dataset = "auto"
    """fashion_mnist; drawn; auto, the first of the two that is available."""
    data_dir: str = path_option(default_factory=default_data_dir)
    """Folder of the data."""
    accelerator: Accelerator = "cpu"
    """Where to compute. Keras computes on the CPU in any case."""
    keras_python: str | None = path_option(None)
    """A Python that has keras and tensorflow-cpu. Without it Keras is left out; `make bench` makes one."""
    output: str = path_option("benchmarks")
    """Folder of the records, one JSON file per part."""


def benchmark(options: BenchmarkOptions) -> None:
    """Measure a part, write its record, print its table."""
    dataset = resolve_dataset(options.dataset, Path(options.data_dir))
    rounds, accelerator, keras_python = options.rounds, options.accelerator, options.keras_python
    measured: dict[str, Any]
    with tempfile.TemporaryDirectory() as folder:
        data, log_dir = str(Path(folder, "data")), Path(folder, "logs")
        write_layout(Path(data), dataset, options.data_dir)
        if options.part == "growth":
            rows = measure_growth(dataset, data, log_dir)
            measured, table = {"growth": rows, "precision": fastest_precision(torch.device("cpu"))}, growth_table
        elif options.part == "scaling":
            measured, table = measure_scaling(dataset, data), scaling_table
        elif options.part == "trainer":
            measured, table = {"pairs": measure_trainer(dataset, data, log_dir, rounds, accelerator)}, trainer_table
        elif options.part == "startup":
            measured, table = {"startup": measure_startup(dataset, data, log_dir, rounds)}, startup_table
        else:
            commands = peers(keras_python, data, dataset, log_dir, accelerator)
            measured, table = {"rounds": measure_speed(commands, rounds)}, speed_table
    keras_python = keras_python if options.part == "speed" else None
    record = write_record(Path(options.output, f"{options.part}.json"), measured, dataset, accelerator, keras_python)
    print(table(record))


if __name__ == "__main__":
    sys.exit(main(BenchmarkOptions, benchmark))
