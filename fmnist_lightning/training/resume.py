"""Resume a run so that it ends bit for bit like an undisturbed one: opening it, its checkpoints, its stops."""

import contextlib
import io
import math
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch import Tensor, distributed

from fmnist_lightning.cli.launchers import is_rank_zero, launcher
from fmnist_lightning.cli.shell import command
from fmnist_lightning.data.batches import mixed_seed
from fmnist_lightning.data.sets import recorded_info
from fmnist_lightning.data.source import DataInfo, difference
from fmnist_lightning.errors import SIGNALS, Interrupted, Signals, UserError
from fmnist_lightning.runs.checkpoints import FORMAT, load_weights, newest_readable, read_checkpoint, training_record
from fmnist_lightning.runs.files import atomic_write, remove_staged
from fmnist_lightning.runs.folders import (
    CHECKPOINTS,
    CONFIG,
    HPARAMS,
    LAST,
    describe_teacher,
    find_resumed,
    new_run,
    own_objects,
    resume_command,
    write_config,
)
from fmnist_lightning.runs.options import TrainOptions, as_yaml, check_same_run
from fmnist_lightning.training.module import Classifier


def find_or_make_run(options: TrainOptions) -> tuple[Path, Path | None]:
    """The run folder, and the checkpoint to resume from if there is one."""
    log_dir = Path(options.log_dir)
    return find_resumed(options.resume, log_dir) if options.resume else (new_run(log_dir), None)


def open_run(
    run: Path,
    checkpoint: Path | None,
    options: TrainOptions,
    module: Classifier,
    info: DataInfo,
    own: Sequence[str] = (),
) -> tuple[Path | None, int]:
    """Prepare the run folder; return the checkpoint to resume from, or None, and its number of steps.

    `info` describes the data, `own` names the own objects that were given. Raises UserError if options, own objects,
    data, model or teacher are not those of the run, or the checkpoint can't be read.
    """
    steps = 0
    if checkpoint:
        check_own(run, own, "resume", resume_command)
        check_same_run(run, options)
        checkpoint = existing_checkpoint(run, checkpoint)
        steps = check_checkpoint(run, checkpoint, module, options, info) if checkpoint else 0
        (run / HPARAMS).unlink(missing_ok=True)  # the logger never replaces an existing one
        remove_staged(run, CONFIG)  # the other files are the test's, which may be running
        remove_staged(run / CHECKPOINTS)
    (run / CHECKPOINTS).mkdir(exist_ok=True)
    write_config(run, {**as_yaml(options), "resume": None}, own)
    return checkpoint, steps


def check_own(run: Path, own: Sequence[str], verb: str, call: Callable[[Path, Sequence[str]], str]) -> None:
    """Raise UserError unless `own` names the own objects of the run, which only a call in Python can give."""
    before = own_objects(run)
    if list(own) != before:
        given, expected = (" and ".join(names) or "none" for names in (own, before))
        raise UserError(f"cannot {verb} {run} with own objects {given}: it has {expected} ({call(run, before)})")


def existing_checkpoint(run: Path, checkpoint: Path) -> Path | None:
    """The checkpoint; if there is no last.ckpt, the run's newest one, or None if it has none yet."""
    if checkpoint.exists() or checkpoint.name != LAST:
        return checkpoint
    if not any((run / CHECKPOINTS).glob("*.ckpt")):
        print(f"{run} has no checkpoint yet: starting from the beginning")
        return None
    if newest := newest_readable(run / CHECKPOINTS):
        print(f"{checkpoint} does not exist: resuming from {newest}")
    return newest or checkpoint


