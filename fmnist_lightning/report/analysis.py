"""What predictions say: of each class, of each pair of classes, of the worst mistakes, of trust in a probability.

Throughout, probs are (n, 10) float32 and labels (n,) int64; a class may be without images.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional import classification as tm

from fmnist_lightning.data.fashion_mnist import CLASSES

Array = NDArray[Any]

CALIBRATION_BINS = 15  # as in Guo et al. (2017), https://arxiv.org/abs/1706.04599


class ClassFigures(NamedTuple):
    """One class against the rest, as fractions; nan where they are not defined, as in a class without an image."""

    name: str
    precision: float
    recall: float
    f1: float
    auroc: float
    images: int


class Confusion(NamedTuple):
    """How often two classes were taken for each other."""

    first: int
    second: int
    first_as_second: int
    second_as_first: int

    @property
    def total(self) -> int:
        return self.first_as_second + self.second_as_first


class Calibration(NamedTuple):
    """Of the images whose highest probability falls in each of CALIBRATION_BINS equal bins; nan in an empty one."""

    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]  # mean highest probability
    accuracy: NDArray[np.float64]


def confusion_matrix(probs: Array, labels: Array) -> NDArray[np.int64]:
    """Counts (10, 10): rows are the truth, columns the prediction."""
    size = len(CLASSES)
    cells = np.bincount(labels * size + probs.argmax(axis=1), minlength=size**2)
    return cells.reshape(size, size).astype(np.int64)


def one_vs_rest(probs: Array, labels: Array) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """For each class that has images, and whose rest has some: its probabilities (n,), and whether it is the truth."""
    split = {
        label: (torch.from_numpy(probs[:, label]), torch.from_numpy(labels == label).long())
        for label in np.unique(labels)
    }
    return {int(label): pair for label, pair in split.items() if not pair[1].all()}


def roc_areas(probs: Array, labels: Array) -> dict[int, float]:
    """Area under the ROC curve of each class against the rest, where there is one."""
    return {label: tm.binary_auroc(*pair).item() for label, pair in one_vs_rest(probs, labels).items()}


def average_precisions(probs: Array, labels: Array) -> dict[int, float]:
    """Average precision of each class against the rest, where there is one."""
    return {label: tm.binary_average_precision(*pair).item() for label, pair in one_vs_rest(probs, labels).items()}


def per_class(probs: Array, labels: Array) -> list[ClassFigures]:
    """Precision, recall, F1 and AUC of each class against the rest, in the order of CLASSES."""
    counts = confusion_matrix(probs, labels)
    areas = roc_areas(probs, labels)
    right, images, taken = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    with np.errstate(invalid="ignore"):  # 0 / 0 is nan: nothing to tell
        precision, recall, f1 = right / taken, right / images, 2 * right / (images + taken)
    return [
        ClassFigures(name, float(precision[i]), float(recall[i]), float(f1[i]), areas.get(i, math.nan), int(images[i]))
        for i, name in enumerate(CLASSES)
    ]


def most_confused(counts: NDArray[np.int64]) -> list[Confusion]:
    """All pairs of classes, from the one most often mistaken for each other, both ways summed, to the least."""
    pairs = [
        Confusion(first, second, int(counts[first, second]), int(counts[second, first]))
        for first in range(len(counts))
        for second in range(first + 1, len(counts))
    ]
    return sorted(pairs, key=lambda pair: -pair.total)


def worst_mistakes(probs: Array, labels: Array, count: int) -> NDArray[np.int64]:
    """Indices of the `count` wrongly classified images that gave their true class least, so have the highest loss."""
    wrong = np.flatnonzero(probs.argmax(axis=1) != labels)
    of_truth = probs[wrong, labels[wrong]]
    return wrong[of_truth.argsort(kind="stable")[:count]]


def calibration(probs: Array, labels: Array) -> Calibration:
    """How often the prediction is right, by how sure it is. A probability of 1 belongs to the last bin."""
    confidence = probs.max(axis=1).astype(np.float64)
    correct = probs.argmax(axis=1) == labels
    counts, sure, right = (
        np.histogram(confidence, CALIBRATION_BINS, range=(0, 1), weights=weights)[0]
        for weights in (None, confidence, correct.astype(np.float64))
    )
    with np.errstate(invalid="ignore"):
        return Calibration(counts, sure / counts, right / counts)


def calibration_error(probs: Array, labels: Array) -> float:
    """Expected calibration error of the predicted class: mean distance of a bin's accuracy from its confidence.

    As torchmetrics' `multiclass_calibration_error`, which gives probabilities of just 1 a bin of their own, though.
    """
    counts, confidence, accuracy = calibration(probs, labels)
    return float(np.nansum(counts * abs(accuracy - confidence)) / counts.sum())
