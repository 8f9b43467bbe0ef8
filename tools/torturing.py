"""Trainings that are killed at random moments and go on, held to one that nobody disturbed, bit for bit."""

import hashlib
import json
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fmnist_lightning.data import datamodule
from fmnist_lightning.data.fashion_mnist import Split
from fmnist_lightning.data.sources import TITLES
from fmnist_lightning.errors import UserError
from fmnist_lightning.metrics import METRIC_NAMES
from fmnist_lightning.report.findings import read_events
from fmnist_lightning.runs.checkpoints import read_checkpoint
from fmnist_lightning.runs.environment import environment
from fmnist_lightning.runs.files import STAGED, write_text
from fmnist_lightning.runs.folders import CHECKPOINTS, CONFIG, LAST, METRICS, numbered_runs, read_config
from fmnist_lightning.training.resume import RandomState
from fmnist_lightning.training.train import train
from tools.speed_tables import origin

IMAGES = {True: 2000, False: 1000}  # of the training set and of the test set, so that a run takes seconds
EPOCHS = 4
SAVE_EVERY_MINUTES = 0.002
FSYNC_SECONDS = 0.03  # a slow disk, so that more kills meet a save
TIMED_BY_THE_CLOCK = "train/images_per_second"

Wait = Callable[[BaseProcess, Path], None]  # for the moment to kill a training in a folder


class Outcome(NamedTuple):
    """What a run that was disturbed came to."""

    kills: int
    half_written: int  # files that kills left behind
    unreadable: int  # checkpoints that a kill left so
    equal: bool  # weights, optimiser, random state, figures and curves are those of the undisturbed run


class FewImages(datamodule.FashionMNISTDataModule):
    def load(self, *, train: bool) -> Split:
        images, labels = super().load(train=train)
        return Split(images[: IMAGES[train]], labels[: IMAGES[train]])


def child(options: dict[str, Any], output: Path, *, keep_random_state: bool) -> None:
    """A training as scripts/train.py does it, in a process of its own, on few images, one thread and a slow disk."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(descriptor, stream.fileno())
    torch.set_num_threads(1)
    datamodule.FashionMNISTDataModule = FewImages  # type: ignore[misc]
    fsync = os.fsync

    def slow_fsync(descriptor: int) -> None:
        time.sleep(FSYNC_SECONDS)
        fsync(descriptor)

    os.fsync = slow_fsync  # type: ignore[assignment]
    if not keep_random_state:
        RandomState.on_train_start = lambda *_: None  # type: ignore[method-assign]
    train(**options)


class Torture:
    """Starts trainings that differ in nothing but their folder and what is done to them."""

    def __init__(self, folder: Path, dataset: str, data_dir: str) -> None:
        self.folder = folder
        self.options = {
            "dataset": dataset,
            "data_dir": data_dir,
            "val_fraction": 0.25,
            "max_epochs": EPOCHS,
            "batch_size": 50,
            "schedule": "one_cycle",
            "accelerator": "cpu",
            "precision": "32-true",
        }
        # Forks of a process that has imported all: a training starts in a tenth of a second.
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload([__name__])

    def start(self, log_dir: Path, *, keep_random_state: bool = True) -> BaseProcess:
        """Start a run in `log_dir`, or go on with the one in it."""
        log_dir.mkdir(parents=True, exist_ok=True)
        # Half of the runs have no save but those at the ends of epochs.
        minutes = random.choice((None, SAVE_EVERY_MINUTES))  # noqa: S311
        options = {**self.options, "log_dir": str(log_dir), "checkpoint_every_minutes": minutes}
        begun = [run for run in numbered_runs(log_dir).values() if (run / CONFIG).is_file()]
        if begun:
            options = {**read_config(begun[0]), "resume": str(begun[0])}
        arguments = {"keep_random_state": keep_random_state}
        process = self.context.Process(target=child, args=(options, log_dir / "output.txt"), kwargs=arguments)
        process.start()
        return process

    def finish(self, log_dir: Path, **how: bool) -> dict[str, Any]:
        """Let the run in `log_dir` go on to its end; what it ended with. Raises UserError where it fails."""
        process = self.start(log_dir, **how)
        process.join()
        if process.exitcode:
            raise UserError(f"a training failed with status {process.exitcode}: {log_dir / 'output.txt'}")
        [run] = [run for run in numbered_runs(log_dir).values() if (run / CONFIG).is_file()]
        return result(run)

    def undisturbed(self) -> tuple[dict[str, Any], float]:
        """What a run ends with that nobody kills, and its seconds."""
        self.finish(self.folder / "warming-up")
        start = time.monotonic()
        ended = self.finish(self.folder / "undisturbed")
        return ended, time.monotonic() - start

    def disturb(self, wanted: dict[str, Any], wait: Wait, name: str, kills: int) -> Outcome:
        """Start a run, kill it so many times, let it go on each time, compare what it ends with."""
        log_dir, killed, unreadable = self.folder / name, 0, 0
        half_written: set[Path] = set()
        for _ in range(kills):
            process = self.start(log_dir)
            wait(process, log_dir)
            if process.is_alive():
                process.kill()
                killed += 1
            process.join()
            folders = [run / CHECKPOINTS for run in numbered_runs(log_dir).values()]
            half_written |= {path for folder in folders for path in folder.glob(f".*{STAGED}")}
            unreadable += sum(not readable(path) for folder in folders for path in folder.glob("*.ckpt"))
        return Outcome(killed, len(half_written), unreadable, self.finish(log_dir) == wanted)

    def differs_without_random_state(self, wanted: dict[str, Any], seconds: float) -> bool:
        """The negative control: the same kill, but dropout's random numbers start anew."""
        log_dir = self.folder / "control"
        process = self.start(log_dir)
        while process.is_alive() and not list(log_dir.rglob(LAST)):
            time.sleep(0.01)
        time.sleep(seconds / 10)
        process.kill()
        process.join()
        return self.finish(log_dir, keep_random_state=False) != wanted


