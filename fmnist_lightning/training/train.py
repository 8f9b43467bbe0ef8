"""Train a model: from options to a run folder."""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch.nn.modules.batchnorm import _BatchNorm

from fmnist_lightning.data.datamodule import FashionMNISTDataModule
from fmnist_lightning.data.sets import resolve_dataset
from fmnist_lightning.data.source import DataError
from fmnist_lightning.errors import UserError, advising
from fmnist_lightning.report.console import filter_library_output
from fmnist_lightning.runs.folders import explain_write_errors, lock_run, resume_command, testing_command
from fmnist_lightning.runs.options import (
    AugmentationOptions,
    DataOptions,
    DeviceOptions,
    TrainOptions,
    as_yaml,
    values_of,
)
from fmnist_lightning.training.callbacks import NoProfiler, display_callbacks, in_terminal, run_callbacks
from fmnist_lightning.training.devices import Devices, broadcast, launch, process_group, resolve_devices
from fmnist_lightning.training.distillation import prepare_teacher
from fmnist_lightning.training.evaluate import run_test_loop
from fmnist_lightning.training.module import Classifier, build_classifier
from fmnist_lightning.training.resume import AtomicCheckpointIO, OwnSignals, find_or_make_run, open_run


def train(
    options: TrainOptions,
    *,
    datamodule: FashionMNISTDataModule | None = None,
    callbacks: Sequence[Callback] = (),
) -> None:
    """Train, and test a checkpoint if the options say so.

    `datamodule` replaces the one that the options describe. Raises UserError if options and data don't fit, or the loss
    is no longer finite; Interrupted after a signal.
    """
    if options.val_fraction == 0 and (options.ckpt == "best" or options.patience):
        raise UserError(
            "cannot use --ckpt best or --patience with --val_fraction 0: they need validation (use --ckpt last)"
        )
    filter_library_output()
    devices = resolve_devices(**values_of(options, DeviceOptions))
    if devices.to_launch:
        # The path of the run to resume: a moment later, another run may be the last one.
        extra = [f"--resume={options.resume}"] if options.resume else []
        launch(devices.to_launch, hint="--resume continues from the last checkpoint", extra=extra)
        return
    with process_group(devices.fabric):
        train_here(replace(options, precision=devices.precision), devices, datamodule, callbacks)


def train_here(
    options: TrainOptions, devices: Devices, datamodule: FashionMNISTDataModule | None, callbacks: Sequence[Callback]
) -> None:
    """Train in this process, which has joined the others if there are several."""
    options, datamodule = prepare_data(options, devices.fabric, datamodule)
    options, teacher = prepare_teacher(options, devices.fabric)
    L.seed_everything(options.seed, verbose=False)
    module = build_classifier(options, datamodule.source)
    module.teacher = teacher
    arguments = trainer_arguments(options, devices, module)
    if not options.fast_dev_run:
        recorded_run(options, devices.fabric, arguments, module, datamodule, callbacks)
        return
    callbacks = [*display_callbacks(), OwnSignals(), *callbacks]
    trainer = L.Trainer(**arguments, callbacks=callbacks, fast_dev_run=True)
    if not options.val_fraction:
        trainer.limit_val_batches = 0  # fast_dev_run sets it to 1
    trainer.fit(module, datamodule)
    if options.test:
        trainer.test(module, datamodule, verbose=False)
    print("smoke run passed; no run folder was made")


def prepare_data(
    options: TrainOptions, fabric: L.Fabric, datamodule: FashionMNISTDataModule | None = None
) -> tuple[TrainOptions, FashionMNISTDataModule]:
    """The options with their data set resolved, and its training images, fetched by one process of each machine."""
    if datamodule is None:
        dataset = broadcast(fabric, lambda: resolve_dataset(options.dataset, Path(options.data_dir)))
        options = replace(options, dataset=cast(Any, dataset))
        arguments = values_of(options, DataOptions) | values_of(options, AugmentationOptions)
        datamodule = FashionMNISTDataModule(**arguments)
    try:
        with fabric.rank_zero_first(local=True):
            datamodule.prepare_data()
    except DataError as error:
        raise DataError(f"{error} Or use the drawn stand-in with --dataset drawn.") from error
    datamodule.setup("fit")
    datamodule.check_divisible(fabric.world_size)
    return options, datamodule


def trainer_arguments(options: TrainOptions, devices: Devices, module: Classifier) -> dict[str, Any]:
    """The Trainer's arguments that do not depend on the run folder.

    Raises UserError if the model's batch norm would see each process's shard of a batch alone.
    """
    processes, on_cpu = devices.fabric.world_size, devices.fabric.device.type == "cpu"
    if processes > 1 and on_cpu and any(isinstance(layer, _BatchNorm) for layer in module.modules()):
        raise UserError(
            f"cannot train --model {options.model} in {processes} processes on CPUs: torch synchronizes batch norm on "
            "GPUs alone (use --devices 1, or --model seed)"
        )
    return {
        **devices.trainer,
        "plugins": [*devices.trainer["plugins"], AtomicCheckpointIO()],
        "max_epochs": options.max_epochs,
        "sync_batchnorm": processes > 1 and not on_cpu,
        "enable_progress_bar": in_terminal(),
        "enable_model_summary": False,  # `display_callbacks` has one
        "log_every_n_steps": 1,  # the module logs once an epoch
        "profiler": NoProfiler(),
        **({} if options.val_fraction else {"limit_val_batches": 0}),
    }


def recorded_run(
    options: TrainOptions,
    fabric: L.Fabric,
    arguments: dict[str, Any],
    module: Classifier,
    datamodule: FashionMNISTDataModule,
    callbacks: Sequence[Callback],
) -> None:
    """Train and test in a run folder, a new one or the one to resume.

    It is made only now that options and data are known to fit, so that a mistake leaves no empty folder.
    """
    run, checkpoint = broadcast(fabric, lambda: find_or_make_run(options))
    lock = lock_run(run) if fabric.is_global_zero else contextlib.nullcontext()
    command = resume_command(run)
    with explain_write_errors(run, command), lock, advising(f"to resume: {command}"):
        checkpoint, steps = broadcast(fabric, lambda: open_run(run, checkpoint, options, module))
        logger = TensorBoardLogger(
            run.parent, name="", version=run.name, log_graph=not steps, default_hp_metric=False, purge_step=steps
        )
        callbacks = [*run_callbacks(run, options, fabric.device), *callbacks]
        trainer = L.Trainer(**arguments, logger=logger, callbacks=callbacks)
        print(f"run folder: {run}", flush=True)
        logger.log_hyperparams(as_yaml(options))
        trainer.fit(module, datamodule, ckpt_path=checkpoint, weights_only=True)
        if options.test:
            with advising(f"the training is complete; to test it: {testing_command(run)}"):
                run_test_loop(trainer, module, datamodule, run, options.ckpt)
