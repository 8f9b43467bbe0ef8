"""A run that is stopped or killed and then resumed ends like an undisturbed one."""

import functools
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import SMALL, Program, metrics_of, shared_run, small_run, steps_of_saves
from several import start_rank

from fmnist_lightning.data.batches import Batch
from fmnist_lightning.errors import UserError
from fmnist_lightning.runs.checkpoints import FORMAT, read_checkpoint, training_record
from fmnist_lightning.runs.files import STAGED
from fmnist_lightning.runs.folders import find_resumed, numbered_runs
from fmnist_lightning.runs.options import read_options
from fmnist_lightning.training import callbacks
from fmnist_lightning.training.callbacks import Provenance
from fmnist_lightning.training.module import Classifier
from fmnist_lightning.training.resume import RandomState, check_checkpoint, open_run
from fmnist_lightning.training.train import train
from tools.torture import result

pytestmark = pytest.mark.usefixtures("small_drawn")
STEPS = 11  # of an epoch of 540 images in batches of 50

# A run with everything that draws random numbers, averages, or follows a schedule.
MUCH = ("--max_epochs", 3, "--schedule", "one_cycle", "--optimizer", "muon", "--lr", 0.003)
MUCH += ("--flip", "true", "--shift", 1, "--erase", 0.5, "--mixup", 0.5, "--ema", 0.9)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of a run of MUCH that nothing stops."""
    return result(shared_run(tmp_path_factory.mktemp("undisturbed"), *MUCH))


def at_step(act: Callable[[], object], stage: str, steps: int) -> None:
    """Call `act` in the first training or validation step after `steps` training steps."""
    name = f"{stage}_step"
    original = getattr(Classifier, name)

    def acting(self: Classifier, batch: Batch, batch_idx: int) -> Any:
        if self.trainer.global_step == steps and (stage == "training" or batch_idx == 0):
            act()
        return original(self, batch, batch_idx)

    setattr(Classifier, name, acting)


def interrupted(program: Program, stage: str, steps: int, *arguments: object) -> str:
    """What a training prints that gets a Ctrl-C there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classifier, f"{stage}_step", getattr(Classifier, f"{stage}_step"))  # put it back afterwards
        at_step(functools.partial(signal.raise_signal, signal.SIGINT), stage, steps)
        status, output = program(train, *arguments)
    assert status == 130, output
    assert "python scripts/train.py --resume " in output
    return output


