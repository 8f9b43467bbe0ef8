"""The LightningModule, which wires model, loss, metrics, and optimizer."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral
from textwrap import shorten
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from fmnist_lightning.data.batches import Batch, first_tensors, labels_and_targets
from fmnist_lightning.data.source import DataError, DataInfo
from fmnist_lightning.errors import UserError
from fmnist_lightning.metrics import EpochMetrics
from fmnist_lightning.models.layers import ImageShape, as_shape
from fmnist_lightning.models.nets import build_net
from fmnist_lightning.runs.options import ModuleOptions, TrainOptions, values_of
from fmnist_lightning.training.distillation import Teacher
from fmnist_lightning.training.optim import OPTIMIZERS, SCHEDULES

OWN = "own"  # the hyperparameter of an own object, which no checkpoint holds
Loss = nn.Module | Callable[[Tensor, Tensor], Tensor]


class Classifier(L.LightningModule):
    """A model that learns to classify images, with any Trainer, from any batches that start with (images, labels).

    It logs once an epoch: the loss and all METRICS in validation and test, the loss and accuracy in training. Those of
    training come from the training steps themselves: with dropout and augmentation, while the weights change. If images
    are blended, the label with the larger share counts. `predict` gives probabilities (B, num_classes) float32. Of
    several dataloaders, each has its own metrics, such as val/loss/dataloader_idx_0.

    A checkpoint says which own objects (`net`, `loss`, `optimizer`, `schedule`) there were, and does not hold them.
    `load_from_checkpoint` needs them again. Raises ValueError if an argument is missing, unknown, or does not suit the
    others.

    Args:
        model: Name of the model: seed, notebook, compact, fine, advanced, or timm:NAME for any model of timm.
        image_shape: Channels, height and width of the images.
        num_classes: Number of classes, 2 or more.
        class_names: Names of the classes, by label, for plots and predictions.
        dropout: Dropout rates, three for all but timm's models, or one number for all three. Default: the model's own.
        optimizer: adam (Keras's), muon, sgd (with Nesterov momentum of 0.9) or adamw. Or a function that makes one from
            the parameters of the model; lr and weight_decay don't apply to it.
        lr: Learning rate. For one_cycle and cosine, its peak.
        weight_decay: Decoupled weight decay, as in AdamW; for sgd, L2 regularization.
        schedule: constant, one_cycle or cosine, for each optimizer step of the whole training. Or a function that makes
            a scheduler from the optimizer, or Lightning's dictionary of one. Lightning steps a scheduler once an epoch.
            ReduceLROnPlateau looks at val/loss, in its mode max at val/accuracy.
        label_smoothing: Label smoothing of the training loss. The logged loss has none.
        class_weights: Weights of the classes in the training loss, by label. The logged loss has none.
        pretrained: Start a timm model from its pretrained weights, which are downloaded.
        net: An own net in place of model. It maps images as the batches hold them, such as uint8 in 0..255 from
            FashionMNISTDataModule, to logits (B, num_classes).
        loss: An own loss in place of cross-entropy: a function of logits (B, num_classes) and labels (B,). If images
            are blended, it gets probabilities (B, num_classes) for labels. It is also what is logged as the loss. It
            has no weights that learn.
    """

    def __init__(
        self,
        model: str | None = "seed",
        image_shape: ImageShape = (1, 28, 28),
        num_classes: int = 10,
        class_names: Sequence[str] | None = None,
        dropout: float | Sequence[float] | None = None,
        optimizer: str | Callable[[Iterable[nn.Parameter]], Optimizer] = "adam",
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        schedule: str | Callable[[Optimizer], LRScheduler] = "constant",
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
        pretrained: bool = False,
        net: nn.Module | None = None,
        loss: Loss | None = None,
    ) -> None:
        super().__init__()
        objects = {"loss": loss, "optimizer": optimizer, "schedule": schedule}
        if lacking := [name for name, given in objects.items() if isinstance(given, str) and given == OWN]:
            raise ValueError(f"cannot load own objects from a checkpoint: give {', '.join(lacking)} again")
        check_name("optimizer", optimizer, OPTIMIZERS)
        check_name("schedule", schedule, SCHEDULES)
        check_classes(num_classes, class_names, class_weights)
        if not fits(lambda: lr > 0 and weight_decay >= 0 and 0 <= label_smoothing < 1):
            raise ValueError(
                f"cannot use lr {lr!r}, weight_decay {weight_decay!r}, label_smoothing {label_smoothing!r}: expected "
                "above 0, from 0, and from 0 to below 1"
            )
        check_objects(model, net, loss)
        if loss is not None and (label_smoothing or class_weights is not None):
            raise ValueError("cannot use label_smoothing or class_weights with an own loss (leave them out)")
        # Plain values, which a checkpoint holds.
        model = model if net is None else None
        image_shape, num_classes = as_shape(image_shape), int(num_classes)
        class_names = None if class_names is None else list(class_names)
        dropout = list(dropout) if isinstance(dropout, Iterable) else dropout
        class_weights = None if class_weights is None else [float(weight) for weight in class_weights]
        own = dict.fromkeys([name for name, given in objects.items() if callable(given)], OWN)
        # A checkpoint has the weights, so that none are downloaded to load it.
        self.save_hyperparameters(ignore=["net", "loss", "pretrained", *own])
        self.hparams.update({"model": model, **own})  # LightningCLI saves what it was given
        self.net = (
            build_net(str(model), image_shape, num_classes, dropout, pretrained=pretrained) if net is None else net
        )
        self.optimizer, self.schedule = optimizer, schedule
        # In a list, it is no submodule, whose buffers would be in each checkpoint.
        self.own_loss = [] if loss is None else [loss]
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", weights, persistent=False)
        self.teacher: Teacher | None = None  # `train` sets it
        self.train_metrics = EpochMetrics(num_classes, "train/", names=["accuracy"])
        self.val_metrics = EpochMetrics(num_classes, "val/")
        self.test_metrics = EpochMetrics(num_classes, "test/")
        if net is None:
            # For the graph in TensorBoard and the sizes in the summary. An own net may take floats alone.
            self.example_input_array = torch.zeros(1, *image_shape, dtype=torch.uint8)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, num_classes)."""
        return self.net(images)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        batch, logits = self.shared_step(batch, self.train_metrics)
        loss = self.loss(logits, batch.labels if batch.targets is None else batch.targets.to(logits.dtype))
        if self.teacher:
            loss = self.teacher.loss(logits, batch.images, loss)
        # Not in on_train_epoch_end, which Lightning calls after it saves the epoch's checkpoint: a kill between the two
        # would lose these values.
        if self.trainer.is_last_batch:
            self.log_epoch(self.train_metrics, in_step=True)
            self.train_metrics.reset()
        # DDP averages gradients over ranks, whose shards of a batch may differ in size.
        return loss * (len(batch.labels) * self.trainer.world_size / batch.total)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int | None = None) -> None:
        self.shared_step(batch, self.val_metrics)
        if dataloader_idx is not None:
            trainer = self.trainer
            lengths = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
            self.finish_loader(self.val_metrics, batch_idx, lengths[dataloader_idx])

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int | None = None) -> None:
        self.shared_step(batch, self.test_metrics)
        if dataloader_idx is not None:
            self.finish_loader(self.test_metrics, batch_idx, self.trainer.num_test_batches[dataloader_idx])

    def finish_loader(self, metrics: EpochMetrics, batch_idx: int, length: float) -> None:
        """After the last batch of one of several dataloaders, log its metrics, to which Lightning adds its number."""
        if math.isinf(length):
            raise ValueError("cannot evaluate on several dataloaders: one has no length (use a dataset with __len__)")
        if batch_idx + 1 == length:
            if not self.trainer.sanity_checking:
                self.log_epoch(metrics)
            metrics.reset()

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Probabilities (B, num_classes) float32 for a batch of images, or one that starts with them."""
        [images] = [batch] if isinstance(batch, Tensor) else first_tensors(batch, 1)
        return self.logits(images).softmax(dim=1).float()

    def shared_step(self, batch: Any, metrics: EpochMetrics) -> tuple[Batch, Tensor]:
        """The batch as a `Batch`, and its logits (B, num_classes), which `metrics` keeps."""
        batch = batch if isinstance(batch, Batch) else self.as_batch(batch, sum(map(len, metrics.labels)))
        logits = self.logits(batch.images)
        metrics.update(logits, batch.labels, batch.indices)
        return batch, logits

    def logits(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) in float32 or better. Raises ValueError if the net gives another shape."""
        logits = self(images)
        expected = (len(images), self.hparams["num_classes"])
        if not isinstance(logits, Tensor) or logits.shape != expected:
            found = tuple(logits.shape) if isinstance(logits, Tensor) else f"that are a {type(logits).__name__}"
            raise ValueError(f"cannot use logits {found}: expected {expected} (adapt the model, or num_classes)")
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def as_batch(self, batch: Any, done: int) -> Batch:
        """A `Batch` from (images, labels, ...), after `done` images of this rank.

        Indices are those of a DistributedSampler that does not shuffle. Labels may be integers (B, 1), or probabilities
        (B, num_classes), as MixUp and CutMix of torchvision make them. Raises ValueError for other batches.
        """
        images, labels = first_tensors(batch, 2)
        # A look at values waits for a GPU, so there only once an epoch; later wrong labels are a device-side assert.
        look = not done or labels.device.type == "cpu"
        labels, targets = labels_and_targets(labels, len(images), self.hparams["num_classes"], look=look)
        ranks = self.trainer.world_size
        indices = (torch.arange(len(labels), device=labels.device) + done) * ranks + self.global_rank
        return Batch(images, labels, indices, len(labels) * ranks, targets)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The training loss of a batch, for labels (B,) or probabilities (B, num_classes)."""
        if self.own_loss:
            [own_loss] = self.own_loss
            loss = (own_loss.to(logits.device) if isinstance(own_loss, nn.Module) else own_loss)(logits, targets)
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                found = f"values {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
                raise ValueError(f"cannot use a loss that returns {found}: expected one number, as a tensor")
            return loss
        smoothing = self.hparams["label_smoothing"]
        if self.class_weights is None:
            return F.cross_entropy(logits, targets, label_smoothing=smoothing)
        # Per image, as in Keras. torch's mean divides by the weights of a rank's shard, and depends on the shards.
        weights = self.class_weights.to(logits.dtype)
        return F.cross_entropy(logits, targets, weights, label_smoothing=smoothing, reduction="sum") / len(logits)

    # These drop the outputs of an interrupted epoch. Lightning skips the first hook if it resumes in the middle of an
    # epoch, so that the first half counts.

    def on_train_epoch_start(self) -> None:
        self.train_metrics.reset()

    def on_validation_epoch_start(self) -> None:
        self.val_metrics.reset()

    def on_test_epoch_start(self) -> None:
        self.test_metrics.reset()

    def on_train_batch_end(self, *_: Any) -> None:
        trainer: Any = self.trainer
        stops = trainer.global_step == trainer.max_steps
        if stops and self.train_metrics.pending:
            # In the middle of an epoch. The outputs stay, so that a resumed training counts all of it.
            self.log_epoch(self.train_metrics, in_step=True)
        # Lightning passes what is logged in a step to the loggers at each `log_every_n_steps` alone.
        connector = trainer._logger_connector
        if (stops or trainer.is_last_batch) and not connector.should_update_logs:
            connector.log_metrics(connector.metrics["log"])

    def on_train_epoch_end(self) -> None:
        if self.train_metrics.pending:  # a callback stopped the training in the middle of an epoch
            self.log_epoch(self.train_metrics)

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:  # of a few batches, which may lack a class
            self.log_pending(self.val_metrics)
        self.val_metrics.reset()

    def on_test_epoch_end(self) -> None:
        self.log_pending(self.test_metrics)
        self.test_metrics.reset()

    def log_pending(self, metrics: EpochMetrics) -> None:
        if metrics.pending:  # those of several dataloaders are logged
            self.log_epoch(metrics)

    def log_epoch(self, metrics: EpochMetrics, *, in_step: bool = False) -> None:
        values = dict(metrics.compute())
        if self.own_loss:
            values[f"{metrics.prefix}loss"] = self.loss(*metrics.outputs[:2])
        when: dict[str, Any] = {"on_step": in_step, "on_epoch": not in_step}
        for name, value in values.items():
            # The same on all ranks; the maximum keeps its bits, as the mean might not.
            self.log(name, value, prog_bar=name.endswith("loss"), sync_dist=True, reduce_fx="max", **when)

    def on_fit_start(self) -> None:
        if self.teacher:
            weight = next(self.net.parameters())
            self.teacher.net.to(weight.device, weight.dtype)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            reason = shorten(str(error), 250)  # torch lists all weights
            raise RuntimeError(f"cannot load weights of another model: {reason}") from None

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
        parameters, hparams = self.net.parameters(), self.hparams
        if callable(self.optimizer):
            optimizer = self.optimizer(parameters)
        else:
            make = OPTIMIZERS[self.optimizer]
            optimizer = make(parameters, lr=hparams["lr"], weight_decay=hparams["weight_decay"])
        if not isinstance(optimizer, Optimizer):
            found = type(optimizer).__name__
            raise ValueError(f"cannot use the optimizer's function: it returns a {found}, expected an Optimizer")
        if callable(self.schedule):
            plan: Any = as_plan(self.schedule(optimizer))
            return {"optimizer": optimizer, "lr_scheduler": plan}
        if not (plan := SCHEDULES[self.schedule]):
            return optimizer
        scheduler = plan(optimizer, self.planned_steps())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def planned_steps(self) -> int:
        """The number of optimizer steps of the whole training. Raises UserError if its length is not known."""
        trainer: Any = self.trainer
        steps = trainer.estimated_stepping_batches
        # It has set up the loader before Lightning 2.6 would restore the loader's place in an epoch. Without this, a
        # training that resumes within an epoch would begin the epoch anew.
        trainer.fit_loop._combined_loader = None
        if steps < 0 or math.isinf(steps):
            raise UserError(
                f"cannot schedule the learning rate by {self.schedule}: the training has no set length (give the "
                "Trainer max_epochs or max_steps)"
            )
        return max(1, int(steps))


def as_plan(scheduler: Any) -> dict[str, Any]:
    """Lightning's dictionary of a scheduler, with a monitor if it needs one. Raises ValueError if it is none."""
    plan = dict(scheduler) if isinstance(scheduler, Mapping) else {"scheduler": scheduler}
    made = plan.get("scheduler")
    if not hasattr(made, "optimizer"):
        raise ValueError(f"cannot use the schedule's function: it returns a {type(scheduler).__name__}, no scheduler")
    if isinstance(made, ReduceLROnPlateau):
        plan.setdefault("monitor", "val/loss" if made.mode == "min" else "val/accuracy")
    return plan


