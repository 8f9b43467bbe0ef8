"""What a tested run folder holds, read back and checked: metrics, predictions, learning curves."""

import json
import logging
import zipfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tensorboard.backend.event_processing.event_accumulator import IMAGES, SCALARS, EventAccumulator

from fmnist_lightning.data.fashion_mnist import CLASSES
from fmnist_lightning.errors import UserError
from fmnist_lightning.metrics import METRIC_NAMES
from fmnist_lightning.runs.folders import METRICS, PREDICTIONS, testing_command

CURVES = ("train/loss", "val/loss", "train/accuracy", "val/accuracy")
# Of metrics.json, that a report is made from.
NEEDED = (
    *("dataset", "split", "n", *METRIC_NAMES, "checkpoint", "checkpoint_epoch", "model", "parameters", "seed"),
    *("epochs", "training_seconds", "batch_size", "arithmetic", "device", "versions", "git", "tested_with"),
)

Curves = dict[str, list[tuple[int, float]]]  # points (epoch, value) by name


class Predictions(NamedTuple):
    """Of the test set, in file order."""

    probs: NDArray[np.float32]  # (n, 10)
    labels: NDArray[np.int64]  # (n,)


def read_metrics(run: Path) -> dict[str, Any]:
    """The content of metrics.json. Raises UserError where it is missing, damaged or another program's."""
    return read_figures(run / METRICS, NEEDED, f"test the run anew: {testing_command(run)}")


def read_figures(path: Path, needed: Collection[str], cure: str) -> dict[str, Any]:
    """The content of a file like metrics.json. Raises UserError where it can't be read or lacks a `needed` name."""
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; {cure}") from error
    except ValueError as error:
        raise UserError(f"{path} can't be read ({error}); {cure}") from error
    if not isinstance(metrics, dict) or not metrics.keys() >= set(needed):
        raise UserError(f"{path} is not what the test loop writes: expected {', '.join(needed)}; {cure}")
    if not (type(metrics["n"]) is int and all(is_fraction(metrics[name]) for name in METRIC_NAMES)):
        raise UserError(
            f"{path} is not what the test loop writes: expected n as a whole number, and {', '.join(METRIC_NAMES)} "
            f"between 0 and 1; {cure}"
        )
    return metrics


def is_fraction(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1


def read_predictions(run: Path, metrics: Mapping[str, Any]) -> Predictions:
    """The content of predictions.npz, those that `metrics` are of. No code in it can run.

    Raises UserError where it is missing, damaged, does not hold what `callbacks.Predictions` writes, or has another
    accuracy than the metrics: a kill came between the two.
    """
    count = metrics["n"]
    path, cure = run / PREDICTIONS, f"test the run anew: {testing_command(run)}"
    try:
        # Opened here, since NumPy leaves what it can't read open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            probs, labels = arrays["probs"], arrays["labels"]
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; {cure}") from error
    # A name that is not there; an array of objects; damage of several kinds; a file of one array, which is no archive.
    except (KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, TypeError, NotImplementedError) as error:
        raise UserError(f"{path} can't be read as predictions ({error}); {cure}") from error
    shapes = (probs.dtype, probs.shape, labels.dtype, labels.shape)
    if shapes != (np.float32, (count, len(CLASSES)), np.int64, (count,)):
        found = f"probs {probs.dtype} {probs.shape}, labels {labels.dtype} {labels.shape}"
        raise UserError(f"{path} holds {found}; expected float32 ({count}, {len(CLASSES)}), int64 ({count},); {cure}")
    # `not`, so that nan is out of bounds too.
    if not (probs.min() >= 0 and probs.max() <= 1 and labels.min() >= 0 and labels.max() < len(CLASSES)):
        raise UserError(f"{path} holds no probabilities of {len(CLASSES)} classes with their labels; {cure}")
    correct = int((probs.argmax(axis=1) == labels).sum())
    if round(metrics["accuracy"] * count) != correct:
        raise UserError(f"{path} has {correct:,} images right, and {METRICS} tells of another test; {cure}")
    return Predictions(probs, labels)


def read_events(run: Path) -> "EventAccumulator":
    """What the TensorBoard event files of a run folder hold, all of its scalars."""
    # It warns of each restart that it purges what a kill undid, as it should.
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    return EventAccumulator(str(run), size_guidance={SCALARS: 0, IMAGES: 1}).Reload()


def read_curves(run: Path) -> Curves:
    """Those of CURVES that the TensorBoard event files of a run folder hold; none where they are not there."""
    events = read_events(run)
    known = set(events.Tags()["scalars"])
    # A step's first mention: the test loop logs behind the last one, as of another epoch.
    epochs = (
        {point.step: int(point.value) + 1 for point in reversed(events.Scalars("epoch"))} if "epoch" in known else {}
    )
    curves = {
        name: [(epochs[point.step], point.value) for point in events.Scalars(name) if point.step in epochs]
        for name in CURVES
        if name in known
    }
    return {name: points for name, points in curves.items() if points}
