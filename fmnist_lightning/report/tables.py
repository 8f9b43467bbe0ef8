"""Tables of a test and its run, for the report, the console and TensorBoard."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm.utils import disp_len

from fmnist_lightning.data.sets import recorded_info
from fmnist_lightning.metrics import wilson_interval
from fmnist_lightning.report import analysis
from fmnist_lightning.report.analysis import Array

NUMBER = re.compile(r"[\d,.]+|-|")
LABELS = {"accuracy": "accuracy", "precision": "precision", "recall": "recall", "f1": "F1", "auroc": "ROC AUC"}


class Table(NamedTuple):
    """Plain text. The first cell of a row names the row."""

    caption: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def as_markdown(table: Table) -> str:
    """A Markdown table with aligned columns."""
    return "\n".join(f"| {' | '.join(line)} |" for line in aligned(table, ":"))


def as_text(table: Table) -> str:
    """A table for a terminal."""
    return "\n".join("  ".join(line).rstrip() for line in aligned(table, "-"))


def aligned(table: Table, right: str) -> list[list[str]]:
    """The cells of all lines in columns of one width, with a rule below the header.

    Columns of numbers are aligned on the right, and their rule ends with the character `right`.
    """
    lines = [[as_cell(text) for text in line] for line in (table.header, *table.rows)]
    lines.insert(1, ["---"] * len(table.header))
    columns = []
    for column in zip(*lines, strict=True):
        width = max(map(disp_len, column))
        numbers = all(NUMBER.fullmatch(text) for text in column[2:])
        pads = [" " * (width - disp_len(text)) for text in column]  # an ideograph takes the room of two letters
        cells = [pad + text if numbers else text + pad for text, pad in zip(column, pads, strict=True)]
        columns.append([cells[0], "-" * (width - 1) + (right if numbers else "-"), *cells[2:]])
    return [list(line) for line in zip(*columns, strict=True)]


def as_cell(text: str) -> str:
    """The text without bars, line breaks and codes for the terminal, which a class name or an option may hold."""
    return "".join(char if char.isprintable() else " " for char in text).replace("|", "&#124;")


def percent(fraction: float) -> str:
    return "-" if math.isnan(fraction) else f"{100 * fraction:.2f}"


def duration(seconds: float) -> str:
    """Such as 9 s, 24 min 36 s, or 1 h 12 min."""
    whole = max(1, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def result_table(metrics: Mapping[str, Any]) -> Table:
    """The five metrics, next to the published ones if the data set has some."""
    published = recorded_info(metrics).published
    low, high = wilson_interval(metrics["accuracy"], metrics["n"])
    intervals = {"accuracy": f"{percent(low)} to {percent(high)}"}
    columns = {
        "metric": list(LABELS.values()),
        "published": [f"{published[name]:.2f}" if name in published else "" for name in LABELS],
        "this run": [percent(metrics[name]) for name in LABELS],
        "95% interval": [intervals.get(name, "") for name in LABELS],
    }
    if not published:
        del columns["published"]
    return Table(f"Result on the {metrics['split']} set, %", tuple(columns), [*zip(*columns.values(), strict=True)])


def per_class_table(probs: Array, labels: Array, classes: Sequence[str]) -> Table:
    *fractions, images = analysis.per_class(probs, labels).values()
    rows = [(*map(percent, values),) for values in zip(*fractions, strict=True)]
    rows = [(name, *row, f"{count:,}") for name, row, count in zip(classes, rows, images, strict=True)]
    header = ("class", "precision", "recall", "F1", "ROC AUC", "average precision", "images")
    return Table("Metrics of each class, %", header, rows)


def pairs_table(counts: NDArray[np.int64], count: int, classes: Sequence[str]) -> Table:
    """The `count` most confused pairs, without those that are never confused."""
    rows = [
        (f"{classes[a]} and {classes[b]}", *(f"{images:,}" for images in (first + second, first, second)))
        for a, b in analysis.most_confused(counts)[:count]
        for first, second in [(counts[a, b], counts[b, a])]
        if first + second
    ]
    return Table("Most confused pairs, images", ("pair", "mistakes", "first as second", "second as first"), rows)


def confusion_table(counts: NDArray[np.int64], classes: Sequence[str]) -> Table:
    rows = [(name, *(f"{count:,}" for count in row)) for name, row in zip(classes, counts, strict=True)]
    return Table("Images by true class (rows) and predicted class (columns)", ("true class", *classes), rows)


def mistakes_table(probs: Array, labels: Array, count: int, classes: Sequence[str]) -> Table:
    """The `count` worst mistakes; images are numbered from 0."""
    rows = [
        (f"{index:,}", classes[labels[index]], classes[probs[index].argmax()], percent(probs[index].max()))
        for index in analysis.worst_mistakes(probs, labels, count)
    ]
    header = ("image", "true class", "prediction", "confidence, %")
    return Table("Wrong predictions with the highest loss", header, rows)


def facts_table(facts: Mapping[str, Any], caption: str) -> Table:
    """A row for each value, also for those in a nested mapping."""
    flat = {
        f"{name} {key}".strip(): value
        for name, content in facts.items()
        for key, value in (content.items() if isinstance(content, dict) else [("", content)])
    }
    rows = [(name, value if isinstance(value, str) else json.dumps(value, default=str)) for name, value in flat.items()]
    return Table(caption, ("name", "value"), rows)
