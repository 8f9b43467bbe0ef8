"""What is printed of an image, as a table, JSON lines or CSV."""

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from fmnist_lightning.data.sources import TITLES
from fmnist_lightning.models.tta import warn_if_trained_without_flip
from fmnist_lightning.predict.classifier import PictureClassifier
from fmnist_lightning.predict.inputs import Picture

WIDTH = 11  # of the longest class name


class Candidate(NamedTuple):
    """A class that an image may be of."""

    label: int
    name: str
    prob: float


class Row(NamedTuple):
    """What is printed of an image."""

    file: str
    candidates: Sequence[Candidate]  # the most probable first
    dataset: str  # that the net was trained on


def rows_of(pictures: "Sequence[Picture]", classify: "PictureClassifier", top_k: int) -> Iterator[Row]:
    """The rows of a batch; none for none."""
    if not pictures:
        return
    prediction = classify(np.stack([picture.image for picture in pictures]))
    for picture, top in zip(pictures, prediction.top(top_k), strict=True):
        candidates = [Candidate(label, prediction.classes[label], prob) for label, prob in top]
        yield Row(picture.name, candidates, str(classify.card["dataset"]))


def warn_of_weights(card: dict[str, Any], *, tta: bool) -> None:
    """Say of weights that they know no photographs, or no mirror images where they are asked about those too."""
    training = card.get("training")
    if tta and isinstance(training, dict):
        warn_if_trained_without_flip(training.get("flip", True))
    if card["dataset"] == "drawn":
        print(f"WARNING: trained on the {TITLES['drawn']}; it knows no photographs", file=sys.stderr)


def table_header(top_k: int) -> str:
    return "  ".join([f"{'class':<{WIDTH}} probability"] * top_k) + "  picture\n"


def table_line(row: Row) -> str:
    columns = [f"{candidate.name:<{WIDTH}} {candidate.prob:>11.2%}" for candidate in row.candidates]
    mark = ["(DRAWN)"] if row.dataset == "drawn" else []
    # The name comes last: its width is not known beforehand, and pictures are not waited for.
    return "  ".join([*columns, *mark, printable(row.file)]) + "\n"


def json_header(_: int) -> str:
    return ""


def json_line(row: Row) -> str:
    """An object with all that is known; in ASCII, so that any name of a file comes through."""
    top = [as_fields(candidate) for candidate in row.candidates]
    return json.dumps({"file": row.file, **top[0], "top": top, "dataset": row.dataset}) + "\n"


def csv_columns(top_k: int) -> list[str]:
    suffixes = ["", *(f"_{place}" for place in range(2, top_k + 1))]
    names = [f"{name}{suffix}" for suffix in suffixes for name in ("label", "class", "probability")]
    return ["file", *names, "dataset"]


def csv_fields(row: Row) -> list[Any]:
    values = [value for candidate in row.candidates for value in as_fields(candidate).values()]
    return [row.file, *values, row.dataset]


def csv_header(top_k: int) -> str:
    return csv_text(csv_columns(top_k))


def csv_line(row: Row) -> str:
    return csv_text(csv_fields(row))


def csv_text(values: Iterable[Any]) -> str:
    text = io.StringIO()
    # Python 3.11.7 quotes only what ends lines, and a carriage return in a name would begin a row (gh-67044).
    csv.writer(text, lineterminator="\r\n").writerow(values)
    return text.getvalue().removesuffix("\r\n") + "\n"


def as_fields(candidate: Candidate) -> dict[str, Any]:
    """In the words of the output; a millionth is far below what a probability of a net is worth."""
    return {"label": candidate.label, "class": candidate.name, "probability": round(candidate.prob, 6)}


FORMATS: dict[str, tuple[Callable[[int], str], Callable[[Row], str]]] = {
    "table": (table_header, table_line),
    "json": (json_header, json_line),
    "csv": (csv_header, csv_line),
}


def json_fault(file: str, reason: str, _: int) -> str:
    return json.dumps({"file": file, "error": reason}) + "\n"


def csv_fault(file: str, reason: str, top_k: int) -> str:
    return csv_text([file, *[""] * (len(csv_columns(top_k)) - 1), reason])


class PartFormat(NamedTuple):
    """How rows stand in a file that has a row for what can't be read too."""

    header: Callable[[int], str]  # of so many candidates
    line: Callable[[Row], str]
    fault: Callable[[str, str, int], str]  # file, reason, candidates


PART_FORMATS = {
    "json": PartFormat(json_header, json_line, json_fault),
    "csv": PartFormat(
        lambda top_k: csv_text([*csv_columns(top_k), "error"]),
        lambda row: csv_text([*csv_fields(row), ""]),
        csv_fault,
    ),
}


def printable(text: str) -> str:
    """One line that does nothing to a terminal: control characters and such are escaped."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )
