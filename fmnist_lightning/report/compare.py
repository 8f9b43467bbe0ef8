"""Tested runs beside each other: what a better recipe gained, and what none of them recognises.

Heavy imports stand inside the functions, so that `--help` answers at once.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fmnist_lightning.cli import DATA_DIR, LOG_DIR
from fmnist_lightning.data.fashion_mnist import CLASSES
from fmnist_lightning.data.sources import TITLES
from fmnist_lightning.errors import UserError
from fmnist_lightning.models.proving import proving_images
from fmnist_lightning.report.analysis import calibration_error, confusion_matrix, most_confused, per_class
from fmnist_lightning.report.console import LABELS
from fmnist_lightning.report.findings import Predictions, read_metrics, read_predictions
from fmnist_lightning.report.plots import mark, mistakes_figure
from fmnist_lightning.report.tables import Table, as_markdown, percent
from fmnist_lightning.runs.files import atomic_write
from fmnist_lightning.runs.folders import find_run, read_config
from fmnist_lightning.runs.options import CompareOptions

PAIRS = 5  # of classes most confused
SHOWN = 48  # images that no run recognises
PNG_DPI = 150


class Tested(NamedTuple):
    """A run and what its test found."""

    name: str
    folder: Path
    metrics: dict[str, Any]
    predictions: "Predictions"


def compare(options: CompareOptions) -> None:
    """Print the comparison. Raises UserError if the runs can't be compared."""
    tested = read_tested(options.runs)
    print(f"{TITLES[tested[0].metrics['dataset']]}, {tested[0].metrics['n']:,} images\n")
    for table in (figures_table(tested), classes_table(tested), pairs_table(tested)):
        print(f"{table.caption}\n\n{as_markdown(table)}\n")
    print(describe_common(tested))
    if options.pictures:
        draw_common(tested, Path(options.pictures), options.data_dir)


def read_tested(runs: Sequence[str]) -> list[Tested]:
    """The runs with their findings. Raises UserError where they can't be compared."""
    if len(runs) < 2:
        raise UserError("one run can't be compared: name two run folders or more")
    tested = []
    for run in runs:
        folder = find_run(run, Path(LOG_DIR))
        metrics = read_metrics(folder)
        name = f"{folder}, mirror images averaged" if metrics.get("tta") else str(folder)
        tested.append(Tested(name, folder, metrics, read_predictions(folder, metrics)))
    for other in tested[1:]:
        if not np.array_equal(other.predictions.labels, tested[0].predictions.labels):
            raise UserError(
                f"{other.name} was tested on other images than {tested[0].name}: compare runs of one data set"
            )
    return tested


def figures_table(tested: Sequence[Tested]) -> "Table":
    """The five figures and calibration of each run, per cent."""
    rows = [
        (run.name, *(percent(run.metrics[name]) for name in LABELS), percent(calibration_error(*run.predictions)))
        for run in tested
    ]
    return Table("Figures, per cent", ("run", *LABELS.values(), "calibration error"), rows)


def classes_table(tested: Sequence[Tested]) -> "Table":
    """Recall of each class by each run, per cent."""
    recalls = [[figures.recall for figures in per_class(*run.predictions)] for run in tested]
    rows = [(name, *map(percent, values)) for name, *values in zip(CLASSES, *recalls, strict=True)]
    return Table("Recall of each class, per cent", ("class", *(run.name for run in tested)), rows)


def pairs_table(tested: Sequence[Tested]) -> "Table":
    """The pairs that the first run confuses most, and how often each run does, both ways."""
    counts = [confusion_matrix(*run.predictions) for run in tested]
    rows = [
        (f"{CLASSES[a]} and {CLASSES[b]}", *(f"{matrix[a, b] + matrix[b, a]:,}" for matrix in counts))
        for a, b, _, _ in most_confused(counts[0])[:PAIRS]
    ]
    return Table("Images taken for the other class of a pair", ("pair", *(run.name for run in tested)), rows)


def common_mistakes(tested: Sequence[Tested]) -> Any:
    """Indices of the images that no run recognises, by how sure all runs together are of a wrong class."""
    labels = tested[0].predictions.labels
    probs = np.stack([run.predictions.probs for run in tested])  # (runs, n, 10)
    wrong = np.flatnonzero((probs.argmax(axis=2) != labels).all(axis=0))
    return wrong[probs.mean(axis=0)[wrong, labels[wrong]].argsort(kind="stable")]


def describe_common(tested: Sequence[Tested]) -> str:
    """How many images no run recognises, and in how many of them all runs name the same wrong class."""
    common = common_mistakes(tested)
    named = np.stack([run.predictions.probs[common].argmax(axis=1) for run in tested])  # (runs, mistakes)
    agreed = (named == named[0]).all(axis=0).sum()
    return f"{len(common):,} images are recognised by none of the runs; for {agreed:,} all name the same wrong class."


def draw_common(tested: Sequence[Tested], path: Path, data_dir: str | None) -> None:
    """Write the images that no run recognises as PNG: true class, and the first run's.

    Raises UserError where it can't be written.
    """
    first = tested[0]
    images = proving_images(
        first.metrics["dataset"], Path(data_dir or read_config(first.folder).get("data_dir", DATA_DIR))
    )
    shown = common_mistakes(tested)[:SHOWN]
    figure = mistakes_figure(images[shown, 0].numpy(), *(values[shown] for values in first.predictions))
    if first.metrics["dataset"] == "drawn":
        mark(figure, TITLES["drawn"])
    try:
        with atomic_write(path) as file:
            figure.savefig(file, format="png", dpi=PNG_DPI)
    except OSError as error:
        raise UserError(
            f"--pictures {path} can't be written ({error.strerror}): name a PNG file, such as common.png, in a folder "
            "that can be"
        ) from error
