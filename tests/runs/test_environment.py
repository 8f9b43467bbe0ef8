"""The commit in a record is this project's."""

import os
import subprocess
from pathlib import Path

import pytest

from fmnist_lightning.runs import environment
from fmnist_lightning.runs.environment import git_state


def make_repository(folder: Path) -> None:
    """Without the variables by which a hook of this project's repository would redirect git to it."""
    own = ["-c", "user.name=x", "-c", "user.email=x@x"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    for command in (["init", "--quiet"], [*own, "commit", "--quiet", "--allow-empty", "--message=x"]):
        subprocess.run(["git", "-C", str(folder), *command], check=True, env=env)


def test_git_state_ignores_the_repository_of_a_hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = git_state()
    if not before["commit"]:
        pytest.skip("this is no checkout")
    make_repository(tmp_path)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    assert git_state()["commit"] == before["commit"]


def test_git_state_is_empty_in_the_environment_of_another_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_repository(tmp_path)
    package = tmp_path / ".venv" / "fmnist_lightning" / "runs"
    package.mkdir(parents=True)
    monkeypatch.setattr(environment, "__file__", str(package / "environment.py"))
    assert git_state() == {"commit": None, "dirty": None}
