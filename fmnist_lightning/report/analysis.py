"""Analyze predictions: classes, confused pairs, worst mistakes, calibration.

In every function probs are (n, classes) float32 and labels (n,) int64. A class may have no images.
"""

import math
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional import classification as tm

Array = NDArray[Any]

CALIBRATION_BINS = 15  # as in Guo et al. (2017), https://arxiv.org/abs/1706.04599


def confusion_matrix(probs: Array, labels: Array) -> NDArray[np.int64]:
    """Counts (classes, classes): true classes in rows, predicted classes in columns."""
    size = probs.shape[1]
    cells = np.bincount(labels * size + probs.argmax(axis=1), minlength=size**2)
    return cells.reshape(size, size).astype(np.int64)


def one_vs_rest(probs: Array, labels: Array) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """Scores (n,) and truth (n,) of each class, if it and the rest have images."""
    pairs = {
        int(label): (torch.from_numpy(probs[:, label]), torch.from_numpy(labels == label).long())
        for label in np.unique(labels)
    }
    return pairs if len(pairs) > 1 else {}


def per_class(probs: Array, labels: Array) -> dict[str, Array]:
    """Metrics (classes,) of each class against the rest, and its images, by name.

    The metrics are fractions, or nan if undefined.
    """
    counts = confusion_matrix(probs, labels)
    right, images, predicted = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    auroc, average_precision = np.full((2, probs.shape[1]), math.nan)
    for label, pair in one_vs_rest(probs, labels).items():
        # Rounding can make an area 1.0000001.
        auroc[label] = tm.binary_auroc(*pair).clamp(0, 1)
        average_precision[label] = tm.binary_average_precision(*pair).clamp(0, 1)
    with np.errstate(invalid="ignore"):  # 0 / 0 is nan
        values = {"precision": right / predicted, "recall": right / images, "f1": 2 * right / (images + predicted)}
    return {**values, "auroc": auroc, "average_precision": average_precision, "images": images}


def most_confused(counts: NDArray[np.int64]) -> list[tuple[int, int]]:
    """All pairs of classes, the one with the most mistakes first."""
    return sorted(combinations(range(len(counts)), 2), key=lambda pair: -counts[pair] - counts[pair[::-1]])


def worst_mistakes(probs: Array, labels: Array, count: int) -> NDArray[np.int64]:
    """Indices of the `count` wrong predictions with the highest loss."""
    wrong = np.flatnonzero(probs.argmax(axis=1) != labels)
    return wrong[probs[wrong, labels[wrong]].argsort(kind="stable")[:count]]


def calibration(probs: Array, labels: Array) -> tuple[Array, Array, Array]:
    """Images, mean confidence and accuracy in CALIBRATION_BINS bins of the confidence.

    The confidence is the highest probability. An empty bin has nan. The last bin includes 1.
    """
    confidence = probs.max(axis=1).astype(np.float64)
    correct = (probs.argmax(axis=1) == labels).astype(np.float64)
    images, confidences, corrects = (
        np.histogram(confidence, CALIBRATION_BINS, range=(0, 1), weights=weights)[0]
        for weights in (None, confidence, correct)
    )
    with np.errstate(invalid="ignore"):
        return images, confidences / images, corrects / images


def calibration_error(probs: Array, labels: Array) -> float:
    """Expected calibration error of the predicted class.

    Unlike torchmetrics' `multiclass_calibration_error`, it gives a confidence of exactly 1 no bin of its own.
    """
    images, confidence, accuracy = calibration(probs, labels)
    return float(np.nansum(images * abs(accuracy - confidence)) / images.sum())
