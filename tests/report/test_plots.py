"""Plots: their points against scikit-learn, their cells and images, and colors that everybody can tell apart."""

import string
from collections.abc import Sequence
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from sklearn import metrics as sk
from test_analysis import predictions

from fmnist_lightning.data.sets.fashion_mnist import CLASSES
from fmnist_lightning.report import plots

IMAGES = np.random.default_rng(0).integers(0, 256, (200, 1, 28, 28), np.uint8)
# A formula for matplotlib, no entry of its legends, markup, a folder's longest name, a script that its font lacks.
NAMES = ("$x_1$", "_hidden", "<b>&amp;</b>", 255 * "W", "猫", "two\nlines", "")


@pytest.mark.parametrize(
    ("count", "present", "size"), [(30, 4, 10), (5, 1, 10), (1, 1, 2), (80, 7, 7), (300, 100, 100)]
)
def test_plots_draw_few_images_and_absent_classes(count: int, present: int, size: int) -> None:
    """They draw without a warning, since warnings are errors here."""
    classes = NAMES if size == len(NAMES) else [f"name {label}" for label in range(size)]
    images = torch.zeros(count, 3, 8, 8, dtype=torch.uint8)
    for figure in plots.prediction_plots(*predictions(count, present, size), images, classes).values():
        figure.draw_without_rendering()


def test_legible_shortens_and_replaces_names() -> None:
    ends = "W" * 10 + "…" + "W" * 9
    assert plots.legible(NAMES) == [r"\$x_1\$", "_hidden", "<b>&amp;</b>", ends, "class 4", "class 5", "class 6"]
    assert plots.legible(CLASSES, plots.LONGEST_IN_CAPTION) == list(CLASSES)


def test_confusion_plot_shows_percent_of_each_true_class() -> None:
    counts = np.zeros((10, 10), np.int64)
    counts[0, 0], counts[0, 6], counts[1, 1] = 3, 1, 4
    [axes] = plots.confusion_plot(counts, CLASSES).axes
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "75.0", (6, 0): "25.0", (1, 1): "100.0"}  # (predicted, true)
    assert [label.get_text() for label in axes.get_yticklabels()] == list(CLASSES)


@pytest.mark.parametrize("size", [2, 26, 31, 100, 250])
def test_confusion_plot_stays_legible(size: int) -> None:
    """Labels inside of the figure, none over its neighbor, and numbers if they have room."""
    counts = np.full((size, size), 1)
    figure = plots.confusion_plot(counts, [f"class {label:_>12}" for label in range(size)])
    figure.draw_without_rendering()
    [axes] = figure.axes
    assert len(axes.texts) == (size**2 if size <= plots.NUMBERED else 0)
    assert max(figure.get_size_inches()) < 15
    rows = [label.get_window_extent() for label in axes.get_yticklabels()]
    columns = [label.get_window_extent() for label in axes.get_xticklabels()]
    assert len(rows) == len(columns) == min(size, 84 if size == 250 else size)
    assert all(lower.y1 <= upper.y0 for upper, lower in pairwise(rows))
    assert size <= plots.NUMBERED or all(one.x1 <= following.x0 for one, following in pairwise(columns))
    assert all(box.x0 >= 0 and box.y0 >= 0 for box in (*rows, *columns))
    if axes.texts:
        number = axes.texts[0].get_window_extent()
        assert number.width < axes.get_window_extent().width / size


def distance(points: np.ndarray, *reference: np.ndarray) -> float:
    """The largest distance of a point (x, y) to the nearest one of the reference's."""
    return abs(points[:, None] - np.column_stack(reference)).max(axis=2).min(axis=1).max()


@pytest.mark.parametrize("count", [60, 500])
def test_roc_plot_has_scikit_learns_points(count: int) -> None:
    probs, labels = predictions(count)
    [axes] = plots.roc_plot(probs, labels, CLASSES).axes
    for label, line in enumerate(axes.lines):
        false, true, _ = sk.roc_curve(labels == label, probs[:, label], drop_intermediate=False)
        assert distance(line.get_xydata(), false.clip(0.5 / count), true) < 1e-6
        assert line.get_xydata()[-1].tolist() == [1, 1]
        area = sk.roc_auc_score(labels == label, probs[:, label])
        assert line.get_label() == f"{CLASSES[label]} {100 * area:.2f}"


def test_precision_recall_plot_has_scikit_learns_points() -> None:
    probs, labels = predictions(500)
    [axes] = plots.precision_recall_plot(probs, labels, CLASSES).axes
    for label, line in enumerate(axes.lines):
        precision, recall, _ = sk.precision_recall_curve(labels == label, probs[:, label])
        assert distance(line.get_xydata(), recall, precision) < 1e-6


def legend_texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_class_curves_have_a_style_and_a_legend_each() -> None:
    classes = ("_first", *string.ascii_uppercase[1:])
    [axes] = plots.roc_plot(*predictions(900, size=26), classes).axes
    styles = {(line.get_color(), str(line._dash_pattern)) for line in axes.lines}
    assert len(styles) == 26
    assert [text.split()[0] for text in legend_texts(axes)] == list(classes)


