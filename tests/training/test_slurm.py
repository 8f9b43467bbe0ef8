"""A job of SLURM: its own checkpoints, its signals, and the script docs/slurm.sh."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import SMALL, Program, metrics_of
from several import ROOT

from fmnist_lightning.cli.shell import command
from fmnist_lightning.runs.checkpoints import read_checkpoint
from fmnist_lightning.runs.folders import find_run
from fmnist_lightning.training.evaluate import evaluate
from fmnist_lightning.training.module import Classifier
from fmnist_lightning.training.train import train

# What a job's script has without srun. Of four tasks, it is one process.
JOB = {"SLURM_JOB_ID": "5", "SLURM_JOB_NAME": "job", "SLURM_JOB_NODELIST": "localhost", "SLURM_NTASKS": "4"}
JOB |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)


def leave_checkpoint(run: Path, *folders: Path) -> None:
    """Put what Lightning writes at SIGUSR1 into folders: here, a trained run's checkpoint with weights of zero."""
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    for weights in content["state_dict"].values():
        weights.zero_()
    for folder in folders:
        folder.mkdir(exist_ok=True)
        torch.save(content, folder / "hpc_ckpt_1.ckpt")


@pytest.mark.usefixtures("job")
def test_job_trains_and_tests_its_own_weights(
    program: Program, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = tmp_path / "new"
    leave_checkpoint(trained, tmp_path, logs, trained, trained / "checkpoints")
    status, output = program(train, *SMALL, "--max_epochs", 1, "--log_dir", logs)
    assert status == 0, output
    run = find_run("last", logs)
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 11
    accuracies = []
    for name in ("SLURM_JOB_ID", "SLURM_NTASKS"):  # in the job, then outside
        assert program(evaluate, "--run", trained)[0] == 0
        accuracies.append(metrics_of(trained)["accuracy"])
        monkeypatch.delenv(name)
    assert accuracies[0] == accuracies[1] > 0.1  # zeros give one class
    assert program(train, *SMALL, "--fast_dev_run")[0] == 0
    assert not any((folder / "trainer").exists() for folder in (run, trained, logs))


@pytest.mark.usefixtures("job")
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_signal_of_a_scheduler_saves_the_training(
    program: Program, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """Lightning would write hpc_ckpt_1.ckpt, queue the job again and train on."""
    monkeypatch.setattr(Classifier, "on_train_batch_start", lambda *_: signal.raise_signal(number), raising=False)
    status, output = program(train, "--resume", trained, "--max_epochs", 2)
    assert status == 128 + number
    assert f"{command('train')} --resume {trained}\n" in output
    assert read_checkpoint(trained / "checkpoints" / "last.ckpt")["global_step"] == 12
    assert not list(tmp_path.rglob("hpc_ckpt*"))


def submit(folder: Path, status: int = 0, **variables: str) -> tuple[int, str]:
    """Run docs/slurm.sh in a project's folder, with a srun that ends with `status`."""
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True, exist_ok=True)
    (programs / "activate").touch()
    for name in ("srun", "scontrol"):
        (programs / name).write_text(f'#!/bin/sh\necho {name} "$@"\nexit {status}\n')
        (programs / name).chmod(0o755)
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", **variables}
    script = [shutil.which("bash") or "bash", str(ROOT / "docs" / "slurm.sh"), "--seed", "3"]
    done = subprocess.run(script, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_job_script_resumes_its_own_run_when_it_is_requeued(tmp_path: Path) -> None:
    job = {"SLURM_JOB_ID": "5", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS_PER_NODE": "4", "SLURM_CPUS_PER_TASK": "8"}
    status, output = submit(tmp_path, 138, **job)
    assert (status, output.splitlines()[1:]) == (138, ["scontrol requeue 5"])
    assert "--devices 4 --num_nodes 2" in output
    assert "--log_dir lightning_logs/slurm_5 --seed 3\n" in output
    (tmp_path / "lightning_logs" / "slurm_5" / "version_0").mkdir(parents=True)
    status, output = submit(tmp_path, 1, **job)
    assert (status, output.count("\n")) == (1, 1)
    assert "--log_dir lightning_logs/slurm_5 --resume last --seed 3\n" in output


def test_job_script_says_how_to_submit_it(tmp_path: Path) -> None:
    status, output = submit(tmp_path)
    assert (status, output.count("\n"), "sbatch docs/slurm.sh" in output) == (1, 1, True)
