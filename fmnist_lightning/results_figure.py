"""The plot of README: accuracy by training time and by size of the net, public results beside ours."""

import statistics
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fmnist_lightning.figures import RIGHT, WRONG, title
from fmnist_lightning.files import atomic_write
from fmnist_lightning.metrics import ORIGINAL
from fmnist_lightning.records import ORIGINALS_SECONDS, TTA_SUFFIX

ORIGINALS_PARAMETERS = 503_690  # of the net that printed its figures: recipes/original_notebook.yaml
PNG_DPI = 120
NEAR_RATIO, NEAR_ACCURACY = 2.5, 0.3  # of points on the logarithmic axis and on the other, per cent


class Point(NamedTuple):
    """A recipe, or a public result."""

    name: str
    accuracy: float  # per cent
    spread: float  # standard deviation over seeds
    parameters: int
    seconds: float | None  # of training, mean over seeds; None where nobody says


def own_points(records: dict[str, list[dict[str, Any]]]) -> list[Point]:
    """Our recipes, without test-time augmentation."""
    return [
        Point(
            recipe,
            100 * statistics.mean(run["accuracy"] for run in runs),
            100 * statistics.stdev(run["accuracy"] for run in runs) if len(runs) > 1 else 0.0,
            runs[0]["parameters"],
            statistics.mean(run["training_seconds"] for run in runs),
        )
        for recipe, runs in records.items()
        if not recipe.endswith(TTA_SUFFIX)
    ]


def public_points(path: Path) -> list[Point]:
    """The results in public.yaml, and the original's."""
    public = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [
        Point("the original", ORIGINAL["accuracy"], 0.0, ORIGINALS_PARAMETERS, ORIGINALS_SECONDS),
        *(Point(result["name"], result["accuracy"], 0.0, result["parameters"], None) for result in public),
    ]


def results_figure(own: list[Point], public: list[Point]) -> Figure:
    """Accuracy by seconds on the left, by parameters on the right; ours with a standard deviation each way."""
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    by_seconds, by_parameters = figure.subplots(1, 2, sharey=True)
    for axes, field, ours in ((by_seconds, "seconds", own), (by_parameters, "parameters", best_by_size(own))):
        for points, color, marker, whose in ((ours, RIGHT, "o", "this project"), (public, WRONG, "^", "others")):
            draw_points(axes, [point for point in points if getattr(point, field)], field, color, marker, whose)
        axes.set(xscale="log", xlabel=field)
        axes.grid(alpha=0.25)
        axes.margins(x=0.2, y=0.1)
        axes.spines[["top", "right"]].set_visible(False)
    by_seconds.set_ylabel("test accuracy, %")
    by_parameters.legend(loc="lower right", fontsize=8, frameon=False)
    title(by_seconds, "by seconds of training, ours on one or two CPU cores")
    title(by_parameters, "by parameters of the net")
    return figure


def best_by_size(points: list[Point]) -> list[Point]:
    """Of points with the same number of parameters, the most accurate; the others would lie below it."""
    best = {point.parameters: point for point in sorted(points, key=lambda point: point.accuracy)}
    return list(best.values())


def draw_points(axes: Axes, points: list[Point], field: str, color: str, marker: str, whose: str) -> None:
    places = [getattr(point, field) for point in points]
    accuracies, spreads = [point.accuracy for point in points], [point.spread for point in points]
    axes.errorbar(places, accuracies, yerr=spreads, color=color, marker=marker, linestyle="", capsize=3, label=whose)
    how: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7}
    for place, point in zip(places, points, strict=True):
        # Ours below their points and others' above them, or the other way where another point stands in the name's way.
        near = [other for other in points if has_in_its_way(point, other, field)]
        if whose != "this project":
            blocked = any(other.accuracy > point.accuracy for other in near)
            axes.annotate(point.name, (place, point.accuracy), (5, -11 if blocked else 4), **how)
        elif near:
            axes.annotate(point.name, (place, point.accuracy + point.spread), (0, 5), ha="center", **how)
        else:
            axes.annotate(point.name, (place, point.accuracy), (5, -11), **how)


def has_in_its_way(point: Point, other: Point, field: str) -> bool:
    """Whether `other` stands where a name to the right of `point` would."""
    ratio = getattr(other, field) / getattr(point, field)
    return 1 < ratio < NEAR_RATIO and abs(other.accuracy - point.accuracy) < NEAR_ACCURACY


def write_results_figure(records: dict[str, list[dict[str, Any]]], public: Path, path: Path) -> None:
    with atomic_write(path) as file:
        results_figure(own_points(records), public_points(public)).savefig(file, format="png", dpi=PNG_DPI)
