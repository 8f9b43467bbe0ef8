"""Write the report of a tested run: one HTML file, and its plots as PNG files."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fmnist_lightning.data.fashion_mnist import CLASSES
from fmnist_lightning.data.sources import TITLES
from fmnist_lightning.metrics import ORIGINAL, wilson_interval
from fmnist_lightning.report import analysis, plots, tables
from fmnist_lightning.report.results import Curves, Predictions, read_curves, read_metrics, read_predictions
from fmnist_lightning.report.tables import Table, percent
from fmnist_lightning.runs.files import atomic_write, write_text
from fmnist_lightning.runs.folders import REPORT, REPORT_PICTURES, read_config
from fmnist_lightning.runs.options import AugmentationOptions, names

PAIRS = 10
# What the report says about the training, by the names in metrics.json.
TRAINING = (
    *("model", "parameters", "epochs", "training_seconds", "batch_size", "arithmetic", "seed"),
    *("checkpoint", "checkpoint_epoch", "tta"),
)
# The pair that the original's author calls hard to tell apart.
AUTHORS_PAIR = (CLASSES.index("T-shirt/top"), CLASSES.index("Shirt"))


class Section(NamedTuple):
    """A part of the page. It skips plots that there are not, and folded tables without rows."""

    title: str
    text: str = ""
    plots: Sequence[str] = ()
    tables: Sequence[Table] = ()
    folded: Sequence[Table] = ()  # shown on a click


def write_report(run: Path, images: Tensor) -> Path:
    """Write report.html and report/NAME.png of a tested run; return the HTML file.

    `images` (n, 1, 28, 28) uint8 are the test set, in file order. Raises UserError if a file of the run is damaged.
    """
    metrics = read_metrics(run)
    predictions, curves, config = read_predictions(run, metrics), read_curves(run), read_config(run)
    figures = plots.prediction_plots(*predictions, images.cpu().numpy())
    if curves:
        figures["learning_curves"] = plots.curves_plot(curves)
    if metrics["dataset"] == "drawn":
        for figure in figures.values():
            plots.mark(figure, TITLES["drawn"])
    pictures = {name: plots.png(figure) for name, figure in figures.items()}
    for name, content in pictures.items():
        with atomic_write(run / REPORT_PICTURES / f"{name}.png") as file:
            file.write(content)
    page = template().render(
        run=run.resolve().name,
        metrics=metrics,
        dataset=TITLES[metrics["dataset"]],
        sections=sections(metrics, config, predictions, curves),
        alts=alternative_texts(metrics, predictions, curves),
        images={name: base64.b64encode(content).decode() for name, content in pictures.items()},
    )
    write_text(run / REPORT, page)
    return run / REPORT


def template() -> jinja2.Template:
    """The page. It escapes all text, and raises if a value is missing."""
    folder = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    pages = jinja2.Environment(loader=folder, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return pages.get_template("report.html")


def sections(
    metrics: dict[str, Any], config: dict[str, Any], predictions: Predictions, curves: Curves
) -> list[Section]:
    counts = analysis.confusion_matrix(*predictions)
    matrix, pairs = tables.confusion_table(counts), tables.pairs_table(counts, PAIRS)
    mistakes = tables.mistakes_table(*predictions, plots.MISTAKES)
    calibration = tables.calibration_table(*predictions)
    measured = describe_measuring(config) if curves else "The run folder holds no TensorBoard event files."
    return [
        Section("Result", describe_result(metrics), tables=[tables.result_table(metrics)]),
        Section("Learning curves", measured, ["learning_curves"], folded=[tables.curves_table(curves)]),
        Section("Confusion matrix", "An empty cell is zero.", ["confusion_by_row", "confusion"], folded=[matrix]),
        Section("Most confused pairs", describe_authors_pair(counts), tables=[pairs]),
        Section("Worst mistakes", "Wrong predictions with the highest loss.", ["worst_mistakes"], folded=[mistakes]),
        Section("Classes", "", ["roc", "precision_recall"], [tables.per_class_table(*predictions)]),
        Section("Calibration", describe_calibration(*predictions), ["reliability"], folded=[calibration]),
        Section("Run", tables=facts(metrics, config)),
    ]


def facts(metrics: dict[str, Any], config: dict[str, Any]) -> list[Table]:
    """Tables of the training, of each environment that differs, and of all options."""
    trained = {name: metrics.get(name) for name in metrics["tested_with"]}
    environments = [(trained, "Environment of the training")]
    # A checkpoint that records no environment leaves an empty one.
    for earlier in filter(None, metrics.get("earlier_environments", [])):
        environments.append((earlier, "Environment of an earlier part of the training"))
    if metrics["tested_with"] != trained:
        environments.append((metrics["tested_with"], "Environment of the test"))
    training = {name: metrics.get(name) for name in TRAINING}
    contents = [(training, "Training"), *environments, (config, "Options, from config.yaml")]
    return [tables.facts_table(content, caption) for content, caption in contents]


def alternative_texts(metrics: dict[str, Any], predictions: Predictions, curves: Curves) -> dict[str, str]:
    """A sentence for each plot, for readers who don't see it."""
    right = f"{round(metrics['accuracy'] * metrics['n']):,} of {metrics['n']:,} images are on the diagonal"
    ends = ", ".join(f"{name} {points[-1][1]:.4f}" for name, points in curves.items())
    precision = float(np.nanmean(analysis.per_class(*predictions)["average_precision"]))
    return {
        "learning_curves": f"Learning curves, which end at {ends}.",
        "confusion_by_row": f"Confusion matrix in percent of each true class; {right}.",
        "confusion": f"Confusion matrix in images; {right}.",
        "worst_mistakes": "Wrongly classified images with the highest loss.",
        "roc": f"ROC curve of each class; their mean area is {percent(metrics['auroc'])}%.",
        "precision_recall": f"Precision-recall curve of each class; their mean area is {percent(precision)}%.",
        "reliability": "Accuracy of the predictions by their confidence.",
    }


