"""The test loop alone. Heavy imports stand inside the functions, so that `--help` answers at once."""

import contextlib
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from jsonargparse.typing import PositiveInt

from fmnist_lightning.cli import LOG_DIR, Accelerator, Precision, Strategy, checked_options
from fmnist_lightning.errors import UserError
from fmnist_lightning.files import sweep
from fmnist_lightning.interrupts import advising
from fmnist_lightning.launching import launch, processes_to_launch
from fmnist_lightning.runs import (
    CHECKPOINTS,
    CONFIG,
    DATA_OPTIONS,
    DEVICE_OPTIONS,
    LAST,
    METRICS,
    MODULE_OPTIONS,
    PREDICTIONS,
    REPORT,
    REPORT_PICTURES,
    alone_testing,
    explaining_faults,
    find_checkpoint,
    find_run,
    read_config,
    testing_command,
    write_metrics,
)

if TYPE_CHECKING:
    import lightning as L

    from fmnist_lightning.checkpoint import TrainingRecord
    from fmnist_lightning.datamodule import FashionMNISTDataModule
    from fmnist_lightning.devices import Devices
    from fmnist_lightning.module import Answers, Classifier


def evaluate(
    *,
    run: str = "last",
    ckpt: str | None = None,
    data_dir: str | None = None,
    batch_size: PositiveInt | None = None,
    accelerator: Accelerator = "auto",
    devices: int | str = 1,
    num_nodes: PositiveInt = 1,
    strategy: Strategy = "auto",
    precision: Precision | None = None,
    tta: bool = False,
    log_dir: str = LOG_DIR,
) -> None:
    """Test a trained run: print its figures beside the original's; write metrics.json, predictions.npz and report.html.

    Args:
        run: Run folder, or last for the newest in the log folder.
        ckpt: best, last, or the path of a checkpoint file, if not the one that the run tests.
        data_dir: Folder of the data, if not where the run found it.
        batch_size: Images in a step, if not the run's. The figures don't depend on it.
        accelerator: Where to compute.
        devices: How many devices of this machine, or which, as Lightning names them. The figures don't depend on it.
        num_nodes: Machines that test together; docs/scale.md says how to start them.
        strategy: ddp, a process for each device; auto, that where there are several.
        precision: Arithmetic, if not the run's.
        tta: Test-time augmentation: average over each image and its mirror image. metrics.json and the report say so.
            For nets that were trained with --flip.
        log_dir: Folder of the run folders version_N.
    """
    if processes := processes_to_launch(accelerator, devices, num_nodes, strategy):
        launch(processes, num_nodes=num_nodes, extra=[f"--run={find_run(run, Path(log_dir))}"])
        return
    folder = find_run(run, Path(log_dir))
    options = tested_options(folder)
    given = {"data_dir": data_dir, "batch_size": batch_size, "precision": precision, "accelerator": accelerator}
    given |= {"devices": devices, "num_nodes": num_nodes, "strategy": strategy}
    options |= {name: value for name, value in given.items() if value is not None}
    find_checkpoint(folder, ckpt)  # or the message that there is none, before the imports
    from fmnist_lightning.console import quiet
    from fmnist_lightning.devices import resolve_devices
    from fmnist_lightning.distributed import joined

    quiet()
    resolved = resolve_devices(**{name: options[name] for name in DEVICE_OPTIONS})
    command = testing_command(folder)
    with joined(resolved.fabric), explaining_faults(folder, command), advising(f"to test it: {command}"):
        test_run(folder, {**options, "precision": resolved.precision}, resolved, ckpt, tta=tta)


def tested_options(run: Path) -> dict[str, Any]:
    """The options of a run that a test has from it.

    Raises UserError where the run's config lacks one, or holds one that a training does not take.
    """
    from fmnist_lightning.training import train

    names = (*DATA_OPTIONS, *MODULE_OPTIONS, "precision")
    config = read_config(run, required=names)
    models = get_args(inspect.signature(train).parameters["model"].annotation)
    if config["model"] not in models:
        raise UserError(f"{run} was trained with the net {config['model']}; this version has {', '.join(models)}")
    options = checked_options(train, {name: config[name] for name in names}, run / CONFIG)
    if options["dataset"] == "auto":
        raise UserError(f"{run / CONFIG} holds dataset auto; expected the one that the run was trained on")
    return options


def test_run(run: Path, options: dict[str, Any], devices: "Devices", ckpt: str | None, *, tta: bool) -> None:
    """A test in this process, one of those that have joined."""
    import lightning as L

    from fmnist_lightning.callbacks import Predictions
    from fmnist_lightning.datamodule import FashionMNISTDataModule
    from fmnist_lightning.fault_tolerance import OwnSignals
    from fmnist_lightning.module import build_classifier

    datamodule = FashionMNISTDataModule(**{name: options[name] for name in DATA_OPTIONS})
    module = build_classifier({name: options[name] for name in MODULE_OPTIONS}, options["precision"])
    trainer = L.Trainer(
        **devices.trainer,
        logger=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        callbacks=[Predictions(run / PREDICTIONS, options["dataset"]), OwnSignals()],
    )
    run_test_loop(trainer, module, datamodule, run, ckpt, tta=tta)


