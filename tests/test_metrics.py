"""Metrics against scikit-learn; the interval against its defining equation."""

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import Tensor
from torch.nn import functional as F

from fmnist_lightning.metrics import METRIC_NAMES, Z_95, EpochMetrics, wilson_interval


def by_scikit_learn(probs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The original's own five calls, but that the AUC leaves out classes without images."""
    predicted = probs.argmax(axis=1)
    return {
        "accuracy": sk.accuracy_score(labels, predicted),
        "precision": sk.precision_score(labels, predicted, average="macro", zero_division=0),
        "recall": sk.recall_score(labels, predicted, average="macro", zero_division=0),
        "f1": sk.f1_score(labels, predicted, average="macro", zero_division=0),
        "auroc": np.mean([sk.roc_auc_score(labels == label, probs[:, label]) for label in np.unique(labels)]).item(),
    }


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("batch_size", [1000, 37, 1])
def test_epoch_metrics_are_scikit_learns(seed: int, batch_size: int) -> None:
    """At any batch size, in any order, in two epochs; with ties, where implementations of ROC curves differ."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 10, (1000,), generator=generator)
    logits = torch.randn(1000, 10, generator=generator)
    logits[torch.arange(1000), labels] += 2
    logits[1::2] = logits[::2].clone()
    reference = by_scikit_learn(logits.double().softmax(dim=1).numpy(), labels.numpy())
    reference["loss"] = sk.log_loss(labels, logits.double().softmax(dim=1).numpy())
    assert reference.keys() == {*METRIC_NAMES, "loss"}
    metrics = EpochMetrics(10, "test/")
    for _ in range(2):
        metrics.reset()
        for indices in torch.randperm(1000, generator=generator).split(batch_size):
            metrics.update(logits[indices], labels[indices], indices)
        values = {name: value.item() for name, value in metrics.compute().items()}
        assert values == pytest.approx({f"test/{name}": value for name, value in reference.items()}, abs=1e-6)
        assert all(map(torch.equal, metrics.outputs, (logits, labels, torch.arange(1000))))


PREDICTIONS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "no mistake": lambda labels, size: labels,
    "only mistakes": lambda labels, size: (labels + 1) % size,
    "one class": lambda labels, size: torch.zeros_like(labels),
    "not the last class": lambda labels, size: labels.clamp(max=size - 2),
}


@pytest.mark.parametrize("lacking", [0, 1])
@pytest.mark.parametrize("name", PREDICTIONS)
def test_extreme_metrics_are_scikit_learns_within_0_and_1(name: str, lacking: int) -> None:
    """Also of labels that lack the last class. A class that is neither true nor predicted counts in no average."""
    generator = torch.Generator().manual_seed(0)
    for size, dtype in product((3, 10, 11, 20, 47), (torch.float32, torch.float64)):
        labels = torch.arange(5 * size) % (size - lacking)
        logits = torch.rand(len(labels), size, generator=generator, dtype=dtype)
        logits += 9 * F.one_hot(PREDICTIONS[name](labels, size), size)
        metrics = EpochMetrics(size, "")
        metrics.update(logits, labels, torch.arange(len(labels)))
        values = {key: value.item() for key, value in metrics.compute().items() if key != "loss"}
        assert all(0 <= value <= 1 for value in values.values()), (size, dtype, values)
        assert values == pytest.approx(by_scikit_learn(logits.softmax(dim=1).numpy(), labels.numpy()), abs=1e-6)


@pytest.mark.parametrize(("accuracy", "count"), [(0.9139, 10000), (0.0, 10), (1.0, 10), (1.0, 63), (0.5, 1)])
def test_wilson_interval_ends_where_the_score_test_does(accuracy: float, count: int) -> None:
    """Wilson's interval contains each p for which |accuracy - p| <= z sqrt(p (1 - p) / n)."""
    low, high = wilson_interval(accuracy, count)
    assert 0 <= low <= accuracy + 1e-12
    assert accuracy - 1e-12 <= high <= 1
    for end in (low, high):
        assert abs(accuracy - end) == pytest.approx(Z_95 * (end * (1 - end) / count) ** 0.5, abs=1e-7)
