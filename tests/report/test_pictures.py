"""What the callback draws for TensorBoard, and how often."""

from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from conftest import Program, small_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fmnist_lightning.report import tensorboard as pictures
from fmnist_lightning.training.train import train

DRAWN = {
    "train/first batch",
    "filters of the first layer",
    "val/confusion matrix, by row",
    "val/confusion matrix, images",
    "val/ROC",
    "val/precision and recall",
    "val/reliability",
    "val/highest loss",
}


def events(run: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(run), size_guidance={"images": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator


def steps_of_images(run: Path) -> dict[str, list[int]]:
    found = events(run)
    return {tag: [image.step for image in found.Images(tag)] for tag in found.Tags()["images"]}


@pytest.mark.usefixtures("small_drawn", "drawing")
def test_the_last_validation_is_drawn_once_and_the_sanity_check_never(program: Program, tmp_path: Path) -> None:
    run, _ = small_run(program, tmp_path, "--test", "false")
    last = 2 * 11 - 1  # the last step of two epochs of 540 images in batches of 50
    assert last == events(run).Scalars("val/accuracy")[-1].step
    assert steps_of_images(run) == {tag: [0 if tag == "train/first batch" else last] for tag in DRAWN}


@pytest.mark.usefixtures("small_drawn", "drawing")
def test_each_validation_is_drawn_where_time_allows(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "EXPECTED_SECONDS", 0.0)
    monkeypatch.setattr(pictures, "SHARE_OF_TIME", 1000.0)
    run, _ = small_run(program, tmp_path, "--test", "false")
    assert [image.step for image in events(run).Images("val/ROC")] == [10, 21]


@pytest.mark.usefixtures("small_drawn", "drawing")
def test_a_complete_run_that_is_started_again_keeps_its_pictures(program: Program, tmp_path: Path) -> None:
    """It has no step to go on with, and would not draw them anew."""
    run, _ = small_run(program, tmp_path, "--max_epochs", 1)
    before = steps_of_images(run)
    assert set(before) == DRAWN
    status, output = program(train, "--resume", run)
    assert status == 0, output
    assert steps_of_images(run) == before  # a purged picture leaves its name, with no step


@pytest.mark.parametrize(("seconds", "drawn"), [(51.0, True), (49.0, False)])
def test_drawing_takes_at_most_its_share_of_the_time(
    monkeypatch: pytest.MonkeyPatch, seconds: float, drawn: bool
) -> None:
    monkeypatch.setattr(pictures.time, "perf_counter", lambda: 1000.0 + seconds)
    callback = pictures.Pictures()
    callback.since, callback.seconds = 1000.0, 1.0
    assert callback.affordable() is drawn


@pytest.mark.usefixtures("small_drawn", "drawing")
def test_tables_of_classes_and_environment_are_text(program: Program, tmp_path: Path) -> None:
    run, _ = small_run(program, tmp_path, "--test", "false")
    found = events(run)
    [classes] = found.Tensors("val/classes/text_summary")
    table = classes.tensor_proto.string_val[0].decode()
    assert "| T-shirt/top |" in table
    assert table.count("\n") == 11
    [environment] = found.Tensors("environment/text_summary")
    assert "| torch |" in environment.tensor_proto.string_val[0].decode()


@pytest.mark.usefixtures("small_drawn", "drawing")
def test_no_figure_stays_open(program: Program, tmp_path: Path) -> None:
    small_run(program, tmp_path, "--test", "false")
    assert plt.get_fignums() == []