def run_test_loop(
    trainer: "L.Trainer",
    module: "Classifier",
    datamodule: "FashionMNISTDataModule",
    run: Path,
    ckpt: str | None = None,
    *,
    tta: bool = False,
) -> None:
    """Test a checkpoint's weights on the whole test set: metrics.json, table, report, all by the first process.

    The trainer has a `Predictions` callback, which writes predictions.npz. `ckpt` is as `find_checkpoint` takes it.
    Waits while another test of the run is under way. Raises UserError where the checkpoint is damaged or another net's.
    """
    with alone_testing(run) if trainer.is_global_zero else contextlib.nullcontext():
        if trainer.is_global_zero:
            for name in (METRICS, PREDICTIONS, REPORT):
                sweep(run, name)
            sweep(run / REPORT_PICTURES)
        test_checkpoint(trainer, module, datamodule, run, ckpt, tta=tta)


def test_checkpoint(
    trainer: "L.Trainer",
    module: "Classifier",
    datamodule: "FashionMNISTDataModule",
    run: Path,
    ckpt: str | None,
    *,
    tta: bool,
) -> None:
    from fmnist_lightning.checkpoint import load_weights, read_checkpoint, training_record
    from fmnist_lightning.console import result_table
    from fmnist_lightning.distributed import told
    from fmnist_lightning.report import write_report
    from fmnist_lightning.tta import MirrorAveraged, warn_of_one_sided

    # Read by the first process, whose machine may be the only one that has the run folder.
    checkpoint = told(trainer.strategy, lambda: find_checkpoint(run, ckpt))
    content = told(trainer.strategy, lambda: read_checkpoint(checkpoint))
    load_weights(module, content, checkpoint)
    trained = training_record(content)
    if tta:
        module.net = MirrorAveraged(module.net)
        if trainer.is_global_zero:
            warn_of_one_sided(read_config(run))
    [figures] = trainer.test(module, datamodule, verbose=False)
    count = len(datamodule.splits["test"].labels)
    check_counted_once(module.answers["test"], count)
    if trainer.is_global_zero:
        metrics = test_record(trainer, module, datamodule, run, checkpoint, trained, figures) | {"tta": tta}
        write_metrics(run, metrics)
        print(f"\n{result_table(metrics)}\nwritten: {run}", flush=True)
        # Last: what goes wrong in it costs neither figures nor predictions.
        print(f"report: {write_report(run, datamodule.splits['test'].images)}", flush=True)


def check_counted_once(answers: "Answers", count: int) -> None:
    """Raise RuntimeError where the figures are not those of each of `count` images, counted once."""
    from fmnist_lightning.analysis import confusion_matrix

    probs, labels = (part.cpu().numpy() for part in (answers.logits.softmax(dim=1).float(), answers.labels))
    counted, different = int(confusion_matrix(probs, labels).sum()), len(answers.indices.unique())
    if not counted == different == count:
        raise RuntimeError(
            f"the figures are of {counted:,} images, {different:,} of them different; expected {count:,}"
        )


def test_record(
    trainer: "L.Trainer",
    module: "Classifier",
    datamodule: "FashionMNISTDataModule",
    run: Path,
    checkpoint: Path,
    trained: "TrainingRecord",
    figures: Mapping[str, float],
) -> dict[str, Any]:
    """What metrics.json says of a test: its figures, and the training that they are of."""
    from fmnist_lightning.checkpoint import read_checkpoint, training_record
    from fmnist_lightning.datamodule import CUT_SEED
    from fmnist_lightning.environment import environment
    from fmnist_lightning.metrics import METRIC_NAMES, wilson_interval

    checkpoint_epoch = trained.epochs
    last = run / CHECKPOINTS / LAST
    if last.exists():
        try:
            trained = training_record(read_checkpoint(last))
        except UserError as error:
            print(f"{error}; time and epochs of the training are told as of {checkpoint}", file=sys.stderr)
    here = {**environment(trainer.strategy.root_device), "processes": trainer.world_size}
    count = len(datamodule.splits["test"].labels)
    return {
        "dataset": datamodule.dataset,
        "split": "test",
        "n": count,
        **{name: figures[f"test/{name}"] for name in METRIC_NAMES},
        "accuracy_95_interval": wilson_interval(figures["test/accuracy"], count),
        "loss": figures["test/loss"],
        "checkpoint": checkpoint.stem,
        "checkpoint_epoch": checkpoint_epoch,
        "seed": datamodule.seed,
        "training_seconds": trained.seconds,
        "epochs": trained.epochs,
        "batch_size": trained.batch_size,
        "validation": {"fraction": datamodule.val_fraction, "seed": CUT_SEED},
        "model": module.hparams["model"],
        "parameters": sum(parameter.numel() for parameter in module.net.parameters()),
        **({"teacher": trained.teacher} if trained.teacher else {}),
        "arithmetic": trainer.precision,
        **(trained.environment or here),
        "earlier_environments": trained.earlier_environments,
        "tested_with": here,
    }
