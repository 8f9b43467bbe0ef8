"""A search counts its trials, survives kills and stops, reads validation images only, and leaves a recipe."""

import contextlib
import errno
import importlib
import os
import re
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import optuna
import pytest
import torch
import yaml
from conftest import NOWHERE, Program, draw_few, leave_undrawn, own_signals, run_command, small_run, use_mirrors
from optuna.trial import TrialState
from PIL import Image
from several import CONTEXT, torchrun_environment, wait_for
from sqlalchemy import make_url
from sqlalchemy.exc import OperationalError

from fmnist_lightning.cli.shell import command
from fmnist_lightning.data.datamodule import FashionMNISTDataModule
from fmnist_lightning.data.sets import KNOWN
from fmnist_lightning.data.source import Split
from fmnist_lightning.errors import UserError, WriteError
from fmnist_lightning.models.nets import MODELS
from fmnist_lightning.runs.checkpoints import read_checkpoint
from fmnist_lightning.runs.folders import numbered_runs, read_config
from fmnist_lightning.runs.options import TrainOptions, TuneOptions
from fmnist_lightning.training.train import train
from fmnist_lightning.tune import results, search
from fmnist_lightning.tune.search import Reporter, SeededByTrial, database_url, explaining_database, without_secrets
from fmnist_lightning.tune.tune import tune

pytestmark = pytest.mark.usefixtures("small_drawn")
RECIPE = {"max_epochs": 1, "batch_size": 60, "precision": "32-true"}
RATES = {"lr": {"low": 1e-4, "high": 1e-2, "log": True}}

CONTEXT.set_forkserver_preload(["several", "fmnist_lightning.tune.search"])

Training = Callable[[TrainOptions, Reporter], None]
Search = Callable[..., tuple[int, str]]


def arguments(folder: Path, trials: int, space: dict[str, Any] = RATES, **recipe: Any) -> list[object]:
    """The options of a search on the drawn data set."""
    files = {"recipe": folder.parent / "recipe.yaml", "space": folder.parent / "space.yaml"}
    for path, content in zip(files.values(), ({**RECIPE, **recipe}, space), strict=True):
        path.write_text(yaml.safe_dump(content))
    options = {**files, "study": folder, "trials": trials, "dataset": "drawn", "accelerator": "cpu"}
    return [word for name, value in options.items() for word in (f"--{name}", value)]


def epochs(*accuracies: float) -> Training:
    """A training with these validation accuracies, unless the study prunes it."""

    def run(options: TrainOptions, reporter: Reporter) -> None:
        trainer: Any = SimpleNamespace(log_dir="runs/version_0", max_epochs=len(accuracies), sanity_checking=False)
        trainer.should_stop = False
        reporter.on_fit_start(trainer, None)  # type: ignore[arg-type]
        for trainer.current_epoch, accuracy in enumerate(accuracies):
            trainer.callback_metrics = {"val/accuracy": accuracy}
            reporter.on_validation_end(trainer, None)  # type: ignore[arg-type]
            if trainer.should_stop:
                break

    return run


def rate_as_accuracy(options: TrainOptions, reporter: Reporter) -> None:
    epochs(options.lr)(options, reporter)


def fail_with(error: BaseException) -> Training:
    def fail(options: TrainOptions, reporter: Reporter) -> None:
        raise error

    return fail


def replace_training(patch: pytest.MonkeyPatch, *first: Training) -> None:
    """Replace the first trainings by these; each later one has its learning rate as accuracy. No plots."""
    left = [*first]

    def next_training(options: TrainOptions, callbacks: list[Reporter]) -> None:
        (left.pop(0) if left else rate_as_accuracy)(options, callbacks[0])

    patch.setattr(search, "train", next_training)
    patch.setattr(
        "fmnist_lightning.tune.tune.prepare_data",
        lambda options, fabric: (options, SimpleNamespace(source=KNOWN["drawn"])),
    )
    patch.setattr(results, "DRAWINGS", {})
    patch.setattr(search, "COMPLETED_FIRST", 1)
    patch.setattr(search, "POLL_SECONDS", 0.1)
    patch.setattr("gc.collect", lambda: None)  # 0.3 s a trial


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a study, in the current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "study"


