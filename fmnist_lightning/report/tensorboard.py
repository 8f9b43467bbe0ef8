"""Show plots of the validation, filters, images and tables in TensorBoard."""

import time
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from fmnist_lightning.data.batches import Batch
from fmnist_lightning.data.sets.fashion_mnist import CLASSES
from fmnist_lightning.report import plots
from fmnist_lightning.report.tables import as_markdown, facts_table, per_class_table
from fmnist_lightning.runs.environment import environment

# Training and validation in one chart, on the page CUSTOM SCALARS.
CHARTS = {"training": {name: ["Multiline", [f"train/{name}", f"val/{name}"]] for name in ("accuracy", "loss")}}
SHARE_OF_TIME = 0.02  # of a training, at most, for plots
EXPECTED_SECONDS = 2.0  # for the first plots, with matplotlib's start; the others are measured
SHOWN = 24  # images of the first batch


class TensorBoardPlots(Callback):
    """Plots each validation that SHARE_OF_TIME allows, and always the last one.

    It computes no predictions of its own, and does nothing without a TensorBoardLogger. The report plots the test.
    """

    def __init__(self) -> None:
        self.seconds = EXPECTED_SECONDS  # for the last plots
        self.since = time.perf_counter()  # the last plots
        # The first convolution's weights (C, 1, k, k) in the last validation, until it is plotted.
        self.kernels: np.ndarray | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.since = time.perf_counter()
        if writer := writer_of(trainer):
            writer.add_custom_scalars(CHARTS)
            facts = facts_table(environment(trainer.strategy.root_device), "Environment")
            writer.add_text("environment", as_markdown(facts), trainer.global_step)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if trainer.global_step == 0 and writer_of(trainer):
            names = [CLASSES[label] for label in batch.labels[:SHOWN].tolist()]
            add_figure(trainer, "train/first_batch", plots.images_plot(batch.images[:SHOWN, 0].cpu().numpy(), names))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        # Not later: averaged weights are in place only during the validation.
        if writer_of(trainer) and not trainer.sanity_checking:
            kernels = next(weight for weight in pl_module.net.parameters() if weight.ndim == 4)
            self.kernels = kernels.detach().float().cpu().numpy().copy()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.seconds <= SHARE_OF_TIME * (time.perf_counter() - self.since):
            self.draw_validation(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.draw_validation(trainer, pl_module)

    def draw_validation(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.kernels is not None:
            self.since = time.perf_counter()
            draw(trainer, pl_module, self.kernels)
            self.seconds = time.perf_counter() - self.since
            self.kernels = None


def writer_of(trainer: L.Trainer) -> SummaryWriter | None:
    """TensorBoard's writer, on rank 0."""
    logger = trainer.logger if trainer.is_global_zero else None
    return logger.experiment if isinstance(logger, TensorBoardLogger) else None


def draw(trainer: Any, module: Any, kernels: np.ndarray) -> None:
    """Show the plots and the table of the last validation, and the filters."""
    probs = module.val_metrics.outputs.logits.softmax(dim=1).cpu().numpy()
    labels = module.val_metrics.outputs.labels.cpu().numpy()
    images = trainer.datamodule.splits["val"].images.cpu().numpy()
    for name, figure in plots.prediction_plots(probs, labels, images).items():
        add_figure(trainer, f"val/{name}", figure)
    add_figure(trainer, "filters", plots.filters_plot(kernels))
    if writer := writer_of(trainer):
        writer.add_text("val/classes", as_markdown(per_class_table(probs, labels)), last_step(trainer))


def add_figure(trainer: Any, name: str, figure: Figure) -> None:
    """Show a figure, marked if its data is a stand-in, at the last step."""
    if writer := writer_of(trainer):
        writer.add_figure(name, plots.mark(figure, trainer.datamodule.source.name), last_step(trainer))


def last_step(trainer: L.Trainer) -> int:
    """The step of the epoch's scalars. A resumed run would purge plots at the next one."""
    return max(trainer.global_step - 1, 0)
