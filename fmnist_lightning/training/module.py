"""The LightningModule, which wires model, loss, metrics, and optimizer."""

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F

from fmnist_lightning.data.batches import Batch
from fmnist_lightning.data.source import DataInfo
from fmnist_lightning.metrics import EpochMetrics
from fmnist_lightning.models.layers import ImageShape
from fmnist_lightning.models.nets import build_net
from fmnist_lightning.runs.options import ModuleOptions, TrainOptions, values_of
from fmnist_lightning.training.distillation import Teacher
from fmnist_lightning.training.optim import OPTIMIZERS, one_cycle


class Classifier(L.LightningModule):
    """A net of MODELS that is trained with cross-entropy by an optimizer of OPTIMIZERS.

    It logs once an epoch: the loss and all METRICS in validation and test, the loss and accuracy in training. Those of
    training come from the training steps themselves: with dropout and augmentation, while the weights change. If images
    are blended, the label with the larger share counts.
    """

    def __init__(
        self,
        model: str = "seed",
        image_shape: ImageShape = (1, 28, 28),
        num_classes: int = 10,
        class_names: Sequence[str] | None = None,
        dropout: Sequence[float] | None = None,
        optimizer: str = "adam",
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        schedule: str = "constant",
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        # Plain values, which a checkpoint holds.
        class_names = None if class_names is None else list(class_names)
        dropout = None if dropout is None else list(dropout)
        self.save_hyperparameters()
        self.net = build_net(model, image_shape, num_classes, dropout)
        self.teacher: Teacher | None = None  # `train` sets it
        self.train_metrics = EpochMetrics(num_classes, "train/", names=["accuracy"])
        self.val_metrics = EpochMetrics(num_classes, "val/")
        self.test_metrics = EpochMetrics(num_classes, "test/")
        # For the graph in TensorBoard and the sizes in the summary.
        self.example_input_array = torch.zeros(1, *image_shape, dtype=torch.uint8)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, num_classes)."""
        return self.net(images)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits = self.shared_step(batch, self.train_metrics)
        targets = batch.labels if batch.targets is None else batch.targets.to(logits.dtype)
        loss = F.cross_entropy(logits, targets, label_smoothing=self.hparams["label_smoothing"])
        if self.teacher:
            loss = self.teacher.loss(logits, batch.images, loss)
        # Not in on_train_epoch_end, which Lightning calls after it saves the epoch's checkpoint: a kill between the two
        # would lose these values.
        if self.trainer.is_last_batch:
            self.log_epoch(self.train_metrics)
        # DDP averages gradients over ranks, whose shards of a batch may differ in size.
        return loss * (len(batch.labels) * self.trainer.world_size / batch.total)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.shared_step(batch, self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.shared_step(batch, self.test_metrics)

    def shared_step(self, batch: Batch, metrics: EpochMetrics) -> Tensor:
        """Logits (B, num_classes), in float32 or better, which `metrics` keeps."""
        logits = self(batch.images)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        metrics.update(logits, batch.labels, batch.indices)
        return logits

    # These drop the outputs of an interrupted epoch. Lightning skips the first hook if it resumes in the middle of an
    # epoch, so that the first half counts.

    def on_train_epoch_start(self) -> None:
        self.train_metrics.reset()

    def on_validation_epoch_start(self) -> None:
        self.val_metrics.reset()

    def on_test_epoch_start(self) -> None:
        self.test_metrics.reset()

    def on_validation_epoch_end(self) -> None:
        self.log_epoch(self.val_metrics)

    def on_test_epoch_end(self) -> None:
        self.log_epoch(self.test_metrics)

    def log_epoch(self, metrics: EpochMetrics) -> None:
        in_step = self.trainer.training
        for name, value in metrics.compute().items():
            self.log(name, value, prog_bar=name.endswith("loss"), on_step=in_step, on_epoch=not in_step)
        metrics.reset()

    def on_fit_start(self) -> None:
        if self.teacher:
            weight = next(self.net.parameters())
            self.teacher.net.to(weight.device, weight.dtype)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save who the teacher is and, in the middle of an epoch, the outputs so far of all ranks."""
        if self.teacher:
            checkpoint["teacher"] = self.teacher.identity
        if self.train_metrics.indices:
            with self.train_metrics.sync_context():
                checkpoint["seen"] = list(self.train_metrics.collected())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.train_metrics.reset()
        if "seen" in checkpoint:
            # Rank 0 holds them all, so that each counts once, on any number of ranks.
            rows = slice(None) if self.global_rank == 0 else slice(0)
            self.train_metrics.update(*(tensor[rows].to(self.device) for tensor in checkpoint["seen"]))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        hparams: Any = self.hparams
        optimizer = OPTIMIZERS[hparams.optimizer](self.net.parameters(), hparams.lr, hparams.weight_decay)
        if hparams.schedule == "constant":
            return optimizer
        # Not trainer.estimated_stepping_batches: Lightning 2.6 then forgets to restore the loader's place in an epoch.
        trainer: Any = self.trainer
        scheduler = one_cycle(optimizer, trainer.max_epochs * len(trainer.datamodule.train_dataloader()))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def build_classifier(options: TrainOptions, info: DataInfo) -> Classifier:
    """The module of these options for a data set, with weights in their precision.

    Lightning 2.6 loads a checkpoint's weights before it converts the module to 64 bits, and so rounds them to 32.
    """
    data: dict[str, Any] = {
        "image_shape": info.image_shape,
        "num_classes": len(info.classes),
        "class_names": info.classes,
    }
    module = Classifier(**values_of(options, ModuleOptions), **data)
    return module.double() if options.precision == "64-true" else module
