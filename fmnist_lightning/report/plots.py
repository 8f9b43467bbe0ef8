"""Plot predictions, images and curves, without pyplot and its global state.

In every function probs are (n, 10) float32 and labels (n,) int64. A class without images has no curve.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.functional import classification as tm

from fmnist_lightning.data.sets import TITLES
from fmnist_lightning.data.sets.fashion_mnist import CLASSES
from fmnist_lightning.report import analysis
from fmnist_lightning.report.analysis import CALIBRATION_BINS, Array

# Sky blue, orange, gray, violet, brown: distinct with every kind of color blindness, and with a contrast of 3 or more
# to white (tests/report/test_plots.py measures both). Solid and dashed, they serve ten classes.
COLORS = ("#0090dd", "#f25c05", "#929292", "#9a2eff", "#a35036")
CLASS_STYLES = tuple((color, style) for style in ("-", (0, (4, 1.5))) for color in COLORS)
RIGHT, WRONG = COLORS[:2]
DARKEST = 0.6  # opacity of a cell, so that black text stays legible on it
MISTAKES = 24  # images in a grid
GAP = 4  # pixels between images
PIXELS_PER_INCH = 28


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def blank(width: float, height: float, *, left: float, bottom: float) -> Figure:
    """An empty figure in inches. Constrained layout would double the drawing time."""
    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(left=left, bottom=bottom, right=0.95, top=0.93)
    return figure


def title(axes: Axes, text: str) -> None:
    axes.set_title(text, fontsize=10, loc="left")


def mark(figure: Figure, dataset: str, y: float = 0.005) -> Figure:
    """The figure. If its data is a stand-in, its lower right corner says so, at the height `y`."""
    if dataset != "fashion_mnist":
        figure.text(0.99, y, TITLES[dataset], ha="right", va="bottom", fontsize=7, weight="bold")
    return figure


def prediction_plots(probs: Array, labels: Array, images: Array) -> dict[str, Figure]:
    """All plots of predictions for images (n, 1, 28, 28) uint8, by name."""
    worst = analysis.worst_mistakes(probs, labels, MISTAKES)
    return {
        "confusion": confusion_plot(analysis.confusion_matrix(probs, labels)),
        "roc": roc_plot(probs, labels),
        "precision_recall": precision_recall_plot(probs, labels),
        "reliability": reliability_plot(probs, labels),
        "worst_mistakes": mistakes_plot(images[worst, 0], probs[worst], labels[worst]),
    }


def confusion_plot(counts: NDArray[np.int64]) -> Figure:
    """The matrix in percent of each true class; blue is right, orange wrong."""
    values = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    right = np.eye(len(counts), dtype=bool)
    # The square root, and a scale for each color, make five mistakes visible next to a hundred.
    most = np.where(right, values[right].max(), values[~right].max())
    opacity = DARKEST * np.sqrt(values / np.maximum(most, 1e-9))
    color = np.where(right[..., None], to_rgb(RIGHT), to_rgb(WRONG))
    edges = np.arange(len(counts) + 1) - 0.5
    figure = blank(5.2, 4.9, left=0.18, bottom=0.21)
    axes = figure.subplots()
    axes.pcolormesh(edges, edges, np.dstack([color, opacity]))
    for row, column in zip(*values.nonzero(), strict=True):
        axes.text(column, row, f"{values[row, column]:.1f}", ha="center", va="center", fontsize=7.5)
    axes.set_xticks(range(len(counts)), CLASSES, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(range(len(counts)), CLASSES, fontsize=8)
    axes.set(xlabel="predicted", ylabel="true")
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    title(axes, "Confusion matrix, % of each true class")
    return figure


def class_curves(curves: Mapping[int, tuple[Tensor, Tensor]], areas: Array, name: str) -> Figure:
    """A curve (x, y) for each class. The legend has the areas, which `name` explains."""
    figure = blank(4.6, 5.0, left=0.14, bottom=0.34)
    axes = figure.subplots()
    for label, (x, y) in curves.items():
        color, style = CLASS_STYLES[label]
        axes.plot(x, y, color=color, linestyle=style, lw=1.4, label=f"{CLASSES[label]} {100 * areas[label]:.2f}")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if curves:
        below: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14), "ncols": 2, "frameon": False}
        axes.legend(title=name, fontsize=8, title_fontsize=8, handlelength=3, **below)
    return figure


def roc_plot(probs: Array, labels: Array) -> Figure:
    """ROC curves, on a logarithmic axis, since they differ below a few percent."""
    leftmost = 0.5 / len(labels)  # stands for a rate of zero
    curves = {}
    for label, pair in analysis.one_vs_rest(probs, labels).items():
        false, true, _ = tm.binary_roc(*pair)
        curves[label] = false.double().clip(leftmost), true
    figure = class_curves(curves, analysis.per_class(probs, labels)["auroc"], "area under the curve, %")
    [axes] = figure.axes
    axes.set(xlabel="false positive rate", ylabel="true positive rate")
    axes.set(xscale="log", xlim=(leftmost, 1), ylim=(0, 1.02))
    axes.xaxis.set_major_formatter(lambda rate, _: f"{100 * rate:g}%")
    axes.xaxis.set_minor_locator(NullLocator())
    title(axes, "ROC, each class against the rest")
    return figure


def precision_recall_plot(probs: Array, labels: Array) -> Figure:
    curves = {}
    for label, pair in analysis.one_vs_rest(probs, labels).items():
        precision, recall, _ = tm.binary_precision_recall_curve(*pair)
        curves[label] = recall, precision
    figure = class_curves(curves, analysis.per_class(probs, labels)["average_precision"], "average precision, %")
    [axes] = figure.axes
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.02))
    title(axes, "Precision and recall, each class against the rest")
    return figure


def reliability_plot(probs: Array, labels: Array) -> Figure:
    """Accuracy by confidence, with a calibrated model's diagonal, and images below."""
    counts, confidence, accuracy = analysis.calibration(probs, labels)
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
    error = analysis.calibration_error(probs, labels)
    title(above, f"Expected calibration error {100 * error:.2f}%, {CALIBRATION_BINS} bins")
    return figure


