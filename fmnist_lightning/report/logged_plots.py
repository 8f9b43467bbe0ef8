"""Show plots of the validation, filters and images in the loggers that take pictures, and tables in TensorBoard."""

import io
import time
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from matplotlib.figure import Figure
from PIL import Image
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from fmnist_lightning.report import plots
from fmnist_lightning.report.tables import as_markdown, facts_table, per_class_table
from fmnist_lightning.runs.environment import environment

# Training and validation in one chart, on TensorBoard's page CUSTOM SCALARS.
CHARTS = {"training": {name: ["Multiline", [f"train/{name}", f"val/{name}"]] for name in ("accuracy", "loss")}}
TAKE_PICTURES = (TensorBoardLogger, WandbLogger, MLFlowLogger)  # importing the last two needs none of their packages
SHARE_OF_TIME = 0.02  # of a training, at most, for plots
EXPECTED_SECONDS = 2.0  # for the first plots, with matplotlib's start; the others are measured
SHOWN = 24  # images of the first batch


class ValidationPlots(Callback):
    """Plots each validation that SHARE_OF_TIME allows, and always the last one.

    It computes no predictions of its own, and does nothing without a logger of TAKE_PICTURES. The report plots the
    test.
    """

    def __init__(self) -> None:
        self.seconds = EXPECTED_SECONDS  # for the last plots
        self.since = time.perf_counter()  # the last plots
        self.validated = False  # since the last plots
        # The first convolution's weights (F, C, h, w) in the last validation; None if there is no convolution.
        self.kernels: np.ndarray | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.since = time.perf_counter()
        if writer := writer_of(trainer):
            writer.add_custom_scalars(CHARTS)
            facts = facts_table(environment(trainer.strategy.root_device), "Environment")
            writer.add_text("environment", as_markdown(facts), trainer.global_step)

    def on_train_batch_start(self, trainer: Any, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 0 and batch_idx == 0 and picture_loggers(trainer):
            images, labels = (tensor[:SHOWN].cpu() for tensor in batch[:2])
            names = plots.legible(trainer.datamodule.source.classes, plots.LONGEST_IN_CAPTION)
            captions = [names[label] for label in labels.tolist()]
            add_figure(trainer, "train/first_batch", plots.images_plot(images.numpy(), captions))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        # Not later: averaged weights are in place only during the validation.
        if picture_loggers(trainer) and not trainer.sanity_checking:
            self.validated, self.kernels = True, first_kernels(pl_module.net)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.seconds <= SHARE_OF_TIME * (time.perf_counter() - self.since):
            self.draw_validation(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.draw_validation(trainer, pl_module)

    def draw_validation(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.validated:
            self.since = time.perf_counter()
            draw(trainer, pl_module, self.kernels)
            self.seconds = time.perf_counter() - self.since
            self.validated = False


def first_kernels(net: nn.Module) -> np.ndarray | None:
    """The weights (F, C, h, w) of the first convolution, or None."""
    weights = (layer.weight for layer in net.modules() if isinstance(layer, nn.Conv2d))
    first = next(weights, None)
    return None if first is None else first.detach().float().cpu().numpy().copy()


def picture_loggers(trainer: L.Trainer) -> list[Logger]:
    """The loggers that take pictures, on rank 0."""
    return [one for one in trainer.loggers if isinstance(one, TAKE_PICTURES)] if trainer.is_global_zero else []


def writer_of(trainer: L.Trainer) -> SummaryWriter | None:
    """TensorBoard's writer, on rank 0."""
    return next((one.experiment for one in picture_loggers(trainer) if isinstance(one, TensorBoardLogger)), None)


def draw(trainer: Any, module: Any, kernels: np.ndarray | None) -> None:
    """Show the plots and the table of the last validation, and the filters."""
    outputs, classes = module.val_metrics.outputs, trainer.datamodule.source.classes
    probs = outputs.logits.softmax(dim=1).cpu().numpy()
    labels = outputs.labels.cpu().numpy()
    images = trainer.datamodule.splits["val"].images
    if len(labels) < len(images):  # with --limit_val_batches
        images = images[outputs.indices.to(images.device)]
    for name, figure in plots.prediction_plots(probs, labels, images, classes).items():
        add_figure(trainer, f"val/{name}", figure)
    if kernels is not None:
        add_figure(trainer, "val/filters", plots.filters_plot(kernels))
    if writer := writer_of(trainer):
        writer.add_text("val/classes", as_markdown(per_class_table(probs, labels, classes)), last_step(trainer))


def add_figure(trainer: Any, name: str, figure: Figure) -> None:
    """Show a figure at the last step, marked if its data is a stand-in, in each logger that takes pictures."""
    plots.mark(figure, trainer.datamodule.source)
    step = last_step(trainer)
    for logger in picture_loggers(trainer):
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(name, figure, step)
            continue
        with Image.open(io.BytesIO(plots.png(figure))) as picture:
            if isinstance(logger, WandbLogger):
                logger.log_image(name, [picture], step)
            elif isinstance(logger, MLFlowLogger):
                logger.experiment.log_image(logger.run_id, picture, key=name, step=step)


def last_step(trainer: L.Trainer) -> int:
    """The step of the epoch's scalars. A resumed run would purge plots at the next one."""
    return max(trainer.global_step - 1, 0)
