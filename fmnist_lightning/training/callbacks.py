"""What a training shows and records, by callbacks. Those that make it resumable are in resume.py."""

import csv
import io
import sys
import time
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import (
    Callback,
    ModelSummary,
    Timer,
    TQDMProgressBar,
    WeightAveraging,
)
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.tensorboard.summary import hparams

from fmnist_lightning.data.batches import Batch
from fmnist_lightning.metrics import METRIC_NAMES, EpochMetrics
from fmnist_lightning.report.console import epoch_line
from fmnist_lightning.report.logged_plots import ValidationPlots
from fmnist_lightning.runs.environment import environment, now
from fmnist_lightning.runs.files import atomic_write, write_text
from fmnist_lightning.runs.folders import CHECKPOINTS, HISTORY, LAST, PREDICTIONS
from fmnist_lightning.runs.options import TrainOptions
from fmnist_lightning.training.resume import (
    Patience,
    RandomState,
    RunCheckpoint,
    SaveInEpochs,
    StepLimit,
    StopOnNonFinite,
)

LOGGED = ("train/loss", "train/accuracy", "val/loss", *(f"val/{name}" for name in METRIC_NAMES))
COLUMNS = ("epoch", "step", *LOGGED, "lr", "images_per_second")  # of metrics.csv
# TensorBoard's page HPARAMS shows five options until the user ticks others.
SHOWN_OPTIONS = ("model", "optimizer", "lr", "schedule", "batch_size")
BAR_SECONDS = 0.2  # between two looks at the latest batches, each of which waits for the GPU
BAR_BATCHES = 10  # the latest batches, whose loss and accuracy the bar shows
LONGEST_TITLE = 36  # characters in the bar


def run_callbacks(run: Path, options: TrainOptions, device: torch.device, validates: bool) -> list[Callback]:
    """The callbacks of a training that is recorded in the folder `run`; `validates` if there are validation images."""
    folder = run / CHECKPOINTS
    # As text: Lightning saves it in each checkpoint, and a safe reader refuses a `Path`.
    where: dict[str, Any] = {"dirpath": str(folder), "enable_version_counter": False}
    best = RunCheckpoint(**where, filename="best", monitor="val/accuracy", mode="max")
    loggers = options.logger.split(",")
    return [
        StepLimit(),
        StopOnNonFinite(),
        RandomState(options.seed),
        Timer(),
        Provenance(),
        Throughput(),
        *([TensorBoardPages()] if "tensorboard" in loggers else []),
        *([Compilation()] if options.compile else []),
        Predictions(run / PREDICTIONS),
        *display_callbacks(run / HISTORY if "csv" in loggers else None),
        ValidationPlots(),
        *([moving_average(options.ema, device)] if options.ema else []),
        *([Patience("val/accuracy", mode="max", patience=options.patience)] if options.patience else []),
        SaveInEpochs(folder / LAST, options.checkpoint_every_minutes),
        *([best] if validates else []),
        # Not `save_last` of `best`: Lightning 2.6 then skips the epochs that are not the best so far.
        RunCheckpoint(**where, filename=Path(LAST).stem),
    ]


def display_callbacks(history: Path | None = None) -> list[Callback]:
    # Lightning would choose a summary by whether `rich` is installed; this one looks the same everywhere.
    return [NetSummary(), *([ProgressBar()] if has_bar() else []), EpochLines(history)]


def has_bar() -> bool:
    """Whether standard output shows a progress bar: a terminal, or a notebook in which ipywidgets is imported."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    in_notebook = shell is not None and "IPKernelApp" in shell.config and "ipywidgets" in sys.modules
    return in_notebook or (sys.stdout is not None and sys.stdout.isatty())


def moving_average(decay: float, device: torch.device) -> WeightAveraging:
    """An exponential moving average of the weights, which validation, checkpoints and test use.

    Lightning's `EMAWeightAveraging` averages tensor by tensor, not all in one call, and its last bits differ. Without
    `device`, Lightning 2.6 keeps the average on the CPU, and each step copies all weights from the GPU.
    """
    return WeightAveraging(device, multi_avg_fn=get_ema_multi_avg_fn(decay))


class NoProfiler(PassThroughProfiler):
    """No profile; Lightning's own makes a context for each hook of each callback, 0.2 ms a step."""

    nothing = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        return self.nothing


