"""Kill trainings at random moments, resume them, and compare their ends bit for bit: python -m tools.torture --help"""

import hashlib
import json
import logging
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from jsonargparse.typing import PositiveInt
from tensorboard.backend.event_processing.event_accumulator import IMAGES as EVENT_IMAGES
from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

from fmnist_lightning.cli.main import main
from fmnist_lightning.cli.types import Dataset, default_data_dir, path_option
from fmnist_lightning.data.datamodule import FashionMNISTDataModule
from fmnist_lightning.data.sets import KNOWN, resolve_dataset
from fmnist_lightning.data.source import Part, Split
from fmnist_lightning.errors import UserError
from fmnist_lightning.metrics import METRIC_NAMES
from fmnist_lightning.runs.checkpoints import read_checkpoint
from fmnist_lightning.runs.environment import environment
from fmnist_lightning.runs.files import STAGED, write_text
from fmnist_lightning.runs.folders import CHECKPOINTS, CONFIG, LAST, METRICS, numbered_runs
from fmnist_lightning.runs.options import AugmentationOptions, DataOptions, TrainOptions, read_options, values_of
from fmnist_lightning.training.resume import RandomState
from fmnist_lightning.training.train import train
from tools.markdown import markdown, origin

IMAGES: dict[Part, int] = {"train": 2000, "test": 1000}  # of the training set and of the test set: a run takes seconds
EPOCHS = 4
SAVE_EVERY_MINUTES = 0.002
FSYNC_SECONDS = 0.03  # a slow disk, so that more kills meet a save
TIMED_BY_THE_CLOCK = "train/images_per_second"

Wait = Callable[[BaseProcess, Path], None]  # for the moment to kill a training in a folder


class Outcome(NamedTuple):
    """The end of a run that was killed."""

    kills: int
    half_written: int  # files that kills left
    unreadable: int  # checkpoints that a kill left
    equal: bool  # weights, optimizer, random state, metrics and curves equal those of the undisturbed run


class FewImages(FashionMNISTDataModule):
    def load(self, part: Part) -> Split:
        images, labels = super().load(part)
        return Split(images[: IMAGES[part]], labels[: IMAGES[part]])


