"""The Trainer's options that say what a training shows, and what it writes into its run folder."""

import sys
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import LearningRateMonitor, ModelSummary, Timer
from lightning.pytorch.loggers import TensorBoardLogger

from fmnist_lightning.data.sources import TITLES
from fmnist_lightning.report.tensorboard import Pictures
from fmnist_lightning.runs.folders import CHECKPOINTS, LAST, PREDICTIONS, resume_command
from fmnist_lightning.runs.options import TrainOptions
from fmnist_lightning.training.callbacks import (
    EpochLines,
    HParams,
    MovingAverage,
    NoProfiler,
    Predictions,
    ProgressBar,
    Provenance,
    Throughput,
)
from fmnist_lightning.training.resume import (
    AtomicCheckpointIO,
    Patience,
    RandomState,
    RunCheckpoint,
    SaveInEpochs,
    StopOnNonFinite,
    StopOnSignal,
)


def shown(dataset: str) -> dict[str, Any]:
    """The Trainer's options that say what is shown."""
    in_terminal = sys.stdout is not None and sys.stdout.isatty()  # where Lightning's bar goes
    return {
        # Lightning would choose a summary by whether `rich` is installed; this one reads the same everywhere.
        "callbacks": [ModelSummary(), ProgressBar(dataset) if in_terminal else EpochLines(TITLES[dataset])],
        "enable_model_summary": False,
        "enable_progress_bar": in_terminal,
        "profiler": NoProfiler(),
    }


def recorded(run: Path, options: TrainOptions, steps: int) -> dict[str, Any]:
    """The Trainer's options that say what is shown, and what is written into the run folder.

    `steps` are those done before: what TensorBoard has of later ones was lost with the process that wrote it.
    """
    last, minutes, patience = run / CHECKPOINTS / LAST, options.checkpoint_every_minutes, options.patience
    # As text: Lightning keeps the place in each checkpoint, and a `Path` there is code to a reader who takes none.
    keep: dict[str, Any] = {"dirpath": str(last.parent), "enable_version_counter": False}
    display = shown(options.dataset)
    callbacks = [
        StopOnNonFinite("nothing was saved of it: start anew with a smaller --lr"),
        RandomState(options.seed),
        Timer(),
        Provenance(),
        Throughput(),
        LearningRateMonitor("epoch"),
        HParams(),
        Predictions(run / PREDICTIONS, options.dataset),
        *display.pop("callbacks"),
        Pictures(),
        *([MovingAverage(options.ema)] if options.ema else []),
        *([Patience("val/accuracy", mode="max", patience=patience)] if patience else []),
        *([SaveInEpochs(last, minutes)] if minutes else []),
        StopOnSignal(last, f"saved; to go on: {resume_command(run)}"),
        *([RunCheckpoint(**keep, filename="best", monitor="val/accuracy", mode="max")] if options.val_fraction else []),
        # Not by `save_last` of the one above: Lightning 2.6 then leaves out the epochs that are not the best so far.
        RunCheckpoint(**keep, filename=last.stem),
    ]
    logger = TensorBoardLogger(
        run.parent, name="", version=run.name, log_graph=not steps, default_hp_metric=False, purge_step=steps
    )
    return {
        **display,
        "callbacks": callbacks,
        "logger": logger,
        "log_every_n_steps": 1,  # all scalars are by the epoch
        "plugins": [AtomicCheckpointIO()],
    }
