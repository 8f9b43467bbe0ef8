"""What the callback shows in TensorBoard and other loggers, and how often it plots."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import Program
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from fmnist_lightning.data.sets.drawn import DRAWN
from fmnist_lightning.metrics import METRIC_NAMES, Outputs
from fmnist_lightning.report import logged_plots
from fmnist_lightning.report.logged_plots import ValidationPlots, add_figure, first_kernels
from fmnist_lightning.runs.folders import REPORT
from fmnist_lightning.training.train import train

PLOTS = {
    *("train/first_batch", "val/filters", "val/confusion", "val/roc", "val/precision_recall"),
    *("val/reliability", "val/worst_mistakes"),
}
SCALARS = {f"{stage}/{name}" for stage in ("val", "test") for name in (*METRIC_NAMES, "loss")}
SCALARS |= {"train/loss", "train/accuracy", "train/images_per_second", "train/lr"}
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
    # TensorBoard shows the first five metrics, and the five options that differ, in alphabetical order.
    names = [info.name.tag for info in experiment.metric_infos]
    assert names[:2] == ["val/accuracy", "test/accuracy"]
    assert set(names) == {f"{stage}/{name}" for stage in ("val", "test") for name in METRIC_NAMES}
    shown = {info.name for info in experiment.hparam_infos if info.differs}
    assert shown == {"model", "optimizer", "lr", "schedule", "batch_size"}
    options = HParamsPluginData.FromString(written["_hparams_/session_start_info"]).session_start_info.hparams
    assert {"batch_size", "max_epochs", "model", "seed", "dataset"} < set(options)
    assert (options["lr"].number_value, options["flip"].string_value) == (0.003, "false")


@pytest.mark.usefixtures("small_drawn", "drawing")
def test_plots_survive_a_resume_of_a_complete_run(program: Program, plotted_once: Path, tmp_path: Path) -> None:
    """It has no step left, and so would not plot them again."""
    run = Path(shutil.copytree(plotted_once, tmp_path / "version_0"))
    before = steps_of_plots(run)
    status, output = program(train, "--resume", run)
    assert status == 0, output
    assert str(run / REPORT) in output
    assert "more than one graph" not in output  # TensorBoard's warning: the run writes its graph again
    assert steps_of_plots(run) == before  # a purged plot would leave its name, with no step


@pytest.mark.usefixtures("drawing")
@pytest.mark.parametrize(("seconds", "plotted"), [(51.0, 2), (49.0, 0)])
def test_plots_take_at_most_their_share_of_the_time(
    monkeypatch: pytest.MonkeyPatch, seconds: float, plotted: int
) -> None:
    """Two validations, each so many seconds after the last plots, which took one second."""
    drawn: list[Any] = []
    monkeypatch.setattr(logged_plots.time, "perf_counter", lambda: 1000.0)
    monkeypatch.setattr(logged_plots, "picture_loggers", lambda trainer: [object()])
    monkeypatch.setattr(logged_plots, "draw", lambda *values: drawn.append(values))
    callback = ValidationPlots()
    module: Any = SimpleNamespace(net=torch.nn.Conv2d(1, 2, 3))
    for sanity_checking in (True, False, False):
        trainer: Any = SimpleNamespace(sanity_checking=sanity_checking)
        callback.since, callback.seconds = 1000.0 - seconds, 1.0
        callback.on_validation_epoch_end(trainer, module)
        callback.on_validation_end(trainer, module)
    assert len(drawn) == plotted
    callback.on_train_end(trainer, module)
    assert len(drawn) == (plotted or 1)  # the last validation, if it is not plotted yet


def trainer_with(*loggers: Logger, **splits: Any) -> Any:
    """A trainer after six steps, on rank 0."""
    datamodule = SimpleNamespace(source=DRAWN, splits=splits)
    return SimpleNamespace(loggers=list(loggers), is_global_zero=True, global_step=6, datamodule=datamodule)


def small_figure() -> Figure:
    return Figure(figsize=(2, 1))


def check_shown(path: Path) -> None:
    """A PNG file of `small_figure`, with the mark of the stand-in."""
    with Image.open(path) as picture:
        assert picture.size == (300, 150)
        assert picture.convert("L").getextrema()[0] < 128


def test_add_figure_needs_no_package_of_other_loggers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, package, None)  # importing it raises ImportError
    loggers = TensorBoardLogger(tmp_path, name="", version="run"), CSVLogger(tmp_path)
    add_figure(trainer_with(*loggers), "val/confusion", small_figure())
    loggers[0].experiment.close()
    assert steps_of_plots(tmp_path / "run") == {"val/confusion": [5]}


def test_add_figure_reaches_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    for name in ("DIR", "CACHE_DIR", "DATA_DIR", "CONFIG_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    add_figure(trainer_with(logger), "val/confusion", small_figure())
    logger.experiment.finish()
    [path] = tmp_path.glob("wandb/offline-run-*/files/media/images/val/confusion_*.png")
    check_shown(path)
    [database] = tmp_path.glob("wandb/offline-run-*/*.wandb")
    inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(database)]
    lines = subprocess.run(inspect, capture_output=True, check=True, text=True).stdout.splitlines()
    [logged] = [record["history"]["item"] for record in map(json.loads, lines) if record["type"] == "history"]
    assert logged["val/confusion.filenames"] == [f"media/images/val/{path.name}"]
    assert logged["trainer/global_step"] == 5


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside of MLflow
def test_add_figure_reaches_mlflow(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    database = f"sqlite:///{tmp_path / 'mlflow.db'}"
    logger = MLFlowLogger(tracking_uri=database, artifact_location=str(tmp_path / "artifacts"))
    add_figure(trainer_with(logger), "val/confusion", small_figure())
    client = mlflow.MlflowClient(database)
    [image] = [one.path for one in client.list_artifacts(logger.run_id, "images") if one.path.endswith(".png")]
    assert image.startswith("images/val~confusion+step+5+")
    check_shown(Path(client.download_artifacts(logger.run_id, image, str(tmp_path))))


@pytest.mark.parametrize("channels", [1, 3])
def test_first_kernels_are_those_of_a_convolution(channels: int) -> None:
    nn = torch.nn
    net = nn.Sequential(nn.Linear(2, 2), nn.Conv2d(channels, 4, 5), nn.Conv2d(4, 2, 3))
    assert (first_kernels(net) == net[1].weight.detach().numpy()).all()
    assert first_kernels(net[:1]) is None


def test_draw_takes_limited_validations_and_nets_without_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of eight images, the validation saw two. It took both for class 0."""
    images = torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1).expand(8, 3, 4, 4)
    shown: dict[str, Figure] = {}
    monkeypatch.setattr(logged_plots, "add_figure", lambda trainer, name, figure: shown.update({name: figure}))
    outputs = Outputs(torch.eye(10)[[0, 0]], torch.tensor([1, 2]), torch.tensor([5, 7]))
    module = SimpleNamespace(val_metrics=SimpleNamespace(outputs=outputs))
    logged_plots.draw(trainer_with(val=SimpleNamespace(images=images)), module, None)
    assert shown.keys() == PLOTS - {"train/first_batch", "val/filters"}
    grid = np.asarray(shown["val/worst_mistakes"].axes[0].images[0].get_array())
    assert sorted(set(grid.flat)) == [5, 7, 255]
