"""The commit in a record is this project's."""

import os
import subprocess
from pathlib import Path

import pytest

from fmnist_lightning.runs import environment
from fmnist_lightning.runs.environment import git_state


@pytest.fixture
def other_repository(tmp_path: Path) -> Path:
    # Without the variables by which a hook of this project's repository would redirect git to it.
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    own = ["-c", "user.name=x", "-c", "user.email=x@x"]
    for command in (["init", "--quiet"], [*own, "commit", "--quiet", "--allow-empty", "--message=x"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True, env=env)
    return tmp_path


def test_git_state_ignores_the_repository_of_a_hook(other_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = git_state()
    if not before["commit"]:
        pytest.skip("this is no checkout")
    monkeypatch.setenv("GIT_DIR", str(other_repository / ".git"))
    assert git_state()["commit"] == before["commit"]


def test_git_state_is_dirty_if_code_changed(other_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not by what README's commands write."""
    git = ["git", "-C", str(other_repository), "-c", "user.name=x", "-c", "user.email=x@x"]
    code, record = (
        other_repository / name for name in ("fmnist_lightning/runs/environment.py", "benchmarks/speed.json")
    )
    for path in (code, record):
        path.parent.mkdir(parents=True)
        path.touch()
    for command in (["add", "."], ["commit", "--quiet", "--message=y"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(environment, "__file__", str(code))
    record.write_text("{}")
    for name in ("common.png", "mine.yaml"):
        (other_repository / name).touch()
    assert git_state()["dirty"] is False
    new = code.with_name("mine.py")
    new.touch()
    assert git_state()["dirty"] is True
    new.unlink()
    code.write_text("changed")
    assert git_state()["dirty"] is True


def test_git_state_is_empty_if_another_project_installed_this(
    other_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = other_repository / ".venv" / "fmnist_lightning" / "runs"
    package.mkdir(parents=True)
    monkeypatch.setattr(environment, "__file__", str(package / "environment.py"))
    assert git_state() == {"commit": None, "dirty": None}
