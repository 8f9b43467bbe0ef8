"""The convolutions and dense products of the original's model alone.

Usage: python benchmarks/floor.py EPOCHS ACCELERATOR PRECISION

Forward and backward, on tensors that exist already, in the shapes of the original's listing: no pooling, no dropout, no
loss, no optimizer, no data.
"""

import sys
import time

import lightning as L
import torch
from torch import Tensor, nn

from fmnist_lightning.training.devices import keep_freed_memory

BATCH_SIZE = 128
STEPS = -(-54000 // BATCH_SIZE)


def build_work(device: torch.device, dtype: torch.dtype) -> list[tuple[nn.Module, Tensor, Tensor]]:
    """Each layer with its input and the gradient of its output; channels last, as it is fastest."""
    layers = (
        (nn.Conv2d(1, 32, 3), (1, 28, 28)),
        (nn.Conv2d(32, 64, 3), (32, 13, 13)),
        (nn.Linear(1600, 128), (1600,)),
        (nn.Linear(128, 10), (128,)),
    )
    work: list[tuple[nn.Module, Tensor, Tensor]] = []
    for layer, shape in layers:
        layer.to(device, dtype)
        inputs = torch.rand(BATCH_SIZE, *shape, device=device, dtype=dtype)
        if inputs.dim() == 4:
            layer.to(memory_format=torch.channels_last)
            inputs = inputs.to(memory_format=torch.channels_last)
        # The first layer needs no gradient of the images.
        inputs.requires_grad_(bool(work))
        work.append((layer, inputs, torch.rand_like(layer(inputs))))
    return work


def main(epochs: int, accelerator: str, precision: str) -> None:
    keep_freed_memory()
    device = L.Fabric(accelerator=accelerator, devices=1).device
    dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
    work = build_work(device, dtype)
    for epoch in range(epochs):
        start = time.perf_counter()
        for _ in range(STEPS):
            for layer, inputs, gradient in work:
                layer.zero_grad()
                inputs.grad = None
                layer(inputs).backward(gradient)
        if device.type != "cpu":
            torch.accelerator.synchronize()
        print(f"epoch {epoch + 1}/{epochs} train_seconds {time.perf_counter() - start:.4f}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
