"""The test loop: a checkpoint's metrics and predictions on the full test set, and the command that runs it alone."""

import contextlib
import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L

from fmnist_lightning.data.datamodule import FashionMNISTDataModule
from fmnist_lightning.data.sets import recorded_info
from fmnist_lightning.data.source import DataInfo, difference
from fmnist_lightning.errors import UserError, advising
from fmnist_lightning.metrics import METRIC_NAMES, Outputs, wilson_interval
from fmnist_lightning.models.tta import MirrorAveraged, warn_if_trained_without_flip
from fmnist_lightning.report.console import filter_library_output, result_text
from fmnist_lightning.report.page import write_report
from fmnist_lightning.runs.checkpoints import TrainingRecord, load_weights, read_checkpoint, training_record
from fmnist_lightning.runs.environment import environment, now
from fmnist_lightning.runs.files import remove_staged
from fmnist_lightning.runs.folders import (
    CHECKPOINTS,
    LAST,
    METRICS,
    PREDICTIONS,
    REPORT,
    REPORT_PICTURES,
    explain_write_errors,
    find_checkpoint,
    find_run,
    lock_test,
    testing_command,
    write_metrics,
)
from fmnist_lightning.runs.options import DataOptions, DeviceOptions, TestOptions, read_options, values_of
from fmnist_lightning.training.callbacks import Predictions
from fmnist_lightning.training.devices import broadcast, launch, process_group, resolve_devices
from fmnist_lightning.training.module import Classifier, Loss, build_classifier
from fmnist_lightning.training.resume import OwnSignals, check_own

# The Trainer's folder in the run folder. It does not exist: in a SLURM job, Lightning loads any hpc_ckpt_N.ckpt there.
TRAINER_FOLDER = "trainer"


def own_names(datamodule: object | None, loss: object | None) -> list[str]:
    """Which own objects were given, by their argument of `train` and `evaluate`."""
    return [name for name, given in (("datamodule", datamodule), ("loss", loss)) if given is not None]


def evaluate(
    options: TestOptions, *, datamodule: FashionMNISTDataModule | None = None, loss: Loss | None = None
) -> None:
    """Test a trained run, with the own datamodule and loss that it was trained with.

    Raises UserError if it can't be tested.
    """
    run, own = find_run(options.run, Path(options.log_dir)), own_names(datamodule, loss)
    check_own(run, own, "test", testing_command)
    trained = read_options(run)
    names = ("data_dir", "batch_size", "precision", "accelerator", "devices", "num_nodes", "strategy")
    given = {name: getattr(options, name) for name in names}
    trained = replace(trained, **{name: value for name, value in given.items() if value is not None})
    filter_library_output()
    devices = resolve_devices(**values_of(trained, DeviceOptions))
    if devices.to_launch:
        launch(devices.to_launch, extra=[f"--run={run}"])
        return
    command = testing_command(run, own)
    with process_group(devices.fabric), explain_write_errors(run, command), advising(f"to test it: {command}"):
        trainer = L.Trainer(
            **devices.trainer,
            default_root_dir=run / TRAINER_FOLDER,
            logger=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            callbacks=[Predictions(run / PREDICTIONS), OwnSignals()],
        )
        try:
            datamodule = datamodule or FashionMNISTDataModule(**values_of(trained, DataOptions))
        except ValueError as error:
            raise UserError(str(error)) from error
        module = build_classifier(replace(trained, precision=devices.precision), datamodule.source, loss=loss)
        run_test_loop(trainer, module, datamodule, run, options.ckpt, tta=options.tta)
        print(f"\nwritten: {run}\nreport: {run / REPORT}", flush=True)


def run_test_loop(
    trainer: L.Trainer,
    module: Classifier,
    datamodule: FashionMNISTDataModule,
    run: Path,
    ckpt: str | None = None,
    *,
    tta: bool = False,
) -> dict[str, Any] | None:
    """Test a checkpoint's weights on the full test set: metrics.json, table, report, all written by rank 0.

    Returns the content of metrics.json on rank 0, None on the others.

    The trainer has a `Predictions` callback, which writes predictions.npz. `ckpt` is as `find_checkpoint` takes it.
    Waits while another test of the run is in progress. Raises UserError if the checkpoint is damaged, or belongs to
    another model or to data of other classes or another image shape.
    """
    with lock_test(run) if trainer.is_global_zero else contextlib.nullcontext():
        # Rank 0 alone reads: its machine may be the only one that has the run folder.
        checkpoint, content, before = broadcast(trainer.strategy, lambda: open_test(run, ckpt, tta=tta))
        check_same_data(content, checkpoint, datamodule.source)
        load_weights(module, content, checkpoint)
        trained = training_record(content, checkpoint)
        if tta:
            module.net = MirrorAveraged(module.net)
        [values] = trainer.test(module, datamodule, verbose=False)
        test = datamodule.splits["test"]
        check_counted_once(module.test_metrics.outputs, len(test.labels))
        if not trainer.is_global_zero:
            return None
        warn_if_divided_anew(content, datamodule.split_record)
        metrics = test_record(trainer, module, datamodule, run, checkpoint, trained, values) | {"tta": tta}
        if before.get("images_sha256") not in (None, metrics["images_sha256"]):
            warn("the images of the test set are not those of this run's last test, so the two can't be compared")
        write_metrics(run, metrics)
        print(f"\n{result_text(metrics)}", flush=True)
        write_report(run, test.images)  # last: what goes wrong in it costs neither metrics nor predictions
        return metrics


