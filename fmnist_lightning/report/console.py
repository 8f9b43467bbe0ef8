"""Print the result of a test, and filter what the libraries print."""

import logging
import warnings
from collections.abc import Mapping
from typing import Any

from fmnist_lightning.data.sets import recorded_info
from fmnist_lightning.report.tables import as_markdown, result_table

# Advertising, and what is no news here.
UNWANTED_LINES = (
    *("Tip: For seamless cloud", "GPU available: ", "TPU available: ", "set_float32_matmul_precision"),
    *("distributed_backend=", "Initializing distributed: "),
)
LOGGERS = (
    *("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"),
    "lightning.fabric.utilities.distributed",
)
UNTRUE_WARNINGS = (
    # A resumed run writes into its own folder.
    ".*Checkpoint directory .* exists and is not empty.*",
    # The weights are float32 in bf16-mixed, so the size is right.
    "Precision bf16-mixed is not supported by the model summary.*",
    # All that is logged was gathered from all ranks before, except for the clock of rank 0.
    ".*It is recommended to use `self.log\\(.*sync_dist=True\\)`.*",
    # Calls inside Lightning and TensorBoard's graph writer.
    ".*isinstance\\(treespec, LeafSpec\\).*",
    ".*torch.jit.trace.* is deprecated.*",
)


def is_wanted(record: logging.LogRecord) -> bool:
    return not any(text in record.getMessage() for text in UNWANTED_LINES)


def filter_library_output() -> None:
    """Hide UNWANTED_LINES and UNTRUE_WARNINGS; all other warnings stay."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(is_wanted)
    for message in UNTRUE_WARNINGS:
        warnings.filterwarnings("ignore", message=message)


def result_text(metrics: Mapping[str, Any]) -> str:
    """The result table below a line that says what was tested."""
    tta = ", averaged over mirror images" if metrics.get("tta") else ""
    return (
        f"{recorded_info(metrics).title}, {metrics['split']} set: {metrics['n']:,} images; model {metrics['model']}, "
        f"{metrics['parameters']:,} parameters, {metrics['checkpoint']} checkpoint{tta}\n\n"
        f"{as_markdown(result_table(metrics))}"
    )
