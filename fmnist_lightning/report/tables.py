"""What a test and its run say as tables, for the report's HTML and for TensorBoard's Markdown."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fmnist_lightning.data.fashion_mnist import CLASSES
from fmnist_lightning.report.analysis import CALIBRATION_BINS, Array, Confusion, calibration, per_class
from fmnist_lightning.report.console import result_rows

NOTHING = "-"  # in a cell whose value is not defined


class Table(NamedTuple):
    """Plain text; the first cell of a row names the row."""

    caption: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def as_markdown(table: Table) -> str:
    lines = (table.header, ("---",) * len(table.header), *table.rows)
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)


def percent(fraction: float, digits: int = 2) -> str:
    return NOTHING if math.isnan(fraction) else f"{100 * fraction:.{digits}f}"


def result_table(metrics: Mapping[str, Any]) -> Table:
    """The five figures, beside the original's where the data is the original's."""
    shown = (0, 1, 2, 3) if metrics["dataset"] == "fashion_mnist" else (0, 2, 3)
    header, *rows = (
        tuple(line[column] for column in shown)
        for line in (("metric", "original", "this run", "95 % interval"), *result_rows(metrics))
    )
    return Table(f"Result on the {metrics['split']} set, per cent", header, rows)


def per_class_table(probs: Array, labels: Array) -> Table:
    rows = [(name, *map(percent, fractions), f"{images:,}") for name, *fractions, images in per_class(probs, labels)]
    return Table("Each class, per cent", ("class", "precision", "recall", "F1", "ROC AUC", "images"), rows)


def pairs_table(pairs: Sequence[Confusion]) -> Table:
    """Pairs of classes, in the order given."""
    rows = [
        (f"{CLASSES[a]} and {CLASSES[b]}", f"{pair.total:,}", f"{a_as_b:,}", f"{b_as_a:,}")
        for pair in pairs
        for a, b, a_as_b, b_as_a in [pair]
    ]
    header = ("pair", "mistakes", "first as second", "second as first")
    return Table(f"The {len(rows)} pairs most confused, images", header, rows)


def confusion_table(counts: NDArray[np.int64]) -> Table:
    rows = [(name, *(f"{count:,}" for count in row)) for name, row in zip(CLASSES, counts, strict=True)]
    return Table("Images by true class (rows) and predicted class (columns)", ("true class", *CLASSES), rows)


def calibration_table(probs: Array, labels: Array) -> Table:
    edges = np.linspace(0, 100, CALIBRATION_BINS + 1)
    rows = [
        (f"{low:.0f} to {high:.0f}", f"{count:,}", percent(confidence), percent(accuracy))
        for low, high, count, confidence, accuracy in zip(edges, edges[1:], *calibration(probs, labels), strict=False)
    ]
    return Table(
        "Confidence and accuracy by bin, per cent", ("confidence", "images", "mean confidence", "accuracy"), rows
    )


def curves_table(scalars: Mapping[str, Sequence[tuple[int, float]]]) -> Table:
    """Points (epoch, value) by name, an epoch a row."""
    values = {name: dict(points) for name, points in scalars.items()}
    epochs = sorted({epoch for points in values.values() for epoch in points})
    rows = [
        (str(epoch), *(f"{points[epoch]:.4f}" if epoch in points else NOTHING for points in values.values()))
        for epoch in epochs
    ]
    return Table("Loss and accuracy by epoch", ("epoch", *values), rows)


def environment_table(environment: Mapping[str, Any], caption: str = "Environment") -> Table:
    """Of what `environment.environment` returns."""
    git = environment["git"]
    state = {True: "with uncommitted changes", False: "clean", None: "state not known"}[git["dirty"]]
    rows = [
        ("device", str(environment["device"])),
        *((name, str(version)) for name, version in environment["versions"].items()),
        ("git commit", f"{git['commit'] or 'not known'}, {state}"),
    ]
    return Table(caption, ("item", "value"), rows)


def training_table(metrics: Mapping[str, Any]) -> Table:
    rows = [
        ("net", f"{metrics['model']}, {metrics['parameters']:,} parameters"),
        ("epochs", str(metrics["epochs"])),
        ("seconds", f"{metrics['training_seconds']:,.1f}"),
        ("tested", f"{metrics['checkpoint']} checkpoint, after epoch {metrics['checkpoint_epoch']}"),
        # Records of before there was a choice have none.
        ("test-time augmentation", "mirror images" if metrics.get("tta") else "none"),
        ("batch size", str(metrics["batch_size"])),
        ("arithmetic", metrics["arithmetic"]),
        ("seed", str(metrics["seed"])),
    ]
    return Table("Training", ("item", "value"), rows)


def options_table(config: Mapping[str, Any]) -> Table:
    rows = [
        (str(name), value if isinstance(value, str) else json.dumps(value, default=str))
        for name, value in config.items()
    ]
    return Table("Options, from config.yaml", ("option", "value"), rows)
