"""Metrics against scikit-learn; the interval against its defining equation."""

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from fmnist_lightning.metrics import METRIC_NAMES, Z_95, EpochMetrics, macro_auroc, wilson_interval


def by_scikit_learn(probs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The original's own five calls."""
    predicted = probs.argmax(axis=1)
    return {
        "accuracy": sk.accuracy_score(labels, predicted),
        "precision": sk.precision_score(labels, predicted, average="macro", zero_division=0),
        "recall": sk.recall_score(labels, predicted, average="macro", zero_division=0),
        "f1": sk.f1_score(labels, predicted, average="macro", zero_division=0),
        "auroc": sk.roc_auc_score(labels, probs, multi_class="ovr", average="macro"),
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


def test_macro_auroc_leaves_out_classes_without_images() -> None:
    generator = torch.Generator().manual_seed(0)
    probs, labels = torch.rand(200, 4, generator=generator), torch.arange(200) % 3
    expected = np.mean([sk.roc_auc_score(labels == label, probs[:, label]) for label in range(3)])
    assert macro_auroc(probs, labels, 4).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("accuracy", "count"), [(0.9139, 10000), (0.0, 10), (1.0, 10), (0.5, 1)])
def test_wilson_interval_ends_where_the_score_test_does(accuracy: float, count: int) -> None:
    """Wilson's interval contains each p for which |accuracy - p| <= z sqrt(p (1 - p) / n)."""
    low, high = wilson_interval(accuracy, count)
    assert -1e-12 <= low <= accuracy + 1e-12
    assert accuracy - 1e-12 <= high <= 1 + 1e-12
    for end in (low, high):
        assert abs(accuracy - end) == pytest.approx(Z_95 * (end * (1 - end) / count) ** 0.5, abs=1e-7)
