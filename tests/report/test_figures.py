"""Figures, and the numbers in them, against scikit-learn, torchmetrics and hand-made values."""

import copy
from collections.abc import Callable
from itertools import combinations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from sklearn import metrics as sk
from torchmetrics.functional.classification import multiclass_calibration_error

from fmnist_lightning.data.fashion_mnist import CLASSES
from fmnist_lightning.report import plots as figures
from fmnist_lightning.report.analysis import (
    CALIBRATION_BINS,
    Confusion,
    average_precisions,
    calibration,
    calibration_error,
    confusion_matrix,
    most_confused,
    per_class,
    worst_mistakes,
)

Predictions = tuple[np.ndarray, np.ndarray]


def predictions(count: int, seed: int = 0, classes: int = 10) -> Predictions:
    """Probabilities, mostly right, some of them equal, with labels of the first `classes` classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    logits = rng.normal(size=(count, 10))
    logits[np.arange(count), labels] += 3 * rng.random(count)
    probs = np.exp(logits).round(1)
    return (probs / probs.sum(axis=1, keepdims=True)).astype(np.float32), labels


def of_choices(*choices: tuple[int, int, float]) -> Predictions:
    """Probabilities by hand: (label, predicted class, its probability); one other class has the rest."""
    probs = np.zeros((len(choices), 10), np.float32)
    for row, (label, predicted, probability) in zip(probs, choices, strict=True):
        row[label if label != predicted else (label + 1) % 10] = 1 - probability
        row[predicted] = probability
    return probs, np.array([label for label, _, _ in choices])


@pytest.mark.parametrize("seed", range(3))
def test_each_class_has_scikit_learns_figures(seed: int) -> None:
    probs, labels = predictions(500, seed)
    predicted = probs.argmax(axis=1)
    assert (confusion_matrix(probs, labels) == sk.confusion_matrix(labels, predicted)).all()
    by_class = sk.precision_recall_fscore_support(labels, predicted, labels=range(10), zero_division=np.nan)
    areas = sk.roc_auc_score(np.eye(10)[labels], probs, average=None)
    for label, ours in enumerate(per_class(probs, labels)):
        assert ours.name == CLASSES[label]
        reference = (*(figure[label] for figure in by_class[:3]), areas[label], by_class[3][label])
        assert ours[1:] == pytest.approx(reference, abs=1e-6)
        precision = sk.average_precision_score(labels == label, probs[:, label])
        assert average_precisions(probs, labels)[label] == pytest.approx(precision, abs=1e-6)


def test_pairs_are_ranked_by_mistakes_both_ways() -> None:
    counts = np.diag([100] * 10)
    counts[0, 6], counts[6, 0], counts[4, 2], counts[7, 9] = 3, 4, 6, 5
    pairs = most_confused(counts)
    assert pairs[:3] == [Confusion(0, 6, 3, 4), Confusion(2, 4, 0, 6), Confusion(7, 9, 5, 0)]
    assert [pair.total for pair in pairs] == [7, 6, 5] + [0] * 42


def test_the_worst_mistakes_are_those_of_the_highest_loss() -> None:
    probs, labels = predictions(300)
    loss = -np.log(probs[np.arange(300), labels])
    naive = sorted((i for i in range(300) if probs[i].argmax() != labels[i]), key=lambda i: -loss[i])
    assert worst_mistakes(probs, labels, 20).tolist() == naive[:20]
    assert len(worst_mistakes(probs, labels, 1000)) == len(naive) < 300


@pytest.mark.parametrize("seed", range(3))
def test_the_calibration_error_is_torchmetrics(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, 1000)
    probs = rng.dirichlet([0.2] * 10, 1000).astype(np.float32).clip(0, 1 - 1e-6)
    theirs = multiclass_calibration_error(torch.tensor(probs), torch.tensor(labels), 10, n_bins=CALIBRATION_BINS)
    assert calibration_error(probs, labels) == pytest.approx(theirs.item(), abs=1e-6)


def test_the_calibration_error_by_hand() -> None:
    """Two of three right at .9; one wrong at .5: errors of .9 - 2/3 on three images and of .5 on one."""
    probs, labels = of_choices((3, 3, 0.9), (4, 4, 0.9), (5, 1, 0.9), (6, 0, 0.5))
    assert calibration_error(probs, labels) == pytest.approx((3 * (0.9 - 2 / 3) + 0.5) / 4, abs=1e-6)


def test_probabilities_of_one_belong_to_the_last_bin() -> None:
    """Right at .95 and wrong at 1 are one bin, whose confidence is .975 and whose accuracy a half."""
    probs, labels = of_choices((0, 0, 0.95), (1, 2, 1.0))
    assert calibration(probs, labels).counts[-1] == 2
    assert calibration_error(probs, labels) == pytest.approx(0.475, abs=1e-6)
    apart = multiclass_calibration_error(torch.tensor(probs), torch.tensor(labels), 10, n_bins=CALIBRATION_BINS)
    assert apart.item() == pytest.approx((0.05 + 1) / 2, abs=1e-6)  # so torchmetrics can't be taken for this


DRAWN_OF_PREDICTIONS: dict[str, Callable[[np.ndarray, np.ndarray], Figure]] = {
    "images": lambda probs, labels: figures.confusion_figure(confusion_matrix(probs, labels), by_row=False),
    "by row": lambda probs, labels: figures.confusion_figure(confusion_matrix(probs, labels), by_row=True),
    "roc": figures.roc_figure,
    "precision and recall": figures.precision_recall_figure,
    "reliability": figures.reliability_figure,
}


@pytest.mark.parametrize("name", DRAWN_OF_PREDICTIONS)
@pytest.mark.parametrize(("count", "classes"), [(200, 10), (30, 4), (5, 1), (1, 1)])
def test_figures_of_few_images_and_absent_classes_are_drawn(name: str, count: int, classes: int) -> None:
    """Without a warning, since warnings are errors here."""
    DRAWN_OF_PREDICTIONS[name](*predictions(count, classes=classes)).draw_without_rendering()


def test_figures_leave_matplotlib_as_it_was() -> None:
    before = copy.deepcopy(dict(mpl.rcParams))
    for draw in DRAWN_OF_PREDICTIONS.values():
        draw(*predictions(50))
    figures.images_figure(np.zeros((7, 28, 28), np.uint8), ["Bag"] * 7)
    figures.filters_figure(np.ones((32, 1, 3, 3)))
    figures.curves_figure({"val/loss": [(1, 0.5)]}).draw_without_rendering()
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == []


@pytest.mark.parametrize(("by_row", "expected"), [(False, {"3", "1", "4"}), (True, {"75.0", "25.0", "100.0"})])
def test_the_cells_of_a_confusion_matrix_hold_its_numbers(by_row: bool, expected: set[str]) -> None:
    counts = np.zeros((10, 10), np.int64)
    counts[0, 0], counts[0, 6], counts[1, 1] = 3, 1, 4
    [axes] = figures.confusion_figure(counts, by_row=by_row).axes
    cells = {(text.get_position(), text.get_text()) for text in axes.texts}
    assert {text for _, text in cells} == expected
    assert ((6, 0), "25.0" if by_row else "1") in cells  # column 6 is the prediction, row 0 the truth
    assert [label.get_text() for label in axes.get_yticklabels()] == list(CLASSES)


def assert_among(points: np.ndarray, reference: np.ndarray) -> None:
    """Each point (x, y) is one of the reference's."""
    distance = abs(points[:, None] - reference).max(axis=2).min(axis=1)
    assert distance.max() < 1e-6


