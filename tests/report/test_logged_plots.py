"""What the callback shows in TensorBoard, and how often it plots."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
from conftest import Program
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from fmnist_lightning.metrics import METRIC_NAMES
from fmnist_lightning.report import tensorboard
from fmnist_lightning.report.tensorboard import TensorBoardPlots
from fmnist_lightning.runs.folders import REPORT
from fmnist_lightning.training.train import train

PLOTS = {
    *("train/first_batch", "filters", "val/confusion", "val/roc", "val/precision_recall"),
    *("val/reliability", "val/worst_mistakes"),
}
SCALARS = {f"{stage}/{name}" for stage in ("val", "test") for name in (*METRIC_NAMES, "loss")}
SCALARS |= {"train/loss", "train/accuracy", "train/images_per_second", "lr-KerasAdam", "epoch"}
LAST_STEP = 2 * 11 - 1  # of two epochs of 540 images in batches of 50


def events(run: Path) -> EventAccumulator:
    return EventAccumulator(str(run), size_guidance={"images": 0, "tensors": 0}).Reload()


def steps_of_plots(run: Path) -> dict[str, list[int]]:
    found = events(run)
    return {tag: [image.step for image in found.Images(tag)] for tag in found.Tags()["images"]}


def test_plots_show_the_last_validation_once(plotted_once: Path) -> None:
    """Training is too short for the first validation, and the sanity check is never plotted."""
    assert steps_of_plots(plotted_once) == {tag: [0 if tag == "train/first_batch" else LAST_STEP] for tag in PLOTS}
    assert plt.get_fignums() == []


def test_events_hold_scalars_graph_and_tables(plotted_once: Path) -> None:
    found = events(plotted_once)
    assert set(found.Tags()["scalars"]) == SCALARS  # and so no hp_metric
    assert [len(found.Scalars(name)) for name in ("train/loss", "val/accuracy", "test/accuracy")] == [2, 2, 1]
    assert found.Scalars("val/accuracy")[-1].step == LAST_STEP
    assert found.Scalars("train/images_per_second")[-1].value > 0
    assert 0 < found.Scalars("lr-KerasAdam")[-1].value < 3e-3  # one_cycle ends low
    assert "Conv2d" in str(found.Graph())
    [classes] = found.Tensors("val/classes/text_summary")
    table = classes.tensor_proto.string_val[0].decode()
    assert "| T-shirt/top |" in table
    assert table.count("\n") == 11
    [environment] = found.Tensors("environment/text_summary")
    assert "| versions torch " in environment.tensor_proto.string_val[0].decode()


def test_hparams_page_shows_options_and_metrics(plotted_once: Path) -> None:
    written = events(plotted_once).PluginTagToContent("hparams")
    # A status that is written at the start would be a guess.
    assert set(written) == {"_hparams_/experiment", "_hparams_/session_start_info"}
    experiment = HParamsPluginData.FromString(written["_hparams_/experiment"]).experiment
    names = {info.name.tag for info in experiment.metric_infos}
    assert names == {f"{stage}/{name}" for stage in ("val", "test") for name in METRIC_NAMES}
    options = HParamsPluginData.FromString(written["_hparams_/session_start_info"]).session_start_info.hparams
    assert {"batch_size", "max_epochs", "model", "seed", "dataset"} < set(options)
    assert options["lr"].number_value == 0.003


@pytest.mark.usefixtures("small_drawn", "drawing")
def test_plots_survive_a_resume_of_a_complete_run(program: Program, plotted_once: Path, tmp_path: Path) -> None:
    """It has no step left, and so would not plot them again."""
    run = Path(shutil.copytree(plotted_once, tmp_path / "version_0"))
    before = steps_of_plots(run)
    status, output = program(train, "--resume", run)
    assert status == 0, output
    assert f"report: {run / REPORT}" in output
    assert "more than one graph" not in output  # TensorBoard's warning: the run writes its graph again
    assert steps_of_plots(run) == before  # a purged plot would leave its name, with no step


@pytest.mark.usefixtures("drawing")
@pytest.mark.parametrize(("seconds", "plotted"), [(51.0, 2), (49.0, 0)])
def test_plots_take_at_most_their_share_of_the_time(
    monkeypatch: pytest.MonkeyPatch, seconds: float, plotted: int
) -> None:
    """Two validations, each so many seconds after the last plots, which took one second."""
    drawn: list[Any] = []
    monkeypatch.setattr(tensorboard.time, "perf_counter", lambda: 1000.0)
    monkeypatch.setattr(tensorboard, "writer_of", lambda trainer: object())
    monkeypatch.setattr(tensorboard, "draw", lambda *values: drawn.append(values))
    callback = TensorBoardPlots()
    module: Any = SimpleNamespace(net=torch.nn.Conv2d(1, 2, 3))
    for sanity_checking in (True, False, False):
        trainer: Any = SimpleNamespace(sanity_checking=sanity_checking)
        callback.since, callback.seconds = 1000.0 - seconds, 1.0
        callback.on_validation_epoch_end(trainer, module)
        callback.on_validation_end(trainer, module)
    assert len(drawn) == plotted
    callback.on_train_end(trainer, module)
    assert len(drawn) == (plotted or 1)  # the last validation, if it is not plotted yet