def open_test(run: Path, ckpt: str | None, *, tta: bool) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Remove what a killed test left; return path and content of the checkpoint to test, and an earlier metrics.json.

    Raises UserError if --tta would replace a test of a model that never saw a mirror image.
    """
    before: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError, TypeError):  # missing or damaged: this test writes a new one
        before = dict(json.loads((run / METRICS).read_text(encoding="utf-8")))
    if tta and not read_options(run).flip:
        if before and not before.get("tta"):
            raise UserError(
                f"cannot replace the test of {run} by one with --tta: the model was trained without --flip, so that "
                f"mirror images can make it worse (remove {run / METRICS} to test it so anyway)"
            )
        warn_if_trained_without_flip(False)
    for name in (METRICS, PREDICTIONS, REPORT):
        remove_staged(run, name)
    remove_staged(run / REPORT_PICTURES)
    checkpoint = find_checkpoint(run, ckpt)
    return checkpoint, read_checkpoint(checkpoint), before


def check_same_data(content: dict[str, Any], checkpoint: Path, source: DataInfo) -> None:
    """Raise UserError if the checkpoint was trained on other data than `source`; older ones don't say."""
    if "data" not in content:
        return
    try:
        trained = recorded_info(content)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"cannot use {checkpoint}: it lacks a record of its data ({error!r})") from error
    if found := difference(trained, source):
        raise UserError(f"cannot test {checkpoint} on {found} (name the training's data with --data_dir)")


def warn_if_divided_anew(content: dict[str, Any], split: dict[str, Any]) -> None:
    """Warn if a checkpoint's training had other test images, for data that came without a test set."""
    trained = content.get("split", {}).get("test_sha256")
    if trained and trained != split.get("test_sha256"):
        warn(
            "pictures were added or removed since the training, and the test set is another one: the model may have "
            "seen some of its pictures (train again, or give the data a test folder)"
        )


def warn(text: str) -> None:
    print(f"WARNING: {text}", file=sys.stderr)


def check_counted_once(outputs: Outputs, count: int) -> None:
    """Raise RuntimeError unless the metrics are those of `count` images, each counted once."""
    counted, different = len(outputs.labels), len(outputs.indices.unique())
    if not counted == different == count:
        raise RuntimeError(f"the metrics count {counted:,} images, {different:,} of them different; expected {count:,}")


def test_record(
    trainer: L.Trainer,
    module: Classifier,
    datamodule: FashionMNISTDataModule,
    run: Path,
    checkpoint: Path,
    trained: TrainingRecord,
    values: Mapping[str, float],
) -> dict[str, Any]:
    """The content of metrics.json: a test's metrics, and the training that they are of."""
    checkpoint_epoch = trained.epochs
    last = run / CHECKPOINTS / LAST
    try:
        trained = training_record(read_checkpoint(last), last)
    except UserError as error:
        print(f"{error}; time and epochs of the training are taken from {checkpoint}", file=sys.stderr)
    here = {**environment(trainer.strategy.root_device), "processes": trainer.world_size}
    images, labels = datamodule.splits["test"]
    count = len(labels)
    return {
        "dataset": datamodule.source.name,
        "data": datamodule.source.as_plain(),
        "images_sha256": hashlib.sha256(images.cpu().numpy().tobytes()).hexdigest(),
        "split": "test",
        "n": count,
        **{name: values[f"test/{name}"] for name in METRIC_NAMES},
        "accuracy_95_interval": list(wilson_interval(values["test/accuracy"], count)),
        "loss": values["test/loss"],
        "checkpoint": checkpoint.stem,
        "checkpoint_epoch": checkpoint_epoch,
        "seed": datamodule.seed,
        "training_seconds": trained.seconds,
        "trained_at": trained.saved_at,
        "tested_at": now(),
        "epochs": trained.epochs,
        "batch_size": trained.batch_size,
        "validation": datamodule.split_record,
        "model": module.hparams["model"],
        "parameters": sum(parameter.numel() for parameter in module.net.parameters()),
        **({"teacher": trained.teacher} if trained.teacher else {}),
        "arithmetic": trainer.precision,
        **(trained.environment or here),
        "earlier_environments": trained.earlier_environments,
        "tested_with": here,
    }
