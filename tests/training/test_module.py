"""The module's metrics over interrupted epochs, its loss of blended images, with any Trainer."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.distributions import Categorical

from fmnist_lightning.data.batches import Batch
from fmnist_lightning.data.datamodule import FashionMNISTDataModule
from fmnist_lightning.metrics import Outputs
from fmnist_lightning.models.nets import SeedNet
from fmnist_lightning.runs.checkpoints import load_weights
from fmnist_lightning.training.distillation import Teacher
from fmnist_lightning.training.evaluate import check_counted_once
from fmnist_lightning.training.module import Classifier

pytestmark = pytest.mark.usefixtures("small_drawn")


class StoppedError(Exception):
    """Raised in the middle of an epoch."""


class Interrupt(Callback):
    """Raises after a training or validation step."""

    def __init__(self, stage: str) -> None:
        self.stage = stage

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if self.stage == "train" and trainer.global_step == 5:
            raise StoppedError

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if self.stage == "val" and not trainer.sanity_checking:
            raise StoppedError


def fit(module: Classifier, *callbacks: Callback) -> None:
    """Train for an epoch of 540 images in batches of 50."""
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = L.Trainer(accelerator="cpu", max_epochs=1, callbacks=[*callbacks], enable_model_summary=False, **quiet)
    module.train()  # an interrupted validation leaves it in eval mode
    trainer.fit(module, FashionMNISTDataModule("drawn", batch_size=50))


def new_module() -> Classifier:
    torch.manual_seed(0)
    return Classifier(dropout=(0, 0, 0))


@pytest.mark.parametrize("stage", ["train", "val"])
def test_interrupted_epoch_leaves_nothing(stage: str) -> None:
    module = new_module()
    with pytest.raises(StoppedError):
        fit(module, Interrupt(stage))
    fit(module)
    assert torch.equal(module.train_metrics.outputs.indices, torch.arange(540))
    assert torch.equal(module.val_metrics.outputs.indices, torch.arange(60))


def test_checkpoint_in_an_epoch_has_the_weights_of_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """`load_weights` is strict. Rank 0 alone takes the outputs of all ranks."""
    module = new_module()
    at_end: dict[str, Any] = {}
    module.on_save_checkpoint(at_end)
    keys = module.state_dict().keys()
    module.train_metrics.update(torch.randn(3, 10), torch.tensor([1, 2, 3]), torch.tensor([7, 5, 6]))
    in_epoch = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(in_epoch)
    assert "seen" not in at_end
    assert in_epoch["state_dict"].keys() == keys
    for rank, indices in ((0, [5, 6, 7]), (1, [])):
        monkeypatch.setattr(Classifier, "global_rank", rank)
        loaded = new_module()
        load_weights(loaded, in_epoch, Path())
        loaded.on_load_checkpoint(in_epoch)
        assert loaded.train_metrics.collected().indices.tolist() == indices
        assert loaded.train_metrics.collected().logits.shape == (len(indices), 10)


def test_check_counted_once_refuses_repeated_and_missing_images() -> None:
    logits, labels = torch.zeros(3, 10), torch.zeros(3, dtype=torch.int64)
    check_counted_once(Outputs(logits, labels, torch.tensor([0, 1, 2])), 3)
    for indices, count in (([0, 1, 1], 3), ([0, 1, 2], 2), ([0, 1, 2], 4)):
        with pytest.raises(RuntimeError):
            check_counted_once(Outputs(logits, labels, torch.tensor(indices)), count)


@pytest.mark.parametrize(("seed", "own_is_larger"), [(1, True), (8, False)])
def test_blended_images_and_labels_count_by_their_shares(seed: int, own_is_larger: bool) -> None:
    """In the loss of labels and for the teacher; the accuracy counts the label with the larger share."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (20, 1, 28, 28), dtype=torch.uint8, generator=generator)
    labels = torch.arange(20) % 10
    trainer: Any = SimpleNamespace(training=True, is_last_batch=False, world_size=1)
    datamodule = FashionMNISTDataModule("drawn", mixup=0.5)
    module, teacher = Classifier(dropout=(0, 0, 0), label_smoothing=0.1), SeedNet().eval()
    datamodule.trainer = module._trainer = trainer
    torch.manual_seed(seed)
    batch: Any = datamodule.on_after_batch_transfer(Batch(images, labels, torch.arange(20), 20), 0)
    assert 0 < batch.targets[0, 0] < 1
    assert torch.equal(batch.labels, labels if own_is_larger else labels.roll(1))
    log_probs = module(batch.images).log_softmax(dim=1)
    by_labels = -((0.9 * batch.targets + 0.1 / 10) * log_probs).sum(dim=1).mean()
    by_teacher = -(teacher(batch.images).softmax(dim=1) * log_probs).sum(dim=1).mean()
    entropy = Categorical(logits=teacher(batch.images)).entropy().mean()
    assert module.training_step(batch, 0).item() == pytest.approx(by_labels.item())
    module.teacher = Teacher(teacher, "seed", "", 0.5, 1.0)
    assert module.training_step(batch, 0).item() == pytest.approx((by_labels + by_teacher - entropy).item() / 2)
    assert torch.equal(module.train_metrics.labels[-1], batch.labels)
