"""Training: options to run folder. Heavy imports stand inside the functions, so that `--help` answers at once."""

import contextlib
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse.typing import PositiveFloat, PositiveInt

from fmnist_lightning.cli import (
    DATA_DIR,
    LOG_DIR,
    Accelerator,
    BatchSize,
    Dataset,
    MixupAlpha,
    NonNegativeFinite,
    PositiveFinite,
    Precision,
    Rate,
    Seed,
    Share,
    Shift,
    Strategy,
)
from fmnist_lightning.errors import ProcessFailedError, UserError
from fmnist_lightning.interrupts import advising
from fmnist_lightning.launching import launch, processes_to_launch
from fmnist_lightning.runs import (
    AUGMENTATION_OPTIONS,
    DATA_OPTIONS,
    DEVICE_OPTIONS,
    MODULE_OPTIONS,
    alone_in,
    explaining_faults,
    find_run,
    resume_command,
    testing_command,
)

if TYPE_CHECKING:
    import lightning as L
    from lightning.pytorch.callbacks import Callback

    from fmnist_lightning.datamodule import FashionMNISTDataModule
    from fmnist_lightning.devices import Devices
    from fmnist_lightning.distillation import Teacher
    from fmnist_lightning.module import Classifier


def train(
    *,
    dataset: Dataset = "fashion_mnist",
    data_dir: str = DATA_DIR,
    val_fraction: Share = 0.1,
    model: Literal["seed", "notebook", "compact", "fine", "advanced"] = "seed",
    dropout: tuple[Rate, Rate, Rate] = (0.25, 0.25, 0.5),
    max_epochs: PositiveInt = 40,
    batch_size: BatchSize = 128,
    flip: bool = False,
    shift: Shift = 0,
    erase: Share = 0.0,
    mixup: MixupAlpha = 0.0,
    optimizer: Literal["adam", "muon"] = "adam",
    lr: PositiveFinite = 1e-3,
    weight_decay: NonNegativeFinite = 0.0,
    schedule: Literal["constant", "one_cycle"] = "constant",
    label_smoothing: Share = 0.0,
    teacher: str | None = None,
    teacher_share: Share = 0.9,
    temperature: PositiveFinite = 4.0,
    ema: Share = 0.0,
    patience: PositiveInt | None = None,
    checkpoint_every_minutes: PositiveFloat | None = None,
    seed: Seed = 0,
    accelerator: Accelerator = "auto",
    devices: int | str = 1,
    num_nodes: PositiveInt = 1,
    strategy: Strategy = "auto",
    precision: Precision = "auto",
    test: bool = True,
    ckpt: Literal["best", "last"] = "best",
    log_dir: str = LOG_DIR,
    resume: str | None = None,
    fast_dev_run: bool = False,
) -> None:
    """Train on Fashion-MNIST, then test a checkpoint and print its figures beside the original's.

    Args:
        dataset: fashion_mnist; drawn, a stand-in that needs no file; auto, the first that can be had.
        data_dir: Folder with torchvision's layout or with the four files, packed or not. Missing ones are downloaded
            into it. The environment variable FMNIST_DATA_DIR sets the default.
        val_fraction: Share of the training set, balanced by class, that is kept for validation. With 0, for a recipe
            whose length is settled, all is trained on and nothing validated.
        model: The net: seed is the original's; notebook, the larger one behind its reported figures; compact and
            fine, residual nets of less than 250,000 parameters; advanced, one of less than 1,300,000.
        dropout: Rates behind the first and the second pooling and behind the dense layer, in whole 256ths; of the
            residual nets, behind each of their last three stages.
        max_epochs: Passes over the training set.
        batch_size: Images in a step, all devices together; each takes its share of the same batch.
        flip: Flip half of the training images left to right, other ones each time.
        shift: Move each training image by up to so many pixels on each axis.
        erase: Share of the training images that lose a rectangle.
        mixup: Blend each training image with another of its batch, and their labels, by a share drawn for the batch
            from the beta distribution with both parameters so; 0 for none.
        optimizer: adam is Keras's; muon has Muon for the hidden layers' weights and Keras's Adam for the rest.
        lr: Learning rate; the highest of one_cycle.
        weight_decay: Share of itself, times the learning rate, that each weight loses at a step, as in AdamW.
        schedule: Of the learning rate: constant; one_cycle, up and then down to nearly nothing over the whole training.
        label_smoothing: Share of each label that is spread over all classes, in the loss that is trained, not logged.
        teacher: Learn from a trained net too, by what it says of each augmented image: packaged, a run folder, last for
            the newest, a checkpoint, or a .safetensors. One that saw the validation images makes val/accuracy too good.
        teacher_share: Share of the teacher in the loss; the labels have the rest.
        temperature: Softens the probabilities of both nets before they are compared, where it is above 1.
        ema: Validate, keep and test an exponential moving average of the weights; so much of it stays at each step.
        patience: Stop after so many epochs without a better val/accuracy.
        checkpoint_every_minutes: Save in the middle of epochs too, so often. Each epoch is saved at its end anyway.
        seed: Of weights, order, dropout and augmentation. The validation cut does not depend on it.
        accelerator: Where to compute.
        devices: How many devices of this machine, or which, as Lightning names them. Each gets a process.
        num_nodes: Machines that train together; docs/scale.md says how to start them.
        strategy: ddp, a process for each device, which exchange gradients; auto, that where there are several.
        precision: Arithmetic, as Lightning names it; auto, the fastest where that was measured, else 32-true.
        test: Test a checkpoint at the end. False while a recipe is chosen, so that the test set chooses nothing.
        ckpt: The checkpoint that is tested: best, of the highest val/accuracy, or last.
        log_dir: Folder of the run folders version_N.
        resume: Run folder to go on in, last for the newest, or a checkpoint in one. The run's own options hold, but for
            those given here: a longer training and another device are possible, another data set or net is not.
        fast_dev_run: One batch of each part, training, validation and test, to see that all works. Makes no run folder.
    """
    options = {**locals(), "dropout": list(dropout)}
    if processes := processes_to_launch(accelerator, devices, num_nodes, strategy):
        extra = [f"--resume={resume}"] if resume else []  # its path: another run may be the last a moment later
        try:
            launch(processes, num_nodes=num_nodes, extra=extra)
        except ProcessFailedError as failure:
            raise failure.advised("what was saved is whole, and --resume goes on") from None
    else:
        train_with(options)


