"""No fault is silent or loses what was saved; no file runs code."""

import math
import os
import pydoc
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from conftest import IN_CI, Program, metrics_of, small_run, steps_of_saves

from fmnist_lightning.errors import UserError
from fmnist_lightning.runs import files
from fmnist_lightning.runs.checkpoints import FORMAT, read_checkpoint, training_record
from fmnist_lightning.runs.folders import lock_run
from fmnist_lightning.training.evaluate import evaluate
from fmnist_lightning.training.module import Classifier
from fmnist_lightning.training.resume import StopOnNonFinite
from fmnist_lightning.training.train import train

pytestmark = pytest.mark.usefixtures("small_drawn")
STEPS = 11  # of an epoch of 540 images in batches of 50


class TestFaults:
    def test_a_full_disk(self, program: Program, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        last = trained / "checkpoints" / "last.ckpt"
        before = last.read_bytes()

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        training_step = Classifier.training_step

        def fills_the_disk(self: Classifier, batch: Any, batch_idx: int) -> torch.Tensor:
            monkeypatch.setattr(files, "fsync_and_rename", full)
            return training_step(self, batch, batch_idx)

        monkeypatch.setattr(Classifier, "training_step", fills_the_disk)
        status, output = program(train, "--resume", trained, "--max_epochs", 2)
        assert status == 1
        assert "No space left on device" in output
        assert last.read_bytes() == before

    @pytest.mark.skipif(sys.platform == "win32", reason="limits of a process")
    def test_a_disk_that_takes_no_more_bytes(self, tmp_path: Path) -> None:
        """By the system itself, which lets this process write files of at most 100,000 bytes."""
        code = """
import resource, signal, sys, torch
from pathlib import Path
from fmnist_lightning.runs.checkpoints import AtomicCheckpointIO
from fmnist_lightning.errors import UserError
from fmnist_lightning.training.evaluate import evaluate
from fmnist_lightning.runs.folders import explain_write_errors
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path(sys.argv[1])
AtomicCheckpointIO().save_checkpoint({"state_dict": {}, "hyper_parameters": {}}, path)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with explain_write_errors(path.parent.parent, "this command"):
        AtomicCheckpointIO().save_checkpoint({"state_dict": {"w": torch.zeros(100_000)}}, path)
except UserError as error:
    print(error)
"""
        path = tmp_path / "checkpoints" / "last.ckpt"
        path.parent.mkdir()
        (tmp_path / "config.yaml").touch()
        told = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
        assert "cannot write" in told.stdout
        assert "all that was saved before is intact" in told.stdout
        assert read_checkpoint(path)["state_dict"] == {}
        assert list(path.parent.iterdir()) == [path]

    # TensorBoard's writer fails in a thread of its own too.
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    def test_a_run_folder_that_is_deleted_under_the_run(
        self, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def delete(self: Classifier) -> None:
            while (tmp_path / "version_0").exists():  # TensorBoard's thread can put a file into it meanwhile
                shutil.rmtree(tmp_path / "version_0", ignore_errors=True)

        before = set(threading.enumerate())
        monkeypatch.setattr(Classifier, "on_train_epoch_start", delete)
        options = ["--dataset", "drawn", "--batch_size", 50, "--max_epochs", 2, "--log_dir", tmp_path]
        status, output = program(train, *options, "--accelerator", "cpu")
        assert status == 1
        assert f"{tmp_path / 'version_0'}: it was deleted or moved" in output
        for thread in set(threading.enumerate()) - before:
            thread.join(5)  # else it fails in the next test

    def test_a_folder_made_read_only(self, program: Program, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refused(**options: Any) -> None:
            raise PermissionError(13, "Permission denied", str(options["dir"]))

        training_step = Classifier.training_step

        def made_read_only(self: Classifier, batch: Any, batch_idx: int) -> torch.Tensor:
            monkeypatch.setattr(files, "NamedTemporaryFile", refused)  # what the system does, but not to root
            return training_step(self, batch, batch_idx)

        monkeypatch.setattr(Classifier, "training_step", made_read_only)
        status, output = program(train, "--resume", trained, "--max_epochs", 2)
        assert status == 1
        assert f"cannot write {trained / 'checkpoints'}: Permission denied" in output
        assert f"make the folder writable, then run: python scripts/train.py --resume {trained}" in output

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_a_loss_that_is_not_finite(
        self, program: Program, trained: Path, monkeypatch: pytest.MonkeyPatch, value: float
    ) -> None:
        before = (trained / "checkpoints" / "last.ckpt").read_bytes()
        training_step = Classifier.training_step

        def ruined(self: Classifier, batch: Any, batch_idx: int) -> torch.Tensor:
            return training_step(self, batch, batch_idx) * (value if batch_idx == 3 else 1)

        monkeypatch.setattr(Classifier, "training_step", ruined)
        status, output = program(train, "--resume", trained, "--max_epochs", 2)
        assert status == 1
        assert f"the loss is {value} at step {STEPS + 4} (epoch 2, batch 4, learning rate 0.001, 50 images: " in output
        assert "start anew with a smaller --lr" in output
        assert (trained / "checkpoints" / "last.ckpt").read_bytes() == before

    def test_weights_that_are_not_finite_are_not_saved(self) -> None:
        module = Classifier()
        callback = StopOnNonFinite("go on elsewhere")
        trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
        callback.on_save_checkpoint(trainer, module, {})  # the negative control
        with torch.no_grad():
            module.net.layers[0].weight[0] = math.nan
        with pytest.raises(UserError, match=r"net\.layers\.0\.weight are no longer finite behind step 0; go on elsewh"):
            callback.on_save_checkpoint(trainer, module, {})

    def test_a_damaged_last_checkpoint_names_the_newest_that_can_be_read(self, program: Program, trained: Path) -> None:
        last, best = (trained / "checkpoints" / f"{name}.ckpt" for name in ("last", "best"))
        last.write_bytes(last.read_bytes()[:-100])
        status, output = program(train, "--resume", trained, "--max_epochs", 2)
        assert status == 1
        assert f"cannot read {last} as a checkpoint" in output
        assert f"the newest that can be read: python scripts/train.py --resume {best}" in output
        status, output = program(train, "--resume", best, "--max_epochs", 2)
        assert status == 0, output
        assert training_record(read_checkpoint(last)).epochs == 2

    def test_a_checkpoint_of_a_newer_version(self, program: Program, trained: Path) -> None:
        last = trained / "checkpoints" / "last.ckpt"
        torch.save({**read_checkpoint(last), "format": FORMAT + 1}, last)
        status, output = program(train, "--resume", trained)
        assert status == 1
        assert f"format is {FORMAT + 1}, newer than {FORMAT}" in output

    def test_a_checkpoint_of_an_older_version_is_tested_but_not_gone_on_with(
        self, program: Program, trained: Path
    ) -> None:
        for path in (trained / "checkpoints").iterdir():
            torch.save({**read_checkpoint(path), "format": FORMAT - 1}, path)
        status, output = program(train, "--resume", trained, "--max_epochs", 2)
        assert status == 1
        assert "is an older version's: it can be tested, but not gone on with" in output
        assert program(evaluate, "--run", trained)[0] == 0

    def test_two_trainings_in_one_folder(self, program: Program, trained: Path) -> None:
        with lock_run(trained):
            status, output = program(train, "--resume", trained)
        assert status == 1
        assert f"cannot train in {trained}" in output
        with lock_run(trained):
            pass  # it is free again

    def test_data_that_changes_under_the_run(
        self, program: Program, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def harm(_: Classifier) -> None:
            path = tiny_dir / "t10k-images-idx3-ubyte"
            path.write_bytes(path.read_bytes()[:-1] + b"x")

        monkeypatch.setattr(Classifier, "on_train_end", harm)
        options = ["--data_dir", tiny_dir, "--max_epochs", 1, "--batch_size", 50, "--accelerator", "cpu"]
        status, output = program(train, *options, "--log_dir", tmp_path / "logs")
        assert status == 1
        assert f"{tiny_dir / 't10k-images-idx3-ubyte'} has the right size but other content" in output
        assert read_checkpoint(tmp_path / "logs" / "version_0" / "checkpoints" / "last.ckpt")["global_step"] == 3

    def test_a_clock_that_jumps(self, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A day back and forth at each look; what is measured is measured by a clock that nobody sets."""
        saves = steps_of_saves(monkeypatch)
        jumps, now = [], time.time
        monkeypatch.setattr(time, "time", lambda: jumps.append(0) or now() + 86400 * (-1) ** len(jumps))
        run, _ = small_run(program, tmp_path, "--checkpoint_every_minutes", 100)
        assert jumps
        assert set(saves) == {STEPS, 2 * STEPS}  # none in an epoch
        assert 0 < metrics_of(run)["training_seconds"] < 600

    def test_a_schedule_over_the_whole_training_keeps_its_length(self, program: Program, tmp_path: Path) -> None:
        run, _ = small_run(program, tmp_path, "--schedule", "one_cycle", "--max_epochs", 1)
        status, output = program(train, "--resume", run, "--max_epochs", 2)
        assert status == 1
        assert "max_epochs 2 instead of 1" in output


class TestAttacks:
    """Files that would run code where they are loaded carelessly."""

    @pytest.mark.parametrize("name", ["_instantiator", "_class_path"])
    def test_hyper_parameters_that_name_code(self, program: Program, trained: Path, name: str) -> None:
        last, proof = trained / "checkpoints" / "last.ckpt", trained / "proof"
        content = read_checkpoint(last)
        content["hyper_parameters"] |= {name: "os.mkdir", "path": str(proof)}
        torch.save(content, last)
        status, output = program(train, "--resume", trained, "--max_epochs", 2, "--test", "false")
        assert status == 0, output
        assert not proof.exists()
        named, path = content["hyper_parameters"][name], content["hyper_parameters"]["path"]
        pydoc.locate(named)(path)  # the negative control: what a loader does that calls what it is told to
        assert proof.exists()

    def test_a_config_with_python_in_it(self, program: Program, trained: Path) -> None:
        config, proof = trained / "config.yaml", trained / "proof"
        evil = f"!!python/object/apply:os.mkdir ['{proof}']"
        config.write_text(f"seed: {evil}\n")
        for arguments in (["--config", config], ["--resume", trained]):
            status, _ = program(train, *arguments)
            assert status in (1, 2)
            assert not proof.exists()
        yaml.load(config.read_text(), yaml.UnsafeLoader)  # noqa: S506 - the negative control: the attack does work
        assert proof.exists()


# Saves a checkpoint, then another in its place, and is killed when half of the second is written.
KILLED_SAVE = """
import io, os, shutil, signal, sys
from pathlib import Path
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from fmnist_lightning.runs.checkpoints import AtomicCheckpointIO
path, io_name = Path(sys.argv[1]), sys.argv[2]
checkpoint_io = {"ours": AtomicCheckpointIO, "lightning": TorchCheckpointIO}[io_name]()
content = {"state_dict": {"w": torch.zeros(100_000)}, "hyper_parameters": {}}
checkpoint_io.save_checkpoint(content, path)
def killed_half_way(content, file):
    file.write(content[: len(content) // 2])
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
save = torch.save
def killed_save(checkpoint, file):
    buffer = io.BytesIO()
    save(checkpoint, buffer)
    killed_half_way(buffer.getvalue(), file)
if io_name == "ours":
    torch.save = killed_save
else:  # it writes whole into the system's folder for temporary files; then that is copied
    shutil.copyfile = lambda source, target, **_: killed_half_way(Path(source).read_bytes(), open(target, "wb"))
checkpoint_io.save_checkpoint(content, path)
"""
OTHER_FILE_SYSTEM = Path("/dev/shm")  # noqa: S108


@pytest.mark.skipif(not (OTHER_FILE_SYSTEM.is_dir() or IN_CI), reason="no second file system to write to")
@pytest.mark.parametrize(("io_name", "whole"), [("ours", True), ("lightning", False)])
def test_a_kill_while_saving_leaves_the_checkpoint_before(tmp_path: Path, io_name: str, whole: bool) -> None:
    """Lightning's own, where the folder for temporary files is on another file system, is the negative control."""
    path = tmp_path / "last.ckpt"
    assert OTHER_FILE_SYSTEM.stat().st_dev != tmp_path.stat().st_dev
    command = [sys.executable, "-c", KILLED_SAVE, path, io_name]
    killed = subprocess.run(command, env={**os.environ, "TMPDIR": str(OTHER_FILE_SYSTEM)}, check=False)
    assert killed.returncode == -signal.SIGKILL
    if whole:
        assert read_checkpoint(path)["state_dict"]["w"].shape == (100_000,)
    else:
        with pytest.raises(UserError, match="damaged"):
            read_checkpoint(path)
