"""A search that can't be begun or can't go on: one message, and no password in it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from conftest import NOWHERE, Program, small_run, use_mirrors
from test_tuning import (
    RATES,
    ROOT,
    arguments,
    figures,
    folder,
    no_lasting_filters,
    rates_tried,
    score,
    train_by,
    undrawn_study,
)

from fmnist_lightning.cli import parse
from fmnist_lightning.training.distillation import warn_once
from fmnist_lightning.tune.tune import tune

pytestmark = pytest.mark.usefixtures("small_drawn")
__all__ = ["figures", "folder", "no_lasting_filters", "train_by", "undrawn_study"]  # fixtures


def test_a_wrong_space_is_an_error_before_anything_starts(program: Program, folder: Path) -> None:
    status, output = program(tune, *arguments(folder, {"lr": {"low": 0, "high": 1}}, 1))
    assert status == 1
    assert f"error: {folder.parent / 'space.yaml'}: lr: low is 0: Not of type PositiveFinite" in output
    assert not folder.exists()


@pytest.mark.parametrize("name", ["file", "file/study"])
def test_a_study_that_can_be_no_folder_is_named(program: Program, folder: Path, name: str) -> None:
    (folder.parent / "file").touch()
    status, output = program(tune, *arguments(folder, RATES, 1), "--study", folder.parent / name)
    assert status == 1
    assert f"error: --study {folder.parent / name} can't be written (" in output
    assert "name another folder" in output


@pytest.mark.parametrize("content", [None, b"", b"# lr: 0.1", b"[lr]", b"1: 2", b"lr: [", b"lr: \xff"])
def test_a_recipe_that_holds_no_options_is_named(program: Program, folder: Path, content: bytes | None) -> None:
    command, recipe = arguments(folder, RATES, 1), folder.parent / "recipe.yaml"
    recipe.unlink() if content is None else recipe.write_bytes(content)
    status, output = program(tune, *command)
    assert status == 1
    assert output.startswith(f"error: --recipe: {recipe} ")
    assert "name a recipe such as those in recipes/" in output
    assert "usage" not in output


def test_a_wrong_recipe_ends_with_2(program: Program, folder: Path) -> None:
    status, output = program(tune, *arguments(folder, RATES, 1, learning_rate=1))
    assert status == 2
    assert "learning_rate" in output


def test_a_teacher_that_cannot_be_had_is_named_before_a_study_is_made(program: Program, folder: Path) -> None:
    status, output = program(tune, *arguments(folder, RATES, 1, teacher="nowhere"))
    assert status == 1
    assert "cannot load nowhere" in output
    assert not folder.exists()


def test_data_that_cannot_be_had_is_an_error_with_the_cures_that_the_search_has(
    program: Program, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_mirrors(monkeypatch, NOWHERE)
    options = ["--dataset", "fashion_mnist", "--data_dir", folder.parent / "empty"]
    status, output = program(tune, *arguments(folder, RATES, 1), *options)
    assert status == 1
    assert "--data_dir" in output
    assert "--dataset drawn" in output
    assert not folder.exists()


@pytest.mark.parametrize(("own", "seen"), [(0.1, True), (0.05, False)])
def test_a_teacher_that_saw_the_validation_images_is_told_of_in_a_search_and_in_its_best_recipe(
    program: Program, folder: Path, train_by: Callable[..., None], own: float, seen: bool
) -> None:
    train_by()
    teacher, _ = small_run(program, folder.parent, "--val_fraction", 0.05, "--max_epochs", 1, "--test", "false")
    status, output = program(tune, *arguments(folder, RATES, 1, teacher=str(teacher)), "--val_fraction", own)
    assert status == 0, output
    warning = f"he teacher {teacher} was trained on validation images of this training (val_fraction 0.05, here 0.1)"
    assert output.count(f"WARNING: t{warning}") == seen
    assert (f"# T{warning}" in (folder / "best.yaml").read_text()) is seen


def test_a_searchs_later_trainings_do_not_say_it_again(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        warn_once("of this test")
    assert capsys.readouterr().err == "WARNING: of this test\n"


def test_whole_lists_can_be_chosen(program: Program, folder: Path, train_by: Callable[..., None]) -> None:
    train_by()
    lists = [[0.0, 0.0, 0.25], [0.25, 0.25, 0.5]]
    assert program(tune, *arguments(folder, {"dropout": {"choices": lists}}, 1))[0] == 0
    assert yaml.safe_load((folder / "best.yaml").read_text())["dropout"] in lists


@pytest.mark.parametrize(("rate", "within"), [(2e-3, True), (2.0, False)])
def test_the_recipe_itself_is_the_first_trial_where_the_space_has_room_for_it(
    program: Program, folder: Path, train_by: Callable[..., None], rate: float, within: bool
) -> None:
    train_by()
    for trials in (2, 3):
        assert program(tune, *arguments(folder, RATES, trials, lr=rate))[0] == 0
    rates = rates_tried(folder)
    assert (rates[0] == rate) is within
    assert len(set(rates)) == 3


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
