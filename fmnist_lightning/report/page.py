"""The report of a tested run: one HTML file that opens anywhere, with its pictures in it, and beside it as PNG."""

import base64
import io
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from fmnist_lightning.data.fashion_mnist import CLASSES
from fmnist_lightning.data.sources import TITLES
from fmnist_lightning.errors import UserError
from fmnist_lightning.report import descriptions, plots, tables
from fmnist_lightning.report.analysis import Array, confusion_matrix, most_confused, worst_mistakes
from fmnist_lightning.report.findings import Curves, Predictions, read_curves, read_metrics, read_predictions
from fmnist_lightning.report.svg import inline_svg
from fmnist_lightning.report.tables import Table
from fmnist_lightning.runs.files import atomic_write, write_text
from fmnist_lightning.runs.folders import REPORT, REPORT_PICTURES, read_config

TEMPLATES = Path(__file__).parent / "templates"
MISTAKES = 24  # images that are shown
PAIRS = 10
PNG_DPI = 150


class Drawing(NamedTuple):
    """A figure, and what it shows in words."""

    figure: Figure
    words: str


class Mistake(NamedTuple):
    """A wrongly classified image."""

    number: int  # in the test set, from 0
    image: Array  # (28, 28) uint8
    truth: str
    predicted: str
    probability: str  # of the predicted class

    @property
    def address(self) -> str:
        """The image as PNG in an address of its own."""
        buffer = io.BytesIO()
        Image.fromarray(self.image).save(buffer, "png")
        return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def write_report(run: Path, images: Tensor) -> Path:
    """Write report.html and report/NAME.png of a tested run; returns the HTML file.

    Images are those of the test set, (n, 1, 28, 28) uint8, in file order; all else is read from the run folder.
    Raises UserError where its files can't be read or are not of these images.
    """
    metrics = read_metrics(run)
    if metrics["dataset"] not in TITLES or metrics["n"] != len(images):
        raise UserError(
            f"{run} was tested on {metrics['n']} images of {metrics['dataset']}, not on these {len(images)}"
        )
    predictions, curves, config = read_predictions(run, metrics), read_curves(run), read_config(run)
    mistakes = find_mistakes(predictions, images)
    drawings = draw(predictions, curves)
    mosaic = draw_mistakes(predictions, images)
    if metrics["dataset"] == "drawn":
        for figure in (mosaic, *(drawing.figure for drawing in drawings.values())):
            plots.mark(figure, TITLES["drawn"])
    page = template().render(
        run=run.resolve().name,
        metrics=metrics,
        dataset=TITLES[metrics["dataset"]],
        svg={name: inline_svg(drawing.figure, name, drawing.words) for name, drawing in drawings.items()},
        mistakes=mistakes,
        words=tell(metrics, config, predictions),
        tables=tabulate(metrics, config, predictions, curves),
        environments=environments(metrics),
    )
    for name, figure in {"worst_mistakes": mosaic, **{name: drawings[name].figure for name in drawings}}.items():
        with atomic_write(run / REPORT_PICTURES / f"{name}.png") as file:
            figure.savefig(file, format="png", dpi=PNG_DPI)
    write_text(run / REPORT, page)
    return run / REPORT


def template() -> jinja2.Template:
    """The page. It escapes all text that is put into it, and fails where something is missing."""
    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return pages.get_template("report.html")


def find_mistakes(predictions: Predictions, images: Tensor) -> list[Mistake]:
    """The wrongly classified images with the highest loss, the highest first."""
    probs, labels = predictions
    return [
        Mistake(
            number=int(index),
            image=images[index, 0].cpu().numpy(),
            truth=CLASSES[labels[index]],
            predicted=CLASSES[probs[index].argmax()],
            probability=f"{100 * probs[index].max():.1f}\N{NO-BREAK SPACE}%",
        )
        for index in worst_mistakes(probs, labels, MISTAKES)
    ]


def draw_mistakes(predictions: Predictions, images: Tensor) -> Figure:
    shown = worst_mistakes(*predictions, MISTAKES)
    return plots.mistakes_figure(images[shown, 0].cpu().numpy(), *(values[shown] for values in predictions))


def draw(predictions: Predictions, curves: Curves) -> dict[str, Drawing]:
    """The figures by their names; without curves where there are none."""
    counts = confusion_matrix(*predictions)
    confusion = descriptions.describe_confusion(counts)
    drawings = {
        "confusion_by_row": Drawing(plots.confusion_figure(counts, by_row=True), confusion),
        "confusion": Drawing(plots.confusion_figure(counts, by_row=False), confusion),
        "roc": Drawing(plots.roc_figure(*predictions), descriptions.describe_roc(*predictions)),
        "precision_recall": Drawing(
            plots.precision_recall_figure(*predictions), descriptions.describe_precision_recall(*predictions)
        ),
        "reliability": Drawing(plots.reliability_figure(*predictions), descriptions.describe_reliability(*predictions)),
    }
    if curves:
        drawings["learning_curves"] = Drawing(plots.curves_figure(curves), descriptions.describe_curves(curves))
    return drawings


def tell(metrics: dict[str, Any], config: dict[str, Any], predictions: Predictions) -> dict[str, str]:
    """The report's sentences."""
    counts = confusion_matrix(*predictions)
    return {
        "result": descriptions.describe_result(metrics),
        "curves": descriptions.describe_measuring(config),
        "authors_pair": descriptions.describe_authors_pair(most_confused(counts), counts),
        "calibration": descriptions.describe_calibration(*predictions),
    }


def tabulate(
    metrics: dict[str, Any], config: dict[str, Any], predictions: Predictions, curves: Curves
) -> dict[str, Table]:
    counts = confusion_matrix(*predictions)
    return {
        "result": tables.result_table(metrics),
        "curves": tables.curves_table(curves),
        "confusion": tables.confusion_table(counts),
        "pairs": tables.pairs_table(most_confused(counts)[:PAIRS]),
        "classes": tables.per_class_table(*predictions),
        "calibration": tables.calibration_table(*predictions),
        "training": tables.training_table(metrics),
        "options": tables.options_table(config),
    }


def environments(metrics: dict[str, Any]) -> list[Table]:
    """Where the run was trained, its earlier parts too, and where it was tested, if elsewhere."""
    trained = {name: metrics.get(name) for name in metrics["tested_with"]}
    found = [tables.environment_table(trained, "Environment of the training")]
    # An empty one is of a checkpoint that does not tell.
    for earlier in filter(None, metrics.get("earlier_environments", [])):
        found.append(tables.environment_table(earlier, "Environment of an earlier part of the training"))
    if metrics["tested_with"] != trained:
        found.append(tables.environment_table(metrics["tested_with"], "Environment of the test"))
    return found