def grid_of(images: Array, columns: int, right: int, below: int) -> NDArray[np.float64]:
    """Images (n, h, w) in rows of one array, each with a margin of nan."""
    count, height, width = images.shape
    rows, height, width = -(-count // columns), height + below, width + right
    cells = np.full((rows * columns, height, width), np.nan)
    cells[:count, : height - below, : width - right] = images
    return cells.reshape(rows, columns, height, width).swapaxes(1, 2).reshape(rows * height, columns * width)


def images_plot(images: Array, captions: Sequence[str]) -> Figure:
    """Images (n, 28, 28) uint8 in a grid of one axes, each above its caption."""
    if not len(images):
        figure = Figure(figsize=(3, 1))
        figure.text(0.5, 0.5, "none", ha="center", va="center")
        return figure
    count, height, width = images.shape
    columns = min(count, 6)
    below = 4 + 4 * max(text.count("\n") + 1 for text in captions)
    grid = grid_of(images, columns, GAP, below)
    figure = Figure(figsize=(grid.shape[1] / PIXELS_PER_INCH, grid.shape[0] / PIXELS_PER_INCH))
    axes = figure.add_axes((0.02, 0.01, 0.97, 0.97))
    axes.imshow(grid, cmap="gray", vmin=0, vmax=255, aspect="equal")
    axes.set_axis_off()
    for index, text in enumerate(captions):
        row, column = divmod(index, columns)
        x, y = column * (width + GAP) + width / 2, row * (height + below) + height + 1
        axes.text(x, y, text, ha="center", va="top", fontsize=7.5)
    return figure


def mistakes_plot(images: Array, probs: Array, labels: Array) -> Figure:
    """Images (n, 28, 28) uint8 with true class, prediction and confidence."""
    captions = [
        f"{CLASSES[label]} →\n{CLASSES[row.argmax()]} {row.max():.0%}" for row, label in zip(probs, labels, strict=True)
    ]
    return images_plot(images, captions)


def filters_plot(weights: Array) -> Figure:
    """Filters (C, 1, k, k) on one scale; orange is negative, purple positive."""
    count, _, size, _ = weights.shape
    grid = grid_of(weights[:, 0], 8, 1, 1)
    height = 0.55 + 0.58 * -(-count // 8)
    figure = blank(5.6, height, left=0.03, bottom=0.25 / height)  # room for `mark` below the color bar
    axes = figure.subplots()
    most = abs(weights).max()
    image = axes.imshow(grid, cmap="PuOr", vmin=-most, vmax=most, extent=(0, grid.shape[1], grid.shape[0], 0))
    axes.set_axis_off()
    figure.colorbar(image, ax=axes).ax.tick_params(labelsize=8)
    title(axes, f"{count} filters of {size} x {size}, first layer")
    return figure


def curves_plot(curves: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """Loss and accuracy, from points (epoch, value) of train/loss, val/loss and so on."""
    figure = blank(4.6, 4.6, left=0.17, bottom=0.14)
    for axes, name in zip(figure.subplots(2, sharex=True), ("loss", "accuracy"), strict=True):
        for stage, color, style in (("train", WRONG, "--"), ("val", RIGHT, "-")):
            if points := curves.get(f"{stage}/{name}"):
                axes.plot(*zip(*points, strict=True), color=color, linestyle=style, marker="o", ms=3, label=stage)
        axes.set_ylabel(name)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.lines:
            axes.legend(fontsize=8, frameon=False)
    axes.set_xlabel("epoch")
    axes.set_xlim(0.5, 0.5 + max(epoch for points in curves.values() for epoch, _ in points))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure
