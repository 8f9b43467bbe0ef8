"""Loss and metrics of an epoch, by torchmetrics; the error bar of an accuracy."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.functional import classification as tm
from torchmetrics.utilities import dim_zero_cat


def macro_auroc(probs: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """The exact AUC of each class against the rest, averaged over the classes that have images.

    torchmetrics counts a class without images as 0, and warns, while its precision and recall leave such a class out.
    If all images are of one class, the AUC is undefined; it is 0 here, as in torchmetrics.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No (positive|negative) samples in targets")
        values = tm.multiclass_auroc(probs, labels, num_classes, average=None, thresholds=None)
    return values[labels.bincount(minlength=num_classes) > 0].mean()


# Of probabilities (n, num_classes), labels (n,) and num_classes.
METRICS: dict[str, Callable[..., Tensor]] = {
    "accuracy": partial(tm.multiclass_accuracy, average="micro"),  # of all images
    "precision": partial(tm.multiclass_precision, average="macro"),
    "recall": partial(tm.multiclass_recall, average="macro"),
    "f1": partial(tm.multiclass_f1_score, average="macro"),
    "auroc": macro_auroc,
}
METRIC_NAMES = tuple(METRICS)
Z_95 = 1.959964  # the 97.5% quantile of the normal distribution


class Outputs(NamedTuple):
    """What a model computed for n images, sorted by index."""

    logits: Tensor  # (n, num_classes) float32 or float64
    labels: Tensor  # (n,) int64
    indices: Tensor  # (n,) int64: positions in the split


class EpochMetrics(Metric):
    """Cross-entropy and metrics of a whole epoch, on all ranks, each named `prefix` + its name.

    `update` only keeps the outputs of a batch: computing at each step took a twentieth of its time (LOG.md,
    2026-11-23). `compute` gathers them once an epoch and leaves them in `outputs`.
    """

    full_state_update = False
    logits: list[Tensor]
    labels: list[Tensor]
    indices: list[Tensor]
    outputs: Outputs  # of the last epoch that was computed

    def __init__(self, num_classes: int, prefix: str, names: Sequence[str] = METRIC_NAMES) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.prefix = prefix
        self.names = names
        for state in Outputs._fields:
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor, indices: Tensor) -> None:
        self.logits.append(logits.detach())
        self.labels.append(labels)
        self.indices.append(indices)

    @property
    def pending(self) -> bool:
        """Whether there are outputs that `compute` has not seen."""
        return bool(self.indices) and self._computed is None

    def collected(self) -> Outputs:
        """The outputs so far: those of this rank, or within `sync_context` those of all ranks."""
        logits, labels, indices = (dim_zero_cat(getattr(self, state)) for state in Outputs._fields)
        order = indices.argsort()
        return Outputs(logits[order], labels[order], indices[order])

    def compute(self) -> dict[str, Tensor]:
        self.outputs = logits, labels, _ = self.collected()
        probs = logits.softmax(dim=1)
        # In 32 bits, ten times 1/10 add up to 1.0000001.
        values = {name: METRICS[name](probs, labels, self.num_classes).clamp(0, 1) for name in self.names}
        values["loss"] = F.cross_entropy(logits, labels)
        return {self.prefix + name: value for name, value in values.items()}


def wilson_interval(accuracy: float, count: int) -> tuple[float, float]:
    """The 95% interval of the accuracy of a model that reached `accuracy` on `count` images, as fractions.

    Source: Wilson (1927), https://doi.org/10.1080/01621459.1927.10502953. It stays within 0 and 1.
    """
    spread = Z_95**2 / count
    center = (accuracy + spread / 2) / (1 + spread)
    margin = (spread * (accuracy * (1 - accuracy) + spread / 4)) ** 0.5 / (1 + spread)
    return max(0.0, center - margin), min(1.0, center + margin)
