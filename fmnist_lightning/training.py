"""Training: options to run folder. Heavy imports stand inside the functions, so that `--help` answers at once."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse.typing import OpenUnitInterval, PositiveInt

from fmnist_lightning.cli import DATA_DIR, LOG_DIR, LearningRate, Rate, Seed, Share
from fmnist_lightning.interrupts import advising
from fmnist_lightning.runs import (
    CHECKPOINTS,
    HPARAMS,
    MODULE_OPTIONS,
    PREDICTIONS,
    check_same_run,
    find_checkpoint,
    find_run,
    new_run,
    resume_command,
    testing_command,
    write_config,
)

if TYPE_CHECKING:
    from fmnist_lightning.module import Classifier

Dataset = Literal["fashion_mnist", "drawn", "auto"]
Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps"]
Precision = Literal["auto", "32-true", "bf16-mixed", "64-true"]


def train(
    *,
    dataset: Dataset = "fashion_mnist",
    data_dir: str = DATA_DIR,
    val_fraction: OpenUnitInterval = 0.1,
    model: Literal["seed"] = "seed",
    dropout: tuple[Rate, Rate, Rate] = (0.25, 0.25, 0.5),
    max_epochs: PositiveInt = 40,
    batch_size: PositiveInt = 128,
    optimizer: Literal["adam", "muon"] = "adam",
    lr: LearningRate = 1e-3,
    schedule: Literal["constant", "one_cycle"] = "constant",
    label_smoothing: Share = 0.0,
    patience: PositiveInt | None = None,
    seed: Seed = 0,
    accelerator: Accelerator = "auto",
    devices: int | str = 1,
    precision: Precision = "auto",
    test: bool = True,
    log_dir: str = LOG_DIR,
    resume: str | None = None,
    fast_dev_run: bool = False,
) -> None:
    """Train on Fashion-MNIST, then test the best checkpoint and print its figures beside the original's.

    Args:
        dataset: fashion_mnist; drawn, a stand-in that needs no file; auto, the first that can be had.
        data_dir: Folder with torchvision's layout or with the four files, packed or not. Missing ones are downloaded
            into it. The environment variable FMNIST_DATA_DIR sets the default.
        val_fraction: Share of the training set, balanced by class, that is kept for validation.
        model: The net: seed is the original's.
        dropout: Rates behind the first and the second pooling and behind the dense layer, in whole 256ths.
        max_epochs: Passes over the training set.
        batch_size: Images in a step, all devices together.
        optimizer: adam is Keras's; muon has Muon for the hidden layers' weights and Keras's Adam for the rest.
        lr: Learning rate; the highest of one_cycle.
        schedule: Of the learning rate: constant; one_cycle, up and then down to nearly nothing over the whole training.
        label_smoothing: Share of each label that is spread over all classes, in the loss that is trained, not logged.
        patience: Stop after so many epochs without a better val/accuracy.
        seed: Of weights, order and dropout. The validation cut does not depend on it.
        accelerator: Where to compute.
        devices: Which device, as Lightning names them. This version trains on one.
        precision: Arithmetic, as Lightning names it; auto, the one that was measured to be fastest on such a device.
        test: Test the best checkpoint at the end. False while a recipe is chosen, so that the test set chooses nothing.
        log_dir: Folder of the run folders version_N.
        resume: Run folder to go on in, or last. Give that run's options too, by --config RUN_DIR/config.yaml.
        fast_dev_run: One batch of training, validation and test each, to see that all works. Makes no run folder.
    """
    options = dict(locals())
    import lightning as L

    from fmnist_lightning.console import quiet
    from fmnist_lightning.datamodule import FashionMNISTDataModule, resolve_dataset
    from fmnist_lightning.devices import resolve_devices
    from fmnist_lightning.evaluation import run_test_loop
    from fmnist_lightning.module import Classifier

    quiet()
    options["precision"] = arithmetic = resolve_devices(accelerator, devices, precision)
    options["dataset"] = resolved = resolve_dataset(dataset, Path(data_dir))
    datamodule = FashionMNISTDataModule(resolved, data_dir, batch_size, val_fraction, seed)
    datamodule.prepare_data()
    datamodule.setup("fit")
    L.seed_everything(seed, verbose=False)
    module = Classifier(**{name: options[name] for name in MODULE_OPTIONS})
    # The run folder comes after all that can go wrong with options and data: a mistake leaves no empty run behind.
    run = None if fast_dev_run else open_run(Path(log_dir), resume, options, module)
    outputs = output_options(run, resolved, patience)
    trainer = L.Trainer(
        accelerator=accelerator,
        devices=devices,
        precision=arithmetic,
        max_epochs=max_epochs,
        fast_dev_run=fast_dev_run,
        log_every_n_steps=1,  # all scalars are by the epoch
        **outputs,
    )
    if run is None:
        trainer.fit(module, datamodule)
        trainer.test(module, datamodule, verbose=False)
        print("smoke run passed: one batch of training, validation and test; no run folder was made")
        return
    write_config(run, {**options, "resume": None})
    print(f"run folder: {run}", flush=True)
    outputs["logger"].log_hyperparams(options)
    trainer.fit(module, datamodule, ckpt_path=find_checkpoint(run, "last") if resume else None, weights_only=True)
    if test:
        with advising(f"the training is complete; to test it: {testing_command(run)}"):
            run_test_loop(trainer, module, datamodule, run, find_checkpoint(run, "best"))


def open_run(log_dir: Path, resume: str | None, options: dict[str, Any], module: "Classifier") -> Path:
    """A new run folder, or the one to go on in; raises UserError where its options or weights don't fit."""
    if not resume:
        return new_run(log_dir)
    from fmnist_lightning.checkpoint import load_weights, read_checkpoint

    run = find_run(resume, log_dir)
    check_same_run(run, options)
    last = find_checkpoint(run, "last")
    load_weights(module, read_checkpoint(last), last)
    (run / HPARAMS).unlink(missing_ok=True)  # the logger writes the new ones only where there are none
    return run


