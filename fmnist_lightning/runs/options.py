"""The options of every command: one typed definition for the command line, recipes, config.yaml and the search.

It imports no torch, so that `--help` is fast. The first classes group the options of a training by purpose. On the
command line and in files all options are flat.
"""

from collections.abc import Sequence
from dataclasses import KW_ONLY, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from jsonargparse.typing import PositiveInt

from fmnist_lightning.cli.parser import parse, parse_values
from fmnist_lightning.cli.recipes import find_recipe, read_yaml
from fmnist_lightning.cli.types import (
    LOG_DIR,
    Accelerator,
    BatchLimit,
    Dataset,
    Devices,
    Fraction,
    Loggers,
    MixupAlpha,
    NonNegativeFinite,
    PositiveFinite,
    Precision,
    Rates,
    Seed,
    Shift,
    Strategy,
    TopK,
    default_data_dir,
    path_option,
)
from fmnist_lightning.errors import UserError
from fmnist_lightning.runs.folders import CONFIG, find_resumed, own_objects, read_config, resume_command


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """Devices"""

    accelerator: Accelerator = "auto"
    """Where to compute."""
    devices: Devices = 1
    """Number of devices of this machine, or which ones, in Lightning's notation. Each gets a process."""
    num_nodes: PositiveInt = 1
    """Number of machines that train together. docs/scale.md says how to start them."""
    strategy: Strategy = "auto"
    """ddp runs one process per device, and averages their gradients. auto does so if there are several devices."""
    precision: Precision = "auto"
    """Precision, in Lightning's notation. auto is the fastest one measured on such a device, else 32-true."""


@dataclass(frozen=True, kw_only=True)
class ModuleOptions:
    """Model and optimizer"""

    model: str = "seed"
    """seed is the original's model; notebook, the larger one that printed the original's results; compact and fine,
    residual models with less than 250,000 parameters; advanced, one with less than 1,300,000. timm:NAME is any model of
    timm, such as timm:resnet18; it needs the extra timm."""
    pretrained: bool = False
    """Start a timm model from its pretrained weights, which are downloaded."""
    dropout: Rates | None = None
    """Dropout rates after the first pooling, the second pooling and the dense layer, or one for all. Residual models:
    after each of the last three stages. Default: the model's own, which is 0.25, 0.25, 0.5 for all but notebook (0.5,
    0.5, 0)."""
    optimizer: Literal["adam", "muon", "sgd", "adamw"] = "adam"
    """adam is Keras's Adam; muon, Muon for the weights of hidden layers and Keras's Adam for the rest; sgd, with
    Nesterov momentum of 0.9, needs a higher --lr; adamw, torch's."""
    lr: PositiveFinite = 1e-3
    """Learning rate. For one_cycle and cosine, its peak."""
    weight_decay: NonNegativeFinite = 0.0
    """Decoupled weight decay, as in AdamW; for sgd, L2 regularization."""
    schedule: Literal["constant", "one_cycle", "cosine"] = "constant"
    """Schedule of the learning rate: constant; one_cycle, which goes up and then down to nearly zero; cosine, down to
    zero."""
    label_smoothing: Fraction = 0.0
    """Label smoothing of the training loss. The logged loss has none."""
    class_weights: Literal["balanced"] | tuple[NonNegativeFinite, ...] | None = None
    """Weights of the classes in the training loss: a list by label, or balanced, the inverse of each class's frequency
    in the training images. The logged loss has none."""

    def __post_init__(self) -> None:
        if isinstance(self.dropout, int | float):
            object.__setattr__(self, "dropout", (float(self.dropout),) * 3)


