"""A run that is stopped loses nothing and goes on, and only as the run that it was."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Program, metrics_of, small_run
from several import torchrun_environment

from fmnist_lightning.data import datamodule
from fmnist_lightning.data.batches import Batch
from fmnist_lightning.errors import SIGNALS
from fmnist_lightning.runs.checkpoints import read_checkpoint
from fmnist_lightning.runs.folders import numbered_runs
from fmnist_lightning.training.callbacks import Predictions
from fmnist_lightning.training.module import Classifier
from fmnist_lightning.training.resume import StopOnSignal
from fmnist_lightning.training.train import train

ROOT = Path(__file__).parents[2]
TORCHRUN = torchrun_environment(0, 2, 12345)


def test_a_resumed_run_goes_on_in_its_folder(program: Program, tmp_path: Path, small_drawn: None) -> None:
    run, _ = small_run(program, tmp_path)
    first_steps = read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"]
    status, output = program(train, "--config", run / "config.yaml", "--max_epochs", 3, "--resume", run)
    assert status == 0, output
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == first_steps * 3 // 2
    assert metrics_of(run)["epochs"] == 3
    assert list(numbered_runs(tmp_path)) == [0]


def test_a_run_stopped_in_the_middle_of_an_epoch_leaves_no_image_out(
    program: Program, tmp_path: Path, small_drawn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """540 images in batches of 50 are 11 steps; stopped behind step 15, the second epoch has 7 more."""
    seen: list[torch.Tensor] = []
    training_step = Classifier.training_step

    def recording_step(self: Classifier, batch: Batch, batch_idx: int) -> torch.Tensor:
        seen.append(batch.indices)
        if len(seen) == 15:
            signal.raise_signal(signal.SIGINT)
        return training_step(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", recording_step)
    options = ["--dataset", "drawn", "--max_epochs", 2, "--batch_size", 50, "--accelerator", "cpu"]
    status, output = program(train, *options, "--log_dir", tmp_path)
    assert status == 130
    [command] = [line for line in output.splitlines() if "--resume" in line]
    arguments = command.partition("scripts/train.py ")[2].split()
    status, output = program(train, *arguments)
    assert status == 0, output
    assert len(seen) == 22
    assert torch.cat(seen[11:]).sort().values.tolist() == list(range(540))
    assert read_checkpoint(tmp_path / "version_0" / "checkpoints" / "last.ckpt")["global_step"] == 22


@pytest.mark.parametrize(("option", "value", "before"), [("batch_size", 64, 50), ("seed", 5, 0), ("lr", 0.5, 0.001)])
def test_a_run_does_not_go_on_as_another(program: Program, trained: Path, option: str, value: Any, before: Any) -> None:
    status, output = program(train, f"--{option}", value, "--resume", trained)
    assert status == 1
    assert f"can't go on with {option} {value} instead of {before}" in output


def test_a_signal_while_the_data_is_fetched_makes_no_run(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datamodule, "ensure_files", lambda _: signal.raise_signal(signal.SIGTERM))
    status, output = program(train, "--data_dir", tmp_path / "data", "--log_dir", tmp_path / "logs")
    assert status == 143
    assert "stopped by SIGTERM" in output
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(("starter", "after_sigterm"), [({}, signal.SIG_DFL), (TORCHRUN, signal.SIG_IGN)])
def test_a_second_signal_ends_the_program_at_once(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    starter: dict[str, str],
    after_sigterm: signal.Handlers,
) -> None:
    """But a second SIGTERM does not end one process of several, which the end of their starter sends more than once."""
    for name, value in starter.items():
        monkeypatch.setenv(name, value)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    StopOnSignal(tmp_path / "last.ckpt", "").receive(signal.SIGINT, None)
    after = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert after == {signal.SIGINT: signal.SIG_DFL, signal.SIGTERM: after_sigterm}
    assert "once more to stop at once" in capfd.readouterr().err


def test_an_interrupted_test_says_that_the_training_is_saved(
    program: Program, tmp_path: Path, small_drawn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Predictions, "on_test_batch_end", interrupt)
    options = ["--dataset", "drawn", "--max_epochs", 1, "--log_dir", tmp_path, "--accelerator", "cpu"]
    status, output = program(train, *options)
    assert status == 143
    assert f"python scripts/test.py --run {tmp_path / 'version_0'}" in output


def test_a_damaged_checkpoint_is_not_gone_on_with(program: Program, trained: Path) -> None:
    path, config = trained / "checkpoints" / "last.ckpt", trained / "config.yaml"
    path.write_bytes(path.read_bytes()[:-100])
    before = config.read_text()
    status, output = program(train, "--config", config, "--max_epochs", 9, "--resume", trained)
    assert status == 1
    assert f"cannot read {path} as a checkpoint" in output
    assert config.read_text() == before


def start_training(tmp_path: Path) -> tuple[subprocess.Popen[str], list[str]]:
    """A training of its own process that is well under way, and the lines that it prints."""
    script = ROOT / "scripts" / "train.py"
    command = [sys.executable, str(script), "--dataset", "drawn", "--accelerator", "cpu", "--max_epochs", "50"]
    process = subprocess.Popen(
        [*command, "--log_dir", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    lines: list[str] = []
    under_way = threading.Event()

    def read() -> None:
        for line in process.stdout:
            lines.append(line)
            if "Total Flops" in line:  # the summary's last line; the first steps follow
                under_way.set()

    threading.Thread(target=read, daemon=True).start()
    assert under_way.wait(120), "".join(lines)
    time.sleep(3)
    return process, lines


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_prints_the_command_that_goes_on(
    tmp_path: Path, signum: signal.Signals, status: int
) -> None:
    process, lines = start_training(tmp_path)
    with process:
        process.send_signal(signum)
        assert process.wait(60) == status, "".join(lines)
    output = "".join(lines)
    run = tmp_path / "version_0"
    assert f"--resume {run}" in output
    assert "Traceback" not in output
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] > 0
    [state] = checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    assert state["epoch"] * 422 + state["batches_done"] == checkpoint["global_step"]
