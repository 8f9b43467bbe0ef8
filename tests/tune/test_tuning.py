"""A search tries options on the validation cut alone, survives its processes, and leaves a recipe."""

import errno
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import optuna
import pytest
import torch
import yaml
from conftest import Program, small_run
from optuna.trial import TrialState
from PIL import Image

from fmnist_lightning.data.datamodule import FashionMNISTDataModule
from fmnist_lightning.data.fashion_mnist import Split
from fmnist_lightning.errors import UserError
from fmnist_lightning.runs.checkpoints import read_checkpoint
from fmnist_lightning.runs.folders import numbered_runs, read_config
from fmnist_lightning.training.train import train
from fmnist_lightning.tune import results as search_results
from fmnist_lightning.tune import search as searching
from fmnist_lightning.tune.study import SeededByTrial
from fmnist_lightning.tune.tune import tune

pytestmark = pytest.mark.usefixtures("small_drawn")
ROOT = Path(__file__).parents[2]
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