@pytest.mark.parametrize("count", [60, 2000])
def test_roc_curves_pass_through_scikit_learns_points(count: int) -> None:
    probs, labels = predictions(count)
    [axes] = figures.roc_figure(probs, labels).axes
    for label, line in enumerate(axes.lines):
        false, true, _ = sk.roc_curve(labels == label, probs[:, label], drop_intermediate=False)
        assert_among(line.get_xydata(), np.column_stack([false.clip(0.5 / count), true]))
        assert line.get_xydata()[-1].tolist() == [1, 1]
        area = sk.roc_auc_score(labels == label, probs[:, label])
        assert line.get_label() == f"{CLASSES[label]} {100 * area:.2f}"


def test_precision_recall_curves_pass_through_scikit_learns_points() -> None:
    probs, labels = predictions(2000)
    [axes] = figures.precision_recall_figure(probs, labels).axes
    for label, line in enumerate(axes.lines):
        precision, recall, _ = sk.precision_recall_curve(labels == label, probs[:, label])
        assert_among(line.get_xydata(), np.column_stack([recall, precision]))


def test_points_that_can_not_be_told_apart_are_drawn_once() -> None:
    x = np.linspace(0, 1, 100_000)
    drawn = figures.thinned(x, x**2)
    assert drawn[-1]
    assert drawn.sum() < 3 * figures.CURVE_STEPS
    kept = np.flatnonzero(drawn)
    assert np.diff(x[kept]).max() <= 1.001 / figures.CURVE_STEPS  # nowhere is a visible part left out
    assert figures.thinned(x[::25_000], x[::25_000]).all()


