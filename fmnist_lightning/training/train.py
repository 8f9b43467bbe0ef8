"""Train a model: from options to a run folder."""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, Timer
from torch.nn.modules.batchnorm import _BatchNorm

from fmnist_lightning.data.datamodule import FashionMNISTDataModule
from fmnist_lightning.data.sets import resolve_dataset
from fmnist_lightning.errors import UserError, advising
from fmnist_lightning.report.console import filter_library_output, summary_text
from fmnist_lightning.runs.folders import explain_write_errors, lock_run, resume_command, testing_command
from fmnist_lightning.runs.loggers import check_loggers, run_loggers
from fmnist_lightning.runs.options import (
    AugmentationOptions,
    DataOptions,
    DeviceOptions,
    SourceOptions,
    TrainOptions,
    as_yaml,
    names,
    values_of,
)
from fmnist_lightning.training.callbacks import (
    Compilation,
    EpochLines,
    NoProfiler,
    display_callbacks,
    has_bar,
    run_callbacks,
)
from fmnist_lightning.training.devices import Devices, broadcast, launch, process_group, resolve_devices
from fmnist_lightning.training.distillation import prepare_teacher
from fmnist_lightning.training.evaluate import TRAINER_FOLDER, own_names, run_test_loop
from fmnist_lightning.training.module import Classifier, Loss, build_classifier
from fmnist_lightning.training.resume import AtomicCheckpointIO, OwnSignals, find_or_make_run, open_run


class TrainResult(NamedTuple):
    """What a training made."""

    run: Path | None  # the run folder; None after --fast_dev_run
    metrics: dict[str, Any] | None  # the content of metrics.json; None without a test, and on ranks other than 0


def train(
    options: TrainOptions,
    *,
    datamodule: FashionMNISTDataModule | None = None,
    callbacks: Sequence[Callback] = (),
    loss: Loss | None = None,
) -> TrainResult | None:
    """Train, and test a checkpoint if the options say so. Returns None in a process that only launched others.

    `datamodule` replaces the one that the options describe, `loss` the cross-entropy; `callbacks` are added. A run with
    an own datamodule or loss is resumed and tested from Python, with the same objects. Raises UserError if options,
    data and own objects don't fit, or the loss is no longer finite; Interrupted after a signal.
    """
    filter_library_output()
    check_loggers(options)
    devices = resolve_devices(**values_of(options, DeviceOptions))
    if devices.to_launch:
        # The path of the run to resume: a moment later, another run may be the last one.
        extra = [f"--resume={options.resume}"] if options.resume else []
        launch(devices.to_launch, hint="--resume continues from the last checkpoint", extra=extra)
        return None
    with process_group(devices.fabric):
        return train_here(replace(options, precision=devices.precision), devices, datamodule, callbacks, loss)


def train_here(
    options: TrainOptions,
    devices: Devices,
    datamodule: FashionMNISTDataModule | None,
    callbacks: Sequence[Callback],
    loss: Loss | None,
) -> TrainResult:
    """Train in this process, which has joined the others if there are several."""
    own = own_names(datamodule, loss)
    options, datamodule = prepare_data(options, devices.fabric, datamodule)
    check_length(options, datamodule)
    if options.compile:
        check_compiler(devices.fabric.device)
    options, teacher = prepare_teacher(options, devices.fabric, datamodule.source)
    L.seed_everything(options.seed, verbose=False)
    module = build_classifier(options, datamodule.source, datamodule.splits["train"].labels, loss)
    module.teacher = teacher
    arguments = trainer_arguments(options, devices, module, datamodule)
    if not options.fast_dev_run:
        return recorded_run(options, devices.fabric, arguments, module, datamodule, callbacks, own)
    callbacks = [*display_callbacks(), *([Compilation()] if options.compile else []), OwnSignals(), *callbacks]
    arguments["default_root_dir"] = Path(options.log_dir) / TRAINER_FOLDER
    trainer = L.Trainer(**arguments, callbacks=callbacks, fast_dev_run=True)
    if not datamodule.validates:
        trainer.limit_val_batches = 0  # fast_dev_run sets it to 1
    trainer.fit(module, datamodule)
    if options.test:
        trainer.test(module, datamodule, verbose=False)
    print("smoke run passed; no run folder was made")
    return TrainResult(None, None)


