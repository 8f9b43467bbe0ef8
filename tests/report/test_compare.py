"""Comparing tested runs."""

from pathlib import Path

import numpy as np
import pytest
from conftest import Program, metrics_of
from test_page import LABELS, make_run, write_predictions

from fmnist_lightning.report.compare import ComparedRun, common_mistakes, compare
from fmnist_lightning.report.results import Predictions
from fmnist_lightning.runs.folders import write_metrics


def run_with(run: Path, wrong: dict[int, int]) -> Path:
    """A run that predicts a wrong class for the images in `wrong` alone."""
    make_run(run, dataset="drawn")
    predicted = LABELS.copy()
    predicted[list(wrong)] = list(wrong.values())
    write_predictions(run, (np.eye(10)[predicted] * 0.8 + 0.02).astype(np.float32), LABELS)
    return run


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """T-shirts are 0, 10, 20 and so on. The first run predicts T-shirt for two of the shirts: 6, 16 and so on."""
    return [run_with(tmp_path / "first", {6: 0, 16: 0, 3: 4}), run_with(tmp_path / "second", {6: 0, 3: 2, 100: 6})]


def test_compare_counts_classes_pairs_and_mistakes(program: Program, runs: list[Path]) -> None:
    write_metrics(runs[1], metrics_of(runs[1]) | {"tta": True})
    status, output = program(compare, *runs)
    assert status == 0, output
    assert output.startswith("DRAWN STAND-IN, not Fashion-MNIST, 200 images")
    rows = [" ".join(line.split()) for line in output.splitlines()]
    assert {"| Shirt | 90.00 | 95.00 |", "| T-shirt/top and Shirt | 2 | 2 |", "| Dress and Coat | 1 | 0 |"} < {*rows}
    assert "No run recognizes 2 of the images; for 1 of them all runs predict the same class." in output
    assert f"{runs[1]}, mirror images averaged" in output
    assert f"{runs[0]}, mirror images averaged" not in output


@pytest.mark.usefixtures("small_drawn")
def test_compare_draws_common_mistakes(program: Program, runs: list[Path], tmp_path: Path) -> None:
    status, output = program(compare, *runs, "--pictures", tmp_path / "common.png")
    assert status == 0, output
    assert (tmp_path / "common.png").read_bytes().startswith(b"\x89PNG")
    status, output = program(compare, *runs, "--pictures", tmp_path)
    assert status == 1
    assert str(tmp_path) in output


def test_common_mistakes_start_with_the_most_confident() -> None:
    def tested(*truth: float) -> ComparedRun:
        """A run that gives these probabilities to the true class, 0, and the rest to class 1."""
        probs = np.zeros((len(truth), 10), np.float32)
        probs[:, 0] = truth
        probs[:, 1] = 1 - probs[:, 0]
        return ComparedRun("run", Path(), {}, Predictions(probs, np.zeros(len(probs), np.int64)))

    runs = [tested(0.4, 0.3, 0.9, 0.0, 0.2), tested(0.0, 0.3, 0.0, 0.05, 0.3)]
    assert common_mistakes(runs).tolist() == [3, 0, 4, 1]


@pytest.mark.parametrize("labels", [LABELS[::-1].copy(), LABELS[:10]])
def test_compare_refuses_different_images(
    program: Program, runs: list[Path], tmp_path: Path, labels: np.ndarray
) -> None:
    other = make_run(tmp_path / "other", dataset="drawn", n=len(labels))
    write_predictions(other, np.eye(10, dtype=np.float32)[labels], labels)
    status, output = program(compare, runs[0], other)
    assert status == 1
    assert "different images" in output


def test_compare_refuses_one_run(program: Program, runs: list[Path]) -> None:
    assert program(compare, runs[0])[0] == 1
