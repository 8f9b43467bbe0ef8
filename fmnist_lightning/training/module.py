"""The LightningModule: it wires net, loss, metrics and optimiser, and knows nothing of their insides."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from fmnist_lightning.data.batches import Batch
from fmnist_lightning.data.fashion_mnist import IMAGE_SIZE
from fmnist_lightning.metrics import build_metrics
from fmnist_lightning.models.layers import NUM_CLASSES
from fmnist_lightning.models.nets import MODELS
from fmnist_lightning.runs.options import ModuleOptions, TrainOptions, values_of
from fmnist_lightning.training.distillation import Teacher
from fmnist_lightning.training.distributed import gather_rows
from fmnist_lightning.training.optim import OPTIMIZERS, SCHEDULES


def build_classifier(options: TrainOptions) -> "Classifier":
    """The module of these options, with weights in their precision.

    Lightning 2.6 loads a checkpoint's weights before it converts the module to 64 bits, and so rounds them to 32.
    """
    module = Classifier(**values_of(options, ModuleOptions))
    return module.double() if options.precision == "64-true" else module


class Answers(NamedTuple):
    """What the net says of images."""

    logits: Tensor  # (n, 10) float32, or float64
    labels: Tensor  # (n,) int64, the truth
    indices: Tensor  # (n,) int64: places in the split


class Classifier(L.LightningModule):
    """A net of MODELS, trained with cross-entropy by one of OPTIMIZERS under a schedule of SCHEDULES.

    Logs train/loss and train/accuracy, measured with dropout on while the epoch runs, against the label of the larger
    part where images are mixed, and under val/ and test/ the loss and the five metrics of `build_metrics`, each once an
    epoch.

    Logits are kept, 40 bytes an image; when the epoch ends, loss and metrics are computed from all of them, those of
    other processes too: a `log` at each step, with the callbacks that hear of it, took a twentieth of a bf16 step
    (LOG.md, 2026-11-23).
    """

    def __init__(
        self,
        model: str = "seed",
        dropout: Sequence[float] = (0.25, 0.25, 0.5),
        optimizer: str = "adam",
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        schedule: str = "constant",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        dropout = list(dropout)
        self.save_hyperparameters()
        self.net = MODELS[model](dropout)
        self.teacher: Teacher | None = None  # set by a training that has one
        train_accuracy = MulticlassAccuracy(NUM_CLASSES, average="micro", sync_on_compute=False)
        self.train_metrics = MetricCollection({"accuracy": train_accuracy}, prefix="train/")
        self.val_metrics = build_metrics(NUM_CLASSES, "val/")
        self.test_metrics = build_metrics(NUM_CLASSES, "test/")
        # Of the epoch that runs, in this process, a batch each; of the one that ended, in all processes.
        self.seen: dict[str, list[Answers]] = {"train": [], "val": [], "test": []}
        self.answers: dict[str, Answers] = {}
        # For the graph in TensorBoard and the summary's sizes.
        self.example_input_array = torch.zeros(1, 1, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 1, 28, 28) to logits (B, 10)."""
        return self.net(images)

    def logits(self, batch: Batch, stage: str) -> Tensor:
        """Logits (B, 10), float32 or better, kept with their labels for the figures of `stage`."""
        logits = self(batch.images)
        logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        self.seen[stage].append(Answers(logits.detach(), batch.labels, batch.indices))
        return logits

    def log_figures(self, stage: str, metrics: MetricCollection) -> None:
        """Log loss and metrics of the epoch of `stage` that ends; keep its answers, those of all processes."""
        self.answers[stage] = logits, labels, _ = self.all_seen(stage)
        self.seen[stage].clear()
        metrics.update(logits.softmax(dim=1), labels)
        figures = {f"{stage}/loss": F.cross_entropy(logits, labels), **metrics.compute()}
        metrics.reset()
        # In training at once: the epoch's end comes behind the checkpoint, and a kill between would lose the figures.
        when: dict[str, Any] = {"on_step": stage == "train", "on_epoch": stage != "train", "batch_size": 1}
        for name, value in figures.items():
            self.log(name, value, prog_bar=name.endswith("loss"), **when)

    def all_seen(self, stage: str) -> Answers:
        """What all processes have seen so far in this epoch of `stage`, in file order, each image once."""
        parts = zip(*self.seen[stage], strict=True)
        mine = [torch.cat([kept.to(self.device) for kept in part]) for part in parts]
        everything = Answers(*gather_rows(mine))
        order = everything.indices.argsort()
        return Answers(*(part[order] for part in everything))

    def on_fit_start(self) -> None:
        if self.teacher:
            weight = next(self.net.parameters())
            self.teacher.net.to(weight.device, weight.dtype)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say who taught; in the middle of an epoch, keep what its figures will be made of."""
        if self.teacher:
            checkpoint["teacher"] = self.teacher.identity
        if self.seen["train"]:
            checkpoint["seen"] = [part.cpu() for part in self.all_seen("train")]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.seen["train"] = [Answers(*checkpoint["seen"])] if "seen" in checkpoint else []
        if self.global_rank:  # the first process has it all; the others add what comes
            self.seen["train"] = [Answers(*(part[:0] for part in seen)) for seen in self.seen["train"]]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits = self.logits(batch, "train")
        wanted = batch.labels if batch.targets is None else batch.targets.to(logits.dtype)
        loss = F.cross_entropy(logits, wanted, label_smoothing=self.hparams["label_smoothing"])
        if self.teacher:
            loss = self.teacher.loss(logits, batch.images, loss)
        # DDP takes the mean of all processes' gradients, whose shares of the batch need not be equal.
        loss = loss * (len(batch.labels) * self.trainer.world_size / batch.total)
        # Not in on_train_epoch_end, which comes too late for the callbacks that print and save these figures.
        if self.trainer.is_last_batch:
            self.log_figures("train", self.train_metrics)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.logits(batch, "val")

    def on_validation_epoch_end(self) -> None:
        self.log_figures("val", self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.logits(batch, "test")

    def on_test_epoch_end(self) -> None:
        self.log_figures("test", self.test_metrics)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        options = {name: self.hparams[name] for name in ("lr", "weight_decay")}
        optimizer = OPTIMIZERS[self.hparams["optimizer"]](self.net.parameters(), **options)
        schedule = self.hparams["schedule"]
        if schedule == "constant":
            return optimizer
        # Not trainer.estimated_stepping_batches: Lightning 2.6 then forgets to restore the loader's place in an epoch.
        trainer: Any = self.trainer
        steps = trainer.max_epochs * len(trainer.datamodule.train_dataloader())
        scheduler = SCHEDULES[schedule](optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