def test_resumed_run_ends_like_an_undisturbed_one(
    program: Program, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    """Weights and their average, optimizer, random numbers, metrics, and curves, bit for bit, after eight stops."""
    interrupted(program, "validation", 0, *SMALL, *MUCH, "--log_dir", tmp_path)  # in Lightning's sanity check
    run = tmp_path / "version_0"
    assert "has no checkpoint yet" in interrupted(program, "training", 0, "--resume", run)
    stops = [("training", 4), ("training", STEPS - 2), ("training", STEPS - 1)]
    stops += [("validation", 2 * STEPS), ("training", 2 * STEPS), ("training", 3 * STEPS - 1)]
    for stage, steps in stops:
        interrupted(program, stage, steps, "--resume", run)
        done = steps + 1 if stage == "training" else steps
        assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == done
    status, output = program(train, "--resume", "last", "--log_dir", tmp_path)
    assert status == 0, output
    assert result(run) == undisturbed
    assert list(numbered_runs(tmp_path)) == [0]


@pytest.mark.parametrize(
    ("owner", "hook", "part"),
    [(RandomState, "on_train_start", "tensors"), (Classifier, "on_load_checkpoint", "curves")],
)
def test_random_state_and_first_outputs_are_needed_for_that(
    program: Program,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: dict[str, Any],
    owner: type,
    hook: str,
    part: str,
) -> None:
    """Negative controls."""
    interrupted(program, "training", 4, *SMALL, *MUCH, "--log_dir", tmp_path)
    monkeypatch.setattr(owner, hook, lambda *_: None)
    status, output = program(train, "--resume", tmp_path / "version_0")
    assert status == 0, output
    assert result(tmp_path / "version_0")[part] != undisturbed[part]


def kill_at(steps: int, threads: int) -> None:
    torch.set_num_threads(threads)  # sums in another number of threads differ in their last bits
    at_step(lambda: os.kill(os.getpid(), signal.SIGKILL), "training", steps)


@pytest.mark.parametrize(("steps", "minutes"), [(STEPS + 4, None), (4, 1e-9)])
def test_killed_run_ends_like_an_undisturbed_one(
    program: Program, tmp_path: Path, undisturbed: dict[str, Any], steps: int, minutes: float | None
) -> None:
    """By kill -9, from the end of the epoch before, or from a save in the middle of an epoch."""
    options = [*SMALL, *MUCH, "--log_dir", tmp_path, "--checkpoint_every_minutes", minutes or "null"]
    before = functools.partial(kill_at, steps, torch.get_num_threads())
    killed = start_rank(tmp_path / "output.txt", train, options, before=before)
    killed.join()
    assert killed.exitcode == -signal.SIGKILL, (tmp_path / "output.txt").read_text()
    run = tmp_path / "version_0"
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == (steps if minutes else STEPS)
    time.sleep(1)  # TensorBoard reads event files by the second in their names, then by the process in them
    status, output = program(train, "--resume", run)
    assert status == 0, output
    assert result(run) == undisturbed


def test_run_without_validation_resumes_as_well(program: Program, tmp_path: Path) -> None:
    options = ("--val_fraction", 0, "--ckpt", "last", "--ema", 0.9)
    whole, _ = small_run(program, tmp_path / "whole", *options)
    interrupted(program, "training", 14, *SMALL, *options, "--log_dir", tmp_path / "stopped")
    status, output = program(train, "--resume", "last", "--log_dir", tmp_path / "stopped")
    assert status == 0, output
    assert result(tmp_path / "stopped" / "version_0") == result(whole)


def test_saves_in_epochs_skip_the_last_step(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resumed from a save between an epoch's last step and its validation, that epoch would not be validated."""
    steps = steps_of_saves(monkeypatch)
    small_run(program, tmp_path, "--max_epochs", 1, "--test", "false", "--checkpoint_every_minutes", 1e-9)
    assert steps == [*range(1, STEPS), STEPS, STEPS]  # after each step but the last, then best and last


def test_longer_run_resumes_from_best_without_last(program: Program, trained: Path) -> None:
    """After a kill between the first two saves. Half-written files of kills go, those of a test stay."""
    last = trained / "checkpoints" / "last.ckpt"
    last.unlink()
    left = [trained / f"{name}.abc{STAGED}" for name in ("checkpoints/.last.ckpt", ".config.yaml", ".metrics.json")]
    for path in left:
        path.write_text("half")
    status, output = program(train, "--resume", trained, "--max_epochs", 2, "--test", "false")
    assert status == 0, output
    assert f"resuming from {trained / 'checkpoints' / 'best.ckpt'}" in output
    assert training_record(read_checkpoint(last), last).epochs == 2
    assert [path.exists() for path in left] == [False, False, True]


def test_moved_run_keeps_its_best_checkpoint(program: Program, trained: Path, tmp_path: Path) -> None:
    """Even if fsspec takes its name for a file in an archive. Lightning then saved a path that we refuse to read."""
    moved = trained.rename(tmp_path / "a::b")
    last, best = (moved / "checkpoints" / f"{name}.ckpt" for name in ("last", "best"))
    before = best.read_bytes()
    # As if the best epoch had been perfect, so that no later one is better.
    state = read_checkpoint(last)
    [kept] = [kept for kept in state["callbacks"].values() if kept.get("monitor") == "val/accuracy"]
    perfect = torch.tensor(1.0)
    kept |= {"best_model_score": perfect, "best_k_models": dict.fromkeys(kept["best_k_models"], perfect)}
    torch.save(state, last)
    status, output = program(train, "--resume", moved, "--max_epochs", 2, "--test", "false")
    assert status == 0, output
    assert best.read_bytes() == before
    assert read_checkpoint(last)["epoch"] == 1


def test_early_stopped_run_stays_stopped_unless_patience_grows(program: Program, tmp_path: Path) -> None:
    options = ("--max_epochs", 30, "--lr", 1e-12, "--patience", 1, "--val_fraction", 0.5)
    run, _ = small_run(program, tmp_path, *options)
    for patience, epochs in ((1, 2), (2, 3)):
        status, output = program(train, "--resume", run, "--patience", patience)
        assert status == 0, output
        assert metrics_of(run)["epochs"] == epochs


@pytest.mark.parametrize("elsewhere", [False, True])
def test_provenance_records_where_earlier_parts_were_trained(elsewhere: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks, "environment", lambda _: {"device": "here"})
    here, other = ({"device": device, "processes": 1} for device in ("here", "elsewhere"))
    trainer: Any = SimpleNamespace(world_size=1, strategy=SimpleNamespace(root_device=None))
    callback, saved, module = Provenance(), {}, Classifier()
    callback.on_load_checkpoint(trainer, module, {"environment": other if elsewhere else here})
    callback.on_train_start(trainer, module)
    callback.on_save_checkpoint(trainer, module, saved)
    assert saved == {"environment": here, "earlier_environments": [other] if elsewhere else []}


def test_checkpoint_in_the_working_folder_is_found(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained / "checkpoints")
    run, checkpoint = find_resumed("last.ckpt", Path())
    assert (run, checkpoint) == (trained, Path("last.ckpt"))


@pytest.mark.parametrize(
    ("change", "words"), [({"seed": 5}, "seed 5 instead of 0"), ({"max_epochs": 2}, "max_epochs 2 instead of 1")]
)
def test_run_does_not_resume_as_another(trained: Path, change: dict[str, Any], words: str) -> None:
    """With one_cycle, whose schedule depends on it, the length of a training is fixed too."""
    config = trained / "config.yaml"
    before = config.read_text().replace("schedule: constant", "schedule: one_cycle")
    config.write_text(before)
    options = replace(read_options(trained), **change)
    with pytest.raises(UserError, match=words):
        open_run(trained, trained / "checkpoints" / "last.ckpt", options, Classifier())
    assert config.read_text() == before


def test_run_does_not_resume_to_fewer_epochs(trained: Path) -> None:
    last = trained / "checkpoints" / "last.ckpt"
    torch.save({**read_checkpoint(last), "epoch": 1}, last)
    with pytest.raises(UserError, match="it has begun 2"):
        check_checkpoint(trained, last, Classifier(), 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": FORMAT - 1}, "older version"),
        ({"optimizer_states": []}, "optimizer"),
        ({"loops": {}}, "training"),
        ({"callbacks": []}, "training"),
        ({"epoch": "x"}, "training"),
        ({"datamodule_hyper_parameters": 5}, "training"),
    ],
)
def test_unfit_checkpoint_is_refused(trained: Path, changes: dict[str, Any], words: str) -> None:
    last = trained / "checkpoints" / "last.ckpt"
    check_checkpoint(trained, last, Classifier(), 1)  # the negative control
    torch.save({**read_checkpoint(last), **changes}, last)
    with pytest.raises(UserError, match=words):
        check_checkpoint(trained, last, Classifier(), 1)


def test_damaged_checkpoint_names_the_newest_readable_one(program: Program, trained: Path) -> None:
    last, best = (trained / "checkpoints" / f"{name}.ckpt" for name in ("last", "best"))
    last.write_bytes(last.read_bytes()[:-100])
    before = (trained / "config.yaml").read_bytes()
    status, output = program(train, "--resume", trained, "--max_epochs", 2)
    assert (status, (trained / "config.yaml").read_bytes()) == (1, before)
    assert str(last) in output
    assert f"python scripts/train.py --resume {best}" in output
    status, output = program(train, "--resume", best, "--max_epochs", 2, "--test", "false")
    assert status == 0, output
    assert training_record(read_checkpoint(last), last).epochs == 2
