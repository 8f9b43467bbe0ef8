"""This project's data path, model and optimizer without Lightning.

Usage: python benchmarks/bare_loop.py DATA_DIR EPOCHS ACCELERATOR PRECISION

Each epoch trains, then counts correct predictions on the validation split: no metrics, no logs, no checkpoints.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager

import lightning as L
import torch
from torch.nn import functional as F

from fmnist_lightning.data.batches import Batches
from fmnist_lightning.data.datamodule import FashionMNISTDataModule
from fmnist_lightning.data.source import Split
from fmnist_lightning.models.nets import SeedNet
from fmnist_lightning.training.devices import resolve_devices
from fmnist_lightning.training.optim import KerasAdam

BATCH_SIZE = 128


class BareLoop:
    """A model with its optimizer, and the two passes of an epoch, on one device."""

    def __init__(self, splits: dict[str, Split], device: torch.device, precision: str) -> None:
        moved = {name: Split(*(tensor.to(device) for tensor in splits[name])) for name in ("train", "val")}
        self.train_batches = Batches(moved["train"], BATCH_SIZE, seed=0)
        self.val_batches = Batches(moved["val"], BATCH_SIZE)
        self.device = device
        self.precision = precision
        self.net = SeedNet().to(device)
        self.optimizer = KerasAdam(self.net.parameters(), lr=1e-3)

    def autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed")

    def train(self, epoch: int) -> Iterator[None]:
        """The training steps of an epoch, one at a time."""
        self.net.train()
        self.train_batches.set_epoch(epoch)
        for images, labels, *_ in self.train_batches:
            self.optimizer.zero_grad()
            with self.autocast():
                logits = self.net(images)
            loss = F.cross_entropy(logits.float(), labels)
            loss.backward()
            self.optimizer.step()
            yield
        loss.item()  # waits for a GPU

    def validate(self) -> int:
        """The number of images of the validation split that are classified correctly."""
        self.net.eval()
        with torch.inference_mode(), self.autocast():
            return int(sum((self.net(images).argmax(dim=1) == labels).sum() for images, labels, *_ in self.val_batches))


def main(data_dir: str, epochs: int, accelerator: str, precision: str) -> None:
    resolve_devices(accelerator, 1, precision)
    device = L.Fabric(accelerator=accelerator, devices=1).device
    datamodule = FashionMNISTDataModule(*(("drawn",) if data_dir == "drawn" else ("fashion_mnist", data_dir)))
    datamodule.setup("fit")
    loop = BareLoop(datamodule.splits, device, precision)
    for epoch in range(epochs):
        start = time.perf_counter()
        for _ in loop.train(epoch):
            pass
        train_seconds = time.perf_counter() - start
        print(f"epoch {epoch + 1}/{epochs} right {loop.validate()} train_seconds {train_seconds:.4f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4])