def train_with(options: dict[str, Any], callbacks: Sequence["Callback"] = ()) -> None:
    """What `train` does, by all of its options; `callbacks` are beside those that each training has.

    Raises UserError where options and data don't fit, or the weights are no longer finite; Interrupted at a signal.
    """
    check_validation(options["val_fraction"], options["ckpt"], options["patience"])
    from fmnist_lightning.console import quiet
    from fmnist_lightning.devices import resolve_devices
    from fmnist_lightning.distributed import joined

    quiet()
    devices = resolve_devices(**{name: options[name] for name in DEVICE_OPTIONS})
    with joined(devices.fabric):
        fit_and_test({**options, "precision": devices.precision}, devices, callbacks)


def fit_and_test(options: dict[str, Any], devices: "Devices", callbacks: Sequence["Callback"]) -> None:
    """A training in this process, one of those that have joined."""
    import lightning as L

    from fmnist_lightning.distributed import told
    from fmnist_lightning.evaluation import run_test_loop
    from fmnist_lightning.fault_tolerance import OwnSignals
    from fmnist_lightning.module import build_classifier
    from fmnist_lightning.outputs import recorded, shown
    from fmnist_lightning.resuming import find_or_make_run, open_run

    fabric = devices.fabric
    options, datamodule = prepare_data(options, fabric)
    options, teacher = prepare_teacher(options, fabric)
    L.seed_everything(options["seed"], verbose=False)
    module = build_classifier({name: options[name] for name in MODULE_OPTIONS}, options["precision"])
    module.teacher = teacher
    base = training_options(options, devices, module)
    if options["fast_dev_run"]:
        display = shown(options["dataset"])
        display["callbacks"].append(OwnSignals())
        smoke_run(L.Trainer(**base, **display, fast_dev_run=True), module, datamodule, test=options["test"])
        return
    # The run folder comes after all that can go wrong with options and data: a mistake leaves no empty run behind.
    run, checkpoint = told(fabric, lambda: find_or_make_run(options["resume"], Path(options["log_dir"])))
    claim = alone_in(run) if fabric.is_global_zero else contextlib.nullcontext()
    command = resume_command(run)
    with claim, explaining_faults(run, command), advising(f"to go on: {command}"):
        checkpoint, steps = told(fabric, lambda: open_run(run, checkpoint, options, module))
        outputs = recorded(run, options, steps)
        outputs["callbacks"] += callbacks
        outputs["plugins"] += base.pop("plugins")
        trainer = L.Trainer(**base, **outputs)
        print(f"run folder: {run}", flush=True)
        outputs["logger"].log_hyperparams(options)
        trainer.fit(module, datamodule, ckpt_path=checkpoint, weights_only=True)
        if options["test"]:
            with advising(f"the training is complete; to test it: {testing_command(run)}"):
                run_test_loop(trainer, module, datamodule, run, options["ckpt"])


