"""Plot predictions, images and curves, without pyplot and its global state.

In every function probs are (n, classes) float32, labels (n,) int64, and `classes` the names of the classes, by label. A
class without images has no curve.
"""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.functional import classification as tm

from fmnist_lightning.data.source import DataInfo
from fmnist_lightning.report import analysis
from fmnist_lightning.report.analysis import CALIBRATION_BINS, Array

# Sky blue, orange, gray, violet, brown: distinct with every kind of color blindness, with a contrast of 3 to white.
# tests/report/test_plots.py measures both. Solid and dashed, they serve ten classes, with dots thirty.
COLORS = ("#0090dd", "#f25c05", "#929292", "#9a2eff", "#a35036")
DASHES: tuple[Any, ...] = (
    *("-", (0, (4, 1.5)), (0, (1, 1))),
    *((0, (6, 1.5, 1, 1.5)), (0, (6, 1.5, 1, 1.5, 1, 1.5)), (0, (10, 3))),
)
CLASS_STYLES = tuple((color, style) for style in DASHES for color in COLORS)
LOWEST = 10  # classes in the legend if there are more than CLASS_STYLES
FAINT = "#d0d0d0"  # curves of the others
RIGHT, WRONG = COLORS[:2]
DARKEST = 0.6  # opacity of a cell, so that black text stays legible on it
NUMBERED = 30  # classes, at most, whose confusion matrix has numbers in its cells
LABELED = 100  # labels, at most, at a side of the confusion matrix
LONGEST, LONGEST_IN_CAPTION = 20, 12  # characters of a class name; a caption has an inch
MISTAKES = 24  # images in a grid
FILTERS = 64
SIDE = 28  # a grid's lengths are in 28ths of the longer side of its images, which is an inch
GAP = 4  # between images


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def blank(width: float, height: float, *, left: float, bottom: float) -> Figure:
    """An empty figure with margins, in inches. Constrained layout would double the drawing time."""
    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(left=left / width, bottom=bottom / height, right=1 - 0.23 / width, top=1 - 0.34 / height)
    return figure


def legible(classes: Sequence[str], longest: int = LONGEST) -> list[str]:
    """The names as plots show them: long ones without their middle, those that the font lacks by number.

    matplotlib would take text between dollar signs for a formula.
    """
    glyphs = get_font(findfont(FontProperties())).get_charmap()
    names = []
    for label, name in enumerate(classes):
        if not name.strip() or not all(ord(char) in glyphs for char in name):
            name = f"class {label}"
        if len(name) > longest:
            name = f"{name[: longest // 2]}…{name[-((longest - 1) // 2) :]}"
        names.append(name.replace("$", r"\$"))
    return names


def text_width(texts: Sequence[str], points: float) -> float:
    """The width of the widest text, in inches."""
    return max(TextPath((0, 0), text, size=points).get_extents().width for text in texts) / 72


def title(axes: Axes, text: str) -> None:
    axes.set_title(text, fontsize=10, loc="left")


def mark(figure: Figure, info: DataInfo, y: float = 0.005) -> Figure:
    """The figure. If its data is a stand-in, its lower right corner says so, at the height `y`."""
    if info.stand_in:
        figure.text(0.99, y, info.title, ha="right", va="bottom", fontsize=7, weight="bold", parse_math=False)
    return figure


def prediction_plots(probs: Array, labels: Array, images: Tensor, classes: Sequence[str]) -> dict[str, Figure]:
    """All plots of predictions for images (n, C, H, W) uint8, which may be on an accelerator, by name."""
    worst = analysis.worst_mistakes(probs, labels, MISTAKES)
    mistaken = images[torch.from_numpy(worst)].cpu().numpy()
    return {
        "confusion": confusion_plot(analysis.confusion_matrix(probs, labels), classes),
        "roc": roc_plot(probs, labels, classes),
        "precision_recall": precision_recall_plot(probs, labels, classes),
        "reliability": reliability_plot(probs, labels),
        "worst_mistakes": mistakes_plot(mistaken, probs[worst], labels[worst], classes),
    }


