"""Turn a function into a command: options from a dataclass, exit statuses by the project's contract."""

import json
import math
import os
import re
import shlex
import shutil
import signal
import sys
import sysconfig
import threading
import time
from argparse import SUPPRESS, Action, ArgumentError
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, field, fields, is_dataclass
from difflib import get_close_matches
from importlib import import_module
from itertools import zip_longest
from pathlib import Path
from textwrap import shorten
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    NamedTuple,
    NoReturn,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import yaml
from jsonargparse import (  # type: ignore[attr-defined]  # ActionConfigFile is public, but not in __all__
    ActionConfigFile,
    ArgumentParser,
    DefaultHelpFormatter,
    set_parsing_settings,
)
from jsonargparse.typing import PositiveInt, extend_base_type, restricted_number_type, restricted_string_type

from fmnist_lightning import __version__
from fmnist_lightning.errors import (
    SETUP,
    Interrupted,
    UserError,
    begin,
    complete_output,
    full_path,
    interruptible,
    missing,
)

Options = TypeVar("Options")

PROGRAM = "fmnist"  # the console command
PACKAGE = Path(__file__).resolve().parent
SCRIPTS = PACKAGE.parent / "scripts"  # in a checkout
RECIPES = (PACKAGE if (PACKAGE / "recipes").is_dir() else PACKAGE.parent) / "recipes"  # a wheel has them inside
LOG_DIR = "lightning_logs"
VERSION = f"fmnist-lightning {__version__}"
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # names the file in which torch's elastic agent looks for a rank's error

# The docstring below a dataclass's field is the option's help.
set_parsing_settings(docstring_parse_attribute_docstrings=True)

# Each data set's name, and the function of SourceOptions that makes it. It is imported when it is used: torch is slow.
SETS = "fmnist_lightning.data.sets"
SOURCES = {
    "fashion_mnist": f"{SETS}.download:fashion_mnist_source",
    "drawn": f"{SETS}.drawn:drawn_source",
    "folder": f"{SETS}.folder:folder_source",
    "idx": f"{SETS}.idx_files:idx_source",
    "mnist": f"{SETS}.torchvision_sets:mnist_source",
    "kmnist": f"{SETS}.torchvision_sets:kmnist_source",
    "emnist_letters": f"{SETS}.torchvision_sets:emnist_letters_source",
}

Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps"]
Strategy = Literal["auto", "ddp"]
Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed", "64-true"]

LOGGER = "tensorboard|csv|wandb|mlflow"

# An option, and what other programs call it. Similar names, such as num_epochs, are found without.
SYNONYMS = {
    "config": "recipe recipes cfg conf c yaml",
    "max_epochs": "epoch n_epoch ep e iterations",
    "max_steps": "steps num_steps max_iters iters",
    "batch_size": "bs b batch",
    "lr": "learning_rate learn_rate rate eta base_lr peak_lr max_lr",
    "weight_decay": "wd decay l2",
    "optimizer": "opt optim",
    "schedule": "scheduler sched lr_scheduler lr_schedule lr_policy",
    "dropout": "drop p_drop",
    "label_smoothing": "smoothing ls",
    "class_weights": "class_weight weights",
    "gradient_clip_val": "clip grad_clip clip_grad clip_grad_norm max_grad_norm",
    "accumulate_grad_batches": "gradient_accumulation_steps grad_accum accum accumulate",
    "flip": "hflip horizontal_flip mirror",
    "shift": "crop random_crop translate",
    "erase": "random_erasing cutout",
    "val_fraction": "val_split validation_split val_size valid_fraction",
    "seed": "random_seed random_state seed_everything",
    "accelerator": "gpu cuda cpu mps device no_cuda",
    "devices": "gpus num_gpus n_gpus n_gpu ngpus gpu_ids num_devices nproc nproc_per_node num_processes",
    "num_nodes": "nnodes nodes machines",
    "precision": "amp fp16 bf16 half dtype",
    "run": "run_dir run_folder version checkpoint_dir model model_path resume",
    "ckpt": "ckpt_path checkpoint weights",
    "weights": "model ckpt ckpt_path checkpoint run",
    "resume": "ckpt_path checkpoint resume_from resume_from_checkpoint load continue restart",
    "model": "arch architecture net network backbone model_name m",
    "dataset": "data_set task",
    "data_dir": "data data_path data_root datadir root dataset_dir dataset_path path folder",
    "images": "image img input inputs file files picture pictures path",
    "output": "out output_file output_dir out_dir outdir o",
    "log_dir": "logdir logs output out output_dir out_dir outdir save_dir default_root_dir results name project",
    "logger": "loggers wandb mlflow report_to tracker",
    "trials": "n_trials num_trials",
    "teacher": "distill teacher_model",
    "patience": "early_stopping early_stop",
    "fast_dev_run": "dry_run debug smoke_test",
}
OWN_OPTIONS = ("config", "print_config", "help", "version")  # of the command line alone
WORKERS = ("workers", "num_workers", "n_workers", "j", "pin_memory", "prefetch_factor")