def prepare_data(options: dict[str, Any], fabric: "L.Fabric") -> tuple[dict[str, Any], "FashionMNISTDataModule"]:
    """The options with their data set resolved, and its training images, fetched by one process of each machine."""
    from fmnist_lightning.datamodule import FashionMNISTDataModule, offering_stand_in, resolve_dataset
    from fmnist_lightning.distributed import told

    dataset = told(fabric, lambda: resolve_dataset(options["dataset"], Path(options["data_dir"])))
    options = {**options, "dataset": dataset}
    datamodule = FashionMNISTDataModule(**{name: options[name] for name in (*DATA_OPTIONS, *AUGMENTATION_OPTIONS)})
    with fabric.rank_zero_first(local=True), offering_stand_in():
        datamodule.prepare_data()
    datamodule.setup("fit")
    datamodule.check_divisible(fabric.world_size)
    return options, datamodule


def prepare_teacher(options: dict[str, Any], fabric: "L.Fabric") -> tuple[dict[str, Any], "Teacher | None"]:
    """The options with their teacher resolved, and that teacher, read by the first process, if there is to be one.

    Says so where the teacher saw the validation images. Raises UserError where it can't be had, or learned from other
    images.
    """
    if not options["teacher"]:
        return options, None
    from fmnist_lightning.distillation import Teacher, validation_notice
    from fmnist_lightning.distributed import told
    from fmnist_lightning.pretrained import load_pretrained, weights_digest

    def load() -> tuple[str, Teacher]:
        source, log_dir = options["teacher"], Path(options["log_dir"])
        source = str(find_run(source, log_dir)) if source == "last" else source  # this run will be the last
        pretrained = load_pretrained(source)
        found, dataset = pretrained.card["dataset"], options["dataset"]
        if found != dataset:
            raise UserError(f"{source} was trained on {found}, and this training is on {dataset}: name another teacher")
        if notice := validation_notice(source, pretrained.card, options["val_fraction"]):
            warn_once(notice)
        net, model = pretrained.net.requires_grad_(False), pretrained.card["model"]
        return source, Teacher(net, model, weights_digest(net), options["teacher_share"], options["temperature"])

    source, teacher = told(fabric, load)
    return {**options, "teacher": source}, teacher


@cache
def warn_once(notice: str) -> None:
    """Say it in the first of a search's trainings alone."""
    print(f"WARNING: {notice}", file=sys.stderr)


def training_options(options: dict[str, Any], devices: "Devices", module: "Classifier") -> dict[str, Any]:
    """The Trainer's options that say where, how and how long it computes.

    Raises UserError where the net's batch norm would see each process's share of a batch by itself.
    """
    processes, on_cpu = devices.fabric.world_size, devices.fabric.device.type == "cpu"
    if processes > 1 and on_cpu and has_batch_norm(module):
        raise UserError(
            f"--model {options['model']} has batch norm, which torch shares between GPUs alone: on CPUs it would see "
            f"{processes} smaller batches in place of one; take --devices 1, or --model seed"
        )
    return {
        **devices.trainer,
        "max_epochs": options["max_epochs"],
        "sync_batchnorm": processes > 1 and not on_cpu,
        **({} if options["val_fraction"] else {"limit_val_batches": 0}),
    }


def has_batch_norm(module: "Classifier") -> bool:
    from torch.nn.modules.batchnorm import _BatchNorm

    return any(isinstance(layer, _BatchNorm) for layer in module.modules())


def check_validation(val_fraction: float, ckpt: str, patience: int | None) -> None:
    """Raise UserError where options need a validation that there is not."""
    if val_fraction == 0 and (ckpt == "best" or patience):
        asked = "--ckpt best" if ckpt == "best" else f"--patience {patience}"
        raise UserError(
            f"{asked} needs validation, and --val_fraction 0 leaves none: give --ckpt last and no --patience"
        )


def smoke_run(trainer: "L.Trainer", module: "Classifier", datamodule: "FashionMNISTDataModule", *, test: bool) -> None:
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