def check_name(kind: str, name: object, known: Iterable[str]) -> None:
    if not callable(name) and name not in list(known):
        found = repr(name) if isinstance(name, str) else f"of type {type(name).__name__}"
        raise ValueError(
            f"cannot use the {kind} {found}: expected one of {', '.join(known)}, or a function that makes one"
        )


def check_classes(num_classes: Any, class_names: Any, class_weights: Any) -> None:
    """Raise ValueError unless there are two classes or more, and a name and a weight for each, if any."""
    if not isinstance(num_classes, Integral) or int(num_classes) < 2:
        raise ValueError(f"cannot classify into num_classes {num_classes!r}: expected an integer of 2 or more")
    for name, values, kind in (("class_names", class_names, "texts"), ("class_weights", class_weights, "numbers")):
        if values is None:
            continue
        if isinstance(values, str) or not hasattr(values, "__len__"):
            raise ValueError(f"cannot use {name} {values!r}: expected {num_classes} {kind}, by label")
        if len(values) != num_classes:
            raise ValueError(f"cannot use {len(values)} {name}: num_classes is {num_classes} (give one per class)")
    if class_names is not None and not all(isinstance(name, str) for name in class_names):
        raise ValueError(f"cannot use class_names {list(class_names)}: expected texts")
    if class_weights is not None and not fits(lambda: min(class_weights) >= 0 and max(class_weights) > 0):
        raise ValueError(f"cannot use class_weights {list(class_weights)}: expected 0 or more, and one above 0")


