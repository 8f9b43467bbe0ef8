"""How fast this machine trains the seed net: through the Trainer, and by the bare loop that it wraps."""

import json
import statistics
import time
from pathlib import Path

import lightning as L
from torch.nn import functional as F

from fmnist_lightning.batches import Batches
from fmnist_lightning.callbacks import Throughput
from fmnist_lightning.data import Split
from fmnist_lightning.environment import environment
from fmnist_lightning.files import write_text
from fmnist_lightning.models import SeedNet
from fmnist_lightning.module import Classifier
from fmnist_lightning.optim import KerasAdam


def bare_loop(split: Split, batch_size: int) -> float:
    """Images per second of one epoch: gather, forward, backward, step, and nothing else. On the split's device."""
    net = SeedNet().to(split.images.device)
    optimizer = KerasAdam(net.parameters(), lr=1e-3)
    start = time.perf_counter()
    for images, labels, _ in Batches(split, batch_size, seed=0):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
    loss.item()  # waits for a GPU
    return len(split.labels) / (time.perf_counter() - start)


def through_trainer(split: Split, batch_size: int, accelerator: str) -> float:
    """Images per second of the same epoch through Lightning, with its loss and metrics, without files or a bar."""
    trainer = L.Trainer(
        accelerator=accelerator,
        devices=1,
        max_epochs=1,
        limit_val_batches=0,  # training alone is timed; Lightning wants the loader all the same
        callbacks=[Throughput()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Classifier(), Batches(split, batch_size, seed=0), Batches(split, batch_size))
    return float(trainer.callback_metrics["train/images_per_second"])


def measure(split: Split, batch_size: int, accelerator: str, repeats: int) -> dict[str, list[float]]:
    """Both, in turn, so that a machine whose speed drifts slows both alike. The first round warms up and is dropped."""
    figures: dict[str, list[float]] = {"bare loop": [], "Trainer": []}
    for _ in range(repeats + 1):
        figures["bare loop"].append(bare_loop(split, batch_size))
        figures["Trainer"].append(through_trainer(split, batch_size, accelerator))
    return {name: values[1:] for name, values in figures.items()}


def speed_table(figures: dict[str, list[float]]) -> str:
    """Median images per second, and seconds for the 54,000 images of an epoch of Fashion-MNIST."""
    lines = [f"{'path':<10} {'images/s':>9} {'s an epoch':>11}   range of images/s"]
    for name, values in figures.items():
        median = statistics.median(values)
        lines.append(f"{name:<10} {median:>9.0f} {54000 / median:>11.2f}   {min(values):.0f} to {max(values):.0f}")
    ratios = [bare / ours for bare, ours in zip(*figures.values(), strict=True)]
    lines.append(f"time of the Trainer over time of the bare loop, median of pairs: {statistics.median(ratios):.3f}")
    return "\n".join(lines)


def write_record(path: Path, figures: dict[str, list[float]], split: Split, batch_size: int) -> None:
    record = {
        "images_per_second": figures,
        "images": len(split.labels),
        "batch_size": batch_size,
        **environment(split.images.device),
    }
    write_text(path, json.dumps(record, indent=2) + "\n")
