"""Several ranks train and test as one process does. They start with the variables that torchrun or srun would set."""

import functools
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Mirror, metrics_of, run_command, take_for_genuine, use_mirrors
from several import as_script, run_ranks, slurm_environment, wait_for
from torch.utils.data import DistributedSampler

from fmnist_lightning.data.batches import Batch, Batches
from fmnist_lightning.errors import UserError
from fmnist_lightning.metrics import METRIC_NAMES
from fmnist_lightning.report.results import read_curves
from fmnist_lightning.runs.checkpoints import read_checkpoint
from fmnist_lightning.runs.folders import PREDICTIONS
from fmnist_lightning.runs.options import TrainOptions
from fmnist_lightning.training import devices
from fmnist_lightning.training.evaluate import evaluate
from fmnist_lightning.training.module import Classifier
from fmnist_lightning.training.train import train, trainer_arguments

SMALL = ["--dataset", "drawn", "--batch_size", 50, "--accelerator", "cpu", "--precision", "64-true"]
# 540 images in batches of 50; the last has 40. Three ranks have 17, 17 and 16 images of each, then 14, 13 and 13.
STEPS = ["--max_epochs", 3, "--dropout", "[0,0,0]"]  # 33 steps
RTOL = 1e-9  # in 64 bits; in 32 bits rounding grows up to 6e-4 (LOG.md, 2026-11-25)


def trained_by(folder: Path, world_size: int, *arguments: object, before: Callable[[], None] | None = None) -> Path:
    """The one run folder of a training on several ranks. Only rank 0 prints."""
    options = [*SMALL, "--devices", world_size, "--log_dir", folder / "logs", *arguments]
    statuses, outputs = run_ranks(folder, train, options, world_size=world_size, before=before)
    assert statuses == [0] * world_size, outputs
    [run] = (folder / "logs").iterdir()
    assert f"run folder: {run}" in outputs[0]
    assert not any(outputs[1:])
    return run


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training and test in one process."""
    return trained_by(tmp_path_factory.mktemp("alone"), 1, *STEPS)


def last_checkpoint(run: Path) -> dict[str, Any]:
    return read_checkpoint(run / "checkpoints" / "last.ckpt")


def close(first: Path, second: Path, rtol: float = RTOL) -> bool:
    """Whether two runs ended with the same weights, but for rounding; exactly if `rtol` is 0."""
    mine, other = (last_checkpoint(run)["state_dict"] for run in (first, second))
    return all(torch.allclose(mine[name], other[name], rtol=rtol, atol=rtol / 100) for name in mine)


def assert_same_results(run: Path, alone: Path) -> None:
    assert close(run, alone)
    mine, other = read_curves(run), read_curves(alone)
    for name, points in other.items():
        assert np.allclose(mine[name], points, rtol=RTOL), name
    for name in METRIC_NAMES:
        assert metrics_of(run)[name] == pytest.approx(metrics_of(alone)[name], rel=RTOL)


def test_three_ranks_train_as_one_process_does(tmp_path: Path, alone: Path) -> None:
    assert_same_results(trained_by(tmp_path, 3, *STEPS), alone)


def forget_shard_sizes() -> None:
    """Average the ranks' mean losses, whatever the sizes of their shards, as tutorials do."""
    batches = Batches.__iter__

    def unaware(self: Batches) -> Any:
        return (batch._replace(total=len(batch.labels) * self.world_size) for batch in batches(self))

    Batches.__iter__ = unaware  # type: ignore[method-assign]


def test_three_ranks_differ_if_losses_are_means_of_means(tmp_path: Path, alone: Path) -> None:
    """The negative control."""
    run = trained_by(tmp_path, 3, *STEPS, "--test", "false", before=forget_shard_sizes)
    assert not close(run, alone)


def enter_own_folder() -> None:
    """Play a machine without the others' files."""
    folder = Path(f"node{os.environ['SLURM_NODEID']}")
    folder.mkdir()
    os.chdir(folder)


