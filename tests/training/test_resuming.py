"""A run that is stopped anywhere ends as it would have."""

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import (
    SMALL,
    Program,
    draw_few,
    leave_undrawn,
    metrics_of,
    own_signals,
    run_command,
    small_run,
    steps_of_saves,
)
from tensorboard.summary.writer import event_file_writer

from fmnist_lightning.runs.checkpoints import read_checkpoint, training_record
from fmnist_lightning.runs.files import STAGED
from fmnist_lightning.training.module import Classifier
from fmnist_lightning.training.resume import RandomState
from fmnist_lightning.training.train import train
from tools.results_tables import marks
from tools.speed_tables import read_record
from tools.torturing import record_torture, result, torture_table

pytestmark = pytest.mark.usefixtures("small_drawn")
ROOT = Path(__file__).parents[2]
STEPS = 11  # of an epoch of 540 images in batches of 50


# Of a run in which much is drawn, averaged and scheduled.
MUCH = ("--schedule", "one_cycle", "--optimizer", "muon", "--lr", 0.003)
MUCH += ("--flip", "true", "--shift", 1, "--erase", 0.5, "--mixup", 0.5, "--ema", 0.9)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run of MUCH comes to that nobody stops."""
    log_dir = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch, own_signals():
        draw_few(patch)
        leave_undrawn(patch)
        assert run_command(patch, train, *SMALL, "--max_epochs", 3, "--log_dir", log_dir, *MUCH) == 0
    return result(log_dir / "version_0")


@pytest.fixture(autouse=True)
def first_event_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard reads event files of one second in the order of their names, where a process's tenth comes first."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


def interrupt_in(stage: str, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send Ctrl-C once, in the training or validation step with this number."""
    name = f"{stage}_step"
    taken, done = getattr(Classifier, name), []

    def interrupting_step(self: Classifier, batch: Any, batch_idx: int) -> torch.Tensor:
        done.append(batch_idx)
        if len(done) == step:
            signal.raise_signal(signal.SIGINT)
        return taken(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, name, interrupting_step)


def interrupted_run(
    program: Program,
    log_dir: Path,
    step: int,
    monkeypatch: pytest.MonkeyPatch,
    *arguments: object,
    stage: str = "training",
) -> Path:
    interrupt_in(stage, step, monkeypatch)
    options = ["--dataset", "drawn", "--max_epochs", 3, "--batch_size", 50, "--accelerator", "cpu", *arguments]
    status, output = program(train, *options, "--log_dir", log_dir)
    assert status == 130, output
    assert f"to go on: python scripts/train.py --resume {log_dir / 'version_0'}" in output
    return log_dir / "version_0"


@pytest.mark.parametrize(
    ("stage", "step"),
    [
        *(("training", step) for step in (1, 5, STEPS - 1, STEPS, STEPS + 1, 3 * STEPS - 1, 3 * STEPS)),
        ("validation", 1),  # in the look at two batches before the training
        ("validation", 3),
    ],
)
def test_a_resumed_run_ends_as_one_that_nobody_stopped(
    program: Program,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: dict[str, Any],
    stage: str,
    step: int,
) -> None:
    """Weights and their average, optimiser, random numbers, figures and curves, bit for bit, with all that is drawn."""
    run = interrupted_run(program, tmp_path / "stopped", step, monkeypatch, *MUCH, stage=stage)
    status, output = program(train, "--resume", "last", "--log_dir", run.parent)
    assert status == 0, output
    assert result(run) == undisturbed