@dataclass(frozen=True, kw_only=True)
class AugmentationOptions:
    """Augmentation of training images"""

    flip: bool = False
    """Flip half of the training images left to right, at random in each epoch."""
    shift: Shift = 0
    """Move each training image by up to this many pixels on each axis."""
    erase: Fraction = 0.0
    """Fraction of the training images that lose a black rectangle."""
    mixup: MixupAlpha = 0.0
    """Alpha of mixup: blend each training image and its label with another one of the batch. 0 for none."""


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Data"""

    dataset: Dataset = "fashion_mnist"
    """fashion_mnist; drawn, a synthetic stand-in that needs no file; auto, fashion_mnist if available, else drawn;
    folder, a folder of pictures with a folder for each class; idx, any four IDX files; mnist, kmnist, emnist_letters,
    by torchvision."""
    data_dir: str = path_option(default_factory=default_data_dir)
    """Folder of the data. Fashion-MNIST: with torchvision's layout or the four files, gzipped or not; other sets of
    torchvision: with its layout; missing files are downloaded into it. folder: PICTURES/CLASS/FILE or
    PICTURES/train/CLASS/FILE, with val and test beside train. The environment variable FMNIST_DATA_DIR sets the
    default."""
    image_size: PositiveInt | None = None
    """Height and width in pixels that the pictures of a folder are scaled to. Default: 28."""
    channels: Literal[1, 3] | None = None
    """1 makes the pictures of a folder gray, 3 keeps colors. Default: 3."""
    classes: tuple[str, ...] | None = None
    """Class names of IDX files, by label. Default: the lines of classes.txt in the folder, else the labels."""
    skip_unreadable: bool = False
    """Train without the pictures of a folder that can't be read, which are listed. Otherwise the program stops."""

    def refuse(self, *names: str) -> None:
        """Raise UserError if an option is given that this data set does not have."""
        if given := [f"--{name}" for name in names if getattr(self, name) not in (None, False)]:
            raise UserError(
                f"cannot use {', '.join(given)}: --dataset {self.dataset} has no such option (leave it out)"
            )


@dataclass(frozen=True, kw_only=True)
class DataOptions(SourceOptions):
    """Data"""

    batch_size: PositiveInt = 128
    """Images per step, over all devices. Each device takes its shard of the same batch."""
    val_fraction: Fraction = 0.1
    """Fraction of the training set, balanced by class, that is held out for validation. With 0 the training uses all
    images and validates on none: for recipes whose length is settled. A data set with a validation part of its own,
    such as a folder val, keeps that."""
    seed: Seed = 0
    """Seed of the weights, the order of images, dropout and augmentation, but not of the validation split."""


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """Length and steps of the training"""

    max_epochs: PositiveInt = 40
    """Passes over the training set."""
    max_steps: PositiveInt | None = None
    """Stop after this many optimizer steps, if that comes before the last epoch."""
    limit_train_batches: BatchLimit = 1.0
    """Batches per training epoch: a number, or a fraction of all if it has a decimal point."""
    limit_val_batches: BatchLimit = 1.0
    """Batches per validation: a number, or a fraction of all if it has a decimal point."""
    accumulate_grad_batches: PositiveInt = 1
    """Batches per optimizer step."""
    gradient_clip_val: PositiveFinite | None = None
    """Largest norm of the gradient; a longer one is scaled down to it."""
    ema: Fraction = 0.0
    """Decay of an exponential moving average of the weights, which is validated, saved and tested. 0 for none."""
    patience: PositiveInt | None = None
    """Stop after this many epochs without a better val/accuracy."""
    compile: bool = False
    """Compile the model with torch.compile. Needs a C++ compiler; the first steps take longer."""


