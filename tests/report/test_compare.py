"""Comparing tested runs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Program, metrics_of
from test_page import CROPS, LABELS, make_run, of_other_data, write_predictions

from fmnist_lightning.data.sets.drawn import DRAWN, load_drawn
from fmnist_lightning.report.compare import ComparedRun, common_mistakes, compare
from fmnist_lightning.report.results import Predictions
from fmnist_lightning.runs.folders import write_config, write_metrics
from fmnist_lightning.runs.options import CompareOptions, TrainOptions, as_yaml


def run_with(run: Path, wrong: dict[int, int]) -> Path:
    """A run that predicts a wrong class for the images in `wrong` alone."""
    make_run(run, dataset="drawn")
    write_config(run, as_yaml(TrainOptions(dataset="drawn", precision="32-true")))
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
    assert {
        "| metric | first | second |",
        "| Shirt | 90.00 | 95.00 |",
        "| T-shirt/top and Shirt | 2 | 2 |",
        "| Dress and Coat | 1 | 0 |",
    } < {*rows}
    assert "No run recognizes 2 images; all runs predict the same class for 1 of them." in output
    assert f"{runs[1]}, mirror images averaged" in output
    assert f"{runs[0]}, mirror images averaged" not in output


def test_compare_fits_into_a_terminal(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    compare(CompareOptions(runs=[str(run) for run in runs]))
    lines = capsys.readouterr().out.splitlines()
    assert "Shirt         90.00   95.00" in lines
    assert max(len(line) for line in lines if str(runs[0].parent) not in line) <= 80
    assert not [line for line in lines if "|" in line]


@pytest.mark.usefixtures("small_drawn")
def test_compare_draws_common_mistakes(program: Program, tmp_path: Path) -> None:
    labels = load_drawn("test").labels.numpy()
    runs = [run_with(tmp_path / name, {}) for name in ("first", "second")]
    for run in runs:
        write_predictions(run, np.eye(10, dtype=np.float32)[(labels + (np.arange(200) < 9)) % 10], labels)
    status, output = program(compare, *runs, "--pictures", tmp_path / "common.png")
    assert status == 0, output
    assert (tmp_path / "common.png").read_bytes().startswith(b"\x89PNG")
    status, output = program(compare, *runs, "--pictures", tmp_path)
    assert status == 1
    assert str(tmp_path) in output


@pytest.mark.usefixtures("small_drawn")
def test_compare_draws_no_images_of_another_test(program: Program, runs: list[Path], tmp_path: Path) -> None:
    status, output = program(compare, *runs, "--pictures", tmp_path / "common.png")
    assert status == 1
    assert f"cannot draw images of {runs[0]}" in output
    assert not (tmp_path / "common.png").exists()


def test_compare_names_classes_of_other_data(program: Program, tmp_path: Path) -> None:
    status, output = program(compare, *(of_other_data(tmp_path / name) for name in ("first", "second")))
    assert status == 0, output
    assert output.startswith(f"{CROPS.title}, 200 images")
    assert "| a and $d$ | 50 | 50 |" in " ".join(output.split())
    assert "Fashion" not in output
    assert "Shirt" not in output


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"name": "another", "title": "Another"}, "another"),
        ({"classes": list("abcdefghij")}, "instead of"),
        ({"image_shape": [3, 64, 64], "title": "Moved"}, None),
    ],
)
def test_compare_refuses_other_data(
    program: Program, runs: list[Path], data: dict[str, Any], reason: str | None
) -> None:
    write_metrics(runs[1], metrics_of(runs[1]) | {"data": DRAWN.as_plain() | data})
    status, output = program(compare, *runs)
    assert status == (1 if reason else 0)
    assert (reason or "") in output


def test_common_mistakes_start_with_the_most_confident() -> None:
    def tested(*truth: float) -> ComparedRun:
        """A run that gives these probabilities to the true class, 0, and the rest to class 1."""
        probs = np.zeros((len(truth), 10), np.float32)
        probs[:, 0] = truth
        probs[:, 1] = 1 - probs[:, 0]
        return ComparedRun("run", Path(), DRAWN, {}, Predictions(probs, np.zeros(len(probs), np.int64)))

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


def test_compare_refuses_other_pixels_with_the_same_labels(program: Program, tmp_path: Path) -> None:
    runs = []
    for digest in ("a", "a", "b"):
        runs.append(make_run(tmp_path / f"{len(runs)}", dataset="drawn", n=len(LABELS), images_sha256=digest))
        write_predictions(runs[-1], np.eye(10, dtype=np.float32)[LABELS], LABELS)
    assert program(compare, runs[0], runs[1])[0] == 0  # the negative control
    status, output = program(compare, runs[0], runs[2])
    assert (status, "different images" in output) == (1, True)


def test_compare_refuses_one_run(program: Program, runs: list[Path]) -> None:
    assert program(compare, runs[0])[0] == 1
