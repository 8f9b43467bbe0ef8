"""Callbacks that let a run survive: random numbers kept, saves in long epochs, stops that save, no ruined weights."""

import contextlib
import errno
import math
import os
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch import Tensor

from fmnist_lightning.data.batches import Batch, mixed_seed
from fmnist_lightning.errors import SIGNALS, Interrupted, UserError
from fmnist_lightning.ranks import is_first, launched
from fmnist_lightning.runs.checkpoints import FORMAT
from fmnist_lightning.runs.files import atomic_write
from fmnist_lightning.training.distributed import Agreement, gather_objects


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's, but for saving: its own writes into the system's temporary folder and moves without a flush.

    Across file systems a kill then leaves half a file where the good one was. Raises OSError where it can't write: the
    disk is full, the folder was made read-only, or deleted under the run.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        if not path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        try:
            with atomic_write(path) as file:
                torch.save({**checkpoint, "format": FORMAT}, file)
        except RuntimeError as error:
            # torch's writer turns some of the system's errors into its own.
            if "PytorchStreamWriter" not in str(error) and "unexpected pos" not in str(error):
                raise
            raise OSError(errno.EIO, str(error).partition("\n")[0], str(path)) from error


class RandomState(Callback):
    """Keeps torch's random numbers, the CPU's and the training device's, in each checkpoint, and puts them back.

    Each of several processes has its own, so that no two drop the same of their images.

    Lightning keeps none, so that dropout would start anew. They are put back just before the first step, after all that
    may draw earlier, such as the graph for TensorBoard. A device of another kind than the checkpoint's starts its own.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.restored: list[dict[str, Tensor]] = []  # by rank

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        device = trainer.strategy.root_device
        state = {"cpu": torch.get_rng_state()}
        if device.type != "cpu":
            state[device.type] = torch.get_device_module(device).get_rng_state()
        checkpoint["random_states"] = gather_objects(state)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.restored = checkpoint.get("random_states", [])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        device = trainer.strategy.root_device
        restored, self.restored = self.restored, []
        same_number = len(restored) == trainer.world_size
        if trainer.world_size > 1 or (restored and not same_number):
            torch.manual_seed(mixed_seed(self.seed, trainer.global_rank, trainer.global_step))
        if not same_number:
            return
        state = restored[trainer.global_rank]
        torch.set_rng_state(state["cpu"])
        if device.type != "cpu" and device.type in state:
            torch.get_device_module(device).set_rng_state(state[device.type])


class Step(NamedTuple):
    """A training step whose loss was not looked at yet."""

    number: int
    batch_idx: int
    batch: Batch
    rate: float
    loss: Tensor


class StopOnNonFinite(Callback):
    """Raises UserError where the loss or a weight is NaN or infinite, before a checkpoint is made of it.

    On a GPU, where reading the loss waits for it, several steps are looked at together.
    """

    STEPS_TOGETHER = 50

    def __init__(self, advice: str) -> None:
        self.advice = advice
        self.unread: list[Step] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        self.rate = float(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        loss, batch, batch_idx = args[0]["loss"], args[1], args[2]
        on_cpu = loss.device.type == "cpu"
        if on_cpu and math.isfinite(loss.item()):
            return
        self.unread.append(Step(trainer.global_step, batch_idx, batch, self.rate, loss))
        if on_cpu or len(self.unread) == self.STEPS_TOGETHER:
            self.check_losses(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.check_losses(trainer)
        for name, weights in pl_module.named_parameters():
            if not weights.isfinite().all():
                raise UserError(
                    f"the weights {name} are no longer finite behind step {trainer.global_step}; {self.advice}"
                )

    def check_losses(self, trainer: L.Trainer) -> None:
        unread, self.unread = self.unread, []
        for step in unread:
            if not math.isfinite(step.loss.item()):
                indices = step.batch.indices.tolist()
                shown = ", ".join(map(str, indices[:8])) + (", ..." if len(indices) > 8 else "")
                place = f"epoch {trainer.current_epoch + 1}, batch {step.batch_idx + 1}"
                raise UserError(
                    f"the loss is {step.loss.item()} at step {step.number} ({place}, learning rate {step.rate:.3g}, "
                    f"{len(indices)} images: {shown}); {self.advice}"
                )


class Patience(EarlyStopping):
    """Lightning's EarlyStopping; a resumed run stops where it had stopped, by the patience that is given now."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.wait_count >= self.patience:
            trainer.should_stop = True


class RunCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint; it remembers the best so far where the run folder was moved too."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def moved(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else path

        state = {**state_dict, "dirpath": self.dirpath}
        for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
            state[name] = moved(state[name])
        state["best_k_models"] = {moved(path): score for path, score in state["best_k_models"].items()}
        super().load_state_dict(state)


class SaveInEpochs(Callback):
    """Saves `last.ckpt` behind a step when so many minutes have gone by since it was last saved here.

    Not behind an epoch's last step, which the epoch's own save follows. The clock is one that nobody sets.
    """

    def __init__(self, last: Path, minutes: float) -> None:
        self.last = last
        self.seconds = 60 * minutes

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.saved = time.monotonic()
        self.agreement = Agreement()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        due = time.monotonic() - self.saved >= self.seconds
        if not trainer.is_last_batch and self.agreement.largest(due):
            trainer.save_checkpoint(self.last, weights_only=False)
            self.saved = time.monotonic()


class OwnSignals(Callback):
    """Puts the program's own answers to signals back where Lightning has set its own for a validation or a test.

    Lightning 2.6 broadcasts in its handler of SIGTERM, whatever this process and the others are just exchanging.
    """

    def __init__(self) -> None:
        self.own = {number: signal.getsignal(number) for number in SIGNALS}

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.restore()

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.restore()

    def restore(self) -> None:
        for number, handler in self.own.items():
            signal.signal(number, handler)


class StopOnSignal(OwnSignals):
    """At Ctrl-C or SIGTERM, saves `last.ckpt` behind the step at hand and raises `Interrupted`.

    All processes stop behind the same step, whichever got the signal. A second one ends the program at once, but no
    second SIGTERM one process of several: Linux sends it for each thread of a killed starter (LOG.md, 2026-11-25). One
    during validation is answered when that ends, its checkpoint written. Lightning's own answer to Ctrl-C saves
    nothing, and its answer to SIGTERM exits with status 0.
    """

    def __init__(self, last: Path, advice: str) -> None:
        self.last = last
        self.advice = advice
        super().__init__()
        self.received = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Here, not earlier: Lightning sets its own handlers after on_fit_start.
        for number in SIGNALS:
            signal.signal(number, self.receive)
        self.agreement = Agreement()

    def receive(self, signum: int, frame: Any) -> None:
        self.received = signum
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        if launched():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if not is_first():
            return
        with contextlib.suppress(OSError):  # what reads it may have ended by the same Ctrl-C
            os.write(2, b"\nstopping behind this step or validation, and saving; once more to stop at once\n")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        # Behind an epoch's last batch comes validation, and with it a checkpoint of the whole epoch.
        if not trainer.is_last_batch and (received := self.agreement.largest(self.received)):
            trainer.save_checkpoint(self.last, weights_only=False)
            raise Interrupted(received, self.advice)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if received := self.agreement.largest(self.received):
            raise Interrupted(received, self.advice)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.restore()
        if received := self.agreement.largest(self.received):
            raise Interrupted(received, self.advice)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.restore()