@dataclass(frozen=True, kw_only=True)
class DistillationOptions:
    """Distillation"""

    teacher: str | None = path_option(None)
    """Also learn from the outputs of a trained model for each augmented image: packaged, a run folder, last for the
    newest run, a checkpoint, or a .safetensors file. If it was trained on the validation images, val/accuracy is too
    high."""
    teacher_share: Fraction = 0.9
    """Weight of the teacher in the loss. The labels have the rest."""
    temperature: PositiveFinite = 4.0
    """Softens the probabilities of teacher and student before they are compared, if it is above 1."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Run folder, test and resuming"""

    test: bool = True
    """Test a checkpoint at the end. Use false while you choose a recipe, so that the test set decides nothing."""
    ckpt: Literal["best", "last"] = "best"
    """The checkpoint that is tested: best, the one with the highest val/accuracy, or last."""
    logger: Loggers = "tensorboard,csv"
    """Where metrics go, several separated by commas: tensorboard; csv, the file metrics.csv, from which the report's
    curves come; wandb; mlflow. The last two need the extra of their name."""
    log_dir: str = path_option(LOG_DIR)
    """Folder of the run folders version_N."""
    resume: str | None = path_option(None)
    """Run folder to resume, last for the newest, or a checkpoint in one. The run's own options hold, except for those
    given here: a longer training and another device are possible, another data set or model is not."""
    checkpoint_every_minutes: PositiveFinite | None = None
    """Also save within epochs, this often. Each epoch is saved at its end anyway."""
    fast_dev_run: bool = False
    """Run one batch of training, validation and test, to check that everything works. Makes no run folder."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions(
    RunOptions, DeviceOptions, DistillationOptions, LoopOptions, AugmentationOptions, ModuleOptions, DataOptions
):
    """Train an image classifier, then test a checkpoint and print its metrics."""

    # What a resumed run can't change.
    FIXED: ClassVar[tuple[str, ...]]
    RECIPES: ClassVar[bool] = True  # --config takes the name of one

    @classmethod
    def parse(cls, arguments: Sequence[str], prog: str | None = None) -> "TrainOptions":
        """The options on a command line. With `--resume` and without `--config`, the run's own are the defaults.

        Raises UserError if there is no such run, or it has own objects; exits with 2 if an option is wrong.
        """
        options = parse(cls, arguments, prog)
        if not options.resume:
            return options
        run, checkpoint = find_resumed(options.resume, Path(options.log_dir))
        # Resolved only once: the config may name another log folder, and another run may start meanwhile.
        found = checkpoint if options.resume.endswith(".ckpt") else run
        if own := own_objects(run):
            raise UserError(
                f"cannot resume {run} by options alone: it has an own {' and '.join(own)} ({resume_command(run, own)})"
            )
        has_config = any(argument.partition("=")[0] == "--config" for argument in arguments)
        config = [] if has_config else [f"--config={run / CONFIG}"]
        return parse(cls, [*config, *arguments, f"--resume={found}"], prog)


@dataclass(frozen=True, kw_only=True)
class TestOptions:
    """Test a trained run, and write its metrics, predictions and report."""

    __test__: ClassVar[bool] = False  # for pytest: this is no class of tests

    run: str = path_option("last")
    """Run folder, or last for the newest in the log folder."""
    ckpt: str | None = path_option(None)
    """best, last, or the path of a checkpoint file. Default: the one that the run tests."""
    data_dir: str | None = path_option(None)
    """Folder of the data. Default: the run's."""
    batch_size: PositiveInt | None = None
    """Images per step. Default: the run's. The metrics don't depend on it."""
    accelerator: Accelerator = "auto"
    """Where to compute."""
    devices: Devices = 1
    """Number of devices of this machine, or which ones, in Lightning's notation. The metrics don't depend on it."""
    num_nodes: PositiveInt = 1
    """Number of machines that test together. docs/scale.md says how to start them."""
    strategy: Strategy = "auto"
    """ddp runs one process per device. auto does so if there are several devices."""
    precision: Precision | None = None
    """Precision. Default: the run's."""
    tta: bool = False
    """Test-time augmentation: average over each image and its mirror image. metrics.json and the report say so. For
    models that were trained with --flip."""
    log_dir: str = path_option(LOG_DIR)
    """Folder of the run folders version_N."""


