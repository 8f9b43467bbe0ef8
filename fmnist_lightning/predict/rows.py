"""What is printed about a picture: a table row, a JSON object, or a CSV row."""

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from fmnist_lightning.models.tta import warn_if_trained_without_flip
from fmnist_lightning.predict.classifier import PictureClassifier
from fmnist_lightning.predict.inputs import Fault, Picture

PART_FORMATS = ("json", "csv")  # formats of a file, which has rows for faults, too
WIDTH = 11  # of the longest class name


class Candidate(NamedTuple):
    """A class that a picture may be of."""

    label: int
    name: str
    prob: float


class Row(NamedTuple):
    """The prediction for one picture."""

    file: str
    candidates: Sequence[Candidate]  # the most probable first
    dataset: str  # that the model was trained on


def rows_of(pictures: Sequence[Picture], classify: PictureClassifier, top_k: int) -> Iterator[Row]:
    """Classify a batch of pictures, which may be empty."""
    if not pictures:
        return
    prediction = classify(np.stack([picture.image for picture in pictures]))
    for picture, top in zip(pictures, prediction.top(top_k), strict=True):
        candidates = [Candidate(label, prediction.classes[label], prob) for label, prob in top]
        yield Row(picture.name, candidates, str(classify.card["dataset"]))


def warn_of_weights(card: dict[str, Any], *, tta: bool) -> None:
    """Warn of training on drawn images, and with `tta` of training without --flip."""
    training = card.get("training")
    if tta and isinstance(training, dict):
        warn_if_trained_without_flip(training.get("flip", True))
    if card["dataset"] == "drawn":
        print("WARNING: the model was trained on drawn images, not on photographs", file=sys.stderr)


def header(kind: str, top_k: int, *, errors: bool = False) -> str:
    """The line before the rows of a format; `errors` adds a column for them to CSV."""
    if kind == "table":
        return "  ".join([f"{'class':<{WIDTH}} probability"] * top_k) + "  picture\n"
    if kind == "json":
        return ""
    suffixes = ["", *(f"_{place}" for place in range(2, top_k + 1))]
    names = [f"{name}{suffix}" for suffix in suffixes for name in ("label", "class", "probability")]
    return csv_line(["file", *names, "dataset", *["error"] * errors])


def row_line(kind: str, row: Row, *, errors: bool = False) -> str:
    if kind == "table":
        columns = [f"{candidate.name:<{WIDTH}} {candidate.prob:>11.2%}" for candidate in row.candidates]
        mark = ["(DRAWN)"] if row.dataset == "drawn" else []
        # The name comes last, since rows are printed before the width of all names is known.
        return "  ".join([*columns, *mark, printable(row.file)]) + "\n"
    # A millionth is far below the accuracy of a model's probabilities.
    top = [{"label": label, "class": name, "probability": round(prob, 6)} for label, name, prob in row.candidates]
    if kind == "json":
        # In ASCII, which holds any file name.
        return json.dumps({"file": row.file, **top[0], "top": top, "dataset": row.dataset}) + "\n"
    values = [value for candidate in top for value in candidate.values()]
    return csv_line([row.file, *values, row.dataset, *[""] * errors])


def fault_line(kind: str, fault: Fault, top_k: int) -> str:
    """The row of a picture that can't be read, in one of PART_FORMATS."""
    if kind == "json":
        return json.dumps({"file": fault.name, "error": fault.reason}) + "\n"
    return csv_line([fault.name, *[""] * (3 * top_k + 1), fault.reason])


def csv_line(values: Iterable[Any]) -> str:
    text = io.StringIO()
    # Python 3.11.7 quotes only the line terminator's characters; a carriage return in a name must be quoted (gh-67044).
    csv.writer(text, lineterminator="\r\n").writerow(values)
    return text.getvalue().removesuffix("\r\n") + "\n"


def fault_message(name: str, reason: str) -> str:
    return f"error: cannot read {printable(name)}: it {printable(reason)}"


def printable(text: str) -> str:
    """Escape line breaks, control characters, and all that could trick a terminal."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )
