"""What a training logs: metrics.csv, TensorBoard, W&B and MLflow, each read back by its own library."""

import csv
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import SMALL, Program, metrics_of, small_run
from lightning.pytorch.loggers import CSVLogger
from tensorboard.summary.writer import event_file_writer

from fmnist_lightning.errors import UserError
from fmnist_lightning.metrics import METRIC_NAMES
from fmnist_lightning.runs import loggers
from fmnist_lightning.runs.folders import HISTORY
from fmnist_lightning.runs.loggers import check_loggers, run_loggers
from fmnist_lightning.runs.options import TrainOptions
from fmnist_lightning.training.callbacks import COLUMNS, RunCheckpoint
from fmnist_lightning.training.module import Classifier
from fmnist_lightning.training.optim import SCHEDULES
from fmnist_lightning.training.train import train
from tools.torture import read_events

pytestmark = pytest.mark.usefixtures("small_drawn")
LOGGED = {f"train/{name}" for name in ("loss", "accuracy")} | {f"val/{name}" for name in ("loss", *METRIC_NAMES)}


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / HISTORY).open() as file:
        return list(csv.DictReader(file))


def test_history_has_a_row_per_epoch_with_all_columns(plotted_once: Path) -> None:
    """Its values are those in TensorBoard, and the learning rate is that of the epoch's last step."""
    rows, events = rows_of(plotted_once), read_events(plotted_once)
    assert (plotted_once / HISTORY).read_text().startswith(",".join(COLUMNS) + "\n")
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "11"), ("2", "22")]
    for name in LOGGED:
        assert [float(row[name]) for row in rows] == pytest.approx([one.value for one in events.Scalars(name)])
    assert [float(row["images_per_second"]) > 0 for row in rows] == [True, True]
    schedule = SCHEDULES["one_cycle"]
    assert schedule
    optimizer = torch.optim.Adam([torch.zeros(1)], lr=0.003)
    scheduler = schedule(optimizer, 22)
    rates = []
    for _ in range(22):
        rates += scheduler.get_last_lr()
        optimizer.step()
        scheduler.step()
    assert [float(row["lr"]) for row in rows] == [rates[10], rates[21]]
    assert [one.value for one in events.Scalars("train/lr")] == pytest.approx([rates[10], rates[21]])


def test_history_leaves_what_was_not_measured_empty(program: Program, tmp_path: Path) -> None:
    run, _ = small_run(program, tmp_path, "--val_fraction", 0, "--ckpt", "last", "--logger", "csv", "--test", "false")
    assert [row["val/accuracy"] for row in rows_of(run)] == ["", ""]
    assert not list(run.glob("*tfevents*"))
    assert not (run / "hparams.yaml").exists()


@pytest.mark.parametrize("kept", ["", "epoch,step\n1,11\n2,22\n"], ids=["lost", "doubled"])
def test_history_survives_a_kill_between_row_and_checkpoint(
    program: Program, trained: Path, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    """And a file that was lost, or that has a row more than the checkpoint."""
    first = rows_of(trained)
    (trained / HISTORY).write_text(kept)
    seen = []

    def look(*_: Any) -> None:
        seen.append([row["epoch"] for row in rows_of(trained)])
        raise UserError("killed before the checkpoint")

    with monkeypatch.context() as patch:
        patch.setattr(RunCheckpoint, "on_train_epoch_end", look)
        assert program(train, "--resume", trained, "--max_epochs", 2)[0] == 1
    assert seen == [["1", "2"]]  # written before the checkpoint counts
    assert program(train, "--resume", trained, "--max_epochs", 2, "--test", "false")[0] == 0
    assert [row["epoch"] for row in rows_of(trained)] == ["1", "2"]
    assert rows_of(trained)[0] == first[0]


@pytest.mark.parametrize("seconds", [0, -3600, 3600])
def test_curves_are_whole_whatever_the_clock_says(
    program: Program, trained: Path, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    """After two resumes, the second from a checkpoint before the end of the curve."""
    now = time.time()
    [first] = trained.glob("events*")
    first.rename(first.with_name(re.sub(r"\d{10}", f"{int(now):010}", first.name)))
    monkeypatch.setattr("time.time", lambda: now)
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(9))  # sorts behind 10
    before = shutil.copy(trained / "checkpoints" / "last.ckpt", trained / "checkpoints" / "before.ckpt")
    for checkpoint, epochs in ((trained, 2), (before, 3)):
        now += seconds
        assert program(train, "--resume", checkpoint, "--max_epochs", epochs, "--test", "false")[0] == 0
    curve = read_events(trained).Scalars("val/loss")
    assert [one.step for one in curve] == [10, 21, 32]
    assert [one.value for one in curve] == pytest.approx([float(row["val/loss"]) for row in rows_of(trained)])


def test_history_is_cut_to_the_resumed_checkpoint(
    program: Program, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Classifier, "on_train_epoch_start", lambda *_: pytest.fail("trained"))
    (trained / HISTORY).write_text("epoch\n1\n2\n3\n")
    assert program(train, "--resume", trained / "checkpoints" / "best.ckpt", "--test", "false")[0] == 0
    assert [row["epoch"] for row in rows_of(trained)] == ["1"]


def test_csv_logger_of_lightning_would_lose_rows(tmp_path: Path) -> None:
    """The reason not to use it: a run that resumes into its folder has lost them."""
    for epoch in (1, 2):
        logger = CSVLogger(tmp_path, name="", version="")
        if epoch == 2:
            with pytest.warns(UserWarning, match="will be deleted"):
                assert not logger.experiment.metrics
        logger.log_metrics({"train/loss": 1.0}, step=epoch)
        logger.save()
    assert [row["step"] for row in rows_of(tmp_path)] == ["2"]


def test_logger_can_change_when_a_run_resumes(program: Program, trained: Path) -> None:
    """The history then has all epochs, since checkpoints hold its rows."""
    (trained / HISTORY).unlink()
    options = ("--test", "false", "--resume", trained)
    assert program(train, *options, "--max_epochs", 2, "--logger", "tensorboard")[0] == 0
    assert not (trained / HISTORY).exists()
    assert program(train, *options, "--max_epochs", 3, "--logger", "csv")[0] == 0
    assert [row["epoch"] for row in rows_of(trained)] == ["1", "2", "3"]


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home and a working folder in which loggers could leave something."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_", "XDG_"))]:
        monkeypatch.delenv(name)
    return home


def read_wandb(run: Path) -> tuple[set[str], dict[str, Any], list[dict[str, float]]]:
    """Ids, options and logged values in the offline files of a run, in order, by W&B's own reader."""
    ids, config, history = set(), {}, []
    for path in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
        for line in subprocess.run(command, capture_output=True, check=True, text=True).stdout.splitlines():
            record = json.loads(line)
            if record["type"] == "run":
                ids.add(record["run"]["run_id"])
            elif record["type"] == "config":
                config |= record["config"]["update"]
            elif record["type"] == "history":
                history.append(record["history"]["item"])
    return ids, config, history