def prepare_data(
    options: TrainOptions, fabric: L.Fabric, datamodule: FashionMNISTDataModule | None = None
) -> tuple[TrainOptions, FashionMNISTDataModule]:
    """The options with their data set resolved, and its training images, fetched by one process of each machine.

    Those of an own datamodule replace the given ones.
    Raises UserError if the data can't be had or does not suit the options.
    """
    if datamodule is None:
        dataset = broadcast(fabric, lambda: resolve_dataset(options.dataset, Path(options.data_dir)))
        options = replace(options, dataset=cast(Any, dataset))
        arguments = values_of(options, DataOptions) | values_of(options, AugmentationOptions)
        try:
            datamodule = FashionMNISTDataModule(**arguments)
        except ValueError as error:
            raise UserError(str(error)) from error
    else:
        options = options_of(datamodule, options)
    if not datamodule.validates and (options.ckpt == "best" or options.patience):
        raise UserError(
            "cannot use --ckpt best or --patience with --val_fraction 0: they need validation (use --ckpt last)"
        )
    with fabric.rank_zero_first(local=True):
        datamodule.prepare_data()
    datamodule.setup("fit")
    datamodule.check_divisible(fabric.world_size)
    return options, datamodule


def options_of(datamodule: FashionMNISTDataModule, options: TrainOptions) -> TrainOptions:
    """The options with the values of an own datamodule. Raises UserError if its seed is another one."""
    if datamodule.seed != options.seed:  # the option is the seed of the weights, too
        raise UserError(
            f"cannot train with seed {options.seed}: the datamodule has seed {datamodule.seed} (give both the same one)"
        )
    hparams, (flip, shift, erase) = datamodule.hparams, datamodule.augmentation
    values = {name: hparams[name] for name in names(SourceOptions) if name in hparams}
    values |= {"dataset": datamodule.source.name, "classes": values.get("classes") and tuple(values["classes"])}
    values |= {"batch_size": datamodule.batch_size, "val_fraction": datamodule.val_fraction}
    return replace(options, **values, flip=flip, shift=shift, erase=erase, mixup=datamodule.mixup)


def check_length(options: TrainOptions, datamodule: FashionMNISTDataModule) -> None:
    """Raise UserError if a limit leaves no batch, or the checkpoint that is tested would never be made."""
    batches = {"train": len(datamodule.train_dataloader())}
    if datamodule.validates:
        batches["val"] = len(cast(Any, datamodule.val_dataloader()))
    for name, count in batches.items():
        limit = getattr(options, f"limit_{name}_batches")
        batches[name] = min(count, limit) if isinstance(limit, int) else int(count * limit)
        if batches[name] < 1:
            raise UserError(
                f"cannot use --limit_{name}_batches {limit}: it leaves none of {count} batches (give a larger one)"
            )
    steps = math.ceil(batches["train"] / options.accumulate_grad_batches)
    if options.test and options.ckpt == "best" and options.max_steps and options.max_steps < steps:
        raise UserError(
            f"cannot test the best checkpoint with --max_steps {options.max_steps}: the first validation follows step "
            f"{steps} (use --ckpt last)"
        )


def check_compiler(device: torch.device) -> None:
    """Raise UserError if torch can't compile for `device`. Otherwise the first step would fail, in a run folder."""
    try:
        torch.compile(torch.add)(torch.ones(2, device=device), 1)
    except RuntimeError as error:  # of which torch derives its compilers' errors
        # The first line names torch's backend alone, the third and later ones are for torch's developers.
        reason = " ".join(str(error).strip().splitlines()[:2])
        raise UserError(
            f"cannot compile the model: {reason} (install a C++ compiler, or leave out --compile)"
        ) from error


