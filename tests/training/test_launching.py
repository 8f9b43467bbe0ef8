"""Processes that one command starts end together, with the message and the status of the one that failed first."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from several import ROOT, free_port, has_ended, ranks_of, started, wait_for
from small_train import FAILING, WAITING, WAITS
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from fmnist_lightning.errors import UserError
from fmnist_lightning.ranks import Rank, launched, started_by_srun
from fmnist_lightning.runs.checkpoints import read_checkpoint
from fmnist_lightning.runs.folders import PREDICTIONS
from fmnist_lightning.training.launching import count_devices, launch, process_failed, processes_to_launch, rendezvous

TRAIN = ROOT / "tests" / "small_train.py"
OPTIONS = ["--dataset", "drawn", "--batch_size", 50, "--accelerator", "cpu", "--log_dir", "logs"]
LONG = ["--max_epochs", 10_000]
SECONDS_TO_END = 60  # of the others, once one has died; a rank alone needs a part of a second


def begun(folder: Path) -> Callable[[], bool]:
    return (folder / "logs" / "version_0" / "checkpoints" / "last.ckpt").exists


def ended(processes: list[int]) -> Callable[[], bool]:
    return lambda: all(map(has_ended, processes))


def labels_of(run: Path) -> list[int]:
    """How many images of each class the test has seen."""
    return np.bincount(np.load(run / PREDICTIONS)["labels"]).tolist()


def last_line(output: str) -> str:
    return output.strip().splitlines()[-1]


def test_a_killed_process_takes_the_others_down_and_the_run_goes_on_with_another_number(tmp_path: Path) -> None:
    with started(sys.executable, TRAIN, *OPTIONS, *LONG, "--devices", 3, cwd=tmp_path) as program:
        wait_for(begun(tmp_path))
        ranks = ranks_of(program.pid)
        assert len(ranks) == 3
        os.kill(ranks[1], signal.SIGKILL)
        output, _ = program.communicate(timeout=SECONDS_TO_END)
        assert ended(ranks)()
    assert program.returncode == 137, output
    assert last_line(output) == (
        "error: process 2 of 3 was killed by SIGKILL, and the others were ended; "
        "what was saved is whole, and --resume goes on"
    )
    checkpoint = tmp_path / "logs" / "version_0" / "checkpoints" / "last.ckpt"
    epoch = read_checkpoint(checkpoint)["epoch"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, TRAIN]
    with started(
        *torchrun, *OPTIONS, "--resume", "last", "--devices", 2, "--max_epochs", epoch + 2, cwd=tmp_path
    ) as again:
        output, _ = again.communicate(timeout=100)
    assert again.returncode == 0, output
    assert read_checkpoint(checkpoint)["epoch"] == epoch + 1
    assert labels_of(tmp_path / "logs" / "version_0") == [20] * 10
    assert output.count("run folder:") == 1


def test_the_failing_process_has_the_last_word(tmp_path: Path) -> None:
    options = [*OPTIONS, *LONG, "--devices", 2]
    with started(sys.executable, TRAIN, *options, cwd=tmp_path, **{FAILING: "1"}) as program:
        output, _ = program.communicate(timeout=100)
    assert (program.returncode, last_line(output)) == (1, "error: this rank's own message (process 2 of 2)"), output
    assert "Traceback" not in output
    assert output.count("this rank's own message") == 1


def test_sigterm_saves_once_and_a_killed_starter_leaves_nothing_behind(tmp_path: Path) -> None:
    with started(sys.executable, TRAIN, *OPTIONS, *LONG, "--devices", 2, cwd=tmp_path) as program:
        wait_for(begun(tmp_path))
        program.terminate()
        output, _ = program.communicate(timeout=SECONDS_TO_END)
    assert program.returncode == 143, output
    assert output.count("to go on: python scripts/train.py --resume logs/version_0") == 1
    assert last_line(output) == "saved; to go on: python scripts/train.py --resume logs/version_0"
    checkpoint = tmp_path / "logs" / "version_0" / "checkpoints" / "last.ckpt"
    resuming = [*OPTIONS, *LONG, "--resume", "last", "--devices", 2]
    with started(sys.executable, TRAIN, *resuming, cwd=tmp_path, **{WAITING: "0"}) as program:
        wait_for((tmp_path / WAITS).exists)
        ranks = ranks_of(program.pid)
        saved = checkpoint.stat().st_mtime_ns
        program.kill()
        wait_for(ended(ranks), SECONDS_TO_END)
    assert checkpoint.stat().st_mtime_ns > saved


def test_two_machines_without_a_common_file_system_train_together(tmp_path: Path) -> None:
    """Each with a folder of its own: the run is on the first, whose node has its console."""
    places = [tmp_path / name for name in ("first", "second")]
    for place in places:
        place.mkdir()
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    options = [*OPTIONS, "--max_epochs", 2, "--num_nodes", 2, "--devices", 1]
    with (
        started(sys.executable, TRAIN, *options, cwd=places[0], NODE_RANK="0", **common) as first,
        started(sys.executable, TRAIN, *options, cwd=places[1], NODE_RANK="1", **common) as second,
    ):
        outputs = [one.communicate(timeout=100)[0] for one in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outputs
    assert labels_of(places[0] / "logs" / "version_0") == [20] * 10
    assert "run folder: logs/version_0" in outputs[0]
    assert outputs[1] == ""
    assert not list(places[1].rglob("*.json"))


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, None),
        ({"RANK": "2", "WORLD_SIZE": "3", "LOCAL_RANK": "0"}, None),  # some other program's
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "2", "WORLD_SIZE": "3", "LOCAL_RANK": "0"}, Rank(2, 3, 0)),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}, Rank(3, 4, 1)),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, None),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, None),  # the job's script
        ({"SLURM_NTASKS": "4"}, None),  # a shell of an allocation
    ],
)
def test_a_process_knows_its_rank_from_its_launcher(environment: dict[str, str], rank: Rank | None) -> None:
    assert launched(environment) == rank


def test_srun_counts_whatever_the_job_is_called_and_torchrun_before_it() -> None:
    task = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}
    assert started_by_srun({**task, "SLURM_JOB_NAME": "interactive"})
    assert not started_by_srun({**task, "TORCHELASTIC_RUN_ID": "x"})


@pytest.mark.parametrize(
    ("status", "message", "exit_status"),
    [
        (-9, "process 2 of 3 was killed by SIGKILL, and the others were ended; a cure", 137),
        (143, "process 2 of 3 was stopped by SIGTERM, and the others were ended; a cure", 143),
        (2, "process 2 of 3 ended with status 2; its own message stands above", 2),
    ],
)
def test_a_failed_process_is_told_by_what_ended_it(status: int, message: str, exit_status: int) -> None:
    failure = ProcessFailure(local_rank=1, pid=1, exitcode=status, error_file="")
    error = process_failed(1, 3, failure).advised("a cure")
    assert (str(error), error.exit_status) == (message, exit_status)


def test_one_device_needs_no_other_process() -> None:
    assert processes_to_launch("cpu", 1, 1, "auto") == 0
    assert processes_to_launch("cpu", "1", 1, "auto") == 0
    assert processes_to_launch("cpu", 1, 1, "ddp") == 1
    assert processes_to_launch("cpu", 2, 1, "auto") == 2
    assert processes_to_launch("cpu", 1, 2, "auto") == 1
    assert count_devices("cpu", "auto") == 1
    assert count_devices("cpu", "nonsense") == 1  # which resolve_devices refuses
    if not torch.cuda.is_available():
        assert count_devices("gpu", 64) == 1


def test_machines_meet_where_the_environment_says() -> None:
    told = rendezvous(2, {"MASTER_ADDR": "node7", "MASTER_PORT": "4711", "NODE_RANK": "1"})
    assert (told["rdzv_endpoint"], told["rdzv_configs"]) == ("node7:4711", {"rank": 1})
    for wrong in ("node1", "2", "-1"):
        with pytest.raises(UserError, match=f"NODE_RANK is {wrong}; expected this node's number, 0 to 1"):
            rendezvous(2, {"MASTER_ADDR": "node7", "MASTER_PORT": "4711", "NODE_RANK": wrong})
    assert rendezvous(1)["rdzv_endpoint"].endswith(":0")  # whatever port is free


def test_a_notebook_cannot_start_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    with pytest.raises(UserError, match="not from a notebook"):
        launch(2)
