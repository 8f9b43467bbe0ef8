"""Trainings that are killed and resumed end like an undisturbed one."""

from pathlib import Path
from typing import Any

import pytest
from conftest import leave_undrawn

from tools import torture
from tools.observe import ROOT
from tools.speed_tables import read_record
from tools.torture import Torture, child, result, while_saving


def test_torture_record_says_that_all_runs_ended_equal() -> None:
    record = read_record(ROOT / "benchmarks" / "torture.json")
    assert record["dataset"] == "Fashion-MNIST"
    assert sum(row["runs"] for row in record["rows"]) == 100
    assert all(row["equal"] == row["runs"] and row["unreadable"] == 0 for row in record["rows"])
    assert sum(row["half_written"] for row in record["rows"]) > 0
    assert record["differs_without_random_state"]


def undrawn_child(*arguments: Any) -> None:
    """Plots take half of the time of such a short run."""
    leave_undrawn(pytest.MonkeyPatch())
    child(*arguments)


@pytest.mark.real_data
def test_torture_kills_and_resumes(tmp_path: Path, real_data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill while a checkpoint is written. tests/training/test_resume.py compares how killed runs end."""
    monkeypatch.setattr(torture, "child", undrawn_child)
    outcome = Torture(tmp_path, "fashion_mnist", str(real_data_dir)).disturb({}, while_saving, "run", kills=1)
    assert (outcome.kills, outcome.unreadable) == (1, 0)
    assert result(tmp_path / "run" / "version_0")["epochs"] == torture.EPOCHS