@pytest.fixture
def searching(program: Program, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Search:
    """Search in `folder` with replaced trainings: (exit status, what it printed)."""

    def call(trials: int, *options: object, first: tuple[Training, ...] = (), **how: Any) -> tuple[int, str]:
        replace_training(monkeypatch, *first)
        return program(tune, *arguments(folder, trials, **how), *options)

    return call


def study_in(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="study", storage=f"sqlite:///{folder / 'study.db'}")


def states(folder: Path) -> list[str]:
    return [trial.state.name for trial in study_in(folder).trials]


def rates(folder: Path) -> list[float]:
    return [trial.params["lr"] for trial in study_in(folder).trials]


# One real search


@contextlib.contextmanager
def sealed_test_set() -> Iterator[None]:
    load = FashionMNISTDataModule.load

    def load_sealed(self: FashionMNISTDataModule, part: str) -> Split:
        if part == "test":
            raise UserError("the test set was read")
        return load(self, part)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FashionMNISTDataModule, "load", load_sealed)
        yield


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search with real trainings, under a sealed test set, by a recipe that asks for a test."""
    folder = tmp_path_factory.mktemp("search") / "study"
    space = {**RATES, "dropout.2": {"low": 0.0, "high": 0.5}, "flip": {"choices": [True]}}
    style = dict(mpl.rcParams)
    with pytest.MonkeyPatch.context() as patch, own_signals(), sealed_test_set():
        draw_few(patch)
        leave_undrawn(patch)
        assert run_command(patch, tune, *arguments(folder, 2, space, test=True, dropout=[0.0, 0.125, 0.0])) == 0
    assert dict(mpl.rcParams) == style  # Optuna would change it for good
    return folder


def command_of(folder: Path) -> list[str]:
    """The options of the command in the header of the best recipe."""
    return (folder / "best.yaml").read_text().splitlines()[0].partition(" train ")[2].split()


def test_search_leaves_runs_plots_and_recipe(searched: Path) -> None:
    assert {path.name for path in searched.iterdir()} == {".lock", "best.yaml", "plots", "runs", "study.db"}
    assert {read_config(run)["lr"] for run in numbered_runs(searched / "runs").values()} == {*rates(searched)}
    pictures = {path.stem: Image.open(path) for path in (searched / "plots").iterdir()}
    assert set(pictures) == {"history", "importances", "slice", "curves"}
    for picture in pictures.values():
        picture.verify()
    study, text = study_in(searched), (searched / "best.yaml").read_text()
    assert study.best_value == max(trial.values[0] for trial in study.trials)
    best = yaml.safe_load(text)
    assert best["lr"] == study.best_params["lr"]
    assert best["dropout"] == [0.0, 0.125, study.best_params["dropout.2"]]
    assert best["test"] is True
    assert "DRAWN STAND-IN, not Fashion-MNIST" in text
    assert "expect less of other seeds" in text


def test_best_recipe_repeats_the_best_trial_bit_for_bit(searched: Path, program: Program, tmp_path: Path) -> None:
    trial = searched / "runs" / study_in(searched).best_trial.user_attrs["run"]
    own = ("--max_epochs", 1, "--batch_size", 60, "--test", "false")
    run, _ = small_run(program, tmp_path, *command_of(searched), *own)
    assert {**read_config(run), "log_dir": ""} == {**read_config(trial), "log_dir": ""}
    found, wanted = (read_checkpoint(path / "checkpoints" / "best.ckpt")["state_dict"] for path in (run, trial))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_search_reads_no_test_set(searched: Path, program: Program, tmp_path: Path) -> None:
    assert states(searched) == ["COMPLETE", "COMPLETE"]
    # The negative control: the seal breaks in a training by the same recipe.
    with sealed_test_set():
        status, output = program(train, *command_of(searched), "--log_dir", tmp_path)
    assert status == 1
    assert "the test set was read" in output


# Scores and the best recipe


@pytest.mark.parametrize(("ckpt", "value"), [("best", 0.75), ("last", 0.5)])
def test_score_is_of_the_tested_checkpoint(searching: Search, folder: Path, ckpt: str, value: float) -> None:
    assert searching(1, first=(epochs(0.75, 0.5),), ckpt=ckpt)[0] == 0
    assert study_in(folder).best_value == value


@pytest.mark.parametrize(("rate", "within"), [(2e-3, True), (2.0, False)])
def test_first_trial_is_the_recipe_if_possible(searching: Search, folder: Path, rate: float, within: bool) -> None:
    choices = [[0.25, 0.25, 0.5], [0.0, 0.0, 0.25]]
    for trials in (1, 3):
        assert searching(trials, space={**RATES, "dropout": {"choices": choices}}, lr=rate)[0] == 0
    tried = rates(folder)
    assert (tried[0] == rate) is within
    assert len(set(tried)) == 3
    best = yaml.safe_load((folder / "best.yaml").read_text())
    assert best["lr"] == max(tried)
    assert best["dropout"] in choices


@pytest.mark.parametrize("model", ["notebook", "compact"])
def test_first_trial_has_the_models_dropout_rates(searching: Search, folder: Path, model: str) -> None:
    own = {"notebook": [0.5, 0.5, 0.0], "compact": [0.25, 0.25, 0.5]}[model]
    space = {f"dropout.{place}": {"low": 0.0, "high": 0.5} for place in range(2)}
    models = {"model": {"choices": ["notebook", "compact"]}}
    assert searching(1, space={**space, **models}, model=model)[0] == 0
    assert yaml.safe_load((folder / "best.yaml").read_text())["dropout"] == own


def test_first_trial_can_lie_outside_of_the_searched_models(
    searching: Search, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "own", lambda image_shape, num_classes: torch.nn.Flatten())
    space = {"model": {"choices": ["seed"]}, "dropout.0": {"low": 0.0, "high": 0.5}}
    assert searching(1, space=space, model="own")[0] == 0
    assert study_in(folder).trials[0].params["model"] == "seed"


def test_search_reads_its_data_once(searching: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    """After that it finds no data set, and needs none for the title in recipes and plots."""
    monkeypatch.setattr("fmnist_lightning.data.sets.SOURCES", {})
    assert searching(2)[0] == 0


def test_options_of_the_command_replace_the_recipes(searching: Search, folder: Path) -> None:
    assert searching(1, "--val_fraction", 0.1, val_fraction=0.0, ckpt="last")[0] == 0
    assert yaml.safe_load((folder / "best.yaml").read_text())["val_fraction"] == 0.1


@pytest.mark.parametrize(("own", "seen"), [(0.2, True), (0.1, False)])
def test_best_recipe_warns_of_a_teacher_of_validation_images(
    searching: Search, folder: Path, trained_once: Path, own: float, seen: bool
) -> None:
    status, output = searching(1, "--val_fraction", own, teacher=str(trained_once))
    assert status == 0
    warning = f"WARNING: the teacher {trained_once} was trained on validation images"
    assert output.count(warning) == seen
    assert (f"# {warning}" in (folder / "best.yaml").read_text()) is seen


# Trials that don't go well


@pytest.mark.parametrize(
    ("space", "prune", "pruned"),
    [(RATES, True, True), (RATES, False, False), ({"max_epochs": {"low": 2, "high": 6}}, True, False)],
)
def test_bad_trial_is_pruned_after_half_of_its_epochs(
    searching: Search, folder: Path, space: dict[str, Any], prune: bool, pruned: bool
) -> None:
    trainings = (epochs(0.5, 0.6, 0.7, 0.8), epochs(0.1, 0.1, 0.1, 0.1))
    assert searching(2, "--prune", str(prune).lower(), first=trainings, space=space, max_epochs=4)[0] == 0
    assert states(folder) == ["COMPLETE", "PRUNED" if pruned else "COMPLETE"]
    assert list(study_in(folder).trials[1].intermediate_values) == ([1, 2] if pruned else [1, 2, 3, 4])


def test_failed_trials_count(searching: Search, folder: Path) -> None:
    failures = (fail_with(UserError("the loss is nan")), fail_with(torch.OutOfMemoryError("no memory left")))
    status, output = searching(2, first=failures)
    assert status == 1
    assert "trial 0: the loss is nan; 1 to go" in output
    assert "0 completed, 0 pruned and 2 failed trials" in output
    assert not (folder / "best.yaml").exists()
    status, output = searching(3)
    assert status == 0
    assert "1 completed, 0 pruned and 2 failed trials" in output


def test_full_disk_ends_the_search_and_does_not_count(searching: Search, folder: Path) -> None:
    full = WriteError("last.ckpt", OSError(errno.ENOSPC, "the disk is full"), "train.py --resume")
    status, output = searching(2, first=(rate_as_accuracy, fail_with(full)))
    assert (status, "error: cannot write last.ckpt: the disk is full" in output) == (1, True)
    # The printed command continues the search. The one that resumes a trial's training would not count in it.
    assert f"then run: {command('tune')}" in output
    assert "--resume" not in output
    assert searching(2)[0] == 0
    assert states(folder) == ["COMPLETE", "FAIL", "COMPLETE"]


@pytest.mark.parametrize("reports", [True, False])
def test_trial_that_another_process_ended_does_not_count(searching: Search, folder: Path, reports: bool) -> None:
    def sleep_too_long(options: TrainOptions, reporter: Reporter) -> None:
        rate_as_accuracy(options, reporter)
        study_in(folder).tell(0, state=TrialState.FAIL)
        if reports:
            rate_as_accuracy(options, reporter)

    status, output = searching(1, first=(sleep_too_long,))
    assert status == 0
    assert "was this machine asleep?" in output
    assert states(folder) == ["FAIL", "COMPLETE"]


# Stopped, killed and shared searches


def test_ctrl_c_queues_the_trial_and_prints_the_resume_command(
    searching: Search, program: Program, folder: Path
) -> None:
    status, output = searching(3, first=(rate_as_accuracy, lambda *_: signal.raise_signal(signal.SIGINT)))
    assert status == 130
    assert states(folder) == ["COMPLETE", "FAIL", "WAITING"]
    advice = output.splitlines()[-1]
    assert advice.startswith(f"to resume: {command('tune')} --recipe")
    assert program(tune, *advice.partition(" tune ")[2].split())[0] == 0
    assert states(folder) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    tried = rates(folder)
    assert tried[2] == tried[1]
    assert len(set(tried)) == 3


def search_process(output: Path, command: list[object], hang: bool) -> None:
    """scripts/tune.py in a process of its own. With `hang` its second training never ends."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(descriptor, stream.fileno())

    def train_slowly(options: TrainOptions, reporter: Reporter) -> None:
        rate_as_accuracy(options, reporter)
        time.sleep(600 if hang and reporter.trial.number == 1 else 0.2)

    patch = pytest.MonkeyPatch()
    replace_training(patch, *[train_slowly] * 9)
    sys.exit(run_command(patch, tune, *command))


