"""Runs beside each other: what is said of them is what their predictions say."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import Program
from test_report import COUNT, make_run, write_predictions

from fmnist_lightning.data.drawn import load_drawn
from fmnist_lightning.report import compare as comparison
from fmnist_lightning.report.compare import common_mistakes, compare
from fmnist_lightning.report.findings import Predictions

LABELS = np.arange(COUNT) % 10


def run_with(run: Path, wrong: dict[int, int]) -> Path:
    """A run that takes just the images in `wrong`, by number, for another class."""
    make_run(run, dataset="drawn")
    named = LABELS.copy()
    named[list(wrong)] = list(wrong.values())
    write_predictions(run, (np.eye(10)[named] * 0.8 + 0.02).astype(np.float32), LABELS)
    return run


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """T-shirts are 0, 10, 20 and so on; of shirts, 6, 16 and so on, the first run takes two for T-shirts."""
    return [run_with(tmp_path / "first", {6: 0, 16: 0, 3: 4}), run_with(tmp_path / "second", {6: 0, 3: 2, 100: 6})]


def test_classes_pairs_and_common_mistakes_are_counted(program: Program, runs: list[Path]) -> None:
    status, output = program(compare, *runs)
    assert status == 0, output
    assert output.startswith("DRAWN STAND-IN, not Fashion-MNIST, 200 images")
    assert "| Shirt | 90.00 | 95.00 |" in output
    assert "| T-shirt/top and Shirt | 2 | 2 |" in output
    assert "| Dress and Coat | 1 | 0 |" in output
    assert "2 images are recognised by none of the runs; for 1 all name the same wrong class." in output


@pytest.mark.usefixtures("small_drawn")
def test_what_no_run_recognises_is_drawn(program: Program, runs: list[Path], tmp_path: Path) -> None:
    assert len(load_drawn(train=False).labels) == COUNT
    status, output = program(compare, *runs, "--pictures", tmp_path / "common.png")
    assert status == 0, output
    assert (tmp_path / "common.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("small_drawn")
@pytest.mark.parametrize("name", ["", "file/common.png"])
def test_a_picture_that_cannot_be_written_is_named(
    program: Program, runs: list[Path], tmp_path: Path, name: str
) -> None:
    (tmp_path / "file").touch()
    status, output = program(compare, *runs, "--pictures", tmp_path / name)
    assert status == 1
    assert f"error: --pictures {tmp_path / name} can't be written (" in output
    assert "name a PNG file" in output


def test_of_what_no_run_recognises_the_surest_mistakes_of_all_runs_together_come_first() -> None:
    def tested(*of_the_truth: float) -> comparison.Tested:
        """A run that gives the true class, 0, these probabilities, and class 1 the rest."""
        probs = np.zeros((len(of_the_truth), 10), np.float32)
        probs[:, 0] = of_the_truth
        probs[:, 1] = 1 - probs[:, 0]
        return comparison.Tested("run", Path(), {}, Predictions(probs, np.zeros(len(probs), np.int64)))

    runs = [tested(0.4, 0.3, 0.9, 0.0, 0.2), tested(0.0, 0.3, 0.0, 0.05, 0.3)]
    assert common_mistakes(runs).tolist() == [3, 0, 4, 1]


def test_one_run_and_runs_of_other_images_are_refused(program: Program, runs: list[Path], tmp_path: Path) -> None:
    status, output = program(compare, runs[0])
    assert status == 1
    assert "one run can't be compared" in output
    other = make_run(tmp_path / "other", dataset="drawn")
    write_predictions(other, np.full((COUNT, 10), 0.1, np.float32), LABELS[::-1].copy())
    status, output = program(compare, runs[0], other)
    assert status == 1
    assert "was tested on other images" in output
    fewer = make_run(tmp_path / "fewer", dataset="drawn", n=10)
    write_predictions(fewer, np.full((10, 10), 0.1, np.float32), LABELS[:10])
    assert "was tested on other images" in program(compare, runs[0], fewer)[1]


def test_a_run_that_averaged_over_mirror_images_says_so(program: Program, runs: list[Path]) -> None:
    metrics = json.loads((runs[1] / "metrics.json").read_text())
    (runs[1] / "metrics.json").write_text(json.dumps({**metrics, "tta": True}))
    output = program(compare, *runs)[1]
    assert f"{runs[1]}, mirror images averaged" in output
    assert f"{runs[0]}, mirror images averaged" not in output
