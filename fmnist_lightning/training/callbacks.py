"""Callbacks: what happens beside the training, one thing each."""

import time
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, TQDMProgressBar, WeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.utilities import rank_zero_only
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.tensorboard.summary import hparams

from fmnist_lightning.data.batches import Batch
from fmnist_lightning.metrics import METRIC_NAMES
from fmnist_lightning.runs.environment import environment
from fmnist_lightning.runs.files import atomic_write


class Throughput(Callback):
    """Logs train/images_per_second of each epoch's training steps.

    Lightning's ThroughputMonitor waits for the GPU at every batch; this waits and reads the clock twice an epoch.
    """

    def clock(self, trainer: L.Trainer) -> float:
        """Seconds, when the accelerator that trains has done what was asked of it."""
        if trainer.strategy.root_device.type != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Also here: after a restart in the middle of an epoch, Lightning does not call on_train_epoch_start.
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.images = 0
        self.start = self.clock(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        batch: Batch = args[1]
        self.images += batch.total
        if trainer.is_last_batch:
            # Now, not at the epoch's end, which comes behind the checkpoint: see Classifier.log_figures.
            rate = self.images / (self.clock(trainer) - self.start)
            pl_module.log("train/images_per_second", rate, on_step=True, on_epoch=False)


class Provenance(Callback):
    """Writes into each checkpoint by which code and machine it was trained, for the records made from it.

    Those of the parts before, where a resumed run has others, are kept too.
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


class MovingAverage(WeightAveraging):
    """Lightning's moving average of weights, with all tensors averaged in one call instead of one each.

    Validation, checkpoints and the test have the average; `decay` of it stays at each step.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(multi_avg_fn=get_ema_multi_avg_fn(decay))

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Make the average where the training computes.

        Lightning 2.6.6 makes it where the module is, which is moved to its device later: on a GPU each step would copy
        all weights to the CPU, one by one.
        """
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)


class NoProfiler(PassThroughProfiler):
    """Lightning's own for no profile makes a context for each hook of each callback at each step, 0.2 ms in all."""

    nothing = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        return self.nothing


class HParams(Callback):
    """Tells TensorBoard's HPARAMS page which options this run has and which scalars are its results.

    Lightning's `log_hyperparams` also writes the metrics as points of their own, which would stand in the curves.
    """

    @rank_zero_only
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not isinstance(trainer.logger, TensorBoardLogger):
            return
        results = {f"{stage}/{name}": 0.0 for stage in ("val", "test") for name in METRIC_NAMES}
        # The page knows numbers, truths and words.
        plain = (int, float, str, bool)
        given = trainer.logger.hparams.items()
        options = {name: value if isinstance(value, plain) else str(value).lower() for name, value in given}
        writer = trainer.logger.experiment.file_writer
        experiment, session_start, _ = hparams(options, results)
        # The third says that the run ended well, which nobody knows yet.
        for summary in (experiment, session_start):
            writer.add_summary(summary)


class ProgressBar(TQDMProgressBar):
    """Lightning's bar, with the data set in place of the end of the run folder's name, which it takes for a number."""

    def __init__(self, dataset: str) -> None:
        super().__init__()
        self.dataset = dataset

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        return {"data": self.dataset, **shown}


class EpochLines(Callback):
    """One line an epoch, for where there is no terminal for a progress bar."""

    def __init__(self, label: str) -> None:
        self.label = label

    @rank_zero_only
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        shown = ("train/loss", "train/accuracy", "val/loss", "val/accuracy", "train/images_per_second")
        figures = ((name, trainer.callback_metrics.get(name)) for name in shown)
        line = "  ".join(f"{name} {value:.4g}" for name, value in figures if value is not None)
        with suppress(BrokenPipeError):  # at Ctrl-C, what reads this may end before the epoch is saved
            print(f"{self.label} epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {line}", flush=True)


class Predictions(Callback):
    """Writes the test loop's probabilities as `.npz`.

    In file order: `probs` (n, 10) float32, `labels` (n,) int64; and `dataset`, a name.
    """

    def __init__(self, path: Path, dataset: str) -> None:
        self.path = path
        self.dataset = dataset

    @rank_zero_only
    def on_test_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        logits, labels, _ = pl_module.answers["test"]
        probs = logits.softmax(dim=1).float().cpu().numpy()
        with atomic_write(self.path) as file:
            np.savez(file, probs=probs, labels=labels.cpu().numpy(), dataset=self.dataset)
