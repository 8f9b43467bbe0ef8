"""Several processes train and test as one does. Ranks are started as torchrun or srun start them."""

import functools
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Mirror, Program, metrics_of, small_run, take_for_genuine, use_mirrors
from several import run_ranks, slurm_environment, torchrun_environment
from torch.utils.data import DistributedSampler

from fmnist_lightning.data.batches import Batch, Batches
from fmnist_lightning.metrics import METRIC_NAMES
from fmnist_lightning.report.findings import read_curves
from fmnist_lightning.runs.checkpoints import read_checkpoint
from fmnist_lightning.runs.folders import PREDICTIONS
from fmnist_lightning.training.evaluate import evaluate
from fmnist_lightning.training.module import Classifier
from fmnist_lightning.training.train import train

pytestmark = pytest.mark.usefixtures("small_drawn")
SMALL = ["--dataset", "drawn", "--batch_size", 50, "--accelerator", "cpu", "--precision", "64-true"]
# 540 images in batches of 50, so the last one of an epoch has 40: 17, 17 and 16, then 14, 13 and 13 in three processes.
STEPS = ["--max_epochs", 5, "--dropout", "[0,0,0]"]  # 55
RTOL = 1e-9  # in 64 bits; in 32, rounding grows to as much as 6e-4 (LOG.md, 2026-11-25)


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]


def trained_by(folder: Path, world_size: int, *arguments: object, **how: Any) -> tuple[Path, list[str]]:
    """The one run folder of a training by several processes, and what each of them printed."""
    options = [*SMALL, "--devices", world_size, "--log_dir", folder / "logs", *arguments]
    statuses, outputs = run_ranks(folder, train, options, world_size=world_size, **how)
    assert statuses == [0] * world_size, outputs
    [run] = (folder / "logs").iterdir()
    return run, outputs


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of 55 steps in one process, one that none of the others has met."""
    return trained_by(tmp_path_factory.mktemp("alone"), 1, *STEPS)[0]


def close(first: Path, second: Path) -> bool:
    mine, other = weights_of(first), weights_of(second)
    return all(torch.allclose(mine[name], other[name], rtol=RTOL, atol=1e-11) for name in mine)


@pytest.mark.parametrize("world_size", [2, 3])
def test_several_devices_train_as_one_does(tmp_path: Path, alone: Path, world_size: int) -> None:
    run, outputs = trained_by(tmp_path, world_size, *STEPS)
    assert close(run, alone)
    mine, other = read_curves(run), read_curves(alone)
    for name, points in other.items():
        assert np.allclose(mine[name], points, rtol=RTOL), name
    for name in METRIC_NAMES:
        assert metrics_of(run)[name] == pytest.approx(metrics_of(alone)[name], rel=RTOL)
    assert "run folder: " in outputs[0]
    assert outputs[1:] == [""] * (world_size - 1)  # one console


def test_muon_a_schedule_an_average_of_weights_and_a_teacher_are_those_of_one_process_too(
    tmp_path: Path, alone: Path
) -> None:
    options = ["--max_epochs", 2, "--dropout", "[0,0,0]", "--optimizer", "muon", "--lr", 0.003, "--patience", 1]
    options += ["--schedule", "one_cycle", "--ema", 0.9, "--label_smoothing", 0.1]
    options += ["--teacher", alone, "--test", "false"]
    one, _ = trained_by(tmp_path / "one", 1, *options)
    assert close(trained_by(tmp_path / "two", 2, *options)[0], one)


def use_tiny_mirror(files: dict[str, bytes], url: str) -> None:
    """What the fixture `mirror` does, in a process of its own."""
    patch = pytest.MonkeyPatch()
    take_for_genuine(patch, files)
    use_mirrors(patch, url)


@pytest.mark.usefixtures("plain_network")
def test_one_process_of_a_machine_downloads(tmp_path: Path, mirror: Mirror, tiny_files: dict[str, bytes]) -> None:
    data = tmp_path / "data"
    options = ["--data_dir", data, "--devices", 3, "--accelerator", "cpu", "--batch_size", 20, "--fast_dev_run"]
    before = functools.partial(use_tiny_mirror, tiny_files, mirror.url)
    statuses, outputs = run_ranks(tmp_path, train, options, world_size=3, before=before)
    assert statuses == [0, 0, 0], outputs
    assert sorted(mirror.asked) == sorted(f"{name}.gz" for name in tiny_files)
    assert "Fetching it" in outputs[0]


def forget_the_shares() -> None:
    """As tutorials do it: each process's mean loss counts the same, however many images it is of."""
    shares = Batches.__iter__

    def unaware(self: Batches) -> Any:
        return (batch._replace(total=len(batch.labels) * self.world_size) for batch in shares(self))

    Batches.__iter__ = unaware  # type: ignore[method-assign]