YAML_LINES = "lines `name: value`, not indented, with a space after the colon"


class Loader(yaml.SafeLoader):
    """YAML in which no name is given twice, and dates are text. No code in it can run."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                where = f"line {line}" if line == lines[name] else f"lines {lines[name]} and {line}"
                raise yaml.YAMLError(f"it has {name} twice, in {where}")
            lines[name] = line
        return node


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def check_count(_type: type, value: Any) -> None:
    """Refuse what is no integer above 0. PositiveInt would take a file's 1.0, all batches, for 1."""
    if isinstance(value, (bool, float)) or int(value) < 1:
        raise ValueError(f"{value} does not conform to a positive integer")


if TYPE_CHECKING:
    Dataset = str
    PositiveFinite = float
    Seed = int
    Shift = int
    TopK = int
    NonNegativeFinite = float
    Fraction = float
    MixupAlpha = float
    BatchLimit = int | float
    Loggers = str
    Devices = int | str
    Rates = tuple[float, float, float]
else:
    Dataset = Literal[(*SOURCES, "auto")]
    # The last argument is what `--help` and messages say that an option takes.
    PositiveFinite = restricted_number_type(
        "PositiveFinite", float, [(">", 0), ("<", math.inf)], docstring="a number above 0"
    )
    # What NumPy takes.
    Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**32)], docstring="an integer from 0 to 4294967295")
    Shift = restricted_number_type("Shift", int, [(">=", 0), ("<", 1000)], docstring="an integer from 0 to 999")
    TopK = restricted_number_type("TopK", int, [(">=", 1), ("<=", 100_000)], docstring="an integer from 1 to 100000")
    NonNegativeFinite = restricted_number_type(
        "NonNegativeFinite", float, [(">=", 0), ("<", math.inf)], docstring="a number from 0"
    )
    Fraction = restricted_number_type("Fraction", float, [(">=", 0), ("<", 1)], docstring="a number from 0 to below 1")
    # With 0.001 a quarter of the draws of torch's beta distribution, in 32 bits, is exactly one half.
    MixupAlpha = restricted_number_type(
        "MixupAlpha", float, [("==", 0), (">=", 0.01)], join="or", docstring="0 or a number from 0.01"
    )
    BatchLimit = extend_base_type("BatchCount", int, check_count, docstring="a positive integer")
    BatchLimit |= restricted_number_type(
        "PortionOfBatches", float, [(">", 0), ("<=", 1)], docstring="a fraction up to 1.0"
    )
    Loggers = restricted_string_type(
        "Loggers", rf"^({LOGGER})(,({LOGGER}))*$", docstring=f"{LOGGER.replace('|', ', ')}, separated by commas"
    )
    Devices = restricted_number_type(
        "DeviceCount", int, [(">", 0), ("==", -1)], join="or", docstring="a number or -1 (all)"
    )
    Devices |= restricted_string_type("DeviceList", r"^(auto|\d+,(\d+(,\d+)*)?)$", docstring="auto or ids such as 0,1")
    Rates = Fraction | tuple[Fraction, Fraction, Fraction]