def start(output: Path, command: list[object], *, hang: bool = False) -> BaseProcess:
    process = CONTEXT.Process(target=search_process, args=(output, command, hang))
    process.start()
    return process


def test_trial_of_a_killed_process_is_run_again(
    searching: Search, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start(folder.parent / "killed.txt", arguments(folder, 3), hang=True)
    wait_for(lambda: (folder / "best.yaml").exists() and len(study_in(folder).trials) == 2)
    wait_for(lambda: study_in(folder).trials[1].intermediate_values)
    process.kill()
    process.join()
    assert states(folder) == ["COMPLETE", "RUNNING"]
    monkeypatch.setattr(search, "GRACE_SECONDS", 1)
    assert searching(3)[0] == 0
    assert states(folder) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    tried = rates(folder)  # the last one, or the one before if the grace period had ended
    assert tried.count(tried[1]) == 2
    assert len(set(tried)) == 3


def test_trial_killed_before_the_clock_was_set_back_is_run_again(
    searching: Search, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert searching(1)[0] == 0
    study = study_in(folder)
    study.enqueue_trial({"lr": 5e-3}, user_attrs={"trains": 1})
    study._storage.record_heartbeat(study.ask()._trial_id)  # type: ignore[attr-defined]
    with sqlite3.connect(folder / "study.db") as database:
        database.execute("UPDATE trial_heartbeats SET heartbeat = '2999-01-01 00:00:00'")
    monkeypatch.setattr(search, "GRACE_SECONDS", 1)
    polls, sleep = iter(range(100)), time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(seconds + 0 * next(polls)))  # fails if it waits on
    assert searching(3)[0] == 0
    assert states(folder) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]


