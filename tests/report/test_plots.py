"""Plots: their points against scikit-learn, their cells and images, and colors that everybody can tell apart."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from sklearn import metrics as sk
from test_analysis import predictions

from fmnist_lightning.data.sets.fashion_mnist import CLASSES
from fmnist_lightning.report import plots

IMAGES = np.random.default_rng(0).integers(0, 256, (200, 1, 28, 28), np.uint8)


@pytest.mark.parametrize(("count", "classes"), [(30, 4), (5, 1), (1, 1)])
def test_plots_draw_few_images_and_absent_classes(count: int, classes: int) -> None:
    """They draw without a warning, since warnings are errors here."""
    for figure in plots.prediction_plots(*predictions(count, classes), IMAGES[:count]).values():
        figure.draw_without_rendering()


def test_confusion_plot_shows_percent_of_each_true_class() -> None:
    counts = np.zeros((10, 10), np.int64)
    counts[0, 0], counts[0, 6], counts[1, 1] = 3, 1, 4
    [axes] = plots.confusion_plot(counts).axes
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "75.0", (6, 0): "25.0", (1, 1): "100.0"}  # (predicted, true)
    assert [label.get_text() for label in axes.get_yticklabels()] == list(CLASSES)


def distance(points: np.ndarray, *reference: np.ndarray) -> float:
    """The largest distance of a point (x, y) to the nearest one of the reference's."""
    return abs(points[:, None] - np.column_stack(reference)).max(axis=2).min(axis=1).max()


@pytest.mark.parametrize("count", [60, 500])
def test_roc_plot_has_scikit_learns_points(count: int) -> None:
    probs, labels = predictions(count)
    [axes] = plots.roc_plot(probs, labels).axes
    for label, line in enumerate(axes.lines):
        false, true, _ = sk.roc_curve(labels == label, probs[:, label], drop_intermediate=False)
        assert distance(line.get_xydata(), false.clip(0.5 / count), true) < 1e-6
        assert line.get_xydata()[-1].tolist() == [1, 1]
        area = sk.roc_auc_score(labels == label, probs[:, label])
        assert line.get_label() == f"{CLASSES[label]} {100 * area:.2f}"


def test_precision_recall_plot_has_scikit_learns_points() -> None:
    probs, labels = predictions(500)
    [axes] = plots.precision_recall_plot(probs, labels).axes
    for label, line in enumerate(axes.lines):
        precision, recall, _ = sk.precision_recall_curve(labels == label, probs[:, label])
        assert distance(line.get_xydata(), recall, precision) < 1e-6


def test_images_plot_puts_captions_below_images() -> None:
    images = IMAGES[:8, 0]
    [axes] = plots.images_plot(images, [f"image {i}" for i in range(8)]).axes
    grid = axes.images[0].get_array()
    assert (grid[:28, 32:60] == images[1]).all()
    assert [text.get_text() for text in axes.texts] == [f"image {i}" for i in range(8)]
    x, y = axes.texts[7].get_position()  # the second image of the second row
    assert (grid[int(y) - 29 : int(y) - 1, int(x) - 14 : int(x) + 14] == images[7]).all()
    assert [text.get_text() for text in plots.images_plot(images[:0], []).texts] == ["none"]


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
    assert len(set(plots.CLASS_STYLES)) == len(CLASSES)
    # The control: people without cones for red hardly see matplotlib's own orange and green apart.
    assert smallest_distance([f"C{i}" for i in range(5)], "protanopia") < 5


def test_colors_contrast_with_white() -> None:
    """By 3 to 1, as https://www.w3.org/TR/WCAG22/#non-text-contrast demands."""
    assert (1.05 / (linear(plots.COLORS) @ TO_XYZ[1] + 0.05)).min() >= 3