@dataclass(frozen=True)
class PredictOptions:
    """Classify pictures. Unreadable ones are reported, the rest is classified, and the exit status is then 1."""

    images: list[str]
    """Pictures, folders of them, patterns such as "shop/**/*.jpg", IDX files, or - for standard input."""
    _: KW_ONLY
    weights: str = path_option("packaged")
    """packaged, the weights that come with the package; last, the newest run in the log folder; a run folder, for the
    checkpoint that it tests; a .ckpt or a .safetensors file."""
    format: Literal["table", "json", "csv"] = "table"
    """table, for people; json, one object per line; csv, with a header."""
    top_k: TopK = 1
    """Number of classes to print for each picture, the most probable first."""
    batch_size: PositiveInt = 256
    """Pictures per step. The results don't depend on it."""
    invert: Literal["auto", "always", "never"] = "auto"
    """For a model of garments, auto shows how much each pixel differs from the background; never and always show the
    garment as it is or negated, on black. For other models, only always negates pictures."""
    save_inputs: str | None = path_option(None)
    """Folder for what the model sees of each picture: one numbered PNG file each, in the size of the model's images."""
    tta: bool = False
    """Test-time augmentation: average over each picture and its mirror image. For models trained with --flip."""
    output: str | None = path_option(None)
    """Folder to write rows to, one file per process, instead of standard output. After a kill, the same command
    resumes. The command join joins the files. Needs --format json or csv."""
    devices: PositiveInt = 1
    """With --output, the number of processes, each on its own GPU if there are GPUs."""
    shard: str | None = None
    """With --output, the shard of the pictures for this process, such as 2/3, unless torchrun, srun or --devices
    sets it."""
    accelerator: Accelerator = "auto"
    """Where to compute."""
    log_dir: str = path_option(LOG_DIR)
    """Folder of the run folders version_N."""


@dataclass(frozen=True, kw_only=True)
class JoinOptions:
    """Join the files of predict --output into one, in the order of the list."""

    folder: str = path_option()
    """The folder that --output named."""
    file: str = path_option()
    """File to write. It appears only if every part is complete."""


@dataclass(frozen=True)
class CompareOptions:
    """Compare tested runs on one data set.

    Their metrics, classes, most confused pairs, calibration and common mistakes.
    """

    runs: list[str]
    """Two run folders or more, the baseline first."""
    _: KW_ONLY
    pictures: str | None = path_option(None)
    """PNG file for the images that all runs get wrong, the most confident mistakes first."""
    data_dir: str | None = path_option(None)
    """Folder of the data for the pictures. Default: the first run's."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write a trained model for other programs, verified on the test set.

    The file is written after it gave the model's outputs for the full test set. ONNX and pt2 take uint8 images (batch,
    channels, height, width) of any number and return probabilities (batch, classes); scaling and softmax are inside.
    Safetensors holds the weights and their card.
    """

    run: str = path_option("last")
    """Run folder, last for the newest in the log folder, packaged for the model that comes with this package, or a
    .ckpt or .safetensors file."""
    ckpt: str | None = path_option(None)
    """best, last, or the path of a checkpoint file of the run. Default: the one that it tests."""
    format: Literal["onnx", "pt2", "safetensors"] = "onnx"
    """onnx, for onnxruntime and others; pt2, for torch.export.load; safetensors, the weights with their card."""
    output: str | None = path_option(None)
    """File to write. Default: export/MODEL.FORMAT in the run folder, or MODEL.FORMAT here if there is no run."""
    data_dir: str | None = path_option(None)
    """Folder of the data to verify it on. Default: the run's."""
    batch_size: PositiveInt = 500
    """Images per step of the verification."""
    log_dir: str = path_option(LOG_DIR)
    """Folder of the run folders version_N."""


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """Search for better options of a recipe, and write the best as a recipe.

    Each trial is a training with other options. Its score is the val/accuracy of the checkpoint that a test would take;
    the test set is not read. The first trial is the recipe itself, if the space contains it, so that the best trial is
    no worse. After a stop or a kill, the same command resumes. Started several times at once, it shares the work. Needs
    the extra tune.
    """

    recipe: str = path_option("fast")
    """The recipe whose options are searched, a file or a name. Its seed is the seed of every trial."""
    space: str = path_option("tuned")
    """Which options to search, and between which values: a YAML file, or the name of one in recipes/search."""
    trials: PositiveInt = 50
    """Number of completed, pruned and failed trials in the study, those of earlier and of other processes included.
    Each further process can add one."""
    study: str = path_option(f"{LOG_DIR}/study")
    """Folder of the search: its database, a run folder for each trial, best.yaml and plots."""
    storage: str | None = None
    """URL of a database, instead of SQLite in the study folder, for machines that share the study of this name. $NAME
    in it is replaced by an environment variable, such as a password."""
    prune: bool = True
    """Stop a trial that is worse than the median of the completed ones, after half of its epochs and once five are
    completed. No trial is stopped if the space has max_epochs."""
    sampler_seed: Seed = 0
    """Seed of the sampler, combined with the number of the trial."""
    dataset: Dataset | None = None
    """The data set, as in a training. Default: the recipe's."""
    data_dir: str | None = path_option(None)
    """Folder of the data. Default: the recipe's."""
    val_fraction: Fraction | None = None
    """Fraction of the training set that is held out for validation. Default: the recipe's."""
    accelerator: Accelerator | None = None
    """Where to compute. Default: the recipe's."""
    devices: Devices | None = None
    """Which device, in Lightning's notation. Default: the recipe's."""
    precision: Precision | None = None
    """Precision. Default: the recipe's."""