def describe_result(metrics: Mapping[str, Any]) -> str:
    """Accuracy with its interval, compared with the original's on the same data."""
    low, high = (100 * bound for bound in wilson_interval(metrics["accuracy"], metrics["n"]))
    text = (
        f"The model recognizes {percent(metrics['accuracy'])}% of {metrics['n']:,} images "
        f"(95% Wilson interval {low:.2f} to {high:.2f}). Precision, recall, F1 and AUC are means over the classes."
    )
    if metrics["dataset"] != "fashion_mnist":
        return text
    original = ORIGINAL["accuracy"]
    place = "below" if original < low else "above" if original > high else "within"
    return f"{text} The original's accuracy, {original:.2f}%, is {place} the interval."


def describe_measuring(config: Mapping[str, Any]) -> str:
    """How the training metrics in the learning curves were measured."""
    augmented = " and on augmented images" if any(config.get(name) for name in names(AugmentationOptions)) else ""
    mixed = ", against the label of the larger part of each mixed image" if config.get("mixup") else ""
    return f"Training metrics are measured with dropout{augmented}{mixed}, so validation can look better."


def describe_authors_pair(counts: NDArray[np.int64]) -> str:
    """How often T-shirt and shirt are confused, and the rank of that among all pairs."""
    other, shirt = AUTHORS_PAIR
    rank = analysis.most_confused(counts).index(AUTHORS_PAIR) + 1
    mistakes = counts.sum() - counts.trace()
    both = counts[shirt, other] + counts[other, shirt]
    return (
        "The original's author calls T-shirt/top and Shirt hard to tell apart. The model takes "
        f"{counts[shirt, other]:,} of {counts[shirt].sum():,} shirts for T-shirts, and {counts[other, shirt]:,} of "
        f"{counts[other].sum():,} T-shirts for shirts: {both:,} of {mistakes:,} mistakes, rank {rank} of all pairs."
    )


def describe_calibration(probs: analysis.Array, labels: analysis.Array) -> str:
    confidence, accuracy = probs.max(axis=1).mean(), (probs.argmax(axis=1) == labels).mean()
    return (
        f"The mean confidence is {percent(confidence)}%, the accuracy {percent(accuracy)}%: the model is "
        f"{'overconfident' if confidence > accuracy else 'underconfident'}. "
        f"Its expected calibration error is {percent(analysis.calibration_error(probs, labels))}%."
    )
