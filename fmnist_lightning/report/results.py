"""Read the results of a tested run: metrics, predictions and learning curves."""

import contextlib
import json
import logging
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tensorboard.backend.event_processing.event_accumulator import IMAGES, SCALARS, EventAccumulator

from fmnist_lightning.data.sets import TITLES
from fmnist_lightning.data.sets.fashion_mnist import CLASSES
from fmnist_lightning.errors import UserError
from fmnist_lightning.metrics import METRIC_NAMES
from fmnist_lightning.runs.folders import METRICS, PREDICTIONS, testing_command

CURVES = ("train/loss", "val/loss", "train/accuracy", "val/accuracy")
# The names in metrics.json that the report reads.
NEEDED = (
    *("dataset", "split", "n", *METRIC_NAMES, "checkpoint", "checkpoint_epoch", "model", "parameters", "seed"),
    *("epochs", "training_seconds", "batch_size", "arithmetic", "device", "versions", "git", "tested_with"),
)
# What damage to JSON, to a zip archive and to the arrays in it raises.
DAMAGE = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, AttributeError),
    *(zipfile.BadZipFile, zlib.error, NotImplementedError),
)

Curves = dict[str, list[tuple[int, float]]]  # points (epoch, value) by name


class Predictions(NamedTuple):
    """Predictions for the test set, in file order."""

    probs: NDArray[np.float32]  # (n, 10)
    labels: NDArray[np.int64]  # (n,)


@contextlib.contextmanager
def explain_damage(path: Path, hint: str) -> Iterator[None]:
    """Raise UserError if the file is missing, damaged or was edited."""
    try:
        yield
    except DAMAGE as error:
        raise UserError(f"cannot use {path}: {error} ({hint})") from error


def read_metrics(run: Path) -> dict[str, Any]:
    """The content of metrics.json. Raises UserError if it is damaged or was edited."""
    return read_metrics_file(run / METRICS, NEEDED, f"test the run again: {testing_command(run)}")


def read_metrics_file(path: Path, needed: Collection[str], hint: str) -> dict[str, Any]:
    """The content of a file like metrics.json, with all `needed` names.

    Raises UserError with this hint if it is missing, damaged or was edited.
    """
    with explain_damage(path, hint):
        metrics = json.loads(path.read_text(encoding="utf-8"))
        known = type(metrics["n"]) is int and metrics["dataset"] in TITLES and metrics.keys() >= {*needed}
        if not known or not all(0 <= metrics[name] <= 1 for name in METRIC_NAMES):
            raise ValueError("it does not hold the metrics of a test")
    return metrics


def read_predictions(run: Path, metrics: Mapping[str, Any]) -> Predictions:
    """The content of predictions.npz. No code in it can run.

    Raises UserError if it is missing, damaged or was edited, or if its accuracy is not that of `metrics`, for example
    after a kill between the two files.
    """
    path, count = run / PREDICTIONS, metrics["n"]
    with explain_damage(path, f"test the run again: {testing_command(run)}"):
        # NumPy would not close a file that it can't read.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            probs, labels = arrays["probs"], arrays["labels"]
        found = (probs.dtype, probs.shape, labels.dtype, labels.shape)
        expected = (np.float32, (count, len(CLASSES)), np.int64, (count,))
        if found != expected or not np.allclose(probs.sum(axis=1), 1, atol=1e-3):
            raise ValueError(f"it does not hold the probabilities and labels of {count:,} images")
        if round(metrics["accuracy"] * count) != (probs.argmax(axis=1) == labels).sum():
            raise ValueError(f"its accuracy is not the one in {METRICS}")
    return Predictions(probs, labels)


def read_events(run: Path) -> EventAccumulator:
    """All scalars in the TensorBoard event files of a run."""
    # It warns about each resume, and about the graph that the test writes again.
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    return EventAccumulator(str(run), size_guidance={SCALARS: 0, IMAGES: 1}).Reload()


def read_curves(run: Path) -> Curves:
    """Those of CURVES that the TensorBoard event files of a run hold."""
    events = read_events(run)
    known = set(events.Tags()["scalars"])
    # The first value at a step counts: the test logs the next epoch at the last step.
    logged = reversed(events.Scalars("epoch")) if "epoch" in known else ()
    epochs = {point.step: int(point.value) + 1 for point in logged}
    curves = {
        name: [(epochs[point.step], point.value) for point in events.Scalars(name) if point.step in epochs]
        for name in CURVES
        if name in known
    }
    return {name: points for name, points in curves.items() if points}