def names(group: type[Any]) -> tuple[str, ...]:
    return tuple(one.name for one in fields(group))


def values_of(options: Any, group: type[Any]) -> dict[str, Any]:
    """Those of the options that are fields of `group`, by name."""
    return {name: getattr(options, name) for name in names(group)}


TrainOptions.FIXED = (
    *("dataset", "image_size", "channels", "classes", "skip_unreadable", "val_fraction", "batch_size"),
    *names(AugmentationOptions),
    *names(ModuleOptions),
    *("limit_train_batches", "limit_val_batches", "accumulate_grad_batches", "gradient_clip_val", "compile"),
    *("ema", "seed", "precision"),
)
# Without these a config.yaml does not say which model was trained on what.
REQUIRED = (
    *("dataset", "data_dir", "batch_size", "val_fraction", "seed", "precision"),
    *("model", "optimizer", "lr", "weight_decay", "schedule", "label_smoothing"),
)


def read_options(run: Path) -> TrainOptions:
    """The options in the config.yaml of a run. Options that are newer than the run have their defaults.

    Raises UserError if the file is damaged, lacks one of REQUIRED, or holds a value that no finished run has.
    """
    path, config, own = run / CONFIG, read_config(run), own_objects(run)
    lacking = [name for name in REQUIRED if config.get(name) is None]
    if lacking or config["dataset"] == "auto":
        raise UserError(f"cannot use {path}: it lacks {', '.join(lacking or ['the resolved dataset'])} (restore it)")
    values = {name: config[name] for name in names(TrainOptions) if name in config}
    if "datamodule" not in own:
        return parse_values(TrainOptions, values, path)
    # No --dataset may have its name.
    dataset = values.pop("dataset")
    return replace(parse_values(TrainOptions, values, path), dataset=str(dataset))


def check_same_run(run: Path, options: TrainOptions) -> None:
    """Raise UserError if `options` would make a resumed run a different one."""
    before = read_options(run)
    length = () if options.schedule == "constant" else ("max_epochs", "max_steps")
    if changed := [name for name in (*options.FIXED, *length) if getattr(options, name) != getattr(before, name)]:
        found = ", ".join(f"{name} {getattr(options, name)} instead of {getattr(before, name)}" for name in changed)
        reason = f"the schedule {options.schedule} depends on the length" if {*changed} <= {*length} else "it trains so"
        raise UserError(
            f"cannot resume {run} with {found}: {reason} (give its own options: "
            f"{resume_command(run, own_objects(run))})"
        )


def as_yaml(options: TrainOptions) -> dict[str, Any]:
    """Plain values, as config.yaml and recipes hold them."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(options).items()}


def recipe_values(recipe: str | Path) -> dict[str, Any]:
    """The options that a recipe, a file or a name, holds. Raises UserError if it is no file of options."""
    return read_yaml(find_recipe(recipe))


def read_recipe(recipe: str | Path) -> TrainOptions:
    """All options of a training by a recipe, a file or a name. Raises UserError if one of them is wrong."""
    return parse_values(TrainOptions, recipe_values(recipe), recipe)