def test_two_nodes_train_as_one_process_does(tmp_path: Path, alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under srun, without shared files, with all that the ranks must agree on."""
    options = ["--max_epochs", 2, "--dropout", "[0,0,0]", "--optimizer", "muon", "--lr", 0.003, "--patience", 1]
    options += ["--schedule", "one_cycle", "--ema", 0.9, "--label_smoothing", 0.1, "--teacher", alone]
    options += ["--accumulate_grad_batches", 2, "--gradient_clip_val", 0.5, "--class_weights", "[1,2,1,1,1,1,1,1,1,3]"]
    one = trained_by(tmp_path / "one", 1, *options, "--test", "false")
    monkeypatch.chdir(tmp_path)
    nodes = functools.partial(slurm_environment, nodes=2)
    options += [*SMALL, "--num_nodes", 2, "--log_dir", "logs"]
    statuses, outputs = run_ranks(tmp_path, train, options, world_size=2, launcher=nodes, before=enter_own_folder)
    assert statuses == [0, 0], outputs
    run = tmp_path / "node0" / "logs" / "version_0"
    assert close(run, one)
    assert np.bincount(np.load(run / PREDICTIONS)["labels"]).tolist() == [20] * 10
    assert outputs[1] == ""
    assert not list((tmp_path / "node1").iterdir())


def use_tiny_mirror(files: dict[str, bytes], url: str) -> None:
    """Do what the fixture `mirror` does, in a process of its own."""
    patch = pytest.MonkeyPatch()
    take_for_genuine(patch, files)
    use_mirrors(patch, url)


@pytest.mark.usefixtures("plain_network")
def test_one_rank_of_a_machine_downloads(tmp_path: Path, mirror: Mirror, tiny_files: dict[str, bytes]) -> None:
    options = ["--data_dir", tmp_path, "--devices", 3, "--accelerator", "cpu", "--batch_size", 20, "--fast_dev_run"]
    before = functools.partial(use_tiny_mirror, tiny_files, mirror.url)
    statuses, outputs = run_ranks(tmp_path, train, options, world_size=3, before=before)
    assert statuses == [0, 0, 0], outputs
    assert sorted(mirror.asked) == sorted(f"{name}.gz" for name in tiny_files)


def test_ranks_draw_their_own_random_numbers(tmp_path: Path) -> None:
    """A run that resumes with the same number of ranks ends like an undisturbed one, bit for bit."""
    options = ["--flip", "true", "--shift", 1, "--test", "false"]
    whole = trained_by(tmp_path / "whole", 2, *options, "--max_epochs", 2)
    states = last_checkpoint(whole)["random_states"]
    assert not torch.equal(states[0]["cpu"], states[1]["cpu"])
    run = trained_by(tmp_path / "part", 2, *options, "--max_epochs", 1)
    trained_by(tmp_path / "part", 2, "--resume", run, "--max_epochs", 2)
    assert close(run, whole, rtol=0)


def signal_in_step(number: int, count: int) -> None:
    """Send a signal to rank 1 alone, in the step of this count."""
    step, done = Classifier.training_step, []
    devices.LINGER_SECONDS = 0

    def stopping(self: Classifier, batch: Batch, batch_idx: int) -> torch.Tensor:
        done.append(batch_idx)
        if len(done) == count and self.global_rank == 1:
            signal.raise_signal(number)
        return step(self, batch, batch_idx)

    Classifier.training_step = stopping  # type: ignore[method-assign]


def test_run_resumes_with_other_numbers_of_ranks(tmp_path: Path, alone: Path) -> None:
    """After SIGTERM in the middle of an epoch and after `kill -9`, both of one rank, the results are those of one."""
    options = [*SMALL, *STEPS, "--devices", 3, "--log_dir", tmp_path / "logs"]
    before = functools.partial(signal_in_step, signal.SIGTERM, 16)
    statuses, outputs = run_ranks(tmp_path, train, options, world_size=3, before=before)
    assert statuses == [143] * 3, outputs
    run = tmp_path / "logs" / "version_0"
    assert last_checkpoint(run)["global_step"] == 16  # all ranks after the same step
    before = functools.partial(signal_in_step, signal.SIGKILL, 10)  # 6 steps of the second epoch, 4 of the third
    resume = ["--resume", run, "--devices", 2]
    statuses, outputs = run_ranks(tmp_path / "two", train, resume, world_size=2, before=before)
    assert statuses == [1, -signal.SIGKILL]
    assert "rank 0 of 2 lost its connection" in outputs[0]
    assert last_checkpoint(run)["global_step"] == 22
    trained_by(tmp_path, 1, "--resume", run)
    assert_same_results(run, alone)


def pad_shards() -> None:
    """Make equal shards by counting images twice, as Lightning's own sampler does."""

    def padded(self: Batches) -> Any:
        images, labels = self.split
        sampler = DistributedSampler(range(len(labels)), self.world_size, self.rank, shuffle=False)
        parts = torch.tensor(list(sampler)).split(50)
        return (Batch(images[part], labels[part], part, len(part)) for part in parts)

    Batches.__iter__ = padded  # type: ignore[method-assign]


def test_ranks_test_each_image_once(tmp_path: Path, alone: Path) -> None:
    """Three ranks have 17, 17 and 16 images of each batch. The negative control tests 201 images instead of 200."""
    run = tmp_path / "run"
    shutil.copytree(alone, run)
    (run / PREDICTIONS).unlink()
    (run / "metrics.json").unlink()
    arguments = ["--run", run, "--devices", 3, "--accelerator", "cpu"]
    _, outputs = run_ranks(tmp_path / "padded", evaluate, arguments, world_size=3, before=pad_shards)
    assert "201 images, 200 of them different; expected 200" in outputs[0]
    assert not (run / "metrics.json").exists()
    statuses, outputs = run_ranks(tmp_path, evaluate, arguments, world_size=3)
    assert statuses == [0, 0, 0], outputs
    after, before = metrics_of(run), metrics_of(alone)
    assert [after[name] for name in ("n", *METRIC_NAMES)] == [before[name] for name in ("n", *METRIC_NAMES)]
    after, before = np.load(run / PREDICTIONS), np.load(alone / PREDICTIONS)
    assert np.array_equal(after["labels"], before["labels"])
    assert np.allclose(after["probs"], before["probs"], atol=1e-6)


def test_ranks_on_cpus_refuse_batch_norm() -> None:
    data: Any = SimpleNamespace(validates=True)
    fabric: Any = SimpleNamespace(world_size=2, device=torch.device("cpu"))
    with pytest.raises(UserError, match="--model compact"):
        trainer_arguments(TrainOptions(model="compact"), devices.Devices(fabric, {}, 0), Classifier("compact"), data)


def test_one_command_trains_on_two_devices(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After SIGTERM to it, all ranks save, and the last line says how to resume."""
    run = tmp_path / "version_0"
    arguments = [*SMALL, "--max_epochs", 10_000, "--devices", 2, "--log_dir", tmp_path]

    def stop() -> None:
        wait_for((run / "checkpoints" / "last.ckpt").exists)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    with as_script(*arguments):
        assert run_command(monkeypatch, train, *arguments) == 143
    output = "".join(capfd.readouterr())
    assert output.count(f"--resume {run}") == 1
    assert output.strip().endswith(f"--resume {run}")
    assert last_checkpoint(run)["global_step"] >= 11
