"""Compare tested runs: what a recipe gains, and which images no run recognizes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fmnist_lightning.cli import LOG_DIR, default_data_dir
from fmnist_lightning.data.sets import TITLES, load_images
from fmnist_lightning.data.sets.download import ensure_files
from fmnist_lightning.data.sets.fashion_mnist import CLASSES
from fmnist_lightning.errors import UserError
from fmnist_lightning.report import analysis, plots
from fmnist_lightning.report.results import Predictions, read_metrics, read_predictions
from fmnist_lightning.report.tables import LABELS, Table, as_markdown, percent
from fmnist_lightning.runs.files import atomic_write
from fmnist_lightning.runs.folders import find_run, read_config
from fmnist_lightning.runs.options import CompareOptions

PAIRS = 5  # of classes
SHOWN = 48  # images that no run recognizes


class ComparedRun(NamedTuple):
    """A run and the results of its test."""

    name: str
    folder: Path
    metrics: dict[str, Any]
    predictions: Predictions


def compare(options: CompareOptions) -> None:
    """Print the comparison. Raises UserError if the runs can't be compared."""
    tested = read_tested(options.runs)
    print(f"{TITLES[tested[0].metrics['dataset']]}, {tested[0].metrics['n']:,} images\n")
    for table in comparison_tables(tested):
        print(f"{table.caption}\n\n{as_markdown(table)}\n")
    common = common_mistakes(tested)
    predicted = np.stack([run.predictions.probs[common].argmax(axis=1) for run in tested])  # (runs, mistakes)
    agreed = (predicted == predicted[0]).all(axis=0).sum()
    print(f"No run recognizes {len(common):,} of the images; for {agreed:,} of them all runs predict the same class.")
    if options.pictures:
        draw(tested[0], common[:SHOWN], Path(options.pictures), options.data_dir)


def read_tested(runs: Sequence[str]) -> list[ComparedRun]:
    """The runs with their results. Raises UserError if they can't be compared."""
    if len(runs) < 2:
        raise UserError("cannot compare one run: name two run folders or more")
    tested = []
    for run in runs:
        folder = find_run(run, Path(LOG_DIR))
        metrics = read_metrics(folder)
        name = f"{folder}, mirror images averaged" if metrics.get("tta") else str(folder)
        tested.append(ComparedRun(name, folder, metrics, read_predictions(folder, metrics)))
        if not np.array_equal(tested[-1].predictions.labels, tested[0].predictions.labels):
            raise UserError(f"cannot compare {name} with {tested[0].name}: they were tested on different images")
    return tested


def comparison_tables(tested: Sequence[ComparedRun]) -> list[Table]:
    """Metrics, the recall of each class, and the pairs of classes that the first run confuses most."""
    runs = tuple(run.name for run in tested)
    metrics = []
    for run in tested:
        fractions = [*(run.metrics[name] for name in LABELS), analysis.calibration_error(*run.predictions)]
        metrics.append((run.name, *map(percent, fractions)))
    recalls = [analysis.per_class(*run.predictions)["recall"] for run in tested]
    classes = [(name, *map(percent, values)) for name, *values in zip(CLASSES, *recalls, strict=True)]
    counts = [analysis.confusion_matrix(*run.predictions) for run in tested]
    pairs = [
        (f"{CLASSES[a]} and {CLASSES[b]}", *(f"{matrix[a, b] + matrix[b, a]:,}" for matrix in counts))
        for a, b in analysis.most_confused(counts[0])[:PAIRS]
    ]
    return [
        Table("Metrics, %", ("run", *LABELS.values(), "calibration error"), metrics),
        Table("Recall of each class, %", ("class", *runs), classes),
        Table("Confused images of a pair of classes", ("pair", *runs), pairs),
    ]


def common_mistakes(tested: Sequence[ComparedRun]) -> Any:
    """Indices of the images that no run recognizes.

    The first ones have the lowest mean probability of the true class.
    """
    labels = tested[0].predictions.labels
    probs = np.stack([run.predictions.probs for run in tested])  # (runs, n, 10)
    wrong = np.flatnonzero((probs.argmax(axis=2) != labels).all(axis=0))
    return wrong[probs.mean(axis=0)[wrong, labels[wrong]].argsort(kind="stable")]


def draw(run: ComparedRun, shown: Any, path: Path, data_dir: str | None) -> None:
    """Write a PNG file of the test images with the indices `shown`, with the run's predictions.

    Raises OSError if it can't be written, and DataError if the images can't be read.
    """
    dataset, folder = (
        run.metrics["dataset"],
        Path(data_dir or read_config(run.folder).get("data_dir") or default_data_dir()),
    )
    if dataset == "fashion_mnist":
        ensure_files(folder)
    images = load_images(dataset, folder, "test").images
    figure = plots.mistakes_plot(images[shown, 0].numpy(), *(values[shown] for values in run.predictions))
    with atomic_write(path) as file:
        file.write(plots.png(plots.mark(figure, dataset)))
