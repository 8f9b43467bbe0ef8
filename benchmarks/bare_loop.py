"""This project's data path, net and optimiser without Lightning.

Usage: python benchmarks/bare_loop.py DATA_DIR EPOCHS ACCELERATOR PRECISION

Each epoch trains, then runs over the validation cut and counts what is right: no metrics, no logs, no checkpoints.
"""

import sys
import time
from contextlib import AbstractContextManager

import lightning as L
import torch
from torch.nn import functional as F

from fmnist_lightning.batches import Batches
from fmnist_lightning.data import Split
from fmnist_lightning.datamodule import FashionMNISTDataModule
from fmnist_lightning.devices import resolve_devices
from fmnist_lightning.models import SeedNet
from fmnist_lightning.optim import KerasAdam

BATCH_SIZE = 128


def main(data_dir: str, epochs: int, accelerator: str, precision: str) -> None:
    resolve_devices(accelerator, 1, precision)
    device = L.Fabric(accelerator=accelerator, devices=1).device
    datamodule = FashionMNISTDataModule(*(("drawn",) if data_dir == "drawn" else ("fashion_mnist", data_dir)))
    datamodule.setup("fit")
    splits = {name: Split(*(tensor.to(device) for tensor in datamodule.splits[name])) for name in ("train", "val")}
    train, val = Batches(splits["train"], BATCH_SIZE, seed=0), Batches(splits["val"], BATCH_SIZE)

    def autocast() -> AbstractContextManager[None]:
        return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed")

    net = SeedNet().to(device)
    optimizer = KerasAdam(net.parameters(), lr=1e-3)
    for epoch in range(epochs):
        start = time.perf_counter()
        net.train()
        train.set_epoch(epoch)
        for images, labels, _ in train:
            optimizer.zero_grad()
            with autocast():
                logits = net(images)
            loss = F.cross_entropy(logits.float(), labels)
            loss.backward()
            optimizer.step()
        loss.item()  # waits for a GPU
        train_seconds = time.perf_counter() - start
        net.eval()
        with torch.inference_mode(), autocast():
            right = sum((net(images).argmax(dim=1) == labels).sum() for images, labels, _ in val)
        print(f"epoch {epoch + 1}/{epochs} right {int(right)} train_seconds {train_seconds:.4f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4])