def check_checkpoint(run: Path, checkpoint: Path, module: Classifier, options: TrainOptions, info: DataInfo) -> int:
    """The number of steps before a checkpoint; loads its weights into `module`.

    Raises UserError if the run can't resume from it. If it is damaged, the message names the newest readable one.
    """
    try:
        content = read_checkpoint(checkpoint)
        training_record(content, checkpoint)
    except UserError as error:
        other = newest_readable(run / CHECKPOINTS)
        hint = (
            f"the newest readable one: {resume_command(other, own_objects(run))}"
            if other
            else "no other checkpoint is readable"
        )
        raise UserError(f"{error}; {hint}") from error
    if content.get("format") != FORMAT:
        raise UserError(f"cannot resume from {checkpoint}: an older version wrote it (test it with {command('test')})")
    if not content.get("optimizer_states"):  # Lightning would silently start with a new one
        raise UserError(f"cannot resume from {checkpoint}: it has no optimizer state (name another checkpoint)")
    begun, steps = content["epoch"] + 1, int(content["global_step"])
    if options.max_epochs < begun:
        raise UserError(
            f"cannot resume {checkpoint} to --max_epochs {options.max_epochs}: it has begun {begun} (give more)"
        )
    if options.max_steps and options.max_steps < steps:
        raise UserError(
            f"cannot resume {checkpoint} to --max_steps {options.max_steps}: it has done {steps} (give more)"
        )
    # A folder has the name of any other folder.
    if "data" in content and (found := difference(recorded_info(content), info)):
        raise UserError(f"cannot resume {run} on {found} (name the run's data with --data_dir)")
    load_weights(module, content, checkpoint)
    before, now = content.get("teacher"), module.teacher.identity if module.teacher else None
    if before != now:
        wanted, found = describe_teacher(before), describe_teacher(now)
        raise UserError(f"cannot resume {run} with the teacher {found}: it began with {wanted} (give that one)")
    return steps


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes each checkpoint completely or not at all. Raises WriteError if it can't.

    Lightning writes into the system's temporary folder and moves the file. Across file systems, a kill then leaves half
    of the new checkpoint in place of the old one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        content = io.BytesIO()  # in a file, torch's writer would hide the system's error in a RuntimeError of its own
        torch.save({**checkpoint, "format": FORMAT}, content)
        with atomic_write(Path(path), new_folder=False) as file:
            file.write(content.getbuffer())


def stops_within_epoch(trainer: L.Trainer) -> bool:
    """Whether --max_steps ends the training in the middle of an epoch, which is neither validated nor complete."""
    return trainer.global_step == trainer.max_steps and not trainer.is_last_batch


class StepLimit(Callback):
    """Hides the Trainer's max_steps from Lightning while it restores a checkpoint.

    With max_steps, Lightning 2.6 takes an epoch that was complete for one to be repeated, and then skips the next one.
    """

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.max_steps = trainer.max_steps
        trainer.fit_loop.epoch_loop.max_steps = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.fit_loop.epoch_loop.max_steps = self.max_steps


class RunCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, which would forget the best score if the run folder was moved.

    It saves complete epochs alone. `SaveInEpochs` saves a training that --max_steps ends, so that it can be resumed.
    """

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not stops_within_epoch(trainer):
            super().on_train_epoch_end(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({**state_dict, "dirpath": self.dirpath})


class Patience(EarlyStopping):
    """Lightning's EarlyStopping; a run that had stopped stays stopped unless --patience has grown."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.wait_count >= self.patience:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not stops_within_epoch(trainer):  # there are no new metrics
            super().on_train_epoch_end(trainer, pl_module)