PHRASES = {PositiveInt: "a positive integer", int: "an integer", str: "text", bool: "true or false"}


def command(name: str) -> str:
    """How a user types one of the project's commands in this installation: `train`, `test` and so on."""
    started = Path(sys.argv[0])
    if started.resolve().parent == SCRIPTS:
        return f"{python()} {quoted(started.with_name(f'{name}.py'))}"
    if started.stem == PROGRAM:
        return f"{PROGRAM if shutil.which(PROGRAM) == sys.argv[0] else quoted(sys.argv[0])} {name}"
    return f"{python()} -m {PACKAGE.name} {name}"


def python() -> str:
    """How a user types this Python: by its name if the shell finds it by that; else its path."""
    this = Path(sys.executable)
    for name in ("python", "python3", this.name):
        # In an environment it is a link to another folder's Python, which has other packages.
        found = shutil.which(name)
        if found and Path(found).parent.resolve() == this.parent.resolve() and this.samefile(found):
            return name
    return shortest(this)


def program(name: str, module: str) -> str:
    """How a user types a program of this environment, which is `python -m module` too."""
    folder = sysconfig.get_path("scripts")
    installed, found = shutil.which(name, path=folder), shutil.which(name)
    if not installed:
        return f"{python()} -m {module}"
    return name if found and Path(found).samefile(installed) else shortest(Path(installed))


def shortest(path: Path) -> str:
    """The absolute path of a program or the one from the working folder, as a user types it."""
    relative = str(path) if path.drive != Path.cwd().drive else os.path.relpath(path)
    if os.sep not in relative:
        relative = os.path.join(os.curdir, relative)  # noqa: PTH118 (pathlib's drops the dot)
    return quoted(min(str(path), relative, key=len))