def test_a_run_without_validation_goes_on_as_well(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--val_fraction", 0, "--ckpt", "last", "--ema", 0.9)
    whole, _ = small_run(program, tmp_path / "whole", "--max_epochs", 3, *options)
    run = interrupted_run(program, tmp_path / "stopped", STEPS + 2, monkeypatch, *options)
    status, output = program(train, "--resume", "last", "--log_dir", run.parent)
    assert status == 0, output
    assert result(run) == result(whole)


def test_without_the_random_state_a_resumed_run_is_another(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control."""
    whole, _ = small_run(program, tmp_path / "whole", "--max_epochs", 3)
    run = interrupted_run(program, tmp_path / "stopped", 5, monkeypatch)
    monkeypatch.setattr(RandomState, "on_train_start", lambda *_: None)
    status, output = program(train, "--resume", run)
    assert status == 0, output
    assert result(run)["tensors"] != result(whole)["tensors"]


def test_long_epochs_are_saved_in_their_middle(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = steps_of_saves(monkeypatch)
    small_run(program, tmp_path, "--max_epochs", 1, "--test", "false", "--checkpoint_every_minutes", 1e-9)
    assert steps == [*range(1, STEPS), STEPS, STEPS]  # behind each step but the last, then best and last


def test_a_run_without_a_checkpoint_begins_again_and_says_so(program: Program, trained: Path) -> None:
    shutil.rmtree(trained / "checkpoints")
    status, output = program(train, "--resume", trained, "--test", "false")
    assert status == 0, output
    assert "has no checkpoint yet: it starts from its beginning" in output
    assert read_checkpoint(trained / "checkpoints" / "last.ckpt")["global_step"] == STEPS


def test_a_kill_before_the_first_last_checkpoint_goes_on_from_the_best(program: Program, trained: Path) -> None:
    (trained / "checkpoints" / "last.ckpt").unlink()
    status, output = program(train, "--resume", trained, "--max_epochs", 2, "--test", "false")
    assert status == 0, output
    assert f"it goes on from {trained / 'checkpoints' / 'best.ckpt'}" in output
    assert training_record(read_checkpoint(trained / "checkpoints" / "last.ckpt")).epochs == 2


def test_a_moved_run_keeps_its_best_checkpoint(program: Program, tmp_path: Path) -> None:
    run, _ = small_run(program, tmp_path / "here", "--max_epochs", 3, "--lr", 0.003)
    best = (run / "checkpoints" / "best.ckpt").read_bytes()
    moved = shutil.move(tmp_path / "here", tmp_path / "there") / run.name
    # As if the best epoch had been perfect, so that no later one is better.
    state = read_checkpoint(moved / "checkpoints" / "last.ckpt")
    [kept] = [kept for kept in state["callbacks"].values() if kept.get("monitor") == "val/accuracy"]
    perfect = torch.tensor(1.0)
    kept |= {"best_model_score": perfect, "best_k_models": dict.fromkeys(kept["best_k_models"], perfect)}
    torch.save(state, moved / "checkpoints" / "last.ckpt")
    status, output = program(train, "--resume", "last", "--log_dir", moved.parent, "--max_epochs", 4)
    assert status == 0, output
    assert (moved / "checkpoints" / "best.ckpt").read_bytes() == best


def test_a_run_that_stopped_early_stays_stopped_and_takes_a_new_patience(program: Program, tmp_path: Path) -> None:
    run, _ = small_run(program, tmp_path, "--max_epochs", 30, "--lr", 1e-12, "--patience", 2)
    status, output = program(train, "--resume", run)
    assert status == 0, output
    assert metrics_of(run)["epochs"] == 3
    status, output = program(train, "--resume", run, "--patience", 4)
    assert status == 0, output
    assert metrics_of(run)["epochs"] == 5


def test_what_a_kill_left_half_written_is_swept(program: Program, trained: Path) -> None:
    names = ("checkpoints/.last.ckpt", ".config.yaml", ".metrics.json", ".predictions.npz", ".report.html")
    left = [trained / f"{name}.abc{STAGED}" for name in names]
    for path in left:
        path.write_text("half")
    status, output = program(train, "--resume", trained, "--test", "true")
    assert status == 0, output
    assert not any(path.exists() for path in left)


def test_the_table_of_kills_is_made_from_its_record_in_which_all_runs_ended_equal() -> None:
    record = read_record(ROOT / "benchmarks" / "torture.json")
    begin, end = marks("torture")
    assert f"{begin}\n{torture_table(record)}\n{end}" in (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    assert record["dataset"] == "Fashion-MNIST"
    assert sum(row["runs"] for row in record["rows"]) == 100
    assert all(row["equal"] == row["runs"] and row["unreadable"] == 0 for row in record["rows"])
    assert sum(row["half_written"] for row in record["rows"]) > 0
    assert record["differs_without_random_state"]


@pytest.mark.real_data
def test_torture_kills_and_compares(tmp_path: Path, real_data_dir: Path) -> None:
    """In real processes, by real kills: one run of each kind."""
    record = record_torture(tmp_path / "torture.json", "fashion_mnist", str(real_data_dir), 2, tmp_path)
    assert [row["runs"] for row in record["rows"]] == [1, 1]
    assert [row["equal"] for row in record["rows"]] == [1, 1]
    assert record["rows"][1]["kills"] > 0
    assert record["differs_without_random_state"]


def test_a_resumed_run_tells_where_its_first_part_was_trained(program: Program, trained: Path) -> None:
    last = trained / "checkpoints" / "last.ckpt"
    content = read_checkpoint(last)
    elsewhere = {**content["environment"], "device": "another machine"}
    for environments in ([], [elsewhere]):
        torch.save({**content, "environment": (environments or [content["environment"]])[0]}, last)
        status, output = program(train, "--resume", trained, "--max_epochs", 2, "--test", "true")
        assert status == 0, output
        assert metrics_of(trained)["earlier_environments"] == environments
