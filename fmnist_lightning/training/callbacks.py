"""What a training shows and records: callbacks and the logger. Those that make it resumable are in resume.py."""

import sys
import time
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import (
    Callback,
    LearningRateMonitor,
    ModelSummary,
    Timer,
    TQDMProgressBar,
    WeightAveraging,
)
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.utilities import rank_zero_only
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.tensorboard.summary import hparams

from fmnist_lightning.data.batches import Batch
from fmnist_lightning.metrics import METRIC_NAMES
from fmnist_lightning.report.logged_plots import ValidationPlots
from fmnist_lightning.runs.environment import environment
from fmnist_lightning.runs.files import atomic_write
from fmnist_lightning.runs.folders import CHECKPOINTS, LAST, PREDICTIONS
from fmnist_lightning.runs.options import TrainOptions
from fmnist_lightning.training.resume import Patience, RandomState, RunCheckpoint, SaveInEpochs, StopOnNonFinite


def run_callbacks(run: Path, options: TrainOptions, device: torch.device) -> list[Callback]:
    """The callbacks of a training that is recorded in the folder `run`."""
    folder = run / CHECKPOINTS
    # As text: Lightning saves it in each checkpoint, and a safe reader refuses a `Path`.
    where: dict[str, Any] = {"dirpath": str(folder), "enable_version_counter": False}
    best = RunCheckpoint(**where, filename="best", monitor="val/accuracy", mode="max")
    return [
        StopOnNonFinite(),
        RandomState(options.seed),
        Timer(),
        Provenance(),
        Throughput(),
        LearningRateMonitor("epoch"),
        HParams(),
        Predictions(run / PREDICTIONS),
        *display_callbacks(),
        ValidationPlots(),
        *([moving_average(options.ema, device)] if options.ema else []),
        *([Patience("val/accuracy", mode="max", patience=options.patience)] if options.patience else []),
        SaveInEpochs(folder / LAST, options.checkpoint_every_minutes),
        *([best] if options.val_fraction else []),
        # Not `save_last` of `best`: Lightning 2.6 then skips the epochs that are not the best so far.
        RunCheckpoint(**where, filename=Path(LAST).stem),
    ]


def display_callbacks() -> list[Callback]:
    # Lightning would choose a summary by whether `rich` is installed; this one looks the same everywhere.
    return [ModelSummary(), ProgressBar() if in_terminal() else EpochLines()]


def in_terminal() -> bool:
    """Whether standard output, where the progress bar goes, is a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()


def moving_average(decay: float, device: torch.device) -> WeightAveraging:
    """An exponential moving average of the weights, which validation, checkpoints and test use.

    Lightning's `EMAWeightAveraging` averages tensor by tensor, not all in one call, and its last bits differ. Without
    `device`, Lightning 2.6 keeps the average on the CPU, and each step copies all weights from the GPU.
    """
    return WeightAveraging(device, multi_avg_fn=get_ema_multi_avg_fn(decay))


class NoProfiler(PassThroughProfiler):
    """No profile; Lightning's own makes a context for each hook of each callback, 0.2 ms a step."""

    nothing = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        return self.nothing


class Throughput(Callback):
    """Logs train/images_per_second of each epoch's training steps.

    Lightning's ThroughputMonitor waits for the GPU at every batch; this one waits twice an epoch.
    """

    def clock(self, trainer: L.Trainer) -> float:
        """Seconds, read once the device has finished all steps."""
        if trainer.strategy.root_device.type != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter()

    def begin(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.images = 0
        self.start = self.clock(trainer)

    # Both: Lightning does not call on_train_epoch_start if it resumes in the middle of an epoch.
    on_train_start = on_train_epoch_start = begin

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        batch: Batch = args[1]
        self.images += batch.total
        if trainer.is_last_batch:
            # Not in on_train_epoch_end, which Lightning calls after it saves: see Classifier.training_step.
            rate = self.images / (self.clock(trainer) - self.start)
            pl_module.log("train/images_per_second", rate, on_step=True, on_epoch=False)


class Provenance(Callback):
    """Records the code and the machine of the training in each checkpoint.

    If a resumed run's earlier parts were trained elsewhere, it keeps their records too.
    """

    def __init__(self) -> None:
        self.earlier: list[dict[str, Any]] = []

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.earlier = [*checkpoint.get("earlier_environments", []), checkpoint.get("environment", {})]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.environment = {**environment(trainer.strategy.root_device), "processes": trainer.world_size}
        self.earlier = [one for one in self.earlier if one != self.environment]

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["environment"] = self.environment
        checkpoint["earlier_environments"] = self.earlier


class HParams(Callback):
    """Writes the run's options and the names of its metrics for TensorBoard's HPARAMS page.

    Lightning's `log_hyperparams` also writes values for the metrics, which would appear in their curves.
    """

    @rank_zero_only
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not isinstance(trainer.logger, TensorBoardLogger):
            return
        metrics = {f"{stage}/{name}": 0.0 for stage in ("val", "test") for name in METRIC_NAMES}
        plain = (int, float, str, bool)  # what the page can show
        given = trainer.logger.hparams.items()
        options = {name: value if isinstance(value, plain) else str(value).lower() for name, value in given}
        experiment, session_start, _ = hparams(options, metrics)  # the third says that the run has ended
        for summary in (experiment, session_start):
            trainer.logger.experiment.file_writer.add_summary(summary)


class ProgressBar(TQDMProgressBar):
    """Lightning's bar, with the data set in place of the run's number."""

    def get_metrics(self, trainer: Any, pl_module: L.LightningModule) -> dict[str, Any]:
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        return {"data": trainer.datamodule.source.name, **shown}


class EpochLines(Callback):
    """Prints a line per epoch if there is no terminal for a progress bar."""

    @rank_zero_only
    def on_train_epoch_end(self, trainer: Any, pl_module: L.LightningModule) -> None:
        names = ("train/loss", "train/accuracy", "val/loss", "val/accuracy", "train/images_per_second")
        values = ((name, trainer.callback_metrics.get(name)) for name in names)
        line = "  ".join(f"{name} {value:.4g}" for name, value in values if value is not None)
        with suppress(BrokenPipeError):  # a Ctrl-C may end the reader of a pipe before the epoch is saved
            title = trainer.datamodule.source.title
            print(f"{title} epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {line}", flush=True)


class Predictions(Callback):
    """Writes the test loop's predictions as `.npz`, in file order.

    `probs` (n, 10) float32, `labels` (n,) int64, and `dataset`, a name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @rank_zero_only
    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        logits, labels, _ = pl_module.test_metrics.outputs
        probs = logits.softmax(dim=1).float().cpu().numpy()
        with atomic_write(self.path) as file:
            np.savez(file, probs=probs, labels=labels.cpu().numpy(), dataset=trainer.datamodule.source.name)