class Throughput(Callback):
    """Logs train/images_per_second of each epoch's training steps.

    Lightning's ThroughputMonitor waits for the GPU at every batch; this one waits twice an epoch.
    """

    def clock(self, trainer: L.Trainer) -> float:
        """Seconds, read once the device has finished all steps."""
        if trainer.strategy.root_device.type != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter()

    def begin(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.images = 0
        self.start = self.clock(trainer)

    # Both: Lightning does not call on_train_epoch_start if it resumes in the middle of an epoch.
    on_train_start = on_train_epoch_start = begin

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        batch = args[1]
        self.images += batch.total if isinstance(batch, Batch) else len(batch[1]) * trainer.world_size
        if trainer.is_last_batch:
            # Not in on_train_epoch_end, which Lightning calls after it saves: see Classifier.training_step.
            rate = self.images / (self.clock(trainer) - self.start)
            pl_module.log("train/images_per_second", rate, on_step=True, on_epoch=False)


class NetSummary(ModelSummary):
    """Lightning's summary of the model, in 80 columns: without metrics, which have no weights, and their mode."""

    @staticmethod
    def summarize(summary_data: list[tuple[str, list[str]]], *args: Any, **kwargs: Any) -> None:
        rows = [row for row, kind in enumerate(dict(summary_data)["Type"]) if kind != EpochMetrics.__name__]
        columns = [(name, [cells[row] for row in rows]) for name, cells in summary_data if name != "Mode"]
        ModelSummary.summarize(columns, *args, **kwargs)


class Provenance(Callback):
    """Records the data set, the code and the machine of the training in each checkpoint.

    If a resumed run's earlier parts were trained elsewhere, it keeps their records too.
    """

    def __init__(self) -> None:
        self.earlier: list[dict[str, Any]] = []

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.earlier = [*checkpoint.get("earlier_environments", []), checkpoint.get("environment", {})]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.environment = {**environment(trainer.strategy.root_device), "processes": trainer.world_size}
        self.earlier = [one for one in self.earlier if one != self.environment]

    def on_save_checkpoint(self, trainer: Any, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["data"] = trainer.datamodule.source.as_plain()
        checkpoint["split"] = trainer.datamodule.split_record
        checkpoint["environment"] = self.environment
        checkpoint["saved_at"] = now()
        checkpoint["earlier_environments"] = self.earlier


class Compilation(Callback):
    """Compiles the net in place, so that the names in its state stay.

    Not earlier: the model summary would compile it for a batch of one image. Each shape of a batch gets kernels of its
    own, whatever was compiled before, so that a resumed run computes with the same ones.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        pl_module.net.compile(dynamic=False)


class TensorBoardPages(Callback):
    """Writes the graph of the model, the run's options and the names of its metrics for TensorBoard's pages.

    Lightning's `log_hyperparams` also writes values for the metrics, which would appear in their curves.
    """

    @rank_zero_only
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        [logger] = [one for one in trainer.loggers if isinstance(one, TensorBoardLogger)]
        logger.log_graph(pl_module)
        metrics = {f"{stage}/{name}": 0.0 for name in METRIC_NAMES for stage in ("val", "test")}
        plain = (int, float, str)  # it would show true as 1
        given = logger.hparams.items()
        options = {name: value if type(value) in plain else str(value).lower() for name, value in given}
        experiment, session_start, _ = hparams(options, metrics)  # the third says that the run has ended
        # It orders options by whether they differ between runs, by what the first run says, and then by name.
        content = experiment.value[0].metadata.plugin_data
        page = HParamsPluginData.FromString(content.content)
        for option in page.experiment.hparam_infos:
            option.differs = option.name in SHOWN_OPTIONS
        content.content = page.SerializeToString()
        for summary in (experiment, session_start):
            logger.experiment.file_writer.add_summary(summary)


class ProgressBar(TQDMProgressBar):
    """One bar for training, validation and test, with loss and accuracy of the latest training batches.

    Lightning shows a validation in a second line, which flickers with each batch, and counts a resumed epoch from 0.
    """

    BAR_FORMAT = "{desc}{percentage:3.0f}% |{bar}| {remaining}{postfix}"

    def init_train_tqdm(self) -> Any:
        bar: Any = super().init_train_tqdm()
        bar.leave = False  # the lines of the epochs stay
        return bar

    @property
    def train_description(self) -> str:
        title = cast(Any, self.trainer).datamodule.source.title
        return title if len(title) <= LONGEST_TITLE else f"{title[: LONGEST_TITLE - 1]}…"

    def begin(self, stage: str, total: int | float, done: int = 0) -> None:
        """Begin a stage of `total` batches, `done` of which an earlier process has done."""
        bar = self.train_progress_bar
        bar.set_description(self.train_description + stage, refresh=False)
        bar.set_postfix_str("", refresh=False)
        bar.initial = 0
        bar.reset(total)
        bar.n = bar.initial = done
        bar.refresh()
        self.next_look = 0.0

    def begin_epoch(self, trainer: L.Trainer, done: int = 0) -> None:
        total = trainer.num_training_batches
        if trainer.max_steps > 0:
            steps = trainer.max_steps - trainer.global_step
            total = min(total, done + steps * trainer.accumulate_grad_batches)
        self.begin(f" {trainer.current_epoch + 1}/{trainer.max_epochs}", total, done)

    def is_due(self, done: int) -> bool:
        """Whether to show, BAR_SECONDS after the last time or at the end, that `done` batches of the stage are done."""
        now = time.monotonic()
        if self.is_disabled or (now < self.next_look and done != self.train_progress_bar.total):
            return False
        self.next_look = now + BAR_SECONDS
        self.train_progress_bar.n = done
        return True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        # Lightning does not call on_train_epoch_start if it resumes in the middle of an epoch.
        if done := int((trainer.fit_loop.batch_idx + 1) % trainer.num_training_batches):
            self.begin_epoch(trainer, done)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.begin_epoch(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not self.is_due(batch_idx + 1):
            return
        bar, metrics = self.train_progress_bar, pl_module.train_metrics
        if metrics.labels:
            logits, labels = (torch.cat(list(part[-BAR_BATCHES:])) for part in (metrics.logits, metrics.labels))
            loss, accuracy = F.cross_entropy(logits, labels), (logits.argmax(dim=1) == labels).float().mean()
            bar.set_postfix_str(f"loss {loss.item():.3f}, acc {accuracy.item():.1%}", refresh=False)
        bar.refresh()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            stage = f" {trainer.current_epoch + 1}/{trainer.max_epochs}, validation"
            self.begin(stage, sum(cast(Any, trainer.num_val_batches)))

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if not trainer.sanity_checking and self.is_due(args[2] + 1):
            self.train_progress_bar.refresh()

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.train_progress_bar = self.init_train_tqdm()
        self.begin(", test", sum(cast(Any, trainer.num_test_batches)))

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if self.is_due(args[2] + 1):
            self.train_progress_bar.refresh()

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.train_progress_bar.close()

    def unseen(self, *_: Any) -> None:
        """Show nothing more: the line of the epoch has its metrics, and the sanity check takes no time."""

    on_sanity_check_start = on_sanity_check_end = on_train_epoch_end = unseen  # type: ignore[assignment]
    on_validation_batch_start = on_validation_end = on_test_batch_start = unseen  # type: ignore[assignment]


class EpochLines(Callback):
    """Makes a row of each epoch's metrics, once: a line in the terminal and, with `history`, one in that CSV file.

    Its learning rate is that of the epoch's last step, which it also logs.

    Checkpoints hold the rows, so that a resumed run loses and doubles none. The file is written before the epoch's
    checkpoint, and again when a run resumes, without rows that the checkpoint lacks. Lightning's CSVLogger deletes the
    rows of a resumed run, and writes training and validation of an epoch as two rows.
    """

    def __init__(self, history: Path | None = None) -> None:
        self.history = history
        self.rows: list[dict[str, float]] = []  # by COLUMNS; without those that were not logged

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.write()  # here, and not in on_train_start, which a run that is complete does not reach

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.lr = float(trainer.optimizers[0].param_groups[0]["lr"])  # of a resumed epoch that has no step left

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if trainer.is_last_batch:  # a schedule changes the rate after the step
            self.lr = float(trainer.optimizers[0].param_groups[0]["lr"])
            # LearningRateMonitor would log that of the first step, under a name that depends on the optimizer.
            pl_module.log("train/lr", self.lr, on_step=True, on_epoch=False)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_last_batch:  # the epoch ended in its middle, as with --max_steps
            return
        logged = {name: float(trainer.callback_metrics[name]) for name in LOGGED if name in trainer.callback_metrics}
        rate = trainer.callback_metrics.get("train/images_per_second")
        row = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            **logged,
            "lr": self.lr,
            **({} if rate is None else {"images_per_second": float(rate)}),
        }
        best = max((earlier.get("val/accuracy", 0.0) for earlier in self.rows), default=-1.0)
        self.rows.append(row)
        self.write()
        self.show(epoch_line(row, int(trainer.max_epochs or 0), row.get("val/accuracy", -1.0) > best), trainer)

    @rank_zero_only
    def write(self) -> None:
        if self.history:
            text = io.StringIO()
            writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
            write_text(self.history, text.getvalue(), new_folder=False)

    @rank_zero_only
    def show(self, line: str, trainer: L.Trainer) -> None:
        """Print above the progress bar, if there is one."""
        with suppress(BrokenPipeError):  # a Ctrl-C may end the reader of a pipe before the epoch is saved
            if trainer.progress_bar_callback:
                trainer.progress_bar_callback.print(line)
            else:
                print(line, flush=True)


class Predictions(Callback):
    """Writes the test loop's predictions as `.npz`, in file order.

    `probs` (n, classes) float32, `labels` (n,) int64, and `dataset`, a name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @rank_zero_only
    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        logits, labels, _ = pl_module.test_metrics.outputs
        probs = logits.softmax(dim=1).float().cpu().numpy()
        with atomic_write(self.path, new_folder=False) as file:
            np.savez(file, probs=probs, labels=labels.cpu().numpy(), dataset=trainer.datamodule.source.name)
