"""What TensorBoard shows beside scalars: where the net fails, how sure it is, its filters and batches, and tables."""

import time
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from fmnist_lightning.data.batches import Batch
from fmnist_lightning.data.datamodule import FashionMNISTDataModule
from fmnist_lightning.data.fashion_mnist import CLASSES
from fmnist_lightning.data.sources import TITLES
from fmnist_lightning.report import plots
from fmnist_lightning.report.analysis import confusion_matrix, worst_mistakes
from fmnist_lightning.report.tables import as_markdown, environment_table, per_class_table
from fmnist_lightning.runs.environment import environment

# Training and validation on one chart, on the page CUSTOM SCALARS.
CHARTS = {"training": {name: ["Multiline", [f"train/{name}", f"val/{name}"]] for name in ("accuracy", "loss")}}
SHARE_OF_TIME = 0.02  # that drawing takes while a training runs, at most
EXPECTED_SECONDS = 2.0  # that the first drawing takes, matplotlib's import included; later ones are measured
SHOWN = 24  # images in a grid

Arrays = tuple[np.ndarray, np.ndarray]  # probs (n, 10) float32 and labels (n,) int64, in file order


class Pictures(Callback):
    """Draws from what the validation computed anyway, as often as SHARE_OF_TIME allows, and the last one always.

    Does nothing without a TensorBoardLogger. The test's pictures are in the report.
    """

    def __init__(self) -> None:
        self.seconds = EXPECTED_SECONDS
        self.since = time.perf_counter()
        self.kernels: np.ndarray | None = None
        self.undrawn: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None  # probs, labels and kernels

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.since = time.perf_counter()
        if writer := writer_of(trainer):
            writer.add_custom_scalars(CHARTS)
            facts = environment(trainer.strategy.root_device)
            writer.add_text("environment", as_markdown(environment_table(facts)), trainer.global_step)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if trainer.global_step == 0 and writer_of(trainer):
            names = [CLASSES[label] for label in batch.labels[:SHOWN].tolist()]
            grid = plots.images_figure(batch.images[:SHOWN, 0].cpu().numpy(), names)
            add_figure(trainer, "train/first batch", grid)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Now: an average of the weights is in place only while it is validated.
        self.kernels = first_kernels(pl_module) if writer_of(trainer) else None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or self.kernels is None:
            return
        self.undrawn = (*validated(pl_module), self.kernels)
        if self.affordable():
            self.draw_validation(trainer, pl_module)

    def affordable(self) -> bool:
        return self.seconds <= SHARE_OF_TIME * (time.perf_counter() - self.since)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.draw_validation(trainer, pl_module)

    def draw_validation(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.undrawn:
            self.since = time.perf_counter()
            draw(trainer, *self.undrawn)
            self.seconds = time.perf_counter() - self.since
            self.undrawn = None


def writer_of(trainer: L.Trainer) -> SummaryWriter | None:
    """The first of several processes draws for all."""
    logger = trainer.logger if trainer.is_global_zero else None
    return logger.experiment if isinstance(logger, TensorBoardLogger) else None


def datamodule_of(trainer: L.Trainer) -> FashionMNISTDataModule:
    return trainer.datamodule  # type: ignore[attr-defined]


def add_figure(trainer: L.Trainer, name: str, figure: Figure) -> None:
    """Show a figure, marked where its data is a stand-in's, at the step at hand; it is closed then."""
    dataset = datamodule_of(trainer).dataset
    if dataset != "fashion_mnist":
        plots.mark(figure, TITLES[dataset])
    if writer := writer_of(trainer):
        writer.add_figure(name, figure, last_step(trainer))


def last_step(trainer: L.Trainer) -> int:
    """The step that lies behind, where the scalars of the same epoch stand.

    What stands at the number of the next one, a run that goes on from here takes for lost and purges.
    """
    return max(trainer.global_step - 1, 0)


def validated(module: Any) -> Arrays:
    """Probabilities and labels of the validation that ended."""
    logits, labels, _ = module.answers["val"]
    return logits.softmax(dim=1).cpu().numpy(), labels.cpu().numpy()


def first_kernels(module: Any) -> np.ndarray:
    """The weights (C, 1, k, k) of the first convolution."""
    kernels = next(weight for weight in module.net.parameters() if weight.ndim == 4)
    return kernels.detach().float().cpu().numpy().copy()


def draw(trainer: L.Trainer, probs: np.ndarray, labels: np.ndarray, kernels: np.ndarray) -> None:
    """Draw what probs (n, 10) and labels (n,) of a validation tell, and the filters."""
    images = datamodule_of(trainer).splits["val"].images
    drawn = {
        **{f"val/{name}": figure for name, figure in validation_figures(images, probs, labels).items()},
        "filters of the first layer": plots.filters_figure(kernels),
    }
    for name, figure in drawn.items():
        add_figure(trainer, name, figure)
    if writer := writer_of(trainer):
        writer.add_text("val/classes", as_markdown(per_class_table(probs, labels)), last_step(trainer))


def validation_figures(images: torch.Tensor, probs: np.ndarray, labels: np.ndarray) -> dict[str, Figure]:
    """Figures by their names, of images (n, 1, 28, 28) in the order of probs and labels."""
    counts = confusion_matrix(probs, labels)
    drawn = {
        "confusion matrix, by row": plots.confusion_figure(counts, by_row=True),
        "confusion matrix, images": plots.confusion_figure(counts, by_row=False),
        "ROC": plots.roc_figure(probs, labels),
        "precision and recall": plots.precision_recall_figure(probs, labels),
        "reliability": plots.reliability_figure(probs, labels),
    }
    worst = worst_mistakes(probs, labels, SHOWN)
    if len(worst):
        drawn["highest loss"] = plots.mistakes_figure(images[worst, 0].cpu().numpy(), probs[worst], labels[worst])
    return drawn
