"""Read the results of a tested run: metrics, predictions and learning curves."""

import contextlib
import csv
import json
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fmnist_lightning.data.sets import recorded_info
from fmnist_lightning.errors import UserError, full_path
from fmnist_lightning.metrics import METRIC_NAMES
from fmnist_lightning.runs.folders import (
    CONFIG,
    HISTORY,
    METRICS,
    PREDICTIONS,
    is_training,
    own_objects,
    testing_command,
)

CURVES = ("train/loss", "val/loss", "train/accuracy", "val/accuracy")
# The names in metrics.json that the report reads.
NEEDED = (
    *("dataset", "split", "n", *METRIC_NAMES, "checkpoint", "checkpoint_epoch", "model", "parameters", "seed"),
    *("epochs", "training_seconds", "batch_size", "arithmetic", "device", "versions", "git", "tested_with"),
)
# What damage to JSON, to CSV, to a zip archive and to the arrays in it raises.
DAMAGE = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, AttributeError),
    *(csv.Error, zipfile.BadZipFile, zlib.error, NotImplementedError),
)

Curves = dict[str, list[tuple[int, float]]]  # points (epoch, value) by name


class Predictions(NamedTuple):
    """Predictions for the test set, in file order."""

    probs: NDArray[np.float32]  # (n, classes)
    labels: NDArray[np.int64]  # (n,)


@contextlib.contextmanager
def explain_damage(path: Path, hint: str) -> Iterator[None]:
    """Raise UserError if the file is missing, damaged or was edited."""
    try:
        yield
    except DAMAGE as error:
        raise UserError(f"cannot use {path}: {getattr(error, 'strerror', None) or error} ({hint})") from error


def command_to_test(run: Path) -> str:
    """The command that tests a run; with own objects, the call in Python."""
    return testing_command(run, own_objects(run) if (run / CONFIG).exists() else [])


def read_metrics(run: Path) -> dict[str, Any]:
    """The content of metrics.json. Raises UserError if the run was not tested, or the file is damaged or was edited."""
    if not (run / METRICS).exists():
        hint = "it is still training: wait" if is_training(run) else f"test it: {command_to_test(run)}"
        raise UserError(f"cannot find {full_path(run / METRICS)}: the run was not tested ({hint})")
    return read_metrics_file(run / METRICS, NEEDED, f"test the run again: {command_to_test(run)}")


def read_metrics_file(path: Path, needed: Collection[str], hint: str) -> dict[str, Any]:
    """The content of a file like metrics.json, with all `needed` names.

    Raises UserError with this hint if it is missing, damaged or was edited.
    """
    with explain_damage(path, hint):
        metrics = json.loads(path.read_text(encoding="utf-8"))
        known = type(metrics["n"]) is int and metrics.keys() >= {*needed}
        published = recorded_info(metrics).published
        if not known or not all(0 <= metrics[name] <= 1 for name in METRIC_NAMES):
            raise ValueError("it does not hold the metrics of a test")
        if not all(0 <= value <= 100 for value in published.values()):
            raise ValueError("the published results of its data set are not percentages")
    return metrics


def read_predictions(run: Path, metrics: Mapping[str, Any]) -> Predictions:
    """The content of predictions.npz. No code in it can run.

    Raises UserError if it is missing, damaged or was edited. Also if its accuracy is not that of `metrics`, as after a
    kill between the two files.
    """
    path, count = run / PREDICTIONS, metrics["n"]
    with explain_damage(path, f"test the run again: {command_to_test(run)}"):
        # NumPy would not close a file that it can't read.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            probs, labels = arrays["probs"], arrays["labels"]
        found = (probs.dtype, probs.shape, labels.dtype, labels.shape)
        expected = (np.float32, (count, len(recorded_info(metrics).classes)), np.int64, (count,))
        if found != expected or not np.allclose(probs.sum(axis=1), 1, atol=1e-3):
            raise ValueError(f"it does not hold the probabilities and labels of {count:,} images")
        if round(metrics["accuracy"] * count) != (probs.argmax(axis=1) == labels).sum():
            raise ValueError(f"its accuracy is not the one in {METRICS}")
    return Predictions(probs, labels)


def read_curves(run: Path) -> Curves:
    """Those of CURVES that the metrics.csv of a run holds; none if it has no such file.

    Raises UserError if it is damaged.
    """
    path = run / HISTORY
    if not path.is_file():
        return {}
    hint = f"remove it for a report without curves: {command_to_test(run)}"
    with explain_damage(path, hint), path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        if "epoch" not in (rows.fieldnames or ()):
            raise ValueError("it has no column named epoch")
        read = list(rows)
        curves = {name: [(int(row["epoch"]), float(row[name])) for row in read if row.get(name)] for name in CURVES}
    return {name: points for name, points in curves.items() if points}
