"""The same epochs by scripts/train.py and by the bare loop, alternating every twenty steps, in one process.

Usage: python benchmarks/trainer_cost.py DATASET DATA_DIR LOG_DIR EPOCHS ACCELERATOR PRECISION

Two whole programs run half a minute apart, in which a shared machine drifts by more than the Trainer costs; here a
drift slows both. An epoch of the Trainer includes steps, metrics, validation, logs and checkpoints. Each printed line
has the seconds of a pair of epochs.
"""

import sys
import time
from itertools import islice
from typing import Any, cast

import lightning as L
from bare_loop import BareLoop
from lightning.pytorch.callbacks import Callback

from fmnist_lightning.runs.options import TrainOptions
from fmnist_lightning.training.train import train

STEPS_IN_TURN = 20


class Turns(Callback):
    """Gives the bare loop its turns."""

    start: float | None = None
    bare_seconds = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        splits: Any = trainer.datamodule.splits  # type: ignore[attr-defined]
        self.bare_loop = BareLoop(splits, trainer.strategy.root_device, str(trainer.precision))

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.end_pair()
        self.bare_steps = self.bare_loop.train(trainer.current_epoch)
        self.bare_seconds = 0.0
        self.start = time.perf_counter()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        batch_idx: int = args[1]
        if batch_idx % STEPS_IN_TURN == 0:
            start = time.perf_counter()
            for _ in islice(self.bare_steps, STEPS_IN_TURN):
                pass
            self.bare_seconds += time.perf_counter() - start

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.start is not None:  # not before the training
            start = time.perf_counter()
            self.bare_loop.validate()
            self.bare_seconds += time.perf_counter() - start

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.end_pair()

    def end_pair(self) -> None:
        if self.start is not None:
            seconds = time.perf_counter() - self.start - self.bare_seconds
            print(f"pair bare {self.bare_seconds:.4f} trainer {seconds:.4f}", flush=True)


def main(dataset: str, data_dir: str, log_dir: str, epochs: int, accelerator: str, precision: str) -> None:
    options = TrainOptions(
        dataset=cast(Any, dataset),
        data_dir=data_dir,
        log_dir=log_dir,
        max_epochs=epochs,
        test=False,
        accelerator=cast(Any, accelerator),
        precision=cast(Any, precision),
    )
    train(options, callbacks=[Turns()])


if __name__ == "__main__":
    dataset, data_dir, log_dir, epochs, accelerator, precision = sys.argv[1:]
    main(dataset, data_dir, log_dir, int(epochs), accelerator, precision)
