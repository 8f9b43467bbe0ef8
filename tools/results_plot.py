"""README's plot: accuracy by training time and by model size, public results next to ours."""

import statistics
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from fmnist_lightning.data.sets.fashion_mnist import FASHION_MNIST
from fmnist_lightning.report.plots import RIGHT, WRONG, title
from fmnist_lightning.runs.files import atomic_write
from tools.records import TTA_SUFFIX, Records
from tools.results_tables import ORIGINALS_PARAMETERS, ORIGINALS_SECONDS, SEEDS, taught_by

PNG_DPI = 120
NAME_STYLE: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7}
MARKER = 5  # half of its width, pixels
# Places of a name next to its point, the better ones first: alignment and offset in points of print.
NAME_PLACES = (
    *(("left", 5, -11), ("left", 5, 4), ("right", -5, -11), ("right", -5, 4)),
    *(("center", 0, 14), ("center", 0, -20)),
)


class Point(NamedTuple):
    """A recipe, or a public result."""

    name: str
    accuracy: float  # percent
    spread: float  # standard deviation over seeds
    parameters: int
    seconds: float | None  # of training, mean over seeds; None if unknown, or if a teacher's training is not counted


def own_points(records: Records) -> list[Point]:
    """Our recipes with SEEDS seeds or more, without test-time augmentation."""
    points = []
    for recipe, runs in records.items():
        if not recipe.endswith(TTA_SUFFIX) and len(runs) >= SEEDS:
            accuracies = [100 * run["accuracy"] for run in runs]
            seconds = None if taught_by(runs[0]) else statistics.mean(run["training_seconds"] for run in runs)
            mean, spread = statistics.mean(accuracies), statistics.stdev(accuracies)
            points.append(Point(recipe, mean, spread, runs[0]["parameters"], seconds))
    return points


def public_points(path: Path) -> list[Point]:
    """The results in public.yaml, and the original's."""
    original = Point("the original", FASHION_MNIST.published["accuracy"], 0.0, ORIGINALS_PARAMETERS, ORIGINALS_SECONDS)
    public = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [
        original,
        *(Point(result["name"], result["accuracy"], 0.0, result["parameters"], None) for result in public),
    ]


def results_plot(own: list[Point], public: list[Point]) -> Figure:
    """Accuracy by seconds on the left, by parameters on the right; ours with standard deviations."""
    figure = Figure(figsize=(10, 4.4), dpi=PNG_DPI, layout="constrained")
    by_seconds, by_parameters = figure.subplots(1, 2, sharey=True)
    shown = {}
    for axes, field, ours in ((by_seconds, "seconds", own), (by_parameters, "parameters", best_by_size(own))):
        shown[field] = [point for point in [*ours, *public] if getattr(point, field)]
        for group, color, marker, whose in ((ours, RIGHT, "o", "this project"), (public, WRONG, "^", "others")):
            points = [point for point in shown[field] if point in group]
            accuracies, spreads = [point.accuracy for point in points], [point.spread for point in points]
            places = [getattr(point, field) for point in points]
            style: dict[str, Any] = {"color": color, "marker": marker, "linestyle": "", "capsize": 3, "label": whose}
            axes.errorbar(places, accuracies, yerr=spreads, **style)
        axes.set(xscale="log", xlabel=field)
        axes.grid(alpha=0.25)
        axes.margins(x=0.2, y=0.1)
        axes.spines[["top", "right"]].set_visible(False)
    by_seconds.set_ylabel("test accuracy, %")
    by_parameters.legend(loc="lower right", fontsize=8, frameon=False)
    title(by_seconds, "by seconds of training, ours on one or two CPU cores")
    title(by_parameters, "by parameters of the model")
    figure.draw_without_rendering()  # makes the extents of names known
    write_names(by_seconds, shown["seconds"], "seconds")
    write_names(by_parameters, shown["parameters"], "parameters")
    return figure


def best_by_size(points: list[Point]) -> list[Point]:
    """Of points with the same number of parameters, the most accurate; the others would lie below it."""
    best = {point.parameters: point for point in sorted(points, key=lambda point: point.accuracy)}
    return list(best.values())


def write_names(axes: Axes, points: list[Point], field: str) -> None:
    """Put each name in the first of NAME_PLACES where it hides no point and no name, else in the last one."""
    taken = [around(axes, point, field) for point in points]
    for point in sorted(points, key=lambda point: point.accuracy):
        for align, right, up in NAME_PLACES:
            place = getattr(point, field), point.accuracy
            name = axes.annotate(point.name, place, (right, up), **NAME_STYLE, ha=align)
            box = name.get_window_extent()
            if not box.count_overlaps(taken) or (align, right, up) == NAME_PLACES[-1]:
                taken.append(box)
                break
            name.remove()


def around(axes: Axes, point: Point, field: str) -> Bbox:
    """The box of a point with its error bar, in pixels."""
    x, middle = axes.transData.transform((getattr(point, field), point.accuracy))
    _, top = axes.transData.transform((getattr(point, field), point.accuracy + point.spread))
    half = max(top - middle, MARKER)
    return Bbox.from_extents(x - MARKER, middle - half, x + MARKER, middle + half)


def write_results_plot(records: Records, public: Path, path: Path) -> None:
    with atomic_write(path) as file:
        results_plot(own_points(records), public_points(public)).savefig(file, format="png")