def quoted(path: str | Path) -> str:
    """A path as a user types it in a shell, so that no command takes it for an option or for a home."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith(("-", "~")) else text)


def find_recipe(name: str | Path, kind: str = ".") -> Path:
    """The file `name`, else the recipe of this name that comes with the project, from the folder `kind` of recipes.

    Raises UserError if there is neither.
    """
    path, known = Path(expanded(str(name))), recipes(kind)
    if path.is_file():
        return path
    if str(name) in known:
        return known[str(name)]
    reason = f"{full_path(path)} is a folder" if path.is_dir() else missing(path)
    if not reason.endswith("?") and (close := get_close_matches(path.stem.lower(), known, 1)):
        reason = f"did you mean {close[0]}?"
    raise UserError(f"cannot use {str(name)!r}: {reason} (expected a YAML file, or one of {', '.join(known)})")


def read_yaml(path: Path, hint: str = "") -> dict[str, Any]:
    """The names and values in a YAML file. Raises UserError, with `hint`, if it holds none, or a name twice."""
    hint = f" ({hint})" if hint else ""
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.load(text, Loader)  # noqa: S506 (it is a SafeLoader)
    except OSError as error:
        reason = missing(path) if isinstance(error, FileNotFoundError) else error.strerror
        raise UserError(f"cannot read {path}: {reason}{hint}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read {path}: it is no text in UTF-8, from byte {error.start} on{hint}") from error
    # PyYAML raises ValueError for a number such as 0b2, and RecursionError for many brackets.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {problem(error)}{hint}") from error
    if not text.strip():
        hint = hint or " (a shell empties the file of `> FILE` before the command reads it)"
        raise UserError(f"cannot use {path}: the file is empty; expected {YAML_LINES}{hint}")
    if content is None:
        raise UserError(f"cannot use {path}: it has only comments; expected {YAML_LINES}{hint}")
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise UserError(f"cannot use {path}: expected {YAML_LINES}{hint}")
    return content


def problem(error: Exception) -> str:
    """An error of PyYAML, which has up to six lines, in one."""
    if isinstance(error, yaml.reader.ReaderError):
        return f"it is no text, from character {error.position} on"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        line, column = error.problem_mark.line + 1, error.problem_mark.column + 1
        return f"line {line}, column {column}: {error.problem}; expected {YAML_LINES}"
    return "it is nested too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())


def recipes(kind: str = ".") -> dict[str, Path]:
    """The recipes that come with the project by name, from the folder `kind` of recipes."""
    return {path.stem: path for path in sorted((RECIPES / kind).glob("*.yaml"))}


def default_data_dir() -> str:
    """Where the data is if nothing else says so."""
    return os.environ.get("FMNIST_DATA_DIR") or "data"


def path_option(default: Any = MISSING, *, default_factory: Any = MISSING) -> Any:
    """A field that names a file or folder. `~` and `$NAME` are replaced, as only some libraries would do."""
    if default_factory is not MISSING:
        return field(default_factory=default_factory, metadata={"path": True})
    return field(default=default, metadata={"path": True})


class Parser(ArgumentParser):
    """A required list is typed as plain words without its name. jsonargparse would ask for YAML in one word."""

    options: type[Any]

    def add_argument(self, *names: Any, **kwargs: Any) -> Any:
        if names and not names[0].startswith("-"):
            kwargs = {"help": kwargs.get("help"), "type": str, "nargs": "+"}
        return super().add_argument(*names, **kwargs)


class Recipe(ActionConfigFile):
    """`--config`: a file of options, or for a training the name of a recipe."""

    @staticmethod
    def apply_config(parser: Any, cfg: Any, dest: str, value: str) -> None:
        path = find_recipe(value) if hasattr(parser.options, "RECIPES") else Path(expanded(value))
        content = read_yaml(path)
        check_values(parser.options, content, path)
        try:
            ActionConfigFile.apply_config(parser, cfg, dest, str(path))
        # A RecursionError is of a list that contains itself.
        except (ArgumentError, TypeError, ValueError, RecursionError) as error:
            raise UserError(f"cannot use {path}: {explain(parser.options, str(error), content)}") from error


class Help(DefaultHelpFormatter):
    """An option's help ends with what it takes, unless its choices are shown anyway, and with its default."""

    def _get_help_string(self, action: Action) -> str:
        hint = getattr(action, "_typehint", None)
        if hint is None:
            return super()._get_help_string(action)
        takes = expected(hint)
        notes = [] if takes == "text" or str(action.metavar).startswith("{") else [takes]
        if action.required:
            notes.append("required")
        elif action.default not in (None, SUPPRESS):
            notes.append(f"default: {plain_text(action.default)}")
        return f"{action.help} ({'; '.join(notes)})" if notes else action.help or ""


def main(
    options: type[Any],
    function: str | Callable[[Any], object],
    arguments: Sequence[str] | None = None,
    prog: str | None = None,
) -> int:
    """Parse `arguments`, by default the command line, call `function` with the options, and return the exit status.

    `function` is "package.module:function", which is imported once the options are right, or the function itself.
    `prog` is what the user typed before the arguments. 0 done; 1 a problem that the printed message explains; 130 and
    143 after Ctrl-C and SIGTERM. Raises SystemExit with 2 for wrong options.
    """

    def act() -> None:
        parsed = options.parse(given, prog) if hasattr(options, "parse") else parse(options, given, prog)
        call = named(function) if isinstance(function, str) else function
        with interruptible():
            call(parsed)

    given = sys.argv[1:] if arguments is None else arguments
    return exit_status(act)


def exit_status(act: Callable[[], object]) -> int:
    """Call `act` as a program, and return its exit status; print why it is not 0."""
    begin()
    try:
        with complete_output():
            forget_other_launchers()
            if ERROR_FILE in os.environ:
                threading.Thread(target=end_with_launcher, args=(os.getppid(),), daemon=True).start()
            act()
    except Interrupted as interruption:
        # Torch's elastic agent says itself why it ended its ranks.
        if is_rank_zero() and (interruption.advice or ERROR_FILE not in os.environ):
            print(f"\n{interruption}", file=sys.stderr)
        return interruption.exit_status
    except UserError as error:
        report(str(error))
        return error.exit_status
    except OSError as error:
        report(f"cannot read or write {error.filename}: {error.strerror}" if error.filename else str(error))
        return 1
    return 0


