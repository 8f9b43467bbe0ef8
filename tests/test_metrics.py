"""Metrics against scikit-learn; the interval against its defining equation."""

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from fmnist_lightning.metrics import METRIC_NAMES, Z_95, build_metrics, wilson_interval


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


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("batch_size", [1000, 37])
def test_the_five_metrics_are_scikit_learns_at_any_batch_size(seed: int, batch_size: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 10, (1000,), generator=generator)
    logits = torch.randn(1000, 10, generator=generator)
    logits[torch.arange(1000), labels] += torch.rand(1000, generator=generator) * 4
    probs = logits.softmax(dim=1)
    # Ties are where implementations of the ROC curve part.
    probs = (probs * 50).round() / 50
    probs = probs / probs.sum(dim=1, keepdim=True)
    collection = build_metrics("test/")
    for part in torch.arange(1000).split(batch_size):
        collection.update(probs[part], labels[part])
    ours = {name: value.item() for name, value in collection.compute().items()}
    reference = by_scikit_learn(probs.double().numpy(), labels.numpy())
    assert set(reference) == set(METRIC_NAMES)
    assert ours == pytest.approx({f"test/{name}": value for name, value in reference.items()}, abs=1e-6)


@pytest.mark.parametrize(("accuracy", "count"), [(0.9139, 10000), (0.0, 10), (1.0, 10), (0.5, 1)])
def test_the_interval_ends_where_the_score_test_does(accuracy: float, count: int) -> None:
    """Wilson's interval holds each p for which |accuracy - p| <= z sqrt(p (1 - p) / n)."""
    low, high = wilson_interval(accuracy, count)
    assert -1e-12 <= low <= accuracy + 1e-12
    assert accuracy - 1e-12 <= high <= 1 + 1e-12
    for end in (low, high):
        assert abs(accuracy - end) == pytest.approx(Z_95 * (end * (1 - end) / count) ** 0.5, abs=1e-7)


def test_the_interval_of_the_originals_accuracy() -> None:
    """A worked example: 91.39 % of 10,000."""
    assert wilson_interval(0.9139, 10000) == pytest.approx((0.90824, 0.91924), abs=5e-6)
