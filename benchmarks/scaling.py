"""A training in several processes: how long a step takes, and which part of it is communication.

Usage: python benchmarks/scaling.py PROCESSES THREADS BATCH_SIZE DATASET DATA_DIR STEPS

The processes start as scripts/train.py starts them. Twenty steps with the exchange of gradients alternate with twenty
without, so that a drift of the machine slows both. The difference is the exchange, including the time that processes
wait for each other there; their agreement on signals after each step is in both.
"""

import os
import statistics
import sys
import tempfile
import time
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import distributed

from fmnist_lightning.runs.options import TrainOptions
from fmnist_lightning.training.train import train

STEPS_IN_TURN = 20
WARM_UP = 2 * STEPS_IN_TURN
EXCHANGES = 50  # timed alone


class Turns(Callback):
    """Turns the exchange of gradients on and off, and prints the medians after `steps` steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.seconds: dict[bool, list[float]] = {True: [], False: []}
        self.exchanging = True
        self.done = 0

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        self.exchanging = self.done // STEPS_IN_TURN % 2 == 0
        if trainer.world_size > 1:
            trainer.strategy.model.require_backward_grad_sync = self.exchanging  # type: ignore[union-attr]
        self.start = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        self.done += 1
        if self.done > WARM_UP:
            self.seconds[self.exchanging].append(time.perf_counter() - self.start)
        if self.done == WARM_UP + self.steps:
            exchange = [0.0]
            if trainer.world_size > 1:
                gradients = torch.zeros(sum(weights.numel() for weights in pl_module.parameters()))
                exchange = [seconds_of_exchange(gradients) for _ in range(EXCHANGES)]
            medians = [statistics.median(self.seconds[kind]) for kind in (True, False)]
            print(f"scaling {medians[0]:.6f} {medians[1]:.6f} {statistics.median(exchange):.6f}", flush=True)
            trainer.should_stop = True
            trainer.limit_val_batches = 0


def seconds_of_exchange(gradients: torch.Tensor) -> float:
    distributed.barrier()
    start = time.perf_counter()
    distributed.all_reduce(gradients)
    return time.perf_counter() - start


def main(processes: int, threads: int, batch_size: int, dataset: str, data_dir: str, steps: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for the processes that are started
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as log_dir:
        options = TrainOptions(
            dataset=cast(Any, dataset),
            data_dir=data_dir,
            batch_size=batch_size,
            devices=processes,
            max_epochs=1000,
            accelerator="cpu",
            val_fraction=0.0,
            ckpt="last",
            test=False,
            log_dir=log_dir,
        )
        train(options, callbacks=[Turns(steps)])


if __name__ == "__main__":
    processes, threads, batch_size, dataset, data_dir, steps = sys.argv[1:]
    main(int(processes), int(threads), int(batch_size), dataset, data_dir, int(steps))
