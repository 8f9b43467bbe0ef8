"""Runs that were edited, moved into odd places, or asked for what they can't give: one message, and nothing is lost."""

import datetime
import os
import subprocess
import sys
import time
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import torch
import yaml
from conftest import Program, metrics_of, small_run
from filelock import FileLock

from fmnist_lightning.cli import parse
from fmnist_lightning.runs import files
from fmnist_lightning.runs.checkpoints import read_checkpoint
from fmnist_lightning.runs.environment import git_state
from fmnist_lightning.runs.folders import CONFIG, METRICS, PREDICTIONS, TEST_LOCK
from fmnist_lightning.training import callbacks
from fmnist_lightning.training.evaluate import evaluate
from fmnist_lightning.training.train import train

pytestmark = pytest.mark.usefixtures("small_drawn")


@pytest.mark.parametrize("in_epoch", [False, True])
def test_a_run_does_not_go_on_to_fewer_epochs_than_it_has(program: Program, tmp_path: Path, in_epoch: bool) -> None:
    run, _ = small_run(program, tmp_path, "--test", "false")  # of two epochs
    last = run / "checkpoints" / "last.ckpt"
    content, config = read_checkpoint(last), (run / CONFIG).read_bytes()
    content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] = not in_epoch
    torch.save(content, last)
    status, output = program(train, "--resume", run, "--max_epochs", 1)
    assert status == 1
    assert f"{last} is in its epoch 2 or behind it, and can't go on to --max_epochs 1: give 2 or more" in output
    assert (run / CONFIG).read_bytes() == config


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("model", [1], "trained with the net [1]"),
        ("dropout", 5, 'key "dropout"'),
        ("dropout", [0.1, 0.2, 0.3], "256ths"),
        ("batch_size", 0, 'key "batch_size"'),
        ("batch_size", None, "lacks batch_size"),
        ("val_fraction", 5, 'key "val_fraction"'),
        ("seed", "x", 'key "seed"'),
        ("data_dir", None, "lacks data_dir"),
        ("dataset", "foo", 'key "dataset"'),
        ("dataset", "auto", "holds dataset auto"),
        ("lr", datetime.date(2026, 1, 1), 'key "lr"'),
    ],
)
def test_a_test_takes_no_option_that_training_would_not(
    program: Program, tmp_path: Path, option: str, value: Any, words: str
) -> None:
    (tmp_path / CONFIG).write_text(yaml.safe_dump({**plain_config(), option: value}))
    status, output = program(evaluate, "--run", tmp_path)
    assert status == 1
    assert words in output
    assert str(tmp_path) in output


def plain_config() -> dict[str, Any]:
    return parse(train, ["--dataset", "drawn"])


def test_an_untouched_config_gets_as_far_as_the_checkpoint(program: Program, tmp_path: Path) -> None:
    """The control of the test above."""
    (tmp_path / CONFIG).write_text(yaml.safe_dump(plain_config()))
    status, output = program(evaluate, "--run", tmp_path)
    assert (status, "best.ckpt: there is no such file" in output) == (1, True)


@pytest.mark.parametrize("content", ["seed: 2026-13-01", "a: &a [*a]", "[" * 5000])
def test_a_config_that_yaml_stumbles_over_is_named(program: Program, tmp_path: Path, content: str) -> None:
    (tmp_path / CONFIG).write_text(content)
    status, output = program(evaluate, "--run", tmp_path)
    assert status == 1
    assert f"{tmp_path / CONFIG} " in output


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "x"},
        {"state_dict": 5},
        {"loops": {}},
        {"callbacks": []},
        {"epoch": "x"},
        {"datamodule_hyper_parameters": 5},
    ],
)
def test_a_checkpoint_of_another_shape_is_refused(program: Program, trained: Path, changes: dict[str, Any]) -> None:
    for path in (trained / "checkpoints").iterdir():
        torch.save({**read_checkpoint(path), **changes}, path)
    for command in ((evaluate, "--run", trained), (train, "--resume", trained, "--max_epochs", 2)):
        status, output = program(*command)
        assert status == 1
        assert "error: " in output