def fits(check: Callable[[], bool]) -> bool:
    """Whether a check of numbers holds; it does not for what can't be compared with a number."""
    try:
        return check()
    except TypeError:
        return False


def check_objects(model: object, net: object, loss: object) -> None:
    """Raise ValueError unless there is a model, and own objects are of the kind that is needed."""
    if isinstance(model, nn.Module):
        raise ValueError(f"cannot use a {type(model).__name__} as model: expected a name (give an own model as net)")
    if model is None and net is None:
        raise ValueError("cannot build the model: it is an own one, which no checkpoint holds (give net again)")
    for name, given in (("net", net), ("loss", loss)):
        if isinstance(given, type):
            raise ValueError(f"cannot use the {name} {given.__name__}: it is a class (give {given.__name__}(...))")
    if not isinstance(net, nn.Module | None):
        raise ValueError(f"cannot use the net {net!r}: expected an nn.Module")
    if loss is not None and not callable(loss):
        raise ValueError(f"cannot use the loss {loss!r}: expected a function of logits and labels")


def build_classifier(
    options: TrainOptions, info: DataInfo, labels: Tensor | None = None, loss: Loss | None = None
) -> Classifier:
    """The module of these options for a data set, with weights in their precision.

    `labels` (n,) are those of the training images, for a training; without them there are no balanced class weights,
    and no pretrained weights are fetched. Raises UserError if an option does not suit the data.
    """
    arguments = values_of(options, ModuleOptions)
    if labels is None:
        arguments["pretrained"] = False
    if options.class_weights == "balanced":
        arguments["class_weights"] = None if labels is None else balanced_weights(labels, info.classes)
    arguments |= {"image_shape": info.image_shape, "num_classes": len(info.classes), "class_names": info.classes}
    try:
        module = Classifier(**arguments, loss=loss)
    except ValueError as error:
        raise UserError(str(error)) from error
    # Lightning 2.6 loads a checkpoint's weights before it converts the module to 64 bits, and so rounds them to 32.
    return module.double() if options.precision == "64-true" else module


def balanced_weights(labels: Tensor, classes: Sequence[str]) -> list[float]:
    """Weights with which each class counts the same in all: n / (classes * images of the class), as in scikit-learn.

    Raises DataError if a class has no image.
    """
    counts = labels.bincount(minlength=len(classes)).double()
    if lacking := [name for name, count in zip(classes, counts, strict=True) if not count]:
        raise DataError(f"cannot balance the classes: no training image is of {', '.join(lacking)} (list weights)")
    return (len(labels) / (len(classes) * counts)).tolist()