def test_wandb_run_holds_options_and_metrics_and_continues(
    program: Program, tmp_path: Path, empty_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run, output = small_run(program, tmp_path / "logs", "--logger", "wandb,csv", "--max_epochs", 1, "--lr", 0.002)
    assert "W&B" in output
    assert "anonymous" not in output
    status, output = program(train, "--resume", run, "--max_epochs", 2)
    assert status == 0, output
    assert list(empty_home.iterdir()) == []
    assert list((tmp_path / "logs").iterdir()) == [run]
    ids, config, history = read_wandb(run)
    assert len(ids) == 1
    assert {"lr": 0.002, "dataset": "drawn", "batch_size": 50, "max_epochs": 2}.items() <= config.items()
    for name in LOGGED:
        logged = [row[name] for row in history if name in row]
        assert logged == pytest.approx([float(row[name]) for row in rows_of(run)]), name
    tested = [row["test/accuracy"] for row in history if "test/accuracy" in row]
    assert tested[-1] == pytest.approx(metrics_of(run)["accuracy"])


def log_once(run: Path, names: str) -> None:
    run.mkdir(parents=True)
    with run_loggers(run, TrainOptions(logger=names), 0, rank_zero=True) as [logger]:
        logger.log_metrics({"val/loss": 1.0}, step=0)
        logger.finalize("success")


def test_wandb_runs_of_one_process_are_apart(tmp_path: Path, empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    found = []
    for name in ("one", "two"):
        log_once(tmp_path / name, "wandb")
        assert "WANDB_CACHE_DIR" not in os.environ
        ids, _, history = read_wandb(tmp_path / name)
        assert len(history) == 1
        found += ids
    assert len(set(found)) == 2
    assert list(empty_home.iterdir()) == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_wandb_run_is_closed_if_mlflow_fails(tmp_path: Path, empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    pytest.importorskip("mlflow")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "no-such-scheme://server")
    with pytest.raises(UserError, match="MLflow"):
        log_once(tmp_path / "run", "wandb,mlflow")
    assert read_wandb(tmp_path / "run")[0]  # it was open
    assert wandb.run is None


def test_wandb_without_a_login_is_one_message(
    program: Program, tmp_path: Path, empty_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")

    def init(**_: Any) -> None:
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "init", init)
    status, output = program(train, *SMALL, "--logger", "wandb", "--log_dir", tmp_path / "logs")
    assert (status, "error: cannot log to W&B: No API key configured. (run wandb login" in output) == (1, True), output


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside of MLflow
def test_mlflow_run_holds_options_and_metrics_and_continues(program: Program, tmp_path: Path, empty_home: Path) -> None:
    """A resumed run with more epochs keeps the number that it began with, which MLflow can't replace."""
    mlflow = pytest.importorskip("mlflow")
    logs = tmp_path / "logs"
    run, _ = small_run(program, logs, "--logger", "mlflow,csv", "--max_epochs", 1, "--lr", 0.002)
    status, output = program(train, "--resume", run, "--max_epochs", 2)
    assert status == 0, output
    client = mlflow.MlflowClient(f"sqlite:///{logs / 'mlflow.db'}")
    [found] = client.search_runs([client.get_experiment_by_name(loggers.PROJECT).experiment_id])
    assert (found.info.run_name, found.info.status) == (run.name, "FINISHED")
    wanted = {"lr": "0.002", "dataset": "drawn", "batch_size": "50", "max_epochs": "1"}
    assert wanted.items() <= found.data.params.items()
    for name in LOGGED:
        logged = [one.value for one in client.get_metric_history(found.info.run_id, name)]
        assert logged == pytest.approx([float(row[name]) for row in rows_of(run)]), name
    assert found.data.metrics["test/accuracy"] == pytest.approx(metrics_of(run)["accuracy"])
    assert found.info.artifact_uri.startswith((logs / "mlflow").as_uri())
    assert list(empty_home.iterdir()) == []
    assert {path.name for path in logs.iterdir()} <= {"version_0", "mlflow.db", "mlflow"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("uri", [None, ""])
def test_mlflow_databases_lie_beside_their_runs(
    tmp_path: Path, empty_home: Path, monkeypatch: pytest.MonkeyPatch, uri: str | None
) -> None:
    """Also the second one of a process, since MLflow keeps the address of the first in the environment."""
    mlflow = pytest.importorskip("mlflow")
    if uri is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for logs in (tmp_path / "one", tmp_path / "two"):
        log_once(logs / "version_0", "mlflow")
        assert os.environ.get("MLFLOW_TRACKING_URI") == uri
        client = mlflow.MlflowClient(f"sqlite:///{logs / 'mlflow.db'}")
        experiment = client.get_experiment_by_name(loggers.PROJECT)
        assert experiment.artifact_location == (logs / "mlflow").as_uri()
        assert len(client.search_runs([experiment.experiment_id])) == 1
    assert list(empty_home.iterdir()) == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mlflow_database_lies_in_a_folder_of_any_name(tmp_path: Path, empty_home: Path) -> None:
    pytest.importorskip("mlflow")
    logs = tmp_path / "läufe #1 100% [a] ?x&y='q'"
    for name in ("version_0", "version_1"):
        log_once(logs / name, "mlflow")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", logs.name]
    with sqlite3.connect(f"{logs}/mlflow.db") as database:
        assert database.execute("SELECT name FROM runs").fetchall() == [("version_0",), ("version_1",)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mlflow_server_that_fails_is_one_message(
    program: Program, tmp_path: Path, empty_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "no-such-scheme://server")
    status, output = program(train, *SMALL, "--logger", "mlflow", "--log_dir", tmp_path / "logs")
    assert (status, "cannot log to MLflow at no-such-scheme://server" in output) == (1, True), output


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mlflow_database_on_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setattr(loggers, "OwnMLFlowLogger", lambda *_, **__: SimpleNamespace(run_id="1"))
    with pytest.raises(UserError, match=r"database or disk is full \(") as refused, loggers.mlflow_run(tmp_path):
        raise mlflow.MlflowException("database or disk is full\n[SQL: INSERT]")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_logger_that_is_not_installed_makes_no_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=name):
        check_loggers(TrainOptions(logger=f"csv,{name}"))
    check_loggers(TrainOptions())  # the negative control