def test_a_mean_of_means_would_train_another_net(tmp_path: Path, alone: Path) -> None:
    """The negative control: 17, 17 and 16 images with equal weights."""
    run, _ = trained_by(tmp_path, 3, *STEPS, before=forget_the_shares)
    assert not close(run, alone)


def test_srun_starts_processes_too(tmp_path: Path) -> None:
    run, outputs = trained_by(tmp_path, 2, "--max_epochs", 1, launcher=slurm_environment)
    assert np.bincount(np.load(run / PREDICTIONS)["labels"]).tolist() == [20] * 10
    assert outputs[1] == ""


def torchrun_in_a_job(rank: int, world_size: int, port: int) -> dict[str, str]:
    """torchrun in a job of one task, whose variables are SLURM's."""
    return {**slurm_environment(0, 1, port), **torchrun_environment(rank, world_size, port)}


def test_torchrun_in_a_slurm_job_is_torchrun(tmp_path: Path) -> None:
    """The job's variables would make each process the first one of one."""
    run, outputs = trained_by(tmp_path, 2, "--max_epochs", 1, launcher=torchrun_in_a_job)
    assert np.bincount(np.load(run / PREDICTIONS)["labels"]).tolist() == [20] * 10
    assert outputs[1] == ""


def test_each_process_drops_and_augments_by_numbers_of_its_own(tmp_path: Path) -> None:
    """And a run that goes on with the same number of processes ends as one that nobody stopped."""
    options = ["--flip", "true", "--shift", 1]
    whole, _ = trained_by(tmp_path / "whole", 2, *options, "--max_epochs", 2)
    states = read_checkpoint(whole / "checkpoints" / "last.ckpt")["random_states"]
    assert not torch.equal(states[0]["cpu"], states[1]["cpu"])
    run, _ = trained_by(tmp_path / "part", 2, *options, "--max_epochs", 1, "--test", "false")
    trained_by(tmp_path / "part", 2, "--resume", run, "--max_epochs", 2)
    mine, other = weights_of(run), weights_of(whole)
    assert all(torch.equal(mine[name], other[name]) for name in mine)


def stop_in_a_step() -> None:
    """Send SIGTERM to the second process alone, in its 16th step: the fifth of the second epoch."""
    step, done = Classifier.training_step, []

    def stopping(self: Classifier, batch: Batch, batch_idx: int) -> torch.Tensor:
        done.append(batch_idx)
        if len(done) == 16 and self.global_rank == 1:
            signal.raise_signal(signal.SIGTERM)
        return step(self, batch, batch_idx)

    Classifier.training_step = stopping  # type: ignore[method-assign]


def test_a_run_goes_on_with_other_numbers_of_devices(tmp_path: Path, alone: Path) -> None:
    """In the middle of an epoch and at its end; with dropout off it ends where one process ends, curves included."""
    options = [*SMALL, *STEPS, "--devices", 3, "--log_dir", tmp_path / "logs"]
    statuses, outputs = run_ranks(tmp_path, train, options, world_size=3, before=stop_in_a_step)
    assert statuses == [143] * 3, outputs
    run = tmp_path / "logs" / "version_0"
    stopped = read_checkpoint(run / "checkpoints" / "last.ckpt")
    assert stopped["global_step"] == 16  # all of them behind the same step
    assert [len(part) for part in stopped["seen"]] == [5 * 50] * 3
    trained_by(tmp_path, 2, "--resume", run, "--max_epochs", 3, "--test", "false")
    trained_by(tmp_path, 1, "--resume", run, "--max_epochs", 5)
    assert close(run, alone)
    mine, other = read_curves(run), read_curves(alone)
    assert all(np.allclose(mine[name], other[name], rtol=RTOL) for name in other)


