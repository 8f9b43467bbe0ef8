"""What the program prints: the result table, and fewer of its libraries' lines."""

import logging
import warnings
from collections.abc import Mapping
from typing import Any

from fmnist_lightning.data.sources import TITLES
from fmnist_lightning.metrics import METRIC_NAMES, ORIGINAL, wilson_interval

LABELS = {"accuracy": "accuracy", "precision": "precision", "recall": "recall", "f1": "F1", "auroc": "ROC AUC"}

# Advertising, and statements that are untrue or no news here.
UNWANTED_LINES = (
    *("Tip: For seamless cloud", "GPU available: ", "TPU available: ", "set_float32_matmul_precision"),
    *("distributed_backend=", "Initializing distributed: "),
    # A run's graph is written again for its test; the report reads neither.
    *("Found more than one graph event", 'Found more than one "run metadata" event'),
)
UNTRUE_WARNINGS = (
    # A resumed run writes where it wrote before.
    ".*Checkpoint directory .* exists and is not empty.*",
    # Weights are kept in 32 bits in bf16-mixed, so the size is right.
    "Precision bf16-mixed is not supported by the model summary.*",
    # What is logged was gathered from all processes before, but for the first one's clock.
    ".*It is recommended to use `self.log\\(.*sync_dist=True\\)`.*",
    # Of calls inside Lightning and TensorBoard's graph writer, which nobody here can change.
    ".*isinstance\\(treespec, LeafSpec\\).*",
    ".*torch.jit.trace.* is deprecated.*",
)


LOGGERS = (
    *("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"),
    *("lightning.fabric.utilities.distributed", "tensorboard"),
)


class _Unwanted(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not any(text in record.getMessage() for text in UNWANTED_LINES)


def quiet() -> None:
    """Drop the lines named above; every other warning stays."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_Unwanted())
    for message in UNTRUE_WARNINGS:
        warnings.filterwarnings("ignore", message=message)


def result_rows(metrics: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """The five figures, per cent, from the content of metrics.json: name, original, this run, 95 % interval."""
    low, high = wilson_interval(metrics["accuracy"], metrics["n"])
    on_original_data = metrics["dataset"] == "fashion_mnist"
    return [
        (
            LABELS[name],
            f"{ORIGINAL[name]:.2f}" if on_original_data else "-",
            f"{100 * metrics[name]:.2f}",
            f"{100 * low:.2f} to {100 * high:.2f}" if name == "accuracy" else "",
        )
        for name in METRIC_NAMES
    ]


def result_table(metrics: Mapping[str, Any]) -> str:
    """The five figures beside the original's, as text."""
    lines = [
        f"{TITLES[metrics['dataset']]}, {metrics['split']} set: {metrics['n']:,} images; "
        f"net {metrics['model']}, {metrics['parameters']:,} parameters, {metrics['checkpoint']} checkpoint"
        f"{', averaged with its mirror images' if metrics.get('tta') else ''}",
        f"{'metric':<10} {'original':>8} {'this run':>9}   95 % interval",
    ]
    for name, original, ours, interval in result_rows(metrics):
        lines.append(f"{name:<10} {original:>8} {ours:>9}   {interval}".rstrip())
    return "\n".join(lines)