def confusion_plot(counts: NDArray[np.int64], classes: Sequence[str]) -> Figure:
    """The matrix in percent of each true class; blue is right, orange wrong. It grows with the number of classes."""
    size = len(counts)
    numbered = size <= NUMBERED
    side = max(4.0, 0.3 * size) if numbered else min(max(4.0, 0.12 * size), 12.0)  # inches
    points = min(8.0, 55 * side / size) if size <= LABELED else 6.6
    labeled, names = slice(None, None, -(-size // LABELED)), legible(classes)
    turn: dict[str, Any] = (
        {"rotation": 45, "ha": "right"} if numbered else {"rotation": 90, "va": "center", "ha": "right"}
    )
    longest = text_width(names, points)
    left, bottom = 0.4 + longest, 0.5 + longest * (0.71 if numbered else 1)
    values = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    right = np.eye(size, dtype=bool)
    # The square root, and a scale for each color, make five mistakes visible next to a hundred.
    most = np.where(right, values[right].max(), values[~right].max(initial=0))
    opacity = DARKEST * np.sqrt(values / np.maximum(most, 1e-9))
    color = np.where(right[..., None], to_rgb(RIGHT), to_rgb(WRONG))
    edges = np.arange(size + 1) - 0.5
    figure = blank(left + side + 0.23, bottom + 0.88 * side + 0.34, left=left, bottom=bottom)
    axes = figure.subplots()
    axes.pcolormesh(edges, edges, np.dstack([color, opacity]))
    for row, column in zip(*values.nonzero(), strict=True) if numbered else ():
        text, points_of_number = f"{values[row, column]:.1f}", min(7.5, 18.75 * side / size)
        axes.text(column, row, text, ha="center", va="center", fontsize=points_of_number)
    axes.set_xticks(range(size)[labeled], names[labeled], rotation_mode="anchor", fontsize=points, **turn)
    axes.set_yticks(range(size)[labeled], names[labeled], fontsize=points)
    axes.set(xlabel="predicted", ylabel="true")
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    title(axes, "Confusion matrix, % of each true class")
    return figure


def class_curves(
    curves: Mapping[int, tuple[Tensor, Tensor]], areas: Array, name: str, classes: Sequence[str]
) -> Figure:
    """A curve (x, y) for each class. The legend has the areas, which `name` explains.

    If there are more classes than styles, only those with the LOWEST areas stand out and are in the legend.
    """
    shown = list(curves)
    if len(curves) > len(CLASS_STYLES):
        shown = sorted(curves, key=lambda label: areas[label])[:LOWEST]
        name = f"{name}: the lowest {LOWEST} of {len(curves)} classes"
    names = legible(classes)
    texts = {label: f"{names[label]} {100 * areas[label]:.2f}" for label in shown}
    columns = 2 if text_width([name, *texts.values()], 8) < 1.6 else 1
    bottom = 0.85 + 0.17 * -(-len(shown) // columns)
    figure = blank(4.6, bottom + 2.95 + 0.34, left=0.64, bottom=bottom)
    axes = figure.subplots()
    for label in curves.keys() - texts.keys():
        axes.plot(*curves[label], color=FAINT, lw=0.7)
    lines = []
    for place, (label, text) in enumerate(texts.items()):
        color, style = CLASS_STYLES[label if len(shown) == len(curves) else place]
        lines += axes.plot(*curves[label], color=color, linestyle=style, lw=1.4, label=text)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if lines:
        below: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14), "ncols": columns}
        style = {"title": name, "fontsize": 8, "title_fontsize": 8, "handlelength": 3, "frameon": False}
        # With all labels given, matplotlib does not leave out those that begin with an underscore.
        axes.legend(lines, list(texts.values()), **below, **style)
    return figure


def roc_plot(probs: Array, labels: Array, classes: Sequence[str]) -> Figure:
    """ROC curves, on a logarithmic axis, since they differ below a few percent."""
    leftmost = 0.5 / len(labels)  # stands for a rate of zero
    curves = {}
    for label, pair in analysis.one_vs_rest(probs, labels).items():
        false, true, _ = tm.binary_roc(*pair)
        curves[label] = false.double().clip(leftmost), true
    areas = analysis.per_class(probs, labels)["auroc"]
    figure = class_curves(curves, areas, "area under the curve, %", classes)
    [axes] = figure.axes
    axes.set(xlabel="false positive rate", ylabel="true positive rate")
    axes.set(xscale="log", xlim=(leftmost, 1), ylim=(0, 1.02))
    axes.xaxis.set_major_formatter(lambda rate, _: f"{100 * rate:g}%")
    axes.xaxis.set_minor_locator(NullLocator())
    title(axes, "ROC, each class against the rest")
    return figure


def precision_recall_plot(probs: Array, labels: Array, classes: Sequence[str]) -> Figure:
    curves = {}
    for label, pair in analysis.one_vs_rest(probs, labels).items():
        precision, recall, _ = tm.binary_precision_recall_curve(*pair)
        curves[label] = recall, precision
    areas = analysis.per_class(probs, labels)["average_precision"]
    figure = class_curves(curves, areas, "average precision, %", classes)
    [axes] = figure.axes
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.02))
    title(axes, "Precision and recall, each class against the rest")
    return figure


