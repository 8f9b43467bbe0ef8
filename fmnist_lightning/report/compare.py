"""Compare tested runs: what a recipe gains, and which images no run recognizes."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fmnist_lightning.cli.types import LOG_DIR
from fmnist_lightning.data.sets import find_source, recorded_info
from fmnist_lightning.data.source import DataInfo, difference
from fmnist_lightning.errors import UserError
from fmnist_lightning.report import analysis, plots
from fmnist_lightning.report.results import Predictions, read_metrics, read_predictions
from fmnist_lightning.report.tables import LABELS, Table, as_markdown, as_text, percent
from fmnist_lightning.runs.files import atomic_write
from fmnist_lightning.runs.folders import find_run
from fmnist_lightning.runs.options import CompareOptions, read_options

PAIRS = 5  # of classes
SHOWN = 48  # images that no run recognizes


class ComparedRun(NamedTuple):
    """A run and the results of its test."""

    name: str
    folder: Path
    info: DataInfo
    metrics: dict[str, Any]
    predictions: Predictions


def compare(options: CompareOptions) -> None:
    """Print the comparison. Raises UserError if the runs can't be compared."""
    tested = read_tested(options.runs)
    print(f"{tested[0].info.title}, {tested[0].metrics['n']:,} images\n")
    print("\n".join(f"- {run.name}" for run in tested), end="\n\n")
    form = as_text if sys.stdout.isatty() else as_markdown
    for table in comparison_tables(tested):
        print(f"{table.caption}\n\n{form(table)}\n")
    common = common_mistakes(tested)
    predicted = np.stack([run.predictions.probs[common].argmax(axis=1) for run in tested])  # (runs, mistakes)
    agreed = (predicted == predicted[0]).all(axis=0).sum()
    print(f"No run recognizes {len(common):,} images; all runs predict the same class for {agreed:,} of them.")
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
        tested.append(ComparedRun(name, folder, recorded_info(metrics), metrics, read_predictions(folder, metrics)))
        check_comparable(tested[0], tested[-1])
    return tested


def check_comparable(first: ComparedRun, other: ComparedRun) -> None:
    """Raise UserError if two runs were tested on different data. The size of the images may differ."""
    reason = None
    if found := difference(first.info, replace(other.info, image_shape=first.info.image_shape)):
        reason = f"it was tested on {found}"
    elif other_images(first, other) or not np.array_equal(other.predictions.labels, first.predictions.labels):
        reason = "they were tested on different images"
    if reason:
        raise UserError(f"cannot compare {other.name} with {first.name}: {reason} (name runs on the same test set)")


def other_images(first: ComparedRun, other: ComparedRun) -> bool:
    """Whether the digests of the test images differ. Older runs have none; images of another size have another one."""
    digests = {run.metrics.get("images_sha256") for run in (first, other)} - {None}
    return first.info.image_shape == other.info.image_shape and len(digests) == 2


def comparison_tables(tested: Sequence[ComparedRun]) -> list[Table]:
    """Metrics, the recall of each class, and the pairs of classes that the first run confuses most."""
    names, folders = tested[0].info.classes, [run.folder.resolve().name for run in tested]
    runs = tuple(folders if len({*folders}) == len(folders) else (str(run.folder) for run in tested))
    metrics = [(label, *(percent(run.metrics[name]) for run in tested)) for name, label in LABELS.items()]
    errors = [analysis.calibration_error(*run.predictions) for run in tested]
    metrics.append(("calibration error", *map(percent, errors)))
    recalls = [analysis.per_class(*run.predictions)["recall"] for run in tested]
    classes = [(name, *map(percent, values)) for name, *values in zip(names, *recalls, strict=True)]
    counts = [analysis.confusion_matrix(*run.predictions) for run in tested]
    pairs = [
        (f"{names[a]} and {names[b]}", *(f"{matrix[a, b] + matrix[b, a]:,}" for matrix in counts))
        for a, b in analysis.most_confused(counts[0])[:PAIRS]
    ]
    return [
        Table("Metrics, %", ("metric", *runs), metrics),
        Table("Recall of each class, %", ("class", *runs), classes),
        Table("Confused images of a pair of classes", ("pair", *runs), pairs),
    ]


def common_mistakes(tested: Sequence[ComparedRun]) -> Any:
    """Indices of the images that no run recognizes.

    The first ones have the lowest mean probability of the true class.
    """
    labels = tested[0].predictions.labels
    probs = np.stack([run.predictions.probs for run in tested])  # (runs, n, classes)
    wrong = np.flatnonzero((probs.argmax(axis=2) != labels).all(axis=0))
    return wrong[probs.mean(axis=0)[wrong, labels[wrong]].argsort(kind="stable")]


def draw(run: ComparedRun, shown: Any, path: Path, data_dir: str | None) -> None:
    """Write a PNG file of the test images with the indices `shown`, with the run's predictions.

    Raises OSError if it can't be written, DataError if the images can't be read, and UserError if they are not those
    of the test.
    """
    options = read_options(run.folder)
    try:
        source = find_source(replace(options, data_dir=data_dir or options.data_dir))
    except ValueError as error:  # of an own datamodule
        raise UserError(str(error)) from error
    source.prepare()
    images, labels = source.load("test")
    if not np.array_equal(labels.numpy(), run.predictions.labels):
        raise UserError(
            f"cannot draw images of {run.name}: the test set of --dataset {options.dataset} is not the one it was "
            "tested on (name its folder with --data_dir)"
        )
    probs = run.predictions.probs[shown]
    figure = plots.mistakes_plot(images[shown].numpy(), probs, labels[shown].numpy(), run.info.classes)
    with atomic_write(path) as file:
        file.write(plots.png(plots.mark(figure, run.info)))
