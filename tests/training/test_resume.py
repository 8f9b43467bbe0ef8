"""A run that is stopped or killed and then resumed ends like an undisturbed one."""

import csv
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

from fmnist_lightning.cli.shell import command
from fmnist_lightning.data.batches import Batch
from fmnist_lightning.data.sets.drawn import DRAWN
from fmnist_lightning.errors import UserError
from fmnist_lightning.runs.checkpoints import FORMAT, read_checkpoint, training_record
from fmnist_lightning.runs.files import STAGED
from fmnist_lightning.runs.folders import find_resumed, numbered_runs
from fmnist_lightning.runs.options import TrainOptions, read_options
from fmnist_lightning.training import callbacks
from fmnist_lightning.training.callbacks import Provenance
from fmnist_lightning.training.module import Classifier
from fmnist_lightning.training.resume import RandomState, StepLimit, check_checkpoint, open_run
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
    assert f"{command('train')} --resume " in output
    return output


def history(run: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv, without what the clock says."""
    with (run / "metrics.csv").open() as file:
        return [{name: row[name] for name in row if name != "images_per_second"} for row in csv.DictReader(file)]


def resumed(program: Program, *arguments: object) -> Path:
    status, output = program(train, "--resume", *arguments)
    assert status == 0, output
    return Path(str(arguments[0]))


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
    assert [(row["epoch"], row["step"]) for row in history(run)] == [("1", "11"), ("2", "22"), ("3", "33")]


# Options of the loop, the module and the loss that a stop could disturb. The first number is that of the batch, counted
# from the first epoch's on, in which a training is stopped, and the second of the steps that are then done.
STOPS = {
    "accumulated": (
        ("--accumulate_grad_batches", 4, "--optimizer", "sgd", "--lr", 0.05, "--schedule", "cosine"),
        [(5, 2), (10, 3), (13, 4)],
    ),
    "clipped": (
        ("--gradient_clip_val", 0.1, "--optimizer", "adamw", "--weight_decay", 0.1, "--schedule", "one_cycle"),
        [(4, 5), (10, 11), (12, 13)],
    ),
    "limited": (
        ("--limit_train_batches", 5, "--limit_val_batches", 0.5, "--optimizer", "sgd", "--mixup", 0.5),
        [(1, 2), (4, 5), (7, 8)],
    ),
    "weighted": (
        ("--class_weights", "balanced", "--limit_train_batches", 0.6, "--accumulate_grad_batches", 2),
        [(2, 2), (5, 3), (6, 4)],
    ),
}


@pytest.mark.parametrize(("options", "stops"), STOPS.values(), ids=STOPS)
def test_resume_is_exact_with_options_of_the_loop(
    program: Program, tmp_path: Path, options: tuple[object, ...], stops: list[tuple[int, int]]
) -> None:
    """After stops in the middle of an epoch, between accumulated batches, and at its end."""
    whole, _ = small_run(program, tmp_path / "whole", *options)
    run, arguments = tmp_path / "stopped" / "version_0", [*SMALL, *options, "--log_dir", tmp_path / "stopped"]
    for batch, steps in stops:
        interrupted_in_batch(program, batch, *arguments)
        assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == steps
        arguments = ["--resume", run]
    resumed(program, run)
    assert result(run) == result(whole)
    assert history(run) == history(whole)


def interrupted_in_batch(program: Program, number: int, *arguments: object) -> None:
    """Train, with a Ctrl-C in the batch `number`, counted from the first one of the first epoch."""
    training_step = Classifier.training_step

    def stopping(self: Classifier, batch: Batch, batch_idx: int) -> Any:
        trainer: Any = self.trainer
        if trainer.current_epoch * trainer.num_training_batches + batch_idx == number:
            signal.raise_signal(signal.SIGINT)
        return training_step(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classifier, "training_step", stopping)
        status, output = program(train, *arguments)
    assert status == 130, output


def test_resume_is_exact_with_a_compiled_model(program: Program, tmp_path: Path) -> None:
    """From the end of an epoch and its middle. The names in the state stay those of a model that is not compiled."""
    options = ("--compile", "true", "--precision", "32-true", "--limit_val_batches", 1)
    whole, _ = small_run(program, tmp_path / "whole", *options)
    arguments = [*SMALL, *options, "--log_dir", tmp_path / "stopped"]
    torch._dynamo.reset()  # as in a new process
    interrupted_in_batch(program, 12, *arguments)
    torch._dynamo.reset()
    run = resumed(program, tmp_path / "stopped" / "version_0")
    assert result(run) == result(whole)
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"].keys() == Classifier().state_dict().keys()


LONGER = ("--max_epochs", 9, "--ckpt", "last", "--optimizer", "sgd", "--flip", "true")


@pytest.fixture(scope="module")
def of_25_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_run(tmp_path_factory.mktemp("steps"), *LONGER, "--max_steps", 25)


def test_max_steps_can_be_raised(program: Program, tmp_path: Path, of_25_steps: Path) -> None:
    """The ends: in the first epoch, at its end, in the middle of the second and third one."""
    _, output = small_run(program, tmp_path, *LONGER, "--max_steps", 5)
    run = tmp_path / "version_0"
    assert "0 epochs, and a part of the next up to --max_steps 5," in output
    assert (metrics_of(run)["checkpoint"], metrics_of(run)["epochs"], history(run)) == ("last", 0, [])
    for steps in (11, 14, 25):
        resumed(program, run, "--max_steps", steps)
        assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == steps
        assert len(history(run)) == steps // STEPS
    mine, other = result(run), result(of_25_steps)
    for kept in (mine, other):
        kept.pop("curves")  # TensorBoard also has the loss at each end
    assert mine == other
    assert history(run) == history(of_25_steps)


@pytest.mark.filterwarnings("ignore:.*could not find the monitored key")
def test_lightning_alone_skips_an_epoch_after_max_steps(
    program: Program, tmp_path: Path, of_25_steps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control of `StepLimit`."""
    small_run(program, tmp_path, *LONGER, "--max_steps", 11)
    for hook in ("on_fit_start", "on_train_start"):
        monkeypatch.setattr(StepLimit, hook, lambda *_: None)
    run = resumed(program, tmp_path / "version_0", "--max_steps", 25)
    assert result(run)["tensors"] != result(of_25_steps)["tensors"]


def test_patience_ignores_an_epoch_that_max_steps_cuts(program: Program, tmp_path: Path) -> None:
    """Lightning's EarlyStopping raises without a new val/accuracy."""
    small_run(program, tmp_path, *LONGER, "--max_steps", 3, "--patience", 1)
    last = read_checkpoint(tmp_path / "version_0" / "checkpoints" / "last.ckpt")
    [patience] = [kept for name, kept in last["callbacks"].items() if "Patience" in name]
    assert patience["wait_count"] == 0


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
    monkeypatch.setattr(callbacks, "now", lambda: "a date")
    here, other = ({"device": device, "processes": 1} for device in ("here", "elsewhere"))
    data = SimpleNamespace(source=DRAWN, split_record={"seed": 1})
    trainer: Any = SimpleNamespace(world_size=1, strategy=SimpleNamespace(root_device=None), datamodule=data)
    callback, saved, module = Provenance(), {}, Classifier()
    callback.on_load_checkpoint(trainer, module, {"environment": other if elsewhere else here})
    callback.on_train_start(trainer, module)
    callback.on_save_checkpoint(trainer, module, saved)
    earlier = [other] if elsewhere else []
    recorded = {"data": DRAWN.as_plain(), "split": {"seed": 1}, "saved_at": "a date"}
    assert saved == {**recorded, "environment": here, "earlier_environments": earlier}


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
        open_run(trained, trained / "checkpoints" / "last.ckpt", options, Classifier(), DRAWN)
    assert config.read_text() == before


def test_run_does_not_resume_to_fewer_epochs(trained: Path) -> None:
    last = trained / "checkpoints" / "last.ckpt"
    torch.save({**read_checkpoint(last), "epoch": 1}, last)
    with pytest.raises(UserError, match="it has begun 2"):
        check_checkpoint(trained, last, Classifier(), TrainOptions(max_epochs=1), DRAWN)
    with pytest.raises(UserError, match="it has done 11"):
        check_checkpoint(trained, last, Classifier(), TrainOptions(max_steps=10), DRAWN)


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
    check_checkpoint(trained, last, Classifier(), TrainOptions(), DRAWN)  # the negative control
    torch.save({**read_checkpoint(last), **changes}, last)
    with pytest.raises(UserError, match=words):
        check_checkpoint(trained, last, Classifier(), TrainOptions(), DRAWN)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "folder"}, "folder instead of drawn"),
        ({"classes": ("bus", "car")}, "bus, car instead of T-shirt"),
        ({"image_shape": (3, 28, 28)}, "image shape"),
    ],
)
def test_run_does_not_resume_on_other_data(trained: Path, change: dict[str, Any], words: str) -> None:
    """An older checkpoint does not say on which it began."""
    last, other = trained / "checkpoints" / "last.ckpt", replace(DRAWN, **change)
    with pytest.raises(UserError, match=words) as caught:
        check_checkpoint(trained, last, Classifier(), TrainOptions(), other)
    assert f"{trained} " in str(caught.value)
    assert "--data_dir" in str(caught.value)
    torch.save({name: value for name, value in read_checkpoint(last).items() if name != "data"}, last)
    check_checkpoint(trained, last, Classifier(), TrainOptions(), other)


def test_damaged_checkpoint_names_the_newest_readable_one(program: Program, trained: Path) -> None:
    last, best = (trained / "checkpoints" / f"{name}.ckpt" for name in ("last", "best"))
    last.write_bytes(last.read_bytes()[:-100])
    before = (trained / "config.yaml").read_bytes()
    status, output = program(train, "--resume", trained, "--max_epochs", 2)
    assert (status, (trained / "config.yaml").read_bytes()) == (1, before)
    assert str(last) in output
    assert f"{command('train')} --resume {best}" in output
    status, output = program(train, "--resume", best, "--max_epochs", 2, "--test", "false")
    assert status == 0, output
    assert training_record(read_checkpoint(last), last).epochs == 2
