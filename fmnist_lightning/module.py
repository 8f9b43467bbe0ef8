"""The LightningModule: it wires net, loss, metrics and optimiser, and knows nothing of their insides."""

from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from fmnist_lightning.batches import Batch
from fmnist_lightning.data import IMAGE_SIZE
from fmnist_lightning.metrics import build_metrics
from fmnist_lightning.models import MODELS, NUM_CLASSES
from fmnist_lightning.optim import KerasAdam


class Classifier(L.LightningModule):
    """A net of MODELS, trained with cross-entropy and Keras's Adam.

    Logs train/loss and train/accuracy, measured with dropout on while the epoch runs, and under val/ and test/ the
    loss and the five metrics of `build_metrics`, each once an epoch.
    """

    def __init__(self, model: str = "seed", lr: float = 1e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr
        self.net = MODELS[model]()
        self.train_accuracy = MulticlassAccuracy(num_classes=NUM_CLASSES, average="micro")
        self.val_metrics = build_metrics("val/")
        self.test_metrics = build_metrics("test/")
        # For the graph in TensorBoard and the summary's sizes.
        self.example_input_array = torch.zeros(1, 1, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 1, 28, 28) to logits (B, 10)."""
        return self.net(images)

    def shared_step(self, batch: Batch, stage: str) -> tuple[Tensor, Tensor]:
        """The mean loss, which it logs, and the probabilities (B, 10), float32 or better."""
        logits = self(batch.images)
        logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        loss = F.cross_entropy(logits, batch.labels)
        self.log(f"{stage}/loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(batch.labels))
        return loss, logits.detach().softmax(dim=1)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss, probs = self.shared_step(batch, "train")
        self.train_accuracy.update(probs, batch.labels)
        self.log("train/accuracy", self.train_accuracy, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        _, probs = self.shared_step(batch, "val")
        self.val_metrics.update(probs, batch.labels)
        self.log_dict(self.val_metrics, on_step=False, on_epoch=True)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        _, probs = self.shared_step(batch, "test")
        self.test_metrics.update(probs, batch.labels)
        self.log_dict(self.test_metrics, on_step=False, on_epoch=True)
        return {"probs": probs}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return KerasAdam(self.parameters(), lr=self.lr)
