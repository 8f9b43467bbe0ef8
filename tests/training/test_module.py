"""The module's metrics over interrupted and resumed epochs, with any Trainer."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from fmnist_lightning.data.datamodule import FashionMNISTDataModule
from fmnist_lightning.metrics import Outputs
from fmnist_lightning.runs.checkpoints import load_weights, read_checkpoint
from fmnist_lightning.training.evaluate import check_counted_once
from fmnist_lightning.training.module import Classifier

pytestmark = pytest.mark.usefixtures("small_drawn")


class StoppedError(Exception):
    """Raised in the middle of an epoch."""


class Interrupt(Callback):
    """Save a checkpoint after a training step and raise, or raise after a validation step."""

    def __init__(self, stage: str, path: Path) -> None:
        self.stage = stage
        self.path = path

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if self.stage == "train" and trainer.global_step == 5:
            trainer.save_checkpoint(self.path)
            raise StoppedError

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if self.stage == "val" and not trainer.sanity_checking:
            raise StoppedError


def fit(module: Classifier, *callbacks: Callback, ckpt_path: Path | None = None) -> dict[str, torch.Tensor]:
    """Train for an epoch of 540 images in batches of 50; return what was logged."""
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    quiet["enable_model_summary"] = False
    trainer = L.Trainer(accelerator="cpu", max_epochs=1, callbacks=list(callbacks), **quiet)
    module.train()  # an interrupted validation leaves it in eval mode
    trainer.fit(module, FashionMNISTDataModule("drawn", batch_size=50), ckpt_path=ckpt_path, weights_only=True)
    return trainer.callback_metrics


def new_module() -> Classifier:
    torch.manual_seed(0)
    return Classifier(dropout=(0, 0, 0))


@pytest.mark.parametrize("stage", ["train", "val"])
def test_interrupted_epoch_leaves_nothing(tmp_path: Path, stage: str) -> None:
    module = new_module()
    with pytest.raises(StoppedError):
        fit(module, Interrupt(stage, tmp_path / "last.ckpt"))
    fit(module)
    assert torch.equal(module.train_metrics.outputs.indices, torch.arange(540))
    assert torch.equal(module.val_metrics.outputs.indices, torch.arange(60))


@pytest.mark.parametrize("kept", [True, False])
def test_resumed_epoch_counts_its_first_half(tmp_path: Path, kept: bool) -> None:
    """Without the outputs in the checkpoint, the negative control, the metrics are others."""
    path, undisturbed = tmp_path / "last.ckpt", fit(new_module())
    with pytest.raises(StoppedError):
        fit(new_module(), Interrupt("train", path))
    checkpoint = read_checkpoint(path)
    if not kept:
        del checkpoint["seen"]
        torch.save(checkpoint, path)
    module = new_module()
    resumed = fit(module, ckpt_path=path)
    assert len(module.train_metrics.outputs.indices) == (540 if kept else 540 - 5 * 50)
    assert (resumed["train/loss"] == undisturbed["train/loss"]) == kept
    assert resumed["val/loss"] == undisturbed["val/loss"]


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