def child(options: TrainOptions, output: Path, keep_random_state: bool) -> None:
    """Train as scripts/train.py does, in its own process, on few images, with one thread and a slow disk."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(descriptor, stream.fileno())
    torch.set_num_threads(1)
    fsync = os.fsync

    def slow_fsync(descriptor: int) -> None:
        time.sleep(FSYNC_SECONDS)
        fsync(descriptor)

    os.fsync = slow_fsync  # type: ignore[assignment]
    if not keep_random_state:
        RandomState.on_train_start = lambda *_: None  # type: ignore[method-assign]
    datamodule = FewImages(**values_of(options, DataOptions), **values_of(options, AugmentationOptions))
    train(options, datamodule=datamodule)


class Torture:
    """Starts trainings that differ only in their folder and in what is done to them."""

    def __init__(self, folder: Path, dataset: str, data_dir: str) -> None:
        self.folder = folder
        self.options = TrainOptions(
            dataset=cast(Any, dataset),
            data_dir=data_dir,
            val_fraction=0.25,
            max_epochs=EPOCHS,
            batch_size=50,
            schedule="one_cycle",
            accelerator="cpu",
            precision="32-true",
        )
        # Forks of a process that has imported all: a training starts in a tenth of a second.
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["fmnist_lightning.training.train"])

    def start(self, log_dir: Path, keep_random_state: bool = True) -> BaseProcess:
        """Start a run in `log_dir`, or resume the one in it."""
        log_dir.mkdir(parents=True, exist_ok=True)
        # Half of the runs save only at the ends of epochs.
        minutes = random.choice((None, SAVE_EVERY_MINUTES))  # noqa: S311
        options = replace(self.options, log_dir=str(log_dir), checkpoint_every_minutes=minutes)
        for begun in begun_runs(log_dir):
            options = replace(read_options(begun), resume=str(begun))
        process = self.context.Process(target=child, args=(options, log_dir / "output.txt", keep_random_state))
        process.start()
        return process

    def finish(self, log_dir: Path, keep_random_state: bool = True) -> dict[str, Any]:
        """Run or resume the training in `log_dir` to its end; return its result. Raises UserError if it fails."""
        process = self.start(log_dir, keep_random_state)
        process.join()
        if process.exitcode:
            raise UserError(f"a training failed with status {process.exitcode}: {log_dir / 'output.txt'}")
        [run] = begun_runs(log_dir)
        return result(run)

    def disturb(self, wanted: dict[str, Any], wait: Wait, name: str, kills: int) -> Outcome:
        """Start a run, kill it `kills` times, resume it each time, and compare its result."""
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


def begun_runs(log_dir: Path) -> list[Path]:
    return [run for run in numbered_runs(log_dir).values() if (run / CONFIG).is_file()]


def readable(path: Path) -> bool:
    try:
        read_checkpoint(path)
    except UserError:
        return False
    return True


def read_events(run: Path) -> EventAccumulator:
    """All scalars in the TensorBoard event files of a run."""
    # It warns about each resume, and about the graph that the test writes again.
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    return EventAccumulator(str(run), size_guidance={SCALARS: 0, EVENT_IMAGES: 1}).Reload()


def result(run: Path) -> dict[str, Any]:
    """The result of a run without its times: a digest of all tensors, the five metrics, all curves."""
    last = read_checkpoint(run / CHECKPOINTS / LAST)
    digest = hashlib.sha256()
    # With a moving average of the weights, state_dict is the average, and the trained weights are stored next to it.
    kept = ("state_dict", "current_model_state", "optimizer_states", "random_states")
    for tensor in tensors([last.get(name) for name in kept]):
        digest.update(tensor.numpy().tobytes())
    events = read_events(run)
    names = set(events.Tags()["scalars"]) - {TIMED_BY_THE_CLOCK}
    metrics = json.loads((run / METRICS).read_text())
    return {
        "tensors": digest.hexdigest(),
        "metrics": {name: metrics[name] for name in METRIC_NAMES},
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


def at_any_time(seconds: float, process: BaseProcess, _log_dir: Path) -> None:
    """Wait for a random moment of a run that takes `seconds`."""
    process.join(random.uniform(0, seconds))  # noqa: S311


def while_saving(process: BaseProcess, log_dir: Path) -> None:
    """Wait until one of the checkpoints, chosen at random, is being written, and then a few milliseconds."""
    saves_to_wait_for = random.randint(1, 6)  # noqa: S311
    staged = f"*/{CHECKPOINTS}/.*{STAGED}"
    before = set(log_dir.glob(staged))
    seen: set[Path] = set()
    while process.is_alive() and len(seen) < saves_to_wait_for:
        seen |= set(log_dir.glob(staged)) - before
        time.sleep(0.001)
    process.join(random.uniform(0, 2 * FSYNC_SECONDS))  # noqa: S311


def torture_table(record: dict[str, Any]) -> str:
    """The record as a Markdown table, with the control below it."""
    names = ("killed", "runs", *Outcome._fields)
    header = ("killed with -9", "runs", "kills", "half-written files left", "unreadable checkpoints", "ended equal")
    table = markdown([header, *([row[name] for name in names] for row in record["rows"])])
    differs = record["differs_without_random_state"]
    control = "ends differently" if differs else "ENDS EQUAL, so this table proves nothing"
    return f"{table}\n\nThe negative control, which drops the random state, {control}. {origin(record)}."


@dataclass(frozen=True, kw_only=True)
class TortureOptions:
    """Start trainings, kill -9 each up to three times, resume it to its end, and compare it with an undisturbed one."""

    runs: PositiveInt = 100
    """Number of trainings; half of them are killed at any time, half while they write a checkpoint."""
    dataset: Dataset = "auto"
    """fashion_mnist; drawn; auto, the first of the two that is available. A few thousand of its images are used."""
    data_dir: str = path_option(default_factory=default_data_dir)
    """Folder of the data."""
    output: str = path_option("benchmarks/torture.json")
    """File of the record."""


def torture(options: TortureOptions) -> None:
    """Kill trainings, half of them while they save; write the record, print its table."""
    dataset, rows = resolve_dataset(options.dataset, Path(options.data_dir)), []
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(os.cpu_count()) as pool:
        folder = Path(temporary)
        trainings = Torture(folder, dataset, options.data_dir)
        trainings.finish(folder / "warming-up")
        start = time.monotonic()
        wanted = trainings.finish(folder / "undisturbed")
        seconds, half = time.monotonic() - start, options.runs // 2
        kinds: list[tuple[str, Wait, int]] = [("at any time", partial(at_any_time, seconds), half)]
        kinds.append(("while a checkpoint is written", while_saving, options.runs - half))
        for kind, wait, runs in kinds:
            names = [f"{kind}-{number}" for number in range(runs)]
            counts = [random.randint(1, 3) for _ in names]  # noqa: S311
            outcomes = list(pool.map(partial(trainings.disturb, wanted, wait), names, counts))
            sums = {name: sum(getattr(one, name) for one in outcomes) for name in Outcome._fields}
            rows.append({"killed": kind, "runs": runs, **sums})
            print(rows[-1], flush=True)
        differs = trainings.differs_without_random_state(wanted, seconds)
    record = {"rows": rows, "undisturbed_seconds": seconds, "differs_without_random_state": differs}
    record |= {"dataset": KNOWN[dataset].title, **environment(torch.device("cpu"))}
    write_text(Path(options.output), json.dumps(record, indent=2) + "\n")
    print(torture_table(record))


if __name__ == "__main__":
    sys.exit(main(TortureOptions, torture))