def test_two_processes_share_the_trials(folder: Path) -> None:
    command, paths = arguments(folder, 6), [folder.parent / f"{name}.txt" for name in ("first", "second")]
    processes = [start(path, command) for path in paths]
    for process in processes:
        process.join()
    outputs = [path.read_text() for path in paths]
    assert [process.exitcode for process in processes] == [0, 0], outputs
    # Each further process can add one.
    assert states(folder) in (["COMPLETE"] * 6, ["COMPLETE"] * 7)
    numbers = [int(number) for output in outputs for number in re.findall(r"trial (\d+): val/accuracy", output)]
    assert sorted(numbers) == list(range(len(states(folder))))
    assert len(set(rates(folder))) == len(numbers)
    assert all("val/accuracy" in output for output in outputs)  # both took part


@pytest.mark.parametrize(("trains", "waits"), [({"trains": 1}, True), ({"trains": 0}, False), ({}, False)])
def test_search_waits_for_others_trials_in_training_alone(
    searching: Search, folder: Path, monkeypatch: pytest.MonkeyPatch, trains: dict[str, int], waits: bool
) -> None:
    """Others' trials were killed before their training. One that is run again has the lost one's attributes."""
    assert searching(1)[0] == 0
    study = study_in(folder)
    study.enqueue_trial({"lr": 5e-3}, user_attrs=trains)
    others = study.ask()
    monkeypatch.setattr(time, "sleep", lambda _: study.tell(others, 0.0))
    status, output = searching(2)
    assert status == 0
    assert ("waiting for the last trials" in output) is waits
    assert states(folder) == ["COMPLETE", *(["COMPLETE"] if waits else ["RUNNING", "COMPLETE"])]