def reliability_plot(probs: Array, labels: Array) -> Figure:
    """Accuracy by confidence, with a calibrated model's diagonal, and images below."""
    counts, confidence, accuracy = analysis.calibration(probs, labels)
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    figure = blank(4.6, 4.6, left=0.78, bottom=0.64)
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


def grid_of(images: Array, columns: int, right: int, below: int, margin: float) -> Array:
    """Images (n, h, w, ...) in rows of one array, each with pixels of the value `margin` right of it and below."""
    count, height, width, *channels = images.shape
    rows, height, width = -(-count // columns), height + below, width + right
    cells = np.full((rows * columns, height, width, *channels), margin, images.dtype)
    cells[:count, : height - below, : width - right] = images
    grid = cells.reshape(rows, columns, height, width, *channels).swapaxes(1, 2)
    return grid.reshape(rows * height, columns * width, *channels)


def viewable(images: Array) -> NDArray[np.uint8]:
    """Images (n, C, H, W), uint8 or floats in 0..1, for matplotlib.

    (n, H, W, 3) if C is 3; else (n, H, W), the mean of the channels.
    """
    if np.issubdtype(images.dtype, np.floating):
        images = 255 * images
    shown = np.moveaxis(images, 1, -1) if images.shape[1] == 3 else images.mean(axis=1)
    return shown.round().clip(0, 255).astype(np.uint8)


def images_plot(images: Array, captions: Sequence[str]) -> Figure:
    """Images (n, C, H, W), uint8 or floats in 0..1, in a grid of one axes, each above its caption."""
    if not len(images):
        figure = Figure(figsize=(3, 1))
        figure.text(0.5, 0.5, "none", ha="center", va="center")
        return figure
    count, _, height, width = images.shape
    unit = max(height, width) / SIDE  # pixels
    columns = min(count, 6)
    right = math.ceil((SIDE + GAP) * unit) - width  # a caption has an inch, also below a narrow image
    below = math.ceil((4 + 4 * max(text.count("\n") + 1 for text in captions)) * unit)
    grid = grid_of(viewable(images), columns, right, below, 255)
    figure = Figure(figsize=(grid.shape[1] / unit / SIDE, grid.shape[0] / unit / SIDE))
    axes = figure.add_axes((0.02, 0.01, 0.97, 0.97))
    axes.imshow(grid, cmap="gray", vmin=0, vmax=255, aspect="equal")
    axes.set_axis_off()
    for index, text in enumerate(captions):
        row, column = divmod(index, columns)
        x, y = column * (width + right) + width / 2, row * (height + below) + height + unit
        axes.text(x, y, text, ha="center", va="top", fontsize=7.5)
    return figure


def mistakes_plot(images: Array, probs: Array, labels: Array, classes: Sequence[str]) -> Figure:
    """Images (n, C, H, W) uint8 with true class, prediction and confidence."""
    names = legible(classes, LONGEST_IN_CAPTION)
    captions = [
        f"{names[label]} →\n{names[row.argmax()]} {row.max():.0%}" for row, label in zip(probs, labels, strict=True)
    ]
    return images_plot(images, captions)


def filters_plot(weights: Array) -> Figure:
    """Filters (n, C, h, w), the mean over C, on one scale; orange is negative, purple positive."""
    count, channels, height, width = weights.shape
    means = weights[:FILTERS].mean(axis=1)
    grid = grid_of(means, 8, 1, 1, math.nan)
    inches = 0.8 + 0.58 * -(-len(means) // 8)
    figure = blank(5.6, inches, left=0.17, bottom=0.25)  # room for `mark` below the color bar
    axes = figure.subplots()
    most = abs(means).max() or 1
    image = axes.imshow(grid, cmap="PuOr", vmin=-most, vmax=most, extent=(0, grid.shape[1], grid.shape[0], 0))
    axes.set_axis_off()
    figure.colorbar(image, ax=axes).ax.tick_params(labelsize=8)
    shown = f"{count} filters" if len(means) == count else f"{len(means)} of {count} filters"
    title(axes, f"{shown} of {height} x {width}, first layer{f', mean of {channels} channels' if channels > 1 else ''}")
    return figure


def curves_plot(curves: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """Loss and accuracy, from points (epoch, value) of train/loss, val/loss and so on."""
    figure = blank(4.6, 4.6, left=0.78, bottom=0.64)
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