def test_class_curves_of_many_classes_name_the_lowest() -> None:
    probs, labels = predictions(900, size=40)
    [axes] = plots.roc_plot(probs, labels, [f"{label}" for label in range(40)]).axes
    areas = sk.roc_auc_score(np.eye(40)[labels], probs, average=None)
    assert [int(text.split()[0]) for text in legend_texts(axes)] == areas.argsort()[: plots.LOWEST].tolist()
    assert "the lowest 10 of 40 classes" in axes.get_legend().get_title().get_text()
    assert len(axes.lines) == 40


def test_images_plot_puts_captions_below_images() -> None:
    images = IMAGES[:8]
    [axes] = plots.images_plot(images, [f"image {i}" for i in range(8)]).axes
    grid = axes.images[0].get_array()
    assert (grid[:28, 32:60] == images[1, 0]).all()
    assert [text.get_text() for text in axes.texts] == [f"image {i}" for i in range(8)]
    x, y = axes.texts[7].get_position()  # the second image of the second row
    assert (grid[int(y) - 29 : int(y) - 1, int(x) - 14 : int(x) + 14] == images[7, 0]).all()
    assert [text.get_text() for text in plots.images_plot(images[:0], []).texts] == ["none"]


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 28, 28), (3, 64, 64), (3, 50, 10)])
def test_images_plot_shows_colors_an_inch_high(shape: tuple[int, int, int]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, *shape), np.uint8)
    figure = plots.images_plot(images, ["caption"] * 6)
    [axes] = figure.axes
    grid = np.asarray(axes.images[0].get_array())
    _, height, width = shape
    step = grid.shape[1] // 6
    assert (grid[:height, step : step + width] == images[1].transpose(1, 2, 0)).all()
    inches = figure.get_figheight() * height / grid.shape[0]
    assert inches == pytest.approx(1)
    assert step / height >= 1  # the width of a caption in inches


def test_images_plot_takes_floats_and_other_channels() -> None:
    images = np.stack([np.zeros((4, 4)), np.ones((4, 4))])[None]  # (1, 2, 4, 4)
    [axes] = plots.images_plot(images, ["caption"]).axes
    assert (np.asarray(axes.images[0].get_array())[:4, :4] == 128).all()


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (64, 3, 7, 7), (192, 3, 16, 16), (65, 5, 3, 1)])
def test_filters_plot_shows_the_mean_of_channels(shape: tuple[int, ...]) -> None:
    weights = np.random.default_rng(0).normal(size=shape)
    figure = plots.filters_plot(weights)
    figure.draw_without_rendering()
    shown = np.asarray(figure.axes[0].images[0].get_array())
    assert (shown[: shape[2], : shape[3]] == weights[0].mean(axis=0)).all()
    assert (~np.isnan(shown)).sum() == min(shape[0], plots.FILTERS) * shape[2] * shape[3]


def test_filters_plot_centers_its_scale_on_zero() -> None:
    weights = np.linspace(-3, 1, 32 * 9).reshape(32, 1, 3, 3)
    axes = plots.filters_plot(weights).axes[0]
    assert axes.images[0].get_clim() == (-3, 3)
    assert (axes.images[0].get_array()[:3, 4:7] == weights[1, 0]).all()


def test_curves_plot_shows_training_and_validation() -> None:
    curves = {"train/loss": [(1, 0.9), (2, 0.5)], "val/loss": [(1, 0.6), (2, 0.55)], "val/accuracy": [(2, 0.8)]}
    shown = {
        f"{line.get_label()}/{axes.get_ylabel()}": list(map(tuple, line.get_xydata()))
        for axes in plots.curves_plot(curves).axes
        for line in axes.lines
    }
    assert shown == curves


# What people see who lack one kind of cones, in linear light: Machado, Oliveira and Fernandes (2009),
# https://doi.org/10.1109/TVCG.2009.113, severity 1.
VISION = {
    "all cones": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colors: Sequence[str]) -> np.ndarray:
    values = np.array([to_rgb(color) for color in colors])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def smallest_distance(colors: Sequence[str], vision: str) -> float:
    """The smallest CIE76 distance of two of the colors; 2.3 is just noticeable."""
    seen = (linear(colors) @ np.transpose(VISION[vision])).clip(1e-6, 1)
    x, y, z = np.cbrt(seen @ TO_XYZ.T / TO_XYZ.sum(axis=1)).T
    lab = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)
    return min(np.linalg.norm(one - other) for one, other in combinations(lab, 2))


def test_colors_are_distinct_for_the_color_blind() -> None:
    assert all(smallest_distance(plots.COLORS, vision) > 30 for vision in VISION)
    assert len(set(plots.CLASS_STYLES)) == len(plots.CLASS_STYLES) == 30
    # The control: people without cones for red hardly see matplotlib's own orange and green apart.
    assert smallest_distance([f"C{i}" for i in range(5)], "protanopia") < 5


def test_colors_contrast_with_white() -> None:
    """By 3 to 1, as https://www.w3.org/TR/WCAG22/#non-text-contrast demands."""
    assert (1.05 / (linear(plots.COLORS) @ TO_XYZ[1] + 0.05)).min() >= 3
