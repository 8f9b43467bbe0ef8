"""The five figures of the original, by torchmetrics, with every average explicit, and accuracy's error bar."""

from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

METRIC_NAMES = ("accuracy", "precision", "recall", "f1", "auroc")
# In per cent, on the test set, as Fashion-MNIST-CNN-Dropout reports them.
ORIGINAL = {"accuracy": 91.39, "precision": 91.53, "recall": 91.39, "f1": 91.43, "auroc": 99.48}
Z_95 = 1.959964  # the normal distribution's 97.5 % quantile


def build_metrics(num_classes: int, prefix: str) -> MetricCollection:
    """Accuracy over all images; macro averages of precision, recall and F1; macro one-vs-rest AUC, exact.

    Takes probabilities (B, num_classes) and labels (B,), those of all processes: metrics exchange nothing by themselves. Names
    are `prefix` + one of METRIC_NAMES.
    """
    metrics: dict[str, Metric | MetricCollection] = {
        "accuracy": MulticlassAccuracy(num_classes, average="micro", sync_on_compute=False),
        "precision": MulticlassPrecision(num_classes, average="macro", sync_on_compute=False),
        "recall": MulticlassRecall(num_classes, average="macro", sync_on_compute=False),
        "f1": MulticlassF1Score(num_classes, average="macro", sync_on_compute=False),
        "auroc": MulticlassAUROC(num_classes, average="macro", thresholds=None, sync_on_compute=False),
    }
    return MetricCollection(metrics, prefix=prefix)


def wilson_interval(accuracy: float, count: int) -> tuple[float, float]:
    """The 95 % interval for the accuracy of a net of which `accuracy` was seen on `count` images, as fractions.

    Source: Wilson (1927), https://doi.org/10.1080/01621459.1927.10502953. It stays within 0 and 1.
    """
    spread = Z_95**2 / count
    centre = (accuracy + spread / 2) / (1 + spread)
    margin = (spread * (accuracy * (1 - accuracy) + spread / 4)) ** 0.5 / (1 + spread)
    return centre - margin, centre + margin
