"""No fault is silent or costs what was saved; no file runs code."""

import errno
import math
import os
import pydoc
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import SMALL, Program, metrics_of, small_run, steps_of_saves
from filelock import FileLock
from several import CONTEXT
from tensorboard.summary.writer import event_file_writer

from fmnist_lightning.cli.shell import command
from fmnist_lightning.data.batches import Batch
from fmnist_lightning.errors import UserError
from fmnist_lightning.runs import files
from fmnist_lightning.runs.checkpoints import read_checkpoint
from fmnist_lightning.runs.folders import METRICS, PREDICTIONS, TEST_LOCK, explain_write_errors, lock_run
from fmnist_lightning.training import callbacks, resume
from fmnist_lightning.training.callbacks import Provenance
from fmnist_lightning.training.evaluate import evaluate
from fmnist_lightning.training.module import Classifier
from fmnist_lightning.training.resume import AtomicCheckpointIO, StopOnNonFinite
from fmnist_lightning.training.train import train

pytestmark = pytest.mark.usefixtures("small_drawn")
STEPS = 11  # of an epoch of 540 images in batches of 50


def test_failed_write_names_file_and_command(program: Program, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, **_: bool) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    last = trained / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    for module in (resume, callbacks):
        monkeypatch.setattr(module, "atomic_write", refused)
    for function, words, file, name, option in (
        (train, ["--max_epochs", 2], "checkpoints", "train", "--resume"),
        (evaluate, [], PREDICTIONS, "test", "--run"),
    ):
        status, output = program(function, *words, option, trained)
        assert (status, f"cannot write {trained / file}" in output) == (1, True), output
        assert f"{command(name)} {option} {trained}" in output
    assert last.read_bytes() == before


