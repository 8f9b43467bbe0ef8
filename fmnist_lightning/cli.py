"""Turn a function into a command: options from a dataclass, exit statuses by the project's contract."""

import json
import math
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
from argparse import SUPPRESS, Action, ArgumentError
from collections.abc import Callable, Sequence
from dataclasses import MISSING, field, fields, is_dataclass
from difflib import get_close_matches
from importlib import import_module
from itertools import zip_longest
from pathlib import Path
from textwrap import shorten
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from jsonargparse import (  # type: ignore[attr-defined]  # ActionConfigFile is public, but not in __all__
    ActionConfigFile,
    ArgumentParser,
    DefaultHelpFormatter,
    set_parsing_settings,
)
from jsonargparse.typing import PositiveInt, extend_base_type, restricted_number_type, restricted_string_type

from fmnist_lightning import __version__
from fmnist_lightning.errors import SIGNALS, Interrupted, UserError, raise_interrupted

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

PHRASES = {PositiveInt: "a positive integer", int: "an integer", str: "text", bool: "true or false"}


def command(name: str) -> str:
    """How a user types one of the project's commands in this installation: `train`, `test` and so on."""
    started = Path(sys.argv[0])
    if started.resolve().parent == SCRIPTS:
        return f"python {shlex.quote(str(started.with_name(f'{name}.py')))}"
    if started.name == PROGRAM:
        return f"{PROGRAM if shutil.which(PROGRAM) == sys.argv[0] else shlex.quote(sys.argv[0])} {name}"
    return f"python -m {PACKAGE.name} {name}"


def find_recipe(name: str | Path, kind: str = ".") -> Path:
    """The file `name`, else the recipe of this name that comes with the project, from the folder `kind` of recipes.

    Raises UserError if there is neither.
    """
    if Path(name).is_file():
        return Path(name)
    known = recipes(kind)
    if str(name) not in known:
        raise UserError(f"cannot find {name}: expected a YAML file, or one of {', '.join(known)}")
    return known[str(name)]


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
        path = find_recipe(value) if hasattr(parser.options, "RECIPES") else Path(value)
        try:
            ActionConfigFile.apply_config(parser, cfg, dest, str(path))
            for name in vars(cfg).keys() - {dest, *get_type_hints(parser.options)}:
                raise ValueError(f"Option '{name}' is not accepted")
        # PyYAML raises ValueError for text that is not UTF-8, and RecursionError for a list that contains itself.
        except (ArgumentError, TypeError, ValueError, RecursionError) as error:
            raise UserError(f"cannot use {path}: {explain(parser.options, str(error))}") from error


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
    for number in SIGNALS:
        signal.signal(number, raise_interrupted)
    if ERROR_FILE in os.environ:
        threading.Thread(target=end_with_launcher, args=(os.getppid(),), daemon=True).start()
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        parsed = options.parse(arguments, prog) if hasattr(options, "parse") else parse(options, arguments, prog)
        if isinstance(function, str):
            named(function)(parsed)
        else:
            function(parsed)
    except Interrupted as interruption:
        # Torch's elastic agent says itself why it ended its ranks.
        if is_rank_zero() and (interruption.advice or ERROR_FILE not in os.environ):
            print(f"\n{interruption}", file=sys.stderr)
        return interruption.exit_status
    except (UserError, OSError) as error:
        report(str(error))
        return getattr(error, "exit_status", 1)
    return 0


def named(function: str) -> Callable[[Any], Any]:
    """The function that "package.module:function" names."""
    module, _, name = function.partition(":")
    return getattr(import_module(module), name)


def end_with_launcher(launcher: int) -> None:
    """Send this rank SIGTERM once its launcher, which else would do so, was killed."""
    while os.getppid() == launcher:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


def is_rank_zero() -> bool:
    """Whether this process is the only one, or the one of several that speaks for all."""
    # torchrun, which may run in a SLURM job, sets RANK; SLURM's srun sets the other.
    return (os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0") == "0"


def report(message: str) -> None:
    """Print an error, or hand it to torch's elastic agent, which prints that of the rank that failed first."""
    if path := os.environ.get(ERROR_FILE):
        Path(path).write_text(json.dumps({"message": message, "timestamp": int(time.time())}), encoding="utf-8")
    else:
        print(f"error: {message}", file=sys.stderr)


def build_parser(options: type[Any], prog: str | None = None) -> ArgumentParser:
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
    try:
        return typed(options, parser.parse_args(with_flags_completed(options, arguments)).as_dict())
    except ArgumentError as error:
        fail(f"cannot run {parser.prog}: {explain(options, str(error), '--')} (see {parser.prog} --help)")
    except UserError as error:
        fail(f"{error} (see {parser.prog} --help)")
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
    try:
        return typed(options, build_parser(options).parse_object(values).as_dict())
    except (ArgumentError, TypeError) as error:
        raise UserError(f"cannot use {source}: {explain(options, str(error))}") from error


def explain(options: type[Any], message: str, dashes: str = "") -> str:
    """What is wrong with an option, in one line, from jsonargparse's message, which has up to eight lines."""
    hints = get_type_hints(options)
    if (match := re.match(r'Parser key "(\w+)"', message)) and match[1] in hints:
        return f"{dashes}{match[1]} is {value_in(message)}; expected {expected(hints[match[1]])}"
    if match := re.search(r"unrecognized arguments: --([^\s=]+)|Option '(\w+)' is not accepted", message):
        name = match[1] or match[2]
        close = get_close_matches(name, hints, 1)
        return f"there is no option {dashes}{name}" + (f"; did you mean {dashes}{close[0]}?" if close else "")
    return shorten(message, 500)


def value_in(message: str) -> str:
    """The wrong value that a message of jsonargparse ends with, or has in one of its phrases."""
    for phrase in (r"(?:Given|Got) value: (.*)", r": (.*?) (?:does not (?:conform|match)|not an? )", r": '(.*)'"):
        if match := re.search(phrase, message, re.DOTALL):
            return shorten(match[1], 80)
    return "wrong"


def expected(hint: Any) -> str:
    """The values of a type, in words. Null, the default of an option that need not be given, is left out."""
    inner = [one for one in get_args(hint) if one is not NoneType]
    if get_origin(hint) is Literal:
        return " or ".join([", ".join(str(value) for value in inner[:-1]), str(inner[-1])][len(inner) == 1 :])
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(expected(one) for one in inner)
    if get_origin(hint) is tuple and inner[-1] is not Ellipsis:
        return f"a list of {len(inner)}, each {expected(inner[0])}"
    if get_origin(hint) in (tuple, list):
        return f"a list, each {expected(inner[0])}"
    return PHRASES.get(hint) or hint.__doc__


def plain_text(value: Any) -> str:
    """A value as one types it."""
    return str(value).lower() if isinstance(value, bool) else str(list(value) if isinstance(value, tuple) else value)


def typed(options: type[Options], values: dict[str, Any]) -> Options:
    """The dataclass with plain values, not jsonargparse's. Raises UnicodeError for text that YAML can't hold."""
    plain: dict[str, Any] = {}
    for one in fields(options):  # type: ignore[arg-type]
        value = json.loads(json.dumps(values[one.name]))
        if isinstance(value, str):
            value.encode()
        if value and one.metadata.get("path"):
            value = os.path.expandvars(os.path.expanduser(value))  # noqa: PTH111 (pathlib's refuses unknown users)
        plain[one.name] = tuple(value) if isinstance(value, list) and one.default is not MISSING else value
    return options(**plain)


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
