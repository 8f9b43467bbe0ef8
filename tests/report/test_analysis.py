"""Analysis of predictions against scikit-learn, torchmetrics and values made by hand."""

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torchmetrics.functional.classification import multiclass_calibration_error

from fmnist_lightning.report import analysis


def predictions(count: int, present: int | None = None, size: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of `size` classes, mostly right, some of them equal, with labels of the first `present` classes."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, present or size, count)
    logits = rng.normal(size=(count, size))
    logits[np.arange(count), labels] += 3 * rng.random(count)
    probs = np.exp(logits).round(1)
    return (probs / probs.sum(axis=1, keepdims=True)).astype(np.float32), labels


def torchmetrics_error(probs: np.ndarray, labels: np.ndarray) -> float:
    error = multiclass_calibration_error(
        torch.tensor(probs), torch.tensor(labels), 10, n_bins=analysis.CALIBRATION_BINS
    )
    return error.item()


@pytest.mark.parametrize("size", [2, 10, 26])
def test_per_class_equals_scikit_learn(size: int) -> None:
    probs, labels = predictions(500, size=size)
    predicted = probs.argmax(axis=1)
    assert (analysis.confusion_matrix(probs, labels) == sk.confusion_matrix(labels, predicted)).all()
    truth = np.eye(size)[labels]
    precision, recall, f1, images = sk.precision_recall_fscore_support(labels, predicted, labels=range(size))
    reference = {"precision": precision, "recall": recall, "f1": f1, "images": images}
    reference["auroc"] = sk.roc_auc_score(truth, probs, average=None)
    reference["average_precision"] = sk.average_precision_score(truth, probs, average=None)
    values = analysis.per_class(probs, labels)
    assert values.keys() == reference.keys()
    for name, expected in reference.items():
        np.testing.assert_allclose(values[name], expected, atol=1e-6)


@pytest.mark.parametrize(("images", "positives"), [(13, 2), (18, 12)])
def test_per_class_areas_of_perfect_scores_are_at_most_1(images: int, positives: int) -> None:
    """torchmetrics' AUC of the first and its average precision of the second are 1.0000001."""
    scores = np.linspace(1, 0, images, dtype=np.float32)
    values = analysis.per_class(np.stack([1 - scores, scores], axis=1), (np.arange(images) < positives).astype(int))
    for name in ("auroc", "average_precision"):
        assert values[name].max() <= 1
        np.testing.assert_allclose(values[name], 1, atol=1e-6)


def test_most_confused_counts_mistakes_both_ways() -> None:
    counts = np.diag([100] * 10)
    counts[0, 6], counts[6, 0], counts[4, 2], counts[7, 9] = 3, 4, 6, 5
    assert analysis.most_confused(counts)[:3] == [(0, 6), (2, 4), (7, 9)]


def test_worst_mistakes_have_the_highest_loss() -> None:
    probs, labels = predictions(300)
    loss = -np.log(probs[np.arange(300), labels])
    naive = sorted((i for i in range(300) if probs[i].argmax() != labels[i]), key=lambda i: -loss[i])
    assert analysis.worst_mistakes(probs, labels, 20).tolist() == naive[:20]
    assert len(analysis.worst_mistakes(probs, labels, 1000)) == len(naive) < 300


def test_calibration_error_equals_torchmetrics() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 1000)
    probs = rng.dirichlet([0.2] * 10, 1000).astype(np.float32).clip(0, 1 - 1e-6)
    assert analysis.calibration_error(probs, labels) == pytest.approx(torchmetrics_error(probs, labels), abs=1e-6)


def test_calibration_puts_one_into_the_last_bin() -> None:
    """Right at .95 and wrong at 1: one bin with a confidence of .975 and an accuracy of .5."""
    probs, labels = np.zeros((2, 10), np.float32), np.array([0, 1])
    probs[0, :2] = 0.95, 0.05
    probs[1, 2] = 1
    assert analysis.calibration(probs, labels)[0][-1] == 2
    assert analysis.calibration_error(probs, labels) == pytest.approx(0.475, abs=1e-6)
    assert torchmetrics_error(probs, labels) == pytest.approx((0.05 + 1) / 2, abs=1e-6)  # two bins
