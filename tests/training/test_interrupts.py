"""Signals: the current step or validation ends, everything is saved, the command that resumes is printed."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import SMALL, Program, own_signals, steps_of_saves
from several import start_rank, torchrun_environment, wait_for

from fmnist_lightning import errors
from fmnist_lightning.cli import main as program
from fmnist_lightning.cli.shell import command
from fmnist_lightning.data.sets import download
from fmnist_lightning.errors import SIGNALS
from fmnist_lightning.report.logged_plots import ValidationPlots
from fmnist_lightning.runs.checkpoints import read_checkpoint
from fmnist_lightning.runs.options import JoinOptions
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


@pytest.mark.parametrize(("echo_seconds", "statuses"), [(60.0, []), (-1.0, [130, 143])])
def test_later_signal_ends_the_program_and_an_echo_does_not(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    echo_seconds: float,
    statuses: list[int],
) -> None:
    """make, shells and schedulers pass on a signal that the whole process group received."""
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(errors, "ECHO_SECONDS", echo_seconds)
    callback, trainer = SaveInEpochs(tmp_path / "last.ckpt", None), SimpleNamespace(world_size=1)
    with own_signals():
        callback.on_train_start(trainer, None)
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
    assert (callback.received, ended) == (signal.SIGINT, statuses)
    assert capfd.readouterr().err.count("repeat to stop at once") == 1


def test_sigterm_to_a_rank_that_stops_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher that dies sends it more than once."""
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    with own_signals():
        SaveInEpochs(tmp_path / "last.ckpt", None).receive(signal.SIGINT)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN


@pytest.mark.skipif(signal.SIGHUP not in SIGNALS, reason="this process was started by nohup, which ignores SIGHUP")
def test_terminal_that_closes_saves_the_training(
    program: Program, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGHUP, the signal number 1, is neither a save that is due nor nothing."""
    saves = steps_of_saves(monkeypatch)
    monkeypatch.setattr(ValidationPlots, "on_train_batch_start", lambda *_: signal.raise_signal(signal.SIGHUP))
    status, output = program(train, "--resume", trained, "--max_epochs", 2)
    assert (status, saves) == (129, [12])
    assert f"{command('train')} --resume {trained}\n" in output


# The process sends the signals to itself: while a module is imported, as often as given, and while it ends.
SIGNALED = """
import os, sys
class Sender:
    def find_spec(self, name, *_):
        if name == {module!r}:
            for _ in range({times}):
                os.kill(os.getpid(), {number})
sys.meta_path.insert(0, Sender())
sys.argv = ["fmnist", "predict", "--help"]
from fmnist_lightning.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_during_imports_ends_in_silence(number: int) -> None:
    code = SIGNALED.format(module="jsonargparse", times=2, number=int(number))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", "")


def test_signals_while_an_interruption_is_reported_change_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(_: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(program, "is_rank_zero", lambda: signal.raise_signal(signal.SIGINT) is None)
    with own_signals():
        status = program.main(JoinOptions, stop, ["--folder", "a", "--file", "b"])
    assert (status, capsys.readouterr().err) == (130, "\nstopped by SIGINT\n")