def readable(path: Path) -> bool:
    try:
        read_checkpoint(path)
    except UserError:
        return False
    return True


def result(run: Path) -> dict[str, Any]:
    """What a run ended with, but for times: a digest of all tensors, the five figures, all curves."""
    last = read_checkpoint(run / CHECKPOINTS / LAST)
    digest = hashlib.sha256()
    # With an average of the weights, that is the state_dict, and the trained ones stand beside it.
    kept = ("state_dict", "current_model_state", "optimizer_states", "random_states")
    for tensor in tensors([last.get(name) for name in kept]):
        digest.update(tensor.numpy().tobytes())
    events = read_events(run)
    names = set(events.Tags()["scalars"]) - {TIMED_BY_THE_CLOCK}
    metrics = json.loads((run / METRICS).read_text())
    return {
        "tensors": digest.hexdigest(),
        "figures": {name: metrics[name] for name in METRIC_NAMES},
        "curves": {name: [(event.step, event.value) for event in events.Scalars(name)] for name in sorted(names)},
        "steps": last["global_step"],
        "epochs": metrics["epochs"],
    }


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested lists and dictionaries, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from tensors(part)


def at_any_time(seconds: float) -> Wait:
    """Wait for a random moment of a run that takes so many seconds."""

    def wait(process: BaseProcess, _log_dir: Path) -> None:
        process.join(random.uniform(0, seconds))  # noqa: S311

    return wait


def while_saving(process: BaseProcess, log_dir: Path) -> None:
    """Wait until one of the checkpoints, chosen at random, is being written, and a few milliseconds more."""
    saves_to_wait_for = random.randint(1, 6)  # noqa: S311
    staged = f"*/{CHECKPOINTS}/.*{STAGED}"
    before = set(log_dir.glob(staged))
    seen: set[Path] = set()
    while process.is_alive() and len(seen) < saves_to_wait_for:
        seen |= set(log_dir.glob(staged)) - before
        time.sleep(0.001)
    process.join(random.uniform(0, 2 * FSYNC_SECONDS))  # noqa: S311


def record_torture(path: Path, dataset: str, data_dir: str, runs: int, folder: Path) -> dict[str, Any]:
    """Disturb so many runs, half of them while they save; write the record, return it."""
    torture = Torture(folder, dataset, data_dir)
    wanted, seconds = torture.undisturbed()
    kinds = {"at any time": at_any_time(seconds), "while a checkpoint is written": while_saving}
    rows = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for kind, wait, share in zip(kinds, kinds.values(), (runs // 2, runs - runs // 2), strict=True):
            names = [f"{kind}-{number}" for number in range(share)]
            counts = [random.randint(1, 3) for _ in names]  # noqa: S311
            outcomes = list(pool.map(partial(torture.disturb, wanted, wait), names, counts))
            rows.append({"killed": kind, **summed(outcomes)})
            print(rows[-1], flush=True)
    record = {
        "rows": rows,
        "undisturbed_seconds": seconds,
        "differs_without_random_state": torture.differs_without_random_state(wanted, seconds),
        "dataset": TITLES[dataset],
        **environment(torch.device("cpu")),
    }
    write_text(path, json.dumps(record, indent=2) + "\n")
    return record


def summed(outcomes: list[Outcome]) -> dict[str, int]:
    return {"runs": len(outcomes), **{name: sum(getattr(one, name) for one in outcomes) for name in Outcome._fields}}


def torture_table(record: dict[str, Any]) -> str:
    """The record as a Markdown table, and the control below it."""
    lines = [
        "| killed with -9 | runs | kills | half-written files left | unreadable checkpoints | ended equal |",
        "|---|---|---|---|---|---|",
    ]
    names = ("runs", *Outcome._fields)
    lines += [f"| {row['killed']} | " + " | ".join(str(row[name]) for name in names) + " |" for row in record["rows"]]
    control = "ends otherwise" if record["differs_without_random_state"] else "ENDS EQUAL, so this table shows nothing"
    return "\n".join([*lines, "", f"The control, which forgets the random state, {control}. {origin(record)}."])
