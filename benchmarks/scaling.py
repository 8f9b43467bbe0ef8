"""A training by several processes: how long a step takes, and which part of it is communication.

Usage: python benchmarks/scaling.py PROCESSES THREADS BATCH_SIZE DATASET DATA_DIR STEPS

The processes start as scripts/train.py starts them. Twenty steps with the exchange of gradients and twenty without are
done in turn, so that a drift of the machine slows both. The difference is the exchange, with what processes wait for
each other there; that they agree on signals behind each step is in both.
"""

import os
import statistics
import sys
import tempfile
import time
from typing import Any

from fmnist_lightning.cli import parse
from fmnist_lightning.training.launching import launch
from fmnist_lightning.ranks import launched
from fmnist_lightning.training.train import train, train_with

STEPS_IN_TURN = 20
WARM_UP = 2 * STEPS_IN_TURN


def timed_training(processes: int, batch_size: int, dataset: str, data_dir: str, steps: int) -> None:
    import lightning as L
    import torch
    from lightning.pytorch.callbacks import Callback
    from torch import distributed

    class Turns(Callback):
        def __init__(self) -> None:
            self.seconds: dict[bool, list[float]] = {True: [], False: []}
            self.exchanging = True
            self.done = 0

        def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
            self.exchanging = self.done // STEPS_IN_TURN % 2 == 0
            if processes > 1:
                trainer.strategy.model.require_backward_grad_sync = self.exchanging  # type: ignore[union-attr]
            self.start = time.perf_counter()

        def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
            self.done += 1
            if self.done > WARM_UP:
                self.seconds[self.exchanging].append(time.perf_counter() - self.start)
            if self.done == WARM_UP + steps:
                self.tell(sum(weights.numel() for weights in pl_module.parameters()))
                trainer.should_stop = True
                trainer.limit_val_batches = 0

        def tell(self, weights: int) -> None:
            exchange = [0.0]
            if processes > 1:
                gradients = torch.zeros(weights)
                exchange = [seconds_of_exchange(gradients) for _ in range(50)]
            medians = [statistics.median(self.seconds[kind]) for kind in (True, False)]
            print(f"scaling {medians[0]:.6f} {medians[1]:.6f} {statistics.median(exchange):.6f}", flush=True)

    def seconds_of_exchange(gradients: torch.Tensor) -> float:
        distributed.barrier()
        start = time.perf_counter()
        distributed.all_reduce(gradients)
        return time.perf_counter() - start

    with tempfile.TemporaryDirectory() as log_dir:
        options = {"dataset": dataset, "data_dir": data_dir, "batch_size": batch_size, "devices": processes}
        fixed = {"max_epochs": 1000, "accelerator": "cpu", "val_fraction": 0.0, "ckpt": "last", "test": False}
        train_with({**parse(train, []), **options, **fixed, "log_dir": log_dir}, [Turns()])


def main() -> None:
    processes, threads, batch_size, dataset, data_dir, steps = sys.argv[1:]
    os.environ["OMP_NUM_THREADS"] = threads
    if int(processes) > 1 and not launched():
        launch(int(processes))
    else:
        timed_training(int(processes), int(batch_size), dataset, data_dir, int(steps))


if __name__ == "__main__":
    main()