def named(function: str) -> Callable[[Any], Any]:
    """The function that "package.module:function" names."""
    module, _, name = function.partition(":")
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        raise UserError(f"cannot run with {sys.executable}: {error} ({SETUP})") from error


def end_with_launcher(launcher: int) -> None:
    """Send this rank SIGTERM once its launcher, which else would do so, was killed."""
    while os.getppid() == launcher:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


class Launcher(NamedTuple):
    """A program that starts ranks, by the variables that it sets for each of them."""

    name: str
    mark: str  # set by this launcher alone
    world_size: str
    rank: str
    needed: tuple[str, ...]  # by a rank, too: numbers, except an address
    misleading: tuple[str, ...]  # a process that another program started


# torchrun first, since it can run in a SLURM job. `launch`, in training/devices.py, sets the same variables. The script
# of a SLURM job is one process, whatever SLURM_NTASKS is; only srun sets the variables of a step.
LAUNCHERS = (
    Launcher(
        name="torchrun",
        mark="TORCHELASTIC_RUN_ID",
        world_size="WORLD_SIZE",
        rank="RANK",
        needed=("LOCAL_RANK", "MASTER_PORT", "MASTER_ADDR"),
        misleading=("LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "TORCHELASTIC_USE_AGENT_STORE", ERROR_FILE),
    ),
    Launcher(
        name="srun",
        mark="SLURM_STEP_NUM_TASKS",
        world_size="SLURM_STEP_NUM_TASKS",
        rank="SLURM_PROCID",
        needed=("SLURM_LOCALID", "SLURM_NODEID", "SLURM_NTASKS"),
        misleading=("JSM_NAMESPACE_RANK",),  # of IBM's jsrun, which Lightning knows
    ),
)
WORLD_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "JSM_NAMESPACE_SIZE")


def launcher() -> Launcher | None:
    """The launcher that started this process as one of several ranks; None if it runs alone.

    Raises UserError if there is one, but its variables don't give this process's rank.
    """
    for one in LAUNCHERS:
        world_size = number(one.world_size)
        if one.mark not in os.environ or world_size is None:
            continue
        if world_size <= 1:
            return None
        for name in (one.rank, *one.needed):
            value = number(name)
            right = os.environ.get(name) if name == "MASTER_ADDR" else value is not None
            if not right or (name == one.rank and value is not None and value >= world_size):
                raise UserError(
                    f"cannot be one of {world_size} processes: {name} is {os.environ.get(name, 'not set') or 'empty'} "
                    f"(start all with {one.name}; to run alone, unset {one.mark})"
                )
        return one
    return None


def number(name: str) -> int | None:
    """The value of an environment variable, if it is an integer from 0."""
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else None


def forget_other_launchers() -> None:
    """Remove the variables of launchers that did not start this process, before Lightning is imported and reads them.

    With RANK=1, left by some other program, it would write neither epochs nor curves. Raises UserError as `launcher`
    does.
    """
    mine = launcher()
    claims = [name for name in WORLD_SIZES if (number(name) or 1) > 1]
    if claims and not mine:
        print(
            f"WARNING: {claims[0]} is {number(claims[0])}, but neither torchrun nor srun started this process: it runs "
            "alone (to use several, see docs/scale.md)",
            file=sys.stderr,
        )
    for one in LAUNCHERS:
        if one is not mine:
            for name in (one.mark, one.world_size, one.rank, *one.misleading):
                os.environ.pop(name, None)


def is_rank_zero() -> bool:
    """Whether this process is the only one, or the one of several that speaks for all."""
    one = launcher()
    return one is None or number(one.rank) == 0


