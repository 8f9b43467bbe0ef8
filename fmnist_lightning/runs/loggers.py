"""The loggers of a run: TensorBoard, W&B, MLflow. metrics.csv is written by a callback, `EpochLines`."""

import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread

from fmnist_lightning.cli.shell import require
from fmnist_lightning.errors import UserError
from fmnist_lightning.runs.files import write_text
from fmnist_lightning.runs.folders import LOGGERS
from fmnist_lightning.runs.options import TrainOptions

PROJECT = "fmnist-lightning"  # in W&B and MLflow
EVENTS = re.compile(r"(events\.out\.tfevents\.)(\d{10})(\..+)")
# Set for one run: by `wandb_run`, and by MLflow's set_tracking_uri. The next run of the process would log there.
CACHE, TRACKING = "WANDB_CACHE_DIR", "MLFLOW_TRACKING_URI"


def check_loggers(options: TrainOptions) -> None:
    """Raise UserError if a logger that the options name is not installed."""
    for name in {"wandb", "mlflow"}.intersection(options.logger.split(",")):
        require([name], f"--logger {name}", name)


@contextmanager
def run_loggers(run: Path, options: TrainOptions, steps: int, rank_zero: bool) -> Iterator[list[Logger]]:
    """The loggers of a run, to resume after `steps`; `csv` is no logger, but the callback `EpochLines`.

    Raises UserError if one of them can't log.
    """
    loggers: list[Logger] = []
    names = options.logger.split(",")
    with restored_environment(CACHE, TRACKING), quiet_writer(), ExitStack() as stack:
        if "tensorboard" in names:
            if rank_zero:
                keep_event_order(run)
            # torch can't trace a compiled model.
            graph = not steps and not options.compile
            loggers.append(
                OwnTensorBoardLogger(
                    run.parent.absolute(),  # it would take ~ for the home
                    name="",
                    version=run.name,
                    log_graph=graph,
                    default_hp_metric=False,
                    purge_step=steps,
                )
            )
        # Other ranks may run on machines that have no run folder.
        if "wandb" in names and rank_zero:
            loggers.append(stack.enter_context(wandb_run(run)))
        if "mlflow" in names and rank_zero:
            loggers.append(stack.enter_context(mlflow_run(run)))
        yield loggers


def keep_event_order(run: Path) -> None:
    """Rename the event files of a resumed run if the next one would not sort behind them.

    TensorBoard reads the files by name, and a name begins with the second in which the file was made. If the clock was
    set back, or within one second, it would read a later part of the curves first and drop the earlier one.
    """
    found = sorted(filter(None, (EVENTS.fullmatch(path.name) for path in run.iterdir())), key=lambda match: match[0])
    if found and int(found[-1][2]) >= int(time.time()):
        for index, match in enumerate(found):
            (run / match[0]).rename(run / f"{match[1]}{index:010d}{match[3]}")


@contextmanager
def quiet_writer() -> Iterator[None]:
    """Print no traceback of TensorBoard's thread: it raises its error again in the next call of its writer."""
    before = threading.excepthook

    def show(error: threading.ExceptHookArgs) -> None:
        if not isinstance(error.thread, _AsyncWriterThread):
            before(error)

    threading.excepthook = show
    try:
        yield
    finally:
        threading.excepthook = before


@contextmanager
def restored_environment(*names: str) -> Iterator[None]:
    """Give these environment variables back their values at the end."""
    before = {name: os.environ[name] for name in names if name in os.environ}
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(before)


@contextmanager
def wandb_run(run: Path) -> Iterator[WandbLogger]:
    """The logger of an open W&B run; a resumed run continues its own."""
    import wandb

    os.environ.setdefault(CACHE, str(run))  # W&B's debug logs would go into the user's home
    logger = WandbLogger(project=PROJECT, name=run.name, save_dir=str(run), id=read_ids(run).get("wandb"))
    logger._wandb_init.pop("anonymous", None)  # Lightning gives it always, and W&B then warns that it has no effect
    try:
        experiment = logger.experiment
    except wandb.errors.Error as error:
        raise UserError(f"cannot log to W&B: {error} (run wandb login, or set WANDB_MODE=offline)") from error
    try:
        write_id(run, "wandb", experiment.id)
        yield logger
    finally:
        # Lightning leaves the run open, and the next training of this process would log into it.
        experiment.finish(exit_code=int(sys.exc_info()[0] is not None))


@contextmanager
def mlflow_run(run: Path) -> Iterator[MLFlowLogger]:
    """The logger of an MLflow run at MLFLOW_TRACKING_URI, or else in a SQLite database beside the runs.

    A resumed run continues its own. Raises UserError if the server or the database fails, now or later.
    """
    import mlflow
    from sqlalchemy import URL
    from sqlalchemy.exc import OperationalError

    logging.getLogger("alembic").setLevel(logging.WARNING)  # lists the tables that it makes
    folder = run.parent.resolve()
    server = os.environ.get(TRACKING)
    # Quoted, since a path may hold ?, # or %. For a plain sqlite:/// MLflow makes the quoted path's folders, too.
    uri = server or URL.create("sqlite+pysqlite", database=str(folder / "mlflow.db")).render_as_string()
    artifacts = None if server else (folder / "mlflow").as_uri()
    try:
        logger = OwnMLFlowLogger(
            PROJECT, run.name, uri, artifact_location=artifacts, run_id=read_ids(run).get("mlflow")
        )
        write_id(run, "mlflow", str(logger.run_id))
    except (mlflow.MlflowException, OperationalError) as error:
        raise mlflow_failed(uri, error) from error
    try:
        yield logger
    except mlflow.MlflowException as error:  # as on a full disk; it wraps the database's errors
        raise mlflow_failed(uri, error) from error


def mlflow_failed(uri: str, error: Exception) -> UserError:
    reason = str(error).partition("\n")[0]  # then follows SQL
    return UserError(f"cannot log to MLflow at {uri}: {reason} (check {TRACKING}, or free space)")


class OwnTensorBoardLogger(TensorBoardLogger):
    """Lightning's TensorBoardLogger, without the epoch that Lightning logs with each metric: its first chart."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics({name: value for name, value in metrics.items() if name != "epoch"}, step)


class OwnMLFlowLogger(MLFlowLogger):
    """Lightning's MLFlowLogger; a resumed run keeps the hyperparameters it began with, which MLflow can't replace."""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any]) -> None:  # type: ignore[override]
        known = self.experiment.get_run(self.run_id).data.params
        super().log_hyperparams({name: value for name, value in params.items() if name not in known})


def read_ids(run: Path) -> dict[str, str]:
    """The ids of the run in W&B and MLflow, by logger."""
    path = run / LOGGERS
    return json.loads(path.read_text()) if path.exists() else {}


def write_id(run: Path, logger: str, identity: str) -> None:
    write_text(run / LOGGERS, json.dumps({**read_ids(run), logger: identity}) + "\n")
