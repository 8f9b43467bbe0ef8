"""The test loop alone. Heavy imports stand inside the functions, so that `--help` answers at once."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import PositiveInt

from fmnist_lightning.cli import LOG_DIR
from fmnist_lightning.errors import UserError
from fmnist_lightning.files import sweep
from fmnist_lightning.runs import (
    CHECKPOINTS,
    DATA_OPTIONS,
    LAST,
    METRICS,
    MODULE_OPTIONS,
    PREDICTIONS,
    REPORT,
    REPORT_PICTURES,
    find_checkpoint,
    find_run,
    read_config,
    write_metrics,
)
from fmnist_lightning.training import Accelerator, Precision

if TYPE_CHECKING:
    import lightning as L

    from fmnist_lightning.datamodule import FashionMNISTDataModule
    from fmnist_lightning.module import Classifier


def evaluate(
    *,
    run: str = "last",
    ckpt: str | None = None,
    data_dir: str | None = None,
    batch_size: PositiveInt | None = None,
    accelerator: Accelerator = "auto",
    devices: int | str = 1,
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
        devices: Which device, as Lightning names them.
        precision: Arithmetic, if not the run's.
        tta: Test-time augmentation: average over each image and its mirror image. metrics.json and the report say so.
        log_dir: Folder of the run folders version_N.
    """
    folder = find_run(run, Path(log_dir))
    options = read_config(folder, required=(*DATA_OPTIONS, *MODULE_OPTIONS, "precision"))
    path = find_checkpoint(folder, ckpt)
    given = {"data_dir": data_dir, "batch_size": batch_size, "precision": precision}
    options |= {name: value for name, value in given.items() if value is not None}
    import lightning as L

    from fmnist_lightning.callbacks import Predictions
    from fmnist_lightning.console import quiet
    from fmnist_lightning.datamodule import FashionMNISTDataModule
    from fmnist_lightning.devices import resolve_devices
    from fmnist_lightning.models import MODELS
    from fmnist_lightning.module import Classifier

    quiet()
    options["precision"] = resolve_devices(accelerator, devices, options["precision"])
    if options["model"] not in MODELS:
        raise UserError(f"{folder} was trained with the net {options['model']}; this version has {', '.join(MODELS)}")
    for name in (METRICS, PREDICTIONS, REPORT):
        sweep(folder, name)
    sweep(folder / REPORT_PICTURES)
    datamodule = FashionMNISTDataModule(**{name: options[name] for name in DATA_OPTIONS})
    module = Classifier(**{name: options[name] for name in MODULE_OPTIONS})
    trainer = L.Trainer(
        accelerator=accelerator,
        devices=devices,
        precision=options["precision"],
        logger=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        callbacks=[Predictions(folder / PREDICTIONS, options["dataset"])],
    )
    run_test_loop(trainer, module, datamodule, folder, path, tta=tta)


def run_test_loop(
    trainer: "L.Trainer",
    module: "Classifier",
    datamodule: "FashionMNISTDataModule",
    run: Path,
    checkpoint: Path,
    *,
    tta: bool = False,
) -> dict[str, Any]:
    """Test a checkpoint's weights on the whole test set: metrics.json, table, report; return the metrics.

    The trainer has a `Predictions` callback, which writes predictions.npz.
    Raises UserError where the checkpoint is damaged or another net's.
    """
    from fmnist_lightning.checkpoint import load_weights, read_checkpoint, training_record
    from fmnist_lightning.console import result_table
    from fmnist_lightning.datamodule import CUT_SEED
    from fmnist_lightning.environment import environment
    from fmnist_lightning.metrics import METRIC_NAMES, wilson_interval
    from fmnist_lightning.report import write_report
    from fmnist_lightning.tta import MirrorAveraged

    content = read_checkpoint(checkpoint)
    load_weights(module, content, checkpoint)
    trained = training_record(content)
    last = run / CHECKPOINTS / LAST
    if last.exists():
        try:
            trained = training_record(read_checkpoint(last))
        except UserError as error:
            print(f"{error}; time and epochs of the training are told as of {checkpoint}", file=sys.stderr)
    checkpoint_epoch = training_record(content).epochs
    if tta:
        module.net = MirrorAveraged(module.net)
    [figures] = trainer.test(module, datamodule, verbose=False)
    here = environment(trainer.strategy.root_device)
    count = len(datamodule.splits["test"].labels)
    metrics = {
        "dataset": datamodule.dataset,
        "split": "test",
        "n": count,
        **{name: figures[f"test/{name}"] for name in METRIC_NAMES},
        "accuracy_95_interval": wilson_interval(figures["test/accuracy"], count),
        "loss": figures["test/loss"],
        "checkpoint": checkpoint.stem,
        "checkpoint_epoch": checkpoint_epoch,
        "tta": tta,
        "seed": datamodule.seed,
        "training_seconds": trained.seconds,
        "epochs": trained.epochs,
        "batch_size": trained.batch_size,
        "validation": {"fraction": datamodule.val_fraction, "seed": CUT_SEED},
        "model": module.hparams["model"],
        "parameters": sum(parameter.numel() for parameter in module.net.parameters()),
        "arithmetic": trainer.precision,
        **(trained.environment or here),
        "earlier_environments": trained.earlier_environments,
        "tested_with": here,
    }
    write_metrics(run, metrics)
    print(f"\n{result_table(metrics)}\nwritten: {run}", flush=True)
    # Last: what goes wrong in it costs neither figures nor predictions.
    print(f"report: {write_report(run, datamodule.splits['test'].images)}", flush=True)
    return metrics