def report(message: str) -> None:
    """Print an error, or hand it to torch's elastic agent, which prints that of the rank that failed first."""
    if path := os.environ.get(ERROR_FILE):
        Path(path).write_text(json.dumps({"message": message, "timestamp": int(time.time())}), encoding="utf-8")
    else:
        print(f"error: {message}", file=sys.stderr)


def build_parser(options: type[Any], prog: str | None = None) -> Parser:
    """A parser of the fields of a dataclass, flat, with `--config`.

    The dataclasses that it inherits from, the last first, are groups of `--help` with their docstrings as titles. The
    parser raises ArgumentError for a wrong option.
    """
    parser = Parser(
        prog=prog,
        usage=" ".join(["%(prog)s [options]", *required_words(options)]),
        description=options.__doc__,
        exit_on_error=False,
        allow_abbrev=False,
        formatter_class=Help,
    )
    parser.options = options
    named = f", or the name of a recipe: {', '.join(recipes())}" if hasattr(options, "RECIPES") else ""
    parser.add_argument("--version", action="version", version=VERSION, help="Show the version and exit.")
    parser.add_argument("--config", action=Recipe, help=f"A YAML file of these options{named}.")
    added: list[str] = []
    for group in reversed(options.__bases__):
        if is_dataclass(group):
            added += parser.add_argument_group(group.__doc__).add_class_arguments(group, as_group=False)
    parser.add_class_arguments(options, as_group=False, as_positional=True, skip=set(added))
    return parser


def required_words(options: type[Any]) -> list[str]:
    """How the options without a default are typed. A list is typed as plain words."""
    required = [one for one in fields(options) if one.default is MISSING and one.default_factory is MISSING]
    return [
        f"{one.name} [{one.name} ...]" if one.type == list[str] else f"--{one.name} {one.name.upper()}"
        for one in required
    ]


def parse(options: type[Options], arguments: Sequence[str], prog: str | None = None) -> Options:
    """The options on a command line; exits with 2 if one is wrong, with 0 after `--help`."""
    parser = build_parser(options, prog)
    arguments = with_flags_completed(options, arguments)
    try:
        check_names(parser, arguments)
        return typed(options, parser.parse_args(arguments).as_dict())
    except ArgumentError as error:
        reason = explain_words(parser, str(error), arguments)
        reason = reason or explain(options, str(error), given_words(arguments), "--")
        fail(f"cannot run {parser.prog}: {reason} (see {parser.prog} --help)")
    except UserError as error:
        fail(str(error) if str(error).endswith(")") else f"{error} (see {parser.prog} --help)")
    except UnicodeError as error:
        fail(f"cannot run {parser.prog}: an option is not UTF-8 text: {error}")


