"""What is printed about a picture: a table row, a JSON object, or a CSV row.

A row is a dict of what the JSON object holds: `file` and `error` of a picture that can't be read, else `file`, `label`,
`class` and `probability` of the most probable class, the same for each of `top`, and the `dataset` of the training. A
`note` says why a prediction is doubtful.
"""

import csv
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from fmnist_lightning.cli.launchers import is_rank_zero
from fmnist_lightning.data.pictures import silence_pillow
from fmnist_lightning.data.source import DataInfo
from fmnist_lightning.errors import UserError, full_path, printable
from fmnist_lightning.models.tta import warn_if_trained_without_flip
from fmnist_lightning.predict.classifier import PictureClassifier, in_brackets, load_classifier
from fmnist_lightning.predict.inputs import STDIN, Fault, Result
from fmnist_lightning.runs.options import PredictOptions

PART_FORMATS = ("json", "csv")  # formats of a file, which has rows for faults, too


def prepare_classifier(options: PredictOptions, device: str) -> PictureClassifier:
    """Load the weights. Warn of training on a stand-in, and with --tta of training without --flip.

    Raises UserError if the options don't suit the model.
    """
    silence_pillow()
    classify = load_classifier(
        options.weights, device=device, batch_size=options.batch_size, tta=options.tta, log_dir=options.log_dir
    )
    if options.top_k > len(classify.info.classes):
        raise UserError(
            f"cannot use --top_k {options.top_k}: the model {options.weights} has {len(classify.info.classes)} classes"
        )
    if is_rank_zero():
        if options.tta:
            warn_if_trained_without_flip((classify.card.get("training") or {}).get("flip", True))
        if classify.info.stand_in:
            print(f"WARNING: the model was trained on a stand-in: {printable(classify.info.title)}", file=sys.stderr)
    return classify


def classified(results: Iterable[Result], classify: PictureClassifier, top_k: int) -> Iterator[list[dict[str, Any]]]:
    """Rows batch by batch, in the order of the results."""
    results = iter(results)
    while batch := list(islice(results, classify.batch_size)):
        images = [result.image for result in batch if not isinstance(result, Fault)]
        tops = iter(classify(np.stack(images)).top(top_k) if images else [])
        rows: list[dict[str, Any]] = []
        for result in batch:
            if isinstance(result, Fault):
                rows.append({"file": result.name, "error": result.reason})
                continue
            # A millionth is far below the accuracy of a model's probabilities.
            top = [
                {"label": label, "class": classify.info.classes[label], "probability": round(prob, 6)}
                for label, prob in next(tops)
            ]
            note = {"note": result.note} if result.note else {}
            rows.append({"file": result.name, **top[0], "top": top, "dataset": classify.info.name, **note})
        yield rows


@dataclass(frozen=True)
class RowFormat:
    """How rows are written: `table`, `json` or `csv`, with `top_k` classes of the data set `info`."""

    kind: str
    top_k: int
    info: DataInfo
    errors: bool = False  # whether CSV has a column for them

    @cached_property
    def width(self) -> int:
        """Of a table's column of classes."""
        return max(len(printable(name)) for name in ("class", *self.info.classes))

    def header(self) -> str:
        """The line before the rows."""
        if self.kind == "table":
            return "  ".join([f"{'class':<{self.width}} probability"] * self.top_k) + "  picture\n"
        if self.kind == "json":
            return ""
        suffixes = ["", *(f"_{place}" for place in range(2, self.top_k + 1))]
        names = [f"{name}{suffix}" for suffix in suffixes for name in ("label", "class", "probability")]
        return csv_line(["file", *names, "dataset", "note", *["error"] * self.errors])

    def line(self, row: dict[str, Any]) -> str:
        """A row; only PART_FORMATS show errors."""
        if self.kind == "json":
            return json.dumps(row) + "\n"  # in ASCII, which holds any file name
        if self.kind == "csv":
            cells = [cell for one in row.get("top", []) for cell in one.values()] or [""] * (3 * self.top_k)
            ends = ["dataset", "note", *["error"] * self.errors]
            return csv_line([row["file"], *cells, *(row.get(name, "") for name in ends)])
        columns = [f"{printable(one['class']):<{self.width}} {one['probability']:>11.2%}" for one in row["top"]]
        mark = [f"({printable(self.info.name.upper())})"] if self.info.stand_in else []
        # The name comes last, since rows are printed before the width of all names is known.
        return "  ".join([*columns, *mark, printable(row["file"])]) + in_brackets(row.get("note", "")) + "\n"


def csv_line(values: Sequence[Any]) -> str:
    text = io.StringIO()
    # Python 3.11.7 quotes only the line terminator's characters; a carriage return in a name must be quoted (gh-67044).
    csv.writer(text, lineterminator="\r\n").writerow(values)
    return text.getvalue().removesuffix("\r\n") + "\n"


def fault_message(row: dict[str, Any]) -> str:
    name = row["file"]
    known = name == STDIN or Path(name).is_absolute() or os.path.lexists(name)
    where = "" if known else f"; the working folder is {full_path('.')}"
    return f"error: cannot read {printable(name)}: it {printable(row['error'])}{where}"
