"""A search tries options on the validation cut alone, survives its processes, and leaves a recipe."""

import errno
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
import warnings
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
from conftest import Program, small_run
from optuna.trial import TrialState
from PIL import Image

from fmnist_lightning import cli, drawn, search_results, searching, study_store
from fmnist_lightning.checkpoint import read_checkpoint
from fmnist_lightning.cli import parse
from fmnist_lightning.data import Split
from fmnist_lightning.datamodule import FashionMNISTDataModule
from fmnist_lightning.errors import UserError
from fmnist_lightning.module import Classifier
from fmnist_lightning.pictures import Pictures
from fmnist_lightning.runs import numbered_runs, read_config
from fmnist_lightning.study_store import SeededByTrial, finished
from fmnist_lightning.training import train
from fmnist_lightning.tuning import tune

pytestmark = pytest.mark.usefixtures("small_drawn")
ROOT = Path(__file__).parent.parent
RECIPE = {"max_epochs": 1, "batch_size": 60, "precision": "32-true"}
GOOD, HOPELESS, DIVERGING = 3e-3, 1e-9, 1e30
RATES = {"lr": {"low": 1e-4, "high": 1e-2, "log": True}}


@pytest.fixture(autouse=True)
def no_lasting_filters() -> Iterator[None]:
    """What the search tells the libraries ends with the test."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        yield
    optuna.logging.set_verbosity(verbosity)


@pytest.fixture
def figures() -> None:
    """Studies are drawn."""


@pytest.fixture(autouse=True)
def undrawn_study(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies are not drawn, which takes longer than such a search, but in tests that use `figures`."""
    if "figures" not in request.fixturenames:
        monkeypatch.setattr(search_results, "FIGURES", {})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a study; the current folder is another one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "study"


def write_yaml(path: Path, content: Any) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


def arguments(folder: Path, space: dict[str, Any], trials: int, **recipe: Any) -> list[object]:
    """Of a search on the small drawn set."""
    recipe_file = write_yaml(folder.parent / "recipe.yaml", {**RECIPE, **recipe})
    space_file = write_yaml(folder.parent / "space.yaml", space)
    files = ["--recipe", recipe_file, "--space", space_file, "--study", folder]
    return [*files, "--trials", trials, "--dataset", "drawn", "--accelerator", "cpu"]


def study_in(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="study", storage=f"sqlite:///{folder / 'study.db'}")


def states(folder: Path) -> list[str]:
    return [trial.state.name for trial in study_in(folder).trials]


def rates_tried(folder: Path) -> list[float]:
    return [trial.params["lr"] for trial in study_in(folder).trials]


Training = Callable[[dict[str, Any], list[Any]], None]


def score(options: dict[str, Any], callbacks: list[Any]) -> None:
    """Instead of a training: its rate is its accuracy."""
    [reporter] = callbacks
    reporter.trial.set_user_attr("run", "version_0")
    reporter.accuracies.append(options["lr"])