def fail(message: str) -> NoReturn:
    """End the program, which was started with wrong options."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def parse_values(options: type[Options], values: dict[str, Any], source: str | Path) -> Options:
    """Options from a mapping, such as the content of `source`, a file.

    Raises UserError that names `source` if an option is unknown or ill-typed.
    """
    check_values(options, values, source)
    try:
        return typed(options, build_parser(options).parse_object(values).as_dict())
    except (ArgumentError, TypeError) as error:
        raise UserError(f"cannot use {source}: {explain(options, str(error), values)}") from error


def check_values(options: type[Any], values: Mapping[str, Any], source: str | Path) -> None:
    """Raise UserError if a name is no option, or its value is null though it needs one, which jsonargparse allows."""
    hints = {one.name: get_type_hints(options)[one.name] for one in fields(options)}
    for name, value in values.items():
        if name not in hints:
            raise UserError(f"cannot use {source}: {no_option(options, name)}")
        if value is None and NoneType not in get_args(hints[name]):
            raise UserError(f"cannot use {source}: {name} has no value; expected {expected(hints[name])}")


def check_names(parser: Parser, arguments: Sequence[str]) -> None:
    """Raise ArgumentError for the first word with a dash that is no option."""
    for argument in arguments:
        if argument == "--":
            return
        name = argument.partition("=")[0]
        if re.match(r"--?[^\W\d]|---", name) and name not in parser._option_string_actions:
            raise ArgumentError(None, no_option(parser.options, name, "--"))


def no_option(options: type[Any], name: str, dashes: str = "") -> str:
    """That `name` is no option, and which one was meant."""
    if plain_name(name) in WORKERS:
        return f"there is no option {name}: the images lie in memory, and need no workers"
    meant = suggested(options, name, OWN_OPTIONS if dashes else ())
    # A list is typed as plain words.
    if dashes and get_type_hints(options).get(meant) == list[str]:
        return f"there is no option {name}; type {meant} as plain words"
    return f"there is no option {name}" + (f"; did you mean {dashes}{meant}?" if meant else "")


def suggested(options: type[Any], name: str, more: Sequence[str] = ()) -> str:
    """The option, or one of `more`, that a user means by `name`, or nothing."""
    name = plain_name(name)
    known = {one.name for one in fields(options)} | {*more}
    if name in known:
        return name
    for option, others in SYNONYMS.items():
        if option in known and name in others.split():
            return option
    switch = name.removeprefix("no_")
    if get_type_hints(options).get(switch) is bool:
        return f"{switch} false"
    return next(iter(get_close_matches(name, known, 1, 0.7)), "")


def plain_name(name: str) -> str:
    return name.strip("-–—:+").lower().replace("-", "_")  # noqa: RUF001 (dashes of word processors)


def given_words(arguments: Sequence[str]) -> dict[str, str]:
    """What was typed for each option."""
    given = {}
    for argument, after in zip_longest(arguments, arguments[1:], fillvalue=""):
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            given[name] = value if equals else after
    return given


def explain(options: type[Any], message: str, values: Mapping[str, Any], dashes: str = "") -> str:
    """What is wrong with one of `values`, in one line, from jsonargparse's message, which has up to eight lines."""
    hints = get_type_hints(options)
    if (match := re.match(r'Parser key "(\w+)"', message)) and match[1] in hints:
        name = match[1]
        found, wanted = plain_text(values.get(name)), expected(hints[name])
        meant = meant_choice(hints[name], found)
        return f"{dashes}{name} is {shorten(found, 80) or 'empty'}; expected {wanted}{meant}"
    return shorten(message, 500)


def meant_choice(hint: Any, value: str) -> str:
    """The one of a type's choices that `value` resembles, as a question."""
    choices = [str(one) for inner in (hint, *get_args(hint)) if get_origin(inner) is Literal for one in get_args(inner)]
    word = value.lower().replace("-", "_")
    by_word = {choice.replace("-", "_"): choice for choice in choices}
    close = [one for one in by_word if word and one.startswith(word)] or get_close_matches(word, by_word, 1)
    return f"; did you mean {by_word[close[0]]}?" if close else ""


def explain_words(parser: Parser, message: str, arguments: Sequence[str]) -> str:
    """What is wrong with the words of a command line, from argparse's message; nothing if it is about a value."""
    options = parser.options
    if match := re.match(r"argument (?:-\w/)?--(\w+): expected one argument", message):
        hint = get_type_hints(options).get(match[1], str)
        described = str(parser._option_string_actions[f"--{match[1]}"].help)
        wanted = re.split(r"[.;] ", described)[0].removesuffix(".") if expected(hint) == "text" else expected(hint)
        return f"--{match[1]} needs a value: {' '.join(wanted.split())}"
    if match := re.match(r"the following arguments are required: (.*)", message):
        return f"it lacks {match[1]}; expected {' '.join([parser.prog, '[options]', *required_words(options)])}"
    if match := re.match(r"unrecognized arguments: (.*)", message, re.DOTALL):
        word = match[1].split(" ")[0]
        meant = meant_by_word(options, word, arguments)
        return f"unexpected word {word or repr(word)}" + (f"; did you mean {meant}?" if meant else "")
    return ""


