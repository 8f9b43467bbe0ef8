"""Figures and findings in words: text alternatives for who can't see a picture, made from the same numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmnist_lightning.data.fashion_mnist import CLASSES
from fmnist_lightning.metrics import ORIGINAL, wilson_interval
from fmnist_lightning.report.analysis import (
    CALIBRATION_BINS,
    Array,
    Confusion,
    average_precisions,
    calibration,
    calibration_error,
    roc_areas,
)
from fmnist_lightning.runs.options import AugmentationOptions, names

# The pair that the original's author found hard to tell apart.
AUTHORS_PAIR = (CLASSES.index("T-shirt/top"), CLASSES.index("Shirt"))


def images(count: int) -> str:
    return f"{count:,} image" if count == 1 else f"{count:,} images"


def describe_result(metrics: Mapping[str, Any]) -> str:
    """What of the images is recognised, and how that lies to the original where there is one."""
    low, high = wilson_interval(metrics["accuracy"], metrics["n"])
    told = f"{100 * metrics['accuracy']:.2f} % of {images(metrics['n'])} are recognised"
    told += f" (95 % interval {100 * low:.2f} to {100 * high:.2f})."
    if metrics["dataset"] != "fashion_mnist":
        return told
    original = ORIGINAL["accuracy"]
    place = "below" if original < 100 * low else "above" if original > 100 * high else "within"
    return f"{told} The original's {original:.2f} % lies {place} that interval."


def describe_measuring(options: Mapping[str, Any]) -> str:
    """How the figures of training in the learning curves were measured, by the run's options."""
    told = "Loss and accuracy by epoch. Training is measured while the epoch runs, with dropout on"
    if any(options.get(name) for name in names(AugmentationOptions)):
        told += " and on augmented images"
    if options.get("mixup"):
        told += ", against the label of the larger part of each mixed image"
    return f"{told}; so validation can look better."


def describe_confusion(counts: NDArray[np.int64]) -> str:
    """Of each class, how many are recognised and what the others are taken for most."""
    told = [f"Confusion matrix: {counts.trace():,} of {images(counts.sum())} are recognised."]
    for label, row in enumerate(counts):
        if row.sum():
            told.append(f"{CLASSES[label]}: {row[label]:,} of {row.sum():,} recognised{most_taken_for(label, row)}.")
    return " ".join(told)


def most_taken_for(label: int, row: NDArray[np.int64]) -> str:
    mistakes = row.copy()
    mistakes[label] = 0
    return f", {mistakes.max():,} taken for {CLASSES[mistakes.argmax()]}" if mistakes.any() else ""


def describe_authors_pair(pairs: Sequence[Confusion], counts: NDArray[np.int64]) -> str:
    """How often T-shirt and shirt are taken for each other, and the rank of that among all `pairs`, worst first."""
    rank, pair = next((rank, pair) for rank, pair in enumerate(pairs, 1) if (pair.first, pair.second) == AUTHORS_PAIR)
    mistakes = sum(other.total for other in pairs)
    share = f", {100 * pair.total / mistakes:.0f} % of all mistakes" if mistakes else ""
    return (
        f"{CLASSES[pair.first]} and {CLASSES[pair.second]}, which the original's author named as hard to tell apart: "
        f"{pair.second_as_first:,} of {counts[pair.second].sum():,} shirts are taken for T-shirts or tops, "
        f"{pair.first_as_second:,} of {counts[pair.first].sum():,} T-shirts and tops for shirts. "
        f"Together {pair.total:,}{share}: number {rank} of {len(pairs)} pairs."
    )


def describe_areas(what: str, areas: Mapping[int, float]) -> str:
    told = ", ".join(f"{CLASSES[label]} {100 * area:.2f}" for label, area in areas.items())
    return f"{what} of each class against the rest, per cent: {told or 'none, for want of classes'}."


def describe_roc(probs: Array, labels: Array) -> str:
    return describe_areas("ROC curves; area under the curve", roc_areas(probs, labels))


def describe_precision_recall(probs: Array, labels: Array) -> str:
    return describe_areas("Curves of precision and recall; average precision", average_precisions(probs, labels))


def describe_calibration(probs: Array, labels: Array) -> str:
    """How far the probabilities can be trusted."""
    sure, right = probs.max(axis=1).mean(), (probs.argmax(axis=1) == labels).mean()
    return (
        f"On average the net gives its predictions a probability of {100 * sure:.1f} %, and {100 * right:.1f} % are "
        f"right: it is {'surer than it may be' if sure > right else 'less sure than it might be'}. "
        f"The expected calibration error is {100 * calibration_error(probs, labels):.2f} %."
    )


def describe_reliability(probs: Array, labels: Array) -> str:
    """The error, and accuracy beside confidence in each bin that has images."""
    bins = [
        f"at a confidence of {100 * sure:.0f} % {100 * right:.0f} % of {images(count)}"
        for count, sure, right in zip(*calibration(probs, labels), strict=True)
        if count
    ]
    error = f"expected calibration error {100 * calibration_error(probs, labels):.2f} % in {CALIBRATION_BINS} bins"
    return f"Reliability diagram: {error}. Right are, {'; '.join(bins)}."


def describe_curves(scalars: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """Of each curve of points (epoch, value) its first, best and last point."""
    told = []
    for name, points in scalars.items():
        best = (min if name.endswith("loss") else max)(points, key=lambda point: point[1])
        (first, start), (last, end) = points[0], points[-1]
        told.append(
            f"{name} {start:.4f} after epoch {first}, {end:.4f} after epoch {last}, best {best[1]:.4f} after {best[0]}"
        )
    return f"Learning curves: {'; '.join(told)}."