def test_images_stand_in_their_grid_with_their_captions() -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 28, 28), np.uint8)
    [axes] = figures.images_figure(images, [f"image {i}" for i in range(8)]).axes
    grid = axes.images[0].get_array()
    assert (grid[:28, 32:60] == images[1]).all()
    assert [text.get_text() for text in axes.texts] == [f"image {i}" for i in range(8)]
    x, y = axes.texts[7].get_position()  # the second row's second
    assert (grid[int(y) - 29 : int(y) - 1, int(x) - 14 : int(x) + 14] == images[7]).all()


def test_no_images_make_a_figure_that_says_so() -> None:
    figure = figures.images_figure(np.zeros((0, 28, 28), np.uint8), [])
    assert [text.get_text() for text in figure.texts] == ["none"]


def test_filters_are_drawn_on_a_scale_whose_middle_is_zero() -> None:
    weights = np.linspace(-3, 1, 32 * 9).reshape(32, 1, 3, 3)
    axes = figures.filters_figure(weights).axes[0]
    assert axes.images[0].get_clim() == (-3, 3)
    assert (axes.images[0].get_array()[:3, 4:7] == weights[1, 0]).all()


def test_curves_of_training_and_validation_share_a_chart() -> None:
    scalars = {"train/loss": [(1, 0.9), (2, 0.5)], "val/loss": [(1, 0.6), (2, 0.55)], "val/accuracy": [(2, 0.8)]}
    loss, accuracy = figures.curves_figure(scalars).axes
    assert {line.get_label(): line.get_xydata().tolist() for line in loss.lines} == {
        "train": [[1, 0.9], [2, 0.5]],
        "val": [[1, 0.6], [2, 0.55]],
    }
    assert [(line.get_label(), line.get_xydata().tolist()) for line in accuracy.lines] == [("val", [[2, 0.8]])]


# What a person without one kind of cones sees, in linear light: Machado, Oliveira and Fernandes (2009),
# https://doi.org/10.1109/TVCG.2009.113, severity 1.
VISION = {
    "all cones": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(color: str) -> np.ndarray:
    values = np.array(to_rgb(color))
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(light: np.ndarray) -> np.ndarray:
    x, y, z = np.cbrt(TO_XYZ @ light.clip(1e-6, 1) / TO_XYZ.sum(axis=1))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def nearest(colors: tuple[str, ...], vision: str) -> float:
    """The smallest CIE76 distance of two of the colours; 2.3 is just noticeable."""
    seen = [lab(np.array(VISION[vision]) @ linear(color)) for color in colors]
    return min(np.linalg.norm(one - other) for one, other in combinations(seen, 2))


@pytest.mark.parametrize("vision", VISION)
def test_colours_stay_apart_for_the_colour_blind(vision: str) -> None:
    assert nearest(figures.COLORS, vision) > 30
    assert len(set(figures.CLASS_STYLES)) == len(CLASSES)


def test_matplotlibs_own_colours_do_not() -> None:
    """The control: its orange and green are nearly one to who lacks the cones for red."""
    assert nearest(tuple(f"C{i}" for i in range(5)), "protanopia") < 5


@pytest.mark.parametrize("ground", ["#ffffff", "#171b20"])
def test_colours_are_seen_on_white_and_on_the_reports_dark_ground(ground: str) -> None:
    """A contrast of 3 to 1, as https://www.w3.org/TR/WCAG22/#non-text-contrast asks for."""
    for color in figures.COLORS:
        darker, lighter = sorted(TO_XYZ[1] @ linear(shade) + 0.05 for shade in (color, ground))
        assert lighter / darker >= 3
