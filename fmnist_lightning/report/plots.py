"""Figures of a test: arrays in, matplotlib `Figure`s out, without pyplot and its global state.

Throughout, probs are (n, 10) float32 and labels (n,) int64. A class without an image is left out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import NDArray
from torchmetrics.functional import classification as tm

from fmnist_lightning.data.fashion_mnist import CLASSES
from fmnist_lightning.report.analysis import (
    CALIBRATION_BINS,
    Array,
    average_precisions,
    calibration,
    calibration_error,
    one_vs_rest,
    roc_areas,
)

# Sky blue, orange, grey, violet, brown: far apart in every kind of colour blindness, with a contrast of three and more
# to white and to the report's dark ground (tests/test_figures.py measures both). Solid, then dashed, they are ten.
COLORS = ("#0090dd", "#f25c05", "#929292", "#9a2eff", "#a35036")
CLASS_STYLES = tuple((color, style) for style in ("-", (0, (4, 1.5))) for color in COLORS)
RIGHT, WRONG = COLORS[:2]
# Of a cell's colour at its darkest, so that black text on white and white text on black stay legible on it.
STRONGEST = 0.6
CURVE_STEPS = 400  # points of a curve that are nearer than one such part of an axis can't be told apart
GAP = 4  # pixels between pictures
PIXELS_PER_INCH = 28


def blank(width: float, height: float, *, left: float, bottom: float) -> Figure:
    """An empty figure in inches, with room for labels. Constrained layout would take as long as all the drawing."""
    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(left=left, bottom=bottom, right=0.95, top=0.93)
    return figure


def title(axes: Axes, text: str) -> None:
    axes.set_title(text, fontsize=10, loc="left")


def mark(figure: Figure, text: str) -> None:
    """Write loudly at the foot of a figure what it must not be taken for."""
    figure.text(0.99, 0.005, text, ha="right", va="bottom", fontsize=7, weight="bold")


def confusion_figure(counts: NDArray[np.int64], *, by_row: bool) -> Figure:
    """The matrix in counts, or in per cent of each true class; blue is right, orange wrong, an empty cell zero."""
    values = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1) if by_row else counts
    right = np.eye(len(counts), dtype=bool)
    # Each colour has its own scale, of square roots: five mistakes are to be seen beside a hundred.
    most = np.where(right, values[right].max(), values[~right].max())
    strength = STRONGEST * np.sqrt(values / np.maximum(most, 1e-9))
    color = np.where(right[..., None], to_rgb(RIGHT), to_rgb(WRONG))
    edges = np.arange(len(counts) + 1) - 0.5
    figure = blank(5.2, 4.9, left=0.18, bottom=0.21)
    axes = figure.subplots()
    axes.pcolormesh(edges, edges, np.dstack([color, strength]))
    for row, column in zip(*values.nonzero(), strict=True):
        text = f"{values[row, column]:.1f}" if by_row else str(values[row, column])
        axes.text(column, row, text, ha="center", va="center", fontsize=7.5)
    axes.set_xticks(range(len(counts)), CLASSES, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(range(len(counts)), CLASSES, fontsize=8)
    axes.set(xlabel="predicted", ylabel="true")
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    title(axes, "Confusion matrix, per cent of each true class" if by_row else "Confusion matrix, images")
    return figure


def thinned(*coordinates: Array) -> NDArray[np.bool_]:
    """Which points of a curve, given in parts of its axes, to draw: one a place, and the last."""
    places = np.stack([(CURVE_STEPS * coordinate).astype(int) for coordinate in coordinates])
    return np.append((np.diff(places) != 0).any(axis=0), True)


def draw_class(axes: Axes, label: int, x: Array, y: Array, area: float) -> None:
    """Add the curve of one class, whose legend has the area under it in per cent."""
    color, style = CLASS_STYLES[label]
    axes.plot(x, y, color=color, linestyle=style, lw=1.4, label=f"{CLASSES[label]} {100 * area:.2f}")


def finish_curves(axes: Axes, heading: str, areas: str) -> None:
    """Title, grid, and below them a legend headed by what its areas are, if there are curves."""
    title(axes, heading)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        below: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14), "ncols": 2, "frameon": False}
        axes.legend(title=areas, fontsize=8, title_fontsize=8, handlelength=3, **below)


def roc_figure(probs: Array, labels: Array) -> Figure:
    """One curve a class against the rest. The lower axis is logarithmic: most is decided below a few per cent."""
    figure = blank(4.6, 5.0, left=0.14, bottom=0.34)
    axes = figure.subplots()
    areas = roc_areas(probs, labels)
    leftmost = 0.5 / len(labels)  # where a rate of zero is drawn
    for label, (scores, truth) in one_vs_rest(probs, labels).items():
        false, true, _ = (part.double().numpy() for part in tm.binary_roc(scores, truth))
        false = false.clip(leftmost)
        drawn = thinned(np.log(false) / np.log(leftmost), true)
        draw_class(axes, label, false[drawn], true[drawn], areas[label])
    axes.set(xscale="log", xlim=(leftmost, 1), ylim=(0, 1.02))
    axes.set(xlabel="false positive rate", ylabel="true positive rate")
    axes.xaxis.set_major_formatter(lambda rate, _: f"{100 * rate:g} %")
    axes.xaxis.set_minor_locator(NullLocator())
    finish_curves(axes, "ROC, each class against the rest", "area under the curve, %")
    return figure


def precision_recall_figure(probs: Array, labels: Array) -> Figure:
    """One curve a class against the rest."""
    figure = blank(4.6, 5.0, left=0.14, bottom=0.34)
    axes = figure.subplots()
    areas = average_precisions(probs, labels)
    for label, (scores, truth) in one_vs_rest(probs, labels).items():
        precision, recall, _ = (part.numpy() for part in tm.binary_precision_recall_curve(scores, truth))
        drawn = thinned(precision, recall)
        draw_class(axes, label, recall[drawn], precision[drawn], areas[label])
    axes.set(xlim=(0, 1.01), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    finish_curves(axes, "Precision and recall, each class against the rest", "average precision, %")
    return figure


def reliability_figure(probs: Array, labels: Array) -> Figure:
    """Accuracy by confidence in bins, beside the diagonal of a net that knows how sure it may be; images below."""
    counts, confidence, accuracy = calibration(probs, labels)
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    figure = blank(4.6, 4.6, left=0.17, bottom=0.14)
    above, below = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    for axes, heights in ((above, np.nan_to_num(accuracy)), (below, counts)):
        axes.bar(edges[:-1], heights, width=1 / CALIBRATION_BINS, align="edge", color=RIGHT, alpha=0.5, lw=0)
        axes.spines[["top", "right"]].set_visible(False)
    above.plot((0, 1), (0, 1), color="black", linestyle=":", label="confidence = accuracy")
    above.plot(confidence, accuracy, color=WRONG, marker="o", ms=4, lw=1, label="mean confidence and accuracy of a bin")
    above.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
    above.legend(loc="lower right", fontsize=8, frameon=False)
    below.set(xlabel="confidence: the highest probability", ylabel="images")
    below.yaxis.set_major_formatter("{x:,.0f}")
    title(above, f"Expected calibration error {100 * calibration_error(probs, labels):.2f} %, {CALIBRATION_BINS} bins")
    return figure


def mosaic(pictures: Array, columns: int, right: int, below: int) -> NDArray[np.float64]:
    """Pictures (n, h, w) row by row in one array, with nan in the `right` and `below` pixels beside each."""
    count, height, width = pictures.shape
    rows = -(-count // columns)
    cells = np.full((rows * columns, height + below, width + right), np.nan)
    cells[:count, :height, :width] = pictures
    return np.block([[*cells[row * columns : (row + 1) * columns]] for row in range(rows)])


def images_figure(images: Array, titles: Sequence[str]) -> Figure:
    """A grid of images (n, 28, 28) uint8, each with its caption below, in one picture: an axes for each is slow."""
    if not len(images):
        figure = Figure(figsize=(3, 1))
        figure.text(0.5, 0.5, "none", ha="center", va="center")
        return figure
    count, height, width = images.shape
    columns = min(count, 6)
    below = 4 + 4 * max(text.count("\n") + 1 for text in titles)
    grid = mosaic(images, columns, GAP, below)
    figure = Figure(figsize=(grid.shape[1] / PIXELS_PER_INCH, grid.shape[0] / PIXELS_PER_INCH))
    axes = figure.add_axes((0.02, 0.01, 0.97, 0.97))
    axes.imshow(grid, cmap="gray", vmin=0, vmax=255, aspect="equal")
    axes.set_axis_off()
    for index, text in enumerate(titles):
        row, column = divmod(index, columns)
        x, y = column * (width + GAP) + width / 2, row * (height + below) + height + 1
        axes.text(x, y, text, ha="center", va="top", fontsize=7.5)
    return figure


def mistakes_figure(images: Array, probs: Array, labels: Array) -> Figure:
    """Images (n, 28, 28) uint8 with their true class, what they were taken for, and its probability."""
    names = [
        f"{CLASSES[label]} →\n{CLASSES[row.argmax()]} {row.max():.0%}" for row, label in zip(probs, labels, strict=True)
    ]
    return images_figure(images, names)


def filters_figure(weights: Array) -> Figure:
    """The kernels (C, 1, k, k) of a first layer, on one scale; orange is below zero, purple above."""
    count, _, size, _ = weights.shape
    grid = mosaic(weights[:, 0], 8, 1, 1)
    height = 0.55 + 0.58 * -(-count // 8)
    figure = blank(5.6, height, left=0.03, bottom=0.25 / height)  # room for `mark` below the colour bar
    axes = figure.subplots()
    most = abs(weights).max()
    picture = axes.imshow(grid, cmap="PuOr", vmin=-most, vmax=most, extent=(0, grid.shape[1], grid.shape[0], 0))
    axes.set_axis_off()
    figure.colorbar(picture, ax=axes).ax.tick_params(labelsize=8)
    title(axes, f"{count} filters of {size} x {size}, first layer")
    return figure


def curves_figure(scalars: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """Loss and accuracy by epoch, training and validation on one chart, from points (epoch, value).

    Names are train/loss, val/loss, train/accuracy and val/accuracy; one that is missing is not drawn.
    """
    figure = blank(4.6, 4.6, left=0.17, bottom=0.14)
    for axes, name in zip(figure.subplots(2, sharex=True), ("loss", "accuracy"), strict=True):
        for stage, color, style in (("train", WRONG, "--"), ("val", RIGHT, "-")):
            if points := scalars.get(f"{stage}/{name}"):
                axes.plot(*zip(*points, strict=True), color=color, linestyle=style, marker="o", ms=3, label=stage)
        axes.set_ylabel(name)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.lines:
            axes.legend(fontsize=8, frameon=False)
    axes.set_xlabel("epoch")
    axes.set_xlim(0.5, 0.5 + max((epoch for points in scalars.values() for epoch, _ in points), default=1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure
