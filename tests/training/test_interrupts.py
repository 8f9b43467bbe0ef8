"""Signals: the current step or validation ends, everything is saved, the command that resumes is printed."""

import signal
from pathlib import Path

import pytest
from conftest import SMALL, Program
from several import start_rank, torchrun_environment, wait_for

from fmnist_lightning.cli import command
from fmnist_lightning.data.sets import download
from fmnist_lightning.errors import SIGNALS
from fmnist_lightning.runs.checkpoints import read_checkpoint
from fmnist_lightning.training.callbacks import Predictions
from fmnist_lightning.training.resume import SaveInEpochs
from fmnist_lightning.training.train import train

TORCHRUN = torchrun_environment(0, 2, 12345)


def test_sigterm_saves_and_prints_the_resume_command(tmp_path: Path) -> None:
    """In a process, by a real signal. test_resume.py has Ctrl-C at each kind of step."""
    output, run = tmp_path / "output.txt", tmp_path / "version_0"
    options = [*SMALL, "--max_epochs", 1000, "--log_dir", tmp_path]
    process = start_rank(output, train, options)
    wait_for((run / "checkpoints" / "last.ckpt").exists)
    process.terminate()
    process.join(60)
    assert process.exitcode == 143, output.read_text()
    assert f"{command('train')} --resume {run}\n" in output.read_text()
    assert "Traceback" not in output.read_text()
    checkpoint = read_checkpoint(run / "checkpoints" / "last.ckpt")
    [state] = checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    assert state["epoch"] * 11 + state["batches_done"] == checkpoint["global_step"]


def test_signal_while_data_is_fetched_makes_no_run(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "ensure_files", lambda _: signal.raise_signal(signal.SIGTERM))
    status, output = program(train, "--data_dir", tmp_path / "data", "--log_dir", tmp_path / "logs")
    assert (status, "stopped by SIGTERM" in output) == (143, True)
    assert not (tmp_path / "logs").exists()


def test_signal_in_the_test_loop_prints_the_test_command(
    program: Program, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training is complete and saved."""
    monkeypatch.setattr(Predictions, "on_test_batch_end", lambda *_: signal.raise_signal(signal.SIGTERM))
    status, output = program(train, "--resume", trained, "--test", "true")
    assert (status, f"{command('test')} --run {trained}" in output) == (143, True)


@pytest.mark.parametrize(("environment", "after_sigterm"), [({}, signal.SIG_DFL), (TORCHRUN, signal.SIG_IGN)])
def test_second_signal_ends_the_program_at_once(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    after_sigterm: signal.Handlers,
) -> None:
    """Except SIGTERM to one process of several, which a launcher that dies sends more than once."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    callback = SaveInEpochs(tmp_path / "last.ckpt", None)
    callback.receive(signal.SIGINT, None)
    after = {number: signal.getsignal(number) for number in SIGNALS}
    callback.restore()
    assert after == {signal.SIGINT: signal.SIG_DFL, signal.SIGTERM: after_sigterm}
    assert "repeat to stop at once" in capfd.readouterr().err
