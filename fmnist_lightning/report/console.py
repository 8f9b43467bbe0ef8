"""What a training and a test print, and the filter of what the libraries print."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmnist_lightning.cli.shell import command, program, quoted
from fmnist_lightning.data.sets import recorded_info
from fmnist_lightning.report.tables import as_markdown, duration, result_table
from fmnist_lightning.runs.folders import CHECKPOINTS, REPORT, testing_command
from fmnist_lightning.runs.options import TrainOptions

# Advertising, and what is no news here.
UNWANTED_LINES = (
    *("Tip: For seamless cloud", "GPU available: ", "TPU available: ", "set_float32_matmul_precision"),
    *("distributed_backend=", "Initializing distributed: ", "`Trainer.fit` stopped: "),
    *("Loading `train_dataloader` to estimate", "Using bfloat16 Automatic Mixed Precision"),
    "No CUDA runtime is found",  # torch.compile needs none on a CPU
    "Matplotlib is building the font cache",  # once, on a slow machine
)
LOGGERS = (
    *("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"),
    *("lightning.fabric.utilities.distributed", "torch.utils.cpp_extension", "matplotlib.font_manager"),
)
UNTRUE_WARNINGS = (
    # Only the stride of an axis of length one differs, in kernels of one channel or of 1 x 1.
    "Grad strides do not match bucket view strides.*",
    # A resumed run writes into its own folder.
    ".*Checkpoint directory .* exists and is not empty.*",
    # The weights are float32 in bf16-mixed, so the size is right.
    "Precision bf16-mixed is not supported by the model summary.*",
    # Calls inside Lightning and TensorBoard's graph writer.
    ".*isinstance\\(treespec, LeafSpec\\).*",
    ".*torch.jit.trace.* is deprecated.*",
)


COLUMNS = 80  # of a terminal


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


def epoch_line(row: Mapping[str, float], epochs: int, best: bool) -> str:
    """An epoch's metrics in at most 80 characters, with a star if it is the best so far.

    `row` is as in metrics.csv. The speed is left out where losses or epochs have more digits than usual.
    """
    parts = [f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}"]
    for split in ("train", "val"):
        if f"{split}/loss" in row:
            parts.append(f"{split} {row[f'{split}/loss']:.3f} {row[f'{split}/accuracy']:6.2%}")
    parts.append(f"lr {row['lr']:.3g}")
    star = " *" * best
    if "images_per_second" in row:
        parts.append(f"{short_number(row['images_per_second'])} img/s")
    if len("  ".join(parts) + star) > COLUMNS:
        parts.pop()
    return "  ".join(parts) + star


def short_number(value: float) -> str:
    """A number from 1 in two digits or more, such as 950, 12k or 1.2M."""
    if value < 999.5:
        return f"{value:.0f}"
    return f"{value / 1e3:.0f}k" if value < 999.5e3 else f"{value / 1e6:.1f}M"


def summary_text(
    run: Path,
    options: TrainOptions,
    title: str,
    rows: Sequence[Mapping[str, float]],
    steps: int,
    seconds: float,
    metrics: Mapping[str, Any] | None,
    own: Sequence[str] = (),
) -> str:
    """The end of a training of `steps` steps: length, best epoch, where its files are, and three commands to go on.

    `rows` are those of metrics.csv; `metrics`, the content of metrics.json, is None if there was no test; `own` names
    the own objects of the training.
    """
    done = f"{len(rows)} epoch{'s' * (len(rows) != 1)}"
    partial = not rows or steps > rows[-1]["step"]
    if partial:
        done += f", and a part of the next up to --max_steps {steps},"
    lines = [f"{title}: {done} in {duration(seconds)}"]
    if validated := [row for row in rows if "val/accuracy" in row]:
        best = max(validated, key=lambda row: row["val/accuracy"])
        lines.append(f"best epoch  {best['epoch']}, with val/accuracy {best['val/accuracy']:.2%}")
    checkpoint = run / CHECKPOINTS / f"{options.ckpt}.ckpt"
    kept = checkpoint if checkpoint.exists() else checkpoint.with_name("last.ckpt")
    tested = f", tested, of epoch {metrics['checkpoint_epoch']}" if metrics else ""
    if metrics and partial and kept.name == "last.ckpt":
        tested = f", tested, of step {steps}"
    lines.append(f"checkpoint  {kept}{tested}")
    if metrics:
        lines.append(f"report      {run / REPORT}")
    folder = quoted(run)
    next_ones = [] if metrics else [testing_command(run, own) + " --ckpt last" * (kept != checkpoint and not own)]
    if "tensorboard" in options.logger:
        next_ones.append(f"{program('tensorboard', 'tensorboard.main')} --logdir {quoted(run.parent)}")
    next_ones.append(f"{command('predict')} PICTURE --weights {folder}")
    if "datamodule" not in own:  # no option names the images that an export is verified on
        next_ones.append(f"{command('export')} --run {folder}")
    next_ones.append(f"{command('compare')} {folder} ANOTHER_RUN")
    return "\n".join([*lines, "next:", *(f"  {one}" for one in next_ones[:3])])