def trainer_arguments(
    options: TrainOptions, devices: Devices, module: Classifier, datamodule: FashionMNISTDataModule
) -> dict[str, Any]:
    """The Trainer's arguments that do not depend on the run folder.

    Raises UserError if the model's batch norm would see each process's shard of a batch alone.
    """
    processes, on_cpu = devices.fabric.world_size, devices.fabric.device.type == "cpu"
    if processes > 1 and on_cpu and any(isinstance(layer, _BatchNorm) for layer in module.modules()):
        raise UserError(
            f"cannot train --model {options.model} in {processes} processes on CPUs: torch synchronizes batch norm on "
            "GPUs alone (use --devices 1, or --model seed)"
        )
    limits = {"limit_train_batches": options.limit_train_batches}
    limits["limit_val_batches"] = options.limit_val_batches if datamodule.validates else 0
    return {
        **devices.trainer,
        "plugins": [*devices.trainer["plugins"], AtomicCheckpointIO()],
        "max_epochs": options.max_epochs,
        "max_steps": options.max_steps or -1,
        # Lightning announces 1.0, too.
        **{name: limit for name, limit in limits.items() if limit != 1 or isinstance(limit, int)},
        "accumulate_grad_batches": options.accumulate_grad_batches,
        "gradient_clip_val": options.gradient_clip_val,
        "sync_batchnorm": processes > 1 and not on_cpu,
        "enable_progress_bar": has_bar(),
        "enable_model_summary": False,  # `display_callbacks` has one
        "enable_autolog_hparams": False,  # `recorded_run` logs the options; MLflow refuses other values for their names
        "log_every_n_steps": 1,  # the module logs once an epoch
        "profiler": NoProfiler(),
    }


def recorded_run(
    options: TrainOptions,
    fabric: L.Fabric,
    arguments: dict[str, Any],
    module: Classifier,
    datamodule: FashionMNISTDataModule,
    callbacks: Sequence[Callback],
    own: Sequence[str],
) -> TrainResult:
    """Train and test in a run folder, a new one or the one to resume.

    It is made only now that options and data are known to fit, so that a mistake leaves no empty folder.
    """
    run, checkpoint = broadcast(fabric, lambda: find_or_make_run(options))
    lock = lock_run(run) if fabric.is_global_zero else contextlib.nullcontext()
    command = resume_command(run, own)
    with explain_write_errors(run, command), lock, advising(f"to resume: {command}"):
        checkpoint, steps = broadcast(
            fabric, lambda: open_run(run, checkpoint, options, module, datamodule.source, own)
        )
        with run_loggers(run, options, steps, fabric.is_global_zero) as loggers:
            callbacks = [*run_callbacks(run, options, fabric.device, datamodule.validates), *callbacks]
            arguments["default_root_dir"] = run / TRAINER_FOLDER
            trainer = L.Trainer(**arguments, logger=loggers, callbacks=callbacks)
            print(f"run folder: {run}", flush=True)
            for logger in loggers:
                logger.log_hyperparams(as_yaml(options) | dict(datamodule.hparams))
            trainer.fit(module, datamodule, ckpt_path=checkpoint, weights_only=True)
            metrics = None
            if options.test:
                again = testing_command(run, own)
                with explain_write_errors(run, again), advising(f"the training is complete; to test it: {again}"):
                    metrics = run_test_loop(trainer, module, datamodule, run, options.ckpt)
            if trainer.is_global_zero:
                print_summary(trainer, run, options, metrics, own)
            return TrainResult(run, metrics)


def print_summary(
    trainer: Any, run: Path, options: TrainOptions, metrics: dict[str, Any] | None, own: Sequence[str]
) -> None:
    [lines] = [one for one in trainer.callbacks if isinstance(one, EpochLines)]
    [timer] = [one for one in trainer.callbacks if isinstance(one, Timer)]
    title, seconds = trainer.datamodule.source.title, timer.time_elapsed("train")
    steps = trainer.global_step
    print(f"\n{summary_text(run, options, title, lines.rows, steps, seconds, metrics, own)}", flush=True)
