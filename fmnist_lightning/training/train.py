"""Train a model: from options to a run folder."""

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch.nn.modules.batchnorm import _BatchNorm

from fmnist_lightning.data.datamodule import FashionMNISTDataModule
from fmnist_lightning.data.sources import resolve_dataset, suggesting_drawn
from fmnist_lightning.errors import ProcessFailedError, UserError, advising
from fmnist_lightning.models.pretrained import load_pretrained, weights_digest
from fmnist_lightning.report.console import quiet
from fmnist_lightning.runs.folders import explain_write_errors, find_run, lock_run, resume_command, testing_command
from fmnist_lightning.runs.options import (
    AugmentationOptions,
    DataOptions,
    DeviceOptions,
    TrainOptions,
    as_yaml,
    values_of,
)
from fmnist_lightning.training.devices import Devices, resolve_devices
from fmnist_lightning.training.distillation import Teacher, validation_notice
from fmnist_lightning.training.distributed import joined, told
from fmnist_lightning.training.evaluate import run_test_loop
from fmnist_lightning.training.launching import launch, processes_to_launch
from fmnist_lightning.training.module import Classifier, build_classifier
from fmnist_lightning.training.outputs import recorded, shown
from fmnist_lightning.training.resume import OwnSignals
from fmnist_lightning.training.resuming import find_or_make_run, open_run


def train(
    options: TrainOptions,
    *,
    datamodule: FashionMNISTDataModule | None = None,
    callbacks: Sequence[Callback] = (),
) -> None:
    """Train, and test a checkpoint if the options say so.

    `datamodule` replaces the one that the options describe; `callbacks` are added to those that each training has.
    Raises UserError if options and data don't fit, or the weights are no longer finite; Interrupted at a signal.
    """
    check_validation(options)
    if processes := processes_to_launch(options.accelerator, options.devices, options.num_nodes, options.strategy):
        # The path of the run to resume: another run may be the last one a moment later.
        extra = [f"--resume={options.resume}"] if options.resume else []
        try:
            launch(processes, num_nodes=options.num_nodes, extra=extra)
        except ProcessFailedError as failure:
            raise failure.advised("what was saved is complete, and --resume continues from it") from None
        return
    quiet()
    devices = resolve_devices(**values_of(options, DeviceOptions))
    with joined(devices.fabric):
        fit_and_test(replace(options, precision=devices.precision), devices, datamodule, callbacks)


def fit_and_test(
    options: TrainOptions, devices: Devices, datamodule: FashionMNISTDataModule | None, callbacks: Sequence[Callback]
) -> None:
    """A training in this process, one of those that have joined."""
    fabric = devices.fabric
    options, datamodule = prepare_data(options, fabric, datamodule)
    options, teacher = prepare_teacher(options, fabric)
    L.seed_everything(options.seed, verbose=False)
    module = build_classifier(options)
    module.teacher = teacher
    base = trainer_options(options, devices, module)
    if options.fast_dev_run:
        display = shown(options.dataset)
        display["callbacks"] += [OwnSignals(), *callbacks]
        smoke_run(L.Trainer(**base, **display, fast_dev_run=True), module, datamodule, test=options.test)
        return
    # The run folder comes after all that can go wrong with options and data: a mistake leaves no empty run behind.
    run, checkpoint = told(fabric, lambda: find_or_make_run(options.resume, Path(options.log_dir)))
    claim = lock_run(run) if fabric.is_global_zero else contextlib.nullcontext()
    command = resume_command(run)
    with claim, explain_write_errors(run, command), advising(f"to resume: {command}"):
        checkpoint, steps = told(fabric, lambda: open_run(run, checkpoint, options, module))
        outputs = recorded(run, options, steps)
        outputs["callbacks"] += callbacks
        outputs["plugins"] += base.pop("plugins")
        trainer = L.Trainer(**base, **outputs)
        print(f"run folder: {run}", flush=True)
        outputs["logger"].log_hyperparams(as_yaml(options))
        trainer.fit(module, datamodule, ckpt_path=checkpoint, weights_only=True)
        if options.test:
            with advising(f"the training is complete; to test it: {testing_command(run)}"):
                run_test_loop(trainer, module, datamodule, run, options.ckpt)


def prepare_data(
    options: TrainOptions, fabric: L.Fabric, datamodule: FashionMNISTDataModule | None = None
) -> tuple[TrainOptions, FashionMNISTDataModule]:
    """The options with their data set resolved, and its training images, fetched by one process of each machine."""
    if datamodule is None:
        dataset = told(fabric, lambda: resolve_dataset(options.dataset, Path(options.data_dir)))
        options = replace(options, dataset=cast(Any, dataset))
        datamodule = FashionMNISTDataModule(
            **values_of(options, DataOptions), **values_of(options, AugmentationOptions)
        )
    with fabric.rank_zero_first(local=True), suggesting_drawn():
        datamodule.prepare_data()
    datamodule.setup("fit")
    datamodule.check_divisible(fabric.world_size)
    return options, datamodule


def prepare_teacher(options: TrainOptions, fabric: L.Fabric) -> tuple[TrainOptions, Teacher | None]:
    """The options with their teacher resolved, and that teacher, read on rank 0, if there is to be one.

    Warns if the teacher was trained on the validation images. Raises UserError if it can't be read, or was trained on
    another data set.
    """
    if not options.teacher:
        return options, None

    def load() -> tuple[str, Teacher]:
        source, log_dir = str(options.teacher), Path(options.log_dir)
        source = str(find_run(source, log_dir)) if source == "last" else source  # this run will be the last
        pretrained = load_pretrained(source)
        found = pretrained.card["dataset"]
        if found != options.dataset:
            raise UserError(
                f"cannot learn from {source}: it was trained on {found}, and this training is on {options.dataset} "
                "(name another teacher)"
            )
        if notice := validation_notice(source, pretrained.card, options.val_fraction):
            warn_once(notice)
        net, model = pretrained.net.requires_grad_(False), pretrained.card["model"]
        return source, Teacher(net, model, weights_digest(net), options.teacher_share, options.temperature)

    source, teacher = told(fabric, load)
    return replace(options, teacher=source), teacher


@cache
def warn_once(notice: str) -> None:
    """Print it in the first of a search's trainings alone."""
    print(f"WARNING: {notice}", file=sys.stderr)


def trainer_options(options: TrainOptions, devices: Devices, module: Classifier) -> dict[str, Any]:
    """The Trainer's arguments that say where, how and how long it computes.

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
        "max_epochs": options.max_epochs,
        "sync_batchnorm": processes > 1 and not on_cpu,
        **({} if options.val_fraction else {"limit_val_batches": 0}),
    }


def check_validation(options: TrainOptions) -> None:
    """Raise UserError if options need a validation split that there is not."""
    if options.val_fraction == 0 and (options.ckpt == "best" or options.patience):
        asked = "--ckpt best" if options.ckpt == "best" else f"--patience {options.patience}"
        raise UserError(
            f"cannot use {asked} with --val_fraction 0: it needs validation (use --ckpt last, no --patience)"
        )


def smoke_run(trainer: L.Trainer, module: Classifier, datamodule: FashionMNISTDataModule, *, test: bool) -> None:
    parts = ["training"]
    if datamodule.val_fraction:
        parts.append("validation")
    else:
        trainer.limit_val_batches = 0  # fast_dev_run has made it 1
    trainer.fit(module, datamodule)
    if test:
        parts.append("test")
        trainer.test(module, datamodule, verbose=False)
    print(f"smoke run passed: one batch of {', '.join(parts)}; no run folder was made")