def test_machines_share_a_study_by_url(searching: Search, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDIES", str(folder.parent / "studies"))
    for machine in ("one", "other"):
        here = folder.parent / machine / "tuned"
        assert searching(2, "--storage", "sqlite:///$STUDIES.db", "--study", here)[0] == 0
        assert "--storage 'sqlite:///$STUDIES.db'" in (here / "best.yaml").read_text()
        assert not (here / "study.db").exists()
    study = optuna.load_study(study_name="tuned", storage=f"sqlite:///{folder.parent / 'studies.db'}")
    assert len(study.trials) == 2


def test_study_of_another_recipe_or_space_is_refused(searching: Search, program: Program, folder: Path) -> None:
    assert searching(1)[0] == 0
    for how, words in (
        ({"batch_size": 30}, "batch_size 30 instead of 60"),
        ({"seed": 1}, "seed 1 instead of 0"),
        ({"space": {"lr": {"low": 1e-4, "high": 1e-1, "log": True}}}, "lr (space)"),
    ):
        status, output = searching(2, **how)
        assert (status, words in output) == (1, True)
    # The same search may move, and run on another device.
    moved = folder.rename(folder.parent / "moved")
    assert searching(2, "--study", moved, "--accelerator", "auto")[0] == 0
    assert states(moved) == ["COMPLETE", "COMPLETE"]


# The sampler


def draws(seed: int, trials: int, parts: int = 1) -> list[float]:
    """What a sampler of this seed draws, if it is made anew for each of so many parts of the search."""
    study = optuna.create_study()
    for _ in range(parts):
        study.sampler = SeededByTrial(seed)
        study.optimize(lambda trial: trial.suggest_float("lr", 0, 1), trials // parts)
    return [trial.params["lr"] for trial in study.trials]


def test_sampler_draws_the_same_in_a_resumed_search_and_learns() -> None:
    whole = draws(0, 30)
    assert draws(0, 30, parts=3) == whole
    assert len(set(whole)) == 30
    assert not set(whole) & set(draws(1, 12))
    assert sum(whole[20:]) < 0.5 * sum(whole[:10])  # the lower, the better


# Searches that can't start


@pytest.mark.parametrize(
    ("how", "options", "word"),
    [
        ({"space": {"lr": {"low": 0, "high": 1}}}, [], "lr is 0"),
        ({"learning_rate": 1}, [], "learning_rate"),
        ({"teacher": "nowhere"}, [], "nowhere"),
        ({"devices": 2}, [], "one process"),
        ({"num_nodes": 2}, [], "num_nodes"),
        ({"val_fraction": 0.0, "ckpt": "last"}, [], "val_fraction 0"),
        ({"space": {"model": {"choices": ["seed", "sed"]}}}, [], "model 'sed'"),
        ({"space": {"dropout.0": {"low": 0.0, "high": 0.5}}, "model": "own"}, [], "model own"),
        ({"space": {"model": {"choices": ["seed", "own"]}, "dropout": {"choices": [[0, 0, 0]]}}}, [], "model own"),
        ({}, ["--dataset", "fashion_mnist", "--data_dir", "empty"], "--dataset drawn"),
        ({}, ["--recipe", "missing.yaml"], "missing.yaml"),
    ],
)
def test_search_that_cannot_start_makes_no_study(
    program: Program, folder: Path, monkeypatch: pytest.MonkeyPatch, how: Any, options: Any, word: str
) -> None:
    use_mirrors(monkeypatch, NOWHERE)
    monkeypatch.setitem(MODELS, "own", lambda image_shape, num_classes: torch.nn.Flatten())
    status, output = program(tune, *arguments(folder, 1, **how), *options)
    assert status == 1
    assert word in output
    assert not folder.exists()


def test_trial_under_torchrun_is_refused(searching: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in torchrun_environment(0, 2, 12345).items():
        monkeypatch.setenv(name, value)
    status, output = searching(1, devices=2)
    assert (status, "one process" in output) == (1, True)


def test_missing_optuna_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install --editable '.*\[tune\]'"):
        importlib.reload(sys.modules["fmnist_lightning.tune"])


# The database and its password


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the heartbeat may meet it too
def test_database_that_breaks_is_named(searching: Search, folder: Path) -> None:
    def break_database(options: TrainOptions, reporter: Reporter) -> None:
        (folder / "study.db").write_text("no database " * 10_000)
        rate_as_accuracy(options, reporter)

    for first, word in (((rate_as_accuracy, break_database), "cannot use the study's"), ((), "is not a database")):
        status, output = searching(3, first=first)
        assert (status, word in output, f"to resume later: {command('tune')}" in output) == (1, True, True)


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("mssql://me:secret@127.0.0.1:9/studies", "pyodbc"),
        ("sqlite://me:secret@host/studies", "cannot use"),
        ("postgresql://me:secret@host:port/studies", "DIALECT"),
        ("secret", "DIALECT"),
        ("sqlite:///$LACKING/study.db?secret", "LACKING"),
    ],
)
def test_database_that_cannot_be_used_is_named_without_password(
    searching: Search, monkeypatch: pytest.MonkeyPatch, url: str, word: str
) -> None:
    monkeypatch.setitem(sys.modules, "pyodbc", None)
    status, output = searching(1, "--storage", url)
    assert (status, word in output, "secret" in output, "Traceback" in output) == (1, True, False, False)


def test_driver_message_is_shown_without_password() -> None:
    plan: Any = SimpleNamespace(url=make_url("postgresql://me:p%40ss@host/s?key=hidden"), command="the command")
    message = "no user me with p@ss or hidden"
    with pytest.raises(UserError, match=r"no user me with \*\*\* or \*\*\* .*the command"), explaining_database(plan):
        raise RuntimeError from OperationalError("", {}, Exception(message))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:secret@host:5432/studies", "postgresql://me:***@host:5432/studies"),
        ("postgresql://me:se%40c?re/t:@host/studies", "postgresql://me:***@host/studies"),
        ("mysql://me@host/studies?password=secret", "mysql://me@host/studies?***"),
        ("mysql://host/studies?a=b:c@secret", "mysql://host/studies?***"),
        ("postgresql://me:$PASSWORD@host/studies", "postgresql://me:$PASSWORD@host/studies"),
        ("postgresql://me:${PASSWORD}@host/studies?a=secret", "postgresql://me:${PASSWORD}@host/studies?***"),
        ("postgresql://me:${PASSWORD}secret@host/studies", "postgresql://me:***@host/studies"),
        ("postgresql://m@e:$secret:@host/studies", "postgresql://m@e:***@host/studies"),
        ("sqlite:////folder/a@b:c.db", "sqlite:////folder/a@b:c.db"),
        ("$STORAGE", "$STORAGE"),
    ],
)
def test_without_secrets_hides_passwords(url: str, shown: str) -> None:
    assert without_secrets(url) == shown


def test_database_url_takes_names_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PGPASS": "p@ss/$et?100%", "STORAGE": "sqlite:////folder/study.db"}.items():
        monkeypatch.setenv(name, value)
    url = database_url(TuneOptions(storage="sqlite://me:${PGPASS}@host"))
    assert (url.username, url.password, url.host) == ("me", "p@ss/$et?100%", "host")
    assert database_url(TuneOptions(storage="$STORAGE")).database == "/folder/study.db"
    with pytest.raises(UserError, match="LACKING") as refusal:
        database_url(TuneOptions(storage="sqlite://me:$PGPASS@$LACKING/studies"))
    assert "p@ss" not in str(refusal.value)