def output_options(run: Path | None, dataset: str, patience: int | None) -> dict[str, Any]:
    """The Trainer's options that say what is shown and what is written; `run` is None in a smoke run."""
    from lightning.pytorch.callbacks import (
        EarlyStopping,
        LearningRateMonitor,
        ModelCheckpoint,
        ModelSummary,
        Timer,
    )
    from lightning.pytorch.loggers import TensorBoardLogger

    from fmnist_lightning.callbacks import (
        EpochLines,
        HParams,
        NoProfiler,
        Predictions,
        ProgressBar,
        Provenance,
        StopOnSignal,
        Throughput,
    )
    from fmnist_lightning.checkpoint import AtomicCheckpointIO
    from fmnist_lightning.console import DATASET_NAMES

    in_terminal = sys.stdout.isatty()  # where Lightning's bar goes
    shown = [ModelSummary(), ProgressBar(dataset) if in_terminal else EpochLines(DATASET_NAMES[dataset])]
    # Lightning would choose a summary by whether `rich` is installed; this one reads the same everywhere.
    display = {"enable_progress_bar": in_terminal, "enable_model_summary": False, "profiler": NoProfiler()}
    stopping = [EarlyStopping("val/accuracy", mode="max", patience=patience)] if patience else []
    if run is None:
        return {"callbacks": [*shown, StopOnSignal(None, ""), *stopping], **display}
    keep: dict[str, Any] = {"dirpath": run / CHECKPOINTS, "enable_version_counter": False}
    best = ModelCheckpoint(**keep, filename="best", monitor="val/accuracy", mode="max")
    # Not by `save_last` of the one above: Lightning 2.6 then leaves out the epochs that are not the best so far.
    last = ModelCheckpoint(**keep, filename="last")
    stop = StopOnSignal(run / CHECKPOINTS / "last.ckpt", f"saved; to go on: {resume_command(run)}")
    recorders = [
        Timer(),
        Provenance(),
        Throughput(),
        LearningRateMonitor("epoch"),
        HParams(),
        Predictions(run / PREDICTIONS, dataset),
    ]
    return {
        "callbacks": [*recorders, *shown, *stopping, stop, best, last],
        "logger": TensorBoardLogger(run.parent, name="", version=run.name, log_graph=True, default_hp_metric=False),
        "plugins": [AtomicCheckpointIO()],
        **display,
    }