@pytest.fixture
def train_by(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the first trials do something else than train; the later ones score."""

    def replace(*first: Training) -> None:
        left = [*first]

        def next_training(options: dict[str, Any], callbacks: list[Any]) -> None:
            (left.pop(0) if left else score)(options, callbacks)

        monkeypatch.setattr(searching, "train_with", next_training)

    return replace


# What it finds


def test_the_better_of_two_choices_is_found(program: Program, folder: Path) -> None:
    space = {"lr": {"choices": [HOPELESS, GOOD]}, "dropout.2": {"low": 0, "high": 0.5, "step": 0.25}}
    status, output = program(tune, *arguments(folder, space, 4, max_epochs=2, dropout=[0.0, 0.125, 0.0]))
    assert status == 0, output
    study = study_in(folder)
    assert set(rates_tried(folder)) == {HOPELESS, GOOD}
    assert study.best_params["lr"] == GOOD
    assert study.best_value == max(trial.value for trial in study.trials)
    best = yaml.safe_load((folder / "best.yaml").read_text())
    assert best["lr"] == GOOD
    assert best["dropout"] == [0.0, 0.125, study.best_params["dropout.2"]]


def test_the_best_recipe_trains_as_the_best_trial_did_bit_for_bit(program: Program, folder: Path) -> None:
    status, output = program(tune, *arguments(folder, {**RATES, "flip": {"choices": [True]}}, 2, max_epochs=2))
    assert status == 0, output
    best = study_in(folder).best_trial
    run, _ = small_run(program, folder.parent / "again", *command_of(folder), "--test", "false")
    options, trials_options = read_config(run), read_config(folder / "runs" / best.user_attrs["run"])
    assert {**trials_options, "log_dir": ""} == {**options, "log_dir": ""}
    weights, trials_weights = (
        read_checkpoint(path / "checkpoints" / "best.ckpt")["state_dict"]
        for path in (run, folder / "runs" / best.user_attrs["run"])
    )
    assert all(torch.equal(weights[name], trials_weights[name]) for name in trials_weights)


def command_of(folder: Path) -> list[str]:
    """The options of the command at the head of the best recipe."""
    return (folder / "best.yaml").read_text().splitlines()[0].partition("train.py ")[2].split()


@pytest.mark.parametrize(("ckpt", "value"), [("best", 0.75), ("last", 0.5)])
def test_a_trials_score_is_that_of_the_checkpoint_that_would_be_tested(
    program: Program, folder: Path, train_by: Callable[..., None], ckpt: str, value: float
) -> None:
    def two_epochs(options: dict[str, Any], callbacks: list[Any]) -> None:
        score(options, callbacks)
        callbacks[0].accuracies[:] = [0.75, 0.5]

    train_by(two_epochs)
    status, output = program(tune, *arguments(folder, RATES, 1, ckpt=ckpt))
    assert status == 0, output
    assert study_in(folder).best_value == value


def test_trials_leave_run_folders_and_the_study_its_figures(program: Program, folder: Path, figures: None) -> None:
    style = dict(mpl.rcParams)
    status, output = program(tune, *arguments(folder, RATES, 2))
    assert status == 0, output
    for run in numbered_runs(folder / "runs").values():
        assert read_config(run)["lr"] in rates_tried(folder)
        assert list(run.glob("events.out.tfevents.*"))
    pictures = {path.stem: Image.open(path) for path in (folder / "plots").iterdir()}
    assert set(pictures) == {"history", "importances", "slice", "curves"}
    for picture in pictures.values():
        picture.verify()
    assert dict(mpl.rcParams) == style  # Optuna's own change it for good
    assert "DRAWN STAND-IN, not Fashion-MNIST" in (folder / "best.yaml").read_text()
    assert sorted(path.name for path in folder.iterdir() if path.suffix != ".lock") == [
        ".lock",
        "best.yaml",
        "plots",
        "runs",
        "study.db",
    ]


# The test set


@pytest.fixture
def sealed_test_set(monkeypatch: pytest.MonkeyPatch) -> None:
    load = FashionMNISTDataModule.load

    def load_sealed(self: FashionMNISTDataModule, *, train: bool) -> Split:
        if not train:
            raise UserError("the test set was opened")
        return load(self, train=train)

    monkeypatch.setattr(FashionMNISTDataModule, "load", load_sealed)


def test_no_trial_opens_the_test_set_whatever_the_recipe_says(
    program: Program, folder: Path, sealed_test_set: None
) -> None:
    status, output = program(tune, *arguments(folder, RATES, 2, test=True))
    assert status == 0, output
    assert states(folder) == ["COMPLETE", "COMPLETE"]
    assert yaml.safe_load((folder / "best.yaml").read_text())["test"] is True
    # The negative control: the seal breaks in a training by the same recipe.
    status, output = program(train, *command_of(folder), "--log_dir", folder.parent / "control")
    assert status == 1
    assert "the test set was opened" in output


def test_a_recipe_that_trains_on_all_images_needs_a_cut(
    program: Program, folder: Path, train_by: Callable[..., None]
) -> None:
    train_by()
    whole = arguments(folder, RATES, 1, val_fraction=0.0, ckpt="last")
    status, output = program(tune, *whole)
    assert status == 1
    assert "give --val_fraction 0.1" in output
    assert not folder.exists()
    status, output = program(tune, *whole, "--val_fraction", 0.1)
    assert status == 0, output
    assert yaml.safe_load((folder / "best.yaml").read_text())["val_fraction"] == 0.1


# Trials that don't go well


@pytest.mark.parametrize("prune", [True, False])
def test_a_hopeless_trial_is_pruned_behind_half_of_its_epochs(
    program: Program, folder: Path, monkeypatch: pytest.MonkeyPatch, prune: bool
) -> None:
    monkeypatch.setattr(searching, "COMPLETED_FIRST", 1)
    space = {"lr": {"choices": [HOPELESS, GOOD]}}
    command = [*arguments(folder, space, 1, max_epochs=4), "--prune", str(prune).lower()]
    monkeypatch.setattr(SeededByTrial, "sample_independent", lambda *_: GOOD)
    assert program(tune, *command)[0] == 0
    monkeypatch.setattr(SeededByTrial, "sample_independent", lambda *_: HOPELESS)
    status, output = program(tune, *command, "--trials", 2)
    assert status == 0, output
    assert states(folder) == ["COMPLETE", "PRUNED" if prune else "COMPLETE"]
    assert list(study_in(folder).trials[1].intermediate_values) == ([1, 2] if prune else [1, 2, 3, 4])


def test_a_training_that_diverges_is_a_failed_trial_and_the_search_goes_on(program: Program, folder: Path) -> None:
    status, output = program(tune, *arguments(folder, {"lr": {"choices": [DIVERGING, GOOD]}}, 4, optimizer="muon"))
    assert status == 0, output
    assert set(states(folder)) == {"COMPLETE", "FAIL"}
    assert len(states(folder)) == 4
    failed = [trial for trial in study_in(folder).trials if trial.state == TrialState.FAIL]
    assert all("nan" in trial.user_attrs["error"] for trial in failed)
    assert study_in(folder).best_params["lr"] == GOOD


def test_where_all_trials_fail_the_program_says_so(
    program: Program, folder: Path, train_by: Callable[..., None]
) -> None:
    def out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory left")

    train_by(out_of_memory, out_of_memory)
    status, output = program(tune, *arguments(folder, RATES, 2))
    assert status == 1
    assert "trial 1: no memory left" in output
    assert "no trial was completed, of 2 trials (0 completed, 0 pruned, 2 failed)" in output
    assert not (folder / "best.yaml").exists()


def test_a_full_disk_ends_the_search_and_is_no_trials_fault(
    program: Program, folder: Path, train_by: Callable[..., None]
) -> None:
    def full_disk(*_: object) -> None:
        raise UserError("the disk is full") from OSError(errno.ENOSPC, "")

    train_by(score, full_disk)
    command = arguments(folder, RATES, 3)
    status, output = program(tune, *command)
    assert status == 1
    assert "error: the disk is full" in output
    assert program(tune, *command)[0] == 0
    assert states(folder) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]


@pytest.mark.parametrize("reports", [True, False])
def test_a_trial_that_another_process_took_for_dead_does_not_end_the_search(
    program: Program, folder: Path, train_by: Callable[..., None], reports: bool
) -> None:
    def sleep_too_long(options: dict[str, Any], callbacks: list[Any]) -> None:
        score(options, callbacks)
        study_in(folder).tell(0, state=TrialState.FAIL)
        if reports:
            callbacks[0].trial.report(0.5, 1)

    train_by(sleep_too_long)
    status, output = program(tune, *arguments(folder, RATES, 2))
    assert status == 0, output
    assert "was the machine asleep?" in output
    assert states(folder) == ["FAIL", "COMPLETE", "COMPLETE"]


# Stops and kills


def test_after_ctrl_c_the_printed_command_goes_on_with_the_same_trials(
    program: Program, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, done = Classifier.training_step, []

    def interrupting_step(self: Classifier, batch: Any, batch_idx: int) -> torch.Tensor:
        done.append(batch_idx)
        if len(done) == 12:  # of 9 in a trial
            signal.raise_signal(signal.SIGINT)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", interrupting_step)
    status, output = program(tune, *arguments(folder, RATES, 3))
    assert status == 130, output
    assert states(folder) == ["COMPLETE", "FAIL", "WAITING"]
    advice = output.splitlines()[-1]
    assert advice.startswith("to go on: python scripts/tune.py --recipe")
    status, output = program(tune, *advice.partition("tune.py ")[2].split())
    assert status == 0, output
    assert states(folder) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    rates = rates_tried(folder)
    assert rates[2] == rates[1]
    assert len(set(rates)) == 3


def search_process(folder: Path, name: str, command: list[str]) -> None:
    """What scripts/tune.py does, with what the fixtures do for this process; dead trials are found soon."""
    descriptor = os.open(folder.parent / f"{name}.txt", os.O_WRONLY | os.O_CREAT)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(descriptor, stream.fileno())
    torch.set_num_threads(1)
    drawn.PER_CLASS.update(train=60, test=20)
    Pictures.draw_validation = lambda *_: None  # type: ignore[method-assign]
    search_results.FIGURES.clear()
    study_store.HEARTBEAT_SECONDS, study_store.GRACE_SECONDS, searching.GRACE_SECONDS = 1, 2, 2
    sys.argv = ["tune.py", *command]
    (folder.parent / f"{name}.ready").touch()
    while not (folder.parent / "go").exists():
        time.sleep(0.01)
    sys.exit(cli.run(tune))


def start(folder: Path, name: str, command: list[object]) -> BaseProcess:
    # Forks of a process that has imported all: a search starts in a tenth of a second.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fmnist_lightning.torture", "fmnist_lightning.searching"])
    process = context.Process(target=search_process, args=(folder, name, [*map(str, command)]))
    process.start()
    return process


def wait_for(path: Path, process: BaseProcess) -> None:
    while process.is_alive() and not path.exists():
        time.sleep(0.01)
    assert process.is_alive()


def test_a_killed_search_goes_on_by_the_same_command_and_loses_no_trial(folder: Path) -> None:
    command = arguments(folder, RATES, 3, max_epochs=5)
    (folder.parent / "go").touch()
    process = start(folder, "killed", command)
    wait_for(folder / "runs" / "version_1" / "checkpoints" / "last.ckpt", process)
    process.kill()
    process.join()
    assert states(folder) == ["COMPLETE", "RUNNING"]
    process = start(folder, "again", command)
    process.join()
    assert process.exitcode == 0, (folder.parent / "again.txt").read_text()
    assert states(folder).count("RUNNING") == states(folder).count("WAITING") == 0
    assert len(finished(study_in(folder))) == 3
    lost = study_in(folder).trials[1]
    assert lost.state == TrialState.FAIL
    assert [trial.params for trial in finished(study_in(folder))].count(lost.params) == 1


def test_two_processes_share_a_study_and_run_so_many_trials_together(folder: Path) -> None:
    command = arguments(folder, RATES, 5)
    processes = [start(folder, name, command) for name in ("first", "second")]
    for name, process in zip(("first", "second"), processes, strict=True):
        wait_for(folder.parent / f"{name}.ready", process)
    (folder.parent / "go").touch()
    for process in processes:
        process.join()
    outputs = [(folder.parent / f"{name}.txt").read_text() for name in ("first", "second")]
    assert [process.exitcode for process in processes] == [0, 0], outputs
    assert states(folder) == ["COMPLETE"] * 5
    assert len(set(rates_tried(folder))) == 5
    trials = [set(re.findall(r"trial (\d+): val/accuracy", output)) for output in outputs]
    assert trials[0] | trials[1] == {"0", "1", "2", "3", "4"}
    assert not trials[0] & trials[1]
    assert all(trials)
    assert all("5 trials (5 completed, 0 pruned, 0 failed)" in output for output in outputs)


def test_the_last_trial_where_another_process_is_at_it_is_waited_for_and_not_run_twice(
    program: Program, folder: Path, monkeypatch: pytest.MonkeyPatch, train_by: Callable[..., None]
) -> None:
    train_by()
    assert program(tune, *arguments(folder, RATES, 1))[0] == 0
    others = study_in(folder).ask()
    clock = SimpleNamespace(monotonic=lambda: 0.0, sleep=lambda _: study_in(folder).tell(others.number, 0.0))
    monkeypatch.setattr(searching, "time", clock)
    status, output = program(tune, *arguments(folder, RATES, 2))
    assert status == 0, output
    assert "waiting for the last trials" in output
    assert states(folder) == ["COMPLETE", "COMPLETE"]


def test_a_trial_whose_process_was_killed_before_its_first_sign_of_life_is_given_up(
    program: Program, folder: Path, monkeypatch: pytest.MonkeyPatch, train_by: Callable[..., None]
) -> None:
    train_by()
    assert program(tune, *arguments(folder, RATES, 1))[0] == 0
    study_in(folder).ask()
    clock = [0.0]
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        assert states(folder) == ["COMPLETE", "RUNNING"]
        clock[0] += searching.GRACE_SECONDS - 1

    monkeypatch.setattr(searching, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))
    status, output = program(tune, *arguments(folder, RATES, 2))
    assert status == 0, output
    assert len(waited) == 2
    assert output.count("waiting for the last trials") == 1
    assert states(folder) == ["COMPLETE", "FAIL", "COMPLETE"]


# What is tried


def suggested(seed: int, trials: int, parts: int = 1) -> list[float]:
    """What a sampler of this seed suggests, anew in each of so many parts of the search."""
    study = optuna.create_study()
    for _ in range(parts):
        study.sampler = SeededByTrial(seed)
        study.optimize(lambda trial: trial.suggest_float("lr", 0, 1), trials // parts)
    return [trial.params["lr"] for trial in study.trials]


def test_a_search_that_is_begun_again_tries_what_it_would_have_tried() -> None:
    whole = suggested(0, 24)
    assert suggested(0, 24, parts=3) == whole
    assert len(set(whole)) == 24
    assert not set(whole) & set(suggested(1, 24))


def test_after_ten_trials_the_sampler_looks_where_it_was_good() -> None:
    rates = suggested(0, 40)  # the lower, the better
    assert sum(rates[20:]) / 20 < 0.5 * sum(rates[:10]) / 10


def test_a_study_is_not_mixed_with_another_recipe_or_space(
    program: Program, folder: Path, train_by: Callable[..., None]
) -> None:
    train_by()
    assert program(tune, *arguments(folder, RATES, 1))[0] == 0
    other_space = {"lr": {"low": 1e-4, "high": 1e-1, "log": True}}
    for space, recipe, words in (
        (RATES, {"batch_size": 30}, "batch_size 30 instead of 60"),
        (RATES, {"seed": 1}, "seed 1 instead of 0"),
        (other_space, {}, "lr (space) ['range', 0.0001, 0.1, None, True] instead of"),
    ):
        status, output = program(tune, *arguments(folder, space, 2, **recipe))
        assert status == 1
        assert words in output
        assert "--study" in output
    moved = folder.rename(folder.parent / "moved")
    assert program(tune, *arguments(moved, RATES, 2, accelerator="auto"))[0] == 0
    assert states(moved) == ["COMPLETE", "COMPLETE"]


# Options


def test_a_wrong_space_is_an_error_before_anything_starts(program: Program, folder: Path) -> None:
    status, output = program(tune, *arguments(folder, {"lr": {"low": 0, "high": 1}}, 1))
    assert status == 1
    assert f"error: {folder.parent / 'space.yaml'}: lr: low is 0: Not of type LearningRate" in output
    assert not folder.exists()


def test_a_wrong_recipe_ends_with_2(program: Program, folder: Path) -> None:
    status, output = program(tune, *arguments(folder, RATES, 1, learning_rate=1))
    assert status == 2
    assert "learning_rate" in output


def test_whole_lists_can_be_chosen(program: Program, folder: Path, train_by: Callable[..., None]) -> None:
    train_by()
    lists = [[0.0, 0.0, 0.25], [0.25, 0.25, 0.5]]
    assert program(tune, *arguments(folder, {"dropout": {"choices": lists}}, 1))[0] == 0
    assert yaml.safe_load((folder / "best.yaml").read_text())["dropout"] in lists


# Databases


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://me:secret@127.0.0.1:9/studies", "needs a package that is not here"),
        ("sqlite://me:secret@host/studies", "can't be used"),
        ("nowhere://me:secret@host/studies", "is no database's URL"),
        ("postgresql://me:secret@host:port/studies", "is no database's URL"),
        ("secret", "is no database's URL"),
        ("sqlite:///$LACKING/study.db?secret", "$LACKING, which the environment lacks"),
    ],
)
def test_a_database_that_cannot_be_had_is_named_without_its_password(
    program: Program, folder: Path, monkeypatch: pytest.MonkeyPatch, url: str, words: str
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    status, output = program(tune, *arguments(folder, RATES, 1), "--storage", url)
    assert status == 1
    assert words in output
    assert "secret" not in output.replace("--storage secret is", "")
    assert "Traceback" not in output


def test_machines_share_a_study_by_a_url_with_names_from_the_environment(
    program: Program, folder: Path, monkeypatch: pytest.MonkeyPatch, train_by: Callable[..., None]
) -> None:
    train_by()
    monkeypatch.setenv("STUDIES", str(folder.parent / "studies"))
    for machine in ("one", "other"):
        here = folder.parent / machine / "tuned"
        here.parent.mkdir()
        command = [*arguments(here, RATES, 2), "--storage", "sqlite:///$STUDIES.db"]
        status, output = program(tune, *command)
        assert status == 0, output
        assert "--storage 'sqlite:///$STUDIES.db'" in (here / "best.yaml").read_text()
        assert not (here / "study.db").exists()
    study = optuna.load_study(study_name="tuned", storage=f"sqlite:///{folder.parent / 'studies.db'}")
    assert len(study.trials) == 2


def test_a_damaged_database_is_named(program: Program, folder: Path) -> None:
    folder.mkdir()
    (folder / "study.db").write_text("no database " * 100)
    status, output = program(tune, *arguments(folder, RATES, 1))
    assert status == 1
    assert f"error: the study's database sqlite:///{folder / 'study.db'} can't be used" in output
    assert "file is not a database" in output


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the heartbeat may meet it too
def test_a_database_that_breaks_under_the_search_is_named_with_the_command_that_goes_on(
    program: Program, folder: Path, train_by: Callable[..., None]
) -> None:
    def break_database(options: dict[str, Any], callbacks: list[Any]) -> None:
        (folder / "study.db").write_text("no database " * 10_000)
        score(options, callbacks)

    train_by(score, break_database)
    status, output = program(tune, *arguments(folder, RATES, 3))
    assert status == 1
    assert "can't be used" in output
    assert "go on: python scripts/tune.py" in output


def test_without_optuna_the_cure_is_named(program: Program, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    status, output = program(tune, *arguments(folder, RATES, 1))
    assert status == 1
    assert "pip install --editable '.[tune]'" in output


def test_the_script_is_this_command(folder: Path) -> None:
    script = [sys.executable, ROOT / "scripts" / "tune.py", "--print_config"]
    printed = subprocess.run(script, check=True, capture_output=True, text=True).stdout
    assert yaml.safe_load(printed) == parse(tune, [])