def test_failed_write_after_the_training_names_the_test(
    program: Program, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", lambda *_, **__: full(trained))
    status, output = program(train, "--resume", trained, "--test", "true")
    assert (status, f"cannot write {trained / PREDICTIONS}: No space left" in output) == (1, True), output
    assert f"free space, then run: {command('test')} --run {trained})" in output


@pytest.mark.parametrize("stage", ["on_train_batch_end", "on_validation_batch_end", "on_test_end"])
def test_run_that_is_deleted_ends_with_one_message(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """TensorBoard's thread, which fails first, prints no traceback. Pytest would report one as an error."""
    run = tmp_path / "version_0"
    monkeypatch.setattr(Provenance, stage, lambda *_: shutil.rmtree(run, ignore_errors=True))
    monkeypatch.setattr(event_file_writer._AsyncWriterThread, "_next_flush_time", 0, raising=False)
    status, output = program(train, *SMALL, "--max_epochs", 2, "--log_dir", tmp_path)
    assert (status, output.count("error: ")) == (1, 1)
    assert f": {run} was deleted or moved during the run (" in output
    assert "Traceback" not in output
    assert not run.exists()


def test_disk_that_takes_no_more_bytes(tmp_path: Path) -> None:
    """A full disk: the system lets this process write files of at most 100,000 bytes."""
    path = tmp_path / "checkpoints" / "last.ckpt"
    path.parent.mkdir()
    AtomicCheckpointIO().save_checkpoint({"state_dict": {}, "hyper_parameters": {}}, path)
    large = {"state_dict": {"w": torch.zeros(100_000)}}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(UserError, match="intact"), explain_write_errors(tmp_path, "this command"):
            AtomicCheckpointIO().save_checkpoint(large, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert read_checkpoint(path)["state_dict"] == {}
    assert list(path.parent.iterdir()) == [path]


def save_plainly(content: dict[str, Any], path: Path) -> None:
    torch.save(content, path)


def save_killed_half_way(path: Path, save: Callable[..., None]) -> None:
    """Save; save again, and be killed when half of the file is written."""
    content = {"state_dict": {"w": torch.zeros(100_000)}, "hyper_parameters": {}}
    save(content, path)
    whole = path.read_bytes()

    def killed(_: object, target: Any) -> None:
        file = target if hasattr(target, "write") else Path(target).open("wb")  # noqa: SIM115
        file.write(whole[: len(whole) // 2])
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    torch.save = killed
    save(content, path)


@pytest.mark.parametrize(("save", "intact"), [(AtomicCheckpointIO().save_checkpoint, True), (save_plainly, False)])
def test_kill_while_saving_leaves_the_old_checkpoint(tmp_path: Path, save: Callable[..., None], intact: bool) -> None:
    """A plain save is the negative control."""
    path = tmp_path / "last.ckpt"
    process = CONTEXT.Process(target=save_killed_half_way, args=(path, save))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with nullcontext() if intact else pytest.raises(UserError, match="as a checkpoint"):
        assert read_checkpoint(path)["state_dict"]["w"].shape == (100_000,)


def test_save_into_a_deleted_run_makes_no_folder(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(UserError, match=f"{run} was deleted or moved"), explain_write_errors(run, "this command"):
        AtomicCheckpointIO().save_checkpoint({}, run / "checkpoints" / "last.ckpt")
    assert not run.exists()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_loss_that_is_not_finite_stops_the_run(
    program: Program, trained: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    before = (trained / "checkpoints" / "last.ckpt").read_bytes()
    training_step = Classifier.training_step

    def ruined(self: Classifier, batch: Batch, batch_idx: int) -> torch.Tensor:
        return training_step(self, batch, batch_idx) * (value if batch_idx == 3 else 1)

    monkeypatch.setattr(Classifier, "training_step", ruined)
    status, output = program(train, "--resume", trained, "--max_epochs", 2, "--checkpoint_every_minutes", 1e9)
    assert status == 1
    assert f"the loss is {value} at step {STEPS + 4}, with learning rate 0.001" in output
    assert "--lr" in output
    assert (trained / "checkpoints" / "last.ckpt").read_bytes() == before


def test_losses_on_a_gpu_are_read_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor that holds no value plays the GPU: reading it fails."""
    monkeypatch.setattr(StopOnNonFinite, "STEPS_TOGETHER", 3)
    callback, loss = StopOnNonFinite(), torch.zeros((), device="meta")
    trainer: Any = SimpleNamespace(optimizers=[SimpleNamespace(param_groups=[{"lr": 0.5}])], global_step=0)
    for _ in range(2):
        callback.on_before_backward(trainer, Classifier(), loss)
    with pytest.raises(RuntimeError, match="meta"):
        callback.on_before_backward(trainer, Classifier(), loss)


def test_nothing_that_is_not_finite_is_saved() -> None:
    module, callback = Classifier(), StopOnNonFinite()
    trainer: Any = SimpleNamespace(global_step=9)
    callback.on_save_checkpoint(trainer, module, {})  # the negative control
    callback.unread = [(7, 0.5, torch.tensor(math.nan))]
    with pytest.raises(UserError, match=r"loss is nan at step 7, with learning rate 0\.5"):
        callback.on_save_checkpoint(trainer, module, {})
    with torch.no_grad():
        next(module.net.parameters())[0] = math.nan
    with pytest.raises(UserError, match="not finite after step 9"):
        callback.on_save_checkpoint(trainer, module, {})


def test_two_trainings_in_one_folder_are_refused(program: Program, trained: Path) -> None:
    with lock_run(trained):
        status, output = program(train, "--resume", trained)
    assert (status, f"cannot train in {trained}" in output) == (1, True)


def test_test_waits_for_another_test_of_its_run(program: Program, trained: Path) -> None:
    """Else each would remove what the other is writing."""
    staged = trained / f".{PREDICTIONS}.abc{files.STAGED}"
    staged.touch()
    begun, kept = threading.Event(), []

    def another_test() -> None:
        with FileLock(trained / TEST_LOCK):
            begun.set()
            time.sleep(1)
            kept.append(staged.exists() and not (trained / METRICS).exists())

    other = threading.Thread(target=another_test)
    other.start()
    begun.wait()
    status, output = program(evaluate, "--run", trained)
    other.join()
    assert (status, kept) == (0, [True]), output
    assert f"another test of {trained} is running" in output
    assert (trained / METRICS).exists()
    assert not staged.exists()


def test_data_that_changes_during_the_run(
    program: Program, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def harm(_: Classifier) -> None:
        path = tiny_dir / "t10k-images-idx3-ubyte"
        path.write_bytes(path.read_bytes()[:-1] + b"x")

    monkeypatch.setattr(Classifier, "on_train_end", harm)
    options = ["--data_dir", tiny_dir, "--max_epochs", 1, "--batch_size", 50, "--accelerator", "cpu"]
    status, output = program(train, *options, "--log_dir", tmp_path / "logs")
    assert (status, f"{tiny_dir / 't10k-images-idx3-ubyte'}" in output) == (1, True), output
    assert read_checkpoint(tmp_path / "logs" / "version_0" / "checkpoints" / "last.ckpt")["global_step"] == 3


def test_clock_that_jumps(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A day back and forth at each look. Durations are measured by a clock that nobody sets."""
    saves = steps_of_saves(monkeypatch)
    jumps, now = [], time.time
    monkeypatch.setattr(time, "time", lambda: jumps.append(0) or now() + 86400 * (-1) ** len(jumps))
    run, _ = small_run(program, tmp_path, "--max_epochs", 1, "--checkpoint_every_minutes", 100)
    assert jumps
    assert set(saves) == {STEPS}  # none in the epoch
    assert 0 < metrics_of(run)["training_seconds"] < 600


@pytest.mark.parametrize("name", ["_instantiator", "_class_path"])
def test_hyper_parameters_that_name_code_run_nothing(program: Program, trained: Path, name: str) -> None:
    last, proof = trained / "checkpoints" / "last.ckpt", trained / "proof"
    content = read_checkpoint(last)
    content["hyper_parameters"] |= {name: "os.mkdir", "path": str(proof)}
    torch.save(content, last)
    status, output = program(train, "--resume", trained, "--max_epochs", 2, "--test", "false")
    assert status == 0, output
    assert not proof.exists()
    named, path = content["hyper_parameters"][name], content["hyper_parameters"]["path"]
    pydoc.locate(named)(path)  # the negative control: what a careless loader does
    assert proof.exists()


def test_config_with_python_in_it_runs_nothing(program: Program, trained: Path) -> None:
    config, proof = trained / "config.yaml", trained / "proof"
    config.write_text(f"seed: !!python/object/apply:os.mkdir ['{proof}']\n")
    for arguments in (["--config", config], ["--resume", trained]):
        status, _ = program(train, *arguments)
        assert status in (1, 2)
        assert not proof.exists()
    yaml.load(config.read_text(), yaml.UnsafeLoader)  # noqa: S506 - the negative control: the attack works
    assert proof.exists()