def meant_by_word(options: type[Any], word: str, arguments: Sequence[str]) -> str:
    """What a user means by a word that follows no option, or nothing."""
    name, _, value = word.partition("=")
    if word and (meant := suggested(options, name, OWN_OPTIONS)):
        return f"--{meant}" + (f" {value}" if value else "")
    hints = {one.name: get_type_hints(options)[one.name] for one in fields(options)}
    # `--dropout 0.1 0.1 0.5`: words that follow a list's first one.
    before = list(arguments[: arguments.index(word)] if word in arguments else [])
    if len(before) > 1 and "[" in expected(hints.get(before[-2].removeprefix("--"), str)):
        return f'{before[-2]} "[{", ".join(arguments[len(before) - 1 :])}]"'
    for name, hint in hints.items():
        if any(get_origin(one) is Literal and word in get_args(one) for one in (hint, *get_args(hint))):
            return f"--{name} {word}"
    if hasattr(options, "RECIPES"):
        is_recipe = word in recipes() or word.endswith((".yaml", ".yml"))
        return f"--config {word}" if is_recipe else ""
    return f"--{fields(options)[0].name} {quoted(word)}"


def expected(hint: Any) -> str:
    """The values of a type, in words. Null, the default of an option that need not be given, is left out."""
    inner = [one for one in get_args(hint) if one is not NoneType]
    if get_origin(hint) is Literal:
        return " or ".join([", ".join(str(value) for value in inner[:-1]), str(inner[-1])][len(inner) == 1 :])
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(expected(one) for one in inner)
    if get_origin(hint) is tuple and inner[-1] is not Ellipsis:
        return f'a list of {len(inner)}, such as "[{", ".join(["0.5"] * len(inner))}]"'
    if get_origin(hint) in (tuple, list):
        example = "a, b" if inner[0] is str else "0.5, 0.5"
        return f'a list such as "[{example}]", each {expected(inner[0])}'
    return PHRASES.get(hint) or hint.__doc__


def plain_text(value: Any) -> str:
    """A value as one types it."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return str(list(value) if isinstance(value, tuple) else value)


def typed(options: type[Options], values: dict[str, Any]) -> Options:
    """The dataclass with plain values, not jsonargparse's. Raises UnicodeError for text that YAML can't hold."""
    plain: dict[str, Any] = {}
    for one in fields(options):  # type: ignore[arg-type]
        value = json.loads(json.dumps(values[one.name]))
        if isinstance(value, str):
            value.encode()
        if value and one.metadata.get("path"):
            value = expanded(value)
        plain[one.name] = tuple(value) if isinstance(value, list) and one.default is not MISSING else value
    return options(**plain)


def expanded(path: str) -> str:
    """A path with `~` and `$NAME` replaced."""
    return os.path.expandvars(os.path.expanduser(path))  # noqa: PTH111 (pathlib's refuses unknown users)


def with_flags_completed(options: type[Any], arguments: Sequence[str]) -> list[str]:
    """Write `--flag` alone, or before plain words, as jsonargparse wants it: `--flag=true`."""
    hints = get_type_hints(options)
    flags = {f"--{name}" for name, hint in hints.items() if hint is bool}
    takes_words = any(hint == list[str] for hint in hints.values())
    return [
        f"{argument}=true"
        if argument in flags and (after.startswith("-") or (takes_words and after.lower() not in ("true", "false")))
        else argument
        for argument, after in zip_longest(arguments, arguments[1:], fillvalue="--")
    ]


def require(packages: Sequence[str], purpose: str, extra: str) -> None:
    """Raise UserError if a package of one of the project's extras is not installed."""
    try:
        for package in packages:
            import_module(package)
    except ImportError as error:
        in_checkout = (PACKAGE.parent / "pyproject.toml").is_file()
        wanted = f"--editable '{PACKAGE.parent}[{extra}]'" if in_checkout else f"'fmnist-lightning[{extra}]'"
        raise UserError(f"{purpose} needs packages that are not installed ({error}): pip install {wanted}") from error