def test_a_checkpoint_without_its_optimizer_is_not_gone_on_with(program: Program, trained: Path) -> None:
    """Lightning would take a new one without a word."""
    for path in (trained / "checkpoints").iterdir():
        torch.save({**read_checkpoint(path), "optimizer_states": []}, path)
    status, output = program(train, "--resume", trained, "--max_epochs", 2)
    assert status == 1
    assert "lacks the optimizer's state: it can be tested, but not gone on with" in output


@pytest.mark.parametrize(
    ("ckpt", "words"), [("nowhere.ckpt", "nowhere.ckpt: there is no such file"), (".", " .: there is no such file")]
)
def test_a_checkpoint_that_is_none_is_named(program: Program, trained: Path, ckpt: str, words: str) -> None:
    status, output = program(evaluate, "--run", trained, "--ckpt", ckpt)
    assert status == 1
    assert f"{words}: name best, last, or a checkpoint's path" in output


def test_a_checkpoint_in_the_working_folder_is_gone_on_from(
    program: Program, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained / "checkpoints")
    status, output = program(train, "--resume", "last.ckpt", "--max_epochs", 2, "--test", "false")
    assert status == 0, output
    assert read_checkpoint(trained / "checkpoints" / "last.ckpt")["epoch"] == 1


def test_a_folder_may_have_a_name_that_means_something_to_fsspec(program: Program, tmp_path: Path) -> None:
    """It takes `a::b` for a file in an archive, and Lightning then kept a path that a safe reader refuses."""
    run, _ = small_run(program, tmp_path / "a::b", "--max_epochs", 1)
    status, output = program(train, "--resume", run, "--max_epochs", 2)
    assert status == 0, output
    assert metrics_of(run)["epochs"] == 2


def test_a_test_waits_for_another_one_of_its_run(program: Program, trained: Path) -> None:
    """Else their files mix: each sweeps away what the other is writing. A training that is complete waits too."""
    staged = trained / f".{PREDICTIONS}.abc{files.STAGED}"
    begun, kept = Event(), []

    def another_test() -> None:
        with FileLock(trained / TEST_LOCK):
            begun.set()
            time.sleep(3)
            kept.append(staged.exists() and not (trained / METRICS).exists())

    for command in ((evaluate, "--run", trained), (train, "--resume", trained, "--test", "true")):
        (trained / METRICS).unlink(missing_ok=True)
        staged.touch()
        begun.clear()
        other = Thread(target=another_test)
        other.start()
        begun.wait()
        status, output = program(*command)
        other.join()
        assert (status, kept.pop()) == (0, True), output
        assert f"another test of {trained} is running: waiting until it ends" in output
        assert (trained / METRICS).exists()
        assert not staged.exists()


def test_a_test_that_cannot_write_names_file_and_cure(
    program: Program, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path) -> None:
        raise OSError(27, "File too large", str(path))

    monkeypatch.setattr(callbacks, "atomic_write", refused)
    status, output = program(evaluate, "--run", trained)
    assert status == 1
    assert f"cannot write {trained / PREDICTIONS}: File too large" in output
    assert f"python scripts/test.py --run {trained}" in output


def test_the_commit_is_this_projects_whatever_repository_a_hook_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = git_state()
    if not before["commit"]:
        pytest.skip("this is no checkout")
    make_repository(tmp_path)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    assert git_state() == before


def test_another_projects_commit_is_not_that_of_a_package_in_its_environment(tmp_path: Path) -> None:
    make_repository(tmp_path)
    package = tmp_path / ".venv" / "fmnist_lightning"
    package.mkdir(parents=True)
    source = Path(git_state.__code__.co_filename)
    (package / source.name).write_text(source.read_text())
    code = "import environment; print(environment.git_state())"
    told = subprocess.run([sys.executable, "-c", code], cwd=package, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "{'commit': None, 'dirty': None}"


def make_repository(folder: Path) -> None:
    """Without what would make git take another one, this project's, where a hook of it runs the tests."""
    own = ["-c", "user.name=x", "-c", "user.email=x@x"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    for command in (["init", "--quiet"], [*own, "commit", "--quiet", "--allow-empty", "--message=x"]):
        subprocess.run(["git", "-C", str(folder), *command], check=True, env=env)