class RandomState(Callback):
    """Saves torch's random state, of the CPU and the training device, in each checkpoint, and restores it.

    Lightning saves none, so dropout would repeat its first masks. Each rank has its own state. A device of another kind
    than the checkpoint's, or another number of devices, starts anew.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.restored: list[dict[str, Tensor]] = []  # by rank

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        device = trainer.strategy.root_device
        state = {"cpu": torch.get_rng_state()}
        if device.type != "cpu":
            state[device.type] = torch.get_device_module(device).get_rng_state()
        checkpoint["random_states"] = states = [state] * trainer.world_size
        if trainer.world_size > 1:
            distributed.all_gather_object(states, state)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.restored = checkpoint.get("random_states", [])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Just before the first step: earlier, TensorBoard's graph and the sanity check draw random numbers too.
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


class StopOnNonFinite(Callback):
    """Raises UserError if the loss or a weight is NaN or infinite, before a checkpoint is made of it.

    Reading a loss waits for the GPU that computes it, so there the losses of 50 steps are read together.
    """

    STEPS_TOGETHER = 50

    def __init__(self) -> None:
        self.unread: list[tuple[int, float, Tensor]] = []  # step, learning rate, loss

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        rate = float(trainer.optimizers[0].param_groups[0]["lr"])
        self.unread.append((trainer.global_step + 1, rate, loss.detach()))
        if loss.device.type == "cpu" or len(self.unread) == self.STEPS_TOGETHER:
            self.check_losses()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.check_losses()
        for name, weights in pl_module.named_parameters():
            if not weights.isfinite().all():
                self.stop(f"the weights {name} are not finite after step {trainer.global_step}")

    def check_losses(self) -> None:
        unread, self.unread = self.unread, []
        for step, rate, loss in unread:
            if not math.isfinite(loss.item()):
                self.stop(f"the loss is {loss.item()} at step {step}, with learning rate {rate:.3g}")

    def stop(self, reason: str) -> None:
        raise UserError(f"cannot continue training: {reason} (train again with a smaller --lr)")


class OwnSignals(Callback):
    """Keeps this program's signal handlers in validation and test, for which Lightning sets its own.

    In Lightning 2.6 its handler of SIGTERM broadcasts, in the middle of any other exchange between the processes.
    """

    def __init__(self) -> None:
        self.own = {number: signal.getsignal(number) for number in SIGNALS}

    def restore(self, *_: Any) -> None:
        for number, handler in self.own.items():
            signal.signal(number, handler)

    on_sanity_check_start = on_test_start = restore  # type: ignore[assignment]


DUE, NOT_DUE = 0, -1  # less than the number of any signal


class SaveInEpochs(OwnSignals):
    """Saves `last.ckpt` in the middle of an epoch: every so many minutes, at --max_steps, and at a signal to stop.

    It saves only after a batch that ends an optimizer step, since a checkpoint holds no accumulated gradients. After a
    signal, all ranks save after the same step, or stop after validation, whichever received it, and raise Interrupted.
    Lightning saves nothing at Ctrl-C and exits with status 0 after SIGTERM. A later signal ends the program at once,
    but one of several ranks ignores all except Ctrl-C: if the system signals all of them, torch's agent passes its own
    on.

    `ModelCheckpoint(train_time_interval=...)` also saves after an epoch's last step. A run that is killed then resumes
    without that epoch's validation. With several GPUs it broadcasts through them at each step.
    """

    def __init__(self, last: Path, minutes: float | None) -> None:
        super().__init__()
        self.last = last
        self.seconds = 60 * minutes if minutes else math.inf
        self.received = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Not earlier: Lightning sets its own handlers after on_fit_start.
        Signals.received = None
        Signals.answer(self.receive)
        self.saved = time.monotonic()
        # On the CPU, so that no rank waits for its GPU.
        self.group: Any = distributed.new_group(backend="gloo") if trainer.world_size > 1 else None

    def receive(self, signum: int) -> None:
        self.received = signum
        if launcher():
            for number in SIGNALS:
                if number != signal.SIGINT:
                    signal.signal(number, signal.SIG_IGN)
        if is_rank_zero():
            with contextlib.suppress(OSError):  # the same Ctrl-C may have ended the reader of a pipe
                os.write(2, b"\nstopping after this step or validation, then saving; repeat to stop at once\n")

    def largest(self, value: int) -> int:
        """The largest of all ranks' values."""
        if self.group is None:
            return value
        shared = torch.tensor(value)
        distributed.all_reduce(shared, distributed.ReduceOp.MAX, group=self.group)
        return int(shared)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        batches = args[2] + 1
        # After the last batch, validation and the epoch's own checkpoint follow.
        if trainer.is_last_batch or batches % trainer.accumulate_grad_batches:
            return
        due = time.monotonic() - self.saved >= self.seconds or stops_within_epoch(trainer)
        reason = self.largest(self.received or (DUE if due else NOT_DUE))
        if reason != NOT_DUE:
            trainer.save_checkpoint(self.last, weights_only=False)
            self.saved = time.monotonic()
            if reason != DUE:
                raise Interrupted(reason)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if received := self.largest(self.received):
            raise Interrupted(received)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.restore()
        self.on_train_epoch_start(trainer, pl_module)

    on_exception = OwnSignals.restore  # type: ignore[assignment]