@pytest.mark.parametrize("world_size", [2, 3])
def test_each_test_image_counts_once(tmp_path: Path, program: Program, world_size: int) -> None:
    """200 images in batches of 50: three processes have 17, 17 and 16 of each."""
    run, _ = small_run(program, tmp_path / "logs", "--precision", "32-true")
    before, predictions = metrics_of(run), np.load(run / PREDICTIONS)
    (run / PREDICTIONS).unlink()
    arguments = ["--run", run, "--devices", world_size, "--accelerator", "cpu"]
    statuses, outputs = run_ranks(tmp_path, evaluate, arguments, world_size=world_size)
    assert statuses == [0] * world_size, outputs
    after, again = metrics_of(run), np.load(run / PREDICTIONS)
    assert [after[name] for name in ("n", *METRIC_NAMES)] == [before[name] for name in ("n", *METRIC_NAMES)]
    assert np.array_equal(again["labels"], predictions["labels"])
    assert np.allclose(again["probs"], predictions["probs"], atol=1e-6)
    assert "200 images" in outputs[0]


def pad_the_shares() -> None:
    """As Lightning's own sampler has it: equal shares, made so by images that are counted twice."""

    def padded(self: Batches) -> Any:
        sampler = DistributedSampler(range(len(self.split.labels)), self.world_size, self.rank, shuffle=False)
        return tuple(torch.tensor(list(sampler)).split(50))

    def shares(self: Batches) -> Any:
        images, labels = self.split
        return (Batch(images[part], labels[part], part, len(part)) for part in padded(self))

    Batches.__iter__ = shares  # type: ignore[method-assign]


def test_a_sampler_that_repeats_images_is_found_out(tmp_path: Path, trained: Path) -> None:
    """The negative control: 200 images become 201 for three processes; two hide it."""
    options = ["--run", trained, "--accelerator", "cpu", "--devices"]
    _, outputs = run_ranks(tmp_path / "3", evaluate, [*options, 3], world_size=3, before=pad_the_shares)
    assert "the figures are of 201 images, 200 of them different; expected 200" in outputs[0]
    assert not (trained / "metrics.json").exists()
    statuses, outputs = run_ranks(tmp_path / "2", evaluate, [*options, 2], world_size=2, before=pad_the_shares)
    assert statuses == [0, 0], outputs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--devices", 64], "--devices 64 is more than 4 processes a core"),
        (["--num_nodes", 2], "--num_nodes 2 needs MASTER_ADDR, MASTER_PORT, NODE_RANK in the environment"),
    ],
)
def test_what_cannot_be_started_is_refused(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[object], message: str
) -> None:
    monkeypatch.setattr("fmnist_lightning.training.launching.usable_cores", lambda: 2)
    monkeypatch.setattr("__main__.__file__", __file__, raising=False)  # pytest-xdist's processes have none
    status, output = program(train, *SMALL, "--log_dir", tmp_path / "logs", *arguments)
    assert (status, message in output) == (1, True), output
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--devices", 1], "--num_nodes 1 is 1 processes, and 2 were started: give --devices and --num_nodes as"),
        (["--devices", 2, "--model", "compact"], "--model compact has batch norm"),
        (["--devices", 2, "--batch_size", 1], "540 images in batches of --batch_size 1 make one of 1, which can't be"),
    ],
)
def test_what_cannot_be_divided_is_refused_by_name(tmp_path: Path, arguments: list[object], message: str) -> None:
    statuses, outputs = run_ranks(tmp_path, train, [*SMALL, "--log_dir", tmp_path / "logs", *arguments], world_size=2)
    assert statuses == [1, 1], outputs
    assert message in outputs[0] + outputs[1]


def test_metrics_are_those_of_all_processes_once() -> None:
    """torchmetrics would exchange what was exchanged before, and count each image as often as there are processes."""
    module = Classifier()
    collections = (module.train_metrics, module.val_metrics, module.test_metrics)
    assert not any(metric.sync_on_compute for collection in collections for metric in collection.values())
